"""Trials that the cells of a sweep come to: by protocol, search, study of rates and questions, in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sweeps.experiment.metrics import has_diverged
from sweeps.experiment.questions.waves import Waves, waves
from sweeps.experiment.rates import RateChoice, choose
from sweeps.experiment.search import Search, Setting, budget, setting_of
from sweeps.experiment.study import NOTHING, study, why_refused
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import SECOND_SEED, Cell, Trial
from sweeps.experiment.wording import count
from sweeps.store.ledger import Json

# First trainings of a cell that must all diverge for it to be given up.
GIVE_UP = 2
# What is said at the end of the reasons of a finished trial that had begun when its cell was given up.
BEYOND = "it had begun when its cell was given up, and answers no question"
# How the reason of a search begins that has no setting to train.
NONE_ADMITTED = "no trial of its search may be trained"
# Seeds beyond the declared ones that are looked for after the last that the ledger has.
LOOKAHEAD = 4
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
