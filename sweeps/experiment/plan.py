"""Plan of a sweep: the trials that its cells come to, and where each stands. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.halving import bracket_epochs, rungs
from sweeps.experiment.metrics import Tested, has_diverged, lost_text
from sweeps.experiment.questions.waves import Waves, waves
from sweeps.experiment.rates import RateChoice, choose
from sweeps.experiment.search import Search, Setting, budget, search_to_json, setting_of
from sweeps.experiment.study import NOTHING, study, why_refused
from sweeps.experiment.sweep import Protocol, Sweep, sweep_from_json
from sweeps.experiment.trial import PHASES, SECOND_SEED, Cell, Trial, cell_to_json
from sweeps.experiment.wording import count
from sweeps.store.checkpoint_header import progress
from sweeps.store.integrity import checked, lost_files, noted_damage
from sweeps.store.ledger import Json, Ledger

# Failed attempts of a trial before it counts as failed.
MAX_ATTEMPTS = 3
# First trainings of a cell that must all diverge for it to be given up.
GIVE_UP = 2
# What is said at the end of the reasons of a finished trial that had begun when its cell was given up.
BEYOND = "it had begun when its cell was given up, and answers no question"
# How the reason of a search begins that has no setting to train.
NONE_ADMITTED = "no trial of its search may be trained"
# Seeds beyond the declared ones that are looked for after the last that the ledger has.
LOOKAHEAD = 4


# From cells to trials


# Trials, each with the epochs that it has behind it.
Begun = Iterable[tuple[Trial, int]]
# Choice of a cell for which no study chooses: its recipe's own rate.
OWN_RATE = RateChoice((), 0.0)


class CellTrials(NamedTuple):
    """Trials of a cell: of its search, of its protocol, and those that will follow, as far as is known.

    Pending trials have the cell's own dropout in place of the one that will be chosen: they are for counting.
    `further` are trials of more seeds than are declared, which the ledger has. `skipped` are the keys of those that are
    given up before they begin, and `why` says why. `rates` are the trials of a study of the learning rate. `pauses` are
    the epochs at which search trials pause that are to train, and `paused` the keys of those that wait at a rung.
    `beyond` are the keys of results of trials that had begun when the cell was given up: they answer no question.
    """

    search: list[Trial]
    protocol: list[Trial]
    pending: list[Trial]
    further: Sequence[Trial] = ()
    skipped: frozenset[str] = frozenset()
    why: str = ""
    rates: Sequence[Trial] = ()
    pauses: Mapping[str, int] = MappingProxyType({})
    paused: frozenset[str] = frozenset()
    beyond: frozenset[str] = frozenset()

    @property
    def unsearched(self) -> list[Trial]:
        """Return the trials of the protocol, further seeds included, that its search has not trained."""
        searched = {trial.key for trial in self.search}
        return [trial for trial in (*self.protocol, *self.further) if trial.key not in searched]

    @property
    def is_given_up(self) -> bool:
        """Return whether the cell counts as given up: a trial of it is left out, or it has none."""
        return bool(self.why) and bool(self.skipped or self.beyond or not self.protocol)


def cell_trials(
    cell: Cell,
    protocol: Protocol,
    results: Mapping[str, Json],
    failed: Collection[str] = (),
    insisted: Collection[str] = (),
    choice: RateChoice = OWN_RATE,
    paused: Mapping[str, Json] = NOTHING,
) -> CellTrials:
    """Return the trials of a cell, a pure function of the ledger: its protocol begins once its own study is over.

    A cell whose first trainings all diverged is given up: its other trials are skipped, unless it is `insisted` on. All
    of its trials wait for the `choice` of a learning rate, and are skipped where no rate trains.
    """
    if choice.rate is None and not choice.why:
        later = _trials_of(cell, protocol, {}, (), 0.0, NOTHING)
        return CellTrials([], [], [*later.search, *later.protocol, *later.pending])
    trials = _trials_of(cell, protocol, results, failed, choice.rate or 0.0, paused)
    why = choice.why
    first: Sequence[str] = ()
    if not why and cell.key not in insisted:
        first = _diverged_first(trials, results, failed)
        why = f"the first {count(GIVE_UP, 'training')} of this cell diverged" if first else ""
        why = why or _why_search_given_up(trials, protocol.search, results, failed)
    if not why:
        return trials
    known = [*trials.search, *trials.protocol]
    skipped = frozenset(trial.key for trial in known if trial.key not in results and trial.key not in failed)
    ended = {trial.key for trial in trials.unsearched if trial.key in results}
    # Only where questions are decided: a table counts all that was trained.
    beyond = frozenset(ended.difference(first)) if first and protocol.until else frozenset[str]()
    return trials._replace(pending=[], skipped=skipped, why=why, pauses={}, paused=frozenset(), beyond=beyond)


def _diverged_first(trials: CellTrials, results: Mapping[str, Json], failed: Collection[str]) -> list[str]:
    """Return the keys of a protocol's first trainings where all of them diverged, so that the cell is given up.

    The first are those that start first, whichever end first: so the same cells are given up however many trainings run
    side by side, and after any kill. A failed training counts as none. A second phase says no more than its first.
    """
    candidates = [trial for trial in trials.unsearched if trial.phase != "match"]
    known = [trial.key for trial in sorted(candidates, key=_place)]
    first = [key for key in known if key not in failed][:GIVE_UP]
    return first if len(first) == GIVE_UP and all(has_diverged(results.get(key)) for key in first) else []


def _why_search_given_up(
    trials: CellTrials, search: Search | None, results: Mapping[str, Json], failed: Collection[str]
) -> str:
    """Return why a cell is given up in its search: all trainings of its first wave diverged."""
    if search is None:
        return ""
    points = list(dict.fromkeys(trial.chosen for trial in trials.search))[: max(search.wave, GIVE_UP)]
    wave = {trial.key for trial in trials.search if trial.chosen in points}
    diverged = [key for key in wave if has_diverged(results.get(key))]
    settled = all(key in failed or key in diverged for key in wave)
    return _all_diverged_text(len(diverged)) if settled and len(diverged) >= GIVE_UP else ""


def _all_diverged_text(number: int) -> str:
    return f"all {count(number, 'training')} of its search diverged" if number > 1 else "its search diverged"


def _trials_of(
    cell: Cell,
    protocol: Protocol,
    results: Mapping[str, Json],
    failed: Collection[str],
    rate: float,
    paused: Mapping[str, Json],
) -> CellTrials:
    search = protocol.search
    setting = Setting(rate=rate)
    if search is None:
        trials = protocol_trials(cell, setting, "", protocol, results)
        further = further_seeds(cell, setting, protocol, results, failed)
        return CellTrials([], trials, _second_phases(cell, protocol, trials, failed), further)
    cell_study = study(search, cell, results, failed, rate, paused)
    searched = cell_study.trials
    known = CellTrials(searched, [], [], pauses=cell_study.pauses, paused=cell_study.paused)
    # A winner on the hold-out with seed 0 is also the first phase of Single.
    is_first_phase = search.folds == 0 and search.seed == 0
    if not cell_study.is_finished:
        missing = max(0, budget(search, cell) * max(1, search.folds) - len(searched))
        phase = "inner" if search.folds else "holdout"
        stand_in = Trial(cell, phase, search.seed, (), 0, search.folds)
        trials = protocol_trials(cell, setting, "-" if is_first_phase else "", protocol, {})
        pending = [stand_in] * missing + trials + _second_phases(cell, protocol, trials, ())
        return known._replace(pending=pending)
    winner = cell_study.winner
    if winner is None:  # all of its trials failed, diverged, or exceed a limit
        return known._replace(why=_why_no_winner(search, cell_study.trials, cell, results))
    reference = winner.trial.key if is_first_phase else ""
    chosen = setting_of(winner.trial)
    trials = protocol_trials(cell, chosen, reference, protocol, results)
    further = further_seeds(cell, chosen, protocol, results, failed)
    return known._replace(protocol=trials, pending=_second_phases(cell, protocol, trials, failed), further=further)


def _why_no_winner(search: Search, trials: Sequence[Trial], cell: Cell, results: Mapping[str, Json]) -> str:
    """Return why a search has chosen nothing, where it is not that all of its trials failed; empty there."""
    if not trials:
        return f"{NONE_ADMITTED}: {why_refused(search, Trial(cell, 'holdout'))}"
    trained = {trial.key for trial in trials if trial.key in results}
    diverged = sum(has_diverged(results[key]) for key in trained)
    if diverged and diverged == len(trained):
        return _all_diverged_text(diverged)
    is_limited = bool(search.limits) and bool(trained)
    others = f" but the {diverged} that diverged" if diverged else ""
    return f"no trial of its search keeps the limits{others}" if is_limited else ""


def _second_phases(cell: Cell, protocol: Protocol, known: Sequence[Trial], failed: Collection[str]) -> list[Trial]:
    """Return stand-ins for the second phases of Single that wait for their first."""
    settled = sum(trial.phase == "match" or (trial.phase == "holdout" and trial.key in failed) for trial in known)
    missing = protocol.seeds * protocol.single - settled
    return [Trial(cell, "match", SECOND_SEED, match=protocol.match, reference="-")] * missing


def protocol_trials(
    cell: Cell, chosen: Setting, reference: str, protocol: Protocol, results: Mapping[str, Json]
) -> list[Trial]:
    """Return the trials of a cell with its setting chosen; `reference` is a finished first phase with seed 0."""
    trials = []
    for seed in range(protocol.seeds):
        trials += _seed_trials(cell, seed, chosen, reference if seed == 0 else "", protocol, results)
    # Each fold starts from weights of its own, the same for all cells, so that their differences are independent.
    folds = protocol.folds
    trials += [Trial(cell, "fold", fold, fold=fold, folds=folds, **chosen._asdict()) for fold in range(folds)]
    return trials


def _seed_trials(
    cell: Cell, seed: int, chosen: Setting, reference: str, protocol: Protocol, results: Mapping[str, Json]
) -> list[Trial]:
    """Return the trials of one seed: the ablation's, and the phases of Single, the second once the first is known."""
    trials = []
    if protocol.ablation:
        trials.append(Trial(cell, "ablation", seed, **chosen._asdict()))
    if protocol.single:
        first = Trial(cell, "holdout", seed, **chosen._asdict())
        key = reference or first.key
        if key == first.key:
            trials.append(first)
        if key in results:
            second = SECOND_SEED + seed
            trials.append(Trial(cell, "match", second, match=protocol.match, reference=key, **chosen._asdict()))
    return trials


