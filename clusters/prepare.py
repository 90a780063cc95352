"""Account setup for ray_cluster.yaml, once an account. A second run changes nothing that is right.

    python clusters/prepare.py --bucket NAME --ssh-from 203.0.113.7/32

makes a private bucket, a security group (SSH from your address, everything between its members), the roles of head and
workers (docs/iam), the parameter that pins the machines' image, and two secrets in ~/.ray, each of mode 0600. It prints
the lines of ray_cluster.yaml that are yours. None of it costs anything but the bucket's contents; --delete takes it all
away again, save the bucket and the secrets.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
POLICIES = Path(__file__).resolve().parents[1] / "docs" / "iam"
EC2 = {"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}  # fmt: skip
ROLES = ("head", "worker")


def main() -> int:
    """Prepare an account, or take away what was prepared; 2 after one sentence about what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True, metavar="NAME", help="for data, ledger, checkpoints and artifacts")
    parser.add_argument("--ssh-from", metavar="CIDR", help="the addresses that may reach port 22")
    parser.add_argument("--region", default="us-west-2")
    parser.add_argument("--vpc", metavar="ID", help="(default: the region's default VPC)")
    parser.add_argument("--image", metavar="AMI", help="(default: what AWS names as its newest GPU base image)")
    parser.add_argument("--delete", action="store_true", help="take group, roles and parameter away")
    options = parser.parse_args()
    try:
        if options.delete:
            delete(options.region)
        else:
            print(prepare(options))
    except (ValueError, BotoCoreError, ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(options: argparse.Namespace) -> str:
    """Make what is not there; return the lines to write into ray_cluster.yaml."""
    source = narrow(options.ssh_from)
    for name in ("auth_token", "mlflow_password"):
        secret(Path.home() / ".ray" / name)
    bucket(options.bucket, options.region)
    group = security_group(options.region, options.vpc, source)
    account = boto3.client("sts", region_name=options.region).get_caller_identity()["Account"]
    words = {"BUCKET": options.bucket, "REGION": options.region, "ACCOUNT": account, "GROUP": group}
    for role in ROLES:
        profile(f"crelu-{role}", policy(role, words))
    image_id = image(options.region, options.image)
    with suppress(ClientError):  # it is there, as in any account that has used spot machines
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    zones = boto3.client("ec2", region_name=options.region).describe_availability_zones(
        Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}]
    )["AvailabilityZones"]
    return (f"machines start from {image_id}\nin ray_cluster.yaml:\n  region: {options.region}\n"
            f"  availability_zone: {','.join(sorted(zone['ZoneName'] for zone in zones))}\n"
            f"  SecurityGroupIds: [{group}]\n  - bash ~/crelu/clusters/node.sh s3://{options.bucket}")  # fmt: skip


def narrow(source: str | None) -> str:
    """Return the addresses that may use SSH; ValueError for none, and for the whole world."""
    if not source:
        raise ValueError("--ssh-from: say which addresses may reach port 22, e.g. your own with /32 behind it")
    network = ipaddress.ip_network(source, strict=False)
    if network.prefixlen < 8:
        raise ValueError(f"--ssh-from {source}: that is a good part of the world; name a network of your own")
    return str(network)


