"""A Ray of this machine that dies under a sweep: it is said, Ray is started anew, and the trials go on."""

import errno
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError, WorkerCrashedError

from sweeps.execution import ray_runtime, tuner
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.experiment.plan import MAX_ATTEMPTS
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json, Ledger
from sweeps.training.runtime import RuntimeConfig
from tests.support.trials import runtime_config, trial_of

ROOT = Path(__file__).parents[2]
DEATH = "Ray's raylet has died (killed by signal 9)"


def session(folder: Path, said: list[str], **more: Any) -> DriverState:
    """Return a session over one trial that says its sentences to a list."""
    sweep = Sweep("s", "demo", (trial_of("All-CNN-B").cell,))
    config = runtime_config(folder, folder)
    return DriverState(
        sweep, Ledger(str(folder)), config, TrialResources(), lambda *_: None, "now", {}, say=said.append, **more
    )


def commit(trial: Trial, ledger: Ledger) -> Json:
    """Commit the result of a trial that nothing was trained for."""
    result: Json = {"key": trial.key, "metrics": {}}
    ledger.commit(trial.key, result)
    return result


class FakeTuner:
    """Tuner that leaves by a Ray that died, as often as it is told to, and then trains what is missing."""

    def __init__(self, state: DriverState, deaths: int, on_death: Callable[[], object] = lambda: None) -> None:
        self.state = state
        self.deaths = deaths
        self.on_death = on_death
        self.fits = 0

    def __call__(self, searcher: tuner.LedgerSearcher, *_: object) -> "FakeTuner":
        self.waiting = list(searcher.waiting)
        return self

    def fit(self) -> None:
        self.fits += 1
        if self.fits <= self.deaths:
            self.on_death()
            raise ray_runtime.RayDiedError(DEATH)
        self.state.epochs += 1
        for trial in self.waiting:
            commit(trial, self.state.ledger)


@pytest.mark.parametrize("deaths", [1, 2])
def test_ray_is_started_anew_and_said_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int) -> None:
    said: list[str] = []
    state = session(tmp_path, said)
    restarts = list[int]()
    fake = FakeTuner(state, deaths)
    monkeypatch.setattr(tuner, "_tuner", fake)
    monkeypatch.setattr(ray_runtime, "restart_ray", lambda: restarts.append(fake.fits))
    tuner.run_trials(state)
    assert restarts == [*range(1, deaths + 1)]
    assert said == [f"{DEATH}; starting Ray anew, trials go on from their checkpoints"] * deaths
    assert len(state.ledger.results()) == 1


def test_a_ray_that_dies_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = session(tmp_path, [])
    monkeypatch.setattr(tuner, "_tuner", FakeTuner(state, 99))
    monkeypatch.setattr(ray_runtime, "restart_ray", lambda: None)
    with pytest.raises(tuner.NoProgressError, match=r"3 sessions in a row brought nothing: Ray's raylet has died"):
        tuner.run_trials(state)


def test_a_ray_that_does_not_start_anew_is_given_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def restart() -> None:
        raise ValueError("Ray does not start on this machine")

    state = session(tmp_path, [])
    fake = FakeTuner(state, 99)
    monkeypatch.setattr(tuner, "_tuner", fake)
    monkeypatch.setattr(ray_runtime, "restart_ray", restart)
    with pytest.raises(tuner.NoProgressError, match=r"raylet has died .*; Ray does not start on this machine"):
        tuner.run_trials(state)
    assert fake.fits == 1


def test_a_session_that_is_stopping_does_not_start_ray_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    state = session(tmp_path, said)
    monkeypatch.setattr(tuner, "_tuner", FakeTuner(state, 99, state.stop))
    monkeypatch.setattr(ray_runtime, "restart_ray", lambda: pytest.fail("it starts Ray for nothing"))
    tuner.run_trials(state)
    assert said == [f"{DEATH}; trials go on from their checkpoints with the next command"]


def node(**processes: list[int | None]) -> SimpleNamespace:
    """Return a node of Ray whose processes have ended with these codes; None: they live."""
    dead = [(name, SimpleNamespace(poll=lambda c=c: c)) for name, cs in processes.items() for c in cs if c is not None]
    return SimpleNamespace(dead_processes=lambda: dead)


