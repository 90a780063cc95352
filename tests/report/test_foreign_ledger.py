"""A ledger of somebody else gets no login, packs no other file, and its texts are text wherever they are shown."""

import argparse
import base64
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sweeps.cifar_vgg import CELLS
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report import build
from sweeps.results.analyses import SCHEMA
from sweeps.results.evidence import read_sweep, titles
from sweeps.store.ledger import Ledger, checksum
from sweeps.tracking import mlflow_client
from tests.support.sweeps import Made, make

TITLE = "cifar_vgg"
SWEEP = Sweep(TITLE, "paper", CELLS[:2], Protocol(seeds=2))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output folder with a small finished sweep."""
    make(Ledger(str(tmp_path / "ledger")), SWEEP, outcome)
    return tmp_path


def outcome(trial: Trial) -> Made:
    return Made({TOP1: 9.0 + trial.seed})


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server, and the logins that it has been sent."""
    logins: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(str(self.headers.get("Authorization")))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", logins
    server.shutdown()
    server.server_close()
    thread.join()


def report(output: Path, **overrides: str | None) -> int:
    asked = {"sweep": None, "check": None, "capsule": None, "to": str(output / "to"), "tracking_uri": None}
    return build.run(argparse.Namespace(**asked | overrides, output=str(output), open=False, watch=False))


@pytest.mark.parametrize("noted", ["{}", "{}/mlflow", "{}/"])
def test_store_that_only_the_ledger_names_is_not_asked(
    output: Path,
    stranger: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    noted: str,
) -> None:
    address = noted.format(stranger[0])
    logins = stranger[1]
    ledger = Ledger(str(output / "ledger"))
    for name in ledger.names("tracked"):
        note = ledger.read_json(f"tracked/{name}") or {}
        ledger.write_json(f"tracked/{name}", note | {"uri": address, "experiment": "x"})
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "my secret")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert report(output) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert report(output) == 0
    shown = capsys.readouterr().out
    assert logins == []
    assert shown.count(f"the runs lie in {address}, which was not asked: --tracking-uri {address} says") == 2
    # The user's own word is what sends it there.
    assert report(output, tracking_uri=address) == build.UNTRACKED
    assert set(logins) == {"Basic " + base64.b64encode(b"me:my secret").decode()}


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "x/../../../secret.png", "secret"])
def test_export_packs_no_file_that_a_summary_names_elsewhere(output: Path, name: str) -> None:
    ledger = Ledger(str(output / "ledger"))
    run = read_sweep(ledger, TITLE).runs[0]
    (output / "ledger" / "trials" / "secret.png").write_text("secret")
    summary = {"schema": SCHEMA, "job": "pairing", "rows": [], "metrics": {}, "notes": [], "files": {name: ""}}
    ledger.write_json(f"trials/{run.key}/analysis/pairing/summary.json", summary)
    build.export(argparse.Namespace(sweep=TITLE, file=str(output / "a.zip"), output=str(output)))
    with zipfile.ZipFile(output / "a.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name in contents if "analysis" in name or "passwd" in name or "secret" in name]
    assert not [name for name, content in contents.items() if b"root:" in content or content == b"secret"]


def test_export_follows_no_link(output: Path) -> None:
    ledger = Ledger(str(output / "ledger"))
    path = Path(ledger.path(f"trials/{read_sweep(ledger, TITLE).runs[0].key}/history.json"))
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"history\.json is a link"):
        build.export(argparse.Namespace(sweep=TITLE, file=str(output / "a.zip"), output=str(output)))
    assert not (output / "a.zip").exists()


def test_escape_sequences_of_a_ledger_reach_neither_screen_nor_report(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(str(output / "ledger"))
    nasty = "\x1b]0;owned\x07\x9b2J\u202e"
    for name in ledger.names("results"):
        result = json.loads(ledger.read(f"results/{name}") or b"")
        result.pop("check")
        result |= {"events": [nasty], "hardware": result["hardware"] | {"host": nasty}}
        ledger.write_json(f"results/{name}", result | {"check": checksum(result)})
    plan = ledger.read_json(f"plans/{TITLE}.json") or {}
    ledger.write(f"plans/{TITLE}.json", json.dumps(plan | {"sweep": f"cifar_vgg{nasty}"}).encode())
    ledger.write("plans/.hidden.json", b"{}")
    (output / "ledger" / "plans" / "a\x1b[2J.json").write_text("{}")
    assert titles(ledger) == [TITLE]
    assert report(output) == 0
    shown = capsys.readouterr()
    texts = [path.read_text() for path in (output / "to").rglob("*") if path.suffix in (".html", ".md", ".tex", ".csv")]
    assert sum("owned" in text for text in texts) >= 2
    for text in (shown.out, shown.err, *texts):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)


@pytest.mark.parametrize("name", ["/absolute/evil", "../evil", "a/../../evil"])
def test_nothing_is_written_beside_the_folder_that_goes_to_mlflow(name: str) -> None:
    client: Any = None  # is not reached
    with pytest.raises(ValueError, match="is no name of a file below its folder"):
        mlflow_client.log_folder(client, "run", {name: b"owned"})
