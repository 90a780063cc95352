"""Run the benchmarks that need no GPU, one after another, each in a process of its own: make bench."""

import subprocess
import sys

QUESTIONS = (
    ("bench_crelu", "--quick", "--rounds", "3"),
    ("bench_loader", "--sets", "256-jpeg", "32-pixels", "--ends", "views", "--rounds", "3"),
    ("bench_overhead", "--trials", "200", "--peer", "20"),
    ("bench_search", "--cells", "10", "--trials", "20"),
    ("bench_report", "--runs", "1000"),
    ("bench_statistics", "--sweeps", "2000"),
    ("null_factors", "--grids", "20000"),
    ("bench_sharing", "--pictures", "1280", "--rounds", "1"),
    ("bench_store", "--trials", "16", "--seconds", "20", "--drivers", "1"),
    ("bench_scale",),
    ("fuzz", "--inputs", "10000"),
    ("simulate_queue", "--worlds", "1000"),
)

if __name__ == "__main__":
    failed = 0
    for name, *arguments in QUESTIONS:
        print(f"\n{name} {' '.join(arguments)}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=False).returncode != 0
    sys.exit(failed)
