"""Modules of models: weights by seed, dropout by key, and what is said of a factory that does not serve."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from crelu_models.dropout import seed_dropout
from crelu_models.from_factory import ModelDropout, build_model, keyed
from crelu_models.measure_model import measure
from crelu_models.model import Model
from tests.support.user_models import Small

USERS = "tests.support.user_models"
PICTURES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def small(**arguments: object) -> Model:
    return Model(f"{USERS}:small", **arguments)  # type: ignore[arg-type]


def test_weights_follow_the_seed_and_leave_the_generators_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr,index]
    first, again, other = (build_model(small(), 5, seed).state_dict() for seed in (3, 3, 4))
    torch.manual_seed(99)
    late = build_model(small(), 5, 3).state_dict()
    assert all(torch.equal(first[name], again[name]) and torch.equal(first[name], late[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    torch.set_rng_state(states[0])
    build_model(small(), 5, 7)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    assert random.getstate() == states[2]


def test_dropout_is_replaced_where_it_stands() -> None:
    model = build_model(small(rate=0.25), 5, 0)
    layers = [layer for layer in model.modules() if isinstance(layer, ModelDropout)]
    assert [(layer.name, layer.rate, layer.channels) for layer in layers] == [
        ("body.3", 0.25, True),
        ("drop", 0.25, False),
    ]
    assert not any(isinstance(layer, nn.Dropout | nn.Dropout2d) for layer in model.modules())
    assert isinstance(keyed(nn.Dropout(0.1)), ModelDropout)


def test_dropout_that_code_holds_in_a_list_too_is_one_layer_with_its_mode_and_hooks() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5).eval())
    steps = [*net]
    calls: list[int] = []
    steps[1].register_forward_hook(lambda *_: calls.append(1))
    x = torch.ones(8, 3)
    keyed(net)
    assert isinstance(net[1], ModelDropout)
    assert steps[1] is net[1]
    assert torch.equal(steps[1](x), x)
    assert calls == [1]
    assert not torch.equal(net.train()[1](x), x)


def test_a_rate_that_code_sets_during_training_counts() -> None:
    layer = keyed(nn.Dropout(0.5)).train()
    layer.p = 1.0  # type: ignore[assignment]
    assert not layer(torch.ones(8, 3)).any()
    layer.p = 0.0  # type: ignore[assignment]
    assert layer(torch.ones(8, 3)).all()


def outputs(model: nn.Module, rows: slice, step: int = 0) -> torch.Tensor:
    batch = len(PICTURES)
    part = PICTURES[rows]
    seed_dropout(model, 7, 0, step, rows.start or 0, batch, len(part))
    return model.train()(part)  # type: ignore[no-any-return]


def test_masks_follow_the_key_and_ranks_take_their_rows_of_them() -> None:
    model = build_model(small(rate=0.5), 5, 0)
    model.body[1] = nn.Identity()  # type: ignore[index] # batch norm would tie the rows
    expected = outputs(model, slice(0, 6))
    torch.manual_seed(5)
    assert torch.equal(expected, outputs(model, slice(0, 6)))
    assert not torch.equal(expected, outputs(model, slice(0, 6), step=1))
    parts = torch.cat([outputs(model, slice(0, 2)), outputs(model, slice(2, 6))])
    assert torch.allclose(expected, parts, atol=1e-6)


def test_a_picture_of_several_rows_gets_all_of_them() -> None:
    layer = ModelDropout(0.5, "a", channels=False, alpha=False).train()
    windows = torch.ones(12, 5)  # two of each of six pictures
    layer.seed(3, 0, 6, 6)
    expected = layer(windows)
    layer.seed(3, 4, 6, 2)
    assert torch.equal(layer(windows[8:]), expected[8:])


@pytest.mark.parametrize("make", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_keyed_dropout_is_distributed_as_torchs(make: type[nn.Module]) -> None:
    x = torch.randn(4000, 6, 4, 4) if make is nn.Dropout2d else torch.randn(8000, 6, 8)
    ours = keyed(make(0.3)).train()
    theirs = make(0.3).train()
    seed_dropout(ours, 1, 0, 0)
    a, b = ours(x), theirs(x)
    assert a.mean().item() == pytest.approx(b.mean().item(), abs=0.03)
    assert a.std().item() == pytest.approx(b.std().item(), abs=0.03)
    flat_a, flat_b = a.flatten(2), b.flatten(2)
    constant = [(flat == flat[..., :1]).all(-1).double() for flat in (flat_a, flat_b)]  # of a picture's channels
    assert constant[0].mean().item() == pytest.approx(constant[1].mean().item(), abs=0.03)
    assert constant[0].mean(1).std().item() == pytest.approx(constant[1].mean(1).std().item(), abs=0.03)
    assert torch.equal(ours.eval()(x), x)


def test_dropout_of_nothing_and_of_all() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(ModelDropout(0.0, "a", False, False).train()(x), x)
    assert torch.equal(ModelDropout(1.0, "a", False, False).train()(x), torch.zeros(4, 3))


@pytest.mark.parametrize("make", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_dropout_in_place_changes_what_it_reads(make: Callable[..., nn.Module]) -> None:
    x = torch.randn(4, 3, 4, 4, requires_grad=True)
    results = []
    for inplace in (False, True):
        layer = keyed(make(0.5, inplace=inplace)).train()
        seed_dropout(layer, 1, 0, 0)
        read = 2 * x
        result = layer(read)
        assert (result is read) == inplace
        results.append((result, *torch.autograd.grad(result.square().sum(), x)))
    assert all(torch.equal(plain, changed) for plain, changed in zip(*results, strict=True))


def gradients(again: bool) -> list[torch.Tensor]:
    model = build_model(Model(f"{USERS}:tied", rate=0.5, again=again), 4, 0)
    outputs(model, slice(0, 6)).square().sum().backward()
    return [value.grad for value in model.parameters() if value.grad is not None]


def test_what_is_computed_again_in_the_backward_pass_drops_the_same() -> None:
    plain, again = gradients(False), gradients(True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))


def test_a_train_that_returns_nothing_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "train", lambda net, mode=True: nn.Module.train(net, mode) and None)
    assert measure(small(), 5, 16)


def test_counts_are_those_of_the_modules() -> None:
    parameters, macs, maps = measure(small(), 5, 16)
    assert parameters == sum(value.numel() for value in build_model(small(), 5, 0).parameters())
    assert macs == 7 * 7 * 8 * 27 + 8 * 8 + 8 * 5
    assert maps > 3 * 7 * 7 * 8
    frozen = measure(small(freeze=True), 5, 16)
    assert parameters - frozen[0] == 8 * 27 + 8
    assert measure(Model(f"{USERS}:meta_shy"), 5, 16)[0] == parameters


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pair", r"gives a tuple in training, not scores of shape \(n, 5\)"),
        ("thousand", r"gives \(2, 1000\) of float32 in training, not scores of shape \(2, 5\)"),
        ("without_classes", "does not take num_classes: TypeError: .*unexpected keyword argument"),
        ("failing", r"fails: KeyError: 'b5'"),
        ("no_module", "returns a list, not a torch.nn.Module"),
        ("ends", "fails: SystemExit: 4"),
        ("smal", "has no 'smal'; did you mean 'small'"),
    ],
)
def test_a_factory_that_does_not_serve_says_why(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        measure(Model(f"{USERS}:{name}"), 5, 16)


def test_pictures_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"fails on pictures \(2, 3, 2, 2\): RuntimeError: .*\(user_models.py, line"):
        measure(small(), 5, 2)
