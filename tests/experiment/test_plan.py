"""The plan: what a sweep comes to, what of it is done, and the sentences for what is not there."""

import dataclasses
import json
from pathlib import Path

import pytest

from crelu_models.tables import S2
from sweeps.experiment.cell_trials import BEYOND, cell_trials, expand, planned
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.metrics import Metric
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.questions.question import Question
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep, sweep_from_json
from sweeps.experiment.trial import Trial
from sweeps.experiment.wording import unknown_name
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, CRELU

SWEEP = Sweep("s", "demo", (BASELINE, CRELU), Protocol(seeds=2))


def done(ledger: Ledger, trial: Trial, **changes: object) -> None:
    result = {"key": trial.key, "status": "finished", "fingerprint": "f", "code": code_fingerprint(trial.cell.net),
              "metrics": {"best/val_top1_err": 9.0}, "curve": []}  # fmt: skip
    ledger.commit(trial.key, result | changes)


def test_seeds_come_one_after_another_over_all_cells() -> None:
    assert [(trial.cell.label, trial.seed) for trial in expand(SWEEP, {})] == [
        ("Baseline", 0), ("CReLU conv1-4", 0), ("Baseline", 1), ("CReLU conv1-4", 1),
    ]  # fmt: skip


def test_states_are_those_of_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    first, second, third, fourth = expand(SWEEP, {})
    done(ledger, first)
    ledger.write(f"checkpoints/{second.key}/00001-00000000.safetensors", b"")
    ledger.add_attempt(third.key, {"error": "no", "final": True})
    sweep_plan = plan(SWEEP, ledger, {"cifar10": "f"})
    assert [standing.state for standing in sweep_plan.statuses] == ["done", "running", "failed", "new"]
    assert sweep_plan.to_do == [second, fourth]
    assert sweep_plan.count("done", "failed") == 2


@pytest.mark.parametrize(("change", "why"), [({"fingerprint": "g"}, "data"), ({"code": "old"}, "code")])
def test_result_of_other_data_or_code_is_stale(tmp_path: Path, change: dict[str, str], why: str) -> None:
    ledger = Ledger(str(tmp_path))
    done(ledger, expand(SWEEP, {})[0], **change)
    standing = plan(SWEEP, ledger, {"cifar10": "f"}).statuses[0]
    assert standing.state == "stale"
    assert why in standing.why


