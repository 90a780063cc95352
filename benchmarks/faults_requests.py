"""Is anything lost or doubled where MLflow or S3 loses a request, or an answer?

    python -m benchmarks.faults_requests
    python -m benchmarks.faults_requests --part s3 --every 3

A proxy stands before an MLflow server and before an S3 (moto's server), and loses each request once, or each answer:

- request lost: the connection is closed before the request is forwarded;
- answer lost: the request is forwarded, and the connection is closed in place of the answer.

To MLflow, a tracker sends two made-up trials of each of two cells. To S3, a process takes a lease and a claim, writes
the files, checkpoints and failed try of a trial, commits it, and gives the lease back. A command that fails runs
again, as a user would repeat it. In the end MLflow shows what the ledger says, by REST, and S3 has the objects of the
undisturbed run, or that is a loss. Where a command fails it has to say so without a traceback.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from xml.etree import ElementTree

from benchmarks.faults_files import PATIENCE, STUCK, forked, last_line
from tests.support.servers import free_port, s3_environment, wait_for_answer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

    from sweeps.experiment.sweep import Sweep

LOSSES: Final = ("request", "answer")
CONTROL: Final = "/_faults"  # the path by which the bench speaks to the proxy
HOP: Final = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")
ATTEMPTS: Final = 3  # times that a command is repeated
HANDS: Final = 4  # processes that take faults in turn
KEY: Final = "0" * 20  # of the made-up trial on S3


# Proxy --------------------------------------------------------------------------------------------------------------


@dataclass
class Orders:
    """Orders to the proxy: which request is lost, and how; and the requests since then."""

    target: int = 0
    loss: str = ""
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lost(self, request: str) -> str:
        """Count a request, and return how it is lost: empty where it is not."""
        with self.lock:
            self.requests.append(request)
            return self.loss if len(self.requests) == self.target else ""


class Proxy(BaseHTTPRequestHandler):
    """One connection to the proxy; the class of a server has `orders` and `backend`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement of its headers
    orders: Orders
    backend: tuple[str, int]

    def forward(self) -> None:
        """Answer a request by the backend's answer, or lose it."""
        body = self._body()
        if self.path.startswith(CONTROL):
            self._obey(body)
            return
        lost = self.orders.lost(f"{self.command} {self.path.partition('?')[0]}")
        if lost == "request":
            self._hang_up()
            return
        connection = http.client.HTTPConnection(*self.backend, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if lost:
            self._hang_up()
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        # The answer to HEAD names a length without having a content.
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = forward

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _obey(self, body: bytes) -> None:
        """Take new orders, where there are any, and tell the requests under the old ones."""
        with self.orders.lock:
            content = json.dumps(self.orders.requests).encode()
            if body:
                new = json.loads(body)
                self.orders.target = new["target"]
                self.orders.loss = new["loss"]
                self.orders.requests = []
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve_proxies(backend: str, ports: Sequence[int]) -> None:
    """Be proxies before a server, each with orders of its own, until the process is killed."""
    parts = urlsplit(backend)
    for port in ports:
        handler = type("Handler", (Proxy,), {"orders": Orders(), "backend": (parts.hostname, parts.port)})
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=server.serve_forever).start()


@contextmanager
def started(command: Sequence[str], address: str) -> Iterator[None]:
    """Run a server until the end, from its first answer on."""
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True) as server:
        try:
            wait_for_answer(address, server)
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # MLflow's server has processes of its own


@contextmanager
def before(backend: str) -> Iterator[list[str]]:
    """Return the addresses of proxies before a server."""
    ports = [free_port() for _ in range(HANDS)]
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    command = [sys.executable, "-m", "benchmarks.faults_requests", "--proxy", backend, *map(str, ports)]
    with started(command, addresses[-1] + CONTROL):
        yield addresses


def order(proxy: str, target: int = 0, loss: str = "") -> list[str]:
    """Give the proxy new orders; return the requests under the old ones."""
    body = json.dumps({"target": target, "loss": loss}).encode()
    with urllib.request.urlopen(urllib.request.Request(proxy + CONTROL, body, method="POST")) as answer:
        requests: list[str] = json.loads(answer.read())
    return requests


# The bench ----------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """A command whose requests are lost: what it does in a place by a proxy, and how that place then differs."""

    name: str
    proxies: list[str]
    command: Callable[[str, str], int]
    differences: Callable[[str], list[str]]


