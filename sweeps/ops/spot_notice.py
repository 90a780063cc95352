"""EC2's two-minute notice, passed on to Ray: python -m sweeps watch-spot, beside Ray on each worker.

Ray itself does not look for it. The sudden loss of a node counts as a failure of its trials. A node that was drained as
preempted gets no new trials, and its loss does not count. The notice is read from the machine's metadata (IMDSv2) every
five seconds, as AWS recommends; $AWS_EC2_METADATA_SERVICE_ENDPOINT sets another address, as for AWS's own tools.
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

SERVICE = "http://169.254.169.254"
SESSION = 21_600  # seconds of a session of the metadata service, its longest
ANSWER = 2.0  # seconds in which the metadata service answers
PATIENCE = 60.0  # seconds after which a machine without metadata is no machine of EC2
NOTICE = 120  # seconds of EC2's notice, where its own time cannot be read


class NoMetadataError(Exception):
    """The metadata service does not answer."""


@dataclass
class Metadata:
    """Metadata service of this machine; each request needs the token of a session."""

    address: str
    token: str = ""

    def read(self, path: str) -> str | None:
        """Return the text at a path, None where there is none; NoMetadataError where nothing answers."""
        for _ in range(2):
            self.token = (
                self.token or self._request("PUT", "/latest/api/token", "token-ttl-seconds", str(SESSION)) or ""
            )
            try:
                return self._request("GET", f"/latest/meta-data/{path}", "token", self.token)
            except PermissionError:  # the session is over
                self.token = ""
        raise NoMetadataError(f"{self.address} refuses its own token")

    def _request(self, method: str, path: str, header: str, value: str) -> str | None:
        headers = {f"X-aws-ec2-metadata-{header}": value}
        request = urllib.request.Request(self.address + path, method=method, headers=headers)
        # Without a proxy: the address is this machine's.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=ANSWER) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise PermissionError from None
            if error.code == 404:
                return None
            raise NoMetadataError(f"{self.address}{path}: {error}") from None
        except OSError as error:
            raise NoMetadataError(f"{self.address} does not answer: {error}") from None


def seconds_to_termination(metadata: Metadata, now: float) -> int | None:
    """Return the seconds until EC2 takes this machine; None where it has given no notice."""
    notice = metadata.read("spot/instance-action")
    if notice is None:
        return None
    seconds = float(NOTICE)
    with suppress(ValueError, KeyError, TypeError):  # a notice without a readable time is a notice too
        termination = datetime.strptime(json.loads(notice)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        seconds = termination.timestamp() - now
    return max(0, int(seconds))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between looks (default 5)")


def run(options: argparse.Namespace) -> int:
    """Watch until EC2 gives notice and Ray knows of it; ValueError where this is no machine of EC2's."""
    if options.every <= 0:
        raise ValueError(f"--every {options.every:g}: more than 0 seconds")

    def drain(seconds: int) -> None:
        from sweeps.execution import ray_runtime

        ray_runtime.drain("EC2 reclaims this spot machine", seconds)

    metadata = Metadata(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", SERVICE).rstrip("/"))
    watch(metadata, drain, options.every)
    return 0


def watch(metadata: Metadata, drain: Callable[[int], None], every: float) -> None:
    """Look every so many seconds for a notice, until `drain` has passed one on; a failed `drain` is repeated."""
    last_answer = time.monotonic()
    answered = False
    while True:
        try:
            seconds = seconds_to_termination(metadata, time.time())
            last_answer = time.monotonic()
            answered = True
        except NoMetadataError as error:
            seconds = None
            if not answered and time.monotonic() - last_answer > PATIENCE:
                raise ValueError(f"this is no machine of EC2's: {error}") from None
        if seconds is not None:
            log(f"EC2 takes this machine in {seconds} s; telling Ray")
            try:
                drain(seconds)
            except Exception as error:
                log(f"Ray could not be told, again in {every:g} s: {error}")
            else:
                log("Ray gives this machine no new trials, and does not count its loss as their failure")
                return
        time.sleep(every)


def log(sentence: str) -> None:
    """Write a line with its time to the log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), sentence, file=sys.stderr, flush=True)
