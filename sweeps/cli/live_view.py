"""Live view of a running sweep: one table on a terminal, one line per change elsewhere."""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from sweeps.cli.forecast import Forecast, time_text
from sweeps.cli.live_layout import EVENTS, CellRow, RunningTrial, Screen
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.metrics import Metric, ending_word, error_text, flags_of
from sweeps.experiment.plan import TO_DO, Plan
from sweeps.experiment.profiles import data_name
from sweeps.experiment.study import beyond_limits
from sweeps.experiment.trial import Cell, Trial
from sweeps.experiment.wording import count
from sweeps.report.notebook import Picture, in_notebook
from sweeps.store.ledger import Json

TICK = 0.5  # seconds between two pictures, at most
BURST = 0.05  # seconds in which news make one picture
HEARTBEAT = 60.0  # seconds between two lines of progress, off a terminal
WRITING = 1.0  # seconds in which a checkpoint is written
ROOM = 8e6  # bytes free under which a disk counts as nearly full
NOTEBOOK_LINES = 200  # of the view where nothing limits them
TURN = 4.0  # seconds for which each page is shown where the cells that train need several
# Name of a phase's trainings in a cell's row.
PARTS = {"holdout": "first", "inner": "search", "ablation": "seeds", "match": "single", "fold": "folds"}


