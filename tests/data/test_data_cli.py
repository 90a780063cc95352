"""python -m crelu_data: quick to answer, one sentence for what is wrong, the documented exit codes."""

import errno
import json
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from crelu_data.__main__ import main
from crelu_data.datasets import beton_path
from crelu_data.streams import _lines, make_lasting
from crelu_data.write import prepare
from tests.support.pictures import cifar_tree, picture_folder


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\nfrom crelu_data.__main__ import main\n"
        "try: main(['prepare', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'torchvision', 'ffcv', 'numba', 'rich', 'PIL'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0
    assert "--source" in finished.stdout


def test_prepare_verify_info_and_bench_follow_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "synthetic:train=40,test=10"
    place = ["--data-dir", str(tmp_path)]
    assert main(["prepare", name, *place, "--writer", "native"]) == 0
    assert "40 pictures of 32 pixels in 10 classes" in capsys.readouterr().out
    assert main(["verify", name, *place]) == 0
    assert capsys.readouterr().out.count("are intact") == 2
    assert main(["info", name, *place, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [sidecar["count"] for sidecar in told.values()] == [40, 10]
    assert main(["info", name, *place]) == 0
    assert "fingerprint" in capsys.readouterr().out


def test_verify_fails_where_a_split_is_gone_with_its_sidecar_or_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["synthetic:train=40,test=10", "--data-dir", str(tmp_path)]
    assert main(["prepare", *words, "--writer", "native"]) == 0
    path = beton_path(words[0], "train", tmp_path)
    path.unlink()
    assert main(["verify", *words]) == 2
    assert f"error: {path} is gone, and its sidecar is there: " in capsys.readouterr().err
    path.with_suffix(".json").unlink()
    assert main(["verify", *words]) == 2
    assert "has no train split" in capsys.readouterr().err


def test_a_file_of_one_picture_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["synthetic:train=4,test=1,classes=2", "--data-dir", str(tmp_path)]
    assert main(["prepare", *words, "--writer", "native"]) == 0
    assert "test.beton: 1 picture of 32 pixels in 2 classes\n" in capsys.readouterr().out
    assert main(["verify", *words]) == 0
    assert "test.beton: 1 picture is intact, fingerprint " in capsys.readouterr().out


def test_bench_prints_a_row_for_each_file_and_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ffcv")
    monkeypatch.setattr(sys.modules["crelu_data.__main__"], "_BENCH_PICTURES", 2000)
    name = "synthetic:train=40,test=10"
    place = ["--data-dir", str(tmp_path)]
    assert main(["prepare", name, *place, "--writer", "native"]) == 0
    assert main(["bench", name, *place, "--workers", "1", "--batch", "1000"]) == 0
    rows = [
        line.split() for line in capsys.readouterr().out.splitlines() if ".beton " in line and "pictures" not in line
    ]
    assert [row[1] for row in rows] == ["threads", "ffcv"] * 2 or [row[1] for row in rows] == ["ffcv", "threads"] * 2
    assert all(float(row[3].replace(",", "")) > 0 for row in rows)


def test_size_and_seed_are_part_of_a_synthetic_name(tmp_path: Path) -> None:
    place = ["--data-dir", str(tmp_path), "--writer", "native"]
    assert main(["prepare", "synthetic:train=10,test=10", "--size", "40", "--seed", "3", *place]) == 0
    assert beton_path("synthetic:size=40,train=10,test=10,seed=3", "train", tmp_path).exists()


def test_a_tree_of_cifar_in_the_data_dir_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cifar_tree(tmp_path, 6)
    verb = ["prepare", "cifar10", "--data-dir", str(tmp_path), "--writer", "native"]
    assert main(verb) == 2
    assert "not the whole of cifar10: data_batch_1 is not the published file" in capsys.readouterr().err
    assert main([*verb, "--partial"]) == 0
    said = capsys.readouterr()
    assert "30 pictures of 32 pixels" in said.out
    assert "this one has 30 in 10" in said.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["prepare", "cifra10"], "nearest: cifar10"),
        (["prepare", "imagenet"], "IMAGENET_DIR"),
        (["prepare", "imagenet", "--source", "/proc"], "train/<class>"),
        (["prepare", "cifar10", "--source", "/proc"], "cifar-10-batches-py"),
        (["prepare", "cifar10", "--source", "/nowhere"], "--source /nowhere is no folder: name the one with the"),
        (["prepare", "imagenet", "--source", "/nowhere"], "--source /nowhere is no folder: name the one with the"),
        (["prepare", "folder:/pics", "--source", "/proc"], "takes none, since its name says where the pictures are"),
        (["prepare", "synthetic", "--source", "/proc"], "synthetic takes none, since its pictures are drawn"),
        (["prepare", "cifar10", "--size", "64"], "32 pixels"),
        (["prepare", "folder:/nowhere"], "no folder /nowhere"),
        (["prepare", "synthetic", "--quality", "101"], "1 to 100"),
        (["prepare", "synthetic", "--partial"], "no published set"),
        (["verify", "synthetic"], "data prepare synthetic"),
        (["info", "cifar10"], "data prepare cifar10"),
        (["bench", "folder:/nowhere"], "data prepare folder:/nowhere"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_2(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_source_is_looked_at_where_the_set_is_prepared_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture_folder(tmp_path, "pics", {"a": 4, "b": 4}, (16, 16))
    cifar_tree(tmp_path, 6)
    place = ["--data-dir", str(tmp_path), "--writer", "native"]
    for words in (["synthetic:train=10,test=10"], [f"folder:{tmp_path / 'pics'}"], ["cifar10", "--partial"]):
        assert main(["prepare", *words, *place]) == 0
        assert main(["prepare", *words, *place]) == 0
        capsys.readouterr()
        assert main(["prepare", *words, *place, "--source", "/nowhere"]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.startswith("error: --source /nowhere")) == ("", True)


@pytest.mark.parametrize("writer", ["native", "ffcv"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_told_with_the_folder_and_what_to_do(
    writer: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("crelu_data.write.WRITERS", (writer,))
    monkeypatch.setattr(f"crelu_data.write._write_{writer}", full)
    where = tmp_path / "my data"
    assert main(["prepare", "synthetic:train=10,test=10", "--writer", writer, "--data-dir", str(where)]) == 2
    advice = "make room there, then the same command goes on"
    assert capsys.readouterr().err == f"error: {where}: {os.strerror(number)}; {advice}\n"


def test_speed_is_told_once_a_part_has_taken_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 6.0, 12.0, 12.5, 18.5))
    monkeypatch.setattr("time.monotonic", lambda: next(clock, 99.0))
    report = _lines()
    for done in (100, 400):  # at 6 s, this part's first news, and at 12 s
        report("writing test", done, 1000)
    report("measuring test", 10, 1000)  # at 12.5 s: nothing is printed so soon
    report("measuring test", 600, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "writing test: 100 of 1,000",
        "writing test: 400 of 1,000, 67/s, 9 s left",
        "measuring test: 600 of 1,000, 100/s, 4 s left",
    ]


def test_a_negative_seed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    picture_folder(tmp_path, "pics", {"a": 4, "b": 4}, (16, 16))
    name = f"folder:{tmp_path / 'pics'}"
    with pytest.raises(SystemExit):
        main(["prepare", name, "--seed", "-1", "--data-dir", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="the seed is 0 or more, not -1"):
        prepare(name, tmp_path / "out", seed=-1, writer="native", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRELU_DATA", str(tmp_path / "file"))
    assert main(["prepare", "synthetic:train=10,test=10"]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_terminal_that_cannot_say_a_name_gets_it_escaped(tmp_path: Path) -> None:
    where = os.fsencode(tmp_path) + "/gr\u00f6\u00dfe-".encode() + b"\xe9"
    verb = ["prepare", "synthetic:train=10,test=10", "--writer", "native", "--data-dir"]
    assert main([*verb, os.fsdecode(where)]) == 0  # the process below has nothing left to do but to say it
    command = [sys.executable, "-m", "crelu_data", *verb, where]
    ran = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert ran.returncode == 0, ran.stderr
    assert rb"gr\xf6\xdfe-\udce9/synthetic-train10-test10-train.beton: 10 pictures" in ran.stdout


def test_a_damaged_file_fails_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--data-dir", str(tmp_path)]
    name = "synthetic:train=30,test=10"
    main(["prepare", name, *place, "--writer", "native"])
    path = beton_path(name, "test", tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:2_097_200] + b"\x01\x02\x03" + content[2_097_203:])
    assert main(["verify", name, *place]) == 2
    assert "damaged: 0" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = ["prepare", "synthetic:train=300,test=10", "--writer", "native"]
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    leader, follower = pty.openpty()
    with ThreadPoolExecutor(1) as reader:
        said = reader.submit(all_of, leader)
        with monkeypatch.context() as patch, open(follower, "w") as terminal:
            patch.setattr(sys, "stderr", terminal)
            make_lasting()  # as the command does first
            assert main([*verb, "--data-dir", str(tmp_path / "a")]) == 0
        assert b"300/300" in said.result()
        assert b"\x1b[" in said.result()
    monkeypatch.setattr("crelu_data.streams.EVERY", 0.0)
    monkeypatch.setattr("crelu_data.streams.LEAST", 1e-9)
    assert main([*verb, "--data-dir", str(tmp_path / "b")]) == 0
    said_to_pipe = capsys.readouterr()
    assert "writing train: 300 of 300" in said_to_pipe.err
    assert "/s" in said_to_pipe.err
    assert "\x1b" not in said_to_pipe.err + said_to_pipe.out


def all_of(leader: int) -> bytes:
    """Return what is written to a terminal until its other end is closed."""
    said = b""
    with suppress(OSError):
        while read := os.read(leader, 65536):
            said += read
    os.close(leader)
    return said


def test_a_reader_who_leaves_stops_no_preparation(tmp_path: Path) -> None:
    # The first makes the files while no stream is open, whose numbers they could get; the others say what there is.
    for streams in (">&- 2>&-", "2>/dev/full", ">/dev/full", "2>&1 | true"):
        for words, status in (
            ("prepare synthetic:size=16,train=40,test=10 --writer native --workers 1", 0),
            ("verify nosuch", 2),
        ):
            command = f"set -o pipefail; {sys.executable} -m crelu_data {words} --data-dir {tmp_path}/d {streams}"
            done = subprocess.run(["bash", "-c", command], cwd=Path(__file__).parents[2], timeout=120, check=False)
            assert done.returncode == status, command
        assert len([*(tmp_path / "d").glob("*.beton")]) == 2
    assert main(["verify", "synthetic:size=16,train=40,test=10", "--data-dir", f"{tmp_path}/d"]) == 0
