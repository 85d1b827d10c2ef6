#!/bin/sh
# Runs before a removal, and before an upgrade. Debian says "remove" or "upgrade", Red Hat
# how many versions are left.
set -e

case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl --no-reload disable --now raftkv || true
	fi
	;;
esac
