"""The notice of a sweep's end: what is posted where, and that no secret is in it, on the ledger or on the terminal."""

import json
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar

import pytest

from sweeps.cli import notify, run, summary
from sweeps.cli.command import Command
from sweeps.cli.notify import Notifier, notice, notify_address
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import settle
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.report.build import NOT_ASKED
from tests.support.servers import free_port
from tests.support.sweeps import BASELINE, Made, finish

SECRET = "T0-secret-B0"
LONG = 120.0  # seconds, which nothing here waits out unless it is wrong
CODES = {"gone": 404, "moved": 301, "found": 302, "other": 303}  # of paths; the last three lead elsewhere


class Inbox(BaseHTTPRequestHandler):
    """Handler that keeps what is posted, and answers as the path says."""

    posted: ClassVar[list[tuple[str, Any]]] = []
    over: ClassVar[Event] = Event()  # set once the test has ended, until when a slow answer takes

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append((self.headers["Content-Type"], json.loads(body)))
        if "slow" in self.path:
            self.over.wait(LONG)
        if "drips" in self.path:
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Waits: ")
                for _ in range(int(LONG / 0.1)):
                    self.wfile.write(b"x")
                    if self.over.wait(0.1):
                        return
                self.wfile.write(b"\r\n")
        self.send_response(next((code for word, code in CODES.items() if word in self.path), 200))
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.posted.append(("GET", self.path))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def no_variable_and_time_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.VARIABLE, raising=False)
    monkeypatch.setattr(notify, "SECONDS", 10 * LONG)


@pytest.fixture
def inbox() -> Iterator[str]:
    """Return the address of a server of this machine."""
    Inbox.posted.clear()
    Inbox.over.clear()
    server = HTTPServer(("127.0.0.1", 0), Inbox)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{SECRET}"
    Inbox.over.set()
    server.shutdown()
    server.server_close()


def ran(
    folder: Path, monkeypatch: pytest.MonkeyPatch, address: str, *, finished: int, code: ExitCode = ExitCode.DONE
) -> ExitCode:
    """Run a sweep of two seeds, of which so many are done; return its exit code."""
    monkeypatch.setattr(run, "_run", lambda declared, today, *_: (code, declared, today))
    monkeypatch.setattr(run, "_ensure_datasets", lambda *_: {})
    monkeypatch.setattr(run, "check_splits", lambda *_: None)
    monkeypatch.setattr(run, "absent_pictures", lambda *_: "")
    monkeypatch.setattr(summary, "_report", lambda *_: (None, "", NOT_ASKED))
    options = parser("s", "").parse_args(["--output", str(folder / "out"), "--notify", address, "--profile", "paper"])
    settings = settle((BASELINE,), options)
    assert SECRET not in repr(settings)
    sweep = Sweep("s", "paper", (BASELINE,), Protocol(seeds=2))
    for trial in expand(sweep, {})[:finished]:
        finish(settings.ledger, trial, Made({TOP1: 50.0}))
    ended = run.run_sweep(sweep, sweep, settings)
    summary.print_summary(ended, settings)
    return ended.code


