"""What the epochs so far say of those to come: by cell, scaled to other nets, in a forecast; and for packs."""

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from crelu_data.datasets import dataset
from crelu_data.write import prepare
from crelu_models.model import Model
from sweeps.cli.forecast import (
    EVALUATION,
    TRIAL_START,
    WORKER_START,
    Forecast,
    compare,
    pictures,
    time_text,
    time_until_done,
    workload,
)
from sweeps.cli.live_view import SweepProgress
from sweeps.cli.options import parser
from sweeps.cli.settings import settle
from sweeps.execution import packing, tuner
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.execution.throughput import (
    SCALING,
    SPREAD,
    EpochRates,
    Throughput,
    Throughputs,
    past_epochs,
    sharers_of,
    slowdown,
)
from sweeps.experiment import model_facts
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.halving import rungs
from sweeps.experiment.model_facts import NetFacts, Request
from sweeps.experiment.plan import Plan, plan
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.store import checkpoint
from sweeps.store.ledger import Json, Ledger
from sweeps.training import data_time
from sweeps.training.run_trial import run_trial
from tests.support.one_worker import OneWorker
from tests.support.trials import SMALL, artifact_hashes, runtime_config, scaled_lr, trial_of

JPEG = "synthetic:size=240,classes=4,train=60,test=12"
CPU = platform.processor() or platform.machine()


def row(speed: float, share: float | None = None) -> dict[str, float]:
    return {"epoch": 1.0, "train/top1_err": 50.0, "sys/images_per_s": speed} | (
        {} if share is None else {"sys/data_share": share}
    )


def rates(*speeds: float) -> EpochRates:
    epochs = EpochRates()
    for speed in speeds:
        epochs.add(row(speed))
    return epochs


def test_throughput_is_the_median_with_the_deciles_of_the_epochs() -> None:
    assert rates().throughput() is None
    assert rates(10.0).throughput() == Throughput(10.0, 10.0 / SPREAD, 10.0 * SPREAD)
    assert rates(1.0, 5.0, 2.0).throughput() == (2.0, pytest.approx(1.2), pytest.approx(4.4), None)
    mixed = EpochRates()
    for number in range(3):
        mixed.add(row(10.0, 0.25 * (number + 1)))
    mixed.add(row(40.0))
    value = mixed.throughput()
    assert value is not None
    assert value.data_share == 0.5


def test_only_the_latest_epochs_count() -> None:
    value = rates(*[1.0] * 50, *[100.0] * 20).throughput()
    assert value is not None
    assert value.likely == 100.0


def test_epochs_of_this_session_take_the_place_of_past_ones() -> None:
    known = Throughputs({"a": 1.0}, {"a": rates(10.0)})
    assert known.trained()["a"].likely == 10.0
    known.add("a", row(30.0))
    assert known.trained()["a"].likely == 30.0


def test_trials_that_share_a_gpu_are_priced_as_such() -> None:
    """Measured alone on an H200, nine trainings were forecast to take 36 s; four at a time on it they took 73."""
    assert [slowdown(count, 0.5) for count in (1, 2, 3, 4)] == [1.0, 1.0, 1.5, 2.0]
    known = Throughputs({"a": 1.0}, {"a": rates(100.0)}, sharers=4)
    value = known.trained()["a"]
    assert value == (pytest.approx(100 / 2.8), 25.0, 50.0, None)
    assert 36 * 100 / value.fastest <= 73 <= 36 * 100 / value.slowest
    known.add("a", row(30.0), 4)
    assert known.trained()["a"] == Throughput(30.0, 30.0 / SPREAD, 30.0 * SPREAD)
    # Epochs that were shared by four say between 1.4 and 4 times as much of one alone.
    apart = Throughputs({"a": 1.0}, present=known.present).trained()["a"]
    assert apart == (pytest.approx(84.0), 60.0, 120.0, None)


def test_so_many_trials_share_a_gpu_as_run_and_fit() -> None:
    assert [sharers_of(gpus) for gpus in (0.0, 0.1, 0.25, 0.3, 1.0, 2.0)] == [1, 10, 4, 3, 1, 1]
    assert [sharers_of(0.25, running) for running in (0, 1, 3, 9)] == [1, 1, 3, 4]


