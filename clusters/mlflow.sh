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
# Artifacts at a URI stay where they are, and a restored database finds them there: also those in a shared folder.
case $CRELU_BUCKET in
*://*) bucket=$CRELU_BUCKET ;;
*) bucket=$(python -c 'import sys, pathlib; print(pathlib.Path(sys.argv[1]).absolute().as_uri())' "$CRELU_BUCKET") ;;
esac
kept=(--output ~/mlflow --artifacts "$bucket/mlflow")
# A database server of your own keeps its runs itself: say where in setup_commands, and nothing is restored here.
if [ -n "${CRELU_MLFLOW_STORE:-}" ]; then kept+=(--store "$CRELU_MLFLOW_STORE"); fi
# 0: there is a backup, 3: there is none. Any other end is an error, for the next backup would take the place of that one.
there='import sys; from crelu_data.storage import open_filesystem; system, path = open_filesystem(sys.argv[1])
sys.exit(0 if system.get_file_info(path).is_file else 3)'
if [ -z "${CRELU_MLFLOW_STORE:-}" ] && [ ! -e ~/mlflow/mlflow.db ]; then
	code=0
	python -c "$there" "$CRELU_BUCKET/mlflow.tar" || code=$?
	if [ "$code" = 0 ]; then
		python -m sweeps serve "${kept[@]}" --restore "$CRELU_BUCKET/mlflow.tar"
	elif [ "$code" != 3 ]; then
		echo "whether $CRELU_BUCKET/mlflow.tar, the backup of MLflow, is there cannot be seen: MLflow is not started" >&2
		exit 1
	fi
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
