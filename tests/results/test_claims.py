"""Claims are decided by tests, marks say what a number is worth, deviations are what trials did; none by hope."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from crelu_models.tables import PAPER
from sweeps import cifar_vgg, cifar_width, full_grid, imagenet_placement
from sweeps.experiment.metrics import AVERAGE, PARAMETERS, TOP1, TOP1_TEN, TOP5, TOP5_TEN, TRAIN, VOTE
from sweeps.experiment.profiles import scaled
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import Dimension
from sweeps.experiment.search import Search
from sweeps.experiment.space import Float
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import SECOND_SEED, Cell, Trial
from sweeps.report.claim_tables import WITHIN, claim_table, comparison_table
from sweeps.report.effect_tables import effect_table, effects_of, printed_table
from sweeps.report.render import document
from sweeps.report.result_tables import result_tables
from sweeps.report.tidy import tidy
from sweeps.results import paper, statistics
from sweeps.results.analyses import SCHEMA
from sweeps.results.cell_numbers import groups, number
from sweeps.results.claims import ClaimResult, Compared, in_print, judge_claims, printed_tests
from sweeps.results.contrasts import contrast, effects, more_trainings
from sweeps.results.deviations import deviations
from sweeps.results.evidence import CellResults, SweepResults, read_sweep
from sweeps.results.marks import marks, still_falling
from sweeps.results.paper import CLAIMS, COLUMNS
from sweeps.results.paper_cells import CELLS, footnote_row
from sweeps.store.ledger import Ledger
from tests.support.simulation import measure
from tests.support.sweeps import Made, as_printed, finish, make, only, scores, unsearched

PLACEMENTS = imagenet_placement.CELLS
SIX = Sweep("imagenet_placement", "paper", PLACEMENTS, Protocol(seeds=6))


def seen(tmp_path: Path, sweep: Sweep, outcome: Callable[[Trial], Made | None]) -> SweepResults:
    """Return the results of a sweep whose trials came out as `outcome` says."""
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, sweep, outcome)
    return read_sweep(ledger, sweep.title)


def drawn(trial: Trial, means: dict[str, float], sd: float) -> Made:
    """Return errors around a mean by row, the same whenever asked."""
    noise = np.random.default_rng([trial.seed, *trial.cell.row.encode()]).normal(0, sd, 4)
    mean = means.get(trial.cell.row, 42.0)
    return Made({metric: mean + float(x) for metric, x in zip(COLUMNS["4"], noise, strict=True)})


def of_seed(trial: Trial) -> Trial:
    """Return a trial of either phase with the seed of its first phase."""
    return dataclasses.replace(trial, seed=trial.seed % SECOND_SEED)


# The paper's own numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "dataset", "row", "rival", "t", "corrected"),
    [
        ("1", "cifar10", "CReLU", "Baseline", "5.7", "3.9"),
        ("1", "cifar10", "CReLU half", "Baseline", "6.0", "4.1"),
        ("1", "cifar100", "CReLU", "Baseline", "28.0", "19.3"),
        ("2", "cifar10", "CReLU (1,3)", "VGG", "12.5", "8.6"),
    ],
)
def test_printed_averages_have_these_t(table: str, dataset: str, row: str, rival: str, t: str, corrected: str) -> None:
    (test,) = (x for x in printed_tests(table) if (x.dataset, x.row, x.rival) == (dataset, row, rival))
    assert (f"{-test.difference.plain.t:.1f}", f"{-test.difference.corrected.t:.1f}") == (t, corrected)
    assert test.significant
    shown = printed_table(table)
    assert shown is not None
    name = "CIFAR-10" if dataset == "cifar10" else "CIFAR-100"
    (line,) = (r for r in shown.rows if [e.text for e in r[:3]] == [name, row, rival])
    assert (line[4].text, line[6].text, line[9].text) == (t, corrected, "yes")


def test_printed_averages_do_not_order_the_vgg_placements() -> None:
    tests = {(x.dataset, x.row, x.rival): x for x in printed_tests("2")}
    assert f"{tests['cifar100', 'CReLU (1,3,5)', 'CReLU (1,3)'].difference.plain.p:.2f}" == "0.27"
    for row, rival in (("(1,3)", "(1)"), ("(1,3,5)", "(1,3)"), ("(1,3,5)", "(1)")):
        test = tests["cifar10", f"CReLU {row}", f"CReLU {rival}"]
        assert test.difference.difference == 0
        assert not test.significant
    assert not {(x.dataset, x.row): x for x in printed_tests("1")}["cifar10", "AVR"].significant


def test_claims_in_print() -> None:
    verdicts = {claim.id: in_print(claim) for claim in CLAIMS}
    assert verdicts["half-below-baseline"] == verdicts["vgg-crelu-below-vgg"] == "significant"
    assert verdicts["vgg-placement-order-cifar10"] == "denied"
    assert verdicts["vgg-placement-order-cifar100"] == "not significant"
    assert verdicts["crelu-below-baseline-and-double"] == "not significant"  # against Double, after correction
    assert verdicts["conv1-4-lowest-centre-crop"] == "at face value"
    assert verdicts["crelu-more-invariant"] == "no numbers"
    assert all((verdicts[claim.id] == "denied") == (paper.holds_in_print(claim) is False) for claim in CLAIMS)


def test_fixture_of_the_printed_numbers_reproduces_each_of_them(tmp_path: Path) -> None:
    ten = tuple(cell for cell in cifar_width.CELLS if cell.dataset == "cifar10")
    results = seen(tmp_path, unsearched("cifar_width", ten, cifar_width.PROTOCOL), lambda t: as_printed(t, 10_000))
    (group,) = groups(results)
    for row in group.rows:
        for metric in group.metrics:
            printed = group.paper(row, metric)
            assert printed is not None
            if metric != PARAMETERS:
                ours = number(row.results, metric)
                assert f"{ours.average.mean:.2f}" == printed.text
                assert printed.se is None or f"{ours.average.se:.2f}" == f"{printed.se:.2f}"
    claims = {claim_result.claim.id: claim_result for claim_result in judge_claims(results)}
    by_metric = {
        test.contrast.metric: test
        for test in claims["crelu-below-baseline-and-double"].compared
        if (test.comparison.dataset, test.rival) == ("cifar10", "Baseline")
    }
    assert by_metric[AVERAGE].decision == "supported"
    assert by_metric[VOTE].decision == "not tested"
    assert by_metric[TOP1].contrast.basis == "one training"
    assert by_metric[TOP1].decision == "inconclusive"
    assert claims["crelu-below-baseline-and-double"].decision == "not run"  # CIFAR-100 is missing


# Claims -------------------------------------------------------------------------------------------------------


def test_claim_is_supported_contradicted_or_open_as_the_runs_are(tmp_path: Path) -> None:
    means = {"Baseline": 45.0, "AVR conv1-4": 45.0, "CReLU conv1-4": 38.0, "AVR conv1-7": 40.0, "CReLU all": 41.0}
    results = {r.claim.id: r for r in judge_claims(seen(tmp_path, SIX, lambda trial: drawn(trial, means, 0.2)))}
    assert results["conv1-4-lowest-centre-crop"].decision == "supported"
    assert results["conv1,4,7-lowest-ten-crops"].decision == "contradicted"
    assert results["avr-deeper-no-better-than-baseline"].decision == "contradicted"
    assert results["all-below-baseline-with-half"].decision == "supported"
    even = results["avr-1-4-below-baseline"]
    assert even.decision == "inconclusive"
    assert len(even.open) == 4
    assert results["pair-above-non-pair"].decision == "not run"


def test_further_seeds_and_their_cost_follow_from_spread_and_seconds(tmp_path: Path) -> None:
    means = {"Baseline": 42.0, "AVR conv1-4": 41.6}
    claim_results = {r.claim.id: r for r in judge_claims(seen(tmp_path, SIX, lambda trial: drawn(trial, means, 0.5)))}
    claim_result = claim_results["avr-1-4-below-baseline"]
    assert claim_result.decision == "inconclusive"
    family = sum(math.isfinite(test.p) for r in claim_results.values() for test in r.compared)
    expected = [
        statistics.seeds_needed(test.contrast.sd, test.contrast.difference, 0.05 / family, have=6, most=1000)
        for test in claim_result.open
    ]
    most = max(seeds for seeds in expected if seeds is not None)
    assert claim_result.more == {"seed": most}
    # Both rows train for 600 seconds a seed.
    assert claim_result.hours == pytest.approx(2 * most * 600 / 3600)


def test_one_training_each_asks_for_two_more(tmp_path: Path) -> None:
    sweep = Sweep("imagenet_placement", "paper", PLACEMENTS, Protocol())
    claim_results = {r.claim.id: r for r in judge_claims(seen(tmp_path, sweep, lambda trial: drawn(trial, {}, 0.2)))}
    claim_result = claim_results["avr-1-4-below-baseline"]
    assert (claim_result.decision, claim_result.more) == ("inconclusive", {"seed": 2})
    assert claim_result.hours == pytest.approx(2 * 2 * 600 / 3600)


def test_claims_on_other_data_are_withheld(tmp_path: Path) -> None:
    cells = tuple(scaled(cell, "demo") for cell in PLACEMENTS)
    sweep = Sweep("imagenet_placement", "demo", cells, Protocol(seeds=3))
    means = {"Baseline": 50.0}
    results = seen(tmp_path, sweep, lambda trial: drawn(trial, means, 0.1))
    claim_results = judge_claims(results)
    assert len(claim_results) > 5
    for claim_result in claim_results:
        assert (claim_result.decision, claim_result.withheld) == ("not run", "embedded pictures")
    # A comparison that these pictures would support supports nothing of the paper, and asks for no more seeds.
    assert any(compared.decision == "supported" for claim in claim_results for compared in claim.compared)
    told = {(line["claim_decision"], line["decision"], line["more_seeds"]) for line in tidy(results)["claims"]}
    assert told == {("withheld", "withheld", None)}


def test_figures_and_later_tables_are_decided_from_the_analyses(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, SIX, lambda trial: drawn(trial, {}, 0.2))
    rng = np.random.default_rng(0)
    for run in read_sweep(ledger, SIX.title).runs:
        metrics = {f"outgoing/pair/conv{i}": 0.3 + 0.02 * rng.random() for i in range(1, 8)}
        metrics |= {f"outgoing/non_pair/conv{i}": 0.1 + 0.02 * rng.random() for i in range(1, 8)}
        metrics |= {f"pairing/mu/conv{i}": -0.13 - 0.001 * rng.random() for i in range(1, 5)}
        metrics |= {f"pairing/mu_random/conv{i}": -0.13 for i in range(1, 5)}
        metrics["pairing/mu/conv1"] -= 0.3 * (run.trial.cell.row == "Baseline")
        folder = f"trials/{run.key}/analysis"
        for job in ("outgoing", "pairing"):
            job_metrics = {name: value for name, value in metrics.items() if name.startswith(job)}
            summary = {"schema": SCHEMA, "job": job, "metrics": job_metrics, "rows": [], "notes": [], "files": {}}
            ledger.write_json(f"{folder}/{job}/summary.json", summary)
    decisions = {
        claim_result.claim.id: claim_result.decision for claim_result in judge_claims(read_sweep(ledger, SIX.title))
    }
    assert decisions["pair-above-non-pair"] == "supported"
    assert decisions["relu-pairs-at-conv1"] == "supported"
    assert decisions["crelu-pairing-vanishes"] == "supported"
    assert decisions["crelu-more-invariant"] == "not run"


def analysed(tmp_path: Path, sweep: Sweep, metrics: Callable[[Trial], dict[str, float]]) -> dict[str, ClaimResult]:
    """Return the claims of a sweep whose trials have one analysis with these metrics."""
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, sweep, lambda trial: drawn(trial, {}, 0.2))
    for run in read_sweep(ledger, sweep.title).runs:
        summary = {"job": "made", "schema": SCHEMA, "metrics": metrics(run.trial), "rows": [], "notes": [], "files": {}}
        ledger.write_json(f"trials/{run.key}/analysis/made/summary.json", summary)
    return {claim_result.claim.id: claim_result for claim_result in judge_claims(read_sweep(ledger, sweep.title))}


def test_a_claim_on_analyses_leaves_stale_ones_out_where_current_ones_are_there(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    fading = {1: -0.6, 2: -0.4, 3: -0.3, 4: -0.2, 5: -0.1}
    make(ledger, SIX, lambda trial: drawn(trial, {}, 0.2))

    def compared(*stale: int) -> ClaimResult:
        """Return the claim with these seeds stale, which found the contrary, and the last seed not analysed."""
        for trial in [run.trial for run in read_sweep(ledger, SIX.title).runs]:
            if trial.seed in stale:
                ledger.commit(trial.key, (ledger.result(trial.key) or {}) | {"code": "of before"})
            layers = fading | {5: -0.9} if trial.seed in stale else fading
            metrics = by_layer(trial, paper.MU, layers)
            summary = {"job": "made", "schema": SCHEMA, "metrics": metrics, "rows": [], "notes": [], "files": {}}
            if trial.seed < 5:
                ledger.write_json(f"trials/{trial.key}/analysis/made/summary.json", summary)
        claims = {claim.claim.id: claim for claim in judge_claims(read_sweep(ledger, SIX.title))}
        return claims["relu-pairing-fades-with-depth"]

    some = compared(0, 1)
    assert (some.decision, some.withheld, {run.trial.seed for run in some.runs}) == ("supported", "", {2, 3, 4})
    every = compared(0, 1, 2, 3, 4)
    assert every.decision == "not run"
    assert every.withheld == "5 stale trainings of Baseline"


def by_layer(trial: Trial, name: str, values: dict[int, float]) -> dict[str, float]:
    """Return a metric of layers, a little off for each seed."""
    return {f"{name}conv{i}": value + 0.001 * trial.seed * (i + 1) for i, value in values.items()}


def test_pairing_fades_where_every_deeper_layer_lies_nearer_to_0(tmp_path: Path) -> None:
    fading = {1: -0.6, 2: -0.4, 3: -0.3, 4: -0.2, 5: -0.1}
    for i, (deep, decision) in enumerate([(-0.1, "supported"), (-0.7, "contradicted")]):
        claims = analysed(
            tmp_path / str(i),
            SIX,
            lambda trial, deep=deep: by_layer(trial, paper.MU, fading | {5: deep}),  # type: ignore[misc]
        )
        assert claims["relu-pairing-fades-with-depth"].decision == decision


@pytest.mark.parametrize("folds", [0, 10])
def test_within_is_decided_by_the_p_that_is_printed(tmp_path: Path, folds: int) -> None:
    protocol = Protocol(ablation=False, folds=folds) if folds else SIX.protocol
    n, margin = folds or 6, 0.022
    spread = np.linspace(-1, 1, n) * 0.004
    means = {1: 0.001, 2: 0.0195, 3: 0.0, 4: 0.08}  # inside, near the margin, 0 itself, outside

    def mu(trial: Trial) -> dict[str, float]:
        offset = float(spread[trial.fold if folds else trial.seed])
        here = {f"pairing/mu/conv{i}": mean + offset - 0.5 for i, mean in means.items()}
        return here | {f"pairing/mu_random/conv{i}": -0.5 for i in means}

    sweep = unsearched("imagenet_placement", PLACEMENTS, protocol)
    claims = analysed(tmp_path, sweep, mu)
    claim = claims["crelu-pairing-vanishes"]
    family = [test for other in claims.values() for test in other.compared]
    error = float(np.std(spread, ddof=1)) * math.sqrt(1 / n + (1 / 9 if folds else 0))
    expected = [stats.t.sf((margin - mean) / error, n - 1) for mean in list(means.values())[:3]]
    expected.append(2 * stats.t.sf((means[4] - margin) / error, n - 1))
    assert [test.contrast.p for test in claim.compared] == pytest.approx(expected)
    adjusted = statistics.holm([test.contrast.p for test in family])
    assert [test.p for test in family] == pytest.approx(list(adjusted), nan_ok=True)
    assert [test.decision for test in claim.compared] == ["supported", "inconclusive", "supported", "contradicted"]
    table = comparison_table(claim)
    assert [line[3].text for line in table.rows] == [document.chance(test.p) for test in claim.compared]
    assert table.notes == (WITHIN,)
    lines = tidy(read_sweep(Ledger(str(tmp_path / "ledger")), sweep.title))["claims"]
    told = [(line["p"], line["p_holm"], line["margin"]) for line in lines if line["claim"] == claim.claim.id]
    assert told == [(test.contrast.p, test.p, margin) for test in claim.compared]


def test_within_of_equal_differences_or_one_seed_is_open(tmp_path: Path) -> None:
    equal = {f"pairing/mu/conv{i}": -0.13 for i in range(1, 5)} | {f"pairing/mu_random/conv{i}": -0.13 for i in (1, 2)}
    equal |= {"pairing/mu_random/conv3": -0.12, "pairing/mu_random/conv4": -0.03}
    for seeds in (1, 6):
        sweep = unsearched("imagenet_placement", PLACEMENTS, Protocol(seeds=seeds))
        claim = analysed(tmp_path / str(seeds), sweep, lambda _: equal)["crelu-pairing-vanishes"]
        assert {(test.decision, math.isnan(test.p)) for test in claim.compared} == {("inconclusive", True)}
        assert comparison_table(claim).notes == ()


def test_invariance_peaks_and_jumps_are_compared_within_a_network(tmp_path: Path) -> None:
    peaks = {1: 60.0, 2: 40.0, 3: 45.0, 4: 70.0, 5: 50.0, 6: 55.0, 7: 65.0}
    claims = analysed(tmp_path / "a", SIX, lambda trial: by_layer(trial, paper.INVARIANCE, peaks))
    assert claims["invariance-peaks-on-imagenet"].decision == "supported"
    flat = analysed(tmp_path / "b", SIX, lambda trial: by_layer(trial, paper.INVARIANCE, peaks | {5: 75.0}))
    assert flat["invariance-peaks-on-imagenet"].decision == "contradicted"
    cifar = unsearched("cifar_width", cifar_width.CELLS, Protocol(seeds=3))
    jumps = analysed(tmp_path / "c", cifar, lambda trial: by_layer(trial, paper.INVARIANCE, peaks))
    claim = jumps["invariance-jumps-on-cifar"]
    steps = {
        (test.comparison.metric[-5:], test.comparison.against_metric[-5:], test.decision) for test in claim.compared
    }
    assert steps == {("conv3", "conv2", "supported"), ("conv6", "conv4", "contradicted")}
    assert len(claim.compared) == 2 * 2 * 2


def test_pairs_of_outgoing_weights_stay_below_one_half(tmp_path: Path) -> None:
    low = dict.fromkeys(range(1, 8), 0.3)
    for i, (conv3, decision) in enumerate([(0.3, "supported"), (0.8, "contradicted")]):
        claims = analysed(
            tmp_path / str(i),
            SIX,
            lambda trial, conv3=conv3: by_layer(trial, f"{paper.PAIR}/", low | {3: conv3}),  # type: ignore[misc]
        )
        assert claims["pair-far-from-one"].decision == decision


def test_numbers_of_the_literature_are_rivals_without_a_spread(tmp_path: Path) -> None:
    for i, (error, decision) in enumerate([(41.0, "supported"), (42.4, "contradicted")]):
        results = seen(tmp_path / str(i), SIX, lambda trial, error=error: drawn(trial, {"CReLU all": error}, 0.1))  # type: ignore[misc]
        claim = {claim_result.claim.id: claim_result for claim_result in judge_claims(results)}[
            "all-below-friednet-and-prunednet"
        ]
        first = claim.compared[0]
        assert (first.rival, first.contrast.metric, first.decision) == ("FriedNet", TOP1, decision)
        errors = [run.metrics[TOP1] for run in results.cells[-1].tested]
        assert first.contrast.p == pytest.approx(stats.ttest_1samp(errors, 41.93).pvalue)
        exact = [test for test in claim.compared if test.contrast.metric == PARAMETERS]
        assert [(test.rival, test.decision) for test in exact] == [
            ("FriedNet", "supported"),
            ("PrunedNet", "supported"),
        ]


def test_half_has_the_neurons_of_the_baseline_and_the_literal_net_has_not(tmp_path: Path) -> None:
    cells = {cell.row: cell for cell in cifar_width.CELLS if cell.dataset == "cifar10"}
    for i, (net, decision) in enumerate([("S3_half", "supported"), ("S3_half_literal", "contradicted")]):
        half = dataclasses.replace(cells["CReLU half"], net=PAPER[net])
        sweep = unsearched("cifar_width", (cells["Baseline"], half), Protocol(seeds=2))
        results = seen(tmp_path / str(i), sweep, lambda trial: drawn(trial, {}, 0.1))
        claim = {claim_result.claim.id: claim_result for claim_result in judge_claims(results)}[
            "half-has-the-baseline-s-neurons"
        ]
        assert len(claim.compared) == 7
        # conv3 has 48 filters in the printed table, 96 in half of the baseline: 96 less 192 channels.
        assert claim.compared[2].contrast.difference == (0.0 if decision == "supported" else -96.0)
        assert statistics.decide_all(test.decision for test in claim.compared) == decision


def test_gap_of_train_and_test_is_that_of_the_same_network(tmp_path: Path) -> None:
    cells = tuple(cell for cell in cifar_width.CELLS if cell.dataset == "cifar10")
    trained = {"Baseline": 1.0, "AVR": 4.0, "CReLU": 4.2, "CReLU half": 0.5}

    def outcome(trial: Trial) -> Made:
        off = 0.01 * trial.seed * (1 + len(trial.cell.row))
        return Made({TOP1: 9.0 + off, TRAIN: trained.get(trial.cell.row, 0.4)} if trial.phase == "match" else {})

    sweep = unsearched("cifar_width", cells, Protocol(seeds=4, ablation=False, single=True))
    claim = {claim_result.claim.id: claim_result for claim_result in judge_claims(seen(tmp_path, sweep, outcome))}[
        "smaller-train-test-gap"
    ]
    ten = {test.comparison.row: test for test in claim.compared if test.comparison.dataset == "cifar10"}
    assert {row: test.decision for row, test in ten.items()} == {
        "AVR": "supported", "CReLU": "supported", "CReLU half": "contradicted",
    }  # fmt: skip
    runs = {
        cell.cell.row: cell.done("match") for cell in read_sweep(Ledger(str(tmp_path / "ledger")), sweep.title).cells
    }
    gaps = {row: np.mean([run.metrics[TOP1] - run.metrics[TRAIN] for run in of]) for row, of in runs.items()}
    assert ten["AVR"].contrast.difference == pytest.approx(gaps["AVR"] - gaps["Baseline"])
    assert paper.printed("1", "cifar10", "AVR", paper.GAP) == paper.Printed("4.22")


def test_footnote_5_is_decided_from_cells_that_no_table_prints(tmp_path: Path) -> None:
    cells = tuple(cell for cell in full_grid.CELLS if footnote_row(cell))
    assert len(cells) == 2 * 3
    means = {"vgg cifar10 crelu conv2 x0.5": 6.5}

    def outcome(trial: Trial) -> Made:
        noise = np.random.default_rng([trial.seed, *trial.cell.label.encode()]).normal(0, 0.02)
        return Made({TOP1: means.get(trial.cell.label, 6.9) + float(noise)})

    sweep = unsearched("full_grid", cells, Protocol(seeds=6))
    (claim,) = judge_claims(seen(tmp_path, sweep, outcome))
    assert claim.claim.table == "Footnote 5"
    decisions = {(test.comparison.dataset, test.comparison.row): test.decision for test in claim.compared}
    assert decisions["cifar10", "CReLU (2)"] == claim.decision == "contradicted"
    assert decisions["cifar100", "CReLU (4)"] == "inconclusive"
    assert not claim.withheld


@pytest.mark.parametrize(
    ("folds", "baseline", "avr", "decision", "why"),
    [
        (10, 10, 10, "contradicted", ""),
        (10, 3, 3, "not run", "3 of the paper's 10 folds"),
        (10, 10, 4, "not run", "4 of the paper's 10 folds"),
        (10, 4, 10, "not run", "4 of the paper's 10 folds"),
        (5, 5, 5, "not run", "5 of the paper's 10 folds"),
    ],
)
def test_claim_on_an_average_needs_all_ten_folds_of_both_sides(
    tmp_path: Path, folds: int, baseline: int, avr: int, decision: str, why: str
) -> None:
    done = {"Baseline": baseline, "AVR": avr}
    cells = tuple(cell for cell in cifar_width.CELLS if cell.dataset == "cifar10" and cell.row in done)

    def outcome(trial: Trial) -> Made | None:
        error = drawn(dataclasses.replace(trial, seed=trial.fold), {"Baseline": 10.0, "AVR": 8.0}, 0.05)
        return error if trial.fold < done[trial.cell.row] else None

    results = seen(tmp_path, Sweep("cifar_width", "paper", cells, Protocol(ablation=False, folds=folds)), outcome)
    claims = {claim.claim.id: claim for claim in judge_claims(results)}
    claim = claims["avr-no-better-over-folds-on-cifar10"]
    assert (claim.decision, claim.withheld) == (decision, why)
    assert [entry.text for row in claim_table([claim]).rows for entry in row][3] == (
        f"withheld: {why}" if why else decision
    )


@pytest.mark.parametrize("single", [True, False])
def test_claims_of_tables_1_and_2_are_not_decided_by_an_ablation(tmp_path: Path, single: bool) -> None:
    sweep = unsearched("cifar_vgg", cifar_vgg.CELLS, Protocol(seeds=3, ablation=not single, single=single))

    def outcome(trial: Trial) -> Made:
        return Made({}) if trial.phase == "holdout" else drawn(of_seed(trial), {}, 0.2)

    claims = judge_claims(seen(tmp_path, sweep, outcome))
    assert {claim.claim.table for claim in claims} == {"2"}
    assert {claim.withheld for claim in claims} == {"" if single else "not trained by the protocol of Single"}


@pytest.mark.parametrize(("until", "why"), [(3, ""), (8, "3 seeds, a number that the questions chose: see Questions")])
def test_claim_is_left_to_the_questions_that_chose_how_many_seeds_there_are(
    tmp_path: Path, until: int, why: str
) -> None:
    questions = imagenet_placement.QUESTIONS
    sweep = Sweep("imagenet_placement", "paper", PLACEMENTS, Protocol(seeds=3, until=until), questions=questions)
    results = seen(tmp_path, sweep, lambda trial: drawn(trial, {"Baseline": 45.0}, 0.05))
    assert {len(cell.tested) for cell in results.cells} == {3}
    withheld = {claim.claim.id: claim.withheld for claim in judge_claims(results)}
    asked = ("avr-1-4-below-baseline", "all-below-baseline-with-half", "all-below-friednet-and-prunednet")
    assert {withheld[id] for id in (*asked, "conv1-4-lowest-centre-crop")} == {why}
    # No question is about these nets: their seeds are the declared ones.
    assert withheld["avr-deeper-no-better-than-baseline"] == ""
    lines = [line for line in tidy(results)["claims"] if line["claim"] == "avr-1-4-below-baseline"]
    for line in lines:
        tests = [line[name] for name in ("low", "high", "t", "p", "p_holm", "p_uncorrected")]
        assert {math.isfinite(value) for value in tests} == {not why}
        assert (line["decision"] == "withheld") == (line["claim_decision"] == "withheld") == bool(why)
        assert math.isfinite(line["difference"])


def test_questions_that_chose_the_folds_chose_no_seeds(tmp_path: Path) -> None:
    cells = tuple(cell for cell in cifar_width.CELLS if cell.dataset == "cifar10")
    questions = tuple(question for question in cifar_width.QUESTIONS if question.cell.endswith("cifar10"))
    protocol = Protocol(seeds=4, ablation=False, single=True, folds=10, until=10)
    means = {"Baseline": 10.0, "Double": 10.0, "AVR": 5.0, "CReLU": 5.0, "CReLU half": 5.0}

    def outcome(trial: Trial) -> Made:
        if trial.phase == "fold":
            return drawn(dataclasses.replace(trial, seed=trial.fold), means, 0.01)
        made = drawn(of_seed(trial), means, 0.01)
        return Made({TOP1: made.metrics[TOP1], TRAIN: 1.0} if trial.phase == "match" else {})

    results = seen(tmp_path, Sweep("cifar_width", "paper", cells, protocol, questions=questions), outcome)
    withheld = {claim.claim.id: claim.withheld for claim in judge_claims(results)}
    assert withheld["avr-no-better-over-folds-on-cifar10"] == "3 of the paper's 10 folds"
    assert withheld["smaller-train-test-gap"] == ""


# Contrasts ----------------------------------------------------------------------------------------------------


def test_folds_are_paired_and_corrected(tmp_path: Path) -> None:
    cells = cifar_vgg.CELLS[:2]
    sweep = Sweep("folds", "paper", cells, Protocol(ablation=False, folds=10))
    rng = np.random.default_rng(1)
    errors = {cell.key: rng.normal(7, 0.3, 10) for cell in cells}
    results = seen(tmp_path, sweep, lambda trial: Made({TOP1: float(errors[trial.cell.key][trial.fold])}))
    test = contrast(results.cells[1], results.cells[0], AVERAGE)
    d = errors[cells[1].key] - errors[cells[0].key]
    se = d.std(ddof=1) * math.sqrt(1 / 10 + 1 / 9)
    assert test.t == pytest.approx(d.mean() / se)
    assert test.p == pytest.approx(2 * stats.t.sf(abs(d.mean() / se), 9))
    assert test.plain_p == pytest.approx(stats.ttest_rel(errors[cells[1].key], errors[cells[0].key]).pvalue)
    assert test.rank_p == pytest.approx(stats.wilcoxon(d).pvalue)
    assert (test.basis, test.n) == ("folds", 10)


def test_networks_are_compared_on_the_same_pictures(tmp_path: Path) -> None:
    labels = np.arange(400) % 10
    wrong = {"VGG": np.arange(60), "CReLU (1)": np.arange(40, 70)}

    def outcome(trial: Trial) -> Made:
        mistakes = wrong[trial.cell.row]
        return Made({TOP1: len(mistakes) / 4}, scores=scores(labels, mistakes, 10))

    results = seen(tmp_path, Sweep("pictures", "paper", cifar_vgg.CELLS[:2], Protocol()), outcome)
    seen_ = contrast(results.cells[1], results.cells[0], TOP1).pictures
    assert seen_ is not None
    assert (seen_.only_a, seen_.only_b) == (40, 10)
    assert seen_.p == pytest.approx(stats.binomtest(10, 50).pvalue)
    # Pictures of the same names and other classes are other pictures.
    (other,) = results.cells[1].runs
    assert other.decisions is not None
    relabelled = other._replace(decisions=other.decisions._replace(labels=labels[::-1]))
    foreign = dataclasses.replace(results.cells[1], runs=(relabelled,))
    assert contrast(foreign, results.cells[0], TOP1).pictures is None


def test_votes_by_every_method_are_those_of_a_naive_count(tmp_path: Path) -> None:
    labels = np.arange(300) % 10
    rng = np.random.default_rng(3)
    raw = rng.normal(0, 1, (3, 300, 10)).astype(np.float32)
    raw[:, np.arange(300), labels] += 1.0

    def outcome(trial: Trial) -> Made:
        centre = raw[trial.fold]
        back = np.arange(300)[::-1]  # a table may hold its pictures in any order
        columns = {"id": back, "label": labels[back], "centre": centre[back]}
        return Made({TOP1: float(100 * np.mean(centre.argmax(1) != labels))}, scores=columns)

    sweep = Sweep("votes", "paper", cifar_vgg.CELLS[:1], Protocol(ablation=False, folds=3))
    (group, _) = groups(seen(tmp_path, sweep, outcome))
    (table,) = (table for table in result_tables(group, None) if table.id.endswith("-votes"))
    softmax = np.exp(raw.astype(float)) / np.exp(raw.astype(float)).sum(2, keepdims=True)
    wrong = [0, 0, 0]
    for i in range(300):
        ballots = [int(raw[k, i].argmax()) for k in range(3)]
        most = max(ballots.count(c) for c in range(10))
        winner = max((c for c in range(10) if ballots.count(c) == most), key=lambda c: softmax[:, i, c].sum())
        chosen = (softmax[:, i].mean(0).argmax(), raw[:, i].astype(float).mean(0).argmax(), winner)
        wrong = [count + (c != labels[i]) for count, c in zip(wrong, chosen, strict=True)]
    assert [entry.text for entry in table.rows[0][1:]] == [f"{100 * count / 300:.2f}" for count in wrong]
    assert len(set(wrong)) > 1


def test_holm_runs_over_all_effects_of_a_table(tmp_path: Path) -> None:
    (group, _) = groups(seen(tmp_path, SIX, lambda trial: drawn(trial, {"Baseline": 42.5}, 0.4)))
    differences = effects(group)
    assert len(differences) == 8 * 4
    assert [effect.p for effect in differences] == pytest.approx(
        list(statistics.holm([effect.contrast.p for effect in differences]))
    )
    assert {effect.reference.label for effect in differences} == {"Baseline"}


def test_holm_runs_over_all_comparisons_that_the_claims_of_a_sweep_make(tmp_path: Path) -> None:
    means = {"Baseline": 42.0, "AVR conv1-4": 41.6}
    claim_results = judge_claims(seen(tmp_path, SIX, lambda trial: drawn(trial, means, 0.5)))
    compared = [test for claim_result in claim_results for test in claim_result.compared]
    assert {
        claim_result.claim.table for claim_result in claim_results for test in claim_result.compared if test.p < 1
    } == {"4", "5"}
    raw = np.array([test.contrast.p for test in compared])
    # Holm by hand: the k-th smallest of m times m - k + 1, never below the one before.
    expected = np.full(len(raw), np.nan)
    largest = 0.0
    finite = [i for i in np.argsort(raw) if np.isfinite(raw[i])]
    for place, i in enumerate(finite):
        largest = expected[i] = max(largest, min(1.0, raw[i] * (len(finite) - place)))
    assert [test.p for test in compared] == pytest.approx(expected.tolist(), nan_ok=True)
    assert len(finite) >= 40


def voters(trial: Trial) -> Made:
    """Return folds' networks that agree with each other, VGG's wrong on 60 of 400 pictures, CReLU (1)'s on 5."""
    wrong = np.arange(60 if trial.cell.row == "VGG" else 5)
    return Made({TOP1: len(wrong) / 4 + 0.1 * trial.fold}, scores=scores(np.arange(400) % 10, wrong, 10))


