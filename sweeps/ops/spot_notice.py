"""EC2's two minutes' notice, told to Ray: python -m sweeps watch-spot, beside Ray on each worker.

Nothing in Ray asks for it. A node that is lost without a word counts as a failure of its trials; one that was drained
as preempted does not, and is given no new ones. The notice is read from the machine's metadata (IMDSv2) every five
seconds, as AWS recommends; $AWS_EC2_METADATA_SERVICE_ENDPOINT names another place, as for AWS's own tools.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

HERE = "http://169.254.169.254"
LIFE = 21_600  # seconds of a session of the metadata service, its longest
PATIENCE = 60.0  # seconds after which a machine without metadata is none of EC2's


class NoMetadata(Exception):
    """The metadata service does not answer."""


@dataclass
class Metadata:
    """The metadata service of this machine: each answer needs the token of a session."""

    address: str
    token: str = ""

    def read(self, path: str) -> str | None:
        """Return what is at a path, None where nothing is; NoMetadata where nobody answers."""
        for _ in range(2):
            self.token = self.token or self._asked("PUT", "/latest/api/token", "token-ttl-seconds", str(LIFE)) or ""
            try:
                return self._asked("GET", f"/latest/meta-data/{path}", "token", self.token)
            except PermissionError:  # the session is over
                self.token = ""
        raise NoMetadata(f"{self.address} refuses its own token")

    def _asked(self, method: str, path: str, header: str, value: str) -> str | None:
        headers = {f"X-aws-ec2-metadata-{header}": value}
        request = urllib.request.Request(self.address + path, method=method, headers=headers)
        # Without a proxy: the address is of this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=2) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise PermissionError from None
            if error.code == 404:
                return None
            raise NoMetadata(f"{self.address}{path}: {error}") from None
        except OSError as error:
            raise NoMetadata(f"{self.address} does not answer: {error}") from None


def seconds_to_termination(metadata: Metadata, now: float) -> int | None:
    """Return the seconds until EC2 takes this machine; None where it has not said so."""
    said = metadata.read("spot/instance-action")
    if said is None:
        return None
    left = 120.0
    with suppress(ValueError, KeyError, TypeError):  # that it is taken is known; when is a courtesy
        at = datetime.strptime(json.loads(said)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        left = at.timestamp() - now
    return max(0, int(left))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between looks (default 5)")


def run(options: argparse.Namespace) -> int:
    """Watch until EC2 gives notice and Ray has been told; ValueError where this is no machine of EC2's."""
    if options.every <= 0:
        raise ValueError(f"--every {options.every:g}: more than 0 seconds")

    def drain(seconds: int) -> None:
        from sweeps.execution import ray_runtime

        ray_runtime.drain("EC2 reclaims this spot machine", seconds)

    metadata = Metadata(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", HERE).rstrip("/"))
    watch(metadata, drain, options.every)
    return 0


def watch(metadata: Metadata, drain: Callable[[int], None], every: float) -> None:
    """Look every so many seconds until there is a notice and `drain` has taken it; one that fails is tried again."""
    answered, seen = time.monotonic(), False
    while True:
        try:
            seconds = seconds_to_termination(metadata, time.time())
            answered, seen = time.monotonic(), True
        except NoMetadata as error:
            seconds = None
            if not seen and time.monotonic() - answered > PATIENCE:
                raise ValueError(f"this is no machine of EC2's: {error}") from None
        if seconds is not None:
            say(f"EC2 takes this machine in {seconds} s; telling Ray")
            try:
                drain(seconds)
            except Exception as error:
                say(f"Ray could not be told, again in {every:g} s: {error}")
            else:
                say("Ray gives this machine no new trials, and does not count its loss as their failure")
                return
        time.sleep(every)


def say(sentence: str) -> None:
    """Write a line with its time to the log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), sentence, file=sys.stderr, flush=True)
