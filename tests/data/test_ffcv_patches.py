"""Each patch of FFCV: the private code that it relies on, the fault without it, and its absence with it."""

import ast
import importlib.util
import inspect
import runpy
import textwrap
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba.typed
import numpy as np
import pytest
import torch

from crelu_data import beton, ffcv_patches
from crelu_data.datasets import beton_path
from crelu_data.write import prepare

if importlib.util.find_spec("ffcv") is None:
    pytest.skip("FFCV is not installed", allow_module_level=True)
ffcv_patches.import_ffcv()

from ffcv import libffcv  # noqa: E402
from ffcv.fields import rgb_image  # noqa: E402
from ffcv.loader import Loader, OrderOption, epoch_iterator  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.memory_managers import base, os_cache  # noqa: E402
from ffcv.memory_managers.os_cache import OSCacheManager  # noqa: E402
from ffcv.pipeline import compiler, graph  # noqa: E402
from ffcv.writer import DatasetWriter, worker_job_indexed_dataset  # noqa: E402

from crelu_data.decoders import ffcv_stage  # noqa: E402

NAME = "synthetic:train=250,test=10"
PATIENCE = 0.7  # seconds; FFCV's thread looks whether it should end every 0.5 s


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 250 pictures stored as pixels."""
    folder = tmp_path_factory.mktemp("data")
    prepare(NAME, folder, writer="native")
    return beton_path(NAME, "train", folder)


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def loader(path: Path, failures: list[BaseException]) -> Iterator[Any]:
    """Return a patched loader; end all its threads afterwards."""
    before = set(threading.enumerate())
    yield ffcv_patches.open_loader(beton.read_index(path), 1, 3, False, failures, lambda seconds: None)
    for thread in set(threading.enumerate()) - before:
        if isinstance(thread, EpochIterator):
            ffcv_patches.stop_epoch(thread)


def source(value: Any) -> str:
    return textwrap.dedent(inspect.getsource(value))


def test_ffcv_is_the_version_that_the_patches_were_written_for() -> None:
    assert version("ffcv") == "1.0.2"
    pinned = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '"ffcv==1.0.2 ;' in pinned


def test_ffcvs_typed_dictionary_is_read_by_python_alone() -> None:
    for module in (rgb_image, base):
        assert "from numba.typed import Dict" in source(module)
    lines = source(rgb_image).splitlines()
    assert [line for line in lines if "Dict(" in line] == ["IMAGE_MODES = Dict()"]
    assert not [name for name, value in vars(rgb_image).items() if hasattr(value, "py_func")], "compiled functions"
    assert type(rgb_image.IMAGE_MODES) is dict
    assert rgb_image.IMAGE_MODES == {"jpg": beton.JPEG, "raw": beton.RAW}
    assert numba.typed.Dict is not dict


def test_ffcvs_compiler_uses_torch_for_its_threads_alone() -> None:
    tree = ast.parse(source(compiler))
    uses = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_name(node.value, "ch")]
    assert uses == ["set_num_threads"]
    assert _is_call(tree.body[-1], "Compiler.set_num_threads(1)"), "the import takes torch's threads away"
    threads = torch.get_num_threads()
    compiler.Compiler.set_num_threads(threads + 1 if threads == 1 else 1)
    assert torch.get_num_threads() == threads
    assert isinstance(compiler.ch, SimpleNamespace)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_call(node: ast.AST, text: str) -> bool:
    return ast.unparse(node) == text


@pytest.mark.filterwarnings("ignore")
def test_without_the_patch_the_compiler_takes_torchs_threads() -> None:
    threads, of_numba = torch.get_num_threads(), numba.get_num_threads()
    try:
        torch.set_num_threads(3)
        runpy.run_path(compiler.__file__)  # as its import runs it, without the 5 s of FFCV's other modules
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(of_numba)


def test_a_loader_draws_no_seed_where_it_is_given_one() -> None:
    parameters = inspect.signature(Loader).parameters
    ours = ("fname", "batch_size", "num_workers", "order", "seed", "drop_last", "batches_ahead", "pipelines")
    assert set(ours) <= set(parameters)
    assert "seed = np.random.randint(0, tinfo.max)" in source(Loader.__init__)


def test_order_and_batch_are_read_from_the_loaders_attributes(loader: Any, failures: list[BaseException]) -> None:
    assert "self.traversal_order.sample_order(self.next_epoch)" in source(Loader.next_traversal_order)
    assert "next_order = self.first_traversal_order" in source(Loader.__len__)
    # The patch of the first order decides the length: with it 7 of 7 records come, without it as many as the file has.
    order = np.array([5, 3, 249, 0, 7, 7, 1])
    epoch = ffcv_patches.start_epoch(loader, order, 3)
    stored = beton.mapped(index := beton.read_index(Path(loader.fname)))
    pictures = np.concatenate([ffcv_patches.next_pixels(epoch, failures) for _ in range(3)])
    assert [bytes(picture) for picture in pictures] == [
        bytes(beton.stored_bytes(index, stored, record)) for record in order
    ]
    assert len(loader) == 3
    with pytest.raises(RuntimeError, match="its thread died"):
        ffcv_patches.next_pixels(epoch, failures)


def test_the_file_is_mapped_when_it_is_opened(loader: Any, path: Path) -> None:
    assert loader.memory_manager.context.mmap is not None
    assert loader.memory_manager.schedule_epoch([]) is loader.memory_manager.context
    bare = os_cache.OSCacheManager(loader.reader)
    assert bare.context.mmap is None, "FFCV maps the file at its first epoch, by its name"
    bare.context.__enter__()
    assert bare.context.mmap is not None


def batches(loader: Any, failures: list[BaseException]) -> tuple[list[beton.Bytes], list[beton.Bytes]]:
    """Return 25 batches as they are after the epoch, and as they were when they came."""
    epoch = ffcv_patches.start_epoch(loader, np.arange(250), 10)
    held, copies = [], []
    for _ in range(25):
        held.append(ffcv_patches.next_pixels(epoch, failures))
        copies.append(held[-1].copy())
    return held, copies


def test_each_batch_has_memory_of_its_own(loader: Any, failures: list[BaseException]) -> None:
    requests, _ = loader.graph.collect_requirements()
    assert [type(request) for request in requests["operation"].values()] == [graph.AllocationQuery]
    assert list(requests["shared"].values()) == [None]
    assert "return buffer[batch_slot][:count]" in source(epoch_iterator.select_buffer)
    held, copies = batches(loader, failures)
    assert all(np.array_equal(a, b) for a, b in zip(held, copies, strict=True))


def test_without_the_patch_batches_are_overwritten(loader: Any, failures: list[BaseException]) -> None:
    del loader.graph.allocate_memory
    assert loader.graph.allocate_memory.__func__ is graph.Graph.allocate_memory
    held, copies = batches(loader, failures)
    assert not all(np.array_equal(a, b) for a, b in zip(held, copies, strict=True))


def test_ffcvs_stage_has_one_operation_which_ours_replaces(path: Path) -> None:
    """FFCV's stage holds the addresses of C functions, so that Numba cannot keep its machine code."""
    genuine = OSCacheManager.compile_reader
    bare = Loader(
        str(path), batch_size=10, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
        pipelines={"image": [rgb_image.SimpleRGBImageDecoder()], "label": None, "crc32": None},
    )  # fmt: skip
    ((stage, names),), outputs = bare.code
    assert names == outputs
    assert list(inspect.signature(stage).parameters)[:3] == ["batch_indices", "metadata", "storage_state"]
    with ffcv_patches._without_compiled_reader():
        assert OSCacheManager.compile_reader is not genuine
    assert OSCacheManager.compile_reader is genuine
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(stage)