def test_sweep_that_is_done_is_posted_with_its_counts(
    inbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ran(tmp_path, monkeypatch, inbox, finished=2) == ExitCode.DONE
    ((kind, posted),) = Inbox.posted
    assert kind == "application/json"
    assert {name: posted[name] for name in ("sweep", "state", "exit", "trials", "done", "failed")} == {
        "sweep": "s", "state": "ended", "exit": 0, "trials": 2, "done": 2, "failed": 0,
    }  # fmt: skip
    assert posted["text"].startswith(f"s on {posted['host']} has ended: 2 of 2 trials done, ")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    shown = capfd.readouterr()
    assert SECRET.encode() not in written
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    ("finished", "code", "state"),
    [(1, ExitCode.FAILED, "failed"), (1, ExitCode.BUDGET, "needs you"), (2, ExitCode.UNTRACKED, "needs you")],
)
def test_sweep_that_falls_short_is_posted(
    finished: int, code: ExitCode, state: str, inbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(tmp_path, monkeypatch, inbox, finished=finished, code=code) == code
    assert [(posted["state"], posted["exit"]) for _, posted in Inbox.posted] == [(state, code)]


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("at /home/me"), ExitCode.USAGE), (KeyboardInterrupt(), ExitCode.INTERRUPTED)]
)
def test_error_and_interrupt_are_posted_without_their_text_and_go_their_way(
    error: BaseException, code: ExitCode, inbox: str
) -> None:
    with pytest.raises(type(error)), Notifier(inbox, "s", pytest.fail):
        raise error
    ((_, posted),) = Inbox.posted
    assert posted == notice("s", code, None)
    assert "/home/me" not in str(posted)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("{inbox}/gone", "it answers 404"),
        ("{inbox}/moved", "it answers 301"),
        ("{inbox}/found", "it answers 302"),
        ("{inbox}/other", "it answers 303"),
        ("{inbox}/slow", "no answer in 5 s"),
        ("{inbox}/drips", "no answer in 5 s"),
        ("http://127.0.0.1:{port}/{secret}", "Connection refused"),
        ("http://127.0.0.1/{secret}/\x01", "InvalidURL"),
    ],
)
def test_post_that_fails_is_one_sentence_without_the_secret(
    address: str, why: str, inbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == notify.NO_ANSWER:
        monkeypatch.setattr(notify, "SECONDS", 0.3)
    said: list[str] = []
    Notifier(address.format(inbox=inbox, port=free_port(), secret=SECRET), "s", said.append).post(ExitCode.DONE)
    assert said == [f"the notice did not reach 127.0.0.1 ({why}); nothing else depends on it"]
    assert "GET" not in dict(Inbox.posted)


def test_notice_that_does_not_arrive_changes_no_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ran(tmp_path, monkeypatch, f"http://127.0.0.1:{free_port()}/{SECRET}", finished=2) == ExitCode.DONE
    said = capfd.readouterr().err
    assert "the notice did not reach 127.0.0.1 (" in said
    assert SECRET not in said


def test_slack_gets_its_form() -> None:
    content = {"text": "a & <b> on h has ended", "exit": 0}
    to_slack = notify._request(f"https://hooks.slack.com/services/{SECRET}", content)
    assert isinstance(to_slack.data, bytes)
    assert json.loads(to_slack.data) == {"text": "a &amp; &lt;b&gt; on h has ended"}
    elsewhere = notify._request(f"https://hooks.slack.com.example.org/{SECRET}", content)
    assert isinstance(elsewhere.data, bytes)
    assert json.loads(elsewhere.data) == content


def test_flag_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.VARIABLE, "https://host/variable")
    assert notify_address(parser("s", "").parse_args([])) == "https://host/variable"
    assert notify_address(parser("s", "").parse_args(["--notify", "https://host/flag"])) == "https://host/flag"


@pytest.mark.parametrize(
    "address",
    [f"file:///{SECRET}", f"{SECRET}.example.org/x", f"https:///{SECRET}", f"https://me:{SECRET}@host/x",
     f"https://host:{SECRET}/x", f"https://host/a {SECRET}"],
)  # fmt: skip
@pytest.mark.parametrize("by_flag", [True, False])
def test_address_that_cannot_be_posted_to_is_refused_without_being_shown(
    address: str, by_flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_flag:
        monkeypatch.setenv(notify.VARIABLE, address)
    options = parser("s", "").parse_args(["--notify", address] if by_flag else [])
    with pytest.raises(ValueError, match=r"^--notify " if by_flag else r"^\$CRELU_NOTIFY ") as refused:
        settle((BASELINE,), options)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("words", [["--notify", f"https://host/{SECRET}"], [f"--notify=https://host/{SECRET}"]])
def test_printed_commands_leave_the_address_out(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["page.py", *words, "--seeds", "2"])
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "sweeps.page", *words, "--seeds", "2"])
    assert Command.typed("sweeps.page").again() == "python -m sweeps.page --seeds 2"