@pytest.mark.parametrize(
    ("processes", "sentence"),
    [
        ({"raylet": [None], "gcs_server": [None]}, ""),
        ({}, ""),
        ({"raylet": [-9], "gcs_server": [None]}, DEATH),
        ({"raylet": [None], "gcs_server": [-6]}, "Ray's gcs_server has died (killed by signal 6)"),
        ({"raylet": [1]}, "Ray's raylet has died (exit code 1)"),
        ({"raylet": [0]}, "Ray's raylet has died (exit code 0)"),
    ],
)
def test_the_process_that_died_is_named(
    monkeypatch: pytest.MonkeyPatch, processes: dict[str, list[int | None]], sentence: str
) -> None:
    monkeypatch.setattr(ray_runtime.ray._private.worker, "_global_node", node(**processes))
    assert ray_runtime.death() == sentence
    idle: Any = SimpleNamespace(session=SimpleNamespace(stopping=False))
    if sentence:
        with pytest.raises(ray_runtime.RayDiedError):
            tuner.StartCallback(idle).on_step_begin()
    else:
        tuner.StartCallback(idle).on_step_begin()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RayActorError(), True),
        (ActorDiedError(), True),
        (ActorUnavailableError("gone", None), True),
        (ValueError("a batch of one"), False),  # on the ledger, and in the table's notes
        (None, False),
    ],
)
def test_a_worker_that_died_is_named_by_its_trial(tmp_path: Path, error: Exception | None, said: bool) -> None:
    sentences: list[str] = []
    searcher = tuner.LedgerSearcher(session(tmp_path, sentences))
    searcher.suggest("a")
    callback = tuner.StartCallback(searcher)
    file = tmp_path / "error.pkl"
    if error is not None:
        file.write_bytes(pickle.dumps(error))
    for name in ("a", "unknown"):
        callback.on_trial_recover(SimpleNamespace(trial_id=name, pickled_error_file=str(file)))  # type: ignore[arg-type]
    (trial,) = searcher.running["a"]
    sentence = f"the worker of {trial.cell.label} {trial.label} died; another goes on from the checkpoint"
    assert sentences == ([sentence] if said else [])


def test_wait_for_another_machine_in_place_of_one_that_has_gone_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for module in ("session", "searcher"):
        clock = SimpleNamespace(monotonic=lambda: now, time=lambda: now)
        monkeypatch.setattr(f"sweeps.execution.{module}.time", clock)
    state = session(tmp_path, [])
    searcher = tuner.LedgerSearcher(state)
    searcher.suggest("a")
    callback = tuner.StartCallback(searcher)
    reclaimed: Any = SimpleNamespace(trial_id="a", pickled_error_file="")
    for hours in (1.0, 2.0):
        callback.on_trial_start(reclaimed)
        now += 3600
        callback.on_trial_recover(reclaimed)
        assert not state.started_at, "its clock runs on while it waits"
        now += 3600
        assert state.hours() == hours
    searcher.on_trial_complete("a", error=True)  # before it has got a machine again
    assert state.hours() == 2.0
    assert [*state.seconds_by_trial.values()] == [7200]


def test_stop_that_the_store_did_not_take_is_told_again_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = session(tmp_path, [])
    callback = tuner.StartCallback(tuner.LedgerSearcher(state))
    write = Ledger.write
    tries: list[str] = []
    now = 100.0

    def write_at_third(ledger: Ledger, name: str, content: bytes) -> None:
        tries.append(name)
        if len(tries) < 3:
            raise OSError(errno.EIO, "the disk is away")
        write(ledger, name, content)

    monkeypatch.setattr(Ledger, "write", write_at_third)
    monkeypatch.setattr("sweeps.execution.session.time", SimpleNamespace(monotonic=lambda: now))
    callback.on_step_begin()
    assert tries == []
    state.stop()
    for expected in (1, 2, 3, 3):
        for _ in range(2):
            callback.on_step_begin()
            assert tries == [state.stop_mark] * expected
        now += 1.0
    assert state.ledger.names("stops") == [state.name]
    assert len(state.errors) == 1


OF_A_BUCKET = "OSError: AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7"
RAISED = RayTaskError("train", f"Traceback (most recent call last):\n{OF_A_BUCKET}", OSError(), "ray::train", 7, "::1")


@pytest.mark.parametrize(
    ("kept", "error"),
    [
        (pickle.dumps(ActorDiedError()), ""),
        (pickle.dumps(WorkerCrashedError()), ""),
        (pickle.dumps(None), ""),
        (pickle.dumps(RAISED), OF_A_BUCKET),
        (pickle.dumps(OSError()), "OSError"),
        (b"cnot_here\nError\n.", "No module named 'not_here'"),
    ],
)
def test_a_trial_fails_by_the_death_of_its_process_only_where_that_died(
    tmp_path: Path, kept: bytes, error: str
) -> None:
    died = not error
    file = tmp_path / "error.pkl"
    file.write_bytes(kept)
    state = session(tmp_path, [])
    for number in range(1 if died else MAX_ATTEMPTS):  # each Tuner has a searcher of its own
        searcher = tuner.LedgerSearcher(state)
        assert searcher.failed == set()
        searcher.suggest("a")
        (trial,) = searcher.running["a"]
        ended = SimpleNamespace(trial_id="a", pickled_error_file=str(file))
        tuner.StartCallback(searcher).on_trial_start(ended)  # type: ignore[arg-type]
        searcher.on_trial_complete("a", error=True)
        assert searcher.suggest("b") == "FINISHED"
        assert len(state.ledger.attempts(trial.key)) == number + 1
    assert (searcher.failed, searcher.last_errors) == ({trial.key}, {})
    last = state.ledger.attempts(trial.key)[-1]["error"]
    assert last == (f"the worker process died {MAX_ATTEMPTS} times" if died else error)
    assert state.errors == ([] if died else [error] * MAX_ATTEMPTS)


