"""Whatever a stranger's file or a typing hand brings, a border takes it as valid or refuses it by a sentence."""

from tests.support.bad_inputs import fuzz


def test_no_bad_input_gets_more_than_a_refusal() -> None:
    counts, findings = fuzz(700, 1)
    assert findings == []
    # Every border refuses some, and the mutations are not so wild that nothing is ever valid.
    for border in ("sidecar", "beton", "trial", "plan", "net", "words"):
        assert counts[f"{border}: refused"] > 30
    assert counts["plan: taken"] > 0
