"""Modules one after another. On a GPU kernels of ours do the work of some; they read and write tensors less often."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn import functional

from crelu_models.activations import kernels_for, layout
from crelu_models.dropout import Dropout

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Chain(nn.Sequential):
    """Modules one after another, with the values and gradients of torch's `Sequential`, and printed as one.

    On a GPU a conv's bias is added by the kernel of the activation behind it, its gradient is summed in that of the
    activation's gradient, and max pooling and dropout have kernels of their own, where these give torch's bits and are
    faster. A module with a hook is called as it is.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last module."""
        if kernels_for(x) is None:
            y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return y
        modules = list(self)
        while modules:
            for count, joined in JOINED:
                result = joined(*modules[:count], x) if len(modules) >= count else None
                if result is not None:
                    break
            else:
                count, result = 1, modules[0](x)
            del modules[:count]
            x = result
        return x

    def _get_name(self) -> str:
        return "Sequential"


def _conv_and_activation(conv: nn.Module, act: nn.Module | None, x: Tensor) -> Tensor | None:
    """Return the activation of a conv's output, or that alone, biased by a kernel; None where none does that."""
    kind = "none" if act is None else "relu" if type(act) is nn.ReLU else getattr(act, "kind", "")
    if type(conv) is not nn.Conv2d or conv.bias is None or conv.padding_mode != "zeros":
        return None
    if x.dim() != 4 or not x.numel():
        return None
    module = kernels_for(x, conv.weight, conv.bias)
    if module is None or _is_watched(conv, *([] if act is None else [act])):
        return None
    casts = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(x.device.type) if casts else x.dtype
    form = torch.channels_last if torch.channels_last in (layout(x), layout(conv.weight)) else torch.contiguous_format
    if not module.accepts_bias(kind, dtype, x.device, form):
        return None
    y = functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    bias = conv.bias.to(y.dtype)
    # Where cuDNN may choose by speed alone, the bits of another run are not asked for.
    any_is_right = cudnn.benchmark and not cudnn.deterministic
    order = module.order_of_sums(y, kind, any_is_right) if torch.is_grad_enabled() and bias.requires_grad else None
    if layout(y) != form or (act is None and order is None):  # no sample of this layout was seen, or nothing is gained
        biased = y + bias[:, None, None]
        return biased if act is None else act(biased)
    result: Tensor = module.apply(y, kind, form, bias, order)
    return result


def _conv(conv: nn.Module, x: Tensor) -> Tensor | None:
    """Return a conv's output, biased by a kernel; None where none does that."""
    return _conv_and_activation(conv, None, x)


def _relu_and_dropout(relu: nn.Module | None, drop: nn.Module, x: Tensor) -> Tensor | None:
    """Return the dropout of x, or of its positive part, by a kernel; None where none does that."""
    if type(drop) is not Dropout or not drop.training or (relu is not None and type(relu) is not nn.ReLU):
        return None
    module = kernels_for(x)
    if module is None or _is_watched(drop, *([] if relu is None else [relu])):
        return None
    if not module.accepts_dropout(x, relu is not None):
        return None
    mask, rate = drop.mask(x)
    result: Tensor = module.dropped(x, mask, rate, relu is not None)
    return result


def _dropout(drop: nn.Module, x: Tensor) -> Tensor | None:
    """Return the dropout of x by a kernel; None where none does that."""
    return _relu_and_dropout(None, drop, x)


def _pooled(pool: nn.Module, x: Tensor) -> Tensor | None:
    """Return the max pooling of x by a kernel; None where none does that."""
    if type(pool) is not nn.MaxPool2d or pool.dilation != 1 or pool.return_indices:
        return None
    module = kernels_for(x)
    sizes = pool.kernel_size, pool.stride, pool.padding
    if module is None or _is_watched(pool) or any(type(size) is not int for size in sizes):
        return None
    window = module.Window(*sizes, pool.ceil_mode)
    result: Tensor | None = module.max_pool(x, window) if module.accepts_pool(x, window) else None
    return result


def _is_watched(*modules: nn.Module) -> bool:
    """Return whether calls of these modules do more than their classes say: they, or all, have a hook."""
    hooked = any("forward" in vars(module) or any(getattr(module, name) for name in HOOKS) for module in modules)
    return hooked or bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


# What a kernel of ours may do at once, by the number of modules, that first which does most.
JOINED: tuple[tuple[int, Callable[..., Tensor | None]], ...] = (
    (2, _conv_and_activation),
    (2, _relu_and_dropout),
    (1, _conv),
    (1, _pooled),
    (1, _dropout),
)