def test_votes_are_shown_and_decide_nothing(tmp_path: Path) -> None:
    sweep = Sweep("votes", "paper", cifar_vgg.CELLS[:2], Protocol(ablation=False, folds=3))
    results = seen(tmp_path, sweep, voters)
    (effect,) = (effect for effect in effects(groups(results)[0]) if effect.contrast.metric == VOTE)
    assert effect.contrast.pictures is not None
    assert effect.contrast.pictures.p < 1e-9
    assert (effect.contrast.difference, effect.contrast.basis) == (-13.75, "pictures")
    assert math.isnan(effect.contrast.p)
    assert math.isnan(effect.p)
    (claim_result,) = (
        claim_result for claim_result in judge_claims(results) if claim_result.claim.id == "vgg-crelu-below-vgg"
    )
    votes = [
        test for test in claim_result.compared if test.contrast.metric == VOTE and test.contrast.basis != "not run"
    ]
    assert [(test.decision, math.isnan(test.p), test.more) for test in votes] == [("not tested", True, None)]


@pytest.mark.parametrize("theirs", [{0, 1}, {1, 2, 3}, {0, 1, 2}])
def test_votes_of_different_folds_are_not_compared_and_a_note_says_so(tmp_path: Path, theirs: set[int]) -> None:
    """More networks vote better, even where all of them are equally good."""
    sweep = Sweep("votes", "paper", cifar_vgg.CELLS[:2], Protocol(ablation=False, folds=4))

    def outcome(trial: Trial) -> Made | None:
        return voters(trial) if trial.fold in (theirs if trial.cell.row == "VGG" else {0, 1, 2}) else None

    ((group, rows),) = effects_of(groups(seen(tmp_path, sweep, outcome)))
    same = theirs == {0, 1, 2}
    assert (VOTE in {effect.contrast.metric for effect in rows}) == same
    note = "Votes of different folds are not compared: CReLU (1) and VGG."
    assert (note in effect_table(group, rows).notes) != same


