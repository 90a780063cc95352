"""The analysis jobs over finished trials on a ledger: what they read, leave, keep, skip and refuse."""

import argparse
import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure

from crelu_data.availability import fingerprint
from crelu_data.write import prepare
from crelu_models.model import Model
from crelu_models.modules import build, initialise
from crelu_models.spec import Conv, Net
from crelu_models.tables import PAPER
from sweeps.analysis import job, outgoing, outgoing_correlations, pairing, pairing_scores, sources
from sweeps.analysis.compute import JobSpec, request_name, run_job
from sweeps.analysis.weights import load, open_sample
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.report.render import plots
from sweeps.results import paper
from sweeps.results.analyses import default_summaries
from sweeps.store.integrity import noted_damage
from sweeps.store.ledger import Ledger
from sweeps.training.result import commit_result
from sweeps.training.runtime import RuntimeConfig
from tests.support.analysis import (
    CELLS,
    LARGE,
    SMALL,
    TRIALS,
    fill,
    folder_of,
    read_summary,
    run_job_command,
    untrained,
)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("data")
    for name in (SMALL, LARGE):
        prepare(name, where, writer="native", workers=1)
    return where


def undrawn(figure: Figure) -> bytes:
    """Stand for a picture that nobody looks at: most of the time of an analysis of so few numbers."""
    return f"{len(figure.axes)} panels".encode()


@pytest.fixture(autouse=True)
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[[Figure], bytes]:
    """Leave pictures undrawn, and return what draws them; those of `done` come before."""
    drawing = plots.png
    monkeypatch.setattr(plots, "png", undrawn)
    return drawing


# The nets whose pictures are drawn; that of a conv behind a pool is another one.
DRAWN = [*((name, "CReLU conv1-4") for name in ("pairing", "invariance", "outgoing", "reconstruction")),
         ("reconstruction", "CReLU half")]  # fmt: skip


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Ledger:
    """Return a ledger on which every job was done on all nets that it fits."""
    ledger = fill(Ledger(str(tmp_path_factory.mktemp("done") / "outputs/ledger")))
    for name, words in {
        "pairing": ("--samples", "2"),
        "invariance": (),
        "outgoing": (),
        "reconstruction": ("--samples", "4", "--iterations", "3", "60"),
    }.items():
        for label, trial in TRIALS.items():
            if label != "Baseline" or name in ("pairing", "invariance"):
                with pytest.MonkeyPatch.context() as patch:
                    if (name, label) not in DRAWN:
                        patch.setattr(plots, "png", undrawn)
                    assert run_job_command(name, ledger, data_dir, "--run", trial.key, *words) == 0
    return ledger


def table(ledger: Ledger, label: str, name: str, file: str = "table.parquet") -> dict[str, list[Any]]:
    content = ledger.read(f"{folder_of(ledger, label, name)}/{file}")
    assert content is not None
    columns: dict[str, list[Any]] = pq.read_table(io.BytesIO(content)).to_pydict()
    return columns


def is_picture(ledger: Ledger, label: str, name: str, file: str) -> bool:
    from PIL import Image

    path = ledger.path(f"{folder_of(ledger, label, name)}/{file}")
    if (name, label) not in DRAWN:
        return Path(path).read_bytes().endswith(b" panels")
    with Image.open(path) as picture:
        return picture.format == "PNG" and len(set(picture.convert("L").tobytes())) > 20


# What each job leaves -------------------------------------------------------------------------------------------


