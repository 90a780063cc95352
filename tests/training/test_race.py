"""Of a step and its compiled form the faster one is taken, where compiling may pay."""

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from crelu_models.dropout import dropout_generators
from crelu_models.modules import build, initialise
from crelu_models.tables import S4
from sweeps.experiment.recipe import VGG
from sweeps.training import loop
from sweeps.training.gpu.graphs import Graphs
from sweeps.training.gpu.race import COMPILING_SECONDS, TRIED, Race
from sweeps.training.loop import Learner

MANY = 10**6  # steps to come


class Clock:
    """Recorder that calls what it was to record, and whose clock a test sets. What is compiled has no operations."""

    time = 0.0
    step = 0.0  # seconds of a call that is warmed up or recorded now
    looks = 0
    refuses = False

    def warm_up(self, call: Callable[[], Any]) -> Any:
        self.time += self.step
        return call()

    def record(self, call: Callable[[], Tensor], _: object) -> tuple[Callable[[], Any], Tensor]:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        scores = torch.empty(0, dtype=torch.bfloat16)
        return partial(self.replay, call, scores, self.step), scores

    def replay(self, call: Callable[[], Tensor], scores: Tensor, seconds: float) -> None:
        self.time += seconds
        given = call()
        scores.resize_(given.shape).copy_(given)

    def now(self) -> float:
        self.looks += 1
        self.time += 1e-6
        return self.time


class Steps:
    """Graphs whose steps take so many seconds by their form, with a race between these; `taken` are the forms."""

    def __init__(self, plain: float, compiled: float, error: str = "") -> None:
        self.took = {"plain": plain, "compiled": compiled}
        self.error = error
        self.clock = Clock()
        self.graphs = Graphs(self.clock)
        self.race = Race(self.graphs, self.plain, self.compiled)
        self.taken: list[str] = []
        self.warm_ups = 3

    def plain(self) -> None:
        self.take("plain")

    def compiled(self) -> None:
        if self.error:
            raise RuntimeError(self.error)
        self.take("compiled")

    def take(self, name: str) -> None:
        self.taken.append(name)
        self.clock.time += self.took[name]
        if self.taken.count(name) > self.warm_ups:
            self.graphs.replays[name] += 1

    def train(self, steps: int, remaining: int = MANY) -> list[str]:
        first = len(self.taken)
        for _ in range(steps):
            self.race.take(lambda form: form(), remaining)
        return self.taken[first:]


@pytest.mark.parametrize(("compiled", "winner"), [(0.002, "compiled"), (0.004, "plain")])
def test_the_faster_form_is_taken_after_both_were_timed(compiled: float, winner: str) -> None:
    steps = Steps(0.003, compiled)
    assert set(steps.train(4 + TRIED)) == {"plain"}
    assert steps.race.verdict == ""
    assert set(steps.train(4 + TRIED)) == {"compiled"}
    assert set(steps.train(100)) == {winner}
    assert steps.race.verdict == f"{'not ' * (winner == 'plain')}compiled: {1e3 * compiled:g} ms a step for 3"


def test_a_net_is_compiled_only_where_the_steps_to_come_may_pay_for_it() -> None:
    enough = int(COMPILING_SECONDS / 0.003 / 0.25) + 1
    steps = Steps(0.003, 0.001)
    assert set(steps.train(200, remaining=enough - 20)) == {"plain"}
    assert steps.race.verdict == "not compiled: too few steps to pay for it"
    assert "compiled" in Steps(0.003, 0.001).train(200, remaining=enough)


def test_what_is_done_between_two_steps_is_not_counted() -> None:
    """As where an epoch ends, or another net of a pack is compiled."""
    steps = Steps(0.003, 0.002)
    for step in range(100):
        steps.train(1)
        steps.clock.time += 7.0 if step > 40 else 0.0
    assert steps.race.verdict == "compiled: 2 ms a step for 3"


def test_steps_that_are_not_replayed_are_not_timed() -> None:
    """As where another stage of the weight decay begins, and the step is recorded again."""
    steps = Steps(0.003, 0.002)
    steps.train(4 + TRIED + 10)
    steps.took["compiled"] = 1.0
    steps.warm_ups = 10 + 20
    steps.train(21)
    steps.took["compiled"] = 0.002
    steps.train(TRIED)
    assert steps.race.verdict == "compiled: 2 ms a step for 3"


def test_a_device_that_nothing_is_timed_on_is_not_waited_for() -> None:
    steps = Steps(0.003, 0.002)
    steps.warm_ups = MANY
    steps.train(100)
    assert steps.clock.looks == 0
    assert Steps(0.003, 0.002).train(300)[-1] == "compiled"