@pytest.mark.parametrize(
    ("vgg", "crelu", "words"),
    [(1, 1, "one training each"), (3, 1, "one shared seed"), (1, 3, "one shared seed"), (3, 2, "2 seeds")],
)
def test_comparison_says_on_what_it_rests(tmp_path: Path, vgg: int, crelu: int, words: str) -> None:
    def outcome(trial: Trial) -> Made | None:
        return voters(trial) if trial.seed < (vgg if trial.cell.row == "VGG" else crelu) else None

    sweep = Sweep("seeds", "paper", cifar_vgg.CELLS[:2], Protocol(seeds=3))
    results = seen(tmp_path, sweep, outcome)
    assert contrast(results.cells[1], results.cells[0], TOP1).over == words


@pytest.mark.parametrize(("vgg", "crelu", "shown"), [(1, 1, True), (2, 2, False), (1, 3, False), (3, 1, False)])
def test_mcnemar_is_not_shown_where_a_cell_has_several_seeds(tmp_path: Path, vgg: int, crelu: int, shown: bool) -> None:
    def outcome(trial: Trial) -> Made | None:
        return voters(trial) if trial.seed < (vgg if trial.cell.row == "VGG" else crelu) else None

    sweep = Sweep("seeds", "paper", cifar_vgg.CELLS[:2], Protocol(seeds=max(vgg, crelu)))
    results = seen(tmp_path, sweep, outcome)
    assert (contrast(results.cells[1], results.cells[0], TOP1).pictures is not None) == shown


