# PYTHON_ARGCOMPLETE_OK
"""Commands for data sets: python -m crelu_data prepare | verify | info | bench | pull | push."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from crelu_data.cores import cores
from crelu_data.datasets import (
    SPLITS,
    Sidecar,
    beton_path,
    check_data_dir,
    counted,
    data_dir,
    dataset,
    prepare_command,
    read_sidecar,
)
from crelu_data.interrupts import INTERRUPTED
from crelu_data.streams import make_lasting, shown_progress
from crelu_models.command_line import Parser, add_version, nonnegative_int, positive_int, python_command, sentence

_BENCH_PICTURES = 20_000  # that `bench` reads at least; a small set is repeated
_LONG = ("class_names", "label_counts")  # fields that `info` cuts to ten items
_NAMES = "synthetic[:size=72,train=3000,...] | cifar10 | cifar100 | imagenet[:size=N] | folder:PATH"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, or 2 after an error in one sentence, or 130 after Ctrl-C."""
    options = _parser(python_command("crelu_data")).parse_args(arguments)
    try:
        check_data_dir(data_dir(options.data_dir))
        verbs: dict[str, Callable[[argparse.Namespace], None]] = {
            "prepare": _prepare,
            "verify": _verify,
            "info": _info,
            "bench": _bench,
            "pull": _pull,
            "push": _push,
        }
        verbs[options.verb](options)
    except KeyboardInterrupt:
        again = "resumes" if options.verb == "pull" else "starts again"
        print(f"interrupted, and no incomplete file has a final name; the same command {again}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _parser(program: str = "python -m crelu_data") -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = Parser(prog=program, description=__doc__)
    add_version(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    prepare = verbs.add_parser("prepare", help="write NAME-{train,val,test}.beton and their sidecars")
    verify = verbs.add_parser("verify", help="check files completely: checksums, labels, decoding")
    info = verbs.add_parser("info", help="print the sidecars")
    bench = verbs.add_parser("bench", help="print pictures per second of each reader")
    pull = verbs.add_parser("pull", help="copy prepared files from shared storage to the data folder, once per machine")
    push = verbs.add_parser("push", help="copy prepared files from the data folder to shared storage")
    pull.add_argument("source", metavar="SOURCE", help="s3://BUCKET/PREFIX, or a folder")
    push.add_argument("target", metavar="DEST", help="s3://BUCKET/PREFIX, or a folder")
    for verb in (prepare, verify, info, bench):
        verb.add_argument("name", metavar="NAME", help=_NAMES)
    for verb in (pull, push):
        verb.add_argument("names", metavar="NAME", nargs="*", help="data sets to copy (default: all)")
        words = "replace files with other pictures or splits" + (", and damaged ones" if verb is pull else "")
        verb.add_argument("--fresh", action="store_true", help=words)
    for verb in (prepare, verify, info, bench, pull, push):
        verb.add_argument("--data-dir", metavar="DIR", help="folder of the files (default: $CRELU_DATA, ~/.cache/...)")
    for verb in (prepare, verify, bench):
        verb.add_argument(
            "--workers",
            type=nonnegative_int,
            default=0,
            metavar="N",
            help="processes or threads (default: one per core)",
        )
    prepare.add_argument("--source", metavar="DIR", help="folder of the originals (ImageNet: $IMAGENET_DIR)")
    prepare.add_argument("--size", type=int, metavar="N", help="stored side in pixels")
    prepare.add_argument("--quality", type=int, metavar="Q", help="quality of JPEG, for sides above 64 (default: 90)")
    prepare.add_argument(
        "--seed", type=nonnegative_int, metavar="S", help="seed of a folder's split, or of synthetic pictures"
    )
    prepare.add_argument("--writer", default="", choices=("ffcv", "native"), help="default: ffcv where installed")
    prepare.add_argument("--fresh", action="store_true", help="write existing files again")
    prepare.add_argument("--partial", action="store_true", help="take a part of a published set, and mark its results")
    info.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument("--batch", type=positive_int, default=256, metavar="N", help="pictures per batch (default: 256)")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    from crelu_data.write import prepare

    name = options.name
    where = data_dir(options.data_dir)
    kind = name.partition(":")[0]
    fields = {"size": options.size, "seed": options.seed} if kind == "synthetic" else {"size": options.size}
    if kind in ("synthetic", "imagenet"):
        for field, value in fields.items():
            name += "" if value is None else f"{',' if ':' in name else ':'}{field}={value}"
    elif kind.startswith("cifar") and options.size not in (None, 32):
        raise ValueError(f"--size {options.size}: CIFAR's pictures are stored unchanged, with 32 pixels")
    if options.partial and kind in ("synthetic", "folder"):
        raise ValueError(f"--partial takes a part of a published set, and {name} is no published set")
    with shown_progress() as progress:
        sidecars = prepare(
            name,
            where,
            origin=Path(options.source).expanduser().absolute() if options.source else None,
            size=options.size if kind == "folder" else None,
            quality=options.quality,
            seed=options.seed if kind == "folder" else None,
            workers=options.workers,
            writer=options.writer,
            fresh=options.fresh,
            partial=options.partial,
            progress=progress,
        )
    for split, sidecar in sidecars.items():
        path = beton_path(name, split, where)
        classes = counted(sidecar.classes, "class", "classes")
        print(f"{path}: {counted(sidecar.count, 'picture')} of {sidecar.size} pixels in {classes}")
    _note_differences(name, sidecars)


def _note_differences(name: str, sidecars: dict[str, Sidecar]) -> None:
    """Print where a set is smaller than the published one of its name."""
    if name.startswith("folder:"):
        return
    facts = dataset(name)
    for split, sidecar in sidecars.items():
        if (sidecar.count, sidecar.classes) != (facts.splits[split], facts.classes):
            print(
                f"note: the {split} split of {facts.name} has {facts.splits[split]:,} pictures in {facts.classes} "
                f"classes; this one has {sidecar.count:,} in {sidecar.classes}",
                file=sys.stderr,
            )


def _files(options: argparse.Namespace) -> list[Path]:
    """Return the prepared files of the data set; ValueError where there are none."""
    where = data_dir(options.data_dir)
    dataset(options.name, where)  # raises for a wrong name, as distinct from a missing file
    paths = [path for split in SPLITS if (path := beton_path(options.name, split, where)).exists()]
    if not paths:
        raise ValueError(f"{options.name} is not prepared in {where}: {prepare_command(options.name, where)}")
    return paths


def _verify(options: argparse.Namespace) -> None:
    from crelu_data.changes import check_unchanged, check_whole
    from crelu_data.write import verify

    where = data_dir(options.data_dir)
    for path in _files(options):
        with shown_progress() as progress:
            sidecar = verify(path, options.workers, progress)
        verb = "is" if sidecar.count == 1 else "are"
        print(f"{path}: {counted(sidecar.count, 'picture')} {verb} intact, fingerprint {sidecar.fingerprint[:16]}")
    check_whole(options.name, where)
    for path in (beton_path(options.name, split, where) for split in SPLITS):
        if path.with_suffix(".json").exists() and not path.exists():
            raise ValueError(f"{path} is gone, and its sidecar is there: {prepare_command(options.name, where)}")
    check_unchanged(options.name, where)


def _info(options: argparse.Namespace) -> None:
    sidecars = {path.name: read_sidecar(path.with_suffix(".json")) for path in _files(options)}
    if options.json:
        print(json.dumps({name: asdict(sidecar) for name, sidecar in sidecars.items()}, indent=1))
        return
    for name, sidecar in sidecars.items():
        print(name)
        shown = replace(sidecar, class_names=sidecar.class_names[:10], label_counts=sidecar.label_counts[:10])
        for field, value in asdict(shown).items():
            print(f"  {field:13} {value}{' ...' if sidecar.classes > 10 and field in _LONG else ''}")


def _pull(options: argparse.Namespace) -> None:
    from crelu_data.transfer import pull

    where = data_dir(options.data_dir)
    with shown_progress() as progress:
        fresh = options.fresh
        copied = pull(options.source, where, options.names, fresh=fresh, reread=fresh, progress=progress)
    for path, new in copied.items():
        print(f"{path}: {'pulled, its fingerprint is correct' if new else 'already there'}")


def _push(options: argparse.Namespace) -> None:
    from crelu_data.transfer import push

    where = data_dir(options.data_dir)
    with shown_progress() as progress:
        copied = push(where, options.target, options.names, fresh=options.fresh, progress=progress)
    for name, new in copied.items():
        print(f"{name}: {'pushed' if new else 'already there'}")


def _bench(options: argparse.Namespace) -> None:
    import numpy as np

    from crelu_data.load import default_reader, open_pictures

    print(f"{'file':40} {'reader':8} {'workers':>7} {'pictures/s':>11} {'per CPU-s':>10}")
    for path in _files(options):
        for reader in ("ffcv", "threads") if default_reader() == "ffcv" else ("threads",):
            workers = options.workers or cores()
            with open_pictures(path, reader=reader, workers=workers, resident_bytes=0) as pictures:
                # An order of as many pictures at least, with repetition: an epoch of FFCV takes 0.2 s to start.
                count = max(len(pictures), _BENCH_PICTURES)
                order = np.random.default_rng(0).permutation(np.arange(count) % len(pictures))
                for _ in range(2):  # the first round compiles, fills the page cache and compares checksums
                    wall = time.perf_counter()
                    busy = time.process_time()
                    for _ in pictures.batches(order, options.batch):
                        pass
                    wall = time.perf_counter() - wall
                    busy = time.process_time() - busy
            print(f"{path.name:40} {reader:8} {workers:7} {len(order) / wall:11,.0f} {len(order) / busy:10,.0f}")


if __name__ == "__main__":
    make_lasting()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a killed job leaves no incomplete file either
    sys.exit(main())
