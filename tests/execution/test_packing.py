"""Which trials form a pack, and what the queue and the worker make of its members."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crelu_data.datasets import dataset
from crelu_models.model import Model
from crelu_models.tables import S2
from sweeps.cli.options import parser
from sweeps.cli.run import _set_pack_policy
from sweeps.execution import packing, worker
from sweeps.execution.packing import PackPolicy
from sweeps.execution.resources import TrialResources
from sweeps.execution.searcher import LedgerSearcher
from sweeps.execution.session import DriverState, Limits
from sweeps.execution.throughput import EpochRates, Throughputs
from sweeps.execution.watchdog import STOP_POLL, Watchdog
from sweeps.execution.worker import train_function, work
from sweeps.experiment import model_facts
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.model_facts import NetFacts, Request, _measured
from sweeps.experiment.questions.question import Question
from sweeps.experiment.questions.rule import Trajectory
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial, trial_from_json
from sweeps.store.lease import Lease
from sweeps.store.ledger import Json, Ledger, failed_attempt
from sweeps.training import shared_batches
from sweeps.training.run_trial import run_trial
from tests.support.trials import LARGE, SMALL, Hashes, artifact_hashes, members, runtime_config, scaled_lr, trial_of


def test_only_what_decides_the_batches_is_in_the_key_of_a_stream() -> None:
    base = trial_of("allconv with dropout")
    other = dataclasses.replace(base.cell, net=S2, label="another")
    other_steps = {"optimiser": "adamw", "schedule": "cosine", "ema": 0.9, "label_smoothing": 0.1}
    trained = dataclasses.replace(base.cell, recipe=dataclasses.replace(base.cell.recipe, **other_steps))
    same = [
        scaled_lr(base, 2.0),
        dataclasses.replace(base, cell=trained),
        dataclasses.replace(base, cell=other),
        dataclasses.replace(base, dropout=(("pool1", 0.1),)),
    ]
    assert {shared_batches.stream_key(trial) for trial in same} == {shared_batches.stream_key(base)}
    recipe = base.cell.recipe
    changed = [{"batch": 8}, {"epochs": 4}, {"flip": False}, {"shift": 1}, {"lighting": 0.1}, {"drop_last": True}]
    changed += [{"resized_crop": 0.1}, {"rand_augment": 1}, {"rand_magnitude": 5}, {"mixup": 0.2}]
    apart = [
        dataclasses.replace(base, cell=dataclasses.replace(base.cell, recipe=dataclasses.replace(recipe, **change)))
        for change in changed
    ]
    apart += [dataclasses.replace(base, seed=4), dataclasses.replace(base, phase="holdout")]
    apart += [dataclasses.replace(base, phase="fold", fold=fold, folds=3) for fold in range(3)]
    assert len({shared_batches.stream_key(trial) for trial in (base, *apart)}) == 1 + len(apart)


def test_pack_takes_its_kind_at_its_epoch_within_memory() -> None:
    base = trial_of("All-CNN-B")
    trials = [scaled_lr(base, factor) for factor in (1.0, 2.0, 3.0, 4.0, 5.0)]
    other = dataclasses.replace(base, seed=9)
    stand = {trials[2].key: 2, trials[3].key: -1}

    def grouped(packs: PackPolicy, most: int = 16) -> list[int]:
        waiting = [other, *trials[1:]]
        members = packs.members_for(trials[0], waiting, lambda trial: stand.get(trial.key, 0), most, 4, 64)
        return [trials.index(trial) if trial in trials else -1 for trial in members]

    assert grouped(PackPolicy(16)) == [1, 4]
    assert grouped(PackPolicy(2)) == grouped(PackPolicy(16), 2) == [1]
    assert grouped(PackPolicy()) == grouped(PackPolicy(16), 1) == []
    assert grouped(PackPolicy(16, frozenset({trials[0].cell.key, trials[4].cell.key}))) == [4]
    assert grouped(PackPolicy(16, resident=frozenset({base.cell.dataset}))) == [-1, 1, 4]
    state, step = packing.memory_estimate(base, 4, 64) or (0, 0)
    assert grouped(PackPolicy(16, memory=2 * state + step)) == [1]
    assert grouped(PackPolicy(16, memory=2 * state + step - 1)) == []
    assert grouped(PackPolicy(16, memory=3 * state + 3 * step, side_by_side=True)) == [1, 4]
    assert grouped(PackPolicy(16, memory=3 * state + 3 * step - 1, side_by_side=True)) == [1]


def test_trial_whose_model_cannot_be_built_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("tests.support.user_models:small", size=32, rate=0.5)
    base = trial_of("All-CNN-B")
    cell = dataclasses.replace(base.cell, net=model)
    rates = (0.5, 2.0, 0.25)  # of dropout, and torch takes none above 1
    trials = [dataclasses.replace(base, cell=cell, choices=(("model.rate", rate),)) for rate in rates]
    good, bad, last = trials
    asked = list[int]()

    def measured(requests: Sequence[Request]) -> list[NetFacts | str]:
        asked.append(len(requests))
        return _measured(requests)

    monkeypatch.setattr(model_facts, "_measured", measured)

    def members(first: Trial, waiting: list[Trial] = trials, most: int = 16) -> list[float]:
        beside = PackPolicy(16).members_for(first, waiting, lambda _: 0, most, 4, 32)
        return [float(value) for trial in beside for _, value in trial.choices]

    assert members(good) == [0.5, 0.25]
    assert asked == [3], "all in one process"
    assert members(bad) == []
    assert members(good, [bad, last], most=2) == [0.25], "the one behind takes its place"
    assert asked == [3]


def throughputs(trials: list[Trial], shares: dict[int, float | None]) -> Throughputs:
    """Return the throughputs of `trials`; some, given by number, have trained an epoch with this data share."""
    known = Throughputs({trial.cell.key: float(trial.cell.net.macs(4, 64)) for trial in trials})
    for number, share in shares.items():
        row = {"sys/images_per_s": 100.0} | ({"sys/data_share": share} if share is not None else {})
        known.add(trials[number].cell.key, row)
    return known


def test_packs_form_where_batches_take_a_tenth_of_the_time_to_learn_from_them() -> None:
    base = trial_of("All-CNN-B")
    trials = [scaled_lr(base, factor) for factor in (1.0, 2.0)]
    assert packing.policy_from_throughput(trials, throughputs(trials, {})).most == 1
    assert packing.policy_from_throughput(trials, throughputs(trials, {0: None})).most == 1
    policy = packing.policy_from_throughput(trials, throughputs(trials, {0: 0.1, 1: 0.09}))
    assert policy.cells == {trials[0].cell.key}, "a share of 0.1 is a ratio of 0.11, one of 0.09 of 0.099"
    assert (policy.most, policy.even, policy.memory) == (packing.MAX_MEMBERS, True, float("inf"))
    known = throughputs(trials, {0: 0.5})
    known.add(trials[1].cell.key, {"sys/images_per_s": 100.0, "sys/gpu_size_mib": 10_000.0})
    known.add(trials[1].cell.key, {"sys/images_per_s": 100.0})
    assert packing.policy_from_throughput(trials, known, gpus=0.25).memory == 2_000 << 20
    known.past = {trials[0].cell.key: EpochRates(device_bytes=5e9)}  # smaller than that of this session
    assert packing.policy_from_throughput(trials, known, gpus=0.25).memory == 1e9


def test_packs_on_a_gpu_are_tried_and_go_on_where_they_are_faster() -> None:
    base = trial_of("allconv with dropout")
    cells = [dataclasses.replace(base.cell, label=label, net=base.cell.net.width(width)) for label, width in
             (("faster", 1.0), ("no faster", 2.0), ("alone so far", 4.0), ("new", 8.0))]  # fmt: skip
    trials = [dataclasses.replace(base, cell=cell) for cell in cells]
    known = throughputs(trials, {0: 0.01, 1: 0.01, 2: 0.01})
    for number, speed in ((0, 121.0), (1, 119.0)):
        known.add(cells[number].key, {"sys/images_per_s": speed})  # of a pack: no share of the data
    known.past = {"another": EpochRates(device_bytes=1e9)}
    policy = packing.policy_on_gpu(trials, known, 0.5, frozenset({SMALL}))
    assert policy.cells == {cells[0].key, cells[2].key}
    assert policy.unknown == {cells[3].key}
    assert (policy.most, policy.side_by_side, policy.resident) == (packing.MAX_MEMBERS, True, {SMALL})
    assert (policy.memory, policy.even) == (4e8, True)
    assert packing.policy_on_gpu(trials[3:], known, 1.0, frozenset()).most == 1


@pytest.mark.parametrize(
    ("pack", "gpus", "share", "resident_bytes", "packed", "said"),
    [
        ("auto", 0, 0.5, 0, True, 1),
        ("auto", 0, 0.01, 0, False, 0),
        ("auto", 0, 0.5, 2 << 30, False, 0),
        ("auto", 0.5, 0.01, 0, True, 0),
        ("auto", 0.5, 0.01, 2 << 30, True, 0),
        (None, 0.5, 0.01, 2 << 30, True, 0),
    ],
)
def test_auto_packs_on_a_cpu_what_waits_for_one_stream_and_on_a_gpu_what_has_trained_alone(
    pack: str | None, gpus: float, share: float, resident_bytes: int, packed: bool, said: int
) -> None:
    state, lines = auto_state(pack, gpus, share, resident_bytes=resident_bytes)
    policies = [state.pack_policy() for _ in range(2)]
    trials = members("All-CNN-B")
    assert [len(policy.cells) for policy in policies] == [len(trials) * packed] * 2
    assert {policy.side_by_side for policy in policies} == {gpus > 0}
    assert {bool(policy.resident) for policy in policies} == {gpus > 0 and resident_bytes > 0}
    assert len(lines) == said


def test_packs_that_are_asked_for_are_fixed_and_those_of_ranks_are_as_before() -> None:
    state, _ = auto_state(3, 0.5, 0.01)
    assert (state.pack_policy().most, state.pack_policy().cells, state.pack_policy().side_by_side) == (3, None, True)
    state, _ = auto_state(None, 0, 0.5)
    assert state.pack_policy().most == 1  # unasked there are packs on GPUs alone
    state, _ = auto_state("auto", 0, 0.5, ranks=2)
    assert state.pack_policy is None


def auto_state(pack: int | str | None, gpus: float, share: float, **config: int) -> tuple[Any, list[str]]:
    """Return a driver's state with its policy set, for trials that each waited for this share; and what was said."""
    lines: list[str] = []
    trials = members("All-CNN-B")
    state: Any = SimpleNamespace(
        config=runtime_config(Path(), Path(), **{"resident_bytes": 0, **config}),
        resources=SimpleNamespace(gpus=gpus), pack_policy=None,
    )  # fmt: skip
    forecast: Any = SimpleNamespace(
        plan=SimpleNamespace(to_do=trials), facts={LARGE: dataset(LARGE)},
        settings=SimpleNamespace(resources=SimpleNamespace(pack=pack)),
        throughputs=throughputs(trials, dict.fromkeys(range(len(trials)), share)),
    )  # fmt: skip
    view: Any = SimpleNamespace(log=lines.append)
    _set_pack_policy(state, forecast, view)
    return state, lines