class Hand:
    """A process that runs a work's command by one proxy in many places; a fresh one goes on after a failure."""

    def __init__(self, work: Work, proxy: str, log: Path) -> None:
        """Prepare; the process starts with the first command."""
        self.work = work
        self.proxy = proxy
        self.log = log
        self.pipe: Connection | None = None
        self.process: ForkProcess | None = None

    def __call__(self, place: str) -> int:
        """Return the exit code of the command in a place; its words are in the log."""
        if self.pipe is None:
            self.log.write_bytes(b"")
            context = multiprocessing.get_context("fork")
            self.pipe, far = context.Pipe()
            self.process = context.Process(target=self._obey, args=(far,), daemon=True)
            self.process.start()
            far.close()
        os.truncate(self.log, 0)
        self.pipe.send(place)
        code = STUCK
        if self.pipe.poll(PATIENCE):
            code = self.pipe.recv()
        if code:
            self.end()
        return code

    def _obey(self, orders: Connection) -> None:
        words = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(words, 1)
        os.dup2(words, 2)
        while True:
            place = orders.recv()
            try:
                code = self.work.command(place, self.proxy)
            except Exception:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            orders.send(code)

    def words(self) -> str:
        """Return what the last command said."""
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """Kill the process; the next command gets a fresh one, as a user who repeats a command does."""
        if self.process is not None and self.pipe is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.pipe = self.process = None


def run(work: Work, first_target: int, every: int, folder: Path, limit: float) -> dict[str, Counter[str]]:
    """Return the counts for each kind of loss; several hands take the faults in turn, since most of it is waiting."""
    hands = [Hand(work, proxy, folder / f"words-{number}.log") for number, proxy in enumerate(work.proxies)]
    first = hands[0]
    first("warm")
    order(first.proxy)
    if code := first("calm"):
        raise ValueError(f"{work.name} fails undisturbed, with {code}: {first.words()}")
    total = len(order(first.proxy))
    if differing := work.differences("calm"):
        raise ValueError(f"{work.name} differs undisturbed: {differing[:3]}")
    print(f"{work.name}: {total} requests", flush=True)
    counts = {loss: Counter(requests=total) for loss in LOSSES}
    faults = deque((loss, target) for target in range(first_target, total + 1, every) for loss in LOSSES)

    def drain(hand: Hand) -> None:
        while faults and time.monotonic() < limit:
            with suppress(IndexError):
                loss, target = faults.popleft()
                counts[loss].update(lose(hand, loss, target))

    with ThreadPoolExecutor(len(hands)) as pool:
        list(pool.map(drain, hands))
    for hand in hands:
        hand.end()
    return counts


def lose(hand: Hand, loss: str, target: int) -> Counter[str]:
    """Return the counts of one fault, after the command was repeated where it failed."""
    work = hand.work
    counts: Counter[str] = Counter(faults=1)
    place = f"{loss}-{target}"
    order(hand.proxy, target, loss)
    code = hand(place)
    requests = order(hand.proxy)
    request = requests[target - 1] if target <= len(requests) else "not reached"
    counts["reached"] = target <= len(requests)
    where = f"{work.name}, {loss} {target} lost [{request}]"
    words = hand.words()
    counts["told"] = code != 0
    if "Traceback (most recent call last)" in words or (code and not last_line(words)):
        counts["untrue"] = 1
        print(f"UNTRUE {where}: exit {code}: {last_line(words)}", flush=True)
    for _ in range(ATTEMPTS):
        if not code:
            break
        code = hand(place)
    differing = work.differences(place)
    if code or differing:
        counts["losses"] = 1
        print(f"LOSS {where}: exit {code} {last_line(hand.words()) if code else ''}: {differing[:3]}", flush=True)
    return counts


# MLflow -------------------------------------------------------------------------------------------------------------


def made_sweep() -> Sweep:
    """Return a sweep of two cells with two seeds each."""
    from crelu_models.tables import S2
    from sweeps.experiment.recipe import ALLCONV
    from sweeps.experiment.sweep import Protocol, Sweep
    from sweeps.experiment.trial import Cell

    cells = (Cell("Baseline", S2, "synthetic", ALLCONV), Cell("CReLU", S2.crelu(1), "synthetic", ALLCONV))
    return Sweep("cifar_width", "demo", cells, Protocol(seeds=2))