def test_pairing_leaves_mu_of_every_conv(done: Ledger) -> None:
    for label, trial in TRIALS.items():
        weights = safetensors.torch.load(done.read(f"trials/{trial.key}/weights.safetensors") or b"")
        rows = table(done, label, "pairing")
        summary = read_summary(done, label, "pairing")
        layers = [conv.name for conv in trial.net.rows if isinstance(conv, Conv)]
        assert [row["layer"] for row in summary["rows"]] == layers
        for layer in layers:
            ours = pairing_scores.pairs(weights[f"{layer}.weight"])
            chosen = [i for i, where in enumerate(rows["layer"]) if where == layer and rows["draw"][i] == -1]
            assert [rows["mu"][i] for i in chosen] == ours.mu.tolist()
            assert [rows["pair"][i] for i in chosen] == ours.pair.tolist()
            assert summary["metrics"][f"pairing/mu/{layer}"] == pytest.approx(float(ours.mu.mean()))
            assert rows["layer"].count(layer) == 3 * len(ours.mu)
            assert summary["metrics"][f"pairing/mu_sd/{layer}"] == pytest.approx(float(ours.mu.std()))
            assert summary["metrics"][f"pairing/filters/{layer}"] == len(ours.mu)
        assert is_picture(done, label, "pairing", "pairing.png")
        assert is_picture(done, label, "pairing", "filters.png")
        filters = table(done, label, "pairing", "filters.parquet")
        assert np.allclose(filters["weights"], weights["conv1.weight"].flatten(1))


def test_metrics_have_the_names_of_the_papers_claims(done: Ledger) -> None:
    claimed = {c.metric for claim in paper.CLAIMS if claim.table.startswith("Figure") for c in claim.comparisons}
    jobs = ("pairing", "invariance", "outgoing")
    four = {name for job in jobs for name in read_summary(done, "CReLU conv1-4", job)["metrics"]}
    assert claimed <= four
    assert {f"{paper.PAIR}/conv1", f"{paper.NON_PAIR}/conv4"} <= four
    half = read_summary(done, "CReLU half", "reconstruction")["metrics"]
    assert set(half) == {
        f"{metric}/{layer}"
        for metric in (
            paper.LEARNED, f"{paper.LEARNED}_se", paper.RANDOM, f"{paper.RANDOM}_se", "reconstruction/patches",
        )
        for layer in ("conv2", "conv5")
    } | {"reconstruction/pictures"}  # fmt: skip


def test_metrics_have_their_spread_and_their_n(done: Ledger) -> None:
    def metrics_of(job: str, label: str = "CReLU conv1-4") -> dict[str, float]:
        numbers: dict[str, float] = read_summary(done, label, job)["metrics"]
        return numbers

    weights = safetensors.torch.load(done.read(f"trials/{TRIALS['CReLU conv1-4'].key}/weights.safetensors") or b"")
    cosine = outgoing_correlations.correlations(weights["conv3.weight"])
    metrics = metrics_of("outgoing")
    for name, values in (("pair", cosine.pair), ("non_pair", cosine.non_pair)):
        assert metrics[f"outgoing/{name}/conv2"] == pytest.approx(float(values.abs().mean()))
        assert metrics[f"outgoing/{name}_sd/conv2"] == pytest.approx(float(values.abs().std()))
    assert metrics["outgoing/filters/conv2"] == len(cosine.pair)
    rows = table(done, "CReLU conv1-4", "invariance")
    metrics = metrics_of("invariance")
    alive = [i for i, layer in enumerate(rows["layer"]) if layer == "conv3" and not rows["dead"][i]]
    scores = np.array([rows["score"][i] for i in alive])
    assert metrics["invariance/filters/conv3"] == len(alive)
    assert metrics["invariance/score/conv3"] == pytest.approx(scores.mean())
    assert metrics["invariance/se/conv3"] == pytest.approx(scores.std(ddof=1) / len(scores) ** 0.5)
    assert metrics["invariance/pictures"] == 40
    metrics = metrics_of("reconstruction", "CReLU half")
    assert (metrics["reconstruction/patches/conv5"], metrics["reconstruction/pictures"]) == (4, 4)
    rows = table(done, "CReLU half", "reconstruction")
    columns = zip(rows["layer"], rows["weights"], rows["ratio"], strict=True)
    ratios = np.array([ratio for *of, ratio in columns if of == ["conv5", "learned"]])
    # A patch a picture: the standard error over pictures is that of independent numbers.
    assert metrics["reconstruction/learned_se/conv5"] == pytest.approx(ratios.std(ddof=1) / 2)


