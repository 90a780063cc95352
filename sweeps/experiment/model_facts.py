"""Facts of nets for planning: parameters, multiply-adds, maps. A model's are measured in a process that has torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from crelu_data.datasets import DataSet, beton_path, data_dir, fresh_command, prepare_command, read_sidecar
from crelu_models.model import Model
from crelu_models.spec import Net
from sweeps.experiment.trial import PHASES, Cell, Trial, model_key
from sweeps.store.ledger import Json

TIMEOUT: Final = 600.0  # seconds in which a model is built, on a busy machine too
MEASURE: Final = "crelu_models.measure_model"


class NetFacts(NamedTuple):
    """Sizes of a net for one picture: learned parameters, multiply-adds, elements of all maps."""

    parameters: int
    macs: int
    maps: int


# A model, the number of classes, the side of the pictures: 0 where only the parameters are asked for.
Request = tuple[Model, int, int]


def net_facts(net: Net | Model, classes: int, size: int) -> NetFacts:
    """Return the sizes of a net for pictures of this side; ValueError where a model cannot be built or run."""
    if isinstance(net, Model):
        (measured,) = measure([_request(net, classes, size)])
        if isinstance(measured, str):
            raise ValueError(measured)
        return measured
    maps = sum(channels * side * side for _, channels, side in net.shapes(classes, size))
    return NetFacts(net.parameters(classes, size), net.macs(classes, size), maps)


def measure_together(asked: Iterable[tuple[Net | Model, int, int]]) -> None:
    """Measure the models among nets, each with its classes and side, in one process; `net_facts` then starts none."""
    measure([_request(net, classes, size) for net, classes, size in asked if isinstance(net, Model)])


def _request(model: Model, classes: int, size: int) -> Request:
    """Return what is asked of a model. A model with a side of its own is asked at that."""
    return model, classes, model.size or size


def user_names(nets: Iterable[Net | Model]) -> list[str]:
    """Return the names, "module:name", of the code that these nets run besides ours, each once."""
    names = (name for net in nets if isinstance(net, Model) for name in net.user_names)
    return list(dict.fromkeys(names))


def known_parameters(net: Net | Model, classes: int | None, results: Iterable[Json | None]) -> int | None:
    """Return the parameters of a net; of a model those that a training has counted, of which these are results.

    A linear layer has as many as the side of the pictures makes them: that of the trainings, else the net's own. None
    where they are not known: without the number of classes, or before a training.
    """
    done = [result for result in results if result is not None]
    if isinstance(net, Model):
        # A training function that never asks for the model counts none.
        return next((int(result["parameters"]) for result in done if "parameters" in result), None)
    side = next((int(result["pictures"]["crop"]) for result in done if result.get("pictures")), None)
    return net.parameters(classes, side) if classes is not None else None


def cell_parameters(cell: Cell, classes: int | None, trained: Iterable[tuple[Trial, Json | None]]) -> int | None:
    """Return the parameters of the net that a cell's tested trainings have: a search may choose another than its own.

    Before any is tested they are those of the cell's own net. None where they are not known.
    """
    done = [(trial, result) for trial, result in trained if result is not None]
    tested = [(trial, result) for trial, result in done if PHASES[trial.phase].test]
    net = tested[0][0].net if tested else cell.net
    # The side of the pictures is the same in all trainings; a model's count is that of a training of just this model.
    results = [result for trial, result in tested or done if isinstance(net, Net) or trial.net == net]
    return known_parameters(net, classes, results)


def seen_by(net: Net | Model, facts: DataSet, where: Path | None = None) -> DataSet:
    """Return the facts of a data set with the side of the views that a net takes; ValueError where they are too small.

    A model may ask for a side of its own. Less than half of what is stored would show it a corner of each picture.
    `where` is the folder of the prepared files.
    """
    side = net.size if isinstance(net, Model) else 0
    if not side:
        return facts
    if not facts.size <= 2 * side <= 2 * facts.size:
        other = f": {_at_side(facts.name, side, where or data_dir(None))}" if facts.name.startswith("folder:") else ""
        raise ValueError(
            f"{net.name} takes pictures of side {side}, and those of {facts.name} are stored at side {facts.size}; "
            f"give it a size from {-(-facts.size // 2)} to {facts.size}, or prepare other ones{other}"
        )
    return dataclasses.replace(facts, crop=side)


def _at_side(name: str, side: int, where: Path) -> str:
    """Return the command that prepares a folder's pictures at a side; where they are prepared, with the same split."""
    path = beton_path(name, "train", where).with_suffix(".json")
    if not path.exists():
        return prepare_command(name, where, "--size", str(side))
    return fresh_command(dataclasses.replace(read_sidecar(path), size=side), where)


