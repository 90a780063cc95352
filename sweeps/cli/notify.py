"""Notice that a sweep has ended, posted to an address of the user's: as JSON, to Slack in Slack's form.

It names the sweep, the machine and counts, and nothing else: no path, address, command line or text of an error may
leave this machine with it. The address is a secret too, since whoever knows it may post there. It is written nowhere,
and of it only the host is ever printed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING, Final
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from sweeps.cli.options import ExitCode
from sweeps.experiment.wording import count

if TYPE_CHECKING:
    from sweeps.experiment.plan import Plan
    from sweeps.store.ledger import Json

VARIABLE: Final = "CRELU_NOTIFY"
SECONDS: Final = 5.0  # that a post may take, whatever the server does
NO_ANSWER: Final = f"no answer in {SECONDS:g} s"
SLACK: Final = "hooks.slack.com"
STATES: Final = {
    ExitCode.DONE: ("ended", "all is done"),
    ExitCode.FAILED: ("failed", "it finished with failed cells: the same command with --retry-failed tries them again"),
    ExitCode.USAGE: ("failed", "its command stopped with an error, which its terminal shows"),
    ExitCode.BUDGET: ("needs you", "the --max-gpu-hours of this command are used up: the same command resumes"),
    ExitCode.UNTRACKED: (
        "needs you",
        "MLflow lacks runs: its last line is the command that sends them",
    ),
    ExitCode.CLUSTER: ("needs you", "its Ray cluster has gone: start it, then the same command resumes"),
    ExitCode.INTERRUPTED: ("needs you", "it was interrupted: the same command resumes"),
}


def notify_address(options: argparse.Namespace) -> str:
    """Return the address of --notify or $CRELU_NOTIFY, empty for none; ValueError, without it, where it is no such."""
    address = options.notify or os.environ.get(VARIABLE, "")
    name = "--notify" if options.notify else f"${VARIABLE}"
    if not address:
        return ""
    parts = _parts(address)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} is no address to post to: it begins with https:// or http:// and a host")
    if "@" in parts.netloc:
        raise ValueError(f"{name} holds a login, which is not sent: use an address with a token in its path")
    return address


class _NoRedirect(HTTPRedirectHandler):
    """Handler that follows no redirect: urllib would drop the notice and ask the other address for a page."""

    def redirect_request(self, *_: object) -> None:
        """Return no request to another address, so that the answer is an error."""


class Notifier:
    """Notifier of one sweep: a context that posts how the work in it has ended, to `address` where there is one."""

    def __init__(self, address: str, sweep: str, say: Callable[[str], None]) -> None:
        """Begin; `say` takes the sentence on a post that did not arrive."""
        self.address = address
        self.sweep = sweep
        self.say = say
        self.code: ExitCode | None = None
        self.plan: Plan | None = None

    def __enter__(self) -> Notifier:
        """Return the notifier, which is told the exit code and the plan of a work that comes to its end."""
        return self

    def ended(self, code: ExitCode, plan: Plan) -> None:
        """Take what the work has come to."""
        self.code = code
        self.plan = plan

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Post the end: that of the work, else an interrupt or an error, which goes its way."""
        if self.code is not None:
            self.post(self.code)
        elif kind is not None:
            self.post(ExitCode.INTERRUPTED if issubclass(kind, KeyboardInterrupt) else ExitCode.USAGE)

    def post(self, code: ExitCode) -> None:
        """Post that the sweep has ended with this exit code, within some seconds; a failure is one sentence."""
        if not self.address:
            return
        failures: list[str] = []
        request = _request(self.address, notice(self.sweep, code, self.plan))
        # A timeout of urllib counts anew with each byte that comes, and looking up a host has none.
        thread = threading.Thread(target=lambda: failures.append(_failure(request)), daemon=True)
        thread.start()
        thread.join(SECONDS)
        why = NO_ANSWER if thread.is_alive() else "".join(failures)
        if why:
            self.say(f"the notice did not reach {urlsplit(self.address).hostname} ({why}); nothing else depends on it")


def notice(sweep: str, code: ExitCode, plan: Plan | None) -> Json:
    """Return what is posted on the end of a sweep; `text` has it as a sentence."""
    state, why = STATES[code]
    host = socket.gethostname()
    numbers: Json = {}
    words = why
    if plan is not None:
        done, failed = plan.count("done", "stale"), plan.count("failed")
        numbers = {"trials": plan.total, "done": done, "failed": failed, "hours": round(plan.hours, 2)}
        trials = f"{done} of {count(plan.total, 'trial')} done"
        words = f"{trials}{f', {failed} failed' if failed else ''}, {plan.hours:.2f} h of training; {why}"
    text = f"{sweep} on {host} {'has ' if state != 'needs you' else ''}{state}: {words}"
    return {"text": text, "sweep": sweep, "host": host, "state": state, "exit": int(code)} | numbers


def _request(address: str, content: Json) -> Request:
    """Return the request that posts a notice; Slack takes no other field than the text, and reads &, < and > in it."""
    if urlsplit(address).hostname == SLACK:
        plain = str(content["text"])
        content = {"text": plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    headers = {"Content-Type": "application/json", "User-Agent": "crelu-sweeps"}
    return Request(address, json.dumps(content).encode(), headers, method="POST")


def _failure(request: Request) -> str:
    """Post a notice and return why it did not arrive, empty where it did; an error's own text may hold the address."""
    try:
        with build_opener(_NoRedirect).open(request, timeout=SECONDS):
            return ""
    except TimeoutError:
        return NO_ANSWER
    except HTTPError as error:
        return f"it answers {error.code}"
    except URLError as error:
        reason = error.reason
        return (reason.strerror if isinstance(reason, OSError) else "") or type(reason).__name__
    except (OSError, HTTPException, ValueError) as error:
        return type(error).__name__


def _parts(address: str) -> SplitResult | None:
    """Return the parts of an address, None for a text that is none."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  a port that is no number raises only where it is read
    except ValueError:
        return None
    return None if any(letter.isspace() for letter in address) else parts