class SweepProgress:
    """Progress of a sweep, from its events: which trials run, which are done, the latest epoch of each."""

    def __init__(self, plan: Plan) -> None:
        """Begin from the plan."""
        self.plan = plan
        self.forecast: Forecast | None = None  # once the hardware is known
        self.states = {status.trial.key: status.state for status in plan.statuses}
        self.results = {status.trial.key: status.result for status in plan.statuses if status.result is not None}
        self.trials = {status.trial.key: status.trial for status in plan.statuses}
        self.pending = list(plan.pending)
        self.planned: Sequence[Trial] = ()
        self.epochs: dict[str, int] = {}  # done, by trial key: of this session and of earlier ones
        self.outdated: set[str] = set()  # keys of trials whose checkpoint is by other code
        self.best: dict[str, float] = {}  # hold-out values so far, the best of each trial
        self.beyond: set[str] = set()  # keys of a search's trials that cannot be chosen: they exceed its limits
        self.curves: dict[str, list[float]] = {}  # by epoch: hold-out values, or training errors where none is held out
        self.speed: dict[str, float] = {}
        self.seconds = 0.0
        self.decided: Callable[[], int] = lambda: 0  # number of questions with an answer
        for key, result in self.results.items():
            self._compare_with_limits(key, result)

    def update_plan(self, planned: Sequence[Trial], pending: Sequence[Trial]) -> None:
        """Take in the trials that are planned now; `pending` stand for trials that are not known yet.

        What is planned no more, as its cell has been given up, is skipped.
        """
        self.pending = list(pending)
        if planned is not self.planned:
            self.planned = planned
            for trial in planned:
                self.trials.setdefault(trial.key, trial)
                self.states.setdefault(trial.key, "new")
            for key in self.states.keys() - {trial.key for trial in planned}:
                if self.states[key] in TO_DO:
                    self.states[key] = "skipped"

    def apply(self, event: str, trial: Trial, news: Json) -> str:
        """Take in one event and return its line; empty for an event without one."""
        key = trial.key
        name = f"{trial.cell.label} {trial.label}"
        self.trials[key] = trial
        if event == "epoch":
            self.epochs[key] = int(news["epoch"])
            if self.epochs[key] == 1:
                self.best.pop(key, None)  # of an attempt that diverged, and was begun again
                self.curves.pop(key, None)
            self._add_epoch(trial, news)
            self.speed[key] = float(news["sys/images_per_s"])
            if self.forecast is not None:
                self.forecast.add_epoch(trial, news)
            return ""
        self.states[key] = {"started": "training", "left": "running"}.get(event, event)
        if event == "done":
            self.results[key] = news
            self._compare_with_limits(key, news)
            self.seconds += float(news["seconds"])
            if self.forecast is not None:
                self.forecast.add_result(news)
            metrics: dict[str, float] = news["metrics"]
            mark = "" if news["status"] == "finished" else f" ({ending_word(news)})"
            epochs = count(int(news["epochs"]), "epoch")
            value = _value(trial.cell.metric, metrics)
            return f"{name}: done{value} after {epochs}, {news['seconds']:.0f} s{mark}"
        if event == "paused":
            best = {trial.cell.metric.held_out: trial.cell.metric.best(news["curve"])}
            return (
                f"{name}: paused{_value(trial.cell.metric, best)} after epoch {news['epoch']} of {trial.recipe.epochs}"
            )
        if event == "failed":
            return f"{name}: failed: {news['error']}"
        why = f" ({news['error']})" if news.get("error") else ""
        return f"{name}: {'training' if event == 'started' else f'left, to be resumed{why}'}"

    def resume(self, trial: Trial, state: Json | None) -> None:
        """Take in where a trial that was begun goes on: the plain state of its checkpoint, unless by other code."""
        if state is not None and state.get("code") != cell_fingerprint(trial.cell):
            self.outdated.add(trial.key)
        elif state is not None:
            self.epochs[trial.key] = int(state.get("epoch", 0))
            for row in state.get("history", ()):
                self._add_epoch(trial, row)

    def resumed(self, trials: Sequence[Trial]) -> str:
        """Return how many trainings were interrupted, and after which epochs they go on, or why from the start."""
        places = Counter(self.epochs.get(trial.key, 0) for trial in trials)
        outdated = len(self.outdated & {trial.key for trial in trials})
        start = f"from the start{f' ({outdated} since the code has changed)' if outdated else ''}"
        parts = [f"{n} {f'after epoch {epoch}' if epoch else start}" for epoch, n in sorted(places.items())]
        verb = "goes" if len(trials) == 1 else "go"
        return f"{count(len(trials), 'interrupted training')} {verb} on: {', '.join(parts)}"

    def _compare_with_limits(self, key: str, result: Json) -> None:
        """Take in whether a finished trial of a search keeps its limits."""
        search, trial = self.plan.sweep.protocol.search, self.trials[key]
        if search is not None and search.limits and trial.fold == 0 and self._part(key, trial) == "search":
            self.beyond |= beyond_limits(search, trial, result)

    def _part(self, key: str, trial: Trial) -> str:
        """Return the name of the part of its cell's row that a trial belongs to; the key is empty for a stand-in."""
        search = self.plan.sweep.protocol.search
        searched = search is not None and trial.phase == "holdout" and trial.seed == search.seed
        return "rates" if key in self.plan.studied else "search" if searched else PARTS[trial.phase]

    def _add_epoch(self, trial: Trial, row: Mapping[str, float]) -> None:
        """Take in the hold-out value of an epoch; a phase that holds nothing out has none."""
        value = row.get(trial.cell.metric.row)
        if value is not None and math.isfinite(value):
            self.best[trial.key] = trial.cell.metric.best([float(value), self.best.get(trial.key, float(value))])
        shown = row.get("train/top1_err", row.get("train/loss")) if value is None else value
        if shown is not None:
            self.curves.setdefault(trial.key, []).append(float(shown))

    def counts(self) -> str:
        """Return how many trials are done, how many train, and the time left."""
        return ", ".join(self.count_words())

    def count_words(self) -> tuple[str, ...]:
        """Return the parts of `counts`."""
        states = list(self.states.values())
        done = sum(state in ("done", "stale") for state in states)
        rest = [f"{states.count(state)} {state}" for state in ("paused", "failed") if state in states]
        words = [f"{done}/{len(states) + len(self.pending)} done", f"{states.count('training')} training", *rest]
        return (*words, *filter(None, [self._decided_words(), self._eta()]))

    def _decided_words(self) -> str:
        """Return how many questions of a sweep until decided are decided; empty for any other sweep."""
        sweep = self.plan.sweep
        if not sweep.protocol.until:
            return ""
        return f"{self.decided()} of {count(len(sweep.questions), 'question')} decided"

    def remaining(self) -> list[tuple[Trial, int]]:
        """Return the trials that are still to be trained, those under way first, with the epochs behind each."""
        planned = [key for key, state in self.states.items() if state in (*TO_DO, "training")]
        planned.sort(key=lambda key: self.states[key] != "training")
        begun = [(self.trials[key], self.epochs.get(key, 0)) for key in planned]
        return begun + [(trial, 0) for trial in self.pending]

    def saving(self, poll: float) -> str:
        """Return how many trials have to save their state now, and about how long that takes.

        A trial hears of it within `poll` seconds, then ends its batch and writes a checkpoint.
        """
        running = [key for key, state in self.states.items() if state == "training"]
        batches = (self.trials[key].recipe.batch / self.speed[key] for key in running if self.speed.get(key))
        seconds = math.ceil(poll + max(batches, default=WRITING) + WRITING)
        return f"saving {count(len(running), 'trial')}, about {seconds} s" if running else "no trial trains now"

    def _eta(self) -> str:
        """Return the time until the end by the forecast; empty while there is none."""
        seconds = self.forecast.seconds_left(self.remaining()) if self.forecast is not None else None
        return "" if seconds is None else f"about {time_text(seconds)} left"

    def rows(self) -> tuple[CellRow, ...]:
        """Return one row per cell, in the order of the plan."""
        rows: list[CellRow] = []
        for cell in self.plan.sweep.cells:
            keys = [key for key, trial in self.trials.items() if trial.cell.key == cell.key]
            running = tuple(self._running(key) for key in keys if self.states[key] == "training")
            results = {key: self.results[key] for key in keys if key in self.results}
            metric = cell.metric
            finished = {key: result["metrics"].get(metric.held_out) for key, result in results.items()}
            known = {key: finished.get(key, self.best.get(key)) for key in keys if key not in self.beyond}
            held_out = [error for error in known.values() if error is not None and math.isfinite(error)]
            tested = [(self.trials[key].phase, result["metrics"]) for key, result in results.items()]
            marks = sorted({mark for result in results.values() for mark in flags_of(result)})
            states = [self.states[key] for key in keys]
            failed = states.count("failed")
            best = metric.text(metric.best(held_out)) if held_out else ""
            marks += [f"{failed} failed"] if failed else []
            number = error_text(tested, metric)
            parts, done, planned = self._parts(cell, keys)
            # Trials of a halved search wait for good once nothing more of their cell is to come.
            goes_on = any(state in TO_DO for state in states) or any(t.cell.key == cell.key for t in self.pending)
            over = states.count("skipped") + (0 if goes_on else states.count("paused"))
            words = " ".join(marks)
            rows.append(CellRow(cell.label, parts, done, planned, running, best, number, words, failed, over))
        return tuple(rows)

    def _parts(self, cell: Cell, keys: Sequence[str]) -> tuple[str, int, int]:
        """Return how many of a cell's search trials, seeds and folds are done, and of how many; the sums behind it."""
        done: dict[str, int] = {}
        planned: dict[str, int] = {}
        for key, trial in [(key, self.trials[key]) for key in keys] + [("", trial) for trial in self.pending]:
            if trial.cell.key == cell.key:
                part = self._part(key, trial)
                planned[part] = planned.get(part, 0) + 1
                done[part] = done.get(part, 0) + (self.states.get(key) in ("done", "stale"))
        text = " ".join(f"{part} {done[part]}/{count}" for part, count in planned.items())
        return text, sum(done.values()), sum(planned.values())

    def _running(self, key: str) -> RunningTrial:
        trial = self.trials[key]
        curve = tuple(self.curves.get(key, ()))
        return RunningTrial(trial.label, self.epochs.get(key, 0), trial.recipe.epochs, self.speed.get(key, 0.0), curve)