def test_invariance_scores_the_first_seven_convs(done: Ledger) -> None:
    for label in TRIALS:
        rows = table(done, label, "invariance")
        summary = read_summary(done, label, "invariance")
        moves = ["top left", "bottom right"] if label == "CReLU conv1-4" else ["down 3", "left 3"]
        assert {"flip", "turn +15", "turn -15", *moves} <= set(rows)
        assert [row["layer"] for row in summary["rows"]] == [f"conv{i}" for i in range(1, 8)]
        assert all(rate <= 0.01 for rate in rows["rate"])
        assert all(dead or 0 <= score <= 100 for dead, score in zip(rows["dead"], rows["score"], strict=True))
        assert is_picture(done, label, "invariance", "invariance.png")


def test_reconstruction_takes_the_algorithm_that_fits(done: Ledger) -> None:
    assert done.folders(f"trials/{TRIALS['Baseline'].key}/analysis") == ["invariance", "pairing"]
    pooled, plain = (table(done, label, "reconstruction") for label in ("CReLU half", "CReLU conv1-4"))
    assert set(pooled["layer"]) == {"conv2", "conv5"}
    assert len(pooled["ratio"]) == 2 * 2 * 4
    assert all(0 <= ratio <= 1 for ratio in pooled["ratio"])
    assert set(plain["layer"]) == {"conv1", "conv2", "conv3", "conv4"}
    assert set(plain["iterations"]) == {3, 60}
    assert len(plain["image"]) == 4 * 2 * 2 * 4
    assert all(0 <= lost <= 1 for lost in plain["one_layer"])
    assert is_picture(done, "CReLU half", "reconstruction", "reconstruction.png")
    assert is_picture(done, "CReLU conv1-4", "reconstruction", "reconstruction_60.png")


def test_outgoing_compares_the_phases_of_crelu_nets(done: Ledger) -> None:
    rows = table(done, "CReLU conv1-4", "outgoing")
    weights = safetensors.torch.load(done.read(f"trials/{TRIALS['CReLU conv1-4'].key}/weights.safetensors") or b"")
    expected = torch.cat([outgoing_correlations.correlations(weights[f"conv{i}.weight"]).pair for i in range(2, 6)])
    assert rows["pair"] == expected.tolist()
    counts = table(done, "CReLU conv1-4", "outgoing", "non_pairs.parquet")
    assert sum(counts["count"]) == sum(k * (k - 1) for k in (12, 12, 12, 32))
    shown = (done.read(f"trials/{TRIALS['CReLU conv1-4'].key}/analysis/outgoing/summary.csv") or b"").decode()
    assert shown.startswith("layer,filters,zero,pair,pair sd,")
    assert len(shown.splitlines()) == 1 + 4
    assert is_picture(done, "CReLU conv1-4", "outgoing", "outgoing.png")


def test_theory_needs_no_run_and_takes_one(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, draw: Callable[[Figure], bytes]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plots, "png", draw)
        assert run_job_command("theory", ledger, "", "--samples", "40") == 0
    shown = capsys.readouterr().out
    assert "f = (1, -1) on two points" in shown
    assert "1.414" in shown
    (request,) = ledger.folders("weights/none/analysis/theory")
    assert request.startswith("samples-40-")
    assert (ledger.read(f"weights/none/analysis/theory/{request}/theory.png") or b"").startswith(b"\x89PNG")
    assert run_job_command("theory", ledger, "", "--run", TRIALS["CReLU half"].key, "--samples", "40") == 0
    assert table(ledger, "CReLU half", "theory")["case"] == [
        "conv1's filters on picture patches",
        "2 of conv1, 3 x 3 shifts",
    ]


# What is kept, and what is redone ---------------------------------------------------------------------------------


