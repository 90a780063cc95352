"""Bad inputs of every border: files mutated, words at random; each must be taken as valid or refused by ValueError."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import io
import json
import random
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crelu_data import beton
from crelu_data.datasets import beton_path, dataset, read_sidecar
from crelu_data.write import prepare
from crelu_models.spec import Net
from crelu_models.tables import S2, S9
from sweeps.cli.settings import change
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep, sweep_from_json
from sweeps.experiment.trial import Cell, Trial, trial_from_json
from sweeps.report import build
from sweeps.results import capsule, evidence
from sweeps.results.evidence import MANIFEST
from sweeps.store import checkpoint
from sweeps.store.checkpoint_header import progress
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, finish, scores

Border = Callable[[bytes], object]
SECONDS = 5.0  # of the CPU: more than this for one small input counts as a hang
WORDS = [
    *(
        "",
        "0",
        "-1",
        "1e999",
        "nan",
        "inf",
        "true",
        "10",
        "0.5",
        "__class__",
        "../..",
        "\x00",
        "ü",
        "=",
        "==",
        "9" * 400,
    ),
    *("recipe.epochs", "recipe.lr", "recipe.stages", "recipe.", "recipe.__init__", "net.final_activation", "relu"),
    *("dataset", "synthetic:size=72", "synthetic:size=-1", "folder:", "folder:/", "{}", "[]", "None"),
]
NOT_A_NUMBER = float("nan")
LONG = "x" * 5000
VALUES: list[Any] = [None, True, -1, 0, 1e308, NOT_A_NUMBER, "", LONG, [], {}, [[]], {"a": None}, 2**70]


def borders(folder: Path) -> dict[str, tuple[bytes, Border]]:
    """Return each border with a good input and the function that takes any."""
    name = "synthetic:size=16,classes=2,train=6,test=4"
    prepare(name, folder)
    pictures = beton_path(name, "train", folder)
    cell = Cell("a", S2.crelu(1), "synthetic", ALLCONV, "1", "CReLU")
    trial = Trial(cell, "fold", 1, (("pool1", 0.25),), 1, 3)
    sweep = Sweep("s", "demo", (cell, dataclasses.replace(cell, label="b", net=S2)), Protocol(search=Search(3)))
    ledger = Ledger(str(folder / "ledger"))
    state = checkpoint.Checkpoint({"w": torch.ones(3)}, {"epoch": 1, "history": []})
    checkpoint.save(ledger, "k", 1, 0, state)
    (saved,) = ledger.names("checkpoints/k")

    many = Sweep("many", "paper", (cell,), Protocol(seeds=2))
    for number, each in enumerate(plan(many, ledger, {}).to_do):
        table = scores(np.arange(200) % 10, np.arange(20 + number), 10)
        finish(ledger, each, Made({"final/test_top1_err": 10.0 + number / 2}, scores=table))
    ledger.write_json("plans/many.json", plan_to_json(plan(many, ledger, {})))
    capsule.write(ledger, evidence.read_sweep(ledger, "many"), {}, folder / "good.zip")
    sealed = (folder / "good.zip").read_bytes()

    def at(suffix: str, take: Callable[[Path], object]) -> Border:
        def border(content: bytes) -> object:
            path = folder / f"fuzzed{suffix}"
            path.write_bytes(content)
            return take(path)

        return border

    def load(content: bytes) -> object:
        ledger.write(f"checkpoints/k/{saved}", content)
        return checkpoint.load(ledger, "k"), progress(ledger, "k")

    def text(take: Callable[[Any], object]) -> Border:
        return lambda content: take(json.loads(content.decode()))

    return {
        "checkpoint": (ledger.read(f"checkpoints/k/{saved}") or b"", load),
        "sidecar": (pictures.with_suffix(".json").read_bytes(), at(".json", read_sidecar)),
        "beton": (pictures.read_bytes()[:4096], at(".beton", beton.read_index)),
        "trial": (json.dumps(trial.to_json()).encode(), text(trial_from_json)),
        "plan": (json.dumps(plan_to_json(plan(sweep, ledger, {}))).encode(), text(sweep_from_json)),
        "net": (json.dumps(S9.to_json()).encode(), text(Net.from_json)),
        "result": (b'{"key": "k", "metrics": {}}', lambda content: _result(ledger, content)),
        "capsule": (sealed, at(".zip", lambda path: _reported(path, folder))),
        "signed capsule": (sealed, at(".zip", lambda path: _reported(path, folder))),
        "words": (b"recipe.epochs=10", lambda content: _words(cell, content)),
    }


def _result(ledger: Ledger, content: bytes) -> object:
    ledger.write("results/k.json", content)
    return ledger.results()


def _reported(path: Path, folder: Path) -> object:
    """Make the report of a capsule, as `report --from` does."""
    with redirect_stdout(io.StringIO()):
        return build.run(
            argparse.Namespace(
                sweep=None, check=None, capsule=str(path), to=str(folder / "to"), output="", open=False, watch=False
            )
        )


def resigned(content: bytes, draw: random.Random) -> bytes:
    """Return a capsule with something else in one of its JSON files, and digests that fit it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([name for name in files if name.endswith(".json")])
    value = json.loads(files[name])
    for _ in range(draw.randint(1, 3)):
        _exchange(value, draw)
    files[name] = json.dumps(value).encode(errors="surrogatepass")
    manifest = json.loads(files[MANIFEST])
    if name != MANIFEST and isinstance(manifest, dict):
        digests = {name: hashlib.sha256(held).hexdigest() for name, held in files.items() if name != MANIFEST}
        files[MANIFEST] = json.dumps(manifest | {"files": digests}).encode()
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for name, held in files.items():
            archive.writestr(name, held)
    return changed.getvalue()