def test_share_of_the_batches_stays_known_when_packs_no_longer_measure_it() -> None:
    alone = EpochRates()
    alone.add(row(10.0, 0.4))
    known = Throughputs({"a": 1.0}, {"a": alone})
    known.add("a", row(50.0))
    assert known.trained()["a"] == (50.0, 50.0 / SPREAD, 50.0 * SPREAD, 0.4)


def test_nets_that_were_not_trained_are_scaled_by_multiply_adds() -> None:
    macs = {"small": 1e6, "large": 1e8, "other": 1e7}
    assert Throughputs(macs).all() == {}
    throughputs = Throughputs(macs, {"small": rates(100.0)}).all()
    assert throughputs["small"] == Throughput(100.0, 100.0 / SPREAD, 100.0 * SPREAD)
    # Of a single net's throughput a factor of SCALING either way is not excluded.
    assert throughputs["large"][:3] == pytest.approx((1.0, 1.0 / SCALING, 1.0 * SCALING))
    # The second net computes twice as much a second as the first: the interval holds both.
    throughputs = Throughputs(macs, {"small": rates(100.0), "large": rates(2.0)}).all()
    assert throughputs["other"][:3] == pytest.approx((15.0, 10.0 / SPREAD, 20.0 * SPREAD))


def finished(ledger: Ledger, trial: Trial, speeds: list[float], when: int, **hardware: str) -> Json:
    """Commit a result with such epochs, and return it."""
    ledger.write(f"trials/{trial.key}/history.json", json.dumps([row(speed) for speed in speeds]).encode())
    result = {
        "key": trial.key, "cell_key": trial.cell.key, "metrics": {}, "status": "finished", "restarts": 0,
        "seconds": 1.0, "epochs": len(speeds), "finished_ms": when, "hardware": {"device": CPU} | hardware,
    }  # fmt: skip
    ledger.commit(trial.key, result)
    return result