def test_results_are_kept_until_asked_for_otherwise(ledger: Ledger) -> None:
    words = ("--run", TRIALS["CReLU half"].key)

    def finished() -> object:
        return read_summary(ledger, "CReLU half", "outgoing")["finished_ms"]

    run_job_command("outgoing", ledger, "", *words)
    first = finished()
    run_job_command("outgoing", ledger, "", *words)
    assert finished() == first
    run_job_command("outgoing", ledger, "", *words, "--fresh")
    second = finished()
    assert second != first


def test_each_request_has_its_own_place_and_the_report_reads_the_defaults(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    key = TRIALS["CReLU half"].key
    words = ("--run", key)
    home = f"trials/{key}/analysis/pairing"
    run_job_command("pairing", ledger, "", *words)
    assert "other   " not in capsys.readouterr().out
    full = ledger.read_json(f"{home}/summary.json")
    assert full is not None
    assert full["rows"][0]["draws"] == 999
    # Fewer draws, of other layers, stand beside it; the order of layers is none of the request.
    for layers in (("conv2", "conv1"), ("conv1", "conv2")):
        run_job_command("pairing", ledger, "", *words, "--samples", "3", "--layers", *layers)
    shown = capsys.readouterr().out
    (request,) = ledger.folders(home)
    assert request.startswith("layers-conv1-conv2-samples-3-")
    assert f"{home}/{request}\n" in shown
    assert "asked for other than the defaults, which alone the report and the claims read" in shown
    part = ledger.read_json(f"{home}/{request}/summary.json")
    assert part is not None
    assert [row["draws"] for row in part["rows"]] == [3, 3]
    assert ledger.read_json(f"{home}/summary.json") == full
    assert default_summaries(ledger, key) == {"pairing": {name: full[name] for name in full if name != "check"}}
    # Each names the others.
    run_job_command("pairing", ledger, "", *words)
    assert f"other      requests in {ledger.path(home)}: {request}" in capsys.readouterr().out
    # What an older version left there is not taken for the defaults.
    ledger.write_json(f"{home}/summary.json", full | {"schema": 2, "asked": {"samples": 10}})
    assert default_summaries(ledger, key) == {}


def test_a_sweeps_table_of_another_request_has_its_own_file(ledger: Ledger) -> None:
    for words in ((), ("--layers", "conv1")):
        for cell in ("CReLU half", "CReLU conv1-4"):
            run_job_command("outgoing", ledger, "", "--run", TRIALS[cell].key, *words)
        run_job_command("outgoing", ledger, "", "--sweep", "small-demo", *words)
    (other, csv) = [name for name in ledger.names("analysis/small-demo") if name.endswith(".csv")]
    assert other.startswith("outgoing-layers-conv1-")
    assert csv == "outgoing.csv"
    assert len((ledger.read(f"analysis/small-demo/{csv}") or b"").splitlines()) == 1 + 4 + 7
    assert len((ledger.read(f"analysis/small-demo/{other}") or b"").splitlines()) == 1 + 2


def test_an_analysis_without_its_summary_is_done_again(ledger: Ledger) -> None:
    words = ("--run", TRIALS["CReLU half"].key)
    run_job_command("outgoing", ledger, "", *words)
    folder = Path(ledger.path(f"trials/{TRIALS['CReLU half'].key}/analysis/outgoing"))
    (folder / "summary.json").write_text('{"schema": 1, "asked')
    (folder / "table.parquet").unlink()
    run_job_command("outgoing", ledger, "", *words)
    assert (folder / "table.parquet").exists()


# Whose weights --------------------------------------------------------------------------------------------------


def test_a_run_goes_by_mlflows_id(ledger: Ledger) -> None:
    key = TRIALS["CReLU half"].key
    ledger.write_json(f"tracked/{key}.json", {"uri": "sqlite:///x.db", "run": "abc123"})
    options = argparse.Namespace(run="abc123", sweep=None, weights=None, net="", dataset="")
    assert [source.trial for source in job.find_sources(outgoing.JOB, options, ledger)] == [key]


def test_a_sweep_is_its_tested_runs(ledger: Ledger) -> None:
    options = argparse.Namespace(run=None, sweep="small-demo", weights=None, net="", dataset="")
    keys = [source.trial for source in job.find_sources(pairing.JOB, options, ledger)]
    assert sorted(keys) == sorted(trial.key for trial in TRIALS.values())


@pytest.mark.filterwarnings("ignore")  # what MLflow and SQLAlchemy warn about among themselves
def test_tables_and_pictures_go_to_the_run_once(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    key = TRIALS["CReLU half"].key
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("small", str(tmp_path / "artifacts"))).info.run_id
    ledger.write_json(f"tracked/{key}.json", {"uri": uri, "experiment": "small", "run": run, "finished_ms": 1})
    run_job_command("outgoing", ledger, "", "--tracking-uri", uri, "--run", run)
    assert "MLflow     1 run has" in capsys.readouterr().out
    files = {file.path for file in client.list_artifacts(run, "analysis/outgoing")}
    names = ("summary.json", "summary.csv", "table.parquet", "non_pairs.parquet", "outgoing.png")
    assert files == {f"analysis/outgoing/{name}" for name in names}
    metrics = client.get_run(run).data.metrics
    assert metrics == pytest.approx(read_summary(ledger, "CReLU half", "outgoing")["metrics"])
    run_job_command("outgoing", ledger, "", "--tracking-uri", uri, "--run", run)
    assert "MLflow" not in capsys.readouterr().out
    # Another request stands beside it, and the numbers of the run stay those of the defaults.
    run_job_command("outgoing", ledger, "", "--tracking-uri", uri, "--run", run, "--layers", "conv1", "--seed", "3")
    assert "MLflow     1 run has" in capsys.readouterr().out
    (folder,) = (file.path for file in client.list_artifacts(run, "analysis/outgoing") if file.is_dir)
    assert folder.startswith("analysis/outgoing/layers-conv1-seed-3-")
    assert {Path(file.path).name for file in client.list_artifacts(run, folder)} == set(names)
    assert client.get_run(run).data.metrics == metrics
    run_job_command("pairing", ledger, "", "--tracking-uri", uri, "--run", run, "--samples", "3")
    assert client.get_run(run).data.metrics == metrics
    # A store that does not take them costs a sentence; the files are on the ledger.
    ledger.write_json(f"tracked/{key}.json", {"uri": uri, "experiment": "small", "run": "gone", "finished_ms": 1})
    assert run_job_command("outgoing", ledger, "", "--tracking-uri", uri, "--run", key) == 0
    assert "the same command sends them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "needs one of --run RUN_ID, --sweep NAME and --weights FILE"),
        (("--run", "x", "--sweep", "y"), "needs one of"),
        (("--run", "nobody"), "no finished run 'nobody'"),
        (("--sweep", "smal-demo"), "did you mean 'small-demo'"),
        (("--run", "KEY", "--net", "S8"), "--net is for --weights"),
        (("--run", "KEY", "--layers", "conv77"), "no conv 'conv77'"),
        (("--run", "KEY", "--device", "abacus"), "no device 'abacus' here"),
        (("--weights", "nothing.pt", "--net", "S8"), "no file"),
        (("--weights", "nothing.pt"), "say of which net"),
        (("--weights", "nothing.pt", "--net", "S88"), "did you mean 'S8'"),
    ],
)
def test_what_cannot_be_is_one_sentence(ledger: Ledger, words: tuple[str, ...], sentence: str) -> None:
    arguments = [TRIALS["CReLU half"].key if word == "KEY" else word for word in words]
    with pytest.raises(ValueError, match=sentence):
        run_job_command("outgoing", ledger, "", *arguments)