def further_seeds(
    cell: Cell, chosen: Setting, protocol: Protocol, results: Mapping[str, Json], failed: Collection[str]
) -> list[Trial]:
    """Return the trials of more seeds than are declared that were trained, or have failed: they count as well."""
    trials: list[Trial] = []
    seed = protocol.seeds
    last = seed + LOOKAHEAD if protocol.ablation or protocol.single else seed
    while seed < last:
        known = [
            trial
            for trial in _seed_trials(cell, seed, chosen, "", protocol, results)
            if trial.key in results or trial.key in failed
        ]
        seed += 1
        if known:
            trials += known
            last = seed + LOOKAHEAD
    return trials


def seeds_text(protocol: Protocol, trials: Iterable[Trial]) -> str:
    """Return how many seeds are declared and how many the ledger has, by cell; empty where it has no more."""
    if protocol.until:  # the questions say how many
        return ""
    most: dict[str, set[int]] = {}
    for trial in trials:
        seed = trial.seed % SECOND_SEED
        if trial.phase in ("ablation", "match") and seed >= protocol.seeds:
            most.setdefault(trial.cell.label, set()).add(seed)
    by_count: dict[int, list[str]] = {}
    for label, seeds in most.items():
        by_count.setdefault(protocol.seeds + len(seeds), []).append(label)
    counts = "; ".join(f"{count} on the ledger of {', '.join(labels)}" for count, labels in sorted(by_count.items()))
    declared = f"{count(protocol.seeds, 'seed')} declared"
    return f"{declared}, {counts}" if counts else ""


