"""Errors and scores of a net in evaluation mode: top-1, top-5, centre crop and ten crops (section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Pictures in a forward pass. Fixed, because another number may change the last bit of a score.
BATCH = 250

# One epoch of a trial's history: numbers by metric name.
Row = dict[str, float]


class Errors(NamedTuple):
    """Mean cross-entropy (nats) and errors in percent, as the paper prints them."""

    loss: float
    top1: float
    top5: float


def precision_of(precision: str, device: torch.device) -> str:
    """Return what a recipe's precision is on a device; "auto" is bf16 where the device computes in it, else fp32.

    TF32 is a GPU's, from Ampere on; elsewhere fp32 takes its place.
    """
    if precision == "tf32":
        has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "tf32" if has_tf32 else "fp32"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a net computes in `precision` on `device`.

    Products of fp32 numbers are rounded to TF32 for "tf32" alone: in this context, and then until the next one, since
    the backward pass comes after it.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = autocast_type(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def autocast_type(precision: str) -> torch.dtype | None:
    """Return the type in which a net's products are computed in `precision`; None for that of its weights."""
    return torch.bfloat16 if precision == "bf16" else None


def counts(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (summed cross-entropy, wrong top-1, wrong top-5) of `scores` (n, c) as float64 on their device."""
    scores = scores.detach().float()
    loss = functional.cross_entropy(scores, labels, reduction="sum")
    return torch.cat([loss.double()[None], misses(scores, labels)])


def misses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many of `scores` (n, c) are wrong top-1 and top-5, as float64 on their device.

    Labels (n,) are classes; of shares of the classes (n, c) the largest counts.
    """
    scores = scores.float()
    labels = labels.argmax(1) if labels.dim() == 2 else labels
    true = scores.gather(1, labels[:, None])
    # A class ranks before the true one where its score is higher, or equal and its index lower.
    index = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > true) | ((scores == true) & (index < labels[:, None]))
    rank = before.sum(1)
    # No class ranks before a score that is no number.
    invalid = ~torch.isfinite(true[:, 0])
    return torch.stack([((rank >= 1) | invalid).sum(), ((rank >= 5) | invalid).sum()]).double()


def choices(scores: Tensor, classes: int) -> Tensor:
    """Return how many of `scores` (n, c) are highest for each of so many classes, on their device.

    A histogram of torch's makes the host wait for a GPU, twice.
    """
    return (scores.argmax(1)[:, None] == torch.arange(classes, device=scores.device)).sum(0)


def errors(total: Tensor, pictures: int) -> Errors:
    """Return the errors that summed `counts` over this many pictures come to."""
    loss, top1, top5 = (total / pictures).tolist()
    return Errors(loss, 100 * top1, 100 * top5)


def chance(label_counts: Sequence[int]) -> Errors:
    """Return the errors of guessing on a set with so many pictures of each class.

    A net that has learned nothing but the classes' shares has their entropy as its loss, and is right on the largest
    class; with C equal classes that is ln(C) and 100 (1 - 1/C) percent.
    """
    total = sum(label_counts)
    shares = sorted((count / total for count in label_counts if count), reverse=True)
    entropy = -sum(share * math.log(share) for share in shares)
    return Errors(entropy, *wrong_guesses(label_counts, label_counts))


def wrong_guesses(learned: Sequence[int], tested: Sequence[int]) -> tuple[float, float]:
    """Return the top-1 and the top-5 error of guessing, in percent, on a set with `tested` pictures of each class.

    The guess is the class, or the five classes, with the most training pictures by `learned`. Among equal classes it is
    the one of lower index, as for a net with equal scores.
    """
    order = sorted(range(len(learned)), key=lambda label: -learned[label])
    total = sum(tested)
    shares = [tested[label] / total for label in order]
    return 100 * (1 - shares[0]), 100 * max(0.0, 1 - sum(shares[:5]))


def beats(top1: float, pictures: int, guessing: Errors) -> bool:
    """Return whether an error in percent on so many pictures is below that of guessing by three standard errors."""
    share = guessing.top1 / 100
    return top1 / 100 < share - 3 * math.sqrt(share * (1 - share) / pictures)


def best_epoch(history: Sequence[Row]) -> Row:
    """Return the row of least held-out error; of equal ones that of least loss, and then the later."""
    return min(history, key=lambda row: (row["val/top1_err"], row["val/loss"], -row["epoch"]))


def score(model: nn.Module, views: Iterable[Tensor], precision: str) -> Iterator[Tensor]:
    """Yield the class scores (n, c) in float32 of each batch of float pictures (n, 3, h, w), in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        for view in views:
            with autocast(precision, view.device):
                scores = model(view)
            yield scores.float()


def ten_crop_scores(views: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (mean softmax, mean score) over the scores (n, c) of a batch in ten views; the paper's is the first."""
    mean_softmax: Tensor | None = None
    mean_score: Tensor | None = None
    for number, scores in enumerate(views, 1):
        softmax = scores.softmax(1)
        mean_softmax = softmax if mean_softmax is None else mean_softmax + (softmax - mean_softmax) / number
        mean_score = scores if mean_score is None else mean_score + (scores - mean_score) / number
    assert mean_softmax is not None
    assert mean_score is not None
    return mean_softmax, mean_score


def dead(scores: Tensor) -> bool:
    """Return whether a net gives all of at least two pictures the same scores, as one does that has died."""
    return len(scores) > 1 and bool((scores == scores[:1]).all())