def test_cell_without_epochs_is_judged_by_the_nearest_net_on_the_same_data() -> None:
    base = trial_of("All-CNN-B")
    cells = [dataclasses.replace(base.cell, label=f"{w}", net=base.cell.net.width(w)) for w in (1.0, 1.5, 4.0, 8.0)]
    other = dataclasses.replace(cells[0], label="other", dataset=SMALL)
    trials = [dataclasses.replace(base, cell=cell) for cell in (*cells, other)]
    # The narrow net waits for its pictures, the wide one does not; the second is near the first, the fourth the third.
    policy = packing.policy_from_throughput(trials, throughputs(trials, {0: 0.4, 2: 0.01}))
    assert policy.cells == {trials[0].cell.key, trials[1].cell.key}


@pytest.mark.parametrize(("share", "labels"), [(0.5, ["1", "3", "4", "5", "6"]), (0.01, ["1"])])
def test_first_trials_leave_after_an_epoch_and_all_go_on_as_it_showed(
    share: float, labels: list[str], tmp_path: Path
) -> None:
    here = session(tmp_path, PackPolicy(), count=6)
    trials = [Trial(cell) for cell in here.sweep.cells]
    known = throughputs(trials, {})
    here.pack_policy = lambda: packing.policy_from_throughput(trials, known)
    here.on_event = lambda event, trial, row: known.add(trial.cell.key, row) if event == "epoch" else None
    here.resources = TrialResources(max_concurrent=2)
    queue = LedgerSearcher(here)
    first, second = queue.suggest("a"), queue.suggest("b")
    assert [trial.cell.label for config in (first, second) for trial in trials_in(config)] == ["1", "2"]
    assert first["probe"]
    assert second["probe"]
    row = {"epoch": 1.0, "sys/images_per_s": 100.0, "sys/data_share": share}
    queue.on_trial_result("a", told({"key": trials[0].key, "epoch": 1, "row": row}))
    # It leaves with its state after an epoch, and takes the others with it, or goes on alone.
    here.ledger.write(f"checkpoints/{trials[0].key}/00001-00000000.safetensors", b"")
    queue.on_trial_complete("a")
    third = queue.suggest("c")
    assert not third["probe"]
    assert [trial.cell.label for trial in trials_in(third)] == labels


