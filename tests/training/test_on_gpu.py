"""On a GPU: replayed steps, packs on streams and resumed trials have the bits of the eager step, alone, left alone."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crelu_data.write import prepare
from crelu_models import activations
from crelu_models.modules import build, initialise
from crelu_models.spec import Net
from crelu_models.tables import S2, S4, S8
from sweeps.execution.pack import perform_pack
from sweeps.execution.verify_resume import shortened, verify
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, VGG, Recipe
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.gpu import race
from sweeps.training.gpu.graphs import Graphs, open_graphs
from sweeps.training.loop import Learner
from sweeps.training.run_trial import run_trial
from tests.support.trials import artifact_hashes, runtime_config

ROOT = Path(__file__).resolve().parents[2]
SET = "synthetic:size=32,classes=10,train=2000,test=300"
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def gpu_test(function):  # type: ignore[no-untyped-def]
    for mark in on_gpu:
        function = mark(function)
    return function


def make_learner(net: Net, recipe: Recipe, size: int, graphs: Graphs, compiles: bool = False) -> Learner:
    model = build(net, 10, size)
    initialise(model, net, recipe.init, 0)
    model = model.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Learner(model, recipe, seed=5, steps=1000, precision="bf16", graphs=graphs, compiles=compiles)


def batch(step: int, size: int, count: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(step)
    images = torch.randn(count, 3, size, size, generator=drawn).contiguous(memory_format=torch.channels_last)
    return images.cuda(), torch.randint(10, (count,), generator=drawn).cuda()


@gpu_test
@pytest.mark.parametrize(
    ("net", "recipe", "size"),
    [
        (S2.crelu(1, 2, 3).dropout(0.5, "pool1"), ALLCONV, 32),
        (S4.dropout(0.3, "conv3"), VGG, 32),
        (S8.crelu(1, 4, 7, width=0.5).dropout(0.5, 9), IMAGENET_ADAM, 96),
    ],
    ids=["allconv", "VGG", "All-CNN-B by Adam"],
)
def test_200_replayed_steps_are_200_eager_steps_by_torchs_kernels_bit_for_bit(
    net: Net, recipe: Recipe, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    recipe = dataclasses.replace(recipe, batch=32, lr=recipe.lr / 100)
    device = torch.device("cuda")
    pair = [make_learner(net, recipe, size, graphs) for graphs in (Graphs(None), open_graphs(device, ""))]
    for step in range(200):
        images, labels = batch(step, size, 32 if step % 10 < 9 else 20)
        for takes_kernels, learner in enumerate(pair):  # the first by none of ours
            monkeypatch.setattr(activations, "takes_kernels", bool(takes_kernels))
            learner.step(images, labels)
        if step % 10 == 9:
            scores = [learner.scores(images, 1000) for learner in pair]
            assert torch.equal(*scores), step
            assert pair[0].end_epoch() == pair[1].end_epoch(), step
    eager, replayed = (learner.tensors() for learner in pair)
    assert pair[1].steps_by == "graph"
    assert [name for name in eager if not torch.equal(eager[name], replayed[name])] == []


@gpu_test
@pytest.mark.parametrize(("net", "recipe"), [(S2.crelu(1, 2, 3).dropout(0.5, "pool1"), ALLCONV), (S4, VGG)])
def test_a_compiled_net_is_replayed_and_learns_as_the_net(
    net: Net, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "COMPILING_SECONDS", 0.0)
    recipe = dataclasses.replace(recipe, batch=32, lr=recipe.lr / 100, epochs=10**4)
    losses = []
    for compiles in (False, True):
        learner = make_learner(net, recipe, 32, open_graphs(torch.device("cuda"), ""), compiles)
        for step in range(3 * race.TRIED):
            learner.step(*batch(step, 32, 32))
        losses.append(learner.tensors()["sums"][0].item())
        assert "ms a step for" in learner.steps_by or not compiles, learner.steps_by
    assert learner.graphs.replays["_compiled_step"] >= race.TRIED
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@gpu_test
def test_a_net_that_looks_at_numbers_is_trained_as_it_comes_with_its_dropout() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x if x.sum() > 0 else x

    recipe = dataclasses.replace(ALLCONV, batch=32, lr=1e-4)
    net = S2.width(0.25).dropout(0.5, "pool1")
    pair = [make_learner(net, recipe, 32, graphs) for graphs in (Graphs(None), open_graphs(torch.device("cuda"), ""))]
    for learner in pair:
        learner.model.append(Looks())
        for step in range(10):
            learner.step(*batch(step, 32, 32))
    eager, other = (learner.tensors() for learner in pair)
    assert not pair[1].graphs.replays
    assert pair[1].graphs.why_not
    assert all(torch.equal(eager[name], other[name]) for name in eager)
    # The process goes on as before: on its stream, with a generator that draws, and all memory comes back.
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(8, device="cuda").unique().numel() > 1
    for _ in range(3):
        used_twice = torch.zeros(1 << 20, device="cuda")
        used_twice.record_stream(torch.cuda.Stream())
        del used_twice
    torch.cuda.empty_cache()
    stats = torch.cuda.memory_stats()
    assert stats["active_bytes.all.current"] == stats["allocated_bytes.all.current"]
    again = make_learner(net, recipe, 32, open_graphs(torch.device("cuda"), ""))
    for step in range(10):
        again.step(*batch(step, 32, 32))
    assert again.steps_by == "graph"


def trials(count: int) -> list[Trial]:
    ablations = []
    for number in range(count):
        net, recipe, rate = ((S2.crelu(1, 2), ALLCONV, 0.01), (S4, VGG, 0.1))[number % 2]
        recipe = dataclasses.replace(recipe, epochs=4, batch=64, lr=rate)
        net = net.width(0.5).dropout(0.2, "conv1" if number % 2 else "pool1")
        ablations.append(Trial(Cell(f"{number}", net, SET, recipe), "ablation", seed=number))
    return ablations


@gpu_test
def test_a_pack_of_eight_on_streams_ends_as_each_alone(tmp_path: Path) -> None:
    prepare(SET, tmp_path / "data")
    eight = trials(8)
    pack = runtime_config(tmp_path / "data", tmp_path / "pack", device="cuda")
    perform_pack(eight, pack, lambda _: None)
    ledger = Ledger(pack.ledger)
    assert not ledger.failed()
    # One that diverges leaves the pack, and begins anew on its own.
    alone = [trial for trial in eight if ledger.result(trial.key) is None]
    assert len(alone) <= 4
    for trial in eight:
        if trial in alone:
            run_trial(trial, pack, lambda *_: None)
        run_trial(trial, dataclasses.replace(pack, ledger=str(tmp_path / "alone")), lambda *_: None)
        assert artifact_hashes(tmp_path / "pack", trial) == artifact_hashes(tmp_path / "alone", trial)
    plain = dataclasses.replace(pack, ledger=str(tmp_path / "eager"), graphs=False)
    run_trial(eight[0], plain, lambda *_: None)
    assert artifact_hashes(tmp_path / "eager", eight[0]) == artifact_hashes(tmp_path / "alone", eight[0])
    result = Ledger(str(tmp_path / "eager")).result(eight[0].key)
    assert result is not None
    assert result["hardware"]["steps"] == "eager: not asked for"


@gpu_test
def test_a_killed_trial_on_a_gpu_ends_as_one_that_is_left_alone(tmp_path: Path) -> None:
    prepare(SET, tmp_path / "data")
    config = runtime_config(tmp_path / "data", tmp_path / "none", device="cuda")
    verdict = verify(shortened(trials(1)[0]), config, str(tmp_path), 2, 0)
    assert verdict.kills >= 1
    assert verdict.differences == ()


# Without a GPU

# What a bare machine with a GPU may lack.
LACKING = ("ray", "mlflow", "optuna", "ffcv", "scipy", "psutil", "matplotlib", "rich", "boto3", "torchvision")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_of_a_gpu_needs_little_and_ends_without_one(tmp_path: Path) -> None:
    sections = ["roof", "exact", "step", "profile", "activations", "pack", "pictures", "stream", "trial", "compiled"]
    words = ["--device", "cpu", "--tiny", "--sections", *sections]
    code = (
        f"import runpy, sys\nsys.modules.update(dict.fromkeys({LACKING!r}))\n"
        f"for words in ([], {[*words, '--json', str(tmp_path / 'gpu.json')]!r}):\n"
        "    sys.argv[1:] = words\n"
        "    try:\n        runpy.run_module('benchmarks.gpu', run_name='__main__')\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no GPU here: nothing is measured\n")
    assert "failed" not in done.stdout
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["section"] for row in rows} == set(sections)
    figures = {name: [row[name] for row in rows if name in row] for row in rows for name in row}
    assert figures["tensors_that_differ"] == [0, 0]
    assert figures["trials_that_differ"] == [0]
    assert [row["targets"]["trials_that_differ"] for row in rows if "trials_that_differ" in row] == [
        {"target": "<= 0", "met": True}
    ]
    assert all(min(figures[name]) > 0 for name in ("pictures_s", "processes_s", "resident_percent", "copy_percent"))
    assert all(0 <= percent < 100 for percent in figures["stall_percent"])
    assert all(min(figures[name]) > 0 for name in ("over_torch", "over_definition"))
    assert [row["name"].partition(" (")[0] for row in rows if row["section"] == "activations"] == [
        "crelu", "bias crelu", "max pool 3/2", "relu dropout",
    ]  # fmt: skip
    assert {row["name"].split(", ")[1] for row in rows if row["section"] == "step"} == {
        "eager", "torch's graph", "graph", "fastest",
    }  # fmt: skip
    assert figures["result"] == ["left out: ffcv not installed", *5 * ["left out: it needs a GPU"]]
    assert ["convolutions" in row["kinds"] for row in rows if row["section"] == "profile"] == [True, True]
    assert all(len(longest) == 12 for longest in figures["longest"])


BROKEN = """
import sys, time
from benchmarks.gpu import __main__ as command, kernels, trials

