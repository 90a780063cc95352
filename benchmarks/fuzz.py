"""Does any border answer bad input with more than a sentence? Mutated files and words, counted.

    python -m benchmarks.fuzz --inputs 20000 --seed 0

Borders: checkpoints, sidecars, .beton tables, trials, plans, nets, results and capsules of a stranger, those also with
digests that fit what was changed, and --set words. Each must be taken as valid or refused by ValueError; any other
exception, a hang, or code that runs is a finding.
"""

from __future__ import annotations

import argparse
import sys

from tests.support.bad_inputs import fuzz


def main() -> int:
    """Print how many inputs ended how; return 1 where one was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, findings = fuzz(options.inputs, options.seed)
    for name, count in sorted(counts.items()):
        print(f"{name:<22}{count:>8}")
    print("\n".join(findings[:20]))
    print(f"{options.inputs} bad inputs, {len(findings)} findings")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
