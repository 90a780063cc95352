"""Leases: one driver at a time writes, a dead or silent one is followed, and one that was replaced writes no more."""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.store.lease import (
    BEAT,
    FENCE,
    GLANCE,
    SILENCE,
    Drivers,
    Lease,
    LeaseHeldError,
    LeaseLostError,
    claim,
    driver,
    trained_elsewhere,
    unclaim,
)
from sweeps.store.lease_file import Content, DiskFile, S3File
from sweeps.store.ledger import Json, Ledger
from sweeps.store.process import Host, started, this_process
from sweeps.tracking.fenced_client import fenced
from tests.support.lease_worlds import LIMIT, STORES, Kind, Locks, World, simulate
from tests.support.waiting import until

DAY = 86_400.0


class SimulatedHost(Host):
    """A host of its own whose clock a test moves; `meanwhile` happens at each second of a wait."""

    def __init__(self, boot: str = "this boot", wall: float = 0.0) -> None:
        self.boot = boot
        self.skew = wall
        self.time = 1000.0
        self.meanwhile: Callable[[float], object] = lambda time: None

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + self.skew

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        assert self.time < 10_000, "a wait without an end"
        self.meanwhile(self.time)

    def this_process(self) -> dict[str, object]:
        return {"pid": os.getpid(), "host": "one name", "boot": self.boot}

    def lives(self, process: Mapping[str, object]) -> bool | None:
        return True if process.get("boot") == self.boot else None


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger"))


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every disk locks that keep nobody out, as those of one host keep nobody of another one out."""
    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)


def held(ledger: Ledger, place: Host) -> Lease:
    """Return a lease that is taken, and whose beats are the test's."""
    lease = Lease(ledger, "s", host=place)
    lease.take_lock()
    lease.take()
    return lease


@pytest.mark.parametrize("skew", [0.0, 120.0, -120.0, DAY, -DAY])
def test_a_driver_of_another_host_keeps_its_sweep_while_it_beats_whatever_the_clocks_say(
    ledger: Ledger, without_locks: None, skew: float
) -> None:
    remote, here = SimulatedHost("another boot", skew), SimulatedHost()
    remote.time = 5.0
    first = held(ledger, remote)

    def beat(_: float) -> None:
        remote.time += 1.0
        if remote.time % BEAT == 0:
            first.renew()

    here.meanwhile = beat
    with pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on one name, for 0 min"):
        held(ledger, here)
    assert here.time <= 1000 + BEAT + 1
    assert (Drivers(ledger, here).now(["s"])["s"] or {})["boot"] == "another boot"
    first.check()


@pytest.mark.parametrize("skew", [0.0, 120.0, -120.0, DAY, -DAY])
def test_a_silent_driver_of_another_host_is_followed_after_a_minute(
    ledger: Ledger, without_locks: None, skew: float
) -> None:
    held(ledger, SimulatedHost("another boot", skew))
    here = SimulatedHost()
    said: list[str] = []
    assert Drivers(ledger, here).now(["s"]) == {"s": None}
    assert here.time == pytest.approx(1000 + GLANCE, abs=2)
    here.time = 1000.0
    lease = Lease(ledger, "s", said.append, host=here)
    lease.take_lock()
    lease.take()
    assert 1000 + SILENCE <= here.time <= 1000 + LIMIT
    assert "this command takes over if that gives no sign of life within 60 s" in said[0]
    assert (ledger.read_json("leases/s.json") or {})["boot"] == "this boot"


def test_of_two_hosts_with_one_name_each_is_itself(ledger: Ledger, without_locks: None) -> None:
    boot, namespace = SimulatedHost("boot"), SimulatedHost("the same boot in a container")
    held(ledger, boot)
    with pytest.raises(LeaseHeldError):  # a process of the same boot: at once
        held(ledger, boot)
    assert boot.time == 1000
    namespace.meanwhile = lambda time: ledger.write("leases/s.json", f'{{"beat": {time}}}'.encode())
    with pytest.raises(LeaseHeldError):
        held(ledger, namespace)
    assert namespace.time == 1001