def expand(
    sweep: Sweep, results: Mapping[str, Json], failed: Collection[str] = (), paused: Mapping[str, Json] = NOTHING
) -> list[Trial]:
    """Return the trials known now, in the order in which they should start: a pure function of the ledger."""
    return planned(sweep_trials(sweep, results, failed, paused=paused).values())


def rate_choices(sweep: Sweep, results: Mapping[str, Json], failed: Collection[str]) -> dict[str, RateChoice]:
    """Return the choice of the learning rate for each cell that has one, by the cell's key."""
    study = sweep.protocol.rates
    if study is None:
        return {}
    baselines = sweep.baselines
    choices = {baseline.key: choose(study, baseline, results, failed) for baseline in baselines.values()}
    return {key: choices[baseline.key] for key, baseline in baselines.items()}


def rate_trials(choices: Mapping[str, RateChoice]) -> CellTrials:
    """Return the trials of the studies of the learning rate, each once; those of a rate that is still open."""
    trials = {trial.key: trial for choice in choices.values() for trial in choice.trials}
    return CellTrials([], [], [], rates=list(trials.values()))


def sweep_trials(
    sweep: Sweep,
    results: Mapping[str, Json],
    failed: Collection[str] = (),
    insisted: Collection[str] = (),
    paused: Mapping[str, Json] = NOTHING,
) -> dict[str, CellTrials]:
    """Return the trials of each cell by its key, and under "" those of the studies of the learning rate."""
    choices = rate_choices(sweep, results, failed)
    protocol = largest_protocol(sweep.protocol)
    cells = {
        cell.key: cell_trials(cell, protocol, results, failed, insisted, choices.get(cell.key, OWN_RATE), paused)
        for cell in sweep.cells
    }
    return {"": rate_trials(choices)} | needed_trials(sweep, cells, results, failed)


