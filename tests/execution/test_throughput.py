"""What workers measure before they train: dealt, handed out, told; and by real Ray, that each epoch is heard."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from data.datasets import dataset
from data.write import prepare
from sweeps.cli.forecast import FIXED, Forecast, pictures
from sweeps.cli.options import parser
from sweeps.cli.settings import settle
from sweeps.execution.price import Speed
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.execution.throughput import Gauge, Maker, take
from sweeps.experiment.plan import Sweep, plan
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json, Ledger
from tests.support.trials import SMALL, runtime_config, trial_of

ROOT = Path(__file__).parents[2]
Found = tuple[dict[str, Speed], dict[str, Maker]]


def nets(*widths: float) -> dict[str, tuple[Trial, int, int]]:
    base = trial_of("allconv with dropout")
    cells = {
        f"{width}": dataclasses.replace(base.cell, label=f"{width}", net=base.cell.net.width(width)) for width in widths
    }
    return {key: (dataclasses.replace(base, cell=cell), 4, 32) for key, cell in cells.items()}


def gauge(workers: int, heard: list[Found], data: tuple[str, ...] = (), **more: Any) -> Gauge:
    return Gauge(nets(1.0, 2.0, 0.5), data, lambda speeds, makers: heard.append((speeds, makers)), workers, **more)


def names(share: Json | None) -> list[str]:
    assert share is not None
    return [key for key, *_ in share["nets"]] + share["data"]


def told(start: float, **rates: float) -> Json:
    return {"start": start, "nets": {key: [rate, rate, rate, 1.0, 0.0] for key, rate in rates.items()}, "data": {}}


def test_measurements_are_dealt_largest_first_and_told_once() -> None:
    heard: list[Found] = []
    both = gauge(2, heard, ("pictures",), first=True, share=0.25)
    assert [names(both.hand("a")), names(both.hand("b"))] == [["1.0", "pictures"], ["2.0", "0.5"]]
    assert both.hand("c") is None
    assert not both.leave("c"), "what trains has measured nothing"
    both.hear({"start": 1.5, "nets": {"2.0": [9.0, 8.0, 10.0, 30.0, 0.0]}, "data": {}})
    assert both.leave("a")
    assert both.first
    assert not heard
    both.hear({"start": 2.5, "nets": {}, "data": {"pictures": [100.0, 8e9]}})
    assert both.leave("b")
    assert not both.first
    ((speeds, makers),) = heard
    assert makers == {"pictures": Maker(100.0, 2e9)}
    assert speeds == {"2.0": Speed(9.0, 8.0, 10.0, 30.0, 1.5)}, "of the others nothing was found"
    assert both.starts == [1.5, 2.5]


def test_more_workers_than_nets_and_a_tuner_that_is_gone() -> None:
    heard: list[Found] = []
    many = gauge(99, heard)
    shares = [names(many.hand(f"{number}")) for number in range(3)]
    assert shares == [["2.0"], ["1.0"], ["0.5"]]
    assert many.hand("4") is None
    many.hear(told(1.0, **{"2.0": 7.0}))
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
    config = {"measure": share, "place": dataclasses.asdict(runtime_config(tmp_path, tmp_path)), "stop": "stops/x"}
    take(config, told_of.append)
    ((_, found),) = told_of[0].items()
    assert sorted(found["nets"]) == ["0.5", "1.0"]
    assert list(found["data"]) == [SMALL]
    speed = Speed(*found["nets"]["0.5"])
    assert 0 < speed.slowest <= speed.train <= speed.fastest
    assert speed.evaluate > 0


def test_a_forecast_is_speeds_times_pictures_and_keeps_what_it_learns(tmp_path: Path) -> None:
    cells = tuple(trial.cell for trial, *_ in nets(1.0, 0.5).values())
    sweep = Sweep("s", "demo", cells)
    words = ["--price-per-gpu-hour", "36", "--output", str(tmp_path), "--profile", "demo"]
    settings = settle(cells, parser("s", "").parse_args(words))
    facts = {SMALL: dataset(SMALL, tmp_path)}
    todo = plan(sweep, settings.ledger, {})

    def made() -> Forecast:
        return Forecast(todo, settings, facts, "here", 0.0, 2)

    one = made()
    assert [trial.cell for trial, *_ in one.lacking().values()] == list(cells)
    assert one.sentence() == ""
    large, small = one.keys[cells[0].key], one.keys[cells[1].key]
    one.learn({large: Speed(10.0, 8.0, 20.0, 50.0, 3.0)}, 1)
    trial = todo.to_do[0]
    learned, evaluated = pictures(trial, facts[SMALL])
    price = one.price(trial)
    assert price is not None
    assert price.likely == learned / 10 + evaluated / 50 + FIXED
    assert (price.least, price.most) == (learned / 20 + evaluated / 50 + FIXED, learned / 8 + evaluated / 50 + FIXED)
    assert one.price(todo.to_do[1]) is None
    # One of two workers has started; the other is still to import what a trial needs.
    assert one.start() == 3.0
    assert one.sentence(one.start()) == (
        f"forecast for 1 trials: {(price.likely + 3) / 3600:.3g} hours of trials "
        f"({(price.least + 3) / 3600:.3g} to {(price.most + 3) / 3600:.3g}), "
        f"{(price.likely + 3) / 120:.1f} min with 2 at once, costs {(price.likely + 3) / 100:.2f} "
        f"({(price.least + 3) / 100:.2f} to {(price.most + 3) / 100:.2f}) at 36 an hour"
    )
    again = made()
    assert list(again.lacking()) == [small]
    assert again.rates() == {cells[0].key: 10.0}
    assert again.start() == 6.0


def drive(folder: str) -> None:
    """Measure and train two cells by real Ray, and print what was heard."""
    from sweeps.execution import ray_runtime, tuner

    data, trial, events, found = Path(folder), trial_of("allconv with dropout"), Counter[str](), list[int]()
    prepare(SMALL, data)
    cells = tuple(dataclasses.replace(trial.cell, label=f"{n}", net=trial.cell.net.width(n)) for n in (1.0, 0.5))
    ray_runtime.init_ray("local", 2)
    session = DriverState(
        Sweep("s", "demo", cells), Ledger(folder), runtime_config(data, data), TrialResources(),
        lambda event, trial, news: events.update([event + (f" {news['epoch']:g}" if event == "epoch" else "")]),
        "now", {},
    )  # fmt: skip
    items = {cell.label: (dataclasses.replace(trial, cell=cell), 4, 32) for cell in cells}
    session.gauge = Gauge(items, (), lambda speeds, _: found.append(len(speeds)), 2, first=True)
    tuner.run_trials(session)
    ray_runtime.shutdown_ray()
    print(json.dumps([dict(events), found, session.epochs, session.errors]))


def test_the_driver_hears_of_each_epoch_and_each_measurement(tmp_path: Path) -> None:
    code = "import sys; from tests.execution.test_throughput import drive; drive(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=400,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events, found, epochs, errors = json.loads(done.stdout.strip().splitlines()[-1])
    assert errors == []
    assert found == [2]
    assert events == {"started": 2, "epoch 1": 2, "epoch 2": 2, "epoch 3": 2, "done": 2}
    assert epochs == 6
