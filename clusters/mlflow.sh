#!/usr/bin/env bash
# Start MLflow on the head, where none runs: with a login, on loopback; an earlier head's backup comes back first.
set -euo pipefail
. ~/.crelu.sh
umask 077
mkdir -p ~/.mlflow ~/mlflow
# By these the driver, which runs here too, logs in.
printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' \
	"$(cat ~/.ray/mlflow_password)" > ~/.mlflow/credentials
answers() { curl -sf -o /dev/null http://127.0.0.1:5000/health; }
if answers; then exit 0; fi
kept=(--output ~/mlflow --artifacts "$CRELU_BUCKET/mlflow")
there='import sys; from data.storage import open_filesystem; system, path = open_filesystem(sys.argv[1])
sys.exit(not system.get_file_info(path).is_file)'
if [ ! -e ~/mlflow/mlflow.db ] && python -c "$there" "$CRELU_BUCKET/mlflow.tar"; then
	python -m sweeps serve "${kept[@]}" --restore "$CRELU_BUCKET/mlflow.tar"
fi
setsid nohup python -m sweeps serve "${kept[@]}" --password-file ~/.ray/mlflow_password \
	>> ~/mlflow/server.log 2>&1 < /dev/null &
for _ in $(seq 180); do
	if answers; then exit 0; fi
	sleep 1
done
echo "MLflow does not answer after three minutes; its log:" >&2
tail -n 20 ~/mlflow/server.log >&2
exit 1
