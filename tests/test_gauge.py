"""What workers measure before they train: dealt, handed out, told; and by real Ray, that each epoch is heard."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_resume import SMALL, place, trial_of

from data.write import prepare
from sweeps.gauge import Gauge, take
from sweeps.ledger import Json, Ledger
from sweeps.plan import Sweep
from sweeps.price import Speed
from sweeps.session import Resources, Session
from sweeps.sharing import Maker
from sweeps.trial import Trial

ROOT = Path(__file__).parents[1]
Found = tuple[dict[str, Speed], dict[str, Maker]]


def nets(*widths: float) -> dict[str, tuple[Trial, int, int]]:
    base = trial_of("allconv with dropout")
    cells = {f"{width}": dataclasses.replace(base.cell, net=base.cell.net.width(width)) for width in widths}
    return {key: (dataclasses.replace(base, cell=cell), 4, 32) for key, cell in cells.items()}


def gauge(workers: int, heard: list[Found], data: tuple[str, ...] = (), **more: Any) -> Gauge:
    return Gauge(nets(1.0, 2.0, 0.5), data, lambda speeds, makers: heard.append((speeds, makers)), workers, **more)


def names(share: Json | None) -> list[str]:
    assert share is not None
    return [key for key, *_ in share["nets"]] + share["data"]


def told(ready: float, **rates: float) -> Json:
    return {"ready": ready, "nets": {key: [rate, rate, rate, 1.0, 0.0] for key, rate in rates.items()}, "data": {}}


def test_measurements_are_dealt_largest_first_and_told_once() -> None:
    heard: list[Found] = []
    both = gauge(2, heard, ("pictures",), first=True, share=0.25)
    assert [names(both.hand("a")), names(both.hand("b"))] == [["1.0", "pictures"], ["2.0", "0.5"]]
    assert both.hand("c") is None
    assert not both.leave("c"), "what trains has measured nothing"
    both.hear({"ready": both.began + 5, "nets": {"2.0": [9.0, 8.0, 10.0, 30.0, 0.0]}, "data": {}})
    assert both.leave("a")
    assert both.first
    assert not heard
    both.hear({"ready": both.began + 3, "nets": {}, "data": {"pictures": [100.0, 8e9]}})
    assert both.leave("b")
    assert not both.first
    ((speeds, makers),) = heard
    assert makers == {"pictures": Maker(100.0, 2e9)}
    # Of the others nothing was found; all start as fast as the first of them did.
    assert {key: speed[:4] for key, speed in speeds.items()} == {"2.0": (9.0, 8.0, 10.0, 30.0)}
    assert speeds["2.0"].start == pytest.approx(3.0)


def test_more_workers_than_nets_and_a_tuner_that_is_gone() -> None:
    heard: list[Found] = []
    many = gauge(99, heard)
    shares = [names(many.hand(f"{number}")) for number in range(3)]
    assert shares == [["2.0"], ["1.0"], ["0.5"]]
    assert many.hand("4") is None
    many.hear(told(many.began, **{"2.0": 7.0}))
    many.leave("0")
    many.abandon()
    many.abandon()
    ((speeds, _),) = heard
    assert list(speeds) == ["2.0"]


def test_what_cannot_be_measured_is_left_out(tmp_path: Path) -> None:
    one = gauge(1, [], ("synthetic:size=9", SMALL))
    share, told_of = one.hand("a"), list[Json]()
    assert share is not None
    share["nets"][0][3] = 1  # no map is left of pictures of one pixel
    prepare(SMALL, tmp_path)
    config = {"measure": share, "place": dataclasses.asdict(place(tmp_path, tmp_path)), "stop": "stops/x"}
    take(config, told_of.append)
    ((_, found),) = told_of[0].items()
    assert sorted(found["nets"]) == ["0.5", "1.0"]
    assert list(found["data"]) == [SMALL]
    speed = Speed(*found["nets"]["0.5"])
    assert 0 < speed.slowest <= speed.train <= speed.fastest
    assert speed.evaluate > 0


def drive(folder: str) -> None:
    """Measure and train two cells by real Ray, and print what was heard."""
    from sweeps import cluster, tasks

    data, trial, events, found = Path(folder), trial_of("allconv with dropout"), Counter[str](), list[int]()
    prepare(SMALL, data)
    cells = tuple(dataclasses.replace(trial.cell, label=f"{n}", net=trial.cell.net.width(n)) for n in (1.0, 0.5))
    tasks.connect("local", 2)
    session = Session(
        Sweep("s", "demo", cells), Ledger(folder), place(data, data), Resources(),
        lambda event, trial, news: events.update([event + (f" {news['epoch']:g}" if event == "epoch" else "")]),
        "now", {},
    )  # fmt: skip
    items = {cell.label: (dataclasses.replace(trial, cell=cell), 4, 32) for cell in cells}
    session.gauge = Gauge(items, (), lambda speeds, _: found.append(len(speeds)), 2, first=True)
    cluster.drive(session)
    tasks.leave()
    print(json.dumps([dict(events), found, session.epochs, session.errors]))


def test_the_driver_hears_of_each_epoch_and_each_measurement(tmp_path: Path) -> None:
    code = "import sys; from test_gauge import drive; drive(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=280,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}/tests:{ROOT}"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events, found, epochs, errors = json.loads(done.stdout.strip().splitlines()[-1])
    assert errors == []
    assert found == [2]
    assert events == {"started": 2, "epoch 1": 2, "epoch 2": 2, "epoch 3": 2, "done": 2}
    assert epochs == 6
