"""Two forms of a step, of which the faster one is taken: as it is, and by a net that torch.compile has made anew."""

from __future__ import annotations

from collections.abc import Callable
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
        self.epoch = -1  # of the replays that are being timed; between two epochs other work is done
        self.began = 0.0
        self.first = 0
        self.choice: Call | None = None
        self.verdict = ""

    def take(self, take: Callable[[Call], T], epoch: int, remaining: int) -> T:
        """Take a step of an epoch by the form whose turn it is, and return what it gives; `remaining` are to come.

        What a compiler says against the net ends the race, and the step is taken as it is.
        """
        if self.choice is None:
            self._time(epoch, remaining)
        form = self.choice or self.forms[len(self.seconds)]
        try:
            return take(form)
        except Exception as error:
            if form == self.forms[0]:
                raise
            self.give_up(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")
            return take(self.forms[0])

    def give_up(self, why: str) -> None:
        """Take the plain form from now on."""
        self._end(self.forms[0], f"not compiled: {why}")

    def _time(self, epoch: int, remaining: int) -> None:
        """Begin or end the timing of a form, once it is replayed."""
        recorder = self.graphs.recorder
        if recorder is None:
            self.give_up("steps are not replayed")
            return
        replays = self.graphs.replays[name_of(self.forms[len(self.seconds)])]
        if not replays:
            return
        if epoch != self.epoch:
            self.epoch, self.first, self.began = epoch, replays, recorder.now()
        elif replays - self.first >= TRIED:
            self.seconds.append((recorder.now() - self.began) / TRIED)
            self.epoch = -1
            self._judge(remaining)

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
