#!/usr/bin/env bash
# Start on a worker, where none runs, what tells Ray that EC2 is about to reclaim this machine.
set -euo pipefail
. ~/.crelu.sh
setsid nohup flock -n ~/.watch-spot python -m sweeps watch-spot >> ~/watch-spot.log 2>&1 < /dev/null &
