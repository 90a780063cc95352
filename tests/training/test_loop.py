"""The optimisers against torch's own, and what a worker does not load."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, Recipe
from sweeps.training.optim import Optimiser

SGD, ADAM = ALLCONV, IMAGENET_ADAM


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    last = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(each) for each in (torch.randn(5, 7), last, torch.randn(9))]


def theirs(recipe: Recipe, of: list[nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimiser != "sgd":
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser](of, fused=True)
    return torch.optim.SGD(
        of, 0.1, momentum=recipe.momentum, dampening=recipe.dampening, nesterov=recipe.nesterov, fused=True
    )


@pytest.mark.parametrize(
    "recipe",
    [ADAM, SGD, replace(SGD, momentum=0.0, dampening=0.0), replace(SGD, momentum=0.9, dampening=0.5),
     replace(ADAM, optimiser="adamw"), replace(SGD, nesterov=True)],
    ids=["adam", "sgd", "no momentum", "dampened", "adamw", "nesterov"],
)  # fmt: skip
def test_optimiser_is_that_of_torch_bit_for_bit_also_when_restored(recipe: Recipe) -> None:
    mine, yours = parameters(), parameters()
    ours, peer = Optimiser(recipe, mine), theirs(recipe, yours)
    for step in range(6):
        for a, b in zip(mine, yours, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        if step == 3:
            saved = {
                f"{n}/{name}": tensor.clone() for name, each in ours.state.items() for n, tensor in enumerate(each)
            }
            ours = Optimiser(recipe, mine)
            ours.restore(saved)
        rate, decay = 0.1 / (step + 1), 1e-3 * (step % 2)
        ours.step(rate, decay)
        for group in peer.param_groups:
            group["lr"], group["weight_decay"] = rate, decay
        peer.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))
    assert sorted(ours.state) == sorted(peer.state[yours[0]])


def test_a_worker_trains_without_the_compiler_of_torch() -> None:
    code = (
        "import sys, torch\nfrom crelu_models import PAPER\nfrom crelu_models.modules import build, initialise\n"
        "from sweeps.experiment.recipe import ALLCONV\n"
        "from sweeps.training.loop import Learner\nimport sweeps.execution.rank_processes\n"
        "net = PAPER['S2'].crelu(1, 2).width(0.1)\nmodel = build(net, 10)\ninitialise(model, net, 'he_fan_in', 0)\n"
        "learner = Learner(model, ALLCONV, seed=0, steps=9, precision='bf16')\n"
        "learner.step(torch.randn(4, 3, 32, 32), torch.arange(4))\n"
        "assert learner.sums[0] > 0\nassert not {'torch._dynamo', 'sympy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
