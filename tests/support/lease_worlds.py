"""Worlds of two or three drivers that want one sweep, with pauses, kills, faults and skewed clocks, all from a seed.

The drivers run the real `Lease`, each thread of them as a thread that runs only while the world lets it: at each
request to the store and at each wait it hands on, and simulated time goes to the next event. Only clock, processes,
kernel locks and the store are simulated.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, TypeVar

from sweeps.store import lease as leases
from sweeps.store.lease import BEAT, SETTLE, SILENCE, Lease, LeaseHeldError, LeaseLostError
from sweeps.store.lease_file import Content
from sweeps.store.ledger import Ledger
from sweeps.store.process import Host

Kind = Literal["s3", "disk", "store"]
Locks = Literal["none", "host", "global"]
T = TypeVar("T")
STORES: tuple[tuple[Kind, Locks], ...] = (
    ("s3", "none"),
    ("store", "none"),
    ("disk", "none"),
    ("disk", "host"),
    ("disk", "global"),
)
LENGTH = 260.0  # seconds of a world, before its last driver
LIMIT = SILENCE + SETTLE + 15.0  # seconds after which a driver without a living rival has the lease
LAG = 2.0  # seconds within which the store has done what it was asked for


class Ended(BaseException):
    """The process of this thread has been killed."""


@dataclass
class Machine(Host):
    """A host: a boot, a clock that began at some time and is a little fast or slow, and a time of day that is wrong."""

    world: World
    name: str
    offset: float
    rate: float
    skew: float
    frozen_until: float = 0.0
    frozen: float = 0.0  # seconds that its clock lacks

    def now(self) -> float:
        return self.offset + self.world.time * self.rate

    def wall(self) -> float:
        return 1.7e9 + self.world.time + self.skew

    def sleep(self, seconds: float) -> None:
        self.world.wait(seconds)

    def this_process(self) -> dict[str, object]:
        return {"pid": self.world.running.process.pid, "host": "same name", "boot": self.name}

    def lives(self, process: Mapping[str, object]) -> bool | None:
        if process.get("boot") != self.name:
            return None
        return any(other.pid == process.get("pid") and not other.dead for other in self.world.processes)


@dataclass
class Process:
    """A driver's process; `pauses` are times in which it sleeps."""

    pid: int
    machine: Machine
    dead: bool = False
    checking: bool = False
    beating: bool = False
    ended_at: float = float("inf")
    began_at: float = 0.0
    pauses: list[tuple[float, float]] = field(default_factory=list)

    def wakes(self, time: float) -> float:
        """Return when a thread that is due at `time` runs."""
        for start, end in self.pauses:
            if start <= time < end:
                return end
        return time


class Task:
    """A thread of a process."""

    def __init__(self, world: World, process: Process, work: Callable[[], None]) -> None:
        self.world = world
        self.process = process
        self.work = work
        self.turn = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.over = False
        self.error: BaseException | None = None

    def _run(self) -> None:
        self.turn.acquire()
        try:
            if not self.process.dead:
                self.work()
        except Ended:
            pass
        except BaseException as error:
            self.error = error
        self.over = True
        self.world.turn.release()


class SimulatedLock:
    """Lock of a process's threads that hands on while another one has it; a thread may take it again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owner = None
        self.depth = 0

    owner: Task | None

    def __enter__(self) -> None:
        while self.owner not in (None, self.world.running):
            self.world.wait(0.01)
        self.owner = self.world.running
        self.depth = self.depth + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.depth -= 1
        if not self.depth:
            self.owner = None


@dataclass
class Record:
    """The lease's file: its text, a version that each write changes, and the number of the file itself."""

    text: bytes
    version: int
    number: int