def secret(path: Path) -> None:
    """Write a random secret that nobody else reads; one that is there is only closed to others."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    path.chmod(0o600)


def bucket(name: str, region: str) -> None:
    """Make a bucket that is never public, and forgets uploads that were never finished."""
    s3 = boto3.client("s3", region_name=region)
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise ValueError(f"the bucket {name} is somebody else's: choose another name") from None
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=name, **place)
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
    rule = {"ID": "unfinished", "Status": "Enabled", "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}  # fmt: skip
    try:  # they are set as a whole: those of a bucket that was there stay
        rules = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
        rules = []
    others = [other for other in rules if other.get("ID") != rule["ID"]]
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [*others, rule]})


def security_group(region: str, vpc: str | None, source: str) -> str:
    """Return the id of the group crelu, whose rules are ours alone: SSH from `source`, all between its members."""
    ec2 = boto3.client("ec2", region_name=region)
    if vpc is None:
        vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not vpcs:
            raise ValueError(f"{region} has no default VPC: say which by --vpc")
        vpc = vpcs[0]["VpcId"]
    ours = [{"Name": "group-name", "Values": ["crelu"]}, {"Name": "vpc-id", "Values": [vpc]}]
    groups = ec2.describe_security_groups(Filters=ours)["SecurityGroups"]
    made = groups or [ec2.create_security_group(GroupName="crelu", Description="crelu-sweeps", VpcId=vpc)]
    group = str(made[0]["GroupId"])
    if groups and groups[0]["IpPermissions"]:
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=groups[0]["IpPermissions"])
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    family = {"Ipv6Ranges": [{"CidrIpv6": source}]} if ":" in source else {"IpRanges": [{"CidrIp": source}]}
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh | family, inside])
    return group


def policy(role: str, words: dict[str, str]) -> dict[str, Any]:
    """Return the policy of docs/iam for a role, with this account's names in it."""
    text = (POLICIES / f"{role}.json").read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    document: dict[str, Any] = json.loads(text)
    return document


def profile(name: str, allowed: dict[str, Any]) -> None:
    """Make a role for machines, with this policy alone, and the instance profile that carries it."""
    iam = boto3.client("iam")
    with suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2))
    iam.put_role_policy(RoleName=name, PolicyName="crelu", PolicyDocument=json.dumps(allowed))
    with suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_instance_profile(InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def image(region: str, wanted: str | None) -> str:
    """Return the image in the parameter /crelu/image; where there is none yet, `wanted` or the newest goes there."""
    ssm = boto3.client("ssm", region_name=region)
    try:
        pinned = str(ssm.get_parameter(Name="/crelu/image:1")["Parameter"]["Value"])
        if wanted not in (None, pinned):
            raise ValueError(
                f"--image {wanted}: /crelu/image is {pinned}; --delete takes it away, then it can be another"
            )
        return pinned
    except ssm.exceptions.ParameterNotFound:
        newest = wanted or str(ssm.get_parameter(Name=IMAGE)["Parameter"]["Value"])
        ssm.put_parameter(Name="/crelu/image", Value=newest, Type="String", DataType="aws:ec2:image")
        return newest


def delete(region: str) -> None:
    """Take away group, roles and parameter; ValueError where a machine of the cluster has not ended.

    Without its role a head cannot end the workers that it has started.
    """
    iam, ec2, ssm = (
        boto3.client("iam"),
        boto3.client("ec2", region_name=region),
        boto3.client("ssm", region_name=region),
    )
    states = ["pending", "running", "stopping", "stopped"]
    ours = [{"Name": "tag-key", "Values": ["ray-cluster-name"]}, {"Name": "instance.group-name", "Values": ["crelu"]},
            {"Name": "instance-state-name", "Values": states}]  # fmt: skip
    machines = [
        machine["InstanceId"]
        for reservation in ec2.describe_instances(Filters=ours)["Reservations"]
        for machine in reservation["Instances"]
    ]
    if machines:
        raise ValueError(f"{', '.join(machines)} in {region}: end the cluster first (ray down ray_cluster.yaml)")
    for name in (f"crelu-{role}" for role in ROLES):
        with suppress(iam.exceptions.NoSuchEntityException):
            iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name)
        with suppress(iam.exceptions.NoSuchEntityException):
            iam.delete_instance_profile(InstanceProfileName=name)
        with suppress(iam.exceptions.NoSuchEntityException):
            iam.delete_role_policy(RoleName=name, PolicyName="crelu")
        with suppress(iam.exceptions.NoSuchEntityException):
            iam.delete_role(RoleName=name)
    named = [{"Name": "group-name", "Values": ["crelu"]}]
    for group in ec2.describe_security_groups(Filters=named)["SecurityGroups"]:
        ec2.delete_security_group(GroupId=group["GroupId"])
    with suppress(ssm.exceptions.ParameterNotFound):
        ssm.delete_parameter(Name="/crelu/image")
    print(f"group, roles and parameter of {region} are gone")


if __name__ == "__main__":
    sys.exit(main())
