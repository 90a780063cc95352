"""Both readers over real files: the order asked for, nothing shared, nothing silent, nothing left running."""

import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from crelu_data import beton
from crelu_data.cores import cores
from crelu_data.datasets import beton_path
from crelu_data.decoders.both import BothReader
from crelu_data.decoders.nvjpeg import NvjpegReader
from crelu_data.decoders.threads import ThreadReader
from crelu_data.load import Batch, FFCVReader, Pictures, open_pictures
from crelu_data.write import prepare

HAS_FFCV = importlib.util.find_spec("ffcv") is not None
needs_ffcv = pytest.mark.skipif(not HAS_FFCV, reason="FFCV is not installed")
READERS = [pytest.param("ffcv", marks=needs_ffcv), "threads"]
RAW, JPEG = "synthetic:train=250,test=10", "synthetic:size=80,train=130,test=10"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the paths of a file of pixels and one of JPEGs."""
    where = tmp_path_factory.mktemp("data")
    for name in (RAW, JPEG):
        prepare(name, where, writer="native")
    return {"raw": beton_path(RAW, "train", where), "jpeg": beton_path(JPEG, "train", where)}


@pytest.fixture(scope="module")
def opened(files: dict[str, Path]) -> Iterator[dict[tuple[str, str], Pictures]]:
    """Return both files open in both readers, streaming."""
    readers = ["threads", *(["ffcv"] if HAS_FFCV else [])]
    pictures = {
        (mode, reader): open_pictures(path, reader=reader, workers=2, resident_bytes=0)
        for mode, path in files.items()
        for reader in readers
    }
    yield pictures
    for each in pictures.values():
        each.close()


@pytest.fixture
def copy(files: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Return copies of the files that a test may spoil."""
    for path in files.values():
        shutil.copy(path, tmp_path)
        shutil.copy(path.with_suffix(".json"), tmp_path)
    return {mode: tmp_path / path.name for mode, path in files.items()}


def joined(batches: Iterator[Batch]) -> Batch:
    """Return all batches as one."""
    return Batch(*map(torch.cat, zip(*batches, strict=True)))


