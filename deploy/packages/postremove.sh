#!/bin/sh
# Runs after a removal. The data in /var/lib/raftkv and the user stay: a node that has lost
# its data cannot come back under its number.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ "$1" = purge ] || [ "$1" = 0 ]; then
	if [ -d /var/lib/raftkv ]; then
		echo "raftkv: the data in /var/lib/raftkv is kept; remove it by hand once this node is no member any more"
	fi
fi
