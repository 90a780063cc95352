"""Errors and scores of a net on pictures it has not seen: top-1, top-5, centre crop and ten crops (section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Pictures in one forward pass of an evaluation. Fixed: another size may change the last bit of a score.
BATCH = 250


class Errors(NamedTuple):
    """Mean cross-entropy (nats) and errors in percent, as the paper prints them."""

    loss: float
    top1: float
    top5: float


def precision_of(precision: str, device: torch.device) -> str:
    """Return "bf16" or "fp32" for a recipe's precision; "auto" is bf16 where the device computes in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a net computes in `precision` on `device`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def counts(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (summed cross-entropy, wrong top-1, wrong top-5) of `scores` (n, c) as float64 on their device."""
    scores = scores.detach().float()
    loss = functional.cross_entropy(scores, labels, reduction="sum")
    return torch.cat([loss.double()[None], misses(scores, labels)])


def misses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many of `scores` (n, c) are wrong top-1 and top-5, as float64 on their device."""
    scores = scores.float()
    own = scores.gather(1, labels[:, None])
    # A class counts before the true one if it scores higher, or equal at a lower index; NaN never wins.
    index = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (index < labels[:, None]))
    rank = before.sum(1)
    wrong = ~torch.isfinite(own[:, 0])
    return torch.stack([((rank >= 1) | wrong).sum(), ((rank >= 5) | wrong).sum()]).double()


def errors(total: Tensor, pictures: int) -> Errors:
    """Return the errors in percent that summed `counts` over `pictures` pictures amount to."""
    loss, top1, top5 = (total / pictures).tolist()
    return Errors(loss, 100 * top1, 100 * top5)


def score(model: nn.Module, views: Iterable[Tensor], precision: str) -> Iterator[Tensor]:
    """Yield the class scores (n, c) in float32 of each batch of float pictures (n, 3, h, w), in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        for view in views:
            with autocast(precision, view.device):
                scores = model(view)
            yield scores.float()


def ten_crop_scores(found: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (mean softmax, mean score) over the scores of ten views of one batch, each (n, c).

    The paper's is the first.
    """
    softmax: Tensor | None = None
    raw: Tensor | None = None
    for number, scores in enumerate(found, 1):
        probabilities = scores.softmax(1)
        softmax = probabilities if softmax is None else softmax + (probabilities - softmax) / number
        raw = scores if raw is None else raw + (scores - raw) / number
    assert softmax is not None
    assert raw is not None
    return softmax, raw


def dead(scores: Tensor) -> bool:
    """Return whether a net gives every one of at least two pictures the same scores: it has died."""
    return len(scores) > 1 and bool((scores == scores[:1]).all())
