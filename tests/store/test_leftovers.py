"""What a kill leaves is cleaned at the next start, and nothing that a living process needs."""

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crelu_data.storage import unmounted_above
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.store.leftovers import AGE, remove_leftovers
from sweeps.store.process import this_process


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "out" / "ledger"))


def left(ledger: Ledger, name: str, age: float) -> Path:
    """Write a file as a killed process leaves it."""
    path = Path(ledger.path(""), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


@pytest.mark.parametrize("name", [
    ".ledger.json.12.140.part", "results/.k.json.1.2.part", "trials/k/tables/.scores.parquet.7.8.part",
    "checkpoints/k/.00001-00000000.safetensors.5.6.part", "..ledger.json.1.2.draft.1.2.part",
])  # fmt: skip
def test_half_written_files_go_once_nobody_can_be_writing_them(ledger: Ledger, name: str) -> None:
    ledger.commit("other", {"key": "other"})
    path = left(ledger, name, AGE / 2)
    assert remove_leftovers(ledger, "s") == 0
    assert path.exists()
    left(ledger, name, AGE + 60)
    assert remove_leftovers(ledger, "s") == 1
    assert not path.exists()
    assert ledger.result("other") is not None


@pytest.mark.parametrize("name", ["results/k.json", "trials/k/notes.part", "trials/k/.hidden", ".keep.part"])
def test_other_files_stay_however_old(ledger: Ledger, name: str) -> None:
    path = left(ledger, name, 1e6)
    assert remove_leftovers(ledger, "s") == 0
    assert path.exists()


def test_checkpoints_go_with_the_result_and_not_before(ledger: Ledger) -> None:
    for key in ("running", "done", "torn"):
        ledger.commit(key, {"key": key})
        ledger.write(f"checkpoints/{key}/00001-00000000.safetensors", b"state")
    ledger.delete("results/running.json")
    ledger.write("results/torn.json", b'{"key": "to')
    assert remove_leftovers(ledger, "s") == 1
    assert ledger.folders("checkpoints") == ["running", "torn"]


@pytest.mark.parametrize("name", ["probe", "checkpoints/k"])
def test_what_another_process_deletes_first_is_deleted(ledger: Ledger, name: str) -> None:
    ledger.write("probe", b"")
    ledger.write("checkpoints/k/00001-00000000.safetensors", b"state")
    slower = Ledger(ledger.root, lambda: ledger.delete(name))  # called between the look and the deletion
    slower.delete(name)
    assert not Path(ledger.path(name)).exists()


def test_two_drivers_that_clean_at_once_see_the_clock_of_the_disk_each(ledger: Ledger) -> None:
    class Slow(Ledger):
        def write(self, name: str, content: bytes) -> None:
            super().write(name, content)
            other = threading.Thread(target=remove_leftovers, args=(Ledger(self.root), "other"))
            other.start()
            other.join()

    assert remove_leftovers(Slow(ledger.root), "s") == 0
    assert list(Path(ledger.path("")).glob("*probe*")) == []


# What drivers and workers told each other


def test_words_to_workers_of_dead_drivers_go_where_no_other_driver_lives(ledger: Ledger) -> None:
    for name in ("packs/20261128-120000-7-ab.json", "stops/20261128-120000-7"):
        ledger.write(name, b"{}")
    with Lease(ledger, "mine"), Lease(ledger, "other"):
        assert remove_leftovers(ledger, "mine") == 0
    assert (len(ledger.names("packs")), len(ledger.names("stops"))) == (1, 1)
    ledger.write_json("leases/dead.json", this_process() | {"pid": 1, "started": -1.0})
    with Lease(ledger, "mine"):
        assert remove_leftovers(ledger, "mine") == 2
    assert ledger.names("packs") == ledger.names("stops") == []


@pytest.mark.parametrize(
    ("content", "folder"),
    [(b"k   \nstack", ["k"]), (b"k   \n", []), (b"../k\nstack", []), (b"\xff", [])],
)
def test_stack_of_a_pack_of_a_dead_driver_goes_to_the_trial_that_hung(
    ledger: Ledger, content: bytes, folder: list[str]
) -> None:
    ledger.write("packs/20261128-120000-7-ab.hang", content)
    assert remove_leftovers(ledger, "mine") == 1
    assert ledger.names("packs") == []
    assert ledger.folders("trials") == folder
    assert [ledger.read(f"trials/{key}/hang.txt") for key in folder] == [content] * len(folder)


def test_words_stay_while_the_driver_of_another_host_may_live(ledger: Ledger) -> None:
    ledger.write("packs/20261128-120000-7-ab.json", b"{}")
    ledger.write_json("leases/other.json", this_process() | {"boot": "elsewhere", "host": "elsewhere"})
    assert remove_leftovers(ledger, "mine") == 0
    assert ledger.names("packs")


# A disk that goes

SHARED = Path("/dev/shm")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Ledger]:
    """Yield a ledger on another disk than its output folder's parent, as behind a mount point."""
    if not SHARED.is_dir() or SHARED.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second disk here")
    disk = Path(tempfile.mkdtemp(dir=SHARED))
    (tmp_path / "out").symlink_to(disk)
    yield Ledger(str(tmp_path / "out" / "ledger"))
    shutil.rmtree(disk)


@pytest.mark.parametrize("shape", ["mount point", "ledger too", "nothing"])
def test_empty_folder_in_the_place_of_a_disk_that_has_gone_is_not_written_to(mounted: Ledger, shape: str) -> None:
    mounted.write("results/k.json", b"{}")
    out = Path(mounted.root).parent
    disk = out.resolve()
    out.unlink()
    if shape != "nothing":
        (out / "ledger" if shape == "ledger too" else out).mkdir(parents=True)
    with pytest.raises(OSError, match="has gone") as error:
        mounted.write("results/l.json", b"{}")
    assert error.value.errno == errno.ENODEV
    assert not list(out.rglob("*.json"))
    # The disk is back: the same write succeeds, and what was there is there.
    if out.exists():
        shutil.rmtree(out)
    out.symlink_to(disk)
    mounted.write("results/l.json", b"{}")
    assert mounted.names("results") == ["k.json", "l.json"]


def test_folder_on_another_disk_that_is_not_empty_is_a_disk_that_is_mounted_again(mounted: Ledger) -> None:
    mounted.write("results/k.json", b"{}")
    out = Path(mounted.root).parent
    copy = shutil.copytree(out.resolve(), out.with_name("copy"))
    out.unlink()
    Path(copy).rename(out)
    mounted.write("results/l.json", b"{}")
    assert mounted.names("results") == ["k.json", "l.json"]
    shutil.rmtree(out)  # deleted, not gone with its disk
    mounted.write("results/m.json", b"{}")
    assert mounted.names("results") == ["m.json"]


def test_folder_that_was_deleted_is_made_again(ledger: Ledger) -> None:
    ledger.write("a.json", b"{}")
    shutil.rmtree(Path(ledger.root).parent)
    ledger.write("a.json", b"{}")
    assert ledger.read("a.json") == b"{}"


def test_disk_that_the_machine_should_have_and_has_not_is_named(tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    point = tmp_path / "my disk"
    spelt = str(point).replace(" ", "\\040")
    table.write_text(f"# {point}\nserver:/x {spelt} nfs defaults 0 0\n/dev/a / ext4\nx none swap\n")
    assert unmounted_above(point / "out" / "ledger", table) == point
    assert unmounted_above(tmp_path / "other", table) is None  # below /, which is mounted
    assert unmounted_above(point, tmp_path / "none") is None