@pytest.mark.parametrize("loop", ["_decode_in_turn", "_decode_in_threads"])
def test_the_machine_code_of_our_stage_is_kept(loop: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another dispatcher of the same loop, as another process has it, takes the code from disk."""
    index = beton.read_index(path)
    stored = beton.mapped(index)
    out = np.zeros((3, index.size, index.size, 3), np.uint8)
    workers = 2 if loop == "_decode_in_threads" else 1
    ffcv_stage.decoder(index, stored, workers)(np.array([5, 249, 0]), out)
    assert [bytes(picture) for picture in out] == [
        bytes(beton.stored_bytes(index, stored, record)) for record in (5, 249, 0)
    ]
    again = ffcv_stage._compiled(parallel=workers > 1)(getattr(ffcv_stage, loop).py_func)
    monkeypatch.setattr(ffcv_stage, loop, again)
    ffcv_stage.decoder(index, stored, workers)(np.array([5, 249, 0]), out)
    assert sum(again.stats.cache_hits.values()) == 1
    assert not again.stats.cache_misses


def test_ffcvs_c_functions_take_what_our_stage_gives_them() -> None:
    assert [kind.__name__ for kind in libffcv.ctypes_imdecode.argtypes] == [
        "c_void_p", "c_ulong", "c_uint", "c_uint", "c_void_p", *["c_uint"] * 6, "c_bool", "c_bool",
    ]  # fmt: skip
    assert [kind.__name__ for kind in libffcv.ctypes_memcopy.argtypes] == ["c_void_p", "c_void_p", "c_ulong"]
    code = source(rgb_image.SimpleRGBImageDecoder.generate_code)
    assert "height, width, height, width, 0, 0, 1, 1, False, False)" in code


def fail(**arguments: Any) -> Any:
    raise OSError("the disk is gone")


def test_an_error_in_a_stage_reaches_the_consumer(loader: Any, failures: list[BaseException]) -> None:
    stages, outputs = loader.code
    assert [(callable(stage), type(names)) for stage, names in stages] == [(True, list)] * len(stages)
    assert "except StopIteration:\n        self.output_queue.put(None)" in source(EpochIterator.run)
    loader.code = [(ffcv_patches._guarded(fail, failures, lambda seconds: None), names) for _, names in stages], outputs
    epoch = ffcv_patches.start_epoch(loader, np.arange(250), 10)
    with pytest.raises(RuntimeError, match="in the middle of an epoch: the disk is gone") as error:
        ffcv_patches.next_pixels(epoch, failures)
    assert isinstance(error.value.__cause__, OSError)
    assert not failures


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_without_the_patch_an_error_ends_the_thread_in_silence(loader: Any, failures: list[BaseException]) -> None:
    stages, outputs = loader.code
    loader.code = [(fail, names) for _, names in stages], outputs
    epoch = ffcv_patches.start_epoch(loader, np.arange(250), 10)
    epoch.join(timeout=60)
    assert not epoch.is_alive()
    assert epoch.output_queue.empty(), "FFCV's own __next__ would wait here for ever"
    assert "result = self.output_queue.get()" in source(EpochIterator.__next__)
    with pytest.raises(RuntimeError, match="its thread died"):
        ffcv_patches.next_pixels(epoch, failures)


def test_a_stopped_epoch_leaves_no_thread(loader: Any, failures: list[BaseException]) -> None:
    stages, outputs = loader.code
    begun: list[int] = []

    def counted(stage: Callable[..., Any]) -> Callable[..., Any]:
        def run(**arguments: Any) -> Any:
            begun.append(len(arguments["batch_indices"]))
            return stage(**arguments)

        return run

    loader.code = [(counted(stage), names) for stage, names in stages], outputs
    epoch = ffcv_patches.start_epoch(loader, np.arange(250), 2)
    ffcv_patches.next_pixels(epoch, failures)
    epoch.join(timeout=PATIENCE)
    assert epoch.is_alive(), "FFCV's thread waits for a consumer that has left"
    ffcv_patches.stop_epoch(epoch)
    assert not epoch.is_alive()
    # One was taken, the queue holds those ahead, and one waits for a place in it: of the other 120 none is read.
    assert 1 <= len(begun) <= 1 + loader.batches_ahead + 1


def test_the_writers_parts_are_those_that_its_own_loop_uses(tmp_path: Path) -> None:
    arguments = list(inspect.signature(worker_job_indexed_dataset).parameters)
    assert arguments == [
        "input_queue", "metadata_sm", "metadata_type", "fields", "allocator", "done_number", "allocations_queue",
        "dataset",
    ]  # fmt: skip
    loop = source(DatasetWriter._write_common)
    assert "while previous != self.num_samples:" in loop, "FFCV's loop waits for the records of a dead process"
    assert "is_alive" not in loop
    assert "exitcode" not in loop
    for line in ("self.num_samples = num_samples", "self.prepare()", "self.finalize(allocation_list)"):
        assert line in loop
    with ffcv_patches.open_writer(tmp_path / "x.beton", 3, 32, 90) as writer:
        shared, metadata, fields, allocator = writer.tables
        assert writer.job is worker_job_indexed_dataset
        assert tuple(fields) == beton.FIELDS
        assert shared.size >= 3 * metadata.itemsize
        assert (allocator.fname, allocator.page_size) == (str(tmp_path / "x.beton"), beton.page_size(32))
    with pytest.raises(FileNotFoundError):
        type(shared)(name=shared.name)
