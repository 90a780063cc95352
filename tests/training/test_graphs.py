"""A replayed step is the step bit for bit, and what cannot be replayed is taken as it comes, with a reason."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crelu_data.write import prepare
from crelu_models import activations
from crelu_models.dropout import Dropout, dropout_generators, renew_generators
from crelu_models.model import Model
from crelu_models.tables import S2
from sweeps.experiment.recipe import ALLCONV, Recipe, Stage
from sweeps.store.ledger import Ledger
from sweeps.training import run_trial, trainer, views
from sweeps.training.gpu.graphs import Graphs, open_graphs, pays
from sweeps.training.loop import DivergedError, Learner
from sweeps.training.runtime import hardware
from tests.support.op_recorder import OpRecorder
from tests.support.trials import LARGE, SMALL, artifact_hashes, runtime_config, trial_of

SGD = dataclasses.replace(
    ALLCONV, batch=8, epochs=20, schedule_epochs=20, warmup_epochs=2.0, lr=0.05, precision="fp32",
    stages=(Stage(1, 1.0), Stage(2, 0.5), Stage(3, 0.1, 0.0)),
)  # fmt: skip
RECIPES = {
    "sgd": SGD,
    "dampened, not cut": dataclasses.replace(SGD, dampening=0.9, clip_norm=0.0),
    "adam": dataclasses.replace(SGD, optimiser="adam", lr=1e-3),
    "bf16": dataclasses.replace(SGD, precision="bf16"),
    "modern": dataclasses.replace(SGD, optimiser="adamw", lr=1e-3, label_smoothing=0.1, ema=0.9),
}


@pytest.fixture(autouse=True)
def _no_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the loops of Numba: they write to addresses, which the stand-in does not see."""
    monkeypatch.setattr(activations, "_loops", lambda: None)


def make_learner(recipe: Recipe, recorder: OpRecorder | None) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activations.CReLU(), Dropout(0.5, "a"), nn.Flatten(),
        nn.Linear(32, 8), Dropout(0.25, "b"), nn.Linear(8, 3),
    )  # fmt: skip
    return Learner(model, recipe, seed=3, steps=6, precision=recipe.precision, graphs=Graphs(recorder))