@pytest.mark.parametrize(("classes", "tested"), [(5, False), (6, True)])
def test_top_5_errors_of_five_classes_are_no_part_of_a_family(tmp_path: Path, classes: int, tested: bool) -> None:
    cells = tuple(scaled(cell, "demo") for cell in PLACEMENTS[:3])
    table = scores(np.arange(60) % classes, np.arange(6), classes)

    def outcome(trial: Trial) -> Made:
        made = drawn(trial, {}, 0.5)
        top5 = {TOP5: 0.0, TOP5_TEN: 0.0} if classes <= 5 else {}
        return made._replace(metrics=made.metrics | top5, scores=table)

    results = seen(tmp_path, Sweep("classes", "demo", cells, Protocol(seeds=3)), outcome)
    metrics = {effect.contrast.metric for effect in effects(groups(results)[0])}
    assert metrics == ({TOP1, TOP1_TEN, TOP5, TOP5_TEN} if tested else {TOP1, TOP1_TEN})
    compared = [
        test for claim_result in judge_claims(results) for test in claim_result.compared if test.contrast.metric == TOP5
    ]
    decisions = {test.decision for test in compared if test.contrast.basis != "not run"}
    assert ("not tested" in decisions) != tested
    assert all(math.isnan(test.p) != tested for test in compared if test.contrast.basis != "not run")