def fails(*_):
    raise RuntimeError("an illegal memory access")

def hangs(_):
    time.sleep(600)

def says(bench):
    bench.say("says", "row", figure=1.0)

command.roof = command.free = kernels.pool_rival = trials.train_apart = trials.compare_steps = fails
command.SECTIONS = {"activations": kernels.activations, "exact": trials.exact, "says": says, "tests": command.tests,
                    "hangs": hangs}
command.LAST = 0.5
sys.executable = "./slow"
sys.argv[1:] = sys.argv[1:] + [*command.SECTIONS]
command.main()
"""


def test_what_fails_in_the_benchmark_of_a_gpu_has_a_row_and_the_rest_goes_on_until_the_time_is_over(
    tmp_path: Path,
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nprintf '..F.'\nexec sleep 600\n")
    slow.chmod(0o755)
    words = ["--device", "cpu", "--tiny", "--json", str(tmp_path / "gpu.json"), "--seconds", "7", "--sections"]
    command = [sys.executable, "-c", BROKEN.replace("./slow", str(slow)), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "in hangs" in done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    failed = "RuntimeError: an illegal memory access"
    assert [(row["section"], row["name"].partition(" (")[0], row.get("failed", "")) for row in rows] == [
        ("roof", "section", failed),
        ("activations", "crelu", ""),
        ("activations", "bias crelu", ""),
        ("activations", "max pool 3/2", failed),
        ("activations", "relu dropout", ""),
        ("activations", "section", failed),
        ("exact", "allconv CReLU: graph, eager by torch", failed),
        ("exact", "VGG: graph, eager by torch", failed),
        ("exact", "pack of 2, alone", failed),
        ("exact", "section", failed),
        ("says", "row", ""),
        ("says", "section", failed),
        ("tests", "marked gpu", ""),
        ("tests", "section", failed),
    ]
    assert rows[-2]["result"] == "..F. ended after 1 s"