def test_three_tries_or_a_final_one_give_up(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    trial = expand(SWEEP, {})[0]
    states = []
    for _ in range(3):
        ledger.add_attempt(trial.key, {"error": "no"})
        states.append(plan(SWEEP, ledger, {}).statuses[0].state)
    assert states == ["new", "new", "failed"]


def test_adding_a_cell_and_seeds_adds_only_their_trials(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    for trial in expand(SWEEP, {}):
        done(ledger, trial)
    third = dataclasses.replace(CRELU, label="AVR", net=S2.avr(1))
    wider = Sweep("s", "demo", (BASELINE, CRELU, third), Protocol(seeds=3))
    new = [(trial.cell.label, trial.seed) for trial in plan(wider, ledger, {}).to_do]
    assert sorted(new) == [("AVR", 0), ("AVR", 1), ("AVR", 2), ("Baseline", 2), ("CReLU conv1-4", 2)]


def seeds_of(sweep: Sweep, results: dict[str, dict[str, object]], failed: tuple[str, ...] = ()) -> list[int]:
    return [trial.seed for trial in expand(sweep, results, failed) if trial.cell == BASELINE]


def test_seeds_on_the_ledger_count_where_fewer_are_declared(tmp_path: Path) -> None:
    """A plain command after `--seeds 5` must not drop what was paid for."""
    ledger = Ledger(str(tmp_path))
    more = dataclasses.replace(SWEEP, protocol=Protocol(seeds=5))
    paid = [trial for trial in expand(more, {}) if trial.cell == BASELINE and trial.seed in (2, 4)]
    for trial in paid:
        done(ledger, trial)
    today = plan(SWEEP, ledger, {})
    assert [s.trial.seed for s in today.of(BASELINE)] == [0, 1, 2, 4]
    assert [s.trial.seed for s in today.of(CRELU)] == [0, 1]
    assert [trial.seed for trial in today.to_do] == [0, 0, 1, 1]  # seed 3 is not declared, and nobody trained it
    assert today.further == {trial.key for trial in paid}
    assert today.seeds_text() == "2 seeds declared, 4 on the ledger of Baseline"
    assert plan(more, ledger, {}).further == frozenset()
    assert plan(more, ledger, {}).seeds_text() == ""


def test_further_seed_counts_with_what_is_there_of_it() -> None:
    sweep = Sweep("s", "demo", (BASELINE,), Protocol(ablation=False, single=True, folds=2))
    more = dataclasses.replace(sweep, protocol=dataclasses.replace(sweep.protocol, seeds=2))
    first = next(trial for trial in expand(more, {}) if trial.phase == "holdout" and trial.seed == 1)
    results: dict[str, dict[str, object]] = {first.key: {"metrics": {}}}
    # Its second phase was not trained: it is asked for by --seeds 2 alone.
    assert [(t.phase, t.seed) for t in expand(sweep, results) if not t.folds] == [("holdout", 0), ("holdout", 1)]
    assert ("match", 1001) in [(trial.phase, trial.seed) for trial in expand(more, results)]
    # A failed seed is one that was tried.
    seeds = Protocol(seeds=1)
    (third,) = [trial for trial in expand(dataclasses.replace(SWEEP, protocol=Protocol(seeds=3)), {})
                if trial.cell == BASELINE and trial.seed == 2]  # fmt: skip
    assert seeds_of(dataclasses.replace(SWEEP, protocol=seeds), {}, (third.key,)) == [0, 2]


def test_flag_that_acts_on_trials_of_further_seeds_is_told_with_these_seeds(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    more = dataclasses.replace(SWEEP, protocol=Protocol(seeds=5))
    for trial in expand(more, {}):
        if trial.cell == BASELINE and trial.seed in (1, 3, 4):
            ledger.add_attempt(trial.key, {"error": "no", "final": True})
    today = plan(SWEEP, ledger, {})
    first, *further = [status for status in today.statuses if status.state == "failed"]
    assert (today.to_retry, today.may_retry) == ([first], True)
    assert today.way("--retry-failed", "tries it again", first) == "--retry-failed tries it again"
    (fourth, fifth) = further
    assert today.way("--retry-failed", "tries it again", fourth) == (
        "of a further seed: --retry-failed --seeds 4 tries it again"
    )
    assert today.way("--stale retrain", "trains them anew", fourth, fifth) == (
        "of further seeds: --stale retrain --seeds 5 trains them anew"
    )
    ledger.delete(f"attempts/{first.trial.key}")
    assert not plan(SWEEP, ledger, {}).may_retry
    question = Question("is it", CRELU.label, BASELINE.label, margin=1.0)
    asked = dataclasses.replace(SWEEP, protocol=Protocol(seeds=2, until=3), questions=(question,))
    undecided = dataclasses.replace(today, sweep=asked)
    assert undecided.way("--retry-failed", "tries it again", fifth) == "of a further seed, which no question needs"


def test_winner_of_a_search_with_a_further_seed_is_a_trial_of_that_search(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    search = Search(2, wave=2, seed=1, prune=False)
    sweep = Sweep("s", "demo", (BASELINE,), Protocol(ablation=False, single=True, search=search))
    for trial in plan(sweep, ledger, {}).to_do:
        done(ledger, trial)
    today = plan(sweep, ledger, {})
    assert [(status.trial.seed, status.state) for status in today.asked_for] == [(1, "done"), (1, "done"), (0, "new")]
    assert today.further == frozenset()


DIVERGED = {"status": "diverged", "metrics": {"best/val_top1_err": 90.0}, "curve": []}
GOOD = {"status": "finished", "metrics": {"best/val_top1_err": 9.0}, "curve": []}


def test_cell_whose_first_two_trainings_diverge_is_given_up(tmp_path: Path) -> None:
    sweep = Sweep("s", "demo", (BASELINE, CRELU), Protocol(seeds=2, folds=3))
    ledger = Ledger(str(tmp_path))
    mine = [trial for trial in expand(sweep, {}) if trial.cell == CRELU]
    done(ledger, mine[0], status="diverged")
    assert plan(sweep, ledger, {}).given_up == {}  # one may be an accident
    done(ledger, mine[1], status="diverged")
    today = plan(sweep, ledger, {})
    assert [status.state for status in today.of(CRELU)] == ["done"] * 2 + ["skipped"] * 3
    assert today.given_up == {CRELU.label: "the first 2 trainings of this cell diverged"}
    assert {trial.cell for trial in today.to_do} == {BASELINE}
    assert today.lost(CRELU) == "1 of 2 seeds diverged, 1 skipped, 1 of 3 folds diverged, 2 skipped"
    # --retry-failed brings the others back; a third that had begun, and came to something, does not.
    ledger.write(f"insisted/{CRELU.key}", b"")
    assert plan(sweep, ledger, {}).count("new", cell=CRELU) == 3
    ledger.delete(f"insisted/{CRELU.key}")
    done(ledger, mine[2])
    today = plan(sweep, ledger, {})
    assert [status.state for status in today.of(CRELU)] == ["done"] * 3 + ["skipped"] * 2
    assert [status.why for status in today.of(CRELU)][:3] == ["", "", ""]  # a table counts all that was trained
    asked = dataclasses.replace(
        sweep,
        protocol=dataclasses.replace(sweep.protocol, until=3),
        questions=(Question("is it", CRELU.label, BASELINE.label, margin=1.0),),
    )
    for trial in expand(sweep, {}):
        if trial.cell == CRELU and ledger.result(trial.key) is None:
            done(ledger, trial)
    today = plan(asked, ledger, {})
    assert [status.why for status in today.of(CRELU)] == ["", "", BEYOND, BEYOND, BEYOND]
    assert (list(today.given_up), today.may_retry, today.is_cut_short(CRELU)) == ([CRELU.label], True, True)
    third = plan(asked, ledger, {CRELU.dataset: "other pictures"}).of(CRELU)[2]
    assert (third.state, third.why) == ("stale", f"the data have changed since; {BEYOND}")


@pytest.mark.parametrize(
    ("ended", "failed", "is_given_up"),
    [
        ({0: DIVERGED, 1: DIVERGED}, (), True),
        ({0: DIVERGED, 1: DIVERGED, 2: GOOD, 3: GOOD}, (), True),
        ({1: DIVERGED, 2: DIVERGED}, (), False),  # the first still runs
        ({0: GOOD, 1: DIVERGED, 2: DIVERGED}, (), False),
        ({0: DIVERGED, 2: DIVERGED, 3: DIVERGED}, (), False),
        ({0: DIVERGED, 2: DIVERGED}, (1,), True),  # a failed one counts as none
        ({0: DIVERGED, 4: DIVERGED}, (), False),
    ],
)
def test_first_trainings_to_start_decide_whether_a_cell_is_given_up(
    ended: dict[int, dict[str, object]], failed: tuple[int, ...], is_given_up: bool
) -> None:
    """Whether those of a cell that run side by side end in this order or in that one must not change a sweep."""
    sweep = Sweep("s", "demo", (CRELU,), Protocol(seeds=2, folds=3))
    mine = expand(sweep, {})
    assert [(trial.phase, trial.seed, trial.fold) for trial in mine] == [
        ("ablation", 0, 0), ("fold", 0, 0), ("fold", 1, 1), ("fold", 2, 2), ("ablation", 1, 0)]  # fmt: skip
    results = {mine[place].key: result for place, result in ended.items()}
    stands = cell_trials(CRELU, sweep.protocol, results, {mine[place].key for place in failed})
    assert bool(stands.why) == is_given_up


def test_cell_without_a_setting_that_may_be_trained_is_given_up_and_not_done(tmp_path: Path) -> None:
    narrow = Sweep("s", "demo", (BASELINE,), Protocol(seeds=1, search=Search(3, limits={"parameters": 10})))
    today = plan(narrow, Ledger(str(tmp_path)), {})
    assert (today.statuses, today.pending) == ((), ())
    assert today.given_up == {BASELINE.label: "no trial of its search may be trained: more parameters than the limit"}
    assert today.remedy(BASELINE.label) == "a larger limit of the search lets it train"
    assert list(today.given_up_sentences()) == list(today.given_up.items())
    assert not today.may_retry


def test_cell_whose_trainings_all_ended_is_not_given_up(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    sweep = Sweep("s", "demo", (CRELU,), Protocol(seeds=2))
    for trial in expand(sweep, {}):
        done(ledger, trial, status="diverged")
    assert plan(sweep, ledger, {}).given_up == {}


def test_winner_is_chosen_by_the_page_s_own_metric(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    own = Metric("test/f1", "higher")
    cell = dataclasses.replace(BASELINE, table="", row="", task="page:train", metric=own)
    sweep = Sweep("s", "demo", (cell,), Protocol(seeds=3))
    first, second, _ = trials = expand(sweep, {})
    for trial, metrics in zip(trials, ({"best/val_f1": 0.5}, {"best/val_f1": 0.7}, {}), strict=True):
        ledger.commit(trial.key, {"status": "finished", "metrics": metrics, "curve": []})
    assert plan(sweep, ledger, {}).winner(cell) == second
    ledger.forget(second.key)
    assert plan(sweep, ledger, {}).winner(cell) == first


def test_second_phase_says_no_more_of_its_cell_than_its_first() -> None:
    protocol = Protocol(seeds=2, ablation=False, single=True)
    first, other = cell_trials(CRELU, protocol, {}).protocol
    (second,) = [t for t in cell_trials(CRELU, protocol, {first.key: DIVERGED}).protocol if t.phase == "match"]
    assert cell_trials(CRELU, protocol, {first.key: DIVERGED, second.key: DIVERGED}).why == ""
    assert cell_trials(CRELU, protocol, {first.key: DIVERGED, other.key: DIVERGED}).why != ""


def test_cell_is_given_up_in_its_search_once_the_whole_first_wave_diverged() -> None:
    protocol = Protocol(folds=3, search=Search(8, wave=3, prune=False))
    first = cell_trials(BASELINE, protocol, {}).search
    results = {trial.key: DIVERGED for trial in first[:2]}
    assert cell_trials(BASELINE, protocol, results).why == ""
    all_diverged = results | {first[2].key: DIVERGED}
    stopped = cell_trials(BASELINE, protocol, all_diverged)
    assert stopped.why == "all 3 trainings of its search diverged"
    assert stopped.pending == []
    assert planned([stopped]) == first
    assert stopped.skipped == {trial.key for trial in stopped.search} - all_diverged.keys() != set()
    assert cell_trials(BASELINE, protocol, all_diverged, insisted={BASELINE.key}).why == ""
    assert cell_trials(BASELINE, protocol, results | {first[2].key: GOOD}).why == ""
    # A failed training of the wave speaks for nothing, and holds nothing up.
    assert cell_trials(BASELINE, protocol, results, {first[2].key}).why == "all 2 trainings of its search diverged"
    alone = {first[0].key: DIVERGED}
    assert cell_trials(BASELINE, protocol, alone, {trial.key for trial in first[1:]}).why == ""


def test_part_of_a_sweep_keeps_the_cells_that_are_not_asked_for() -> None:
    part = SWEEP.only(["crelu*"])
    assert (part.cells, part.others) == ((CRELU,), (BASELINE,))
    assert part.title == SWEEP.title


def test_sweeps_that_share_a_cell_share_its_trials(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    done(ledger, Trial(BASELINE))
    renamed = dataclasses.replace(BASELINE, label="ReLU", table="2")
    assert plan(Sweep("other", "paper", (renamed,)), ledger, {}).count("done") == 1


def test_only_takes_cells_by_glob_in_any_case() -> None:
    assert [cell.label for cell in SWEEP.only(["crelu*"]).cells] == ["CReLU conv1-4"]
    assert [cell.label for cell in SWEEP.only(["!crelu*"]).cells] == ["Baseline"]


@pytest.mark.parametrize(("globs", "said"), [(["Bselin"], "'Baseline'"), (["!nothing"], "there are|did you mean"),
                                             (["*", "!*"], "no cell")])  # fmt: skip
def test_cell_that_does_not_exist_is_named_with_the_nearest(globs: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SWEEP.only(globs)


def test_two_cells_of_one_content_or_label_are_refused() -> None:
    with pytest.raises(ValueError, match="content: Baseline, again"):
        Sweep("s", "demo", (BASELINE, dataclasses.replace(BASELINE, label="again")))
    with pytest.raises(ValueError, match="label"):
        Sweep("s", "demo", (BASELINE, dataclasses.replace(CRELU, label="Baseline")))


def test_declared_sweep_is_declared_again_from_the_ledger(tmp_path: Path) -> None:
    protocol = Protocol(ablation=False, single=True, folds=3, search=Search(5))
    sweep = Sweep("s", "demo", (BASELINE, CRELU), protocol)
    ledger = Ledger(str(tmp_path))
    back = sweep_from_json(json.loads(json.dumps(plan_to_json(plan(sweep, ledger, {})))))
    assert back == sweep
    assert [trial.key for trial in expand(back, {})] == [trial.key for trial in expand(sweep, {})]


@pytest.mark.parametrize("value", [None, {}, {"cells": 3}, {"protocol": {"search": 1}}])
def test_plan_of_a_stranger_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a"):
        sweep_from_json(value)


def total(tmp_path: Path, sweep: Sweep) -> int:
    return plan(sweep, Ledger(str(tmp_path)), {}).total


def test_total_counts_search_and_protocol_before_anything_is_known(tmp_path: Path) -> None:
    protocol = Protocol(ablation=False, single=True, folds=10, search=Search(20))
    # The winner of a search on the hold-out is the first phase of Single.
    assert total(tmp_path, Sweep("s", "paper", (BASELINE, CRELU), protocol)) == 2 * (20 + 1 + 10)
    over_folds = dataclasses.replace(protocol, search=Search(20, folds=5))
    assert total(tmp_path, Sweep("s", "paper", (BASELINE, CRELU), over_folds)) == 2 * (20 * 5 + 2 + 10)


def test_paper_counts_of_trainings(tmp_path: Path) -> None:
    from sweeps import cifar_vgg, cifar_width, imagenet_placement

    for page, count in ((cifar_width, 120), (cifar_vgg, 96)):
        protocol = dataclasses.replace(page.PROTOCOL, search=None, rates=None)
        assert total(tmp_path, Sweep("s", "paper", page.CELLS, protocol)) == count  # science: Tables 1 and 2
    studied = dataclasses.replace(cifar_width.PROTOCOL, search=None)
    assert total(tmp_path, Sweep("s", "paper", cifar_width.CELLS, studied)) == 120 + 2 * 4  # rates of two baselines
    assert total(tmp_path, Sweep("s", "paper", imagenet_placement.CELLS)) == 9


@pytest.mark.parametrize(
    ("name", "known", "end"),
    [
        ("recipe.learning_rate", ["recipe.dampening", "recipe.lr"], "did you mean 'recipe.lr'?"),
        ("batch_size", ["recipe.batch", "recipe.stages"], "did you mean 'recipe.batch'?"),
        ("recipe.epoch", ["recipe.epochs", "recipe.lr"], "did you mean 'recipe.epochs'?"),
        ("zzz", ["recipe.lr"], "there are: recipe.lr"),
        ("net.dropout.pol2", ["net.dropout.pool2", "recipe.weight_decay"], "did you mean 'net.dropout.pool2'?"),
        ("zzz", [], "it has none yet"),
    ],
)
def test_an_unknown_name_comes_with_the_one_that_is_meant(name: str, known: list[str], end: str) -> None:
    assert unknown_name("field", name, known, "a cell").endswith(end)


def test_the_winner_of_a_cell_is_chosen_by_its_hold_out_error_and_never_by_the_test(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    four = dataclasses.replace(SWEEP, protocol=Protocol(seeds=4))
    first, second, third, fourth = [trial for trial in expand(four, {}) if trial.cell == BASELINE]
    assert plan(four, ledger, {}).winner(BASELINE) is None
    for trial, held_out, tested in ((first, 9.0, 1.0), (second, 8.0, 7.0), (third, 8.0, 3.0)):
        done(ledger, trial, metrics={"best/val_top1_err": held_out, "final/test_top1_err": tested})
    done(ledger, fourth, status="diverged", metrics={"best/val_top1_err": 0.0})
    assert plan(four, ledger, {}).winner(BASELINE) == second
