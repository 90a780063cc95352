"""Null sweeps on real ledgers; 600 of each: python -m benchmarks.null_sweeps --sweeps 600."""

from pathlib import Path

from tests.support.null_sweeps import MCNEMAR, count_rejections


def test_null_sweeps_are_rejected_in_few_cases_and_a_real_effect_in_all(tmp_path: Path) -> None:
    null = {line.what: line for line in count_rejections(tmp_path / "null", 12)}
    compared = {what: round(line.comparisons) for what, line in null.items()}
    assert compared == {
        "effects over 5 seeds, 9 cells": 32,
        "claims of imagenet_placement": 48,
        "effects over 10 folds, 5 cells": 5,
        "effects of votes": 5,
        "claims of cifar_width": 14,
        MCNEMAR: 1,
    }
    # At 5 % three of twelve or fewer reject in 99.8 % of the cases.
    assert all(line.rejected <= 3 for what, line in null.items() if what != MCNEMAR)
    real = {line.what: line for line in count_rejections(tmp_path / "real", 3, shift=5.0)}
    assert {what for what, line in real.items() if line.rejected == 3} == null.keys() - {"effects of votes", MCNEMAR}