@contextmanager
def mlflow_work(folder: Path) -> Iterator[Work]:
    """Return the tracking of a made-up sweep, in an experiment of its own for each fault."""
    import mlflow.store.tracking.rest_store  # noqa: F401  # here, so that forks have it

    from sweeps.experiment.plan import plan, plan_to_json
    from sweeps.experiment.trial import Trial
    from sweeps.store.ledger import Ledger
    from sweeps.tracking import tracker
    from sweeps.tracking.run_index import Store
    from sweeps.tracking.sqlite_store import prepare
    from tests.support.tracked import finish

    sweep = made_sweep()
    trials = [Trial(cell, seed=seed) for cell in sweep.cells for seed in range(2)]
    tracker.PAUSE = 0.05  # type: ignore[misc]

    def ledger_of(place: str) -> Ledger:
        return Ledger(str(folder / place / "ledger"))

    def command(place: str, proxy: str) -> int:
        ledger = ledger_of(place)
        if not ledger.results():
            for number, trial in enumerate(trials):
                finish(ledger, trial, 10.0 + number)
            ledger.write_json(f"plans/{sweep.title}.json", plan_to_json(plan(sweep, ledger, {})))
        tracking = tracker.Tracker(Store(proxy, place), ledger, sweep, lambda words: print(words, file=sys.stderr))
        tracking.register(trials)
        missing = tracking.close(60.0)
        if missing:
            print(f"{missing} runs not in MLflow yet", file=sys.stderr)
        return 4 if missing else 0

    def differences(place: str) -> list[str]:
        return list(differing_runs(backend, place, ledger_of(place)))

    store = folder / "mlflow.db"

    def make() -> int:
        prepare(store, print)
        return 0

    if code := forked(make, folder / "words.log"):
        raise ValueError(f"no store, exit code {code}: {(folder / 'words.log').read_text(errors='replace')}")
    port = free_port()
    backend = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--backend-store-uri",
              f"sqlite:///{store}", "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    os.environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with started(server, f"{backend}/health"), before(backend) as proxies:
        yield Work("MLflow", proxies, command, differences)


def rest(backend: str, call: str, **fields: object) -> dict[str, list[dict[str, object]]]:
    """Return the answer of a call of MLflow's REST interface: GET without fields, else POST."""
    body = json.dumps(fields).encode() if fields else None
    request = urllib.request.Request(f"{backend}/api/2.0/mlflow/{call}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        value: dict[str, list[dict[str, object]]] = json.loads(answer.read())
    return value


def differing_runs(backend: str, experiment: str, ledger: object, damaged: Collection[str] = ()) -> Iterator[str]:
    """Yield what an experiment shows otherwise than the ledger says."""
    from sweeps.store.ledger import Ledger
    from sweeps.tracking.model_files import FOLDER, WEIGHTS

    assert isinstance(ledger, Ledger)
    answer = rest(backend, "experiments/search", max_results=1000, filter=f"name = '{experiment}'")
    experiments = answer.get("experiments", [])
    if len(experiments) != 1:
        yield f"{len(experiments)} experiments"
        return
    ids = [experiments[0]["experiment_id"]]
    shown: Counter[str] = Counter()
    cells: Counter[str] = Counter()
    results = ledger.results()
    for run in rest(backend, "runs/search", experiment_ids=ids, max_results=1000).get("runs", []):
        info, data = run["info"], run["data"]
        assert isinstance(info, dict)
        assert isinstance(data, dict)
        tags = {tag["key"]: tag["value"] for tag in data["tags"]}
        metrics = {metric["key"]: metric["value"] for metric in data.get("metrics", [])}
        key = tags.get("trial.key", "")
        if not key:
            cells[tags.get("cell.key", "")] += 1
            if not any(name.startswith("cell/") or "mean" in name or "final/" in name for name in metrics):
                yield f"a cell's run without averages: {sorted(metrics)}"
            continue
        shown[key] += 1
        if info["status"] != ("FAILED" if key in damaged else "FINISHED"):
            yield f"{key} is {info['status']}"
        if key in damaged:
            if "is damaged" not in tags.get("error", ""):
                yield f"{key} says nothing of its damaged file"
            continue
        for name, value in results.get(key, {"metrics": {}})["metrics"].items():
            if metrics.get(name) != value:
                yield f"{key} shows {name} {metrics.get(name)} for {value}"
        call = f"metrics/get-history?run_id={info['run_id']}&metric_key=train/loss"
        points = [(int(str(point.get("step", 0))), point["value"]) for point in rest(backend, call).get("metrics", [])]
        try:
            rows = json.loads(ledger.read(f"trials/{key}/history.json") or b"[]")
        except ValueError:
            yield f"{key} has a history that is no JSON, and its run is {info['status']}"
            continue
        wanted = [(int(row["epoch"]), row["train/loss"]) for row in rows]
        if points != wanted:
            yield f"{key} shows the points {points} for {wanted}"
        files = rest(backend, f"artifacts/list?run_id={info['run_id']}").get("files", [])
        result = results.get(key, {"files": {}})
        # The weights lie in a model of MLflow's.
        model = {FOLDER if "pictures" in result and name == WEIGHTS else name for name in result["files"]}
        written = {name.split("/")[0] for name in model}
        if {file["path"] for file in files} != written:
            yield f"{key} has the artifacts {files}"
    if shown != Counter(results.keys()):
        yield f"runs of {len(shown)} trials, {shown.total()} in all, for {len(results)}"
    if set(cells.values()) != {1} or len(cells) != 2:
        yield f"runs of cells: {sorted(cells.values())}"


# S3 -----------------------------------------------------------------------------------------------------------------


@contextmanager
def s3_work(_: Path) -> Iterator[Work]:
    """Return the writes of a trial and its driver to a ledger on S3, each in a folder of its own."""
    # What the command imports, here, so that forks have it.
    import boto3  # noqa: F401
    import pyarrow.fs  # noqa: F401
    import torch  # noqa: F401

    import sweeps.store.checkpoint
    import sweeps.store.lease
    import sweeps.store.ledger  # noqa: F401

    port = free_port()
    backend = f"http://127.0.0.1:{port}"
    server = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]

    def command(place: str, proxy: str) -> int:
        os.environ |= s3_environment(proxy)
        return write_ledger(f"s3://crelu/{place}/ledger")

    def differences(place: str) -> list[str]:
        objects, wanted = objects_of(backend, place), objects_of(backend, "calm")
        names = sorted(name for name in objects.keys() | wanted.keys() if objects.get(name) != wanted.get(name))
        return [f"{name}: {objects.get(name)} for {wanted.get(name)}" for name in names]

    with started(server, f"{backend}/moto-api/"), before(backend) as proxies:
        urllib.request.urlopen(urllib.request.Request(f"{backend}/crelu", method="PUT")).close()
        yield Work("S3", proxies, command, differences)