def test_run_is_analysed_on_the_pictures_it_was_trained_on_or_on_those_that_are_named(
    ledger: Ledger, data_dir: Path
) -> None:
    trial = TRIALS["Baseline"]
    source = sources.of_run(ledger, trial.key)
    runtime = RuntimeConfig(ledger.root, str(data_dir), reader="threads")
    result = ledger.result(trial.key) or {}
    ledger.commit(trial.key, result | {"fingerprint": fingerprint(SMALL, data_dir)})
    assert len(open_sample(load(source, ledger), runtime, 2, 0).indices) == 2
    ledger.commit(trial.key, result | {"fingerprint": "of other pictures"})
    why = f"Baseline s0: the pictures of {SMALL} in .* are not those it was trained on; --dataset {SMALL} says"
    with pytest.raises(ValueError, match=why):
        open_sample(load(source, ledger), runtime, 2, 0)
    assert len(open_sample(load(source._replace(dataset=SMALL), ledger), runtime, 2, 0).indices) == 2


def test_a_layer_behind_a_pool_is_refused_for_algorithm_1(ledger: Ledger, data_dir: Path) -> None:
    words = ("--run", TRIALS["CReLU half"].key, "--algorithm", "1", "--layers", "conv3")
    with pytest.raises(ValueError, match="pool1 pools in front of conv3"):
        run_job_command("reconstruction", ledger, data_dir, *words)