def largest_protocol(protocol: Protocol) -> Protocol:
    """Return the protocol with all seeds that a sweep until decided may come to."""
    if not protocol.until or protocol.folds:
        return protocol
    return dataclasses.replace(protocol, seeds=max(protocol.seeds, protocol.until))


def needed_trials(
    sweep: Sweep, cells: Mapping[str, CellTrials], results: Mapping[str, Json], failed: Collection[str]
) -> dict[str, CellTrials]:
    """Return the trials of each cell by its key, those left out that no open question of the sweep needs.

    Such trials count as further ones where they were trained before. A cell of no question has what is declared.
    """
    protocol = sweep.protocol
    if not protocol.until:
        return dict(cells)
    needed = question_waves(sweep, cells, results, failed).needed
    declared = protocol.folds or protocol.seeds
    return {key: _cut(part, protocol, needed.get(key, declared), results, failed) for key, part in cells.items()}


def question_waves(
    sweep: Sweep, cells: Mapping[str, CellTrials], results: Mapping[str, Json], failed: Collection[str]
) -> Waves:
    """Return where the questions of a sweep until decided stand. Trials beyond the needed wave may be left out."""
    skipped = frozenset[str]().union(*(part.skipped | part.beyond for part in cells.values()))
    results = {key: result for key, result in results.items() if key not in skipped}
    trials = {key: part.protocol for key, part in cells.items()}
    return waves(sweep.questions, sweep.cells, sweep.protocol.design, trials, results, {*failed, *skipped})


def _cut(
    part: CellTrials, protocol: Protocol, needed: int, results: Mapping[str, Json], failed: Collection[str]
) -> CellTrials:
    """Return the trials of a cell up to the wave that is needed."""
    beyond = [trial for trial in part.protocol if protocol.design.is_beyond(trial, needed)]
    trained = [trial for trial in beyond if trial.key in results or trial.key in failed]
    left_out = {trial.key for trial in beyond}
    pending = [trial for trial in part.pending if not protocol.design.is_beyond(trial, needed)]
    if protocol.single and not protocol.folds:
        # Stand-ins for second phases have no seed of their own: a first phase that is left out has one.
        settled = sum(t.phase == "match" or (t.phase == "holdout" and t.key in failed) for t in beyond)
        stand_ins = [trial for trial in pending if trial.phase == "match"]
        most = len(stand_ins) - (largest_protocol(protocol).seeds - needed) + settled
        pending = [trial for trial in pending if trial.phase != "match"] + stand_ins[: max(0, most)]
    return part._replace(
        protocol=[trial for trial in part.protocol if trial.key not in left_out],
        pending=pending,
        further=[*trained, *part.further],
        skipped=part.skipped - left_out,
    )


def planned(cells: Iterable[CellTrials]) -> list[Trial]:
    """Return the trials of all cells in their order, those that are skipped left out."""
    cells = list(cells)
    skipped = frozenset[str]().union(*(cell.skipped for cell in cells))
    return [trial for trial in ordered(cells) if trial.key not in skipped]


def ordered(cells: Iterable[CellTrials]) -> list[Trial]:
    """Return the trials of all cells in the order in which they should start, each once: rates, then searches first.

    The protocols follow seed by seed over all cells, so that a sweep that is stopped has complete comparisons. The
    folds come fold by fold with the first seed.
    """
    cells = list(cells)
    searched = [trial for cell in cells for trial in cell.rates]
    searched += [trial for cell in cells for trial in cell.search]
    protocol = [trial for cell in cells for trial in (*cell.protocol, *cell.further)]
    protocol.sort(key=_place)
    return list({trial.key: trial for trial in searched + protocol}.values())


def _place(trial: Trial) -> tuple[int, int]:
    """Return the place of a protocol's trial in the order of start."""
    return 0 if trial.folds else trial.seed % SECOND_SEED, trial.fold


# Where each trial stands

STATES = ("new", "running", "paused", "done", "stale", "failed", "skipped")
TO_DO = ("new", "running")


def state_heads(states: Iterable[str]) -> str:
    """Return the headings of columns of states, five letters wide each."""
    short = {"running": "run", "paused": "wait", "failed": "fail", "skipped": "skip"}
    return "".join(f" {short.get(state, state):>4}" for state in states)


