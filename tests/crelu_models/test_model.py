"""Models as values: what describes one, its JSON, and what is refused."""

import json
import pickle
import subprocess
import sys
from typing import Any

import pytest

from crelu_models.model import Model, Placement

RESNET = Model("torchvision.models:resnet18", size=64, zero_init_residual=True)


def test_a_model_is_what_it_says() -> None:
    assert RESNET.name == "resnet18(zero_init_residual=True)"
    assert Model("nets:small").name == "small"
    assert RESNET.arguments == {"zero_init_residual": True}
    assert str(RESNET) == "torchvision.models:resnet18(size=64, zero_init_residual=True)"
    assert RESNET.to_json() == {
        "kind": "model",
        "factory": "torchvision.models:resnet18",
        "size": 64,
        "arguments": {"zero_init_residual": True},
        "placements": [],
    }


def test_placements_are_kept_in_order_and_at_gives_them_a_place() -> None:
    placed = RESNET.at("layer*.*.relu").activation("crelu", width=0.5).avr("relu")
    assert placed.placements == (Placement("crelu", ("layer*.*.relu",), 0.5), Placement("avr", ("relu",), 1.0))
    assert placed.name.endswith(".crelu(layer*.*.relu, width=0.5).avr(relu)")
    assert RESNET.placements == ()
    assert RESNET.at("a") == RESNET


@pytest.mark.parametrize(
    "model",
    [
        Model("nets:small"),
        RESNET,
        Model("nets:small", depths=(2, 2), ratio=0.1, name=None, deep={"a": [1, "b"]}),
        RESNET.activation("nets:Squash", "a.*", "b", width=2),
    ],
)
def test_json_gives_the_same_model(model: Model) -> None:
    again = Model.from_json(json.loads(json.dumps(model.to_json())), model.name)
    assert again == model
    assert hash(again) == hash(model)
    assert (again.name, again.to_json()) == (model.name, model.to_json())
    assert pickle.loads(pickle.dumps(model)) == model


def test_what_changes_a_model_changes_its_value() -> None:
    models = [
        Model("a:b"), Model("a:c"), Model("a:b", size=8), Model("a:b", depth=1), Model("a:b", depth=2),
        Model("a:b").avr("x"), Model("a:b").avr("y"), Model("a:b").activation("avr", "x", width=0.5),
    ]  # fmt: skip
    assert len(set(models)) == len(models)
    assert Model("a:b", x=1, y=2) == Model("a:b", y=2, x=1)
    assert Model("a:b", depth=1).with_arguments(depth=2, rate=0.5) == Model("a:b", depth=2, rate=0.5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Model("resnet18"), 'code is named as "module:function"'),
        (lambda: Model("a:b", size=-1), "1 to 4096, not -1"),
        (lambda: Model("a:b", size=True), "1 to 4096, not True"),
        (lambda: Model("a:b", num_classes=3), "is given num_classes by the data set"),
        (lambda: Model("a:b", norm=print), "norm of a:b is a number, a word"),
        (lambda: Model("a:b", rate=float("nan")), "not nan"),
        (lambda: Model("a:b", table={1: 2}), "table of a:b"),
        (lambda: Model("a:b").activation("crelu"), "give the modules' names or globs"),
        (lambda: Model("a:b").activation("crelu", "x", width=0), "a width is a finite factor above 0"),
        (lambda: Model("a:b").activation("x y:z", "x"), "code is named as"),
        (lambda: Model("a:b").dropout(0.5, "conv1"), "a model has its own dropout layers"),
        (lambda: Model.from_json({"rows": [], "size": 3}), "a model in JSON is an object of kind, factory"),
        (lambda: Model.from_json(Model("a:b").to_json() | {"size": "64"}), "a model in JSON is"),
        (lambda: Model.from_json(Model("a:b").to_json() | {"placements": [1]}), "not a model in JSON"),
    ],
)
def test_what_is_no_model_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_model_imports_nothing_heavy() -> None:
    code = "import sys\nfrom sweeps import Model\nModel('torchvision.models:vit_b_16')\nprint(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "numpy"} & set(eval(done.stdout))