def noisy_folds(difference: float) -> Callable[[Trial], Made]:
    """Return the outcome of ten folds whose paired differences have this mean and a deviation of .3."""
    d = np.random.default_rng(8).normal(0, 1, 10)
    d = difference + 0.3 * (d - d.mean()) / d.std(ddof=1)
    return lambda trial: Made({TOP1: 7.0 + (float(d[trial.fold]) if trial.cell.row != "VGG" else 0.0)})


@pytest.mark.parametrize(
    ("difference", "done", "more"),
    [(-0.9, 4, 2), (-0.7, 10, None), (-0.5, 4, None), (-0.5, 10, None), (-0.1, 4, None)],
)
def test_further_folds_are_asked_for_where_the_partition_has_enough(
    tmp_path: Path, difference: float, done: int, more: int | None
) -> None:
    sweep = Sweep("folds", "paper", cifar_vgg.CELLS[:2], Protocol(ablation=False, folds=10))
    results = seen(tmp_path, sweep, noisy_folds(difference))
    test = contrast(results.cells[1], results.cells[0], AVERAGE)._replace(n=done)
    assert more_trainings(test, 4) == more
    # For -0.5 there would have to be 14 folds; of seeds some number always does.
    needed = statistics.seeds_needed(0.3, difference, 0.05 / 4, have=done, most=1000, test_fraction=0.1)
    assert needed == {-0.9: 2, -0.7: 0, -0.5: 14 - done, -0.1: None}[difference]
    assert statistics.seeds_needed(0.3, difference, 0.05 / 4, have=done) is not None
    comparison = CLAIMS[0].comparisons[0]._replace(dataset="cifar10", metric=AVERAGE)
    open_ = Compared(comparison, "VGG", test, 0.2, "inconclusive", more)
    words = claim_table([ClaimResult(CLAIMS[0], "inconclusive", (open_,), "", "no numbers")]).rows[0][4].text
    if more:
        assert words.startswith(f"{more} further folds a row, ")
    else:
        assert words == "cannot be decided so: 1 comparison that further folds would not settle"


NOISE = {0: 41.83, 1: 40.07, 2: 9.31}  # 41.83 - .9 is not 40.93 in binary, so equal differences come out unequal


def test_equal_differences_ask_for_seeds_to_learn_the_spread(tmp_path: Path) -> None:
    """Not for 997 of them, and not for none."""

    def outcome(trial: Trial) -> Made:
        error = NOISE[trial.seed] - 0.9 * (trial.cell.row != "Baseline")
        return Made(dict.fromkeys((TOP1, TOP5, TOP1_TEN, TOP5_TEN), error))

    results = seen(tmp_path, Sweep("equal", "paper", PLACEMENTS[:2], Protocol(seeds=3)), outcome)
    test = contrast(results.cells[1], results.cells[0], TOP1)
    assert (test.sd, test.lacks_spread, more_trainings(test, 4)) == (0.0, True, 2)
    assert math.isnan(test.interval.low)
    open_ = [claim for claim in judge_claims(results) if claim.decision == "inconclusive"]
    assert {claim_table([claim]).rows[0][4].text.partition(" a row")[0] for claim in open_} == {
        "at least 2 further seeds"
    }
    # Of ten folds none are left to learn it by.
    folds = test._replace(basis="folds", folds=10, n=10)
    assert [more_trainings(folds._replace(n=n), 4) for n in (7, 9, 10)] == [2, 1, None]


