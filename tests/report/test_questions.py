"""A report, a table and a grade say how questions were decided, what was saved, and what was changed."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from crelu_models.tables import S2
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import settle
from sweeps.cli.status import status
from sweeps.cli.summary import Summary, print_summary
from sweeps.experiment.cell_trials import BEYOND, question_waves, sweep_trials
from sweeps.experiment.metrics import TOP1, Metric
from sweeps.experiment.plan import plan
from sweeps.experiment.questions.question import Question
from sweeps.experiment.questions.registration import changes_of, contents, register
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import SECOND_SEED, Trial
from sweeps.report.contents import document
from sweeps.report.grade_page import changed_questions
from sweeps.report.mlflow_notes import pages
from sweeps.report.question_tables import question_section, text_lines
from sweeps.report.render.chart import Forest
from sweeps.report.render.document import Gallery
from sweeps.results import capsule
from sweeps.results.answers import answers, answers_of_plan
from sweeps.results.evidence import read_sweep
from sweeps.store.ledger import Ledger
from tests.support.questions import QUESTIONS, SWEEP, A, B, C, D, error_of
from tests.support.sweeps import Made, make


def outcome(trial: Trial) -> Made:
    return Made({TOP1: error_of(trial)}, curve=[40.0])


def test_report_table_and_grade_have_decisions_savings_and_marks(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    register(ledger, "s", contents(QUESTIONS[:1], SWEEP.cells, SWEEP.protocol.design), 0)
    register(ledger, "s", contents(QUESTIONS, SWEEP.cells, SWEEP.protocol.design), 4)
    make(ledger, SWEEP, outcome)
    results = read_sweep(ledger, "s")
    decided = answers(results)
    assert decided is not None
    assert decided == answers_of_plan(plan(SWEEP, ledger, {}), changes_of(ledger, "s"))
    assert [answer.trajectory.decision for answer in decided.answers] == ["for", "equal"]
    assert (decided.fixed, decided.used) == (36, sum(len(plan(SWEEP, ledger, {}).of(c)) for c in SWEEP.cells[:3]))
    keys = [cell.cell.key for cell in results.cells]
    section = document(ledger, results).sections[0]
    assert section.id == "questions"
    assert section.words[0] == "Not as registered: the questions were changed after 4 trainings."
    table = section.tables[0]
    assert [row[0].text for row in table.rows] == ["A beats B", "A beats C"]
    assert [row[4].text for row in table.rows] == ["yes", "no difference larger than the margin"]
    assert [row[4].sub for row in table.rows] == ["changed", "changed"]
    assert [row[6].text for row in table.rows] == ["12", "12"]
    lines = list(text_lines(decided))
    assert lines[0].startswith("A beats B: yes (")
    assert "questions not as registered: the questions were changed after 4 trainings" in lines
    assert (
        lines[-1] == f"{decided.used} seeds of the questions' cells in place of 36: {1 - decided.used / 36:.0%} saved"
    )
    assert "s: the questions were changed after 4 trainings" in changed_questions([results])
    notes = {key: page.note for key, page in pages(results, "1", dict.fromkeys(keys, "a" * 32), "a" * 32).items()}
    assert [notes[key].count("- A beats") for key in keys] == [2, 1, 1, 0]
    assert f"\nQuestion:\n\n- {lines[0]}\n- not as registered: the questions were changed after 4" in notes[keys[1]]
    capsule.write(ledger, results, {}, tmp_path / "s.zip")
    with capsule.opened(tmp_path / "s.zip") as copy:
        assert answers(read_sweep(copy, "s")) == decided


@pytest.mark.parametrize("seeds", [2, 12])
def test_status_tells_the_answers_as_the_table_does(
    tmp_path: Path, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    register(ledger, "s", contents(QUESTIONS, SWEEP.cells, SWEEP.protocol.design), 0)
    make(ledger, SWEEP, lambda trial: outcome(trial) if trial.seed < seeds else None)
    decided = answers(read_sweep(ledger, "s"))
    assert decided is not None
    words = {"output": str(tmp_path), "sweep": None, "watch": False}
    assert status(argparse.Namespace(json=False, **words)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("A beats")]
    assert lines == list(text_lines(decided))[:2]
    assert status(argparse.Namespace(json=True, **words)) == 0
    shown = json.loads(capsys.readouterr().out)["s"]["questions"]
    assert (shown["unit"], shown["largest"], shown["used"], shown["fixed"]) == ("seed", 12, decided.used, 36)
    assert shown["changes"] == []
    last = [answer.trajectory.looks[-1] if answer.trajectory.looks else None for answer in decided.answers]
    assert [answer["decision"] for answer in shown["answers"]] == (["open"] * 2 if seeds < 3 else ["for", "equal"])
    assert [answer["interval"] for answer in shown["answers"]] == [
        [look.low, look.high] if look else None for look in last
    ]
    assert [answer["gain"] for answer in shown["answers"]] == [look.gain if look else None for look in last]
    assert [answer["text"] for answer in shown["answers"]] == [question.text for question in QUESTIONS]
    today = plan(SWEEP, ledger, {})
    settings = settle(SWEEP.cells, parser("s", "").parse_args(["--output", str(tmp_path), "--json"]))
    print_summary(Summary(today, today, [], "", "", "", "", None, ExitCode.DONE), settings)
    assert json.loads(capsys.readouterr().out)["questions"] == shown


def test_third_training_that_had_begun_when_its_cell_was_given_up_answers_nothing(tmp_path: Path) -> None:
    """Whether a third had begun depends on how many run side by side: the decisions must not."""
    decisions = []
    for trained, ended in ((2, "done"), (3, "done"), (3, "diverged")):
        ledger = Ledger(str(tmp_path / f"{trained}-{ended}"))

        def of_given_up(trial: Trial, trained: int = trained, third: str = ended) -> Made | None:
            if trial.cell.key != B.key:
                return outcome(trial)
            state = "diverged" if trial.seed < 2 or third == "diverged" else "finished"
            return Made({TOP1: 90.0 + trial.seed}, status=state) if trial.seed < trained else None

        make(ledger, SWEEP, of_given_up)
        today = plan(SWEEP, ledger, {})
        assert [status.state for status in today.of(B)][: trained + 1] == ["done"] * trained + ["skipped"]
        results = {status.trial.key: status.result for status in today.statuses if status.result is not None}
        parts = {key: part for key, part in sweep_trials(SWEEP, results).items() if key}
        stands = answers_of_plan(today, ())
        assert stands is not None
        assert stands == answers(read_sweep(ledger, "s"))
        trajectories = [answer.trajectory for answer in stands.answers]
        assert tuple(trajectories) == question_waves(SWEEP, parts, results, ()).trajectories
        # What was lost is what the cell's own row says.
        assert [answer.lost for answer in stands.answers] == [f"B: {today.lost(B)}", ""]
        diverged = 3 if ended == "diverged" else 2
        assert today.lost(B) == f"{diverged} of 12 seeds diverged, {12 - trained} skipped"
        decisions.append(trajectories)
    assert decisions[0] == decisions[1] == decisions[2]


def test_question_over_a_cell_that_was_given_up_says_so_and_saves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger.in_output(str(tmp_path))

    def of_given_up(trial: Trial) -> Made | None:
        if trial.cell.key != B.key:
            return outcome(trial)
        return Made({TOP1: 90.0}, status="diverged") if trial.seed < 3 else None

    make(ledger, SWEEP, of_given_up)
    results = read_sweep(ledger, "s")
    decided = answers(results)
    assert decided is not None
    assert [answer.given_up for answer in decided.answers] == [("B",), ()]
    assert [answer.decision for answer in decided.answers] == ["undecided", "equal"]
    words = "undecided: B was given up"
    trained = 12 + 3 + sum(status.result is not None for status in plan(SWEEP, ledger, {}).of(C))
    saved = f"{trained} seeds of the questions' cells in place of 36; B was given up"
    assert (decided.used, decided.saved) == (trained, saved)
    lines = list(text_lines(decided))
    assert lines[0].startswith(f"A beats B: {words} (2 seeds each, ")
    assert lines[-1] == saved
    section = question_section(decided)
    assert section is not None
    assert section.words == (f"{saved}.",)
    assert section.tables[0].rows[0][4].text == words
    notes = pages(results, "1", dict.fromkeys([cell.key for cell in SWEEP.cells], "a" * 32), "a" * 32)
    assert lines[0] in notes[B.key].note
    status(argparse.Namespace(output=str(tmp_path), sweep=None, watch=False, json=False))
    assert lines[0] in capsys.readouterr().out.splitlines()
    assert [answer["given_up"] for answer in decided.as_json()["answers"]] == [["B"], []]
    capsule.write(ledger, results, {}, tmp_path / "s.zip")
    with capsule.opened(tmp_path / "s.zip") as copy:
        assert answers(read_sweep(copy, "s")) == decided


def test_question_over_a_cell_whose_search_may_train_nothing_is_open_no_more(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    # B, which is wider, is given up before its first training.
    search = Search(2, seed=1, limits={"parameters": S2.width(1).parameters(10) + 0.5})
    protocol = Protocol(until=12, search=search)
    sweep = Sweep("s", "paper", (A, B), protocol, questions=QUESTIONS[:1])

    make(ledger, sweep, lambda trial: Made({}) if trial.phase == "holdout" else outcome(trial))
    decided = answers(read_sweep(ledger, "s"))
    assert decided is not None
    (answer,) = decided.answers
    assert answer.trajectory.decision == "open"
    assert (answer.words, answer.as_json()["decision"]) == ("undecided: B was given up", "undecided")
    assert (decided.used, decided.saved) == (3, "")


def test_what_was_taken_counts_failed_trainings_and_none_that_no_question_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    make(ledger, dataclasses.replace(SWEEP, protocol=Protocol(seeds=12), questions=()), outcome)
    make(ledger, SWEEP, outcome)
    decided = answers(read_sweep(ledger, "s"))
    fresh = Ledger(str(tmp_path / "fresh"))
    make(fresh, SWEEP, outcome)
    alone = answers(read_sweep(fresh, "s"))
    assert decided is not None
    assert alone is not None
    assert (decided.used, decided.saved) == (alone.used, alone.saved)
    assert alone.used < 36
    lost = Ledger(str(tmp_path / "lost"))
    lost.add_attempt(Trial(B, seed=1).key, {"error": "RuntimeError: gone", "final": True})
    make(lost, SWEEP, outcome)
    after = answers(read_sweep(lost, "s"))
    assert after is not None
    assert after.used == sum(len(plan(SWEEP, lost, {}).of(cell)) for cell in (A, B, C))


def test_seed_of_single_is_taken_once_its_second_phase_is_there_or_its_first_has_failed(tmp_path: Path) -> None:
    protocol = Protocol(ablation=False, single=True, until=3)
    sweep = Sweep("s", "paper", (A, B), protocol, questions=QUESTIONS[:1])
    ledger = Ledger(str(tmp_path))
    failing = Trial(B, "holdout", 2)
    ledger.add_attempt(failing.key, {"error": "RuntimeError: gone", "final": True})
    make(ledger, sweep, lambda trial: Made({}) if trial.phase == "holdout" and trial.key != failing.key else None)
    begun = answers(read_sweep(ledger, "s"))
    make(ledger, sweep, lambda trial: Made({TOP1: error_of(trial)}) if trial.phase == "match" else None)
    ended = answers(read_sweep(ledger, "s"))
    assert begun is not None
    assert ended is not None
    assert (begun.used, ended.used, ended.fixed) == (1, 6, 6)


def test_damaged_third_training_answers_nothing_either(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))

    def of_given_up(trial: Trial) -> Made | None:
        if trial.cell.key != B.key:
            return outcome(trial)
        state = "diverged" if trial.seed < 2 else "finished"
        return Made({TOP1: 90.0 + trial.seed}, status=state) if trial.seed < 3 else None

    make(ledger, SWEEP, of_given_up)
    before = answers(read_sweep(ledger, "s"))
    third = Trial(B, seed=2)
    ledger.write(f"trials/{third.key}/history.json", b"torn")
    results = read_sweep(ledger, "s")
    today = plan(SWEEP, ledger, {})
    assert list(results.damaged) == list(today.damaged) == [third.key]
    for stand in (*results.runs, *today.statuses):
        assert stand.why.endswith(BEYOND) == (stand.trial.key == third.key)
    assert answers(results) == answers_of_plan(today, ()) == before


def test_sweep_with_fixed_seeds_has_no_answers(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    sweep = Sweep("s", "paper", (A, B), Protocol(seeds=2), questions=QUESTIONS[:1])
    make(ledger, sweep, outcome)
    assert answers(read_sweep(ledger, "s")) is None
    assert question_section(None) is None


def test_gain_of_an_own_metric_has_the_digits_of_its_margin(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    metric = Metric("test/f1", "higher")
    cells = tuple(dataclasses.replace(cell, metric=metric, task="page:train") for cell in (A, B))
    question = Question("A beats B", "A", "B", "higher", 0.005)
    sweep = Sweep("s", "paper", cells, Protocol(until=12), questions=(question,))
    make(ledger, sweep, lambda trial: Made({metric.final: 0.9 - error_of(trial) / 300}, curve=[]))
    decided = answers(read_sweep(ledger, "s"))
    assert decided is not None
    assert decided.metric == metric
    look = decided.answers[0].trajectory.looks[-1]
    gain, interval = f"+{look.gain:.6f}", f"[{look.low:.6f}, {look.high:.6f}]"
    assert look.low > 0
    (line, *_) = text_lines(decided)
    assert line.endswith(f"gain {gain} {interval})")
    section = question_section(decided)
    assert section is not None
    assert [entry.text for entry in section.tables[0].rows[0]][1:4] == [gain, interval, "0.005000"]
    (gallery,) = (part for part in section.parts if isinstance(part, Gallery))
    assert isinstance(gallery.figures[0].content, Forest)
    assert gallery.figures[0].content.points[-1].tip.endswith(f"{gain} {interval}")


def test_answer_says_how_many_of_its_trainings_are_stale(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    make(ledger, SWEEP, outcome)
    results = read_sweep(ledger, "s")
    # One of A, which both questions compare, and one of D, which none does.
    stale = {cell.runs[0].key for cell in results.cells if cell.cell.label in "AD"}
    cells = tuple(
        dataclasses.replace(
            cell, runs=tuple(run._replace(state="stale") if run.key in stale else run for run in cell.runs)
        )
        for cell in results.cells
    )
    decided = answers(dataclasses.replace(results, cells=cells))
    assert decided is not None
    assert [(answer.stale, answer.lost) for answer in decided.answers] == [(1, ""), (1, "")]
    assert [answer["stale"] for answer in decided.as_json()["answers"]] == [1, 1]
    assert [line.endswith("; 1 of its trainings is stale") for line in text_lines(decided)] == [True, True, False]
    section = question_section(decided)
    assert section is not None
    assert [row[4].sub for row in section.tables[0].rows] == ["1 of its trainings is stale"] * 2


@pytest.mark.parametrize(("ending", "word"), [("diverged", "diverged"), ("dead", "died")])
def test_answer_says_which_of_its_trainings_trained_nothing(tmp_path: Path, ending: str, word: str) -> None:
    ledger = Ledger(str(tmp_path))
    # One of B, which the first question alone compares, and one of D, which none does.
    lost = {Trial(B).key, Trial(D).key}

    def outcome_of_some(trial: Trial) -> Made:
        return Made({TOP1: 90.0}, status="diverged", ending=ending) if trial.key in lost else outcome(trial)

    make(ledger, SWEEP, outcome_of_some)
    decided = answers(read_sweep(ledger, "s"))
    assert decided is not None
    assert decided == answers_of_plan(plan(SWEEP, ledger, {}), ())
    why = f"B: 1 of 12 seeds {word}"
    assert decided.answers[0].pairs == 12
    assert [answer.lost for answer in decided.answers] == [why, ""]
    assert [answer["lost"] for answer in decided.as_json()["answers"]] == [why, ""]
    assert [line.endswith(f"; {why}") for line in text_lines(decided)] == [True, False, False]
    section = question_section(decided)
    assert section is not None
    assert [row[4].sub for row in section.tables[0].rows] == [why, ""]
    assert decided.answers[0]._replace(stale=2).warning == f"{why}, 2 of its trainings are stale"


@pytest.mark.parametrize(
    ("protocol", "phase", "why"),
    [
        (Protocol(seeds=2, folds=10, until=10), "ablation", ""),  # the folds decide, and none of these seeds
        (Protocol(seeds=2, folds=10, until=10), "fold", "B: 1 of 10 folds diverged"),
        (Protocol(ablation=False, single=True, until=3), "holdout", "B: 1 of 3 first phases diverged"),
        (Protocol(ablation=False, single=True, until=3), "match", "B: 1 of 3 second phases diverged"),
    ],
)
def test_answer_says_what_was_lost_of_the_trainings_that_it_rests_on(
    tmp_path: Path, protocol: Protocol, phase: str, why: str
) -> None:
    ledger = Ledger(str(tmp_path))
    sweep = Sweep("s", "paper", (A, B), protocol, questions=QUESTIONS[:1])

    def outcome_of_some(trial: Trial) -> Made:
        made = Made({} if trial.phase == "holdout" else {TOP1: error_of(trial)})
        is_lost = trial.cell is B and trial.phase == phase and trial.seed % SECOND_SEED == trial.fold == 0
        metrics = {TOP1: 90.0} if made.metrics else {}
        return made._replace(metrics=metrics, status="diverged", ending="diverged") if is_lost else made

    make(ledger, sweep, outcome_of_some)
    decided = answers(read_sweep(ledger, "s"))
    assert decided is not None
    assert [answer.lost for answer in decided.answers] == [why]


def test_answer_says_how_many_of_its_trainings_failed(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    failing = Trial(B, seed=1)
    ledger.add_attempt(failing.key, {"error": "RuntimeError: gone", "final": True})
    make(ledger, SWEEP, outcome)
    decided = answers(read_sweep(ledger, "s"))
    assert decided is not None
    assert decided == answers_of_plan(plan(SWEEP, ledger, {}), ())
    trained = len(plan(SWEEP, ledger, {}).of(B))
    assert [answer.lost for answer in decided.answers] == [f"B: 1 of {trained} seeds failed", ""]


def test_answer_stands_on_a_training_whose_file_was_damaged_since(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    make(ledger, SWEEP, outcome)
    before = answers(read_sweep(ledger, "s"))
    # One of B, which the first question alone compares.
    ledger.write(f"trials/{Trial(B).key}/history.json", b"torn")
    results = read_sweep(ledger, "s")
    decided = answers(results)
    assert decided is not None
    assert before is not None
    assert [answer.trajectory for answer in decided.answers] == [answer.trajectory for answer in before.answers]
    assert (decided.used, decided.saved) == (before.used, before.saved)
    assert [answer.damaged for answer in decided.answers] == [1, 0]
    assert [answer["damaged"] for answer in decided.as_json()["answers"]] == [1, 0]
    assert next(text_lines(decided)).endswith("; 1 of its trainings has a damaged file")
    both = decided.answers[0]._replace(stale=1, damaged=2)
    assert both.warning == "1 of its trainings is stale, 2 of its trainings have a damaged file"
    today = plan(SWEEP, ledger, {})
    assert today.to_do == []
    assert answers_of_plan(today, ()) == decided
    capsule.write(ledger, results, {}, tmp_path / "s.zip")
    with capsule.opened(tmp_path / "s.zip") as copy:
        assert answers(read_sweep(copy, "s")) == decided


def test_open_question_says_so_and_saves_nothing_yet(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    make(ledger, SWEEP, lambda trial: outcome(trial) if trial.seed < 2 else None)
    decided = answers(read_sweep(ledger, "s"))
    assert decided is not None
    assert [answer.words for answer in decided.answers] == ["open: more is to come"] * 2
    assert (decided.saved, decided.answers[0].pairs) == ("", 0)
    failing = dataclasses.replace(results := read_sweep(ledger, "s"), title="t")
    assert changed_questions([failing, results]) == []