def test_a_compiled_step_that_failed_is_freed_before_the_plain_one() -> None:
    """As where memory has run out."""
    steps = Steps(0.003, 0.001)
    steps.train(4 + TRIED)
    made: list[weakref.ref[torch.Tensor]] = []

    def take(form: Callable[[], None]) -> None:
        if form == steps.compiled:
            activations = torch.zeros(8)
            made.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert [reference() for reference in made] == [None]

    steps.race.take(take, MANY)
    assert steps.race.verdict == "not compiled: OutOfMemoryError: CUDA out of memory"


def test_a_net_that_cannot_be_compiled_goes_on_as_it_is() -> None:
    steps = Steps(0.003, 0.001, "no compiler\nand more")
    assert steps.train(200) == ["plain"] * 200
    assert steps.race.verdict == "not compiled: RuntimeError: no compiler"


def test_an_error_of_the_plain_form_is_raised() -> None:
    steps = Steps(0.003, 0.001)
    with pytest.raises(ZeroDivisionError):
        steps.race.take(lambda _: 1 / 0, MANY)
    assert steps.race.verdict == ""


def test_without_graphs_nothing_is_compiled() -> None:
    steps = Steps(0.003, 0.001)
    steps.train(10)
    steps.graphs.clear("memory ran out")
    assert set(steps.train(200)) == {"plain"}
    assert steps.race.verdict == "not compiled: steps are not replayed"


@pytest.fixture
def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """Let torch's own operations stand in for compiled ones; return the shapes of the pictures that those get."""
    calls: list[torch.Size] = []

    def backend(graph: Any, _: object) -> Callable[..., Any]:
        return lambda *given: calls.append(given[0].shape) or graph.forward(*given)

    monkeypatch.setattr(loop, "Compiled", partial(loop.Compiled, backend=backend))
    yield calls
    torch._dynamo.reset()


def make_learner(compiles: bool) -> tuple[Learner, Clock]:
    model = build(S4.width(0.0625), 10)
    initialise(model, S4.width(0.0625), "he_fan_in", 0)
    recipe = dataclasses.replace(VGG, lr=1e-3, batch=8, precision="bf16")
    clock = Clock()
    graphs = Graphs(clock)
    learner = Learner(model, recipe, seed=3, steps=10**4, precision="bf16", graphs=graphs, compiles=compiles)
    return learner, clock


def test_a_learner_that_races_takes_the_same_steps_by_either_form(compiled_calls: list[torch.Size]) -> None:
    learners = []
    for compiles in (False, True):
        learner, clock = make_learner(compiles)
        drawn = torch.Generator().manual_seed(0)
        forms = []
        for _ in range(2 * (TRIED + 4) + 16):
            before = learner.graphs.replays.copy()
            clock.step = 0.05 if learner.race is not None and learner.race.seconds else 0.1
            size = 5 if len(forms) % 20 == 19 else 8
            learner.step(torch.randn(size, 3, 32, 32, generator=drawn), torch.randint(10, (size,), generator=drawn))
            forms.extend(learner.graphs.replays - before or ["eager"])
        learners.append((learner, forms))
    (plain, _), (raced, forms) = learners
    assert raced.steps_by == "graph; compiled: 50 ms a step for 100"
    assert plain.steps_by == "graph"
    assert forms[78:81] == ["_compiled_step", "_whole_step", "_compiled_step"]  # only full steps are compiled
    assert {shape[0] for shape in compiled_calls} == {8}
    assert raced.compiled is not None
    assert len(raced.compiled.copies) == len(raced.net.copies) > 0
    ours, theirs = raced.tensors(), plain.tensors()
    assert [key for key, value in ours.items() if not torch.equal(value, theirs[key])] == []


def test_a_compiled_net_that_cannot_be_recorded_leaves_the_plain_step_its_graph(
    compiled_calls: list[torch.Size],
) -> None:
    learner, clock = make_learner(True)
    clock.step = 0.1
    drawn = torch.Generator().manual_seed(0)

    def train(steps: int) -> None:
        for _ in range(steps):
            learner.step(torch.randn(8, 3, 32, 32, generator=drawn), torch.randint(10, (8,), generator=drawn))

    replays = learner.graphs.replays
    train(TRIED + 4 + 3)
    held = dropout_generators(learner.model)
    assert (len(compiled_calls), replays) == (3, {"_whole_step": TRIED + 1})
    clock.refuses = True
    train(1)
    clock.refuses = False
    train(3)
    assert learner.steps_by == "graph; not compiled: RuntimeError: operation not permitted when stream is capturing"
    assert replays == {"_whole_step": TRIED + 2}  # recorded again, after three steps, for the generators are others
    assert not set(map(id, held)) & set(map(id, dropout_generators(learner.model)))
