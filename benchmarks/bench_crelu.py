"""What does CReLU cost? Its definition, other exact forms and ours: time forward and backward, memory kept and at most.

    python -m benchmarks.bench_crelu            on the CPU, and on a GPU where there is one
    python -m benchmarks.bench_crelu --quick    the size of the goal alone

All forms are equal bit for bit in value and gradient. They take turns in one process; a ratio is the definition's time
over a form's, the median and the least of the rounds. `kept` is what stays until the backward pass, with the output,
which the next convolution keeps anyway; `most` is what is allocated at the worst moment, x and the incoming gradient
not counted. On the CPU every size is measured by one thread, as a trial has, and by all; and each twice: with the
allocator as a process finds it, which gives large tensors back to the system, and as a worker of ours sets it, which
keeps them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from crelu_models.activations import crelu
from sweeps.training.runtime import keep_memory

Form = Callable[[Tensor], Tensor]
GOAL = (64, 96, 54, 54)
SIZES = (
    GOAL,
    (32, 96, 32, 32),
    (250, 24, 32, 32),
    (32, 24, 32, 32),
    (64, 256, 13, 13),
    (32, 48, 16, 16),
    (32, 48, 8, 8),
    (8, 256, 4, 4),
    (2, 4, 8, 8),
)
LAYOUTS = {"nchw": torch.contiguous_format, "channels last": torch.channels_last}


def definition(x: Tensor) -> Tensor:
    """Return CReLU as the paper defines it."""
    return torch.cat([torch.relu(x), torch.relu(-x)], 1)


def outside(x: Tensor) -> Tensor:
    """Return it with one ReLU around the concatenation."""
    return torch.relu(torch.cat([x, -x], 1))


def in_place(x: Tensor) -> Tensor:
    """Return it with that ReLU in place."""
    return torch.cat([x, -x], 1).relu_()


FORMS: dict[str, Form] = {"definition": definition, "relu(cat)": outside, "relu_(cat)": in_place, "ours": crelu}


def inputs(
    shape: tuple[int, ...], layout: torch.memory_format, kind: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Return x, and a gradient by its CReLU."""
    n, k, *rest = shape
    x, gradient = torch.randn(shape, device=device), torch.randn((n, 2 * k, *rest), device=device)
    x, gradient = (each.to(kind).contiguous(memory_format=layout) for each in (x, gradient))
    return x.requires_grad_(), gradient


def once(form: Form, x: Tensor, gradient: Tensor) -> None:
    """Go forward and backward."""
    x.grad = None
    form(x).backward(gradient)


def saved_bytes(form: Form, x: Tensor) -> int:
    """Return the bytes that stay until the backward pass, the output among them."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = form(x)
    sizes[y.data_ptr()] = y.nbytes
    sizes.pop(x.data_ptr(), None)
    return sum(sizes.values())


def most(form: Form, x: Tensor, gradient: Tensor) -> int:
    """Return the bytes allocated at the worst moment of going forward and backward."""
    x.grad = None
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(form, x, gradient)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        once(form, x, gradient)
    changes = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = worst = 0
    for _, change in sorted(changes):
        total += change
        worst = max(worst, total)
    return worst


def seconds(form: Form, x: Tensor, gradient: Tensor, times: int) -> float:
    """Return the seconds of one pass forward and backward, the median of `times` after one that warms up."""
    durations = []
    for number in range(times + 1):
        began = time.perf_counter()
        once(form, x, gradient)
        if x.is_cuda:
            torch.cuda.synchronize()
        if number:
            durations.append(time.perf_counter() - began)
    return median(durations)


def compare(device: str, sizes: tuple[tuple[int, ...], ...], rounds: int) -> None:
    """Print one table."""
    print(f"{'':<42}{'ms':>9}" + "".join(f"{name:>20}" for name in FORMS if name != "definition"))
    for kind in (torch.float32, torch.bfloat16):
        for layout, memory_format in LAYOUTS.items():
            for shape in sizes:
                x, gradient = inputs(shape, memory_format, kind, device)
                durations: dict[str, list[float]] = {name: [] for name in FORMS}
                for _ in range(rounds):
                    for name, form in FORMS.items():
                        durations[name].append(seconds(form, x, gradient, 3 if x.nbytes > 1 << 24 else 25))
                where = f"{shape!s:<20}{str(kind)[6:]:<9}{layout:<13}"
                print(f"{where}{1e3 * median(durations['definition']):>9.3f}", end="")
                for name in FORMS:
                    if name != "definition":
                        ratios = [a / b for a, b in zip(durations["definition"], durations[name], strict=True)]
                        print(f"{median(ratios):>13.2f} ({min(ratios):.2f})", end="")
                print(flush=True)
    x, gradient = inputs(GOAL, torch.channels_last, torch.float32, device)
    for name, form in FORMS.items():
        held, worst = saved_bytes(form, x) / 2**20, most(form, x, gradient) / 2**20
        print(f"{name:<20}kept {held:.0f} MiB, at most {worst:.0f} MiB at {GOAL}")


def main() -> None:
    """Measure on every device that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the size of the goal alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    options = parser.parse_args()
    sizes = SIZES[:1] if options.quick else SIZES
    print("The definition's time over each form's: median of the rounds (least).")
    for allocator in ("as a process finds it", "as a worker of ours sets it"):
        for threads in options.threads:
            torch.set_num_threads(threads)
            print(f"\nThe allocator {allocator}, threads: {threads}")
            compare("cpu", sizes, options.rounds)
        keep_memory()
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        compare("cuda", sizes, options.rounds)
    else:
        print("no GPU here: skipped")


if __name__ == "__main__":
    main()