def write_ledger(root: str) -> int:
    """Drive a made-up sweep of one trial on a ledger: 0, or 2 with a sentence where that fails."""
    import torch

    from sweeps.store import checkpoint
    from sweeps.store.checkpoint import Checkpoint
    from sweeps.store.lease import Drivers, Lease, LeaseHeldError, LeaseLostError, claim
    from sweeps.store.ledger import Ledger

    ledger = Ledger(root)
    try:
        with Lease(ledger, "made") as lease:
            claim(Drivers(ledger), "made", KEY)
            if ledger.result(KEY) is None:
                ledger.delete(f"attempts/{KEY}")
                ledger.add_attempt(KEY, {"error": "ValueError: made up", "final": False})
                for step in range(1, 4):
                    state = Checkpoint({"a": torch.arange(8.0) * step}, {"step": step})
                    checkpoint.save(ledger, KEY, 1, step, state)
                assert checkpoint.load(ledger, KEY)[0] is not None
                for name in ("trial.json", "history.json", "tables/scores.parquet"):
                    ledger.write(f"trials/{KEY}/{name}", name.encode() * 100)
                lease.check()
                ledger.commit(KEY, {"key": KEY, "metrics": {"error": 12.5}, "files": {}})
            ledger.delete(f"claims/{KEY}.json")
    except (LeaseHeldError, LeaseLostError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def objects_of(backend: str, place: str) -> dict[str, str]:
    """Return the tags of the objects in a folder of the bucket, which follow from their contents, past the proxy."""
    with urllib.request.urlopen(f"{backend}/crelu?list-type=2&prefix={place}/") as answer:
        listing = ElementTree.fromstring(answer.read())
    entries = listing.iterfind("{*}Contents")
    return {entry.findtext("{*}Key", "").removeprefix(place): entry.findtext("{*}ETag", "") for entry in entries}


WORKS: Final = {"mlflow": mlflow_work, "s3": s3_work}


def main() -> int:
    """Print a table of all losses; return 1 where something was lost or a message untrue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--every", type=int, default=1, metavar="K", help="only each K-th request (default: all)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="begin with the N-th request")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="M", help="stop each part then")
    parser.add_argument("--proxy", nargs="+", metavar="BACKEND PORT", help="be proxies before a server")
    options = parser.parse_args()
    if options.proxy:
        serve_proxies(options.proxy[0], [int(port) for port in options.proxy[1:]])
        return 0
    if "s3" in options.part and not shutil.which("moto_server", path=str(Path(sys.executable).parent)):
        print("error: moto's server is not installed: pip install 'moto[server]'", file=sys.stderr)
        return 2
    bad = 0
    rows = []
    for name in options.part:
        with tempfile.TemporaryDirectory(prefix="faults-") as scratch, WORKS[name](Path(scratch)) as work:
            limit = time.monotonic() + 60 * options.minutes
            for loss, counts in run(work, options.first, options.every, Path(scratch), limit).items():
                bad += counts["losses"] + counts["untrue"]
                columns = ("requests", "faults", "reached", "told", "losses", "untrue")
                rows.append(f"| {work.name} | {loss} | {' | '.join(str(counts[column]) for column in columns)} |")
    print("| server | lost | requests | faults | reached | told | losses | untrue |\n|---|---|" + "---:|" * 6)
    print("\n".join(rows))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