class File:
    """Lease in a world's store, as S3, a disk or a store that knows no conditions would have it."""

    def __init__(self, world: World, kind: Kind) -> None:
        self.world = world
        self.kind = kind
        self.compares, self.creates_once = kind == "s3", kind != "store"
        self.overwrites = kind == "store"
        self.mine: Record | None = None

    def read(self) -> Content | None:
        record = self.world.ask(lambda: self.world.record and (self.world.record.text, self._tag(self.world.record)))
        return Content(*record) if record else None

    def create(self, text: bytes) -> str | None:
        if self.kind == "store":
            return None if self.read() is not None else self._put(text)
        return self.world.ask(lambda: None if self.world.record else self._write(text))

    def replace(self, text: bytes, tag: str) -> str | None:
        if self.kind == "s3":
            return self.world.ask(lambda: self._write(text) if self._is(tag) else None)
        now = self.read()
        return None if now is None or now.tag != tag else self._put(text)

    def beat(self, text: bytes, tag: str) -> str | None:
        if self.kind != "disk":
            return self.replace(text, tag)

        def beat() -> str | None:
            assert self.mine is not None
            self.mine.text = text
            self.mine.version = next(self.world.numbers)
            return self._tag(self.mine) if self.world.record is self.mine else None

        return self.world.ask(beat)

    def remove(self, tag: str) -> None:
        def remove() -> None:
            if self.world.record is self.mine if self.kind == "disk" else self._is(tag):
                self.world.record = None

        self.world.ask(remove)

    def _put(self, text: bytes) -> str:
        return self.world.ask(lambda: self._write(text))

    def _write(self, text: bytes) -> str:
        self.mine = self.world.record = Record(text, next(self.world.numbers), next(self.world.numbers))
        self.world.written_by(text)
        return self._tag(self.mine)

    def _is(self, tag: str) -> bool:
        return self.world.record is not None and self._tag(self.world.record) == tag

    def _tag(self, record: Record) -> str:
        return f"{record.number}-{record.version}"


class SimulatedLease(Lease):
    """The real lease, with the kernel's locks of a world."""

    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(world.ledger, "s", host=machine)
        self.world = world
        self.machine = machine
        self.file = File(world, world.kind)
        self.turn = SimulatedLock(world)

    def take_lock(self) -> None:
        if self.world.locks == "none" or self.world.kind != "disk":
            return
        domain = self.machine.name if self.world.locks == "host" else ""
        holder = self.world.locked.get(domain)
        if holder is not None and not holder.dead:
            raise LeaseHeldError("locked")
        self.world.locked[domain] = self.world.running.process
        self.lock = 0

    def _free_lock(self) -> None:
        if self.lock is not None:
            self.lock = None
            self.world.locked.pop(self.machine.name if self.world.locks == "host" else "", None)