def test_a_damaged_plan_and_trials_of_another_version_are_one_sentence(ledger: Ledger) -> None:
    for trial in TRIALS.values():
        ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json() | {"phase": "of yesterday"})
    for source in sources.of_sweep(ledger, "small-demo"):
        with pytest.raises(ValueError, match=r"trial\.json is damaged.*--retry-failed trains it anew"):
            load(source, ledger)
    for trial in TRIALS.values():
        ledger.forget(trial.key)
    with pytest.raises(ValueError, match="no run of small-demo is finished yet"):
        run_job_command("outgoing", ledger, "", "--sweep", "small-demo")
    ledger.write("plans/small-demo.json", b'{"torn')
    with pytest.raises(ValueError, match=r"plans/small-demo\.json is damaged"):
        run_job_command("outgoing", ledger, "", "--sweep", "small-demo")


def test_missing_pictures_are_one_sentence_with_the_command(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is missing; to make it: \S+ -m crelu_data prepare synthetic"):
        run_job_command("invariance", ledger, tmp_path, "--run", TRIALS["Baseline"].key)


def test_the_module_exits_2_with_a_sentence_and_no_traceback(ledger: Ledger) -> None:
    words = ["--run", TRIALS["Baseline"].key, "--output", str(Path(ledger.root).parent)]
    command = [sys.executable, "-m", "sweeps.analysis.outgoing", *words]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert process.returncode == 2
    assert "error: Baseline s0: no conv has CReLU" in process.stderr
    assert "Traceback" not in process.stderr


def test_runs_whose_net_is_a_model_do_not_fit_and_have_not_failed(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(ALLCONV, init="own")
    cell = Cell("small", Model("tests.support.user_models:small"), SMALL, recipe)
    for seed in range(2):
        outcome = dataclasses.replace(untrained(TRIALS["Baseline"]), code=code_fingerprint(cell.net))
        commit_result(ledger, Trial(cell, seed=seed), outcome)
    for name, cells in (("models", (cell,)), ("mixed", (CELLS[0], cell))):
        sweep = Sweep(name, "demo", cells, Protocol(seeds=2))
        ledger.write_json(f"plans/{sweep.title}.json", plan_to_json(plan(sweep, ledger, {})))
    # Computed here: several at once would be Ray tasks.
    words = ("--samples", "1")
    asked, defaults = (job.asked_of(pairing.arguments().parse_args(line)) for line in (words, ()))
    spec = JobSpec("pairing", pairing.JOB.work, asked, False, request_name(asked, defaults))
    for seed in range(2):
        assert run_job(spec, sources.of_run(ledger, Trial(cell, seed=seed).key), RuntimeConfig(ledger.root, "")).why
    sentence = "analyses are of nets of this package, and the net of small is a model"
    with pytest.raises(ValueError, match="pairing fits none of these 2 runs"):
        run_job_command("pairing", ledger, "", "--sweep", "models-demo", *words)
    assert f"not for small (2 runs): {sentence}" in capsys.readouterr().err
    assert run_job_command("pairing", ledger, "", "--sweep", "mixed-demo", *words) == 0
    shown = capsys.readouterr()
    assert "Baseline" in shown.out
    assert f"not for small (2 runs): {sentence}" in shown.err
    assert "failed on" not in shown.err
    with pytest.raises(ValueError, match=sentence):
        run_job_command("pairing", ledger, "", "--run", Trial(cell).key, *words)


# Anybody's weights ------------------------------------------------------------------------------------------------


def state(net: Net, classes: int) -> dict[str, torch.Tensor]:
    model = build(net, classes)
    initialise(model, net, "he_fan_in", 0)
    return dict(model.state_dict())


def test_weights_of_a_paper_net_come_from_either_kind_of_file(ledger: Ledger, tmp_path: Path) -> None:
    weights = state(PAPER["S3_half"], 10)
    safetensors.torch.save_file(weights, tmp_path / "mine.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "mine.pt")
    tables = []
    for file in ("mine.safetensors", "mine.pt"):
        assert run_job_command("outgoing", ledger, "", "--weights", str(tmp_path / file), "--net", "S3_half") == 0
    for folder in sorted(Path(ledger.path("weights")).iterdir()):
        assert folder.name.startswith("mine-")
        tables.append(pq.read_table(folder / "analysis/outgoing/table.parquet"))
    assert len(tables) == 2
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("file", ["mine.safetensors", "mine.pt", "checkpoint.pt"])
def test_pairing_takes_the_convs_of_any_file(ledger: Ledger, tmp_path: Path, file: str) -> None:
    stream = torch.Generator().manual_seed(0)
    weights = {
        "stem.conv.weight": torch.randn(6, 3, 3, 3, generator=stream).half(),
        "stem.conv.bias": torch.zeros(6),
        "depthwise": torch.randn(8, 1, 3, 3, generator=stream),
        "grouped.weight": torch.randn(4, 3, 1, 1, generator=stream),
        "scores.weight": torch.randn(1, 4, 1, 1, generator=stream),
        "bn.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.randn(10, 4, generator=stream),
    }
    if file.endswith(".safetensors"):
        safetensors.torch.save_file(weights, tmp_path / file)
    else:
        torch.save({"model": weights, "epoch": 3} if file == "checkpoint.pt" else weights, tmp_path / file)
    assert run_job_command("pairing", ledger, "", "--weights", str(tmp_path / file)) == 0
    (summary_file,) = Path(ledger.path("weights")).glob("*/analysis/pairing/summary.json")
    summary = json.loads(summary_file.read_text())
    # safetensors sorts its tensors; a conv has four dimensions and a filter to pair with.
    assert {(row["layer"], row["filters"], row["inputs"]) for row in summary["rows"]} == {
        ("stem.conv", 6, 27),
        ("depthwise", 8, 9),
        ("grouped", 4, 3),
    }
    assert (summary["label"], summary["net"]) == (file.partition(".")[0], "")
    assert summary["metrics"]["pairing/mu/depthwise"] == pytest.approx(
        float(pairing_scores.pairs(weights["depthwise"]).mu.mean())
    )
    words = ("--weights", str(tmp_path / file), "--layers", "grouped", "--groups", "grouped=2")
    assert run_job_command("pairing", ledger, "", *words) == 0
    with pytest.raises(ValueError, match="has no conv 'deptwise'; did you mean 'depthwise'"):
        run_job_command("pairing", ledger, "", "--weights", str(tmp_path / file), "--layers", "deptwise")
    # The other jobs need the net.
    with pytest.raises(ValueError, match="say of which net"):
        run_job_command("outgoing", ledger, "", "--weights", str(tmp_path / file))


def test_a_file_without_a_conv_is_a_sentence_and_exit_code_2(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"fc.weight": torch.zeros(4, 4), "one.weight": torch.zeros(1, 3, 3, 3)}, tmp_path / "flat.pt")
    words = ["--weights", str(tmp_path / "flat.pt"), "--output", str(Path(ledger.root).parent)]
    monkeypatch.setattr(sys, "argv", ["pairing", *words])
    with pytest.raises(SystemExit, match=r"^2$"):
        job.main(pairing.JOB, pairing.arguments())
    said = capsys.readouterr().err
    assert "flat.pt holds no tensor of four dimensions" in said
    assert "Traceback" not in said


def test_weights_of_another_net_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    safetensors.torch.save_file(state(PAPER["S3_half"], 10), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"conv1\.weight is \(48, 3, 3, 3\), S2\.crelu\(.*\) has \(96, 3, 3, 3\)"):
        run_job_command("outgoing", ledger, "", "--weights", str(tmp_path / "mine.safetensors"), "--net", "S3_crelu")


class Trap:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("content", [b"", b"torn", pickle.dumps({"conv1.weight": Trap()}), pickle.dumps([1, 2])])
def test_a_file_that_holds_no_weights_is_refused_and_not_executed(
    ledger: Ledger, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.pt holds no"):
        run_job_command("pairing", ledger, "", "--weights", str(tmp_path / "bad.pt"), "--net", "S2")
    assert not (tmp_path / "sprung").exists()


def test_torchvisions_alexnet_is_read_from_a_file(ledger: Ledger, tmp_path: Path) -> None:
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {f"features.{i}.weight": torch.randn(shape) for i, shape in shapes.items()}
    weights |= {f"features.{i}.bias": torch.zeros(shape[0]) for i, shape in shapes.items()}
    for i in (1, 4, 6):  # of the linear layers any shape will do here: they would be 220 MB
        weights |= {f"classifier.{i}.weight": torch.zeros(1000, 2), f"classifier.{i}.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "alexnet.pth")
    assert (
        run_job_command(
            "pairing", ledger, "", "--weights", str(tmp_path / "alexnet.pth"), "--net", "alexnet", "--samples", "1"
        )
        == 0
    )
    (file,) = Path(ledger.path("weights")).glob("*/analysis/pairing/samples-1-*/summary.json")
    summary = json.loads(file.read_text())
    assert [(row["layer"], row["filters"]) for row in summary["rows"]] == [
        ("conv1", 64),
        ("conv2", 192),
        ("conv3", 384),
        ("conv4", 256),
        ("conv5", 256),
    ]
    assert summary["metrics"]["pairing/mu_random/conv1"] == pytest.approx(-0.123, abs=0.01)


def test_a_download_that_fails_is_one_sentence(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"could not be downloaded .* --weights FILE --net alexnet"):
        run_job_command("pairing", ledger, "", "--weights", "torchvision:alexnet")


def test_every_flipped_bit_of_weights_is_named_and_the_other_runs_go_on(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = TRIALS["CReLU half"]
    name = f"trials/{trial.key}/weights.safetensors"
    result = ledger.result(trial.key) or {}
    ledger.commit(trial.key, result | {"files": result["files"] | {"weights.safetensors": ledger.sha256(name)}})
    path = Path(ledger.path(name))
    source = sources.of_run(ledger, trial.key)
    content = path.read_bytes()
    assert load(source, ledger).weights
    for place in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        with pytest.raises(ValueError, match=f"{name} is damaged.*--retry-failed trains it anew"):
            load(source, ledger)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        run_job_command("pairing", ledger, "", "--run", trial.key, "--samples", "1")
    assert run_job_command("pairing", ledger, "", "--run", TRIALS["Baseline"].key, "--samples", "1") == 0
    assert "Baseline" in capsys.readouterr().out
    assert list(noted_damage(ledger)) == [trial.key]
