"""Training functions of a user, for tests: each is named as "tests.support.own_tasks:NAME"."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tests.support.trials import Killed


def share_right(model: torch.nn.Module, part: Any) -> float:
    """Return the share of pictures of a part that a net puts in their class."""
    model.eval()
    with torch.no_grad():
        right = [(model(views).argmax(1) == labels).float() for views, labels in part.batches()]
    return float(torch.cat(right).mean())


def train(trial: Any, data: Any, run: Any) -> dict[str, Any]:
    """Train the cell's net by AdamW, with noise from torch's own generator."""
    model = trial.model().to(run.device)
    optimiser = torch.optim.AdamW(model.parameters(), trial.recipe.lr)
    if state := run.resumed:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    for epoch in run.epochs():
        model.train()
        total = 0.0
        for views, labels in data.batches(epoch):
            loss = functional.cross_entropy(model(views + 0.01 * torch.randn_like(views)), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        run.report(epoch, {"train/loss": total / data.steps, "val/right": share_right(model, data.held_out)})
        run.checkpoint({"model": model.state_dict(), "optimiser": optimiser.state_dict()})
    (run.folder / "notes.txt").write_text(trial.label)
    return {"test/right": share_right(model, data.test)} if data.has_test else {}


def train_exactly(trial: Any, data: Any, run: Any) -> dict[str, Any]:
    """Do the same, and say that it resumes exactly."""
    run.exact()
    return train(trial, data, run)


def scores(trial: Any, data: Any, run: Any) -> dict[str, float]:
    """Report a value that rises by .02 an epoch."""
    for epoch in run.epochs():
        run.report(epoch, {"val/right": len(trial.net.rows) / 100 + epoch / 50})
    return {"test/right": 0.5} if data.has_test else {}


def values(trial: Any, data: Any, run: Any) -> Any:
    """Report and return what the test has put into VALUES."""
    for epoch, row in enumerate(VALUES["rows"]):
        run.report(epoch, row)
    return VALUES["returned"]


VALUES: dict[str, Any] = {"rows": [], "returned": {}}


def nan_at_first(trial: Any, data: Any, run: Any) -> dict[str, float]:
    """Report a number that is none, for the trial's own seed alone."""
    run.report(0, {"val/right": float("nan") if trial.seed == 3 else 0.5})
    return {"test/right": 0.25}


def swallows(trial: Any, data: Any, run: Any) -> dict[str, float]:
    """Report a number that is none, and put the error away."""
    try:
        run.report(0, {"val/right": float("inf")})
    except Exception as error:
        raise KeyError("mine") from error
    return {}


def killed(trial: Any, data: Any, run: Any) -> dict[str, Any]:
    """Train, and be killed after the second epoch, in the first process."""
    save = run.checkpoint

    def checkpoint(state: object) -> None:
        save(state)
        if len(run._state.history) == 2 and run.resumed is None:
            raise Killed

    run.checkpoint = checkpoint
    return train(trial, data, run)


def raises(trial: Any, data: Any, run: Any) -> dict[str, float]:
    """Fail as the test asks."""
    raise VALUES["error"]