def test_what_seeds_cannot_settle_asks_for_none() -> None:
    base = contrast(None, None, TOP1)
    assert base.basis == "not run"
    assert more_trainings(base, 4) is None
    assert more_trainings(base._replace(basis="pictures", difference=0.1), 4) is None
    assert more_trainings(base._replace(basis="seeds", difference=0.0, sd=1.0, n=3), 4) is None
    # 3 seeds, a difference of one sd: as many as statistics says at a quarter of alpha.
    asked = more_trainings(base._replace(basis="seeds", difference=1.0, sd=1.0, n=3), 4)
    assert asked == statistics.seeds_needed(1.0, 1.0, 0.05 / 4, have=3)


@pytest.mark.parametrize("difference", [0.0, 0.2, 0.4, 0.8])
def test_further_seeds_decide_within_about_as_often_as_they_are_planned_to(difference: float) -> None:
    base = contrast(None, None, TOP1)._replace(basis="seeds", difference=difference, sd=0.3, n=3)
    more = more_trainings(base, 4, margin=0.5)
    assert more is not None
    n = 3 + more
    values = np.random.default_rng(6).normal(difference, 0.3, (2_000, n))
    means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(n)
    p = [statistics.p_within(0.5, mean, error, n - 1) for mean, error in zip(means, errors, strict=True)]
    assert 0.7 < np.mean(np.array(p) < 0.05 / 4) < 0.95


# Marks --------------------------------------------------------------------------------------------------------

FALLING = [50.0 - i for i in range(30)]
ONE = PLACEMENTS[:1]


def marked(results: SweepResults, metric: str = TOP1) -> tuple[str, ...]:
    """Return the marks of the first cell's number."""
    group = groups(results)[0]
    cell: CellResults = results.cells[0]
    return marks(group, cell, number(cell, metric), results.sweep.protocol.search)


@pytest.mark.parametrize(
    ("mark", "change"),
    [
        ("d", {"status": "diverged"}),
        ("r", {"restarts": 1}),
        ("u", {"curve": FALLING}),
        ("p", {"partial": True}),
        ("rp", {"partial": True, "restarts": 1}),
        ("", {}),
    ],
)
def test_mark_of_a_training(tmp_path: Path, mark: str, change: dict[str, object]) -> None:
    sweep = Sweep("marks", "paper", ONE, Protocol(seeds=2))
    results = seen(tmp_path, sweep, lambda trial: drawn(trial, {}, 0.1)._replace(**change))
    assert "".join(marked(results)) == mark


@pytest.mark.parametrize(("falling", "mark"), [(1, ""), (2, ""), (3, "u"), (4, "u")])
def test_cell_is_under_trained_where_most_of_its_curves_still_fall(tmp_path: Path, falling: int, mark: str) -> None:
    sweep = Sweep("marks", "paper", ONE, Protocol(seeds=4))

    def outcome(trial: Trial) -> Made:
        made = drawn(trial, {}, 0.1)
        return made._replace(curve=FALLING) if trial.seed < falling else made

    assert "".join(marked(seen(tmp_path, sweep, outcome))) == mark


def test_marks_of_one_training_and_of_missing_ones(tmp_path: Path) -> None:
    results = seen(
        tmp_path, Sweep("one", "paper", ONE, Protocol(seeds=2)), lambda t: None if t.seed else drawn(t, {}, 0)
    )
    assert marked(results) == ("1", "i")
    assert marked(results, PARAMETERS) == ()


def test_marks_of_data(tmp_path: Path) -> None:
    for name, mark in (("synthetic:size=72", "s"), ("imagenet:size=64", "o")):
        cell = dataclasses.replace(ONE[0], dataset=name)
        sweep = Sweep("data" + mark, "paper", (cell,), Protocol(seeds=2))
        assert marked(seen(tmp_path, sweep, lambda trial: drawn(trial, {}, 0.1))) == (mark,)


def test_mark_of_a_stale_result(tmp_path: Path) -> None:
    sweep = Sweep("stale", "paper", ONE, Protocol(seeds=2))
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, sweep, lambda trial: drawn(trial, {}, 0.1))
    assert marked(read_sweep(ledger, "stale")) == ()
    trial = Trial(ONE[0], seed=1)
    result = ledger.result(trial.key)
    assert result is not None
    ledger.commit(trial.key, result | {"code": "another"})
    assert marked(read_sweep(ledger, "stale")) == ("x",)


def test_effect_and_claim_of_a_stale_result_say_so(tmp_path: Path) -> None:
    means = {"CReLU conv1-4": 38.0}
    results = seen(tmp_path, Sweep("s", "paper", PLACEMENTS[:6], Protocol(seeds=6)), lambda t: drawn(t, means, 0.2))
    ledger = Ledger(str(tmp_path / "ledger"))
    claims = {claim.claim.id: claim for claim in judge_claims(results)}
    assert not any(claim.withheld for claim in claims.values())
    trial = Trial(PLACEMENTS[5], seed=3)
    result = ledger.result(trial.key)
    assert result is not None
    ledger.commit(trial.key, result | {"code": "another"})
    stale = read_sweep(ledger, "s")
    withheld = {claim.claim.id: claim.withheld for claim in judge_claims(stale)}
    claimed = {id for id, claim in claims.items() if any(run.key == trial.key for run in claim.runs)}
    assert "conv1-4-lowest-centre-crop" in claimed
    assert {id for id, why in withheld.items() if why} == claimed
    assert {withheld[id] for id in claimed} == {"1 stale training of CReLU conv1-4"}
    ((group, differences),) = effects_of(groups(stale))
    table = effect_table(group, differences)
    place = table.columns.index("difference")
    marked_rows = {effect.row.label for effect, row in zip(differences, table.rows, strict=True) if row[place].marks}
    assert marked_rows == {"CReLU conv1-4"}
    assert any(note.startswith("x  stale") for note in table.notes)


def test_marks_of_a_search(tmp_path: Path) -> None:
    def best_at(rate: float) -> Callable[[Trial], Made]:
        return lambda t: (
            drawn(t, {}, 0.1)
            if t.phase == "ablation"
            else Made({}, curve=[60.0, 50.0, 45.0, 40.0 + abs(dict(t.dropout)["conv9"] - rate)])
        )

    grid = Search(3, sampler="grid", wave=3)
    assert marked(seen(tmp_path, Sweep("in", "paper", ONE, Protocol(2, search=grid)), best_at(0.25))) == ()
    other = (PLACEMENTS[1],)
    assert marked(seen(tmp_path, Sweep("high", "paper", other, Protocol(2, search=grid)), best_at(0.5))) == ("e",)
    # Nothing lies below no dropout at all: zero is not the end of a range.
    none = (PLACEMENTS[2],)
    assert marked(seen(tmp_path, Sweep("low", "paper", none, Protocol(2, search=grid)), best_at(0.0))) == ()
    wide = Search(3, sampler="random", space=(Dimension("conv9", 0.0, 0.9, 0.01),))
    few = (PLACEMENTS[3],)
    assert marked(seen(tmp_path, Sweep("few", "paper", few, Protocol(2, search=wide)), best_at(0.3))) == ("f",)


def test_dropout_chosen_on_test_pictures_is_refused(tmp_path: Path) -> None:
    search = Search(3, sampler="grid", wave=3)
    sweep = Sweep("cheat", "paper", ONE, Protocol(search=search))
    ledger = Ledger(str(tmp_path / "ledger"))

    def outcome(trial: Trial) -> Made:
        return drawn(trial, {}, 0.1) if trial.phase == "ablation" else Made({}, curve=[50.0, 45.0])

    make(ledger, sweep, outcome)
    asked = next(run for run in read_sweep(ledger, "cheat").runs if run.trial.phase == "holdout")
    finish(ledger, asked.trial, Made({TOP1: 41.0}, curve=[50.0, 45.0]))
    with pytest.raises(ValueError, match=f"Baseline was chosen by trial {asked.key}, which saw the test pictures"):
        read_sweep(ledger, "cheat")
    finish(ledger, asked.trial, Made({}, curve=[50.0, 45.0], scores=scores(np.arange(20) % 10, np.arange(2), 10)))
    with pytest.raises(ValueError, match="saw the test pictures"):
        read_sweep(ledger, "cheat")