def _value(metric: Metric, metrics: Mapping[str, float]) -> str:
    """Return what a finished trial measured, behind a comma; empty where it has measured nothing."""
    value = metrics.get(metric.final, metrics.get(metric.held_out, math.nan))
    if not math.isfinite(value):
        return ""
    if not metric.is_own:
        return f", {value:.2f} % error"
    name = metric.words if metric.final in metrics else f"best {metric.held_out_words}"
    return f", {name} {metric.text(value)}"


class LiveView:
    """Live view of a running sweep, open from enter to exit. Any thread may call `on_event` and `log`."""

    def __init__(self, plan: Plan, live: bool, quiet: bool, disk: str = "") -> None:
        """Prepare a live table, or lines; `quiet` shows neither. `disk` is a folder whose free space is watched."""
        self.disk = disk
        self.nearly_full = False
        self.where = ""  # the cluster, once it is joined
        self.hours: Callable[[], float] = lambda: 0.0
        self.waiting: Callable[[], int] = lambda: 0  # runs that MLflow still lacks, once trials no longer train
        self.progress = SweepProgress(plan)
        self.quiet = quiet
        self.live: Any = None
        self.show: Callable[[Screen], None] = lambda _: None
        self.use_live = (live or in_notebook()) and not quiet
        self.events: deque[str] = deque(maxlen=EVENTS)
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.woken: SimpleQueue[None] = SimpleQueue()  # may be put into by a signal handler, as an Event may not be set
        self.thread = threading.Thread(target=self._tick, name="view", daemon=True)

    def __enter__(self) -> LiveView:
        """Show the view."""
        if self.use_live and in_notebook():
            self.live = Picture(self._picture())
            self.show = self.live.update
        elif self.use_live:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=sys.stdout, markup=False, emoji=False)  # now: Tune's prints are redirected later
            self.live = Live(
                self._picture(), console=console, auto_refresh=False, transient=True, redirect_stdout=False
            )
            self.show = partial(self.live.update, refresh=True)
        if self.live is not None:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the view."""
        self.over.set()
        self.woken.put(None)
        self.thread.join()
        if self.live is not None:
            self.live.stop()

    def on_event(
        self, event: str, trial: Trial, news: Mapping[str, Any], planned: Sequence[Trial], pending: Sequence[Trial]
    ) -> None:
        """Show an event of a trial; `planned` and `pending` are the plan as it is now."""
        with self.lock:
            self.progress.update_plan(planned, pending)
            line = self.progress.apply(event, trial, dict(news))
        if line:
            has_counts = self.live is None and event in ("done", "failed")
            self.log(f"{line} [{self.progress.counts()}]" if has_counts else line)

    def log(self, sentence: str) -> None:
        """Show one sentence."""
        if self.quiet:
            return
        if self.live is not None:
            self.events.append(f"{time.strftime('%H:%M:%S')} {sentence}")
            self.woken.put(None)
        else:
            line = f"{time.strftime('%H:%M:%S')} {sentence}"
            try:
                print(line, file=sys.stderr, flush=True)
            except RuntimeError:  # a signal handler says it in the middle of another print
                os.write(2, f"{line}\n".encode())

    def _tick(self) -> None:
        last = 0.0
        while not self._is_over(TICK if self.live is not None else 2.0):
            self._watch_disk()
            if self.live is None and time.monotonic() - last < HEARTBEAT:
                continue
            last = time.monotonic()
            if self.live is not None:
                self.show(self._picture())
            else:
                self.log(self.progress.counts())

    def _is_over(self, seconds: float) -> bool:
        """Wait so long, or until there is something to show, and return whether the view is closed."""
        with suppress(Empty):
            self.woken.get(timeout=seconds)
        time.sleep(BURST)
        while not self.woken.empty():
            self.woken.get()
        return self.over.is_set()

    def _watch_disk(self) -> None:
        """Log when the ledger's disk is nearly full, and when it has space again.

        A trial trains on there until it saves a state that is larger than the rest.
        """
        if not os.path.isdir(self.disk):
            return
        free = shutil.disk_usage(self.disk).free
        if free < ROOM and not self.nearly_full:
            self.log(
                f"the disk of {self.disk} has {free / 1e6:.1f} MB free: a trial whose state does not fit waits to save "
                "it, and goes on when there is room"
            )
        elif free >= ROOM and self.nearly_full:
            self.log(f"the disk of {self.disk} has room again")
        self.nearly_full = free < ROOM

    def _picture(self) -> Screen:
        with self.lock:
            rows = self.progress.rows()
            counts = self.progress.count_words()
        sweep = self.progress.plan.sweep
        names = ", ".join(dict.fromkeys(data_name(name) for name in sweep.datasets))
        title = sweep.title if names in sweep.title else f"{sweep.title} on {names}"
        first, *others = counts
        waiting = self.waiting()
        sending = (f"sending {count(waiting, 'run')} to MLflow",) if waiting else ()
        place = (self.where, f"{self.hours():.2f} h used") if self.where else ()
        metric = sweep.metric
        return Screen(
            (f"{title}: {first}", *others, *sending, *place),
            rows,
            tuple(self.events),
            (metric.held_out_words, metric.words),
            int(time.monotonic() / TURN),
            NOTEBOOK_LINES if in_notebook() else 0,
        )