def test_no_ray_at_all_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime.ray._private.worker, "_global_node", None)
    assert ray_runtime.death() == ""


def test_a_queue_whose_ray_has_died_hands_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime.ray._private.worker, "_global_node", node(raylet=[-9]))
    searcher = tuner.LedgerSearcher(session(tmp_path, []))
    with pytest.raises(ray_runtime.RayDiedError, match="raylet"):
        searcher.suggest("a")
    assert searcher.running == {}


def test_tune_does_not_clean_up_by_calls_to_a_dead_ray() -> None:
    assert not issubclass(ray_runtime.RayDiedError, Exception)


def test_a_tuner_that_a_dead_ray_holds_is_started_over(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = list[str]()
    started_over = threading.Event()

    def start_over(why: str) -> None:
        heard.append(why)
        started_over.set()

    deaths = ["", DEATH, "", *[DEATH] * 1000]  # a Ray that was started anew in time counts from the start
    looks = 0

    def look() -> str:
        nonlocal looks
        looks += 1
        return deaths[looks - 1]

    monkeypatch.setattr(ray_runtime, "death", look)
    monkeypatch.setattr(tuner, "time", SimpleNamespace(monotonic=lambda: float(looks)))  # a second from look to look
    with tuner.StuckWatch(start_over, poll=0.001, patience=5.0):
        assert started_over.wait(120)
    assert heard == [DEATH]
    assert looks == 4 + 5, "it was not patient"


def test_a_tuner_that_leaves_a_dead_ray_is_not_started_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "death", lambda: DEATH)
    with tuner.StuckWatch(lambda _: pytest.fail("it is started over"), poll=0.005, patience=60.0) as watch:
        time.sleep(0.05)
    assert not watch.thread.is_alive()


def test_tasks_of_a_ray_that_died_are_lost_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(
        remote=lambda **_: lambda function: SimpleNamespace(remote=lambda item: f"ref {item}"),
        wait=lambda refs, **_: (refs[:1], refs[1:]) if "ref 1" in refs else ([], refs),
        get=lambda ref: f"value of {ref}",
    )
    monkeypatch.setattr(ray_runtime, "machines", lambda: [{"memory": 1.0}])
    monkeypatch.setattr(ray_runtime, "death", lambda: DEATH)
    monkeypatch.setattr(ray_runtime, "ray", ray)
    assert [*ray_runtime.map_tasks(str, [1, 2, 3])] == [(1, "value of ref 1"), (2, DEATH), (3, DEATH)]


def kill_raylet_once(trial: Trial, place: RuntimeConfig, report: Any, stop: Any) -> Any:
    """Kill the raylet in the first training and train on, as a process does that has not noticed; then be done."""
    mark = Path(place.ledger) / "killed"
    if not mark.exists():
        mark.write_text(f"{os.getpid()}")
        os.kill(int(os.environ["RAY_RAYLET_PID"]), 9)
        time.sleep(300)
    return commit(trial, Ledger(place.ledger))


def drive(folder: str) -> None:
    """Run a sweep whose first trial kills the raylet; print what was said and which worker lives on."""
    import psutil

    said: list[str] = []
    killed: list[int] = []
    kill = psutil.Process.kill

    def noted(process: psutil.Process) -> None:
        killed.append(process.pid)  # it may take a moment to end
        kill(process)

    psutil.Process.kill = noted
    train = f"{__name__}:{kill_raylet_once.__name__}"
    state = session(Path(folder), said, work=train, start_over=lambda _: None)  # of a Tuner that leaves late
    ray_runtime.init_ray("local", 1)
    tuner.run_trials(state)
    first = int((Path(folder) / "killed").read_text())
    print(json.dumps([said, len(state.ledger.results()), psutil.pid_exists(first) and first not in killed]))


def test_a_sweep_goes_on_where_the_raylet_was_killed(tmp_path: Path) -> None:
    # Tokens are asked for everywhere, as by a later Ray's default.
    tokens = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    code = "import sys; from tests.execution.test_ray_death import drive; drive(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300,
        cwd=ROOT, env=os.environ | tokens | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, results, first_lives = json.loads(done.stdout)
    assert said == [f"{DEATH}; starting Ray anew, trials go on from their checkpoints"]
    assert results == 1
    assert not first_lives, "a worker of the dead Ray would train beside its successor"