def test_no_trial_is_stopped_for_packs_that_take_no_training_function(tmp_path: Path) -> None:
    here = session(tmp_path, PackPolicy(), count=3)
    first, *others = here.sweep.cells
    cells = (first, *(dataclasses.replace(cell, task="nowhere_at_all:train") for cell in others))
    here.sweep = dataclasses.replace(here.sweep, cells=cells)
    trials = [Trial(cell) for cell in cells]
    policy = packing.policy_on_gpu(trials, throughputs(trials, {1: None}), 1.0, frozenset())
    assert policy.unknown == {first.key}
    here.pack_policy = lambda: policy
    queue = LedgerSearcher(here)
    suggested: list[Any] = [queue.suggest(name) for name in "abc"]
    assert [assignment["probe"] for assignment in suggested] == [False, False, False]


def session(folder: Path, packs: PackPolicy, count: int = 4) -> DriverState:
    """Return a session over so many cells that share a stream; nothing is trained."""
    base = trial_of("All-CNN-B").cell
    cells = tuple(
        Cell(f"{number}", base.net, base.dataset, dataclasses.replace(base.recipe, lr=0.01 * number))
        for number in range(1, count + 1)
    )
    ledger = Ledger(str(folder))
    state = DriverState(
        Sweep("s", "demo", cells),
        ledger,
        runtime_config(folder, folder),
        TrialResources(),
        lambda *_: None,
        "now",
        {},
        pack_policy=lambda: packs,
    )
    state.epochs = 1  # no canary
    return state


def asked(queue: LedgerSearcher, name: str) -> list[str]:
    """Return the labels of the trials that the queue suggests."""
    return [trial.cell.label for trial in trials_in(queue.suggest(name))]


def trials_in(config: Any) -> list[Trial]:
    return [trial_from_json(json.loads(text)) for text in config["trials"]]


def done(ledger: Ledger, trial: Trial) -> None:
    ledger.commit(trial.key, {"key": trial.key, "metrics": {}})


def gone(trial: Trial, fits: int = 0) -> Json:
    return told({"key": trial.key, "epoch": 0, "over": True, "fits": fits})