class World:
    """One schedule: `faults` holds what was wrong, `history` what happened."""

    def __init__(self, seed: int, kind: Kind, locks: Locks) -> None:
        self.draw = random.Random(f"{seed} {kind} {locks}")
        self.kind = kind
        self.locks = locks
        self.time = 0.0
        self.events: list[tuple[float, int, Task | Callable[[], None]]] = []
        self.numbers = itertools.count(1)
        self.turn = threading.Semaphore(0)
        self.record: Record | None = None
        self.ledger = Ledger("/nowhere")
        self.locked: dict[str, Process] = {}
        self.processes: list[Process] = []
        self.running: Task
        self.tasks: list[Task] = []
        self.holder = ""  # owner of the last lease that was taken
        self.writer = 0  # process that wrote last
        self.writers: list[int] = []  # processes in the order of their writes
        self.history: list[str] = []
        self.faults: list[str] = []
        self.counts = dict.fromkeys(("taken", "refused", "lost", "writes", "waited"), 0)
        self.slow = self.draw.choice((0.02, 0.2, 0.9))
        self.unreliable = self.draw.choice((0.0, 0.0, 0.005, 0.03))
        skews = (0.0, 120.0, -120.0, 86_400.0, -86_400.0)
        self.machines = [
            Machine(self, f"boot {i}", self.draw.uniform(0, 1e6), 1 + self.draw.uniform(-1e-4, 1e-4),
                    self.draw.choice(skews))
            for i in range(self.draw.choice((1, 2, 2, 3)))
        ]  # fmt: skip

    # Time

    def wait(self, seconds: float) -> None:
        """Let others run until this time has passed for the process of the running task."""
        task = self.running
        self.schedule(self.time + seconds, task)
        self.turn.release()
        task.turn.acquire()
        if task.process.dead:
            raise Ended

    def schedule(self, time: float, what: Task | Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), what))

    def spawn(self, process: Process, work: Callable[[], None]) -> Task:
        task = Task(self, process, work)
        self.tasks.append(task)
        task.thread.start()
        self.schedule(self.time, task)
        return task

    def run(self, until: float) -> None:
        """Let events happen in their order."""
        while self.events and self.events[0][0] <= until:
            time, _, what = heapq.heappop(self.events)
            self.time = max(self.time, time)
            if not isinstance(what, Task):
                what()
                continue
            wakes = what.process.wakes(self.time)
            if wakes > self.time and not what.process.dead:
                self.schedule(wakes, what)
                continue
            self.running = what
            what.turn.release()
            self.turn.acquire()
        self.time = max(self.time, until)

    def ask(self, effect: Callable[[], T]) -> T:
        """Return what the store does after a while, and answers after another; either may be lost."""
        request_delay, reply_delay = (self.draw.uniform(0, self.slow) for _ in range(2))
        lost = self.draw.random() < self.unreliable
        answer: list[T] = []
        if not lost or self.draw.random() < 0.5:
            self.schedule(self.time + request_delay, lambda: answer.append(effect()))
        self.wait(request_delay + reply_delay)
        if lost or not answer:
            raise OSError("no answer")
        return answer[0]

    # What drivers do

    def start(self, at: float, machine: Machine, life: float) -> None:
        """Start a driver that works for `life` seconds, and then gives the lease back or is killed."""
        process = Process(next(self.numbers), machine, began_at=at)
        for _ in range(self.draw.choice((0, 1, 1, 2))):
            begin = at + self.draw.uniform(0, 150)
            process.pauses.append((begin, begin + self.draw.choice((3.0, 31.0, 55.0, 66.0, 66.0, 90.0, 150.0))))
        process.pauses.sort()

        def begin() -> None:
            if self.time >= LENGTH:
                return
            if self.time < machine.frozen_until:
                self.schedule(machine.frozen_until, begin)
                return
            self.processes.append(process)
            self.spawn(process, lambda: self.drive(process, life))
            if self.draw.random() < 0.4:
                self.schedule(at + self.draw.uniform(0, life), lambda: self.kill(process))

        self.schedule(at, begin)

    def freeze(self, machine: Machine, seconds: float) -> None:
        """Stop a virtual machine with its clock, which then does not know that time has passed.

        Not between a look at the lease and the write that follows, nor within a beat on a store without conditions:
        these moments no clock can see.
        """
        here = [process for process in self.processes if process.machine is machine and not process.dead]
        if any(process.checking or (process.beating and self.kind == "store") for process in here):
            self.schedule(self.time + 0.05, lambda: self.freeze(machine, seconds))
            return
        self.note(f"{machine.name} is frozen for {seconds:.0f} s")
        machine.frozen_until = self.time + seconds
        for process in here:
            process.pauses.append((self.time, machine.frozen_until))

        def thaw() -> None:
            machine.offset -= seconds * machine.rate
            machine.frozen += seconds

        self.schedule(machine.frozen_until, thaw)

    def kill(self, process: Process) -> None:
        if not process.dead:
            self.note(f"{process.pid} dies")
            process.dead = True
            process.ended_at = self.time

    def drive(self, process: Process, life: float) -> None:
        """Be a driver, and the user who types its command again where it was refused."""
        taken = self.attempt(process, life)
        if not process.dead:
            process.dead = True
            process.ended_at = self.time
        if not taken and self.time < LENGTH:
            self.start(self.time + self.draw.choice((1.0, 10.0, 30.0)), process.machine, life)

    def attempt(self, process: Process, life: float) -> bool:
        """Take the lease, write until the end, and give it back; return whether it was taken."""
        lease = SimulatedLease(self, process.machine)
        began = self.time
        try:
            try:
                lease.take_lock()
                lease.take()
            except LeaseHeldError as error:
                self.counts["refused"] += 1
                self.note(f"{process.pid} refused: {error}")
                self.judge_refusal(process, began)
                return False
            except OSError:
                self.note(f"{process.pid} starts in vain")
                return False
            if self.record is not None and self.is_of(lease, self.record.text):
                self.holder = lease.owner
            self.note(f"{process.pid} takes it")
            self.counts["taken"] += 1
            self.judge_wait(process, began)
            self.spawn(process, lambda: self.beats(lease))
            ends = self.time + life
            while self.time < ends:
                self.wait(self.draw.choice((0.1, 2.0, 20.0, 50.0)))
                try:
                    process.checking = True
                    lease.check()
                    self.send(process, lease)
                except OSError:
                    continue
                finally:
                    process.checking = False
            lease.over.set()
            lease.file.remove(lease.tag)
            lease._free_lock()
            self.note(f"{process.pid} gives it back")
        except LeaseLostError:
            self.counts["lost"] += 1
            self.note(f"{process.pid} has lost it")
        except OSError:
            self.note(f"{process.pid} could not give it back")
        finally:
            lease.over.set()
            if lease.lock is not None and not process.dead:
                lease._free_lock()
        return True

    def beats(self, lease: Lease) -> None:
        while not lease.over.is_set():
            self.wait(BEAT)
            self.running.process.beating = True
            try:
                lease.renew()
            except LeaseLostError:
                return
            except OSError:
                continue
            finally:
                self.running.process.beating = False

    def send(self, process: Process, lease: Lease) -> None:
        """Write something: the request leaves at once, and is done even if the process sleeps by then."""
        owner = lease.owner

        def effect() -> None:
            self.counts["writes"] += 1
            if self.holder != owner:
                self.faults.append(f"{self.time:.2f}: {process.pid} writes after another one has taken the lease")
            if process.pid != self.writer and process.pid in self.writers:
                self.faults.append(f"{self.time:.2f}: {process.pid} writes again after {self.writer}")
            if process.pid != self.writer:
                self.writer = process.pid
                self.writers.append(process.pid)

        seconds = self.draw.uniform(0, self.slow)
        self.schedule(self.time + seconds, effect)
        self.wait(seconds)

    # What is right

    def is_of(self, lease: Lease, text: bytes) -> bool:
        """Return whether a lease's text names this driver; one that slept while it took it may have lost it again."""
        return leases._parsed(Content(text, "")).get("owner") == lease.owner

    def written_by(self, text: bytes) -> None:
        """Note whose lease the store has now."""
        owner = str(leases._parsed(Content(text, "")).get("owner"))
        if owner != self.holder:
            self.note(f"lease of {owner[:6]}")
        if self.kind == "s3":  # elsewhere it counts once the new driver has seen that it was the last to write
            self.holder = owner

    def rivals(self, process: Process, since: float) -> list[Process]:
        """Return the other drivers that could have been seen alive from `since` on."""
        seen = []
        for other in self.processes:
            if other is process or other.ended_at < since - LAG:
                continue
            # On one host a driver is refused at once; on another one it has to see a beat.
            last = self.time - SILENCE - process.machine.frozen if other.machine is process.machine else since
            slept = any(start <= last and end >= self.time for start, end in other.pauses)
            kept_out = self.kind == "disk" and (
                self.locks == "global" or (self.locks == "host" and other.machine is process.machine)
            )
            if not slept or kept_out:
                seen.append(other)
        return seen

    def judge_refusal(self, process: Process, began: float) -> None:
        """Note a fault where a driver was refused though no other one lived."""
        if not self.rivals(process, began):
            self.faults.append(f"{self.time:.2f}: {process.pid} refused with no rival")

    def judge_wait(self, process: Process, began: float) -> None:
        """Note a fault where a driver waited too long, its own sleep left out."""
        slept = sum(max(0.0, min(end, self.time) - max(start, began)) for start, end in process.pauses)
        waited = self.time - began - slept
        self.counts["waited"] = max(self.counts["waited"], round(waited))
        # Each request that fails makes a start fail, and the user repeats it: no more waits follow.
        if waited > LIMIT:
            self.faults.append(f"{self.time:.2f}: {process.pid} waited for {waited:.0f} s")

    def note(self, sentence: str) -> None:
        self.history.append(f"{self.time:9.2f} {sentence}")