def _words(cell: Cell, content: bytes) -> object:
    changed = change(cell, [content.decode(errors="surrogateescape")])
    return dataset(changed.dataset), Trial(changed).key


def mutated(content: bytes, draw: random.Random, structured: bool) -> bytes:
    """Return the input with bytes flipped, cut, doubled or inserted; JSON also with values exchanged."""
    if structured and draw.random() < 0.7:
        value = json.loads(content)
        for _ in range(draw.randint(1, 3)):
            _exchange(value, draw)
        return json.dumps(value).encode(errors="surrogatepass")
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(damaged) + 1)
        kind = draw.randrange(4)
        if kind == 0 and at < len(damaged):
            damaged[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del damaged[at : at + draw.randint(1, 64)]
        elif kind == 2:
            damaged[at:at] = damaged[at : at + draw.randint(1, 64)]
        else:
            damaged[at:at] = bytes(draw.choices(range(256), k=draw.randint(1, 16)))
    return bytes(damaged)


def _exchange(value: Any, draw: random.Random) -> None:
    """Put something else somewhere in a JSON value."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and draw.random() < 0.8:
            value = value[key]
            continue
        if isinstance(value, dict) and draw.random() < 0.2:
            del value[key]
        else:
            value[key] = copy.deepcopy(draw.choice(VALUES))
        return


def fuzz(inputs: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Give each border its share of `inputs` bad inputs; return how many ended how, and the findings."""
    draw = random.Random(seed)
    counts = Counter[str]()
    findings = []
    with tempfile.TemporaryDirectory() as name:
        inputs_of = borders(Path(name))
        for number in range(inputs):
            border = list(inputs_of)[number % len(inputs_of)]
            good, take = inputs_of[border]
            structured = border in ("sidecar", "trial", "plan", "net", "result")
            if border == "words":
                content = "=".join(draw.choices(WORDS, k=draw.randint(1, 3))).encode(errors="surrogatepass")
            elif border == "signed capsule":
                content = resigned(good, draw)
            else:
                content = mutated(good, draw, structured)
            began = time.thread_time()
            try:
                take(content)
                counts[f"{border}: taken"] += 1
            except ValueError:
                counts[f"{border}: refused"] += 1
            except BaseException as error:  # whatever it is, it is a finding
                where = traceback.extract_tb(error.__traceback__)[-1]
                findings.append(f"{border}: {type(error).__name__} at {where.name}: {error} for {content[:200]!r}")
            if time.thread_time() - began > SECONDS:
                findings.append(f"{border}: {time.thread_time() - began:.0f} s for {content[:200]!r}")
    return counts, findings
