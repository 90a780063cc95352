"""README and the guide tell the truth: commands parse, links and pictures exist, the example page is a sweep."""

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from crelu_data.__main__ import _parser as data_parser
from crelu_models.__main__ import parser as models_parser
from sweeps import launch
from sweeps.__main__ import parser as verb_parser
from sweeps.cli.options import parser as page_parser
from sweeps.cli.settings import declare, settle
from sweeps.cli.verbs import pages
from sweeps.experiment.metrics import TOP1
from sweeps.report.effect_tables import effects_of
from sweeps.results.cell_numbers import groups
from sweeps.results.evidence import read_sweep
from tests.support.sweeps import Made, make

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
SHELL = ("", "bash", "console")
PAGES = pages()
PROGRAM = re.compile(r"(\.venv/bin/)?(python (-m|clusters/)|make$|make |mlflow )")
# Words that stand for a reader's own: a page, a verb, a job.
STAND_INS = {"sweeps.NAME", "sweeps.leaky", "sweeps.analysis.NAME", "VERB"}


def named(path: Path) -> str:
    """Return the path of a document as a reader says it."""
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """Return a document without its blocks of code."""
    return FENCE.sub("", path.read_text())


def commands(path: Path) -> Iterator[str]:
    """Yield every command of ours in a document: in blocks, in quotes behind `ray exec`, and in the text."""
    for _, kind, block in FENCE.findall(path.read_text()):
        if kind.strip() in SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                yield from _ours(line.split(" #")[0].strip().removeprefix("exec "))
    for code in re.findall(r"`([^`\n]+)`", prose(path)):
        # In the text a verb may be named without what it needs.
        yield from _ours(f"{code} --help" if re.fullmatch(r"python -m (crelu_data|sweeps) [\w-]+", code) else code)


def _ours(line: str) -> Iterator[str]:
    if line.startswith("ray exec "):
        line = re.sub(r"^ray job submit [-\w ]*-- ", "", line.split("'")[1])
    if PROGRAM.match(line):
        yield line


def shown(lines: Iterable[str]) -> Iterator[str]:
    """Yield the commands that stand in lines of their own, with what they do some spaces behind."""
    for line in lines:
        if line.startswith("    "):
            yield from _ours(re.split(r" {2,}", line.strip())[0])


def of_help(path: Path) -> Iterator[str]:
    """Yield the commands in the docstring of a module: --help prints those of a page, an analysis and a verb."""
    return shown((ast.get_docstring(ast.parse(path.read_text())) or "").splitlines())


def of_notebook(path: Path) -> Iterator[str]:
    """Yield the commands in the texts and cells of a notebook."""
    cells = json.loads(path.read_text())["cells"]
    return shown(line.rstrip("\n") for cell in cells for line in cell["source"])


MORE = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
COMMANDS = sorted({(named(path), line) for path in (*DOCUMENTS, *MORE) for line in commands(path)})
COMMANDS += [(named(path), line) for path in sorted(ROOT.glob("sweeps/**/*.py")) for line in of_help(path)]
COMMANDS += [(named(path), line) for path in sorted(ROOT.glob("notebooks/*.ipynb")) for line in of_notebook(path)]


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/cluster.md",
        "docs/figures.md",
        "docs/first-sweep.md",
        "CONTRIBUTING.md",
        "sweeps/report/build.py",
    ],
)
def test_document_has_commands_to_check(document: str) -> None:
    assert sum(document == name for name, _ in COMMANDS) >= 5


def test_commands_of_help_and_notebooks_are_checked() -> None:
    assert ("sweeps/full_grid.py", "python -m sweeps.full_grid --dry-run --only 'allconv*'") in COMMANDS
    assert ("notebooks/02_filters.ipynb", "python -m sweeps.analysis.pairing --sweep NAME") in COMMANDS