def told(news: Json) -> Json:
    return {"news": [news]}


def test_queue_gives_packs_and_sees_each_member_off(tmp_path: Path) -> None:
    here = session(tmp_path, PackPolicy(3))
    heard = list[tuple[str, str]]()
    here.on_event = lambda event, trial, news: heard.append((event, trial.cell.label))
    queue = LedgerSearcher(here)
    pack = trials_in(queue.suggest("a"))
    assert [trial.cell.label for trial in pack] == ["1", "2", "3"]
    assert asked(queue, "b") == ["4"]
    assert queue.suggest("c") is None
    queue.on_trial_result("a", told({"key": pack[1].key, "epoch": 1, "row": {"epoch": 1.0}}))
    done(here.ledger, pack[0])
    queue.on_trial_result("a", gone(pack[0]))
    here.ledger.add_attempt(pack[1].key, failed_attempt(RuntimeError("this time"), final=False))
    queue.on_trial_result("a", gone(pack[1]))
    here.ledger.add_attempt(pack[2].key, failed_attempt(ValueError("never"), final=True))
    queue.on_trial_result("a", gone(pack[2]))
    assert heard[4:] == [("epoch", "2"), ("done", "1"), ("left", "2"), ("failed", "3")]
    # What failed once is tried again, alone.
    assert asked(queue, "c") == ["2"]
    queue.on_trial_complete("a")
    assert queue.suggest("d") is None
    assert [event for event, _ in heard[8:]] == ["started"]


