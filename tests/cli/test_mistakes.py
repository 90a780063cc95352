"""Typical mistakes: each ends with 2 and one sentence that says what to do, and nothing is written."""

import contextlib
import io
import runpy
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweeps
from sweeps.cli.page_errors import page_line
from tests.support.commands import environment

# Variables that a person who runs the tests may have set.
VARIABLES = ("CRELU_DATA", "CRELU_DATA_SOURCE", "CRELU_NOTIFY", "CRELU_PRICE_PER_GPU_HOUR", "IMAGENET_DIR",
             "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "AWS_ENDPOINT_URL")  # fmt: skip

# A command line as it is typed, and words of the sentence. {here} is a folder with a file and an empty folder.
MISTAKES = [
    # a page's options
    ("sweeps.cifar_width --sedes 3", "did you mean --seeds?"),
    ("sweeps.cifar_width --seeds 0", "a whole number of at least 1, not '0'"),
    ("sweeps.cifar_width --profile papr", "did you mean paper?"),
    ("sweeps.cifar_width cifar10", "cifar10 is one word too many"),
    ("sweeps.cifar_width --only 'Nothing*'", "has no cell 'Nothing*'; there are: Baseline"),
    ("sweeps.full_grid --also crossed", "there is no 'crossed'; there are none here"),
    ("sweeps.imagenet_placement --also crosed", "did you mean crossed?"),
    ("sweeps.cifar_width --profile demo --folds 1", "no folds, 0, or at least two, not 1"),
    ("sweeps.cifar_width --pack many", "off, auto, or a whole number"),
    ("sweeps.cifar_width --sampler gpp", "did you mean gp?"),
    ("sweeps.imagenet_placement --match epoch", "which this sweep does not follow"),
    ("sweeps.imagenet_placement --halving 3", "say its size by --search-trials"),
    ("sweeps.imagenet_placement --also crossed --search-trials 3", "differ only in what is searched"),
    ("sweeps.cifar_width --max-gpu-hours lots", "a number of at least 0, not 'lots'"),
    ("sweeps.cifar_width --max-gpu-hours nan", "a number of at least 0, not 'nan'"),
    ("sweeps.cifar_width --price-per-gpu-hour inf", "a number below 1,000,000, not 'inf'"),
    ("sweeps.cifar_width --profile demo --reader nvjpeg --gpus-per-trial 0", "take ffcv or threads"),
    ("sweeps.cifar_width --notify nonsense", "it begins with https://"),
    ("sweeps.cifar_width --rehearse --dry-run --only 'Nothing*'", "--rehearse takes steps and --dry-run takes none"),
    ("sweeps.cifar_width --profile paper --register team/placement", "a model's name is not empty"),
    ("sweeps.cifar_width --profile paper --register a:b", "has no / : or '"),
    ('sweeps.cifar_width --profile paper --register "it\'s"', "has no / : or '"),
    ("sweeps.cifar_width --profile paper --register ' '", "a model's name is not empty"),
    ("sweeps.cifar_width --profile paper --register ''", "the word behind --register is empty"),
    (
        "sweeps.cifar_width --output ''",
        "the word behind --output is empty: leave it out, or look whether the shell knows its variable",
    ),
    ("sweeps.cifar_width --dataset=", "error: --dataset is empty"),
    ("sweeps.cifar_width --only 'Baseline*' ''", "the word behind Baseline* is empty"),
    ("sweeps.imagenet_placement --folds 3", "--folds is for a sweep with folds"),
    ("sweeps.cifar_width --profile paper --register ..", "begins with no dot"),
    # --set: names and values
    ("sweeps.cifar_width --set recipe.learning_rate=0.1", "did you mean 'recipe.lr'?"),
    ("sweeps.cifar_width --set recipe.epochs", "--set takes FIELD=VALUE"),
    ("sweeps.cifar_width --set recipe.epochs=ten", "of type int, not 'ten'"),
    ("sweeps.cifar_width --set recipe.lr=nan", "recipe.lr is above 0"),
    ("sweeps.cifar_width --set recipe.flip=maybe", "true or false, not 'maybe'"),
    ("sweeps.cifar_width --set recipe.optimiser=adamm", "one of sgd, adam, adamw"),
    ("sweeps.cifar_width --set net.final_activation=rleu", "none, relu or avr"),
    ("sweeps.cifar_width --set dataset=mnist", "unknown data set 'mnist'; use one of"),
    # pictures
    ("sweeps.cifar_width --dataset cifar11", "nearest: cifar10"),
    ("sweeps.cifar_width --dataset folder:", "followed by a path"),
    ("sweeps.cifar_width --dataset folder:/nowhere", "no folder /nowhere: name one that holds a folder"),
    ("sweeps.cifar_width --data-dir {here}/empty", "python -m crelu_data prepare cifar10 --data-dir {here}/empty"),
    ("sweeps.cifar_width --data-dir {here}/file", "{here}/file is no folder: say by --data-dir or $CRELU_DATA"),
    # outputs
    ("sweeps.cifar_width --profile demo --output {here}/file", "{here}/file is not a folder"),
    ("sweeps.cifar_width --profile demo --output /proc/out", "cannot write to --output /proc/out"),
    ("sweeps.cifar_width --profile demo --output /proc/out --dry-run", "cannot write to --output /proc/out"),
    ("sweeps.cifar_width --profile demo --output foo://bar", "needs --tracking-uri or MLFLOW_TRACKING_URI"),
    ("sweeps.cifar_width --profile demo --tracking-uri http://me:pw@host", "use $MLFLOW_TRACKING_USERNAME"),
    # variables
    ("CRELU_DATA={here}/empty sweeps.imagenet_placement", "or take embedded pictures: "),
    ("CRELU_DATA={here}/file sweeps.imagenet_placement", "say by --data-dir or $CRELU_DATA"),
    ("CRELU_PRICE_PER_GPU_HOUR=cheap sweeps.cifar_width --list", "a number of at least 0, not 'cheap'"),
    ("CRELU_NOTIFY=x sweeps.cifar_width", "$CRELU_NOTIFY is no address"),
    ("IMAGENET_DIR={here}/empty sweeps.imagenet_placement", "crelu_data prepare imagenet --source {here}/empty"),
    ("RAY_ADDRESS=127.0.0.1:1 sweeps.imagenet_placement", "a cluster was given, but no data"),
    ("RAY_ADDRESS=127.0.0.1:1 sweeps.imagenet_placement --profile demo", "no Ray cluster answers at 127.0.0.1:1"),
    ("MLFLOW_TRACKING_URI=postgresql://me@h/db?password=x sweeps.cifar_width", "the store's own file of passwords"),
    # verbs
    ("sweeps", "required: VERB"),
    ("sweeps stauts", "did you mean status?"),
    ("sweeps status --outputs x", "did you mean --output?"),
    ("sweeps status", "no sweep has run in {here}/outputs/ledger; run one, or say where by --output"),
    ("sweeps report --to ''", "the word behind --to is empty"),
    ("sweeps report nosuch", "has no sweep 'nosuch'"),
    ("sweeps report --check nofile", "nofile: No such file or directory"),
    ("sweeps report --from {here}/file", "is no capsule"),
    ("sweeps report --output s3://x/y", "say by --to where the report goes"),
    ("sweeps export", "required: sweep, FILE.zip"),
    ("sweeps export-study X", "required: --storage"),
    ("sweeps grade crelo", "there are: crelu, demo"),
    ("sweeps grade nowhere:TREE", "No module named 'nowhere'"),
    ("sweeps doctor --file nowhere.yaml", "nowhere.yaml is not there"),
    # python -m crelu_data
    ("crelu_data prepair cifar10", "did you mean prepare?"),
    ("crelu_data prepare mnist", "unknown data set 'mnist'; use one of"),
    ("crelu_data prepare cifar10 --size 64", "stored unchanged"),
    ("crelu_data prepare synthetic --size 0", "must be 16 or more"),
    ("crelu_data prepare synthetic:sise=16", "is not one of synthetic's fields"),
    ("crelu_data prepare synthetic --quality 200", "the quality is 1 to 100, not 200"),
    ("crelu_data prepare synthetic --workers -1", "a whole number of at least 0, not '-1'"),
    ("crelu_data prepare synthetic --data-dir {here}/file", "{here}/file is no folder"),
    ("crelu_data bench synthetic --batch 0", "a whole number of at least 1, not '0'"),
    ("crelu_data verify cifar10", "python -m crelu_data prepare cifar10"),
    ("crelu_data prepare synthetic --data-dir ''", "the word behind --data-dir is empty"),
    ("crelu_data info ''", "the word behind info is empty"),
    ("crelu_data pull /nowhere", "python -m crelu_data push /nowhere"),
    # python -m crelu_models
    ("crelu_models places", "required: MODULE:NAME"),
    ("crelu_models places resnet18", 'such as "torchvision.models:resnet18"'),
    ("crelu_models places nowhere:net", "No module named 'nowhere'"),
    ("crelu_models places json:dumps", "write its arguments as NAME=VALUE"),
    ("crelu_models places ''", "the word behind places is empty"),
    # analyses
    ("sweeps.analysis.theory --output=", "error: --output is empty"),
    ("sweeps.analysis.pairing --weights {here}/file --net ''", "the word behind --net is empty"),
    ("sweeps.analysis.pairing", "one of --run RUN_ID, --sweep NAME and --weights FILE"),
    ("sweeps.analysis.pairing --sweep nosuch", "holds no sweep yet"),
    ("sweeps.analysis.pairing --weights nofile.pt", "no file {here}/nofile.pt"),
    ("sweeps.analysis.pairing --weights {here}/file", "holds no weights that can be read: Weights only load failed"),
]

HEAD = """from crelu_models import S2
from sweeps import ALLCONV, Cell, Float, Metric, Model, Protocol, Search, grid, main

"""
# What a page says in place of its cells, and words of the sentence. The page's line is the fourth.
PAGES = [
    ("[]", "mine has no cell: it needs at least one"),
    ("main('mine', __doc__, [])", "mine has no cell: it needs at least one"),  # a page without a docstring
    ("main('my birds', '', [Cell('a', S2, 'cifar10', ALLCONV)])", "letters, digits and . = , + @ - _"),
    ("main(300 * 'm', '', [Cell('a', S2, 'synthetic', ALLCONV)])", "too long for names of files: 180 bytes at most"),
    ("main('.birds', '', [Cell('a', S2, 'cifar10', ALLCONV)])", "no sign but _ at its start"),
    ("S2", "a list of Cell, as in [Cell(...), Cell(...)]"),
    ("[S2]", "a list of Cell, as in [Cell(...), Cell(...)]"),
    ("[Cell('a', S2, 'cifar11', ALLCONV)]", "unknown data set 'cifar11' (nearest: cifar10)"),
    ("[Cell('a', S2, 'synthetic')]", "page.py, line 4: Cell.__init__() missing 1 required"),
    ("[Cell('a', nett=S2)]", "page.py, line 4: Cell.__init__() got an unexpected keyword argument 'nett'"),
    ("[Cell('a', 'S2', 'synthetic', ALLCONV)]", "page.py, line 4: the net of 'a' is a net such as S2, or a Model"),
    ("[Cell('a', S2, 'synthetic', 'ALLCONV')]", "page.py, line 4: the recipe of 'a' is a Recipe such as ALLCONV"),
    ("[Cell('a', S2.crelu(99), 'synthetic', ALLCONV)]", "page.py, line 4: S2 cannot change conv99"),
    ("[Cell('a\\nb', S2, 'cifar10', ALLCONV)]", "the label of a cell, and a level in words, is one line of text"),
    ("[Cell(0.5, S2, 'cifar10', ALLCONV)]", "is one line of text, not 0.5"),
    ("grid(lambda act: Cell('a', S2, 'cifar10', ALLCONV), act=('re\\tlu',))", "one line of text, not 're\\tlu'"),
    ("[Cell('a', S2, 'synthetic', ALLCONV)] * 2", "2 cells of mine have the same label: a, a"),
    ("[Cell('a', S2, 'synthetic', ALLCONV, versus='b')]", "mine has no cell 'b'; there are: a"),
    ("[Cell('a', S2, 'synthetic', ALLCONV, task='train')]", "page.py, line 4: task of 'a' is 'module:function'"),
    ("[Cell('a', S2, 'synthetic', ALLCONV, task='nowhere:train')]", "there is no module 'nowhere' beside the page"),
    ("[Cell('a', Model('resnet18'), 'synthetic', ALLCONV)]", 'page.py, line 4: code is named as "module:function"'),
    ("[Cell('a', Model('nowhere:net'), 'synthetic', ALLCONV)]", "there is no module 'nowhere' beside the page"),
    ("grid(lambda act: Cell(act, S2, 'synthetic', ALLCONV), act='relu')", "line 4: the levels of act are several"),
    ("Metric('f1', better='higher')", "page.py, line 4: a metric is called test/NAME or val/NAME"),
    ("Search(0)", "page.py, line 4: a search has at least one trial"),
    ("main('mine', '', [Cell('a', S2, 'synthetic', ALLCONV)], "
     "Protocol(search=Search(3, space={'recipe.lr': Float(1, 0.5)})))", "low"),
    ("Protocol(seeds=0)", "page.py, line 4: a protocol has at least one seed, not 0"),
    ("main('mine', '', [Cell('a', S2, 'synthetic', ALLCONV)], "
     "Protocol(search=Search(3, space={'recipe.lrr': Float(1e-3, 1)})))", "did you mean 'recipe.lr'?"),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder to stand in, and give signals and errors back afterwards."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str, str]:
    """Run a module, or a page, as the command line does; return the exit code and both outputs."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", words)
    code: object = "no end"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a module that is run had been imported
        try:
            if words[0].endswith(".py"):
                runpy.run_path(words[0], run_name="__main__")
            else:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        except Exception as error:
            try:
                sys.excepthook(type(error), error, error.__traceback__)
            except SystemExit as ended:
                code = ended.code
    return code, out.getvalue(), err.getvalue()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_on_the_command_line(line: str, words: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(here)
    command = shlex.split(line.format(here=here))
    while "=" in command[0]:
        name, _, value = command.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    code, out, err = typed(command, monkeypatch)
    assert (code, out if "--dry-run" not in command else "", err.count("\n")) == (2, "", 1), err
    assert words.format(here=here) in err
    assert files(here) == before


@pytest.mark.parametrize(("cells", "words"), PAGES, ids=[cells for cells, _ in PAGES])
def test_mistake_on_a_page(cells: str, words: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "page.py").write_text(f"{HEAD}CELLS = {cells}\nmain('mine', 'Is it so?', CELLS)\n")
    before = files(here)
    code, out, err = typed(["page.py", "--profile", "paper"], monkeypatch)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert words in err
    assert files(here) == before


def test_interpreter_ends_with_2_where_a_page_is_wrong(here: Path) -> None:
    (here / "page.py").write_text(f"{HEAD}CELLS = [Cell('a', S2.crelu(99), 'synthetic', ALLCONV)]\n")
    user = environment(here, PYTHONPATH=str(Path(sweeps.__file__).parents[1]))
    ended = subprocess.run((sys.executable, "page.py"), cwd=here, env=user, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr


@pytest.mark.parametrize("line", ["int('x')", "S2.no_such_verb", "Cell(1)()", "sorted([S2, S2])", "{}['a']"])
def test_error_of_the_users_own_has_its_traceback(line: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "page.py").write_text(f"{HEAD}Cell = dict\n{line}\n")
    code, _, err = typed(["page.py"], monkeypatch)
    assert code == "no end"
    assert "Traceback (most recent call last)" in err
    assert page_line(ValueError(), None) is None


def test_forty_mistakes_are_tried() -> None:
    assert len(MISTAKES) >= 40