class TrialStatus(NamedTuple):
    """Trial and its state: new, running (it has a checkpoint), paused, done, stale, failed or skipped; `why` for some.

    A paused trial of a search waits at a rung, with its checkpoint; it goes on only if its error is among the best.
    """

    trial: Trial
    state: str
    result: Json | None
    why: str = ""


class Expected(NamedTuple):
    """What is expected of a halved search: its arms, the epochs of its rungs, and those that all of it trains."""

    arms: int
    steps: tuple[int, ...]
    epochs: float


def trained_seconds(status: TrialStatus, damaged: Mapping[str, Json], unfinished: Mapping[str, Json]) -> float:
    """Return how long a trial was trained, by its result, a damaged one too, its checkpoint or its last pause."""
    key = status.trial.key
    record = status.result or damaged.get(key) or unfinished.get(key) or {}
    return float(record.get("seconds", 0.0))


@dataclass(frozen=True)
class Plan:
    """Statuses of all known trials of a sweep, stand-ins for those to follow, and its data's fingerprints.

    `further` are the keys of trials of more seeds than the sweep has, which were trained before; `searched` those of
    search trials, `studied` those of studies of the learning rate. `rates` has the rate of each cell that such a study
    chooses for, None while it is open or where none trains. `damaged` has the results of trials that count as failed
    because a file of theirs is damaged: studies were planned by them. `torn` are the keys of trials whose result itself
    cannot be read; they are trained anew. `given_up` says why cells were given up before all of their trials, by label.
    `failed` are the keys of failed trials and `paused` the records of paused ones, as the ledger had them for the plan.
    `unfinished` are the records of trials without a result: what the checkpoint of a running one notes, else the pause.
    """

    sweep: Sweep
    statuses: tuple[TrialStatus, ...]
    pending: tuple[Trial, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    further: frozenset[str] = frozenset()
    searched: frozenset[str] = frozenset()
    studied: frozenset[str] = frozenset()
    rates: Mapping[str, float | None] = field(default_factory=dict)
    damaged: Mapping[str, Json] = field(default_factory=dict)
    torn: frozenset[str] = frozenset()
    given_up: Mapping[str, str] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    paused: Mapping[str, Json] = field(default_factory=dict)
    unfinished: Mapping[str, Json] = field(default_factory=dict)

    def count(self, *states: str, cell: Cell | None = None) -> int:
        """Count the trials, of one cell or of all, that are in one of `states`."""
        return sum(status.state in states for status in (self.statuses if cell is None else self.of(cell)))

    def is_damaged(self, status: TrialStatus) -> bool:
        """Return whether a finished trial has lost a file or its result, and is not trained anew yet."""
        key = status.trial.key
        return key in self.damaged or (key in self.torn and status.state == "new")

    def of(self, cell: Cell) -> list[TrialStatus]:
        """Return the statuses of one cell's trials."""
        return [status for status in self.statuses if status.trial.cell.key == cell.key]

    def pending_of(self, cell: Cell) -> list[Trial]:
        """Return the stand-ins for the trials of one cell that follow once others have ended."""
        return [trial for trial in self.pending if trial.cell.key == cell.key]

    def tested(self, cell: Cell) -> list[Tested]:
        """Return phase and metrics of a cell's finished trials, from which its numbers are made."""
        return [(status.trial.phase, status.result["metrics"]) for status in self.of(cell) if status.result is not None]

    def winner(self, cell: Cell) -> Trial | None:
        """Return the trial of a cell that its held-out metric chooses among those that are tested; None for none.

        Of equal ones, and where a phase holds nothing out, it is the first. The test pictures choose nothing.
        """
        metric = cell.metric
        worst = metric.cost(math.inf)
        tested = [
            (metric.cost(float(status.result["metrics"].get(metric.held_out, worst))), status.trial)
            for status in self.of(cell)
            if status.result is not None and PHASES[status.trial.phase].test and not has_diverged(status.result)
        ]
        return min(tested, key=lambda tried: tried[0])[1] if tested else None

    def lost(self, cell: Cell) -> str:
        """Return what of a cell's trials, its search left out, diverged, failed or was skipped; empty for none."""
        left_out = self.searched | self.studied
        tried = [status for status in self.of(cell) if status.trial.key not in left_out]
        return lost_text((status.trial.phase, status.state, status.result) for status in tried)

    def given_up_sentences(self) -> Iterator[tuple[str, str]]:
        """Yield the label of each cell that was given up, and why, in a sentence without a full stop."""
        for cell in self.sweep.cells:
            if why := self.given_up.get(cell.label):
                yield cell.label, f"{why}; the others are skipped" if self.count("skipped", cell=cell) else why

    def remedy(self, label: str) -> str:
        """Return in a sentence what may train a cell that was given up, by its label."""
        (cell,) = [cell for cell in self.sweep.cells if cell.label == label]
        if self.rates.get(cell.key, 0.0) is None:
            return "--set recipe.lr=RATE trains them at another learning rate"
        if self.is_cut_short(cell):
            skipped = self.count("skipped", cell=cell)
            return f"--retry-failed {'trains them' if skipped else 'lets what was trained beyond those count'}"
        if self.given_up.get(label, "").startswith(NONE_ADMITTED):
            return "a larger limit of the search lets it train"
        return "a longer search, by --search-trials, may find a setting"

    def is_cut_short(self, cell: Cell) -> bool:
        """Return whether trainings of a cell that was given up are skipped, or answer no question."""
        return any(status.state == "skipped" or status.why.endswith(BEYOND) for status in self.of(cell))

    @property
    def asked_for(self) -> list[TrialStatus]:
        """Return the statuses of the trials that are asked for: those of further seeds stay as they are."""
        return [status for status in self.statuses if status.trial.key not in self.further]

    @property
    def to_retry(self) -> list[TrialStatus]:
        """Return the statuses of the failed trials that --retry-failed tries again."""
        return [status for status in self.asked_for if status.state == "failed"]

    def way(self, flag: str, what: str, *statuses: TrialStatus) -> str:
        """Return which flag does what with trials: of further seeds it takes only those that --seeds asks for."""
        further = [status.trial for status in statuses if status.trial.key in self.further]
        if not further:
            return f"{flag} {what}"
        unit = self.sweep.protocol.design.unit
        beyond = f"of a further {unit}" if len(further) == 1 else f"of further {unit}s"
        if self.sweep.protocol.until:
            return f"{beyond}, which no question needs"
        return f"{beyond}: {flag} --seeds {max(trial.seed % SECOND_SEED for trial in further) + 1} {what}"

    @property
    def may_retry(self) -> bool:
        """Return whether --retry-failed changes anything: a trial has failed, or a cell was cut short at its rate."""
        rated = [cell for cell in self.sweep.cells if self.rates.get(cell.key, 0.0) is not None]
        return bool(self.to_retry) or any(map(self.is_cut_short, rated))

    def seeds_text(self) -> str:
        """Return how many seeds are declared and how many the ledger has; empty where it has no more."""
        trained = [status.trial for status in self.statuses if status.result is not None]
        return seeds_text(self.sweep.protocol, trained)

    @property
    def most_seeds(self) -> int:
        """Return how many seeds the cell with most of them has, trained or failed, the declared ones among them."""
        further: dict[str, set[int]] = {}
        for trial in (status.trial for status in self.statuses if status.trial.key in self.further):
            further.setdefault(trial.cell.key, set()).add(trial.seed % SECOND_SEED)
        return self.sweep.protocol.seeds + max(map(len, further.values()), default=0)

    @property
    def hours(self) -> float:
        """Return the hours that all trials were trained, as far as is noted."""
        return sum(trained_seconds(status, self.damaged, self.unfinished) for status in self.statuses) / 3600

    @property
    def total(self) -> int:
        """Return how many trials the sweep comes to; fewer where a search suggests a point twice."""
        return len(self.statuses) + len(self.pending)

    def expected_epochs(self, trial: Trial) -> float:
        """Return how many epochs a trial that is to be trained comes to: in a halved search the mean of its trials."""
        bracket = self._bracket(trial)
        return trial.recipe.epochs if bracket is None else bracket.epochs / bracket.arms

    def epochs_left(self, remaining: Begun, begun: Begun) -> list[float]:
        """Return how many epochs each of the `remaining` trials is still to train.

        Trials of a halved search share what its bracket is expected to train, less what all of its trials have trained,
        as the `begun` ones tell. Each has at least the epochs up to its next rung.
        """
        remaining = list(remaining)
        epochs = [max(0.0, trial.recipe.epochs - done) for trial, done in remaining]
        brackets = {trial.cell.key: bracket for trial, _ in remaining if (bracket := self._bracket(trial)) is not None}
        trained = dict.fromkeys(brackets, 0)
        for trial, done in begun if brackets else ():
            if trial.cell.key in brackets and self._bracket(trial) is not None:
                trained[trial.cell.key] += done
        for key, bracket in brackets.items():
            places = [
                place
                for place, (trial, _) in enumerate(remaining)
                if trial.cell.key == key and self._bracket(trial) is not None
            ]
            for place in places:
                done = remaining[place][1]
                epochs[place] = next((step for step in bracket.steps if step > done), done) - done
            more = bracket.epochs - trained[key] - sum(epochs[place] for place in places)
            for place in places:
                epochs[place] += max(0.0, more) / len(places)
        return epochs

    def _bracket(self, trial: Trial) -> Expected | None:
        """Return what is expected of the halved search that a trial is one of; None for any other trial."""
        search = self.sweep.protocol.search
        is_searched = search is not None and (trial.phase, trial.seed) == ("holdout", search.seed)
        if search is None or not search.halving or not is_searched or trial.key in self.studied:
            return None
        arms = budget(search, trial.cell)
        steps = rungs(trial.recipe.epochs, search.halving, search.rung)
        return Expected(arms, steps, bracket_epochs(arms, search.wave, steps, search.halving))

    def epochs_of(self, status: TrialStatus) -> int:
        """Return how many epochs a trial has behind it, by its result, its checkpoint or its last pause."""
        key = status.trial.key
        result = status.result or self.damaged.get(key)
        return int(result["epochs"]) if result is not None else int(self.unfinished.get(key, {}).get("epoch", 0))

    @property
    def begun(self) -> list[tuple[Trial, int]]:
        """Return the trials that have epochs behind them, with these."""
        return [(status.trial, epochs) for status in self.statuses if (epochs := self.epochs_of(status))]

    @property
    def remaining(self) -> list[tuple[Trial, int]]:
        """Return the trials still to be trained, with the epochs behind each, and those that will follow."""
        begun = [(status.trial, self.epochs_of(status)) for status in self.statuses if status.state in TO_DO]
        return begun + [(trial, 0) for trial in self.pending]

    @property
    def states(self) -> tuple[str, ...]:
        """Return the states to show: "paused" only where a trial is."""
        return tuple(state for state in STATES if state != "paused" or self.count(state))

    @property
    def to_do(self) -> list[Trial]:
        """Return the trials still to be trained."""
        return [status.trial for status in self.statuses if status.state in TO_DO]

    @property
    def passed_over(self) -> frozenset[str]:
        """Return the keys of trials that their search has paused for good: no more of their cells is to be trained."""
        goes_on = {trial.cell.key for trial in (*self.to_do, *self.pending)}
        paused = [status.trial for status in self.statuses if status.state == "paused"]
        return frozenset(trial.key for trial in paused if trial.cell.key not in goes_on)


def plan(sweep: Sweep, ledger: Ledger, fingerprints: Mapping[str, str]) -> Plan:
    """Return the status of each trial of `sweep`; `fingerprints` are those of the data sets that are present."""
    # Before the results: a trial that ends in between is then in both, else it would be in neither.
    paused = ledger.paused()
    results, torn = ledger.read_results()
    damaged = noted_damage(ledger) | lost_files(ledger, results)
    attempts = ledger.failed()
    failed = frozenset(key for key, tries in attempts.items() if has_failed(tries))
    begun = set(ledger.folders("checkpoints"))
    codes = {cell.key: cell_fingerprint(cell) for cell in sweep.trained}
    insisted = set(ledger.names("insisted"))
    parts = sweep_trials(sweep, results, failed, insisted, paused)
    cells = list(parts.values())
    waiting = frozenset[str]().union(*(cell.paused for cell in cells))
    skipped = {key: cell.why for cell in cells for key in cell.skipped}
    given_up = {cell.label: parts[cell.key].why for cell in sweep.cells if parts[cell.key].is_given_up}
    beyond = frozenset[str]().union(*(cell.beyond for cell in cells))
    statuses = []
    for trial in ordered(cells):
        result = results.get(trial.key)
        state = "new"
        why = ""
        if result is not None and trial.key in damaged:
            state = "failed"
            why = "; ".join(filter(None, (damaged[trial.key], BEYOND if trial.key in beyond else "")))
            result = None
        elif result is not None:
            why = stale(result, fingerprints.get(trial.cell.dataset, ""), codes[trial.cell.key])
            state = "stale" if why else "done"
            why = "; ".join(filter(None, (why, BEYOND if trial.key in beyond else "")))
        elif trial.key in failed:
            state = "failed"
            why = str(attempts[trial.key][-1].get("error", ""))
        elif trial.key in skipped:
            state = "skipped"
            why = skipped[trial.key]
        elif trial.key in waiting:
            state = "paused"
            why = f"after epoch {paused[trial.key]['epoch']} of {trial.recipe.epochs}"
        elif trial.key in begun:
            state = "running"
        if trial.key in torn and state in ("new", "running"):
            why = f"results/{trial.key}.json is damaged; it is trained anew"
        statuses.append(TrialStatus(trial, state, result, why))
    pending = tuple(trial for cell in cells for trial in cell.pending)
    searched = frozenset(trial.key for cell in cells for trial in cell.search)
    # What a search with a further seed has chosen is a trial of that search.
    further = frozenset(trial.key for cell in cells for trial in cell.further) - searched
    studied = frozenset(trial.key for cell in cells for trial in cell.rates)
    rates = {key: choice.rate for key, choice in rate_choices(sweep, results, failed).items()}
    unsound = {key: results[key] for key in damaged if key in results}
    running = (status.trial for status in statuses if status.state == "running")
    under_way = {t.key: record for t in running if (record := _under_way(ledger, t, codes)) is not None}
    return Plan(
        sweep,
        tuple(statuses),
        pending,
        fingerprints,
        further,
        searched,
        studied,
        rates,
        unsound,
        torn,
        given_up,
        failed,
        paused,
        {**paused, **under_way},
    )


def _under_way(ledger: Ledger, trial: Trial, codes: Mapping[str, str]) -> Json | None:
    """Return what the newest checkpoint of a trial notes; None where it is by other code, and so begins anew."""
    state = progress(ledger, trial.key)
    code = codes[trial.cell.key]
    return None if state is None or (code and state.get("code") != code) else state


def without_damaged(plan: Plan, ledger: Ledger, names: Collection[str]) -> Plan:
    """Return the plan; a trial with a damaged file of these names counts as failed. The files are read now."""
    statuses = []
    damaged = dict(plan.damaged)
    for status in plan.statuses:
        key, result = status.trial.key, status.result
        why = checked(ledger, key, result, names) if result is not None else ""
        if result is not None and why:
            damaged[key] = result
            why += f"; {BEYOND}" if status.why.endswith(BEYOND) else ""
            status = TrialStatus(status.trial, "failed", None, why)
        statuses.append(status)
    return dataclasses.replace(plan, statuses=tuple(statuses), damaged=damaged)


def current_plan(ledger: Ledger, title: str) -> Plan:
    """Return the plan of a declared sweep as it stands now; ValueError where its file is not a plan.

    The data are those of its last run. A plan that does not name them makes no result stale.
    """
    sweep, fingerprints = declared_sweep(ledger, title)
    return plan(sweep, ledger, fingerprints)


def declared_sweep(ledger: Ledger, title: str) -> tuple[Sweep, dict[str, str]]:
    """Return a sweep as its plan on the ledger declares it, and the fingerprints of its data.

    ValueError, which names the file, where that is not a plan.
    """
    name = f"plans/{title}.json"
    declared = ledger.read_json(name)
    if declared is None and ledger.read(name) is not None:
        raise ValueError(f"{ledger.path(name)} is damaged; to write it anew, start the sweep again")
    try:
        sweep = sweep_from_json(declared)
        fingerprints = (declared or {}).get("fingerprints", {})
        if not isinstance(fingerprints, dict):
            raise ValueError(f"not a plan: its fingerprints are {fingerprints!r}")
    except ValueError as error:
        raise ValueError(f"{ledger.path(name)} is {error}") from None
    return sweep, fingerprints


def has_failed(attempts: list[Json]) -> bool:
    """Return whether a trial's failed attempts are enough to leave it until someone says --retry-failed."""
    return len(attempts) >= MAX_ATTEMPTS or any(attempt.get("final") for attempt in attempts)


def stale(result: Json, fingerprint: str, code: str) -> str:
    """Return why a result does not stand, as its data or its code ("": unknown) differ from these; "" where it does."""
    if fingerprint and result.get("fingerprint") != fingerprint:
        return "the data have changed since"
    return "the code has changed since" if code and result.get("code") != code else ""


def plan_to_json(plan: Plan) -> Json:
    """Return the plan as JSON for the ledger, from which the sweep can be declared again without its page."""
    sweep = plan.sweep
    search = plan.sweep.protocol.search
    return {
        "sweep": sweep.name,
        "profile": sweep.profile,
        "variant": sweep.variant,
        "question": sweep.question,
        "protocol": dataclasses.asdict(sweep.protocol) | {"search": search_to_json(search) if search else None},
        "cells": [cell_to_json(cell) | {"key": cell.key} for cell in sweep.cells],
        "questions": [dataclasses.asdict(question) for question in sweep.questions],
        "trials": {status.trial.key: status.trial.label for status in plan.statuses},
        "fingerprints": dict(plan.fingerprints),
    }