def test_a_watcher_that_slept_has_seen_no_silence(ledger: Ledger, without_locks: None) -> None:
    held(ledger, SimulatedHost("another boot"))
    here = SimulatedHost()
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        here.time += 300

    here.meanwhile = sleep
    held(ledger, here)
    assert looks >= SILENCE / (2 * BEAT)


def test_a_driver_that_slept_and_was_replaced_writes_no_more(
    ledger: Ledger, without_locks: None, tmp_path: Path
) -> None:
    remote, here = SimulatedHost("another boot"), SimulatedHost()
    said: list[str] = []
    sleeper = held(ledger, remote)
    sleeper.on_lost = said.append
    fenced_ledger = Ledger(ledger.root, sleeper.check)
    fenced_ledger.write_json("plans/s.json", {"mine": True})
    remote.time += 66
    follower = held(ledger, here)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    writes: list[Callable[[], object]] = [
        lambda: fenced_ledger.write_json("plans/s.json", {"late": True}),
        lambda: fenced_ledger.write("new", b""),
        lambda: fenced_ledger.delete("plans/s.json"),
        lambda: fenced_ledger.commit("k", {}),
        lambda: fenced_ledger.add_attempt("k", {}),
        lambda: fenced_ledger._write_once("ledger.json", b"{}"),
        lambda: claim(Drivers(fenced_ledger), "s", "k"),
        lambda: unclaim(Drivers(fenced_ledger), "s", "k"),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError, match=r"another driver has taken over .*: process .* for 66 s"):
            write()
    with pytest.raises(LeaseLostError):
        sleeper.renew()
    assert len(said) == 1
    sleeper.file.remove(sleeper.tag)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    follower.check()


