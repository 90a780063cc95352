#!/usr/bin/env bash
# Make a machine of a cluster ready: node.sh s3://BUCKET [postgresql://USER@HOST/NAME, where MLflow's runs are to be].
# It may run again at any time, and then takes a second.
set -euo pipefail
bucket=${1%/}
store=${2:-}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $bucket in *EDIT*) echo "ray_cluster.yaml has lines marked EDIT that are not yours yet" >&2; exit 2;; esac

# rsync keeps modes, so that a careless one would come along; Ray itself writes its token readable by all.
chmod 700 ~/.ray
chmod 600 ~/.ray/auth_token ~/.ray/mlflow_password

# The pictures of a machine lie on its NVMe disks where it has some (the image mounts them), at one path everywhere.
if [ -d /opt/dlami/nvme ]; then
	sudo install -d -o "$(id -u)" -g "$(id -g)" /opt/dlami/nvme/crelu
	[ -e ~/pictures ] || ln -s /opt/dlami/nvme/crelu ~/pictures
fi
mkdir -p ~/pictures

# AWS's tools ask once for the keys of their role, and wait a second: a head too busy to answer in time would have an
# autoscaler without keys for good.
cat > ~/.crelu.sh <<SHELL
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export CRELU_BUCKET=$bucket CRELU_DATA=$HOME/pictures CRELU_DATA_SOURCE=$bucket/data
export AWS_METADATA_SERVICE_TIMEOUT=5 AWS_METADATA_SERVICE_NUM_ATTEMPTS=5
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
export CRELU_MLFLOW_STORE=$(printf %q "$store")
case :\$PATH: in *:$project/.venv/bin:*) ;; *) export PATH=$project/.venv/bin:\$PATH ;; esac
SHELL
# In the first line: Ubuntu's .bashrc leaves where a shell is not interactive.
touch ~/.bashrc
grep -qxF '. ~/.crelu.sh' ~/.bashrc || printf '%s\n' '. ~/.crelu.sh' "$(cat ~/.bashrc)" > ~/.bashrc.new
[ ! -e ~/.bashrc.new ] || mv ~/.bashrc.new ~/.bashrc

# Ray computes a hash of all that it mounts, file by file, on the head before it sets up the first worker. It does not
# follow links, and so leaves out the environment's gigabytes, which took a minute.
if [ ! -e "$project/.venv" ]; then
	mkdir -p ~/.crelu-venv
	ln -sfn ~/.crelu-venv "$project/.venv"
fi

# A new machine installs its own updates first, and holds apt's lock meanwhile.
if [ ! -e "$project/.venv/.complete" ] && command -v cloud-init >/dev/null; then
	sudo systemctl stop unattended-upgrades 2>/dev/null || true
	cloud-init status --wait >/dev/null || true
	echo 'DPkg::Lock::Timeout "600";' | sudo tee /etc/apt/apt.conf.d/90wait >/dev/null
	command -v make >/dev/null || { sudo apt-get update -qq && sudo apt-get install -y -qq make >/dev/null; }
fi
make -s -C "$project" setup