def test_file_of_a_search_trial_called_scores_says_nothing_of_the_test_set(tmp_path: Path) -> None:
    sweep = Sweep("own", "paper", ONE, Protocol(search=Search(3, sampler="grid", wave=3)))
    ledger = Ledger(str(tmp_path / "ledger"))
    searched = Made({}, curve=[50.0, 45.0])
    make(ledger, sweep, lambda trial: drawn(trial, {}, 0.1) if trial.phase == "ablation" else searched)
    asked = next(run for run in read_sweep(ledger, "own").runs if run.trial.phase == "holdout")
    ledger.commit(asked.key, (ledger.result(asked.key) or {}) | {"files": {"files/scores.csv": ""}})
    assert asked.key in {run.key for run in read_sweep(ledger, "own").runs}


def test_last_fifth_falls_where_a_regression_says_so() -> None:
    rng = np.random.default_rng(2)
    answers = []
    for slope in np.linspace(-0.4, 0.2, 60):
        curve = np.concatenate([np.full(80, 30.0), 20 + slope * np.arange(20) + rng.normal(0, 0.5, 20)])
        line = stats.linregress(np.arange(20), curve[-20:])
        expected = line.slope < 0 and -line.slope > 2 * line.stderr and -line.slope * 19 >= 0.1
        answers.append(still_falling(curve))
        assert answers[-1] == expected
    assert any(answers)
    assert not all(answers)
    assert not still_falling(np.full(40, 10.0))
    assert not still_falling(np.array([50.0, 40.0, 30.0]))
    # By the epochs of its values: the last one came long after the others.
    late = np.array([40.0, 30.0, 20.0, 19.9])
    assert still_falling(late)
    assert not still_falling(late, epochs=(1, 2, 3, 50))
    # The last fifth of the epochs has more than a fifth of these values.
    ends = np.concatenate([np.full(9, 30.0), 30.0 - np.arange(1, 8), np.full(3, 23.0)])
    assert not still_falling(ends)
    assert still_falling(ends, epochs=(*range(10, 100, 10), *range(91, 101)))


# Deviations ---------------------------------------------------------------------------------------------------


def test_paper_s_cells_are_those_of_the_pages() -> None:
    pages = (*cifar_width.CELLS, *cifar_vgg.CELLS, *PLACEMENTS)
    assert {(cell.table, cell.row) for cell in pages} == set(CELLS)
    for cell in pages:
        name, recipe = CELLS[cell.table, cell.row]
        assert cell.recipe == recipe
        bare = [row for row in cell.net.rows if type(row).__name__ != "Drop"]
        assert bare == [row for row in PAPER[name].rows if type(row).__name__ != "Drop"]


def departed(results: SweepResults) -> dict[str, tuple[str, str]]:
    """Return the deviations of the first table by what they are."""
    return {deviation.what: (deviation.paper, deviation.here) for deviation in deviations(groups(results)[0])}


OPEN_IN_TABLE_4 = {
    "activation on the scores": ("as on the layers before", "none"),
    "CReLU at conv11 and conv12": ("printed, and cannot be", "ReLU at conv11"),
    "precision": ("fp32", "bf16"),
    "pictures learned from": ("all", "all but 50,000 held out"),
    "stored pictures": ("the original files", "cut to 256 pixels, JPEG of quality 90 by default"),
    "crops": ("not stated", "of the stored centre, 256 pixels square"),
    "initialisation": ("not stated", "he_fan_in"),
    "gradient norm cut at": ("not stated", "1"),
    "colour noise (std)": ("as Krizhevsky et al. (2012)", "0"),
}


def test_paper_s_own_cells_deviate_only_where_the_docs_say(tmp_path: Path) -> None:
    departures = departed(seen(tmp_path, Sweep("own", "paper", PLACEMENTS, Protocol()), lambda t: drawn(t, {}, 0.1)))
    assert departures == OPEN_IN_TABLE_4
    unread = departed(
        seen(tmp_path / "8", Sweep("eight", "paper", PLACEMENTS[:8], Protocol()), lambda t: drawn(t, {}, 0.1))
    )
    assert OPEN_IN_TABLE_4.keys() - unread.keys() == {"CReLU at conv11 and conv12"}  # of the ninth row alone


def chosen_at(trial: Trial) -> Made:
    """Return the outcome of a training where .1 is the best of the learning rates."""
    return Made({} if trial.phase == "holdout" else {TOP1: 9.0}, curve=[50.0, 10.0 if trial.rate == 0.1 else 20.0])


def test_what_the_paper_leaves_open_in_table_1_stands_there_with_the_rate_that_was_chosen(tmp_path: Path) -> None:
    protocol = Protocol(ablation=False, single=True, rates=cifar_width.PROTOCOL.rates)
    sweep = Sweep("width", "paper", only(cifar_width.CELLS, "cifar10"), protocol)
    (table,) = groups(seen(tmp_path, sweep, chosen_at))
    assert [tuple(deviation) for deviation in deviations(table) if deviation.paper != "fp32"] == [
        ("hold-out of the first phase", "not stated", "10,000 pictures", ()),
        ("rounding of the max pools", "not stated", "up, so that 10x10 are left to average", ()),
        ("activation on the scores", "as on the layers before", "none", ()),
        ("initialisation", "not stated", "he_fan_in", ()),
        ("warm-up epochs", "not stated", "1", ()),
        ("gradient norm cut at", "not stated", "1", ()),
        ("learning rate", "not stated", "0.1, best of 0.25, 0.1, 0.05, 0.01 on the baseline's hold-out", ()),
        (
            "second phase of Single ends",
            "at the first phase's loss, on pictures not stated",
            "at the first phase's training loss",
            (),
        ),
        ("filters of conv3", "48", "96, half of 192", ("CReLU half",)),
    ]
    part = table._replace(rows=table.rows[1:])  # the study is the first row's
    rates = [deviation.here for deviation in deviations(part) if deviation.what == "learning rate"]
    assert rates == ["0.1, best on the baseline's hold-out"]


def test_field_that_the_paper_leaves_open_is_never_called_the_paper_s(tmp_path: Path) -> None:
    free = dataclasses.replace(cifar_width.CELLS[0].recipe, lr=0.02, clip_norm=0.0, batch=64)
    cells = (dataclasses.replace(cifar_width.CELLS[0], recipe=free),)
    (table,) = groups(seen(tmp_path, Sweep("free", "paper", cells, Protocol()), lambda _: Made({TOP1: 9.0})))
    rows = [(deviation.what, deviation.paper, deviation.here) for deviation in deviations(table)]
    fields = ("batch", "initialisation", "warm-up epochs", "gradient norm cut at", "learning rate")
    assert [row for row in rows if row[0] in fields] == [
        ("batch", "128", "64"),
        ("initialisation", "not stated", "he_fan_in"),
        ("warm-up epochs", "not stated", "1"),
        ("gradient norm cut at", "not stated", "0"),
        ("learning rate", "not stated", "0.02"),
    ]


def test_reading_of_a_net_is_no_deviation_of_another_net(tmp_path: Path) -> None:
    (half,) = (cell for cell in cifar_width.CELLS if cell.label == "CReLU half cifar10")
    for net, rows in ((half.net, {"filters of conv3"}), (half.net.width(0.5, 4), {"net (parameters)"})):
        sweep = Sweep("half", "paper", (dataclasses.replace(half, net=net),), Protocol())
        departures = departed(seen(tmp_path / net.name, sweep, lambda _: Made({TOP1: 9.0})))
        assert departures.keys() & {"filters of conv3", "net (parameters)"} == rows


def test_learning_rate_that_a_study_chose_in_place_of_the_paper_s_is_a_deviation(tmp_path: Path) -> None:
    for rates, here in (((0.1, 0.01), ["0.1, best of 0.1, 0.01 on the baseline's hold-out"]), ((0.01,), [])):
        sweep = Sweep("s", "paper", PLACEMENTS[:1], Protocol(rates=RateStudy("Baseline", rates)))
        (table, _) = groups(seen(tmp_path / f"{len(rates)}", sweep, chosen_at))
        assert [d.here for d in deviations(table) if (d.what, d.paper) == ("learning rate", "0.01")] == here


def test_deviations_are_collected_from_the_trials(tmp_path: Path) -> None:
    recipe = dataclasses.replace(PLACEMENTS[0].recipe, batch=256, epochs=10, lr=0.04, lighting=0.1)
    cell = Cell("Baseline", PLACEMENTS[0].net.width(0.5), "imagenet:size=64", recipe, "4", "Baseline")
    departures = departed(seen(tmp_path, Sweep("other", "paper", (cell,), Protocol()), lambda t: drawn(t, {}, 0.1)))
    assert departures["batch"] == ("64", "256")
    assert departures["epochs"] == ("45", "10")
    assert departures["learning rate"] == ("0.01", "0.04")
    assert departures["colour noise (std)"] == ("as Krizhevsky et al. (2012)", "0.1")
    assert departures["data"] == ("ImageNet", "imagenet:size=64")
    assert departures["picture and crop (pixels)"] == ("256, 224", "64, 56")
    paper_count, ours = (int(text.replace(",", "")) for text in departures["net (parameters)"])
    assert (paper_count, ours) == (9_372_840, cell.net.parameters(1000))