class Client:
    """A client of MLflow that counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., str]:
        def call(*arguments: object, **words: object) -> str:
            self.calls.append(name)
            return f"{name} {arguments} {words}"

        return call


def test_mlflow_gets_nothing_of_a_driver_that_was_replaced() -> None:
    client = Client()
    lost = False

    def guard() -> None:
        if lost:
            raise LeaseLostError

    guarded: Any = fenced(client, guard)  # type: ignore[arg-type]
    assert guarded.log_batch("run", metrics=[]) == "log_batch ('run',) {'metrics': []}"
    lost = True
    for name in ("log_batch", "create_run", "set_tag", "set_terminated", "log_artifacts", "delete_run", "update_run"):
        with pytest.raises(LeaseLostError):
            getattr(guarded, name)("run")
    assert client.calls == ["log_batch"]
    assert guarded.get_run("run").startswith("get_run")
    assert guarded.search_runs([]).startswith("search_runs")


def test_a_driver_that_slept_but_was_not_replaced_goes_on(ledger: Ledger, without_locks: None) -> None:
    remote = SimulatedHost("another boot")
    sleeper = held(ledger, remote)
    text = ledger.read("leases/s.json")
    remote.time += FENCE - 1
    sleeper.check()
    assert ledger.read("leases/s.json") == text  # a look is enough
    remote.time += 1
    sleeper.check()
    assert ledger.read("leases/s.json") != text  # after a longer silence a sign of life comes first
    remote.time += 500
    sleeper.check()


def test_a_driver_that_sleeps_while_the_store_answers_looks_again(ledger: Ledger, without_locks: None) -> None:
    remote, here = SimulatedHost("another boot"), SimulatedHost()
    sleeper = held(ledger, remote)
    read = sleeper.file.read
    slept = False

    def read_and_sleep() -> object:
        nonlocal slept
        content = read()
        if not slept:
            slept = True
            remote.time += 66
            held(ledger, here)
        return content

    sleeper.file.read = read_and_sleep  # type: ignore[method-assign, assignment]
    with pytest.raises(LeaseLostError):
        sleeper.check()


def test_a_lease_that_is_gone_stops_its_driver_and_a_disk_that_is_gone_does_not(
    ledger: Ledger, without_locks: None, tmp_path: Path
) -> None:
    lease = held(ledger, SimulatedHost())
    folder = tmp_path / "ledger" / "leases"
    folder.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        lease.check()
    (tmp_path / "away").rename(folder)
    lease.check()
    (folder / "s.json").unlink()
    with pytest.raises(LeaseLostError, match="is gone"):
        lease.check()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff" * 40])
def test_a_damaged_lease_is_mended_by_its_driver_and_followed_without_one(
    ledger: Ledger, without_locks: None, damage: bytes
) -> None:
    lease = held(ledger, SimulatedHost())
    ledger.write("leases/s.json", damage)
    lease.check()
    assert (ledger.read_json("leases/s.json") or {})["owner"] == lease.owner
    ledger.write("leases/s.json", damage)
    here = SimulatedHost()
    held(ledger, here)
    assert here.time >= 1000 + SILENCE
    lease.host.sleep(66)
    ledger.write("leases/s.json", damage)
    with pytest.raises(LeaseLostError):  # not his to mend
        lease.check()


def test_an_owner_that_is_misread_is_none(ledger: Ledger, without_locks: None) -> None:
    lease = held(ledger, SimulatedHost())
    text = ledger.read("leases/s.json") or b""
    ledger.write("leases/s.json", text.replace(lease.owner.encode(), b"f" * 31 + b"!"))
    lease.check()
    assert (ledger.read_json("leases/s.json") or {})["owner"] == lease.owner


def test_a_flipped_bit_in_a_lease_neither_stops_its_driver_nor_lets_another_one_in(
    ledger: Ledger, without_locks: None
) -> None:
    remote = SimulatedHost("another boot")
    draw = random.Random(0)
    lease = held(ledger, remote)
    for _ in range(30):
        flipped = bytearray(ledger.read("leases/s.json") or b"")
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        Path(ledger.path("leases/s.json")).write_bytes(flipped)
        here = SimulatedHost()
        here.meanwhile = lambda time: lease.renew()
        with pytest.raises(LeaseHeldError):
            held(ledger, here)
        lease.check()


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_takes_beats(
    ledger: Ledger, without_locks: None, full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, here = SimulatedHost("another boot"), SimulatedHost()
    first = held(ledger, remote)

    def no_room(*_: object) -> int:
        raise OSError(full, "full")

    monkeypatch.setattr(os, "pwrite", no_room)
    here.meanwhile = lambda time: first.renew()
    with pytest.raises(LeaseHeldError):
        held(ledger, here)
    remote.time += 1000
    first.check()


def test_a_lease_that_came_back_as_a_copy_is_taken_into_hand_again(
    ledger: Ledger, without_locks: None, tmp_path: Path
) -> None:
    remote, here = SimulatedHost("another boot"), SimulatedHost()
    lease = held(ledger, remote)
    beats = count_beats(lease)
    folder = tmp_path / "ledger" / "leases"
    folder.rename(tmp_path / "away")
    shutil.copytree(tmp_path / "away", folder)
    for silent in (BEAT, FENCE + 1):
        remote.time += silent
        lease.check() if silent > FENCE else lease.renew()
        now = json.loads(ledger.read("leases/s.json") or b"")
        assert (now["owner"], now["clock"]) == (lease.owner, remote.time)
    assert len(beats) <= 4
    here.meanwhile = lambda time: lease.renew()
    with pytest.raises(LeaseHeldError):
        held(ledger, here)
    lease.file.remove(lease.tag)
    assert ledger.names("leases") == ["s.json.lock"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOTCONN])
@pytest.mark.parametrize("calls", [("pwrite", "fstat"), ("fstat",)])
def test_a_lease_whose_handle_fails_is_opened_anew(
    ledger: Ledger, without_locks: None, calls: tuple[str, ...], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = SimulatedHost("another boot")
    lease = held(ledger, remote)
    beats = count_beats(lease)
    inode = os.stat(ledger.path("leases/s.json")).st_ino
    fstat = os.fstat

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def ask(handle: int, *rest: object) -> object:
            if handle == lease.file.handle and fstat(handle).st_ino == inode:  # type: ignore[attr-defined]
                raise OSError(number, "a stale handle")
            return call(handle, *rest)

        return ask

    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for name in calls:
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    remote.time += BEAT
    lease.renew()
    assert json.loads(ledger.read("leases/s.json") or b"")["clock"] == remote.time
    lease.renew()
    assert len(beats) <= 4


def test_a_lease_that_takes_no_beat_is_an_error_and_not_a_wait(
    ledger: Ledger, without_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = held(ledger, SimulatedHost())
    monkeypatch.setattr(lease.file, "beat", lambda text, tag: None)
    monkeypatch.setattr(lease.file, "replace", lambda text, tag: None)
    beats = count_beats(lease)
    with pytest.raises(OSError, match="takes no sign of life"):
        lease.renew()
    assert not lease.lost
    assert len(beats) > 1


def count_beats(lease: Lease) -> list[str]:
    """Return the tags of the beats that a lease sends from now on; a loop without an end fails."""
    tags: list[str] = []
    beat = lease.file.beat

    def counted(text: bytes, tag: str) -> str | None:
        tags.append(tag)
        assert len(tags) < 100, "beats without an end"
        return beat(text, tag)

    lease.file.beat = counted  # type: ignore[method-assign]
    return tags


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_on_a_disk_without_locks_the_beats_decide(ledger: Ledger, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = list[str]()
    with Lease(ledger, "s", said.append) as lease:
        assert said == [f"{ledger.root}/leases has no file locks ({os.strerror(number)}): "
                        "drivers know each other by their beats"]  # fmt: skip
        with pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on"), Lease(ledger, "s"):
            pass
        lease.check()
    with Lease(ledger, "s"):
        pass


def test_a_lock_of_another_process_is_said_to_be_one(ledger: Ledger) -> None:
    with Lease(ledger, "s"):
        ledger.write("leases/s.json", b"{}")
        with pytest.raises(LeaseHeldError, match="its lease cannot be read"), Lease(ledger, "s"):
            pass


def test_a_number_that_another_process_has_by_now_is_no_driver() -> None:
    here = Host()
    assert here.lives(this_process()) is True
    assert here.lives(this_process() | {"started": "1"}) is False
    assert here.lives(this_process() | {"boot": "another"}) is None
    assert here.lives(this_process() | {"pid_namespace": "pid:[1]"}) is None
    assert here.lives({"pid": os.getpid(), "host": this_process()["host"]}) is None  # of an earlier version
    assert here.lives(this_process() | {"host": "renamed"}) is True
    for pid in (0, -1, "x", 2**70):
        assert here.lives(this_process() | {"pid": pid}) is False
    with subprocess.Popen(["sleep", "60"]) as child:
        named = this_process() | {"pid": child.pid, "started": started(child.pid)}
        assert here.lives(named) is True
        child.kill()
        until(lambda: started(child.pid) == "dead", "a process that nobody has waited for", 120, poll=0.01)
        assert here.lives(named) is False


def test_a_silent_driver_of_this_host_is_followed_where_no_lock_keeps_others_out(
    ledger: Ledger, without_locks: None
) -> None:
    here = SimulatedHost()
    first = held(ledger, here)
    assert Drivers(ledger, here).look("s") is not None
    here.time += SILENCE + 1
    assert Drivers(ledger, here).look("s") is not None  # it has the kernel's lock for as long as it lives
    follower = held(ledger, here)
    with pytest.raises(LeaseLostError):
        first.check()
    follower.lock = None
    follower.renew()
    assert Drivers(ledger, here).look("s") is not None
    here.time += SILENCE + 1
    assert Drivers(ledger, here).look("s") is None


def test_a_thread_that_writes_after_the_end_is_refused_and_ends_no_process(ledger: Ledger) -> None:
    ended: list[str] = []
    with Lease(ledger, "s", on_lost=ended.append) as lease:
        fenced_ledger = Ledger(ledger.root, lease.check)
        fenced_ledger.write("a", b"")
    for write in (lambda: fenced_ledger.write("b", b""), lambda: fenced_ledger.delete("a")):
        with pytest.raises(LeaseLostError, match="has ended and given its lease back"):
            write()
    assert ended == []
    assert ledger.names("") == ["a"]


# Trials that several sweeps share


def test_trial_is_claimed_by_one_sweep_while_the_driver_that_claimed_it_lives(ledger: Ledger) -> None:
    drivers = Drivers(ledger)
    assert claim(drivers, "other", "k")
    assert claim(drivers, "mine", "k")  # nobody drives the other sweep
    assert claim(drivers, "other", "k")
    with Lease(ledger, "other"):
        assert not claim(drivers, "mine", "k")
        assert claim(drivers, "other", "k")
        assert claim(drivers, "mine", "another")
        for change in ({"pid": 1}, {"boot": "another"}, {"started": "1"}, {"pid_namespace": "another"}):
            ledger.write_json("claims/k.json", {"sweep": "other"} | this_process() | change)
            assert claim(drivers, "mine", "k")  # the driver that claimed it has gone; this one is another
        assert claim(drivers, "other", "k")
        unclaim(drivers, "mine", "k")  # not its own
        assert not claim(drivers, "mine", "k")
        unclaim(drivers, "other", "k")
        assert claim(drivers, "mine", "k")


def test_trials_that_other_sweeps_train_now_are_named_with_them(ledger: Ledger) -> None:
    drivers = Drivers(ledger)
    keys = ["k", "l", "m", "none", "made0", "made1", "made2"]
    assert trained_elsewhere(drivers, "mine", keys) == {}
    for sweep, key in (("other", "k"), ("mine", "l"), ("dead", "m"), ("other", "unasked")):
        assert claim(drivers, sweep, key)
    for number, name in enumerate(("../../other", None, "")):
        ledger.write_json(f"claims/made{number}.json", {"sweep": name} | this_process())
    assert trained_elsewhere(drivers, "mine", keys) == {}
    with Lease(ledger, "other"), Lease(ledger, "mine"):
        assert trained_elsewhere(drivers, "mine", keys) == {"k": "other"}
        ledger.write_json("claims/k.json", {"sweep": "other"} | this_process() | {"pid": 1})
        assert trained_elsewhere(drivers, "mine", keys) == {}


@pytest.mark.parametrize("is_alive", [True, False])
def test_driver_of_another_host_has_a_minute_to_show_that_it_trains_a_trial(ledger: Ledger, is_alive: bool) -> None:
    process = this_process() | {"boot": "another"}
    lease = {"owner": "x", "beat": 0.0} | process
    ledger.write_json("leases/other.json", lease)
    ledger.write_json("claims/k.json", {"sweep": "other"} | process)
    here = SimulatedHost()
    began = here.time
    if is_alive:
        here.meanwhile = lambda now: now > began + 40 and ledger.write_json("leases/other.json", lease | {"beat": now})
    assert trained_elsewhere(Drivers(ledger, here), "mine", ["k"]) == ({"k": "other"} if is_alive else {})
    assert here.time - began == pytest.approx(41 if is_alive else SILENCE, abs=2)


@pytest.mark.parametrize("before", [None, {"sweep": "of a dead driver"}, {"pid": 1}, {}])
def test_of_two_that_claim_a_trial_at_once_one_is_refused(
    ledger: Ledger, before: Json | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = Drivers(ledger)
    if before is not None:
        ledger.write_json("claims/k.json", before | this_process() | {"started": "earlier"})
    read = DiskFile.read
    claimed: list[bool] = []

    def read_by_both(self: DiskFile) -> Content | None:
        content = read(self)
        if not claimed:  # the other one claims it between our look and our write
            claimed.append(False)
            claimed[0] = claim(drivers, "other", "k")
        return content

    with Lease(ledger, "mine"), Lease(ledger, "other"):
        monkeypatch.setattr(DiskFile, "read", read_by_both)
        assert not claim(drivers, "mine", "k")
        assert claimed == [True]
        assert (ledger.read_json("claims/k.json") or {})["sweep"] == "other"


def test_claims_keep_no_file_open(ledger: Ledger) -> None:
    drivers = Drivers(ledger)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert all(claim(drivers, "mine", f"{number}") for number in range(20))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


@pytest.mark.parametrize("sweep", ["../../other", "/etc/passwd", "", "a\nb", None, ["other"]])
def test_a_claim_that_names_no_sweep_claims_nothing(ledger: Ledger, sweep: object) -> None:
    ledger.write_json("claims/k.json", {"sweep": sweep} | this_process())
    assert claim(Drivers(ledger), "mine", "k")


@pytest.mark.parametrize("name", ["held", "clock", "pid", "host", "started", "boot"])
@pytest.mark.parametrize("value", ["\x1b[2J", None, [], {"a": 1}, -1e300])
def test_a_lease_that_somebody_made_up_is_watched_and_harms_no_terminal(
    ledger: Ledger, without_locks: None, name: str, value: object
) -> None:
    remote, here = SimulatedHost("another boot"), SimulatedHost()
    lease = json.loads(held(ledger, remote)._sign()) | {name: value}
    del lease["check"]
    here.meanwhile = lambda time: ledger.write_json("leases/s.json", lease | {"beat": time})
    ledger.write_json("leases/s.json", lease)
    with pytest.raises(LeaseHeldError) as busy:
        held(ledger, here)
    assert "\x1b" not in str(busy.value)


def test_trial_of_a_silent_driver_of_another_host_is_waited_for_a_minute(ledger: Ledger) -> None:
    process = this_process() | {"boot": "another"}
    ledger.write_json("leases/other.json", {"owner": "x", "beat": time.time() - DAY} | process)
    ledger.write_json("claims/k.json", {"sweep": "other"} | process)
    here = SimulatedHost()
    drivers = Drivers(ledger, here)
    for _ in range(int(SILENCE / BEAT)):
        assert not claim(drivers, "mine", "k")
        here.time += BEAT
    assert claim(drivers, "mine", "k")
    ledger.write_json("claims/k.json", {"sweep": "other"} | process)
    ledger.write_json("leases/other.json", {"owner": "x", "beat": 0} | process)
    assert not claim(drivers, "mine", "k")


# A real process

SLEEPER = """
import sys
from functools import partial
from sweeps.cli.run import _end_at_once
from sweeps.store.lease import Lease
from sweeps.store.ledger import Json, Ledger
ledger = Ledger(sys.argv[1])
with Lease(ledger, "s", on_lost=_end_at_once) as lease:
    guarded = Ledger(sys.argv[1], lease.check)
    for number in range(10**6):
        guarded.write("written", str(number).encode())
        print(number, flush=True)
        sys.stdin.readline()
