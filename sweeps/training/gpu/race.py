"""Race of a step as it is with the step of the compiled net: the faster one is taken."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TypeVar

from sweeps.training.gpu.graphs import Call, Graphs, name_of

T = TypeVar("T")

TRIED = 30  # replays of a form that are timed
COMPILING_SECONDS = 30.0  # of a net; with what was compiled before, two
SAVED = 0.25  # of a step, where compiling helps: what may be expected before it is tried


class Race:
    """Choice between a step as it is and its compiled form, by the time of their replays from graphs.

    The first form is replayed and timed, then the other where the steps to come may pay for compiling it. `verdict`
    says how it ended; "" while it has not.
    """

    def __init__(self, graphs: Graphs, plain: Call, compiled: Call) -> None:
        """Begin with the plain form."""
        self.graphs = graphs
        self.forms = plain, compiled
        self.seconds: list[float] = []  # of a step, by the forms that were timed
        self.replays: list[float] = []  # seconds of those of the form that is timed
        self.choice: Call | None = None
        self.verdict = ""

    def take(self, take: Callable[[Call], T], remaining: int) -> T:
        """Take a step by the form whose turn it is, and return what it gives; `remaining` are to come, with this.

        What a compiler says against the net ends the race, and the step is taken as it is.
        """
        if self.choice is None and self.graphs.recorder is None:
            self.give_up("steps are not replayed")
        if self.choice is not None:
            return take(self.choice)
        if not self.seconds:
            return self._timed(take, remaining)
        given, error = self._tried(take, remaining)
        if given:
            return given[0]
        # Not while the error is handled: its trace holds all that the step has made.
        self.give_up(error)
        return take(self.forms[0])

    def give_up(self, why: str) -> None:
        """Take the plain form from now on."""
        self._end(self.forms[0], f"not compiled: {why}")

    def _tried(self, take: Callable[[Call], T], remaining: int) -> tuple[list[T], str]:
        """Take a step by the compiled form; return what it gives, and the error that it ended with."""
        try:
            return [self._timed(take, remaining)], ""
        except Exception as error:
            return [], f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

    def _timed(self, take: Callable[[Call], T], remaining: int) -> T:
        """Take a step by the form whose turn it is, and time it by itself once it is replayed.

        Between two steps views are made and nets evaluated; and others of a pack take theirs, and compile.
        """
        recorder = self.graphs.recorder
        assert recorder is not None
        form = self.forms[len(self.seconds)]
        replays = self.graphs.replays[name_of(form)]
        if not replays:
            return take(form)
        began = recorder.now()
        given = take(form)
        if self.graphs.replays[name_of(form)] > replays:
            self.replays.append(recorder.now() - began)
        if len(self.replays) == TRIED:
            self.seconds.append(median(self.replays))  # a stage of the decay begins with another recording
            self.replays.clear()
            self._judge(remaining)
        return given

    def _judge(self, remaining: int) -> None:
        """Decide, where all that is needed was timed."""
        plain = self.seconds[0]
        if len(self.seconds) == 1:
            if SAVED * plain * remaining < COMPILING_SECONDS:
                self.give_up("too few steps to pay for it")
            return
        compiled = self.seconds[1]
        faster = compiled < plain
        words = f"{'' if faster else 'not '}compiled: {1e3 * compiled:.3g} ms a step for {1e3 * plain:.3g}"
        self._end(self.forms[faster], words)

    def _end(self, choice: Call, verdict: str) -> None:
        self.choice = choice
        self.verdict = verdict