def test_command_behind_ray_exec_is_checked() -> None:
    assert ("README.md", "python -m sweeps status --output $CRELU_BUCKET/out") in COMMANDS


def test_every_command_parses() -> None:
    refused = []
    for document, command in COMMANDS:
        try:
            check(command)
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            refused.append(f"{document}: {command}: {error!r}")
    assert refused == []


def check(command: str) -> None:
    """Raise where a command names what is not there, or says to a parser of ours what it does not know."""
    words = [word for word in shlex.split(command) if word != "-B"]
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        # A target, or a variable with its value: CPU=1.
        text = (ROOT / "Makefile").read_text()
        known = set(re.findall(r"^([\w-]+):|^(\w+ )\?= ", text, re.MULTILINE))
        assert {(word, "") if "=" not in word else ("", f"{word.partition('=')[0]} ") for word in words[1:]} <= known
    elif program == "mlflow":
        assert words[1:3] in (["ui", "--backend-store-uri"], ["gc"])
    elif words[1].startswith("clusters/"):
        script = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in script for word in words if word.startswith("--"))
    else:
        _parse(words[2], words[3:])


def _parse(module: str, arguments: list[str]) -> None:
    """Let the parser of `python -m module` read the arguments; SystemExit where it refuses them."""
    if STAND_INS & {module, *arguments}:
        return
    parsers = {"crelu_data": data_parser, "crelu_models": models_parser, "sweeps": verb_parser}
    if module in parsers:
        parser = parsers[module]()
        if "--help" in arguments:
            with pytest.raises(SystemExit, match=r"^0$"):
                parser.parse_args(arguments)
        elif arguments:
            parser.parse_args(arguments)
    elif module.startswith("sweeps.analysis."):
        import_module(module).arguments().parse_args(arguments)
    elif module == "pytest":
        assert arguments == ["-m", "gpu"] or all((ROOT / path.partition("::")[0]).exists() for path in arguments)
    elif module.startswith("benchmarks."):
        assert importlib.util.find_spec(module)
    else:
        name = module.removeprefix("sweeps.")
        assert name in PAGES
        groups = re.findall(r"also=\{\"(\w+)\"", (ROOT / "sweeps" / f"{name}.py").read_text())
        page_parser(name, "", groups).parse_args(arguments)


def test_option_that_does_not_exist_is_found() -> None:
    for module, wrong in (
        ("crelu_data", ["info", "--no"]),
        ("sweeps", ["status", "--no"]),
        ("sweeps.cifar_vgg", ["--no"]),
    ):
        with pytest.raises(SystemExit):
            _parse(module, wrong)


def test_readme_is_read_in_five_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 130


def targets(path: Path) -> list[str]:
    """Return where the links and pictures of a document lead, other sites left out."""
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    return [target for target in links if "://" not in target]


LINKS = sorted({(named(path), target) for path in DOCUMENTS for target in targets(path)})


def test_every_link_leads_somewhere() -> None:
    assert [link for link in LINKS if not leads_somewhere(*link)] == []


@pytest.mark.parametrize("target", ["nowhere.md", "#no-such-heading", "science.md#no-such-heading", "pictures"])
def test_link_that_leads_nowhere_is_found(target: str) -> None:
    assert not leads_somewhere("docs/cluster.md", target)


def leads_somewhere(document: str, target: str) -> bool:
    """Return whether a link of a document leads to a file and, where it has an anchor, to a heading there."""
    name, _, anchor = target.partition("#")
    path = (ROOT / document).parent / name if name else ROOT / document
    if not path.is_file():
        return False
    return not anchor or anchor in {slug(title) for title in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)}


