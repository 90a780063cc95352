"""Which kernels a GPU takes, and that they compile for one."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crelu_models.activations import activation, crelu
from tests.support.gpu_kernels import CPU, NO_TRITON, PLAIN, Kernels, both, draw


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_kernel_of_elu_is_its_formula_and_is_taken_only_where_it_is_exact(gpu: Kernels) -> None:
    x, weight = draw((3, 5, 7, 3))
    ours = both(partial(gpu.activations.apply, kind="concat_elu", form=PLAIN), x, weight)
    theirs = both(gpu.activations.DEFINITIONS["concat_elu"], x, weight)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not gpu.choice.accepts(x, "concat_elu", PLAIN)
    assert torch.equal(activation("concat_elu", 5)(x), gpu.activations.DEFINITIONS["concat_elu"](x))


def test_a_kernel_that_does_not_compile_is_not_taken(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(gpu.activations, "_launch", refused)
    gpu.choice.is_exact.cache_clear()
    assert not gpu.choice.accepts(torch.randn(2, 3), "crelu", PLAIN)
    gpu.choice.is_exact.cache_clear()


def test_activations_take_the_kernels(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(gpu.choice, "apply", lambda x, kind, form: taken.append(kind) or x)
    monkeypatch.setattr(gpu.choice, "is_exact", lambda *_: True)
    for kind in ("crelu", "crelu_leaky", "concat_elu", "avr", "antirectifier", "relu", "elu"):
        activation(kind, 3)(torch.randn(2, 3, 4, 4))
    assert taken == ["crelu", "crelu_leaky", "concat_elu", "avr", "crelu"]


def test_what_the_kernels_do_not_take_is_left_to_torch(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.activations, "_launch", None)
    monkeypatch.setattr(gpu.choice, "is_exact", lambda *_: True)
    x = torch.randn(4, 6, 5, 5)
    for odd in (x.double(), x[:, ::2], x[:0], x[0, 0, 0], x.permute(2, 3, 0, 1)):
        assert not gpu.choice.accepts(odd, "crelu", PLAIN)
    assert torch.equal(crelu(x.double()), gpu.activations.DEFINITIONS["crelu"](x.double()))
    assert torch.equal(torch.vmap(crelu)(x), torch.stack([torch.cat([e.relu(), (-e).relu()], 1) for e in x]))
    gradient = torch.func.grad(lambda value: crelu(value).pow(2).sum())(x)
    torch.testing.assert_close(gradient, 2 * x)
    compiled = torch.compile(crelu, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), gpu.activations.DEFINITIONS["crelu"](x))


def test_samples_and_timings_are_not_those_of_autocast(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's autocast gives sums in fp32: of a bias in bf16 no kernel would be taken."""
    window = gpu.pooling.Window(2, 2, 0, False)
    casts: list[bool] = []

    def noting(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given, **named: casts.append(torch.is_autocast_enabled("cpu")) or function(*given, **named)

    monkeypatch.setitem(gpu.activations.DEFINITIONS, "relu", noting(torch.relu))
    monkeypatch.setattr(gpu.choice, "torch_pool", noting(gpu.pooling.torch_pool))
    monkeypatch.setattr(torch.nn.functional, "conv2d", noting(torch.nn.functional.conv2d))
    monkeypatch.setattr(gpu.choice, "TIMED_SHAPE", (1, 3, 6, 6))
    monkeypatch.setattr(gpu.choice, "TIMER", lambda call, _: call() and 1.0)
    where = torch.bfloat16, CPU
    choices = (
        partial(gpu.choice.is_exact, "relu", *where, torch.channels_last, biased=True),
        partial(gpu.choice.is_faster, "relu", *where, biased=True),
        partial(gpu.choice.pool_is_exact, window, *where),
        partial(gpu.choice.pool_is_faster, window, *where),
        partial(gpu.choice.adds_bias_apart, *where),
    )
    for choice in choices:
        choice.func.cache_clear()
        seen = len(casts)
        with torch.autocast("cpu", torch.bfloat16):
            choice()
        assert len(casts) > seen, choice
        choice.func.cache_clear()
    assert not any(casts)


def test_kernels_are_launched_on_the_device_of_their_tensors(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: devices.append(x) or nullcontext())
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    window = gpu.pooling.Window(2, 2, 0, False)
    gpu.pooling.max_pool(gpu.activations.apply(x, "crelu", torch.channels_last), window).sum().backward()
    assert [value.shape for value in devices] == [(2, 3, 4, 4), (2, 6, 2, 2), (2, 6, 4, 4), (2, 3, 4, 4)]


def test_a_row_of_more_programs_than_a_gpu_has_is_left_to_torch(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 4)
    monkeypatch.setattr(gpu.choice, "LONGEST_ROW", 47)
    assert not gpu.choice.accepts(x, "crelu", PLAIN)
    assert gpu.choice.accepts(x.contiguous(memory_format=torch.channels_last), "crelu", torch.channels_last)


def test_a_cpu_is_found_to_add_biases_before_it_rounds(gpu: Kernels) -> None:
    assert not gpu.choice.adds_bias_apart(torch.float32, CPU)


def test_the_faster_is_taken_of_two_that_give_equal_bits(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    window = gpu.pooling.Window(2, 2, 0, False)
    monkeypatch.setattr(gpu.choice, "TIMED_SHAPE", (1, 3, 6, 6))
    for first, faster in ((1.0, True), (3.0, False)):
        for choice in (gpu.choice.is_faster, gpu.choice.pool_is_faster):
            choice.cache_clear()
        times = [first, 2.0] * 3
        calls: list[Tensor] = []
        monkeypatch.setattr(gpu.choice, "TIMER", lambda call, _, t=times, c=calls: c.extend(call()) or t.pop(0))
        for _ in range(2):  # it is measured once
            assert gpu.choice.accepts(x, "crelu", torch.channels_last) == faster
            assert gpu.choice.is_faster("relu", x.dtype, x.device, biased=True) == faster
            assert gpu.choice.accepts_pool(x, window) == faster
        assert times == []
        assert [value.shape for value in calls] == [(1, 3, 6, 6)] * 2 + [(1, 3, 6, 6), (3,)] * 2 + [(1, 3, 6, 6)] * 2
    for choice in (gpu.choice.is_faster, gpu.choice.pool_is_faster):
        choice.cache_clear()


def test_a_timing_waits_for_all_streams_and_counts_no_launches(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pack the kernels of other nets would run beside the first of the two that are compared."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait for the last")

        def elapsed_time(self, _: Any) -> float:
            return 7.0

    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait for all"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: done.append("sleep"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert gpu.choice._milliseconds(lambda: done.append("call"), torch.device("cuda")) == 7.0
    assert done == ["call", "wait for all", "sleep", "record", *["call"] * 5, "record", "wait for the last"]


# Triton compiles for a GPU where there is none; what its interpreter takes need not compile.
COMPILED = """
import re
from collections import Counter
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crelu_models.gpu import activations, dropout, pooling, sums

def compiled(kernel, **constants):
    names = kernel.arg_names
    halves = "x", "y", "g", "saved", "bias", "by_x", "result", "mask"
    types = {"places": "*u8", "sums": "*fp32", "scale": "fp32"} | dict.fromkeys(halves, "*bf16")
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    # Sides of pictures are of any length.
    row = "channels" if "places" in names else "width"
    plain = [one.name for one in kernel.params if one.do_not_specialize]
    whole = [n for n, name in enumerate(names) if (name == row and name not in plain) or signature[name][0] == "*"]
    attributes = {(n,): [["tt.divisibility", 16]] for n in whole}
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    assert made.asm["cubin"]
    return made

def moves(kernel, **constants):
    return Counter(re.findall(r"(?:ld|st)[.]global[.\\w]*", compiled(kernel, **constants).asm["ptx"]))

tile = {"high": 8, "wide": 128}
for kind in activations.DEFINITIONS:
    for biased in (False, True):
        constants = {"kind": kind, "slope": activations.SLOPE, "biased": biased, **tile}
        moves(activations._activation_forward, **constants)
        moves(activations._activation_backward, **constants, halvings=3, summed=biased)
for rectified in (False, True):
    for kernel in (dropout._dropout_forward, dropout._dropout_backward):
        moves(kernel, rectified=rectified, block=1024)
made = compiled(sums._add_parts, high=4, wide=sums.COLUMNS, halvings=2, together=sums.AT_ONCE)
print(*(word[0] for word in re.findall(r"\\bLDG|\\bFADD", made.asm["sass"])[: sums.AT_ONCE + 1]), sep="")
for kernel in (activations._activation_forward, pooling._pool_forward, pooling._pool_backward):
    print(*(one.name for one in kernel.params if not one.is_constexpr and not one.do_not_specialize))
for side, stride in ((2, 2), (3, 2)):
    for kernel in (pooling._pool_forward, pooling._pool_backward):
        print(sorted(moves(kernel, side=side, stride=stride, pad=0, **tile).items()))
"""


def test_kernels_compile_for_a_gpu_and_pooling_moves_16_bytes_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    load, half, store = "ld.global.v4.b32", "v2.b32", "st.global.v4.b32"  # half for the places, of a byte each
    expected = []
    for read, over in ((4, 1), (9, 4)):
        expected.append({load: read, store: 1, f"st.global.{half}": 1})
        expected.append({load: over, f"ld.global.{half}": over, store: 1})
    # A kernel is compiled again where one of these is 1, or a multiple of 16: then its code is faster.
    again = ["x bias y width map_size", "x y places channels", "g places by_x channels"]
    reads = "L" * 8 + "F"  # of eight parts before the first is added: a sum waits for what it adds
    assert done.stdout.splitlines() == [reads, *again, *(str(sorted(moves.items())) for moves in expected)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_kernels_are_timed_without_their_launches() -> None:
    from crelu_models.gpu import choice

    x = torch.zeros(1 << 26, device="cuda")
    once = min(choice._milliseconds(lambda: x.add_(1), x.device) for _ in range(5))
    twice = min(choice._milliseconds(lambda: x.add_(1).add_(1), x.device) for _ in range(5))
    assert 1.5 < twice / once < 2.5
    assert choice.is_faster("crelu", torch.bfloat16, x.device)
