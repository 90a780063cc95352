"""Kernels of a GPU on a CPU, by Triton's interpreter."""

import importlib
import sys
from collections.abc import Iterator

import pytest

from crelu_models import activations
from tests.support.gpu_kernels import NO_TRITON, Kernels


@pytest.fixture(scope="module")
def gpu() -> Iterator[Kernels]:
    """Return the kernels for Triton's interpreter; what other tests import is compiled for a GPU."""
    pytest.importorskip("triton", reason=NO_TRITON)
    forget_kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(activations, "INTERPRETED", True)
        patch.setattr(activations, "takes_kernels", True)
        kernels = Kernels(*(importlib.import_module(f"crelu_models.gpu.{name}") for name in Kernels._fields))
        assert kernels.choice.INTERPRETED
        yield kernels
    forget_kernels()


def forget_kernels() -> None:
    """Forget the modules of the kernels, which are imported anew when they are next asked for."""
    activations._kernels.cache_clear()
    for name in [name for name in sys.modules if name.startswith("crelu_models.gpu")]:
        del sys.modules[name]


@pytest.fixture
def exact_conv(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a conv add its bias apart, as a GPU's does; a CPU's gives the same whole numbers."""
    monkeypatch.setattr(gpu.choice, "adds_bias_apart", lambda *_: True)