class Clock:
    """Monotonic clock of a session and its queue, which a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("session", "searcher"):
        monkeypatch.setattr(f"sweeps.execution.{module}.time", clock)
    return clock


def test_budget_counts_a_pack_once_and_its_members_their_part(tmp_path: Path, clock: Clock) -> None:
    here = session(tmp_path, PackPolicy(4))
    queue = LedgerSearcher(here)
    pack = trials_in(queue.suggest("a"))
    assert not here.started_at, "to wait for a machine costs nothing"
    queue.trial_started("a")
    clock.now += 7200
    assert here.hours() == 2.0
    queue.on_trial_result("a", gone(pack[3]))
    assert here.hours() == 2.0
    for trial in pack[:3]:
        done(here.ledger, trial)
    queue.on_trial_complete("a")
    clock.now += 3600
    assert here.hours() == 2.0
    assert {*here.seconds_by_trial.values()} == {1800}
    here.limits = Limits(hours=1.0)
    assert queue.suggest("b") == "FINISHED"
    assert here.over_budget
    assert here.stop_reason == "1 GPU-hours of this command are used up"


def test_hours_that_a_command_had_used_before_it_began_anew_count(tmp_path: Path) -> None:
    here = session(tmp_path, PackPolicy(4))
    here.hours_before = 2.0
    assert here.hours() == 2.0
    here.limits = Limits(hours=1.5)
    assert LedgerSearcher(here).suggest("a") == "FINISHED"
    assert here.over_budget


def test_time_of_a_tuner_that_ended_in_an_error_is_counted_and_no_more_runs(tmp_path: Path, clock: Clock) -> None:
    here = session(tmp_path, PackPolicy(4))
    first = LedgerSearcher(here)
    first.suggest("a")
    first.trial_started("a")
    clock.now += 3600
    again = LedgerSearcher(here)
    assert not here.started_at
    clock.now += 3600
    assert here.hours() == 1.0
    assert asked(again, "b") == ["1", "2", "3", "4"]
    assert here.hours() == 1.0


def test_pack_whose_process_dies_comes_back_smaller(tmp_path: Path) -> None:
    here = session(tmp_path, PackPolicy(8))
    queue = LedgerSearcher(here)
    assert asked(queue, "a") == ["1", "2", "3", "4"]
    queue.on_trial_complete("a", error=True)
    assert asked(queue, "b") == ["1", "2"]
    queue.on_trial_complete("b", error=True)
    assert asked(queue, "c") == ["1"]
    queue.on_trial_complete("c", error=True)
    (lost,) = here.ledger.attempts(queue_trial(here, "1").key)
    assert lost["final"]
    assert asked(queue, "d") == ["2"]


def queue_trial(here: DriverState, label: str) -> Trial:
    return next(Trial(cell) for cell in here.sweep.cells if cell.label == label)


def test_memory_that_ran_out_bounds_the_packs_to_come(tmp_path: Path) -> None:
    here = session(tmp_path, PackPolicy(6), count=8)
    queue = LedgerSearcher(here)
    pack = trials_in(queue.suggest("a"))
    assert len(pack) == 6
    queue.on_trial_result("a", gone(pack[5], fits=3))
    assert asked(queue, "b") == ["6", "7", "8"]


def test_members_at_other_epochs_are_no_mates_and_stopping_leaves_all(tmp_path: Path) -> None:
    here = session(tmp_path, PackPolicy(4))
    here.ledger.write(f"checkpoints/{queue_trial(here, '2').key}/00002-00000007.safetensors", b"")
    here.ledger.write(f"checkpoints/{queue_trial(here, '4').key}/00002-00000001.safetensors", b"")
    queue = LedgerSearcher(here)
    assert asked(queue, "a") == ["1", "3"]
    assert asked(queue, "b") == ["2", "4"]
    here.stop()
    for name in "ab":
        queue.on_trial_complete(name)
    assert len(queue.set_aside) == 4
    assert queue.suggest("c") == "FINISHED"


def test_trial_of_two_sweeps_is_trained_by_one_and_done_for_both(tmp_path: Path) -> None:
    first = session(tmp_path, PackPolicy(), count=3)
    heard = list[tuple[str, str]]()
    second = dataclasses.replace(
        first,
        sweep=dataclasses.replace(first.sweep, name="second", cells=first.sweep.cells[1:]),
        on_event=lambda event, trial, news: heard.append((event, trial.cell.label)),
    )
    with Lease(first.ledger, first.sweep.title), Lease(first.ledger, second.sweep.title):
        queue, other = LedgerSearcher(first), LedgerSearcher(second)
        assert asked(queue, "a") + asked(queue, "b") == ["1", "2"]
        assert asked(other, "a") == ["3"]
        # The trials that the second sweep lacks train in the first.
        assert other.suggest("b") is None
        done(first.ledger, queue_trial(first, "2"))
        queue.on_trial_complete("b")
        assert other.suggest("c") is None
        assert heard == [("started", "3"), ("done", "2")]
        assert queue.suggest("c") is None
        done(first.ledger, queue_trial(first, "3"))
        other.on_trial_complete("a")
        assert other.suggest("d") == "FINISHED"
        assert queue.suggest("d") is None  # its own "1" still trains
        assert asked(LedgerSearcher(first), "e") == ["1"]
    # The driver of the first is gone: nobody waits for what it had begun.
    alone = dataclasses.replace(
        second, sweep=dataclasses.replace(first.sweep, name="third", cells=first.sweep.cells[:1])
    )
    assert asked(LedgerSearcher(alone), "a") == ["1"]


def test_even_packs_leave_no_worker_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.execution.searcher.max_concurrent", lambda resources: 3)
    queue = LedgerSearcher(session(tmp_path, PackPolicy(16, even=True), count=8))
    assert [len(asked(queue, name)) for name in "abc"] == [3, 3, 2]


def order(trials: list[Trial], data: Path, ledger: Path, probe: bool = False, **changes: Any) -> Json:
    """Return what the queue gives a worker."""
    return {
        "key": "k",
        "pack": "now-a",
        "trials": [json.dumps(trial.to_json()) for trial in trials],
        "runtime": dataclasses.asdict(runtime_config(data, ledger, **changes)),
        "stop": "stops/now",
        "work": "",
        "probe": probe,
        "pauses": {},
    }


def test_worker_after_a_dead_one_takes_only_those_that_had_not_left(
    data: Path, tmp_path: Path, uninterrupted: Hashes
) -> None:
    trials = members("All-CNN-B")
    heard = list[Json]()
    ledger = Ledger(str(tmp_path / "pack"))
    ledger.write_json("packs/now-a.json", {"left": [trials[0].key]})
    # The process died of the second: its stack was dumped, with its key in the first line.
    trace = f"{trials[1].key:<23}\nstack".encode()
    ledger.write("packs/now-a.hang", trace)
    work(order(trials, data, tmp_path / "pack"), heard.append)
    assert set(ledger.results()) == {trials[2].key}
    assert [news["key"] for news in heard if "over" in news] == [trials[1].key, trials[2].key]
    assert [len(ledger.attempts(trial.key)) for trial in trials] == [0, 1, 0]
    assert ledger.attempts(trials[1].key)[0]["trace"] == "stack"
    assert ledger.read_json("packs/now-a.json") == {"left": sorted(trial.key for trial in trials)}
    assert artifact_hashes(tmp_path / "pack", trials[2]) == uninterrupted(trials[2])


def test_hung_member_is_the_one_to_blame(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom sweeps.execution.watchdog import Watchdog\nfrom sweeps.store.ledger import Ledger\n"
        "watch = Watchdog(Ledger(sys.argv[1]), ['a', 'b', 'c'], 600.0).__enter__()\n"
        "for key in 'abcab':\n    watch.set_current(key)\n"
        "def stuck():\n    watch.seconds = 1.0\n    watch.__enter__()\n    time.sleep(600)\n\nstuck()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=300, check=False)
    assert done.returncode == 1
    ledger = Ledger(str(tmp_path))
    # Another session may pack them otherwise.
    with Watchdog(ledger, ["c", "a"], 1800.0):
        pass
    assert [len(ledger.attempts(key)) for key in "abc"] == [0, 1, 0]
    assert "stuck" in ledger.attempts("b")[0]["trace"]


def test_hang_in_a_pack_is_found_when_its_first_member_has_left(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    hung = Watchdog(ledger, ["a", "b", "c"], 1800.0, "now-a")
    with hung:
        with Watchdog(ledger, ["a"], 1800.0):  # it has left the pack, and trains elsewhere
            pass
        hung.set_current("b")
        hung.file.write(b"stack")
    ledger.write("trials/c/hang.txt", f"{'c':<23}\nof its own".encode())
    for _ in range(2):
        with Watchdog(ledger, ["b", "c"], 1800.0, "now-a"):
            pass
    assert [[attempt["trace"] for attempt in ledger.attempts(key)] for key in "abc"] == [[], ["stack"], ["of its own"]]


def test_stack_of_a_pack_that_has_ended_goes_to_the_trial_that_hung(tmp_path: Path) -> None:
    here = session(tmp_path, PackPolicy(4))
    queue = LedgerSearcher(here)
    pack = trials_in(queue.suggest("a"))
    here.ledger.write_json("packs/now-a.json", {"left": []})
    here.ledger.write("packs/now-a.hang", f"{pack[1].key:<23}\nstack".encode())
    queue.on_trial_complete("a", error=True)
    assert here.ledger.names("packs") == []
    with Watchdog(here.ledger, [pack[1].key], 1800.0):
        pass
    assert [attempt["trace"] for attempt in here.ledger.attempts(pack[1].key)] == ["stack"]


def test_pack_is_off_auto_or_a_number() -> None:
    options = parser("s", "").parse_args
    assert [options(["--pack", word]).pack for word in ("off", "auto", "9")] == [1, "auto", 9]
    assert options([]).pack is None
    with pytest.raises(SystemExit):
        options(["--pack", "many"])


def test_streams_that_several_trials_share_are_of_data_that_does_not_stay_on_the_device() -> None:
    pair = members("All-CNN-B")[:2]
    other = trial_of("allconv with dropout")
    assert packing.shared_datasets([*pair, other], ()) == {LARGE}
    assert packing.shared_datasets([*pair, other], {LARGE}) == set()


def test_trainer_of_a_worker_is_the_one_that_its_ranks_or_a_benchmark_need() -> None:
    from sweeps.execution import rank_processes

    assert train_function("", 1) is run_trial
    assert train_function("", 2) is rank_processes.run_trial
    assert train_function("benchmarks.trivial:bowl", 1).__name__ == "bowl"


def test_worker_of_one_rank_imports_no_rank_processes(data: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys\nfrom sweeps.execution.worker import work\n"
        "work(json.loads(sys.argv[1]), lambda message: None)\n"
        "sys.exit('sweeps.execution.rank_processes' in sys.modules)"
    )
    trial = trial_of("allconv with dropout")
    words = [sys.executable, "-W", "ignore", "-c", code, json.dumps(order([trial], data, tmp_path))]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    assert Ledger(str(tmp_path)).result(trial.key) is not None


@pytest.mark.parametrize("when", ["before", "while it imports"])
def test_worker_that_is_told_to_stop_trains_nothing(
    when: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of("All-CNN-B")
    ledger = Ledger(str(tmp_path))
    monkeypatch.setitem(STOP_POLL, True, 0.0)

    def imported(*_: object) -> Any:
        assert when == "while it imports", "nothing is imported"
        ledger.write_json("stops/now", {})
        return lambda *_: pytest.fail("nothing is trained")

    monkeypatch.setattr(worker, "train_function", imported)
    if when == "before":
        ledger.write_json("stops/now", {})
    work(order([trial], data, tmp_path), lambda _: pytest.fail("nothing is told"))
    assert not ledger.folders("attempts")
    assert not ledger.folders("trials")


def test_probe_leaves_after_an_epoch_and_goes_on_as_if_it_had_not(
    data: Path, tmp_path: Path, uninterrupted: Hashes
) -> None:
    trial = trial_of("All-CNN-B")
    heard = list[Json]()
    work(order([trial], data, tmp_path, probe=True), heard.append)
    assert [news["epoch"] for news in heard] == [1]
    ledger = Ledger(str(tmp_path))
    assert ledger.result(trial.key) is None
    assert not ledger.attempts(trial.key)
    work(order([trial], data, tmp_path), heard.append)
    assert [news["epoch"] for news in heard] == [1, 2, 3]
    assert artifact_hashes(tmp_path, trial) == uninterrupted(trial)


def searching(folder: Path, protocol: Protocol, packs: PackPolicy) -> DriverState:
    """Return a session over four cells whose results decide what follows."""
    here = session(folder, packs)
    here.sweep = dataclasses.replace(here.sweep, protocol=protocol)
    return here


def asking(folder: Path, until: int) -> tuple[DriverState, list[str]]:
    """Return a session with a question over its first two cells, and the list of what it says."""
    here = session(folder, PackPolicy(1))
    question = Question("is it", cell="1", versus="2", margin=0.2)
    here.sweep = dataclasses.replace(here.sweep, protocol=Protocol(seeds=3, until=until), questions=(question,))
    said = list[str]()
    here.say = said.append
    return here, said


def test_queue_of_a_sweep_until_decided_is_what_the_plan_says_after_each_result(tmp_path: Path) -> None:
    here, said = asking(tmp_path, until=12)
    queue = LedgerSearcher(here)
    trained = Counter[str]()
    while queue.waiting:
        trial = queue.waiting[-1]
        error = (20.0 if trial.cell.label == "1" else 21.0) + (0.0, 0.6, 0.3)[trial.seed * int(trial.cell.label) % 3]
        result: Json = {"key": trial.key, "metrics": {TOP1: error}, "curve": [], "status": "finished"}
        queue._record_result(trial, here.ledger.commit(trial.key, result))
        trained[trial.cell.label] += 1
        results = here.ledger.results()
        wanted = [trial.key for trial in expand(here.sweep, results) if trial.key not in results]
        assert [trial.key for trial in queue.waiting[::-1]] == wanted
    assert trained["3"] == trained["4"] == 3
    assert 3 < trained["1"] == trained["2"] < 12
    LedgerSearcher(here)
    assert here.decided() == 1
    here.answers = dict.fromkeys(here.answers or {}, Trajectory((), "undecided"))
    assert here.decided() == 0
    here.answers = None
    LedgerSearcher(here)  # of a command that is begun anew
    assert said == [f"is it: yes ({trained['1']} seeds each)"]


def test_question_over_a_cell_that_was_given_up_is_told_so(tmp_path: Path) -> None:
    here, said = asking(tmp_path, until=4)
    queue = LedgerSearcher(here)
    while queue.waiting:
        trial = queue.waiting[-1]
        status = "diverged" if trial.cell.label == "1" else "finished"
        result: Json = {"key": trial.key, "metrics": {TOP1: 20.0 + trial.seed}, "curve": [], "status": status}
        queue._record_result(trial, here.ledger.commit(trial.key, result))
    assert said == ["is it: undecided: 1 was given up (2 seeds each)"]


def test_queue_of_searches_at_a_studied_rate_is_what_the_plan_says_after_each_result(tmp_path: Path) -> None:
    protocol = Protocol(seeds=2, search=Search(2, "random"), rates=RateStudy("1", (0.1, 0.2, 0.4)))
    here = searching(tmp_path, protocol, PackPolicy(1))
    queue = LedgerSearcher(here)
    rates = list[float]()
    while queue.waiting:
        trial = queue.waiting[-1]
        error = 20.0 + abs(trial.recipe.lr - 0.2)
        result: Json = {"key": trial.key, "metrics": {TOP1: error, "best/val_top1_err": error, "best/epoch": 1.0},
                        "curve": [error] * trial.recipe.epochs, "status": "finished"}  # fmt: skip
        queue._record_result(trial, here.ledger.commit(trial.key, result))
        rates += [trial.recipe.lr] if trial.cell.label == "1" else []
        results = here.ledger.results()
        wanted = [trial.key for trial in expand(here.sweep, results) if trial.key not in results]
        assert [trial.key for trial in queue.waiting[::-1]] == wanted
    assert set(rates[3:]) == {0.2}, "the best of the three is that of all that follows"


def test_baseline_that_is_not_asked_for_has_its_rates_studied(tmp_path: Path) -> None:
    here = searching(tmp_path, Protocol(seeds=1, rates=RateStudy("1", (0.1, 0.2))), PackPolicy(1))
    base = here.sweep.cells[0]
    like_it = tuple(dataclasses.replace(base, label=f"{n}", net=base.net.dropout(0.1 * n, "input")) for n in (2, 3))
    here.sweep = dataclasses.replace(here.sweep, cells=(base, *like_it)).only(["2", "3"])
    queue = LedgerSearcher(here)
    for number in range(2):
        (trial,) = trials_in(queue.suggest(f"a{number}"))
        assert (trial.cell.label, trial.rate) == ("1", (0.1, 0.2)[number])
        here.ledger.commit(trial.key, {"key": trial.key, "metrics": {"best/val_top1_err": 9.0 - number}, "curve": [],
                                       "status": "finished"})  # fmt: skip
        queue.on_trial_complete(f"a{number}")
    assert {(trial.cell.label, trial.rate) for trial in queue.waiting} == {("2", 0.2), ("3", 0.2)}


FOLLOWING = {
    "Single": Protocol(seeds=1, ablation=False, single=True),
    "a search": Protocol(seeds=1, ablation=False, folds=2, search=Search(4, "random", 2)),
    "a study of the learning rate": Protocol(seeds=1, rates=RateStudy("1", (0.1, 0.2, 0.4))),
    "a cell that diverges": Protocol(seeds=4),
}


@pytest.mark.parametrize("what", FOLLOWING)
def test_mate_that_another_sweep_has_finished_does_not_put_the_first_of_a_pack_back(what: str, tmp_path: Path) -> None:
    here = searching(tmp_path, FOLLOWING[what], PackPolicy(3))
    queue = LedgerSearcher(here)
    trials = queue.waiting[::-1]
    policy = here.pack_policy()
    member = policy.members_for(trials[0], trials[1:], lambda _: 0, 3, 4, 64)[0]
    result: Json = {"key": member.key, "metrics": {"best/val_top1_err": 20.0}, "curve": [20.0], "status": "finished"}
    here.ledger.commit(member.key, result | ({"status": "diverged"} if "diverges" in what else {}))
    group = trials_in(queue.suggest("a"))
    assert group[0].key == trials[0].key
    assert member.key not in {trial.key for trial in group}
    taken = [trial.key for trial in group]
    for number in range(40):
        if not isinstance(config := queue.suggest(f"b{number}"), dict):
            break
        taken += [trial.key for trial in trials_in(config)]
    assert number
    assert len(taken) == len(set(taken)), "a trial went to two workers"
    assert not {trial.key for trial in queue.waiting} & set(taken)


@pytest.mark.parametrize("what", FOLLOWING)
@pytest.mark.parametrize("last", ["done", "failed", "left"])
def test_members_of_a_worker_that_has_ended_are_not_put_back_before_each_is_seen_off(
    what: str, last: str, tmp_path: Path
) -> None:
    heard = list[tuple[str, str]]()
    here = searching(tmp_path, FOLLOWING[what], PackPolicy(2))
    here.on_event = lambda event, trial, news: heard.append((event, trial.key))
    queue = LedgerSearcher(here)
    first, second = trials_in(queue.suggest("a"))
    result: Json = {"metrics": {"best/val_top1_err": 20.0}, "curve": [20.0], "status": "finished"}
    status = {"status": "diverged"} if "diverges" in what else {}
    here.ledger.commit(first.key, result | status | {"key": first.key})
    if last == "done":
        here.ledger.commit(second.key, result | status | {"key": second.key})
    elif last == "failed":
        here.ledger.add_attempt(second.key, failed_attempt(ValueError("never"), final=True))
    queue.on_trial_complete("a")
    assert not queue.running
    assert [key in {trial.key for trial in queue.waiting} for key in (first.key, second.key)] == [False, last == "left"]
    for number in range(40):
        if not isinstance(queue.suggest(f"b{number}"), dict):
            break
    assert Counter(heard)[last, second.key] == 1
    assert Counter(heard)["started", second.key] == 1 + (last == "left")


@pytest.mark.parametrize("what", ["first", "second"])
def test_trial_that_another_sweep_has_given_up_is_neither_waited_for_nor_trained(what: str, tmp_path: Path) -> None:
    heard = list[tuple[str, str]]()
    here = searching(tmp_path, Protocol(seeds=2), PackPolicy(2, resident=frozenset({LARGE})))
    here.on_event = lambda event, trial, news: heard.append((event, trial.key))
    queue = LedgerSearcher(here)
    lost = trials_in(queue.suggest("a"))[what == "second"]
    queue.on_trial_complete("a")
    here.ledger.add_attempt(lost.key, failed_attempt(ValueError("never"), final=True))
    queue = LedgerSearcher(here)
    queue.failed.clear()  # it failed after this driver had read the ledger
    queue.waiting = queue._missing_trials()
    heard.clear()
    for number in range(40):
        if not isinstance(queue.suggest(f"b{number}"), dict):
            break
    assert lost.key not in {trial.key for trial in queue.waiting}
    assert [event for event, key in heard if key == lost.key] == ["failed"]
    assert here.ledger.read(f"claims/{lost.key}.json") is None


def test_trial_that_follows_no_more_is_not_taken_off_an_old_queue(tmp_path: Path) -> None:
    here = searching(tmp_path, Protocol(seeds=4), PackPolicy())
    here.sweep = dataclasses.replace(here.sweep, cells=here.sweep.cells[:1])
    queue = LedgerSearcher(here)
    for trial in queue.waiting[:1:-1]:  # another sweep has finished the first two: they diverged
        here.ledger.commit(trial.key, {"key": trial.key, "metrics": {}, "status": "diverged"})
    assert queue.suggest("a") == "FINISHED"
    (why,) = here.given_up.values()
    assert why == "the first 2 trainings of this cell diverged; its other trainings are skipped"


def test_cell_whose_only_two_trainings_diverged_is_not_given_up(tmp_path: Path) -> None:
    here = searching(tmp_path, Protocol(seeds=2), PackPolicy(1))
    here.sweep = dataclasses.replace(here.sweep, cells=here.sweep.cells[:1])
    queue = LedgerSearcher(here)
    for trial in queue.waiting:
        here.ledger.commit(trial.key, {"key": trial.key, "metrics": {}, "status": "diverged"})
    assert queue.suggest("a") == "FINISHED"
    assert here.given_up == {}


def test_trial_that_failed_is_none_of_its_cell_s_first_trainings_to_the_queue_too(tmp_path: Path) -> None:
    here = searching(tmp_path, Protocol(seeds=6), PackPolicy(1))
    here.sweep = dataclasses.replace(here.sweep, cells=here.sweep.cells[:1])
    queue = LedgerSearcher(here)
    names = [f"a{number}" for number in range(3)]
    (first,), (second,), (third,) = (trials_in(queue.suggest(name)) for name in names)
    for name, trial in ((names[0], first), (names[2], third)):
        here.ledger.commit(trial.key, {"key": trial.key, "metrics": {}, "status": "diverged"})
        queue.on_trial_complete(name)
    assert len(queue.waiting) == 3
    here.ledger.add_attempt(second.key, failed_attempt(ValueError("never"), final=True))
    queue.on_trial_complete(names[1])
    assert (queue.waiting, list(here.given_up)) == ([], [first.cell.label])


def test_mate_that_follows_no_more_is_not_taken_beside_the_first(tmp_path: Path) -> None:
    here = searching(tmp_path, Protocol(ablation=False, folds=4), PackPolicy(6, resident=frozenset({LARGE})))
    sound, given_up = here.sweep.cells[:2]
    here.sweep = dataclasses.replace(here.sweep, cells=(sound, given_up))
    queue = LedgerSearcher(here)
    order = queue.waiting[::-1]
    for trial in [trial for trial in order if trial.cell is given_up][:2]:  # another sweep has finished them
        here.ledger.commit(trial.key, {"key": trial.key, "metrics": {}, "status": "diverged"})
    assert trials_in(queue.suggest("a")) == [trial for trial in order if trial.cell is sound][:3]
    assert list(here.given_up) == [given_up.label]