"""


def test_a_stopped_process_that_was_replaced_ends_with_two_and_a_sentence(ledger: Ledger) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, ledger.root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        process.send_signal(signal.SIGSTOP)
        until(lambda: "T" in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0], "a stop", 120)
        lease = ledger.read_json("leases/s.json") or {}
        assert lease["locked"] is True
        ledger.write_json("leases/s.json", lease | {"owner": "another", "host": "elsewhere", "pid": 7})
        ledger.write("written", b"by the other one")
        process.send_signal(signal.SIGCONT)
        said = process.communicate("\n", timeout=300)[1]
    assert process.returncode == 2
    assert "error: another driver has taken over this sweep: process 7 on elsewhere." in said
    assert "Traceback" not in said
    assert ledger.read("written") == b"by the other one"
    assert (ledger.read_json("leases/s.json") or {})["owner"] == "another"


# The store


def test_of_two_that_create_or_replace_a_lease_on_s3_the_store_refuses_one(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    first, second = S3File(ledger, "leases/s.json"), S3File(ledger, "leases/s.json")
    assert second.read() is None
    tag = first.create(b"first")
    assert tag is not None
    assert first.compares
    assert second.create(b"second") is None
    assert second.read() == (b"first", tag)
    later = first.beat(b"first, later", tag)
    assert later is not None
    assert second.replace(b"second", tag) is None  # it has beaten since
    taken = second.replace(b"second", later)
    assert taken is not None
    assert first.beat(b"first, woken", later) is None
    first.remove(later)
    assert first.read() == (b"second", taken)
    second.remove(taken)
    assert second.read() is None
    assert second.beat(b"second", taken) is None


def test_a_sleeper_on_s3_is_refused_by_the_store(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    remote, here = SimulatedHost("another boot"), SimulatedHost()
    sleeper = held(ledger, remote)
    held(ledger, here)
    with pytest.raises(LeaseLostError, match="another driver has taken over"):
        sleeper.renew()
    with pytest.raises(LeaseLostError):
        Ledger(ledger.root, sleeper.check).write("late", b"")
    assert ledger.read("late") is None


def test_an_answer_of_s3_that_is_lost_costs_no_lease(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    lease = Lease(ledger, "s", host=SimulatedHost())
    put = lease.file._put  # type: ignore[attr-defined]
    losses = 2

    def lossy(text: bytes, **condition: str) -> str | None:
        nonlocal losses
        answer = put(text, **condition)
        if losses and answer is not None:
            losses -= 1
            return put(text, **condition)  # what the client's second try says
        return str(answer) if answer else None

    lease.file._put = lossy  # type: ignore[attr-defined]
    lease.take()
    lease.host.sleep(BEAT)
    lease.renew()
    lease.check()
    assert losses == 0


def test_an_answer_of_s3_that_is_cut_off_is_an_error_of_the_store(bucket: str) -> None:
    from botocore.exceptions import IncompleteReadError

    class Body:
        def read(self) -> bytes:
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)

    file = S3File(Ledger(f"{bucket}/cut/ledger"), "leases/s.json")
    file._client = SimpleNamespace(get_object=lambda **_: {"Body": Body(), "ETag": "tag"})
    with pytest.raises(OSError, match="1 read, but total bytes expected is 2"):
        file.read()


def test_a_store_that_ignores_conditions_is_found_out(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    file = S3File(ledger, "leases/s.json")
    put = file.client.put_object
    file.client.put_object = lambda Bucket, Key, Body, **_: put(Bucket=Bucket, Key=Key, Body=Body)  # noqa: N803
    assert file.compares
    tag = file.create(b"first")
    assert tag is not None
    assert not file.compares
    assert not file.creates_once
    assert file.overwrites


def test_a_lease_on_a_disk_is_made_once_and_a_late_beat_covers_nobody(tmp_path: Path) -> None:
    first, second = DiskFile(tmp_path / "s.json"), DiskFile(tmp_path / "s.json")
    tag = first.create(b"first")
    assert tag is not None
    assert second.create(b"second") is None
    assert second.replace(b"second", "an older tag") is None
    now = first.read()
    assert now is not None
    assert second.replace(b"second", now.tag) is not None
    assert first.beat(b"first, woken", tag) is None
    assert (tmp_path / "s.json").read_bytes().strip() == b"second"
    first.remove(tag)
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_a_disk_without_links_makes_a_lease_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", link)
    first, second = DiskFile(tmp_path / "s.json"), DiskFile(tmp_path / "s.json")
    assert first.create(b"first") is not None
    assert second.create(b"second") is None
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


# Worlds


@pytest.mark.parametrize(("kind", "locks"), STORES)
def test_no_two_drivers_write_and_none_is_locked_out_in_simulated_worlds(kind: Kind, locks: Locks) -> None:
    for seed in range(10):
        world = simulate(seed, kind, locks)
        assert world.faults == [], "\n".join(world.history)
        assert world.counts["writes"] > 0


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("check", lambda self: None),  # a driver that writes without a look
        ("_alive", lambda self, other: False),  # every lease is taken over at once
        ("_alive", lambda self, other: True),  # no lease ever is
    ],
)
def test_a_planted_fault_is_found_by_the_worlds(
    name: str, planted: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, name, planted)
    worlds = (simulate(seed, kind, "none") for seed in range(40) for kind in ("s3", "disk"))
    assert any(world.faults for world in worlds)


def test_clocks_that_are_compared_are_found_by_the_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(self: Lease, other: Mapping[str, Any]) -> bool:
        return self.host.wall() - float(other["beat"]) < SILENCE

    monkeypatch.setattr(Lease, "_alive", compared)
    assert any(simulate(seed, "s3", "none").faults for seed in range(40))


def test_a_world_is_the_same_each_time() -> None:
    def history() -> list[str]:
        world = simulate(5, "disk", "none")
        return [line for line in world.history if "lease of" not in line]

    assert history() == history()
    assert isinstance(simulate(6, "s3", "none"), World)


def test_lease_names_what_a_reader_wants(ledger: Ledger) -> None:
    began = time.time()
    with Lease(ledger, "s"):
        lease = json.loads(ledger.read("leases/s.json") or b"")
        assert began <= lease["beat"] <= time.time()
        assert lease.keys() == {
            "owner", "since", "beat", "held", "clock", "locked", "pid", "host", "started", "boot", "pid_namespace",
            "check",
        }  # fmt: skip
        assert (driver(ledger, "s") or {})["owner"] == lease["owner"]
    assert driver(ledger, "s") is None
