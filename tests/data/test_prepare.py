"""clusters/prepare.py makes what ray_cluster.yaml takes for granted, on an EC2 of this machine."""

import json
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

ROOT = Path(__file__).resolve().parents[2]


def prepared(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "clusters/prepare.py", "--bucket", "crelu-prepared", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_account_is_prepared_and_nothing_of_it_is_open(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    refused = prepared("--ssh-from", "0.0.0.0/0")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    first = prepared("--ssh-from", "203.0.113.7/32", "--image", "ami-12345678901234567")
    assert first.returncode == 0, first.stderr
    token = (tmp_path / ".ray" / "auth_token").read_text()
    again = prepared("--ssh-from", "198.51.100.0/24")
    assert again.stdout == first.stdout
    assert (tmp_path / ".ray" / "auth_token").read_text() == token
    for name in ("auth_token", "mlflow_password"):
        assert (tmp_path / ".ray" / name).stat().st_mode & 0o777 == 0o600
    region = "us-west-2"
    ec2, s3, iam = boto3.client("ec2", region_name=region), boto3.client("s3"), boto3.client("iam")
    (group,) = ec2.describe_security_groups(GroupNames=["crelu"])["SecurityGroups"]
    assert group["GroupId"] in first.stdout
    (ssh,) = (rule for rule in group["IpPermissions"] if rule["IpProtocol"] == "tcp")
    assert (ssh["FromPort"], ssh["ToPort"], ssh["IpRanges"]) == (22, 22, [{"CidrIp": "198.51.100.0/24"}])
    (inside,) = (rule for rule in group["IpPermissions"] if rule["IpProtocol"] == "-1")
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group["GroupId"]]
    assert inside["IpRanges"] == []
    assert all(s3.get_public_access_block(Bucket="crelu-prepared")["PublicAccessBlockConfiguration"].values())
    for role in ("head", "worker"):
        text = json.dumps(iam.get_role_policy(RoleName=f"crelu-{role}", PolicyName="crelu")["PolicyDocument"])
        assert "arn:aws:s3:::crelu-prepared/" in text
        assert not {
            word for word in ("BUCKET", "REGION", "ACCOUNT", "GROUP") if f":{word}" in text or f"/{word}" in text
        }
        (carried,) = iam.get_instance_profile(InstanceProfileName=f"crelu-{role}")["InstanceProfile"]["Roles"]
        assert carried["RoleName"] == f"crelu-{role}"
    assert prepared("--delete").returncode == 0
    assert not [role for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("crelu-")]
    assert not ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["crelu"]}])["SecurityGroups"]