def batch(number: int, count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(count, 3, 4, 4, generator=generator), torch.randint(3, (count,), generator=generator)


def epoch(learner: Learner, number: int, first: int = 0) -> list[Any]:
    """Train from step `first` of an epoch whose last batch is short; return what it is measured by."""
    for step in range(first, 6):
        learner.step(*batch(10 * number + step, 8 if step < 5 else 5))
    rate = learner.scores(batch(99, 16)[0], 1000), learner.scores(batch(98, 7)[0], 1000)
    return [*rate, torch.tensor(learner.end_epoch())]


def same(learner: Learner, other: Learner) -> bool:
    ours, theirs = learner.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", RECIPES)
def test_replayed_steps_are_the_steps_bit_for_bit(name: str) -> None:
    recorder = OpRecorder()
    eager, replayed = make_learner(RECIPES[name], None), make_learner(RECIPES[name], recorder)
    for number in range(6):
        expected, measured = epoch(eager, number), epoch(replayed, number)
        assert all(torch.equal(a, b) for a, b in zip(expected, measured, strict=True)), number
        assert same(eager, replayed), number
    # Recorded are full steps at either decay, the short step that comes once an epoch, and both scores.
    assert recorder.recorded == 5
    assert replayed.graphs.replays == {"_whole_step": (10 - 3) + (20 - 3) + (4 - 3), "_scores": 2 * (6 - 3)}
    assert (eager.steps_by, replayed.steps_by) == ("eager", "graph")


def test_a_recording_goes_on_after_a_later_one_of_another_length() -> None:
    """All recordings draw from one set of generators: those of the first are seeded when the second is there."""
    recorder = OpRecorder()
    recipe = dataclasses.replace(SGD, schedule="cosine")
    eager, replayed = make_learner(recipe, None), make_learner(recipe, recorder)
    for number in range(6):
        expected, measured = epoch(eager, number), epoch(replayed, number)
        assert all(torch.equal(a, b) for a, b in zip(expected, measured, strict=True)), number
        assert same(eager, replayed), number
    assert recorder.recorded == 4  # its decay does not change: full steps, the short step, and both scores
    assert replayed.graphs.replays == {"_whole_step": (30 - 3) + (6 - 3), "_scores": 2 * (6 - 3)}


def test_a_learner_restored_between_replays_goes_on_as_the_one_that_was_saved() -> None:
    eager, replayed = make_learner(SGD, None), make_learner(SGD, OpRecorder())
    for learner in (eager, replayed):
        epoch(learner, 0)
        for step in range(4):
            learner.step(*batch(10 + step))
    saved = {name: value.clone() for name, value in replayed.tensors().items()}
    epoch(replayed, 5, 4)
    replayed.restore(saved, 1, 4)
    assert epoch(replayed, 1, 4)[2].tolist() == epoch(eager, 1, 4)[2].tolist()
    assert same(eager, replayed)


def test_a_net_whose_course_depends_on_numbers_is_trained_as_it_comes() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x if x.sum() > 0 else x

    eager, replayed = make_learner(SGD, None), make_learner(SGD, OpRecorder())
    for learner in (eager, replayed):
        learner.model.append(Looks())
        epoch(learner, 0)
        epoch(learner, 1)
    assert same(eager, replayed)
    assert not replayed.graphs.replays
    assert replayed.steps_by == "eager: RuntimeError: operation not permitted when stream is capturing"


def test_scores_that_cannot_be_recorded_end_the_replays_of_steps_and_the_record_says_so() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training or x.sum() > 0 else 2 * x

    eager, replayed = make_learner(SGD, None), make_learner(SGD, OpRecorder())
    for learner in (eager, replayed):
        learner.model.append(Looks())
        for number in range(6):
            epoch(learner, number)
    assert same(eager, replayed)
    # A recording of scores fails after the fourth epoch, and the two after it are taken as they come.
    assert replayed.graphs.replays == {"_whole_step": (10 - 3) + (10 - 3)}
    assert replayed.steps_by == "graph, until RuntimeError: operation not permitted when stream is capturing"


def test_replayed_scores_do_not_make_steps_replayed() -> None:
    learner = make_learner(dataclasses.replace(SGD, epochs=1), OpRecorder(0.01))
    for _ in range(6):
        learner.scores(batch(99, 16)[0], 10**6)
    assert learner.graphs.replays == {"_scores": 3}
    assert learner.steps_by == "eager: too few steps for a graph to pay"


def test_generators_that_a_failed_recording_held_are_given_up() -> None:
    learner = make_learner(SGD, OpRecorder())
    learner.step(*batch(0))
    old = [layer.generator for layer in learner.model if isinstance(layer, Dropout)]
    states = [generator.initial_seed() for generator in old]
    renew_generators(learner.model)
    new = dropout_generators(learner.model)
    assert [generator.initial_seed() for generator in new] == states
    assert not {id(generator) for generator in new} & {id(generator) for generator in old}
    assert new == [layer.generator for layer in learner.model if isinstance(layer, Dropout)]


def test_generators_are_renewed_after_a_recording_that_failed() -> None:
    renewed: list[int] = []

    def refused(*_: Any) -> Any:
        raise ValueError("a net's own error\nmore of it")

    graphs = Graphs(OpRecorder())
    graphs.recorder.record = refused  # type: ignore[union-attr, method-assign]
    for number in range(6):
        graphs.call(torch.neg, torch.ones(2), remaining=1000, renew=lambda n=number: renewed.append(n))
    assert renewed == [3]
    assert graphs.why_not == "ValueError: a net's own error"


def test_an_optional_recording_that_fails_leaves_the_others_theirs() -> None:
    graphs = Graphs(OpRecorder())
    renewed: list[int] = []

    def looks(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    for _ in range(5):
        graphs.call(torch.neg, torch.ones(2), remaining=1000)
    for _ in range(3):
        graphs.call(looks, torch.ones(2), remaining=1000, optional=True)
    with pytest.raises(RuntimeError, match="capturing"):
        graphs.call(looks, torch.ones(2), remaining=1000, renew=lambda: renewed.append(1), optional=True)
    assert renewed == [1]
    for _ in range(5):  # recorded again, since it may draw from other generators now
        graphs.call(torch.neg, torch.ones(2), remaining=1000)
    assert graphs.replays == {"neg": 2 + 2}
    assert (graphs.failure, graphs.mode(torch.neg)) == ("", "graph")


def test_a_training_that_diverges_under_replays_is_seen() -> None:
    learner = make_learner(dataclasses.replace(SGD, clip_norm=0.0, warmup_epochs=0.0, lr=1e30), OpRecorder())
    with pytest.raises(DivergedError, match="epoch 1"):
        epoch(learner, 0)
    assert learner.graphs.replays["_whole_step"]


def test_steps_in_parts_are_taken_as_they_come() -> None:
    learner = make_learner(SGD, OpRecorder())
    learner.micro_batches = 2
    for step in range(6):
        learner.step(*batch(step))
    assert not learner.graphs.replays


@pytest.mark.parametrize(
    ("calls", "seconds", "worth"), [(10_000, 1e-3, True), (100, 1e-3, False), (10, 1.0, True), (1, 1.0, False)]
)
def test_a_recording_is_made_where_it_pays(calls: int, seconds: float, worth: bool) -> None:
    assert pays(calls, seconds) is worth
    recorder = OpRecorder(seconds)
    graphs = Graphs(recorder)
    for _ in range(5):
        graphs.call(torch.relu, torch.ones(3), remaining=calls)
    assert (recorder.recorded, graphs.replays.total()) == ((1, 2) if worth else (0, 0))
    assert graphs.mode(torch.relu) == ("graph" if worth else "eager: too few steps for a graph to pay")


def test_recordings_are_by_shape_type_and_layout() -> None:
    recorder = OpRecorder()
    graphs = Graphs(recorder)
    x = torch.randn(2, 3, 4, 4)
    inputs = [x, x.contiguous(memory_format=torch.channels_last), x.double(), x[:1]]
    for _ in range(5):
        for value in inputs:
            result = graphs.call(torch.relu, value, remaining=1000)
            assert result is not None
            assert torch.equal(result, value.relu())
            assert result.stride() == value.relu().stride()
    assert recorder.recorded == 4


def test_a_result_stays_when_the_next_call_is_replayed() -> None:
    graphs = Graphs(OpRecorder())
    results = [graphs.call(torch.neg, torch.full((2,), float(number)), remaining=1000) for number in range(6)]
    assert [result.tolist() for result in results if result is not None] == [[-n, -n] for n in range(6)]


# Trials


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("data")
    for name in (SMALL, LARGE):
        prepare(name, where)
    return where


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Graphs]:
    """Let trainers record on the CPU; return their graphs."""
    opened: list[Graphs] = []

    def on_cpu(device: torch.device, why_not: str) -> Graphs:
        opened.append(Graphs(None if why_not else OpRecorder(), why_not))
        return opened[-1]

    monkeypatch.setattr(trainer, "open_graphs", on_cpu)
    return opened


def test_a_trial_ends_as_without_graphs_also_after_a_stop(
    data: Path, tmp_path: Path, recorders: list[Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of("allconv with dropout")
    replayed = runtime_config(data, tmp_path / "replayed")
    steps = iter([False] * 9 + [True])
    assert run_trial.run_trial(trial, replayed, lambda *_: None, lambda: next(steps)) is None
    assert run_trial.run_trial(trial, replayed, lambda *_: None) is not None
    assert [graphs.mode(Learner._whole_step) for graphs in recorders] == ["graph", "graph"]
    plain = runtime_config(data, tmp_path / "plain", graphs=False)
    run_trial.run_trial(trial, plain, lambda *_: None)
    assert (recorders[-1].replays, recorders[-1].why_not) == ({}, "not asked for")
    assert artifact_hashes(tmp_path / "plain", trial) == artifact_hashes(tmp_path / "replayed", trial)


def test_a_recording_that_fails_is_an_event_of_the_trial(
    data: Path, tmp_path: Path, recorders: list[Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise RuntimeError("a look at a number")

    monkeypatch.setattr(OpRecorder, "record", refused)
    trial = trial_of("allconv with dropout")
    result = run_trial.run_trial(trial, runtime_config(data, tmp_path), lambda *_: None)
    assert result is not None
    assert result["events"] == ["no CUDA graph: RuntimeError: a look at a number"]
    assert not recorders[0].replays


@pytest.mark.parametrize(("size", "replays"), [(8, 2 * 11), (20, 11)])
def test_ten_crops_are_replayed_from_full_and_short_batches(
    size: int, replays: int, data: Path, tmp_path: Path, recorders: list[Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 12 pictures that are held out, in 3 epochs, come as those of the test do: 8 and 4, or a short batch of 12."""
    for module in (trainer, run_trial, views):
        monkeypatch.setattr(module, "BATCH", size)
    trial = trial_of("All-CNN-B")
    for name, graphs in (("replayed", True), ("eager", False)):
        run_trial.run_trial(trial, runtime_config(data, tmp_path / name, graphs=graphs), lambda *_: None)
    assert [opened.replays["_scores"] for opened in recorders] == [replays, 0]
    assert artifact_hashes(tmp_path / "replayed", trial) == artifact_hashes(tmp_path / "eager", trial)


MODEL = Model("tests.support.user_models:small", size=32)


@pytest.mark.parametrize(
    ("changes", "why_not"),
    [
        ({}, ""),
        ({"trial": SimpleNamespace(net=MODEL)}, "the net is a model, whose own draws no recording can key"),
        ({"config": SimpleNamespace(graphs=False)}, "not asked for"),
        ({"no_graphs": "memory ran out"}, "memory ran out"),
        ({"ranks": SimpleNamespace(size=2)}, "2 ranks exchange messages within a step"),
        ({"state": SimpleNamespace(parts=4)}, "a step is taken in 4 parts"),
    ],
)
def test_what_speaks_against_graphs_is_said(changes: dict[str, Any], why_not: str) -> None:
    training = {
        "trial": SimpleNamespace(net=S2), "config": SimpleNamespace(graphs=True), "no_graphs": "",
        "ranks": SimpleNamespace(size=1), "state": SimpleNamespace(parts=1),
    }  # fmt: skip
    assert trainer.Trainer._why_no_graphs(SimpleNamespace(**(training | changes))) == why_not  # type: ignore[arg-type]


def begun(data: Path, ledger: Path) -> trainer.Trainer:
    trial = trial_of("allconv with dropout")
    config = runtime_config(data, ledger)
    context = trainer.PackContext()
    splits = run_trial.open_splits(trial, config)
    return trainer.Trainer(trial, config, Ledger(str(ledger)), splits, lambda: False, context, trainer.ALONE)


def test_a_trial_that_has_failed_before_goes_without_graphs_and_kernels(
    data: Path, tmp_path: Path, recorders: list[Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "takes_kernels", True)
    assert begun(data, tmp_path).graphs.why_not == ""
    assert activations.takes_kernels
    Ledger(str(tmp_path)).add_attempt(trial_of("allconv with dropout").key, {"error": "a device error"})
    assert begun(data, tmp_path).graphs.why_not == "an attempt has failed before"
    assert not activations.takes_kernels


def test_where_memory_runs_out_graphs_are_given_up_before_a_step_is_divided(
    data: Path, tmp_path: Path, recorders: list[Graphs]
) -> None:
    training = begun(data, tmp_path)
    training.graphs.replays["_whole_step"] = 1
    training.shrink("out of memory")
    assert (training.state.parts, training.graphs.why_not) == (1, "memory ran out")
    assert training.learner.graphs is training.graphs
    training.shrink("out of memory")
    assert (training.state.parts, training.learner.micro_batches) == (2, 2)
    assert training.graphs.recorder is None


def test_a_cpu_records_nothing_and_a_gpu_says_how_it_took_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_graphs(torch.device("cpu"), "").recorder is None
    assert open_graphs(torch.device("cuda"), "not asked for").recorder is None
    config = runtime_config(Path(), Path())
    assert "steps" not in hardware(torch.device("cpu"), config, steps="graph")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 << 30))
    on_gpu = hardware(torch.device("cuda"), config, steps="eager: not asked for")
    assert (on_gpu["device"], on_gpu["memory"]) == ("NVIDIA L4", str(24 << 30))
    assert on_gpu["steps"] == "eager: not asked for"