def test_classes_and_pictures_that_are_not_the_paper_s_are_deviations(tmp_path: Path) -> None:
    table = scores(np.arange(900) % 9, np.arange(90), 9)

    def outcome(trial: Trial) -> Made:
        return drawn(trial, {}, 0.1)._replace(scores=table, train_pictures=9_000)

    departures = departed(seen(tmp_path, Sweep("nine", "paper", PLACEMENTS, Protocol()), outcome))
    assert departures["classes"] == ("1,000", "9")
    assert departures["training pictures"] == ("1,281,167", "9,000")
    assert departures["test pictures"] == ("50,000", "900")
    assert "net (parameters)" not in departures  # layers are compared without the number of classes


def test_what_the_paper_leaves_open_stands_among_the_deviations(tmp_path: Path) -> None:
    def outcome(trial: Trial) -> Made:
        return Made({} if trial.phase == "holdout" else {TOP1: 7.0, TRAIN: 1.0})

    protocol = Protocol(ablation=False, single=True, folds=2, search=Search(3, sampler="random"))
    departures = departed(seen(tmp_path, Sweep("open", "paper", cifar_vgg.CELLS[:2], protocol), outcome))
    assert departures["weights of a fold"] == ("not stated", "of the best epoch on the held-out fold")
    assert departures["second phase of Single ends"][1] == "at the first phase's training loss"
    assert departures["choice of dropout"] == ("rates printed", "searched on the hold-out")
    assert departures["shifts (pixels)"] == ("not stated", "4")
    assert departures["batch norm before CReLU"] == ("not printed", "kept")
    assert departures["hold-out of the first phase"] == ("not stated", "10,000 pictures")
    assert "stored pictures" not in departures  # of 32 pixels: kept as pixels
    large = departed(seen(tmp_path / "large", SIX, lambda trial: drawn(trial, {}, 0.1)))
    assert large["stored pictures"][1] == "cut to 256 pixels, JPEG of quality 90 by default"
    assert not {"choice of dropout", "shifts (pixels)", "weights of a fold"} & set(large)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"folds": 5}, {"choice of dropout": ("rates printed", "searched on 5 folds")}),
        ({"space": {"recipe.lr": Float(0.01, 0.1)}}, {"choice of lr": ("not stated", "searched on the hold-out")}),
        (
            {"space": {"recipe.lr": Float(0.01, 0.1), "net.dropout.conv1": Float(0.0, 0.5)}, "folds": 2},
            {
                "choice of dropout": ("rates printed", "searched on 2 folds"),
                "choice of lr": ("not stated", "searched on 2 folds"),
            },
        ),
    ],
)
def test_deviations_say_what_was_searched_and_on_what(
    change: dict[str, Any], expected: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    def outcome(trial: Trial) -> Made:
        return Made({TOP1: 7.0} if trial.phase == "ablation" else {})

    sweep = Sweep("searched", "paper", cifar_vgg.CELLS[:1], Protocol(search=Search(2, sampler="random", **change)))
    departures = departed(seen(tmp_path, sweep, outcome))
    assert {what: words for what, words in departures.items() if what.startswith("choice of")} == expected


def test_dropout_that_the_paper_does_not_print_is_a_deviation(tmp_path: Path) -> None:
    other = cifar_vgg.CELLS[1].net.dropout(0.45, "conv1")
    cells = (cifar_vgg.CELLS[0], dataclasses.replace(cifar_vgg.CELLS[1], net=other))
    departures = deviations(
        groups(seen(tmp_path, Sweep("rates", "paper", cells, Protocol()), lambda _: Made({TOP1: 7.0})))[0]
    )
    (dropout,) = (deviation for deviation in departures if deviation.what == "dropout")
    assert dropout.paper != dropout.here
    assert "0.45 after conv1" in dropout.here
    assert dropout.rows == ("CReLU (1)",)


def test_activation_on_the_scores_is_one_deviation_of_all_rows(tmp_path: Path) -> None:
    departures = deviations(groups(seen(tmp_path, SIX, lambda trial: drawn(trial, {}, 0.1)))[0])
    (activation,) = (deviation for deviation in departures if deviation.what == "activation on the scores")
    assert (activation.paper, activation.here, activation.rows) == ("as on the layers before", "none", ())


def test_deviation_of_some_rows_names_them(tmp_path: Path) -> None:
    slow = dataclasses.replace(PLACEMENTS[1], recipe=dataclasses.replace(PLACEMENTS[1].recipe, epochs=5))
    sweep = Sweep("some", "paper", (PLACEMENTS[0], slow), Protocol())
    rows = {
        deviation.what: deviation.rows
        for deviation in deviations(groups(seen(tmp_path, sweep, lambda t: drawn(t, {}, 0.1)))[0])
    }
    assert rows["epochs"] == ("AVR conv1-4",)
    assert rows["precision"] == ()


def test_cells_of_no_table_stand_by_data_set_and_family(tmp_path: Path) -> None:
    cells = (
        Cell("a", cifar_vgg.CELLS[0].net, "cifar10", cifar_vgg.CELLS[0].recipe),
        Cell("b", cifar_width.CELLS[0].net, "cifar10", cifar_width.CELLS[0].recipe, "6", "conv1"),
        dataclasses.replace(PLACEMENTS[0], label="64", dataset="imagenet:size=64"),
        PLACEMENTS[0],
    )
    tables = groups(seen(tmp_path, Sweep("mixed", "paper", cells, Protocol()), lambda t: drawn(t, {}, 0.1)))
    ids = [group.id for group in tables]
    assert ids == [
        "cells-cifar10-vgg",
        "cells-cifar10-allconv",
        "table-4",
        "table-5",
        "table-4-imagenet",
        "table-5-imagenet",
    ]
    assert [group.title for group in tables[2:]] == [
        "Table 4, ImageNet on imagenet_size=64",
        "Table 5, ImageNet on imagenet_size=64",
        "Table 4, ImageNet (imagenet)",
        "Table 5, ImageNet (imagenet)",
    ]
    assert [group.comparable for group in tables] == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("profile", "titles"),
    [
        ("paper", ["ImageNet, adam recipe", "ImageNet, sgd recipe"]),
        ("mini", ["ImageNet, adam recipe", "ImageNet, sgd recipe"]),
        ("demo", ["Embedded pictures, imagenet-adam recipe", "Embedded pictures, imagenet-sgd recipe"]),
    ],
)
def test_cells_of_no_table_are_compared_within_their_recipe(profile: str, titles: list[str], tmp_path: Path) -> None:
    crossed = tuple(scaled(cell, profile) for cell in (*PLACEMENTS[:1], *PLACEMENTS[4:6], *imagenet_placement.CROSSED))
    tables = groups(seen(tmp_path, Sweep("x", profile, crossed, Protocol(seeds=2)), lambda t: drawn(t, {}, 0.1)))
    own = [group for group in tables if not group.table]
    assert [group.title for group in own] == titles
    assert [[row.label for row in group.rows] for group in own] == [
        ["Baseline, Adam", "CReLU conv1-4, Adam"], ["Baseline, dropout .25", "CReLU conv1,4,7, SGD"],
    ]  # fmt: skip
    pairs = {(effect.row.label, effect.reference.label) for group in own for effect in effects(group)}
    assert pairs == {
        ("CReLU conv1-4, Adam", "Baseline, Adam"), ("CReLU conv1,4,7, SGD", "Baseline, dropout .25"),
        # What the cells name, in the paper's table.
        ("Baseline, Adam", "Baseline"), ("CReLU conv1-4, Adam", "CReLU conv1-4"),
        ("Baseline, dropout .25", "Baseline"), ("CReLU conv1,4,7, SGD", "CReLU conv1,4,7"),
    }  # fmt: skip


# Simulated sweeps ---------------------------------------------------------------------------------------------


def test_effects_of_simulated_sweeps_keep_their_word() -> None:
    # In full, with 2,000 sweeps each: python -m benchmarks.bench_statistics.
    family, coverage, *powers = measure(400, 5)
    assert family[1] <= family[3]
    assert 92 < coverage[1] < 98
    assert len(powers) == 2
    for _, power, *_ in powers:
        assert abs(power - 80) < 5 + 300 * math.sqrt(0.8 * 0.2 / 400)