def simulate(seed: int, kind: Kind, locks: Locks) -> World:
    """Return a world after its end: several drivers come and go, and a last one has to get the lease."""
    world = World(seed, kind, locks)
    for _ in range(world.draw.choice((2, 3, 4))):
        world.start(world.draw.uniform(0, 120), world.draw.choice(world.machines), world.draw.uniform(20, 140))
    # Two that start at once, of which no more than one may get in.
    moment = world.draw.uniform(0, 150)
    for _ in range(2):
        world.start(moment + world.draw.uniform(0, 0.1), world.draw.choice(world.machines), 60.0)
    if world.draw.random() < 0.3:
        machine = world.draw.choice(world.machines)
        seconds = world.draw.choice((40.0, 66.0, 120.0))
        world.schedule(world.draw.uniform(20, 150), lambda: world.freeze(machine, seconds))
    world.run(LENGTH)
    for process in world.processes:
        world.kill(process)
    world.run(LENGTH + 10)
    world.unreliable = 0.0
    world.note("the last driver starts")
    taken = world.counts["taken"]
    last = Process(next(world.numbers), world.draw.choice(world.machines), began_at=world.time)
    world.processes.append(last)
    world.spawn(last, lambda: world.drive(last, 100.0))
    world.run(world.time + LIMIT)
    if world.counts["taken"] == taken:
        world.faults.append("the last driver does not get in")
    world.kill(last)
    world.run(float("1e9"))
    for task in world.tasks:
        task.thread.join(5)
        if task.error is not None:
            world.faults.append(f"{type(task.error).__name__}: {task.error}")
    return world