def test_only_epochs_of_the_same_kind_of_hardware_are_read(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    base = trial_of("allconv with dropout")
    kinds = [{}, {"threads": "4"}, {"ranks": "2"}, {"device": "NVIDIA H100"}, {"device": "NVIDIA H200"}]
    results = [
        finished(ledger, dataclasses.replace(base, seed=number), [10.0 * number], number, **kind)
        for number, kind in enumerate(kinds, 1)
    ]

    def speeds(resources: TrialResources) -> list[float]:
        return [speed for epochs in past_epochs(ledger, results, resources).values() for speed in epochs.speeds]

    assert speeds(TrialResources()) == [10.0]
    assert speeds(TrialResources(cpus=4)) == [20.0]
    assert speeds(TrialResources(cpus=2, ranks=2)) == [30.0]
    assert speeds(TrialResources(gpus=1.0)) == [50.0], "of two kinds of GPU the one that trained last"
    assert speeds(TrialResources(gpus=2.0, ranks=2)) == []
    quarter = finished(ledger, dataclasses.replace(base, seed=9), [60.0], 9, device="NVIDIA H200", gpu_share="0.25")
    (epochs,) = past_epochs(ledger, [*results[:3], quarter], TrialResources(gpus=1.0)).values()
    assert list(epochs.sharers) == [4]


def test_of_a_training_function_the_threads_and_gpus_of_its_process_count(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    base = trial_of("allconv with dropout")
    kinds = [{"threads": "4"}, {"device": "NVIDIA H100"}, {"device": "NVIDIA H100", "gpus": "2"}]
    results = [
        finished(ledger, dataclasses.replace(base, seed=number), [10.0 * number], number, **kind) | {"resumed": 0}
        for number, kind in enumerate(kinds, 1)
    ]

    def speeds(resources: TrialResources) -> list[float]:
        return [speed for epochs in past_epochs(ledger, results, resources).values() for speed in epochs.speeds]

    assert speeds(TrialResources(cpus=4, ranks=2)) == speeds(TrialResources(cpus=4)) == [10.0]
    assert speeds(TrialResources(cpus=2, ranks=2)) == []
    assert speeds(TrialResources(gpus=1.0)) == [20.0]
    assert speeds(TrialResources(gpus=2.0, ranks=2)) == [30.0]


def test_of_a_cell_the_latest_finished_trials_are_read_the_newest_last(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    base = trial_of("allconv with dropout")
    results = [finished(ledger, dataclasses.replace(base, seed=n), [1.0 * n, 10.0 * n], n) for n in (4, 1, 3, 2)]
    (epochs,) = past_epochs(ledger, results, TrialResources()).values()
    assert list(epochs.speeds) == [2.0, 20.0, 3.0, 30.0, 4.0, 40.0]


def forecast(folder: Path, *words: str) -> tuple[Forecast, Plan]:
    """Return the forecast for two cells by two workers of one thread; the second cell is half as wide."""
    base = trial_of("allconv with dropout").cell
    cells = tuple(dataclasses.replace(base, label=f"{w}", net=base.net.width(w)) for w in (1.0, 0.5))
    options = parser("s", "").parse_args(["--output", str(folder), "--profile", "demo", *words])
    today = plan(Sweep("s", "demo", cells), Ledger(f"{folder}/ledger"), {})
    facts = {SMALL: dataset(SMALL, folder)}
    return Forecast(today, settle(cells, options), facts, TrialResources(), 2), today


def test_forecast_of_a_halved_search_counts_what_its_bracket_trains(tmp_path: Path) -> None:
    here, today = forecast(tmp_path)
    search = Search(9, halving=3, rung=1)
    here.plan = plan(dataclasses.replace(today.sweep, protocol=Protocol(search=search)), Ledger(f"{tmp_path}/l"), {})
    trial = Trial(today.to_do[0].cell, "holdout")
    here.add_epoch(trial, row(10.0))
    here.add_epoch(trial, row(10.0))
    (rest,), (full,) = here.estimates([(trial, 1)]), here.estimates([(trial, 0)], to_the_end=True)
    learned, evaluated = pictures(trial, here.facts[SMALL], 9 * here.plan.expected_epochs(trial) - 1)
    assert rest.likely == pytest.approx((learned + EVALUATION * evaluated) / 10 + TRIAL_START)
    # What the others have trained, whether they wait or are done, is no more to come: at least up to the next rung is.
    for number in range(8):
        other = dataclasses.replace(trial, choices=(("recipe.lr", 0.1 + number / 100),))
        here.add_epoch(other, row(10.0) | {"epoch": float(trial.recipe.epochs)})
    next_rung = rungs(trial.recipe.epochs, 3, 1)[1]
    learned, evaluated = pictures(trial, here.facts[SMALL], next_rung - 1)
    (rest,) = here.estimates([(trial, 1)])
    assert rest.likely == pytest.approx((learned + EVALUATION * evaluated) / 10 + TRIAL_START)
    assert full.likely > rest.likely


def test_forecast_is_pictures_over_throughput_in_hours_and_money(tmp_path: Path) -> None:
    here, today = forecast(tmp_path, "--price-per-gpu-hour", "36")
    trials = [(trial, 0) for trial in today.to_do]
    assert here.sentence(trials) == ""
    assert here.seconds_left(trials) is None
    (wide, _), (narrow, _) = trials
    for speed in (10.0, 10.0):
        here.add_epoch(wide, row(speed))
    learned, evaluated = pictures(wide, here.facts[SMALL])
    work = learned + EVALUATION * evaluated
    first, second = here.estimates(trials)
    assert first == pytest.approx((work / 10 + TRIAL_START, work / 11 + TRIAL_START, work / (10 / 1.1) + TRIAL_START))
    factor = narrow.cell.net.macs(4, 32) / wide.cell.net.macs(4, 32)
    assert second.likely == pytest.approx(factor * work / 10 + TRIAL_START)
    assert second.most == pytest.approx(SCALING * factor * work / 10 + TRIAL_START)
    likely, least, most = (first[n] + second[n] + 2 * WORKER_START for n in range(3))
    assert here.sentence(trials) == (
        f"forecast for 2 trials: {likely / 3600:.3g} hours of trials ({least / 3600:.3g} to {most / 3600:.3g}), "
        f"about {time_text(first.likely)} with 2 at once, "
        f"costs {likely / 100:.2f} ({least / 100:.2f} to {most / 100:.2f}) at 36 an hour"
    )
    # By one worker one after the other; by two it takes as long as the longer one. How many there are is seen once each
    # may have reported an epoch, and until one has, a worker starts.
    here.workers = 1
    assert here.seconds_left(trials) == pytest.approx(first.likely + second.likely)
    here.workers = 2
    assert here.seconds_left(trials) == pytest.approx(first.likely)
    # What is behind a trial takes no more time; its test does.
    (rest,) = here.estimates([(wide, 3)])
    assert rest.likely == pytest.approx(EVALUATION * pictures(wide, here.facts[SMALL], 0)[1] / 10 + TRIAL_START)


@pytest.mark.parametrize(
    ("seconds", "slots", "done"),
    [
        ([100] * 5, 4, 200),
        ([100] * 4, 4, 100),
        ([100] * 9, 8, 200),
        ([30, 50, 20, 40], 2, 90),
        ([70], 10**18, 70),  # of --max-concurrent, which may be any number
    ],
)
def test_time_left_counts_workers_that_have_nothing_left_to_do(seconds: list[float], slots: int, done: float) -> None:
    """Shared out evenly, five trainings of 100 s by four workers would be done after 125 s."""
    assert time_until_done(seconds, slots) == done


def test_forecast_is_announced_once_after_as_many_epochs_as_trials_run_at_once(tmp_path: Path) -> None:
    here, today = forecast(tmp_path)
    settled = []
    for number in range(4):
        here.add_epoch(today.to_do[number % 2], row(10.0))
        settled.append(here.is_settled())
    assert settled == [False, True, False, False]


def test_forecast_of_a_sweep_that_has_begun_is_from_its_ledger(tmp_path: Path) -> None:
    _, before = forecast(tmp_path)
    finished(Ledger(f"{tmp_path}/ledger"), before.to_do[0], [20.0, 20.0], 1)
    here, today = forecast(tmp_path)
    assert [trial.cell.label for trial in today.to_do] == ["0.5"]
    assert here.sentence((trial, 0) for trial in today.to_do).startswith("forecast for 1 trial: ")
    assert here.throughputs.trained()[before.to_do[0].cell.key].likely == 20.0


def test_forecast_counts_what_a_trial_under_way_has_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, before = forecast(tmp_path)
    wide, narrow = before.to_do
    ledger = Ledger(f"{tmp_path}/ledger")
    state = {"code": cell_fingerprint(wide.cell), "epoch": 2, "seconds": 1800.0, "devices": ["a CPU"]}
    state |= {"history": [row(20.0), row(20.0) | {"epoch": 2.0}]}
    checkpoint.save(ledger, wide.key, 2, 0, checkpoint.Checkpoint({}, state))
    here, today = forecast(tmp_path)
    assert today.remaining == [(wide, 2), (narrow, 0)]
    assert today.hours == 0.5
    assert here.throughputs.trained()[wide.cell.key].likely == 20.0
    assert here.estimates([(wide, 2)])[0].likely < here.estimates([(wide, 0)])[0].likely
    epochs = wide.recipe.epochs
    assert today.epochs_left(today.remaining, today.begun) == [epochs - 2, epochs]
    left, whole = (workload(plan, plan.remaining, here.facts)[0] for plan in (today, before))
    two, none = (sum(pictures(wide, here.facts[SMALL], epochs)) for epochs in (2, 0))
    assert whole - left == two - none
    # By other code it begins anew.
    monkeypatch.setattr("sweeps.experiment.plan.cell_fingerprint", lambda _: "other")
    assert forecast(tmp_path)[1].remaining == [(wide, 0), (narrow, 0)]


@pytest.mark.parametrize(
    ("words", "resources", "is_read"),
    [
        ("a CPU", TrialResources(), True),
        ("a CPU (2 ranks)", TrialResources(), False),
        ("a CPU (2 ranks)", TrialResources(cpus=2, ranks=2), True),
        ("NVIDIA H200", TrialResources(), False),
        ("NVIDIA H200 (fastest kernels)", TrialResources(gpus=1.0), True),
        ("NVIDIA H200 (2 ranks, fastest kernels)", TrialResources(gpus=1.0), False),
        ("NVIDIA H200 (2 GPUs)", TrialResources(gpus=2.0, ranks=2), True),
    ],
)
def test_checkpoints_of_such_a_device_are_read(
    words: str, resources: TrialResources, is_read: bool, tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path))
    state = {"epoch": 1, "devices": ["a CPU (9 ranks)", words], "history": [row(20.0)]}
    checkpoint.save(ledger, "k", 1, 0, checkpoint.Checkpoint({}, state))
    speeds = {cell: list(epochs.speeds) for cell, epochs in past_epochs(ledger, [], resources, [("c", "k")]).items()}
    assert speeds == ({"c": [20.0]} if is_read else {})


def test_seconds_besides_the_pictures_are_those_that_trials_have_taken(tmp_path: Path) -> None:
    here, today = forecast(tmp_path)
    wide, narrow = today.to_do
    others = [dataclasses.replace(wide, seed=seed) for seed in range(1, 4)]
    last = wide.recipe.epochs
    whole, tested = (sum((1.0, EVALUATION)[n] * pictures(wide, here.facts[SMALL], e)[n] for n in (0, 1)) / 10
                     for e in (last, 0))  # fmt: skip
    between = 1000 * ((whole - tested) * (last - 1) / last + 3.0 * (last - 1) / last)
    for trial in (wide, *others):
        here.add_epoch(trial, row(10.0) | {"epoch": 1.0, "time_ms": 5000.0})
        here.add_epoch(trial, row(10.0) | {"epoch": float(last), "time_ms": 5000.0 + between})
    spent: dict[str, float] = {}
    here.seconds_by_trial = spent
    for trial in (wide, *others):
        here.add_result({"key": trial.key, "hardware": {}})
    assert here.estimates([(wide, 0)])[0].likely == pytest.approx(whole + TRIAL_START)
    # Of the first two, with which workers started, the time between epochs counts alone; of others all of it.
    spent |= {wide.key: 1000.0, others[0].key: 1000.0}
    assert here.estimates([(wide, 0)])[0].likely == pytest.approx(whole + TRIAL_START + 3.0)
    spent |= {trial.key: whole + 5.0 for trial in others[1:]}
    assert here.paces()[wide.cell.key].start == pytest.approx((TRIAL_START + 3.0 + 5.0) / 2)
    # A net without a finished trial takes as long besides as the others.
    assert here.paces()[narrow.cell.key].start == pytest.approx((TRIAL_START + 3.0 + 5.0) / 2)


def test_models_of_a_forecast_are_measured_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of finished cells too, which nothing has built before the forecast."""
    asked = list[int]()

    def measured(requests: Sequence[Request]) -> list[NetFacts | str]:
        asked.append(len(requests))
        return [NetFacts(1, 10 * number, 1) for number in range(1, len(requests) + 1)]

    monkeypatch.setattr(model_facts, "_measured", measured)
    here, today = forecast(tmp_path)
    (ours, other), settings = today.sweep.cells, here.settings
    models = [dataclasses.replace(ours, label=name, net=Model(f"forecast_only:{name}")) for name in ("a", "b")]
    cells = (*models, other)
    today = plan(dataclasses.replace(today.sweep, cells=cells), Ledger(f"{tmp_path}/ledger"), {})
    known = Forecast(today, settings, here.facts, TrialResources(), 2).throughputs.macs
    assert asked == [2]
    assert [known[cell.key] for cell in cells] == [10.0, 20.0, float(other.net.macs(4, 32))]


def test_live_view_says_how_long_it_will_take_by_the_same_forecast(tmp_path: Path) -> None:
    here, today = forecast(tmp_path)
    progress = SweepProgress(today)
    progress.forecast = here
    assert "left" not in progress.counts()
    progress.apply("started", today.to_do[0], {})
    progress.apply("epoch", today.to_do[0], row(10.0))
    assert progress.remaining() == [(today.to_do[0], 1), (today.to_do[1], 0)]
    other = SweepProgress(today)
    other.apply("started", today.to_do[1], {})  # the second has a worker, so the first waits for another's end
    assert other.remaining() == [(today.to_do[1], 0), (today.to_do[0], 0)]
    seconds = here.seconds_left(progress.remaining())
    assert seconds is not None
    assert progress.counts().endswith(f", about {seconds // 60:.0f} min {round(seconds) % 60} s left")


def test_at_the_end_the_forecast_stands_beside_what_it_took(tmp_path: Path) -> None:
    here, today = forecast(tmp_path)
    said: list[str] = []
    trial = today.to_do[0]
    compare(here, [(trial, 9.0)], said.append)
    assert said == [], "nothing was forecast"
    here.add_epoch(trial, row(10.0))
    here.sentence([(trial, 0)])
    expected = here.estimates([(trial, 0)])[0].likely + WORKER_START
    # What the trial shows later does not make the forecast a better one, even where it is announced anew.
    here.add_epoch(trial, row(1000.0))
    assert here.sentence([(trial, 1)])
    finished(Ledger(f"{tmp_path}/ledger"), trial, [10.0], 1)
    compare(here, [(trial, 2 * expected)], said.append)
    assert said == [f"1 trial: forecast {expected:.0f} s of trials, actual {2 * expected:.0f} s (+100%)"]
    (name,) = Ledger(f"{tmp_path}/ledger").names("forecasts")
    saved = Ledger(f"{tmp_path}/ledger").read_json(f"forecasts/{name}")
    assert saved == {"forecast_s": pytest.approx(expected), "actual_s": pytest.approx(2 * expected), "trials": 1}


def test_a_continued_trial_is_compared_by_the_epochs_of_this_session(tmp_path: Path) -> None:
    here, today = forecast(tmp_path)
    said: list[str] = []
    trial = today.to_do[0]
    here.add_epoch(trial, row(10.0) | {"epoch": 3.0})
    here.sentence([(trial, 2)])
    expected = here.estimates([(trial, 2)])[0].likely + WORKER_START
    finished(Ledger(f"{tmp_path}/ledger"), trial, [10.0], 1)
    compare(here, [(trial, expected)], said.append)
    assert said == [f"1 trial: forecast {expected:.0f} s of trials, actual {expected:.0f} s (+0%)"]


def test_first_trial_shows_that_packs_pay_and_all_end_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By the clock of its thread a step takes no time: beside it, to decode takes nearly all.
    monkeypatch.setattr(data_time, "time", SimpleNamespace(thread_time=lambda: 0.0))
    data = tmp_path
    events = list[tuple[str, str, bool]]()
    prepare(JPEG, data)
    trials = [scaled_lr(trial_of("All-CNN-B"), factor) for factor in (1.0, 0.7, 0.5, 0.3)]
    net = trials[0].cell.net.width(0.25)
    cells = tuple(dataclasses.replace(t.cell, label=f"{t.cell.recipe.lr:g}", net=net, dataset=JPEG) for t in trials)
    known = Throughputs({cell.key: 1.0 for cell in cells})

    def on_event(event: str, trial: Trial, news: Json) -> None:
        if event == "epoch":
            known.add(trial.cell.key, news)
        events.append((event, trial.cell.label, "sys/data_share" in news))

    monkeypatch.setattr(tuner, "_tuner", OneWorker)
    session = DriverState(
        Sweep("s", "demo", cells), Ledger(str(data)), runtime_config(data, data, resident_bytes=0),
        TrialResources(max_concurrent=1), on_event, "now", {}, {JPEG: (4, dataset(JPEG).crop)},
        pack_policy=lambda: packing.policy_from_throughput([Trial(cell) for cell in cells], known),
    )  # fmt: skip
    tuner.run_trials(session)
    assert session.errors == []
    shares = [share.data_share for share in known.trained().values()]
    first = events[0][1]
    assert events[:3] == [("started", first, False), ("epoch", first, True), ("left", first, False)]
    # The others are with it from then on: all have started before another epoch is over.
    assert [event for event, *_ in events[3:7]] == ["started"] * 4
    assert [event for event in events[7:] if event[0] == "epoch" and event[2]] == [], "alone no more"
    # The driver hears of each epoch and of each end, once.
    heard = Counter((event, label) for event, label, _ in events if event in ("epoch", "done"))
    labels = {label for _, label, _ in events}
    assert heard == {("epoch", label): 3 for label in labels} | {("done", label): 1 for label in labels}
    assert (len(labels), session.epochs) == (4, 12)
    assert [share > 0.1 for share in shares if share is not None] == [True]
    for cell in cells:
        trial = Trial(cell)
        run_trial(trial, runtime_config(tmp_path, tmp_path / "alone", resident_bytes=0), lambda *_: None)
        assert artifact_hashes(tmp_path / "alone", trial) == artifact_hashes(tmp_path, trial)