def damage(path: Path, record: int) -> None:
    """Overwrite a few bytes in the middle of a record."""
    index = beton.read_index(path)
    with path.open("r+b") as file:
        file.seek(int(index.pointers[record] + index.sizes[record] // 2))
        file.write(b"\x00\xff\x55\xaa")


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
@pytest.mark.parametrize("reader", READERS)
def test_batches_are_the_indices_in_their_order(mode: str, reader: str, opened: dict, files: dict) -> None:
    pictures = opened[mode, reader]
    indices = np.random.default_rng(0).permutation(len(pictures))[:101]
    batches = list(pictures.batches(indices, 20))
    assert [len(batch.ids) for batch in batches] == [20] * 5 + [1]  # FFCV's Squeeze makes the last label 0-d
    all_ = joined(iter(batches))
    assert np.array_equal(all_.ids, indices)
    assert np.array_equal(all_.labels, pictures.labels[indices])
    assert all_.images.shape[1:] == (3, pictures.sidecar.size, pictures.sidecar.size)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    index = beton.read_index(files[mode])
    if mode == "raw":
        stored = beton.stored_bytes(index, beton.mapped(index), int(indices[3]))
        assert bytes(all_.images[3].permute(1, 2, 0).contiguous().numpy()) == bytes(stored)


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
@needs_ffcv
def test_readers_agree(mode: str, opened: dict) -> None:
    """Pixels are equal; JPEGs differ by the DCT: FFCV takes the fast one, the thread pool the exact one."""
    everything = np.arange(len(opened[mode, "ffcv"]))
    ours, theirs = (joined(opened[mode, reader].batches(everything, 64)) for reader in ("threads", "ffcv"))
    difference = (ours.images.int() - theirs.images.int()).abs()
    assert torch.equal(ours.labels, theirs.labels)
    if mode == "raw":
        assert difference.max() == 0
    else:
        assert difference.max() <= 8
        assert difference.float().mean() <= 1.5


@pytest.mark.parametrize("reader", READERS)
def test_number_of_workers_changes_nothing(reader: str, files: dict) -> None:
    """More workers than cores are asked for as well: FFCV's Loader would refuse them."""
    order = np.random.default_rng(1).permutation(130)
    epochs = []
    for workers in (1, 2, cores() + 3):
        with open_pictures(files["jpeg"], reader=reader, workers=workers, resident_bytes=0) as pictures:
            epochs.append(joined(pictures.batches(order, 32)))
    assert all(torch.equal(epochs[0].images, other.images) for other in epochs[1:])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_an_epoch_resumes_in_its_middle(reader: str, resident_bytes: int, files: dict) -> None:
    order = np.random.default_rng(2).permutation(250)
    with open_pictures(files["raw"], reader=reader, workers=2, resident_bytes=resident_bytes) as pictures:
        batches = list(pictures.batches(order, 16))
        rest = list(pictures.batches(order, 16, start=9))
        assert list(pictures.batches(order, 16, start=16)) == []
    assert len(rest) == len(batches) - 9
    for a, b in zip(batches[9:], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.ids, b.ids)


@pytest.mark.parametrize("reader", READERS)
def test_resident_pictures_are_those_of_the_file(reader: str, files: dict, opened: dict) -> None:
    order = np.random.default_rng(3).permutation(130)
    with open_pictures(files["jpeg"], reader=reader, workers=2) as pictures:
        resident = joined(pictures.batches(order, 50))
    streamed = joined(opened["jpeg", reader].batches(order, 50))
    assert torch.equal(resident.images, streamed.images)
    assert torch.equal(resident.labels, streamed.labels)


@pytest.mark.parametrize("reader", READERS)
def test_kept_batches_do_not_change(reader: str, opened: dict) -> None:
    """FFCV's own batches are views of five buffers: of sixteen kept ones eleven are overwritten."""
    images, copies = [], []
    for batch in opened["raw", reader].batches(np.arange(250), 10):
        images.append(batch.images)
        copies.append(batch.images.clone())
    assert len(images) == 25
    assert all(torch.equal(a, b) for a, b in zip(images, copies, strict=True))


@pytest.mark.parametrize("reader", READERS)
def test_leaving_early_ends_the_threads(reader: str, opened: dict) -> None:
    pictures = opened["raw", reader]
    list(pictures.batches(np.arange(4), 2))
    before = set(threading.enumerate())
    for _ in range(5):
        for _ in pictures.batches(np.arange(250), 2):
            break
    batches = pictures.batches(np.arange(250), 2)
    next(batches)
    batches.close()
    assert {thread for thread in threading.enumerate() if thread not in before} == set()


@pytest.mark.parametrize("reader", READERS)
def test_closing_ends_everything(reader: str, files: dict) -> None:
    before = set(threading.enumerate())
    pictures = open_pictures(files["raw"], reader=reader, workers=2, resident_bytes=0)
    next(iter(pictures.batches(np.arange(250), 2)))
    pictures.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("reader", READERS)
def test_epochs_may_overlap(reader: str, opened: dict) -> None:
    pictures, other = opened["raw", reader], opened["jpeg", reader]
    a, b = pictures.batches(np.arange(100), 7), pictures.batches(np.arange(249, 149, -1), 7)
    c = other.batches(np.arange(100), 7)
    for number, (x, y, z) in enumerate(zip(a, b, c, strict=True)):
        assert x.ids[0] == z.ids[0] == number * 7
        assert y.ids[0] == 249 - number * 7
        assert torch.equal(y.images[0], joined(pictures.batches(y.ids[:1].numpy(), 1)).images[0])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("mode", "resident_bytes"), [("raw", 0), ("jpeg", 0), ("jpeg", 1 << 30)])
def test_a_damaged_picture_is_named(reader: str, mode: str, resident_bytes: int, copy: dict) -> None:
    """FFCV returns whatever its buffer held before, another picture each epoch."""
    damage(copy[mode], 77)
    with open_pictures(copy[mode], reader=reader, workers=2, resident_bytes=resident_bytes) as pictures:
        if not resident_bytes:
            assert len(list(pictures.batches(np.arange(77), 20))) == 4
        for _ in range(2):
            with pytest.raises(ValueError, match=r"picture 77 of .*--fresh"):
                list(pictures.batches(np.arange(130), 20))


@needs_ffcv
def test_an_error_in_ffcvs_thread_reaches_the_consumer(files: dict) -> None:
    """A bare FFCV iterator waits for ever on the queue of the dead thread."""
    reader = FFCVReader(beton.read_index(files["raw"]), 1, pin=False)
    with pytest.raises(RuntimeError, match="FFCV stopped in the middle of an epoch: invalid literal"):
        list(reader.read(np.array([*range(15), "no record"], object), 10))
    assert len(list(reader.read(np.arange(100), 10))) == 10  # and the loader still serves


@needs_ffcv
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_ffcv_thread_is_noticed(files: dict) -> None:
    reader = FFCVReader(beton.read_index(files["raw"]), 1, pin=False)

    def fail(batch: int) -> None:
        raise OSError("the disk is gone")

    reader._loader.memory_manager.context.start_batch = fail
    with pytest.raises(RuntimeError, match="its thread died"):
        list(reader.read(np.arange(100), 10))


@needs_ffcv
def test_ffcv_leaves_the_process_as_it_was(files: dict) -> None:
    import numba
    import numba.typed

    torch.set_num_threads(2)
    state = np.random.get_state()[1].copy()
    seen: list[int] = []
    with open_pictures(files["raw"], reader="ffcv", workers=1, resident_bytes=0) as pictures:
        for _ in pictures.batches(np.arange(250), 50):
            seen.append(torch.get_num_threads())
            thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()
    assert set(seen) == {2}
    assert np.array_equal(np.random.get_state()[1], state)
    assert numba.typed.Dict is not dict
    if cores() > 1:
        assert numba.threading_layer() == "omp"


@pytest.mark.parametrize("reader", READERS)
def test_an_open_file_outlives_its_replacement(reader: str, copy: dict, opened: dict) -> None:
    """`prepare --fresh` puts a new file under the name; what is open goes on with the old one."""
    with open_pictures(copy["raw"], reader=reader, workers=1, resident_bytes=0) as pictures:
        shutil.copy(copy["jpeg"], copy["raw"].with_suffix(".other"))
        copy["raw"].with_suffix(".other").replace(copy["raw"])
        epoch = joined(pictures.batches(np.arange(250), 50))
    assert torch.equal(epoch.images, joined(opened["raw", "threads"].batches(np.arange(250), 50)).images)


def on_the_host(encoded: list[torch.Tensor]) -> list[torch.Tensor]:
    """Decode as nvJPEG's function does, on the CPU."""
    import simplejpeg

    return [torch.from_numpy(simplejpeg.decode_jpeg(each.numpy())).permute(2, 0, 1) for each in encoded]


def test_what_a_gpu_decodes_comes_in_order_and_leaves_no_thread(files: dict, opened: dict) -> None:
    """By another decoder in nvJPEG's place: the order, the short last batch, an early end, an error."""
    order = np.random.default_rng(5).permutation(130)[:101]
    expected = joined(opened["jpeg", "threads"].batches(order, 20)).images.permute(0, 2, 3, 1)
    before = set(threading.enumerate())
    calls: list[int] = []

    def decode(encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        calls.append(len(encoded))
        if len(calls) == 15:
            raise RuntimeError("the GPU is gone")
        return on_the_host(encoded)

    with closing(NvjpegReader(beton.read_index(files["jpeg"]), torch.device("cpu"), 3, decode)) as reader:
        batches = list(reader.read(order, 20))
        assert [len(batch) for batch in batches] == calls == [20] * 5 + [1]
        assert torch.equal(torch.cat(batches), expected)
        assert all(batch.is_contiguous() for batch in batches)
        assert reader.decode_seconds > 0
        stream = reader.read(order, 20)
        next(stream)
        stream.close()
        with pytest.raises(RuntimeError, match="the GPU is gone"):
            list(reader.read(order, 10))
    assert set(threading.enumerate()) <= before


def test_a_gpu_and_threads_decode_each_the_pictures_of_their_numbers(files: dict, opened: dict) -> None:
    """The GPU's stand-in gives the negative, so each picture says which decoder made it."""
    order = np.random.default_rng(5).permutation(130)[:101]
    order[20:40] = np.arange(20) % 7  # a batch of the GPU's alone
    order[40:60] = 7 + np.arange(20) % 5  # and one of the threads'
    expected = joined(opened["jpeg", "threads"].batches(order, 20)).images.permute(0, 2, 3, 1)
    negative = torch.from_numpy(order % 12 < 7)[:, None, None, None]
    expected = torch.where(negative, 255 - expected, expected)
    before = set(threading.enumerate())

    def decode(encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        return [255 - picture for picture in on_the_host(encoded)]

    with closing(BothReader(beton.read_index(files["jpeg"]), torch.device("cpu"), 2, decode)) as reader:
        batches = list(reader.read(order, 20))
        assert [len(batch) for batch in batches] == [20] * 5 + [1]
        assert torch.equal(torch.cat(batches), expected)
        assert all(batch.is_contiguous() for batch in batches)
        assert list(reader.read(order[:0], 20)) == []
        assert reader.decode_seconds == max(reader._gpu.decode_seconds, reader._threads.decode_seconds) > 0
        stream = reader.read(order, 20)
        next(stream)
        stream.close()
    assert set(threading.enumerate()) <= before


def test_a_gpu_decodes_on_a_stream_that_is_none_of_a_training(files: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of equal priority come round: work on one that records a step would end the recording."""
    opened: list[tuple[torch.device, int]] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: opened.append((device, priority)))
    gpu = torch.device("cuda")
    NvjpegReader(beton.read_index(files["jpeg"]), gpu, 3, on_the_host).close()
    assert opened == [(gpu, -1)]


@pytest.mark.parametrize("reader", ["nvjpeg", "both"])
def test_a_gpus_decoder_is_refused_without_one_where_there_is_something_to_decode(files: dict, reader: str) -> None:
    with pytest.raises(ValueError, match="decode on a GPU: take the reader ffcv or threads"):
        open_pictures(files["jpeg"], reader=reader)
    with open_pictures(files["raw"], reader=reader) as pictures:
        assert pictures.decoder == ""
        assert len(list(pictures.batches(np.arange(250), 50))) == 5


def test_pictures_say_which_decoder_made_them(opened: dict) -> None:
    assert {key: pictures.decoder for key, pictures in opened.items() if key[1] == "threads"} == {
        ("raw", "threads"): "",
        ("jpeg", "threads"): "threads",
    }


def test_importing_the_loader_imports_no_ffcv_which_leaves_torch_its_threads() -> None:
    """In one process, most of whose time is torch's import."""
    heavy = {"ffcv", "numba", "cv2", "torchvision", "simplejpeg"}
    code = f"import sys, torch, crelu_data.load; assert not {heavy} & set(sys.modules); torch.set_num_threads(3)"
    if HAS_FFCV:
        code += "; from crelu_data.ffcv_patches import import_ffcv; import_ffcv(); assert 'ffcv' in sys.modules"
    code += "; print(torch.get_num_threads())"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout == "3\n"


@needs_ffcv
def test_files_of_both_writers_read_alike(opened: dict, tmp_path: Path) -> None:
    prepare(RAW, tmp_path, writer="ffcv", workers=2)
    for reader in ("threads", "ffcv"):
        with open_pictures(beton_path(RAW, "train", tmp_path), reader=reader) as pictures:
            theirs = joined(pictures.batches(np.arange(250), 100))
        ours = joined(opened["raw", reader].batches(np.arange(250), 100))
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("spoil", ["swap", "cut", "label", "sidecar", "gone"])
def test_a_file_that_is_not_its_sidecars_is_refused_at_once(spoil: str, copy: dict) -> None:
    path = copy["raw"]
    if spoil == "swap":
        shutil.copy(copy["jpeg"], path)
    elif spoil == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif spoil == "label":
        content = bytearray(path.read_bytes())
        content[24 + 3 * 1041 + 16] ^= 1  # the first record's label
        path.write_bytes(content)
    elif spoil == "sidecar":
        path.with_suffix(".json").write_text("{}")
    else:
        path.unlink()
    with pytest.raises(ValueError, match=path.stem):
        open_pictures(path, reader="threads")


def test_impossible_requests_are_refused_before_reading(opened: dict, files: dict) -> None:
    pictures = opened["raw", "threads"]
    for indices, batch, start in ([250], 1, 0), ([-1], 1, 0), ([0], 0, 0), ([0], 1, -1), ([[0]], 1, 0):
        with pytest.raises(ValueError, match=r"must be|not all in"):
            pictures.batches(np.array(indices), batch, start)
    assert list(pictures.batches(np.array([], np.int64), 4)) == []
    with pytest.raises(ValueError, match="one of ffcv, threads, nvjpeg, both"):
        open_pictures(files["raw"], reader="dali")


def test_the_thread_reader_ends_when_a_picture_cannot_be_decoded(copy: dict) -> None:
    """Below the checksums: the decoder's own complaint comes through and the pool still serves."""
    damage(copy["jpeg"], 40)
    with closing(ThreadReader(beton.read_index(copy["jpeg"]), 2, pin=False)) as reader:
        index = beton.read_index(copy["jpeg"])
        with copy["jpeg"].open("r+b") as file:
            file.seek(int(index.pointers[50]))
            file.write(bytes(64))
        with pytest.raises(ValueError, match=r"marker|JPEG|header"):
            list(reader.read(np.arange(130), 10))
        assert len(list(reader.read(np.arange(40), 10))) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_batches_on_a_gpu_are_those_on_the_host(resident_bytes: int, files: dict, opened: dict) -> None:
    order = np.random.default_rng(4).permutation(130)
    with open_pictures(files["jpeg"], reader="threads", device="cuda", resident_bytes=resident_bytes) as pictures:
        on_gpu = joined(pictures.batches(order, 32))
    on_host = joined(opened["jpeg", "threads"].batches(order, 32))
    assert on_gpu.images.device.type == "cuda"
    assert torch.equal(on_gpu.images.cpu(), on_host.images)
    assert torch.equal(on_gpu.labels.cpu(), on_host.labels)
