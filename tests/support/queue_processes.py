"""Simulated processes on one clock: threads of which one runs at a time, in an order that a seed decides.

The code of a process is ordinary blocking code. It gives way where it pauses, and may be killed or frozen there.
"""

from __future__ import annotations

import heapq
import random
import threading
import traceback
from collections.abc import Callable


class Killed(BaseException):
    """The end of a killed process; nothing that it does after this has an effect."""


class Process:
    """Process of the simulation: a thread that runs while it holds the baton."""

    def __init__(self, name: str, pid: int, host: str, skew: float) -> None:
        """Name a process that does not run yet; the clock of its host is `skew` seconds ahead."""
        self.name = name
        self.pid = pid
        self.host = host
        self.skew = skew
        self.baton = threading.Lock()
        self.baton.acquire()
        self.killed = False
        self.ended = False
        self.frozen_until = 0.0
        self.was_silent = False  # for so long that others may have counted it as dead
        self.ticket = 0  # of its next turn; earlier tickets are void

    @property
    def alive(self) -> bool:
        """Return whether the process is neither killed nor at its end."""
        return not (self.killed or self.ended)


class Processes:
    """Processes, their clock, and what comes next. The thread that makes it is the first process, and never dies."""

    def __init__(self, seed: int) -> None:
        """Start the clock."""
        self.random = random.Random(seed)
        self.now = 0.0
        self.turns: list[tuple[float, int, int, Process | Callable[[], None]]] = []
        self.count = 0
        self.history: list[str] = []
        self.crashes: list[str] = []
        self.everyone: list[Process] = []
        self.threads: list[threading.Thread] = []
        self.main = Process("main", 1, "here", 0.0)
        self.current = self.main

    def log(self, sentence: str) -> None:
        """Add a line to the history."""
        self.history.append(f"{self.now:8.2f} {self.current.name:<12} {sentence}")

    def spawn(
        self, name: str, function: Callable[[], None], host: str = "here", skew: float = 0.0, pid: int = 0
    ) -> Process:
        """Start a process, or a thread of the process `pid`."""
        process = Process(name, pid or 100 + len(self.everyone), host, skew)

        def run() -> None:
            process.baton.acquire()
            try:
                if not process.killed:
                    function()
            except Killed:
                pass
            except BaseException:
                self.crashes.append(f"{process.name}: {traceback.format_exc()}")
            process.ended = True
            self._hand_over()

        thread = threading.Thread(target=run, name=name, daemon=True)
        self.everyone.append(process)
        self.threads.append(thread)
        thread.start()
        self._enqueue(process, self.now + self.random.random() * 0.1)
        return process

    def pause(self, seconds: float) -> None:
        """Let the others run for so long; raises Killed where the process has been killed."""
        me = self.current
        if me.killed:
            raise Killed
        self._enqueue(me, self.now + seconds)
        self._switch(me)

    def park(self) -> None:
        """Let the others run until `wake`; raises Killed where the process has been killed."""
        me = self.current
        if me.killed:
            raise Killed
        me.ticket += 1
        self._switch(me)

    def wake(self, process: Process) -> None:
        """Let a parked process go on."""
        if process.alive:
            self._enqueue(process, self.now + self.random.random() * 0.2)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function that does not pause, in so many seconds."""
        self.count += 1
        heapq.heappush(self.turns, (self.now + seconds, self.count, 0, function))

    def kill(self, process: Process) -> None:
        """Kill another process: its code is unwound at once, without effects."""
        if process.alive:
            process.killed = True
            self._enqueue(process, self.now)

    def freeze(self, process: Process, seconds: float) -> None:
        """Stop a process for so long."""
        process.frozen_until = max(process.frozen_until, self.now + seconds)

    def close(self) -> None:
        """Kill all processes and wait until their threads have ended."""
        for process in self.everyone:
            process.frozen_until = 0.0
            self.kill(process)
        while any(not process.ended for process in self.everyone):
            self.pause(1.0)
        for thread in self.threads:
            thread.join()

    def _enqueue(self, process: Process, when: float) -> None:
        process.ticket += 1
        self.count += 1
        heapq.heappush(self.turns, (when, self.count, process.ticket, process))

    def _switch(self, me: Process) -> None:
        """Give the baton to whose turn it is, and wait for the next turn."""
        following = self._next()
        if following is not me:
            self.current = following
            following.baton.release()
            me.baton.acquire()
        if me.killed:
            raise Killed

    def _hand_over(self) -> None:
        self.current = self._next()
        self.current.baton.release()

    def _next(self) -> Process:
        """Return the process whose turn is next, once the calls before it are made."""
        while True:
            when, _, ticket, what = heapq.heappop(self.turns)
            if isinstance(what, Process):
                if what.ended or ticket != what.ticket:
                    continue
                if what.frozen_until > when and not what.killed:
                    self._enqueue(what, what.frozen_until)
                    continue
                self.now = max(self.now, when)
                return what
            self.now = max(self.now, when)
            what()
