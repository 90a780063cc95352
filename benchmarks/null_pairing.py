"""Do pairing's p values keep their word? Random layers, which pair by chance alone, through the job's own function.

    python -m benchmarks.null_pairing --layers 1000

Every layer is drawn anew from N(0, 1) and compared with draws of its own. Counted is how often p is at most .05, which
may be 5 % and two standard errors. Exit code 1 where it is more. "below" counts filters: ties make it reject less.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch

from sweeps.analysis.pairing_scores import DRAWS, compare

SHAPES = {"CIFAR conv1": (96, 3, 3, 3), "ImageNet conv1": (96, 3, 11, 11), "ImageNet conv2": (96, 96, 1, 1)}


def main() -> int:
    """Print the share of rejected random layers of each shape; return 1 where one is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    most = 0.05 + 2 * math.sqrt(0.05 * 0.95 / options.layers)
    print(f"{options.layers} random layers, {options.draws} draws each; at most {100 * most:.1f} %\n")
    print(f"{'layer':<16} {'shape':<16} {'mean':>7} {'KS':>7} {'below':>7}")
    failed = False
    for name, shape in SHAPES.items():
        stream = torch.Generator().manual_seed(len(name))
        weights = (torch.randn(shape, generator=stream) for _ in range(options.layers))
        tests = [compare(weight, options.draws, seed).contrast for seed, weight in enumerate(weights)]
        rejected = [sum(getattr(test, p) <= 0.05 for test in tests) / len(tests) for p in ("p", "ks_p", "below_p")]
        failed |= max(rejected) > most
        shown = " ".join(f"{100 * share:>5.1f} %" for share in rejected)
        print(f"{name:<16} {' x '.join(map(str, shape)):<16} {shown}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
