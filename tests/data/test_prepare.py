"""clusters/prepare.py makes what ray_cluster.yaml takes for granted, on an EC2 of this machine."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

ROOT = Path(__file__).resolve().parents[2]


SCRIPT = ["clusters/prepare.py", "--bucket", "crelu-prepared"]


def prepared(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_account_is_prepared_and_nothing_of_it_is_open(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said_here(*arguments: str) -> tuple[int, str, str]:
        """Run the script in this process, which has loaded boto3; return its exit code and what it says."""
        monkeypatch.setattr(sys, "argv", [*SCRIPT, *arguments])
        code: int = main()
        return code, *capsys.readouterr()

    main = runpy.run_path(str(ROOT / SCRIPT[0]))["main"]
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, refused = said_here("--ssh-from", "0.0.0.0/0")
    assert (code, refused.count("\n")) == (2, 1)
    boto3.client("s3", region_name="us-west-2").create_bucket(
        Bucket="crelu-prepared", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    old = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": 9}}
    boto3.client("s3").put_bucket_lifecycle_configuration(
        Bucket="crelu-prepared", LifecycleConfiguration={"Rules": [old]}
    )
    first = prepared("--ssh-from", "203.0.113.7/32", "--image", "ami-12345678901234567")
    assert first.returncode == 0, first.stderr
    token = (tmp_path / ".ray" / "auth_token").read_text()
    assert said_here("--ssh-from", "198.51.100.0/24") == (0, first.stdout, "")
    assert (tmp_path / ".ray" / "auth_token").read_text() == token
    code, _, refused = said_here("--ssh-from", "198.51.100.0/24", "--image", "ami-99999999999999999")
    assert (code, "/crelu/image is ami-12345678901234567" in refused) == (2, True)
    assert "  availability_zone: us-west-2a,us-west-2b,us-west-2c" in first.stdout
    rules = boto3.client("s3").get_bucket_lifecycle_configuration(Bucket="crelu-prepared")["Rules"]
    assert sorted(rule["ID"] for rule in rules) == ["old", "unfinished"]
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
    machine = ec2.run_instances(
        ImageId="ami-12345678901234567", MinCount=1, MaxCount=1, SecurityGroupIds=[group["GroupId"]],
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": "crelu"}]}],
    )["Instances"][0]["InstanceId"]  # fmt: skip
    code, _, refused = said_here("--delete")
    assert (code, f"{machine} in us-west-2: end the cluster first" in refused) == (2, True)
    assert iam.get_role(RoleName="crelu-head")
    ec2.terminate_instances(InstanceIds=[machine])
    assert said_here("--delete")[0] == 0
    assert not [role for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("crelu-")]
    assert not ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["crelu"]}])["SecurityGroups"]