def check_models(cells: Iterable[Cell], facts: Mapping[str, DataSet], where: Path | None = None) -> None:
    """Raise ValueError where a model of a cell does not load, does not take its data, or gives no scores of classes.

    All are built at once in one process, on torch's device without memory where they can.
    """
    labels: dict[Request, str] = {}
    for cell in cells:
        if isinstance(cell.net, Model) and cell.dataset in facts:
            try:
                view_facts = seen_by(cell.net, facts[cell.dataset], where)
            except ValueError as error:
                raise ValueError(f"{cell.label}: {error}") from None
            labels.setdefault((cell.net, view_facts.classes, view_facts.crop), cell.label)
    for label, measured in zip(labels.values(), measure(list(labels)), strict=True):
        if isinstance(measured, str):
            raise ValueError(f"{label}: {measured}")


def counted_parameters(models: Sequence[tuple[Model, int]]) -> dict[str, int]:
    """Return the parameters of models for so many classes, by `model_key`, without those that cannot be built."""
    measured = measure([(model, classes, 0) for model, classes in models])
    return {
        model_key(model, classes): facts.parameters
        for (model, classes), facts in zip(models, measured, strict=True)
        if not isinstance(facts, str)
    }


def measure(requests: Sequence[Request]) -> list[NetFacts | str]:
    """Return the facts of models, or a sentence for one that cannot be built; each is measured once in this process."""
    known = _known()
    new = [request for request in dict.fromkeys(requests) if request not in known]
    if new:
        known.update(zip(new, _measured(new), strict=True))
    return [known[request] for request in requests]


@cache
def _known() -> dict[Request, NetFacts | str]:
    """Return what this process has measured so far."""
    return {}


def _measured(requests: Sequence[Request]) -> list[NetFacts | str]:
    """Build models in a process of its own: the code of a user may print, or end its process.

    Those behind one that ends it, or that takes all the time by itself, have another process. A process that does not
    come to its first model says nothing of any: the next would not either.
    """
    facts: list[NetFacts | str] = []
    while len(facts) < len(requests):
        answers, why = _answers(requests[len(facts) :])
        facts += answers or []
        behind = requests[len(facts) :]
        if why:
            facts += [f"{model.factory} {why}" for model, *_ in (behind if answers is None else behind[:1])]
    return facts


def _answers(requests: Sequence[Request]) -> tuple[list[NetFacts | str] | None, str]:
    """Return the answers of a process up to the model that ended it, and what it did; None where it did not begin.

    Where its time is over after some answers, nothing is said of the others: each may take as much.
    """
    asked = [{"model": model.to_json(), "classes": classes, "size": size} for model, classes, size in requests]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-W", "ignore", "-m", MEASURE, str(answer)]
        late = f"is not built within {TIMEOUT:.0f} s"
        why = ""
        try:
            done = subprocess.run(
                command, input=json.dumps(asked), env=environment, capture_output=True, text=True, check=False,
                timeout=TIMEOUT,
            )  # fmt: skip
            why = "ends its process: " + (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            pass
        if not answer.exists():
            return None, why or late
        answers = json.loads(answer.read_text())
    facts = [answer if isinstance(answer, str) else NetFacts(*answer) for answer in answers]
    return facts, why or ("" if facts else late)
