"""What do the paper's theorems say in numbers? Propositions 2.1, A.5, C.1, and Theorem 4.1 with its counterexample.

Proposition 2.1 is exact. Theorem A.5 holds in every case tried, and for all but few filters says nothing. Theorem C.1
holds for squared norms. Theorem 4.1 is false as stated: the ratio that it bounds by 1 is sqrt(2) for one function with
values (1, -1); up to a constant below 4 it stands.

Without a run all is drawn at random; with a run A.5 and 4.1 are tried on its conv1 filters and embedded pictures.

    python -m sweeps.analysis.theory
    python -m sweeps.analysis.theory --sweep imagenet_placement
"""

import argparse

from sweeps.analysis.job import Job, main, parser

JOB = Job("theory", "sweeps.analysis.theory_checks:findings", alone=True)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of this job."""
    return parser(JOB, __doc__)


if __name__ == "__main__":
    main(JOB, arguments())
