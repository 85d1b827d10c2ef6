#!/bin/sh
# Runs after an installation or an upgrade. Debian says "configure", Red Hat 1 or 2.
set -e

if ! getent passwd raftkv >/dev/null; then
	if command -v systemd-sysusers >/dev/null; then
		systemd-sysusers /usr/lib/sysusers.d/raftkv.conf
	else
		useradd --system --user-group --home-dir /var/lib/raftkv --no-create-home --shell /usr/sbin/nologin raftkv
	fi
fi

# An upgrade does not restart the node. All nodes of a cluster may be upgraded at once by a
# machine, but they must be restarted one by one, each once the one before is ready.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	if systemctl is-active --quiet raftkv; then
		echo "raftkv: the node still runs the program from before; systemctl restart raftkv, one node at a time"
	fi
fi
