"""What ray_cluster.yaml and clusters/local.yaml say: known to Ray and to EC2, closed to the world, cheap when idle."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import aws

ROOT = Path(__file__).resolve().parents[1]
AWS, LOCAL = ROOT / "ray_cluster.yaml", ROOT / "clusters" / "local.yaml"
LISTS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
         "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


CLUSTER = read(AWS)
TYPES: dict[str, dict[str, Any]] = CLUSTER["available_node_types"]
HEAD = TYPES[CLUSTER["head_node_type"]]
WORKERS = {name: kind for name, kind in TYPES.items() if name != CLUSTER["head_node_type"]}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a home with the two secrets in place: Ray asks that what is to be mounted exists."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (tmp_path / ".ray").mkdir()
    for name in ("auth_token", "mlflow_password"):
        (tmp_path / ".ray" / name).touch(0o600)


def validate(config: dict[str, Any]) -> None:
    """Raise where Ray's own schema does not know what a file says."""
    from ray.autoscaler._private import util

    util.validate_config(util.prepare_config(config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_ray_knows_every_key(path: Path, secrets: None) -> None:
    from jsonschema import ValidationError

    validate(read(path))
    for wrong in ({"max_worker": 3}, {"auth": {"ssh_usr": "ubuntu"}}, {"docker": {"imag": "x"}}):
        with pytest.raises(ValidationError, match=r"max_worker|ssh_usr|imag"):
            validate(read(path) | wrong)


@pytest.mark.filterwarnings("ignore")
def test_ec2_knows_every_key_of_every_machine() -> None:
    import botocore.session
    from botocore.exceptions import ParamValidationError
    from botocore.validate import validate_parameters

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in TYPES.values():
        asked = {"MinCount": 1, "MaxCount": 1} | kind["node_config"]
        validate_parameters(asked, shape)
        with pytest.raises(ParamValidationError, match="Ebz"):
            validate_parameters(asked | {"BlockDeviceMappings": [{"Ebz": {}}]}, shape)


@pytest.mark.parametrize("name", sorted(TYPES))
def test_machine_is_closed_encrypted_and_pinned(name: str) -> None:
    machine = TYPES[name]["node_config"]
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    # A parameter in one version, or an image by its id; never "latest", never Ray's own of long ago.
    assert re.fullmatch(r"resolve:ssm:/crelu/image:\d+|ami-[0-9a-f]{17}", machine["ImageId"])
    assert machine["SecurityGroupIds"], "without one Ray makes a group that is open to the world on port 22"
    for device in machine["BlockDeviceMappings"]:
        assert device["Ebs"]["VolumeType"] == "gp3"
        assert device["Ebs"]["Encrypted"]
        assert device["Ebs"]["DeleteOnTermination"]
    assert {"project"} == {tag["Key"] for kind in machine["TagSpecifications"] for tag in kind["Tags"]}


def test_nothing_costs_that_nobody_uses() -> None:
    assert CLUSTER["provider"]["cache_stopped_nodes"] is False
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 10
    assert all(kind["min_workers"] == 0 for kind in WORKERS.values())
    assert CLUSTER["max_workers"] <= 8
    assert all(kind["max_workers"] <= CLUSTER["max_workers"] for kind in WORKERS.values())


def test_no_trial_runs_on_the_head_and_the_head_is_never_reclaimed() -> None:
    assert HEAD["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in HEAD["node_config"]
    spot = [kind for kind in WORKERS.values() if kind["node_config"].get("InstanceMarketOptions")]
    assert {kind["node_config"]["InstanceMarketOptions"]["MarketType"] for kind in spot} == {"spot"}
    assert len({kind["node_config"]["InstanceType"] for kind in spot}) >= 2, "a type to fall back on"
    assert len({kind["priority"] for kind in WORKERS.values()}) == len(WORKERS)
    assert all(kind["max_workers"] == 0 for kind in WORKERS.values() if kind not in spot), "full price is asked for"


def test_roles_are_the_least() -> None:
    assert HEAD["node_config"]["IamInstanceProfile"] == {"Name": "crelu-head"}
    for kind in WORKERS.values():
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": "crelu-worker"}
    for role in ("head", "worker"):
        for allowed in json.loads((ROOT / "docs" / "iam" / f"{role}.json").read_text())["Statement"]:
            actions = [allowed["Action"]] if isinstance(allowed["Action"], str) else allowed["Action"]
            assert allowed["Effect"] == "Allow"
            assert not [action for action in actions if "*" in action], "each action by its name"
            if not all(action.startswith("ec2:Describe") for action in actions):
                assert allowed["Resource"] != "*"
            if role == "worker":
                assert all(action.startswith("s3:") for action in actions)
            if {"ec2:TerminateInstances", "iam:PassRole"} & set(actions):
                assert allowed["Condition"]


def test_worker_writes_results_and_no_plan_lease_or_note() -> None:
    policy = json.loads((ROOT / "docs" / "iam" / "worker.json").read_text())
    written = ("results", "attempts/k", "checkpoints/k", "trials/k/tables", "packs", "paused", "damaged",
               "weights/x/analysis/pairing")  # fmt: skip
    others = ("plans", "leases", "claims", "tracked", "prices", "stops", "insisted", "../data", "")
    for action in ("PutObject", "DeleteObject"):
        asked = {(f"s3:{action}", f"arn:aws:s3:::BUCKET/out/ledger/{folder}/x") for folder in (*written, *others)}
        refused = {resource.split("/", 3)[3].removesuffix("/x") for _, resource in aws.refused(asked, policy)}
        assert refused == set(others)
    assert not aws.refused({("s3:PutObject", "arn:aws:s3:::BUCKET/out/mine/ledger/results/k.json")}, policy)
    assert aws.refused({("s3:PutObject", "arn:aws:s3:::BUCKET/backup/mlflow.tar")}, policy)


def test_group_that_is_prepared_opens_ssh_alone_and_not_to_the_world() -> None:
    from clusters.prepare import narrow

    for world in (None, "", "0.0.0.0/0", "::/0", "10.0.0.0/7"):
        with pytest.raises(ValueError, match="--ssh-from"):
            narrow(world)
    assert narrow("203.0.113.7") == "203.0.113.7/32"
    assert "IpPermissions" not in json.dumps(CLUSTER), "rules of the file are added to Ray's, which are open"


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_every_command_is_our_own(path: Path) -> None:
    config = read(path)
    assert all(name in config for name in LISTS), "Ray fills in what is not there: a nightly Ray, an open dashboard"
    assert config["docker"] == {}
    assert sum("node.sh" in command for name in LISTS for command in config[name]) == 1
    for command in (command for name in LISTS for command in config[name]):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert "0.0.0.0" not in command


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_dashboard_answers_on_the_head_alone_and_the_token_is_asked_for(path: Path) -> None:
    config = read(path)
    (head,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--head" in head
    assert "--ray-client-server-port" not in head
    mounts = config["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    made_ready = (ROOT / "clusters" / "node.sh").read_text()
    assert "RAY_AUTH_MODE=token" in made_ready
    assert re.search(r"chmod 600 .*auth_token", made_ready)


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_no_secret_and_no_data_lie_in_the_file(path: Path) -> None:
    config = read(path)
    said = json.dumps([*(config[name] for name in LISTS), config.get("available_node_types")]).replace("HttpTokens", "")
    assert not re.search(r"(?i)password|secret|token|AKIA", said)
    assert all(source == "." or re.fullmatch(r"~/\.ray/\w+", source) for source in config["file_mounts"].values())
    assert ".beton" not in json.dumps(config["file_mounts"])
    assert {".git", ".venv"} <= set(config["rsync_exclude"])
    assert config["rsync_filter"] == [".gitignore"]


def test_lines_to_edit_are_marked() -> None:
    for line in AWS.read_text().splitlines():
        if "EDIT" in line.partition("#")[0]:
            assert line.rstrip().endswith("# EDIT")


def test_local_file_says_which_autoscaler_it_needs() -> None:
    assert "RAY_UP_enable_autoscaler_v2=0 ray up" in LOCAL.read_text()


@pytest.mark.filterwarnings("ignore")
def test_ray_hashes_the_code_and_not_the_environment(tmp_path: Path, secrets: None) -> None:
    from ray.autoscaler._private.util import hash_runtime_conf

    project = tmp_path / "crelu"
    (project / "clusters").mkdir(parents=True)
    shutil.copy(ROOT / "clusters" / "node.sh", project / "clusters")
    (project / "Makefile").write_text("setup:\n\t@mkdir -p .venv/bin && touch .venv/bin/python\n")
    for _ in range(2):  # Ray runs it twice
        subprocess.run(["bash", project / "clusters" / "node.sh", "s3://bucket"], check=True)

    store = "postgresql://u@h/n?sslmode=require&application_name=a b"
    node = ["bash", project / "clusters" / "node.sh", "s3://bucket", store]
    subprocess.run(node, check=True)
    shown = ["bash", "-c", '. ~/.crelu.sh; printf %s "$CRELU_MLFLOW_STORE"']
    assert subprocess.run(shown, capture_output=True, text=True, check=True).stdout == store

    def contents() -> str:
        return str(hash_runtime_conf({"~/crelu": str(project)}, [], [], generate_file_mounts_contents_hash=True)[1])

    before = contents()
    (project / ".venv" / "bin" / "python").write_text("gigabytes")
    assert contents() == before
    (project / "Makefile").write_text("setup:\n")
    assert contents() != before


@pytest.mark.parametrize("script", sorted((ROOT / "clusters").glob("*.sh")), ids=lambda path: path.name)
def test_script_is_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()


PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec {python} "$@"; fi
echo "$@" >> {calls}
case "$*" in *--password-file*) touch {serving};; esac
"""
CURL = """#!/usr/bin/env bash
[ -e {serving} ]
"""


@pytest.mark.parametrize(
    ("backup", "store", "said"),
    [
        ("mlflow.tar", "", ["--restore {bucket}/mlflow.tar", "--password-file"]),
        ("", "", ["--password-file"]),
        ("mlflow.tar", "postgresql://u@h/n", ["--store postgresql://u@h/n --password-file"]),
    ],
)
def test_head_begins_with_the_backup_of_the_one_before(
    backup: str, store: str, said: list[str], tmp_path: Path
) -> None:
    """The script runs from the home of a machine, where the project's folder is not on Python's path."""
    done, calls = run_mlflow(tmp_path, backup, store)
    assert done.returncode == 0, done.stderr
    assert len(calls) == len(said)
    for call, words in zip(calls, said, strict=True):
        assert words.format(bucket=tmp_path / "bucket") in call
        assert f"--artifacts file://{tmp_path}/bucket/mlflow " in call


def test_head_keeps_the_artifacts_in_its_bucket(tmp_path: Path) -> None:
    done, calls = run_mlflow(tmp_path, "", "postgresql://u@h/n", "s3://bucket")
    assert done.returncode == 0, done.stderr
    assert ["--artifacts s3://bucket/mlflow " in call for call in calls] == [True]


def test_head_does_not_begin_empty_where_a_backup_cannot_be_looked_for(tmp_path: Path) -> None:
    """The next backup would take the place of the one that could not be read."""
    done, calls = run_mlflow(tmp_path, "", "", "s3://bucket.that.is.nowhere")
    assert done.returncode == 1
    assert "cannot be seen: MLflow is not started" in done.stderr
    assert calls == []


def run_mlflow(
    folder: Path, backup: str, store: str, bucket: str = ""
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run mlflow.sh in a home of its own; return how it ended and what Python was asked to run."""
    (folder / "bin").mkdir()
    (folder / "home" / ".ray").mkdir(parents=True)
    (folder / "home" / ".ray" / "mlflow_password").write_text("secret")
    (folder / "bucket").mkdir()
    if backup:
        (folder / "bucket" / backup).touch()
    exports = {"CRELU_BUCKET": bucket or str(folder / "bucket"), "CRELU_MLFLOW_STORE": store}
    (folder / "home" / ".crelu.sh").write_text("".join(f"export {name}={value}\n" for name, value in exports.items()))
    calls, serving = folder / "calls", folder / "serving"
    for name, script in (("python", PYTHON), ("curl", CURL)):
        path = folder / "bin" / name
        path.write_text(script.format(python=sys.executable, calls=calls, serving=serving))
        path.chmod(0o755)
    environment = {"HOME": str(folder / "home"), "PATH": f"{folder}/bin:{os.environ['PATH']}",
                   "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1", "AWS_ACCESS_KEY_ID": "x",
                   "AWS_SECRET_ACCESS_KEY": "x"}  # fmt: skip
    script = ROOT / "clusters" / "mlflow.sh"
    done = subprocess.run(["bash", script], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    return done, calls.read_text().splitlines() if calls.exists() else []