def slug(title: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_tests_that_sources_and_documents_name_are_there() -> None:
    sources = [path for room in ("sweeps", "crelu_models", "data") for path in (ROOT / room).rglob("*.py")]
    names = {
        (named(path), name)
        for path in (*DOCUMENTS, ROOT / "CONTRIBUTING.md", *sources)
        for name in re.findall(r"tests/[a-z_]\w*(?:/\w+)*(?:\.py|/)", path.read_text())
    }
    assert len(names) > 5
    assert [(document, name) for document, name in names if not (ROOT / name).exists()] == []


def test_readme_shows_a_picture_and_leads_to_the_guide() -> None:
    assert "docs/pictures/table.png" in targets(README)
    assert {"docs/own-sweep.md", "docs/cluster.md", "docs/science.md"} <= set(targets(README))


def test_every_page_of_the_site_is_in_its_index() -> None:
    blocks = [block for _, kind, block in FENCE.findall((ROOT / "docs/index.md").read_text()) if "toctree" in kind]
    listed = {line for block in blocks for line in block.splitlines() if re.fullmatch(r"[\w-]+", line)}
    assert listed == {path.stem for path in DOCUMENTS} - {"README", "index"}


@pytest.mark.parametrize("document", ["docs/first-sweep.md", "docs/commands.md"])
def test_document_names_every_sweep(document: str) -> None:
    text = (ROOT / document).read_text()
    assert [name for name in PAGES if f"`{name}`" not in text] == []


def test_commands_show_every_parser() -> None:
    shown = set(re.findall(r"^```\{options\} (\w+)$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE))
    jobs = {path.stem for path in (ROOT / "sweeps/analysis").glob("*.py") if "\ndef arguments() ->" in path.read_text()}
    assert shown == {"sweep", "verbs", "data", "models"} | jobs


def test_rooms_are_those_of_the_tree() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named_rooms = set(re.findall(r"^\| `sweeps/(\w+)/` \|", text, re.MULTILINE))
    drawn = set(re.findall(r'class="name"[^>]*>(\w+)<', (ROOT / "docs/pictures/rooms.svg").read_text()))
    rooms = {path.parent.name for path in (ROOT / "sweeps").glob("*/__init__.py")}
    assert named_rooms == rooms == drawn - {"launch", "__main__", "crelu_models", "data"}


def examples(path: Path) -> list[str]:
    """Return the Python pages of a document: blocks with a docstring and cells."""
    blocks = [block for _, kind, block in FENCE.findall(path.read_text()) if kind.strip() == "python"]
    return [block for block in blocks if block.startswith('"""') and "CELLS" in block]


def test_readme_and_guide_show_the_same_page() -> None:
    assert examples(README) == examples(ROOT / "docs/own-sweep.md")


def test_page_of_ones_own_is_a_sweep() -> None:
    (page,) = examples(README)
    names: dict[str, object] = {"__name__": "sweeps.leaky"}
    exec(compile(page, "README", "exec"), names)
    cells = names["CELLS"]
    assert isinstance(cells, tuple)
    assert len({cell.key for cell in cells}) == 4


def test_page_of_ones_own_answers_its_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page as printed, declared by its command line at the demo's scale, has the row that its question asks for."""
    (page,) = examples(README)
    called: list[Any] = []
    monkeypatch.setattr(launch, "main", lambda *arguments: called.extend(arguments))
    exec(compile(page, "README", "exec"), {"__name__": "__main__"})
    name, question, cells, protocol = called
    launch.check_references(name, cells)
    options = page_parser(name, question).parse_args(["--profile", "demo", "--output", str(tmp_path)])
    settings = settle(cells, options)
    sweep = declare(name, cells, protocol, options, settings)
    assert "leaky form beat CReLU" in question
    make(settings.ledger, sweep, lambda trial: Made({TOP1: 20.0} if trial.phase == "ablation" else {}))
    ((_, effects),) = effects_of(groups(read_sweep(settings.ledger, sweep.title)))
    pairs = [(effect.row.label, effect.reference.label) for effect in effects if effect.contrast.metric == TOP1]
    assert pairs == [("crelu", "relu"), ("crelu_leaky", "relu"), ("crelu_leaky", "crelu"), ("elu", "relu")]
