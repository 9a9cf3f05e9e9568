"""One wording for every check that an op makes of its arguments before any backend sees them.

What PyTorch refuses by itself is left to it, by :func:`goes_to_torch`. The checks are for calls
that it accepts and answers with garbage, or with a silent cast, or without looking because the
batch is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor


def goes_to_torch(
    tensors: tuple[object, ...],
    optional: tuple[object, ...] = (),
    sizes: tuple[object, ...] = (),
    numbers: tuple[object, ...] = (),
) -> bool:
    """Whether PyTorch takes a call as it stands, whichever backend is named.

    It does where an argument has a type that no kernel takes, for which PyTorch raises its own
    error or, for a ``torch.fx`` proxy, records the call; and under ``torch.jit.trace``, since a
    traced graph has to run where genimg is not installed.

    Args:
        tensors: arguments that must be tensors.
        optional: arguments that may be None, too.
        sizes: one integer, or one for each dimension.
        numbers: integers or floats.
    """
    # Loops, which cost half of what generators do: this stands before every call of an op.
    for x in tensors:
        if not isinstance(x, Tensor):
            return True
    for y in optional:
        if y is not None and not isinstance(y, Tensor):
            return True
    for size in sizes:
        if not _is_size(size):
            return True
    for number in numbers:
        if not isinstance(number, _NUMBERS):
            return True
    return torch.jit.is_tracing()


_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


def _is_size(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return 1 <= len(value) <= 2 and all(map(_is_integer, value))
    return _is_integer(value)


def _is_integer(value: object) -> bool:
    return type(value) is int or isinstance(value, torch.SymInt)  # PyTorch refuses a bool


def is_autocast(x: object) -> bool:
    """Whether autocast is on for ``x``'s kind of device."""
    device = x.device.type if isinstance(x, Tensor) else "meta"
    return device != "meta" and torch.is_autocast_enabled(device)


def check_together(op: str, **tensors: Tensor | None) -> None:
    """Raise RuntimeError unless all are on one device, and, outside autocast, of one dtype."""
    given = [(name, x) for name, x in tensors.items() if x is not None]
    first_name, first = given[0]
    autocast = is_autocast(first)
    for name, x in given[1:]:
        if x.device != first.device:
            raise RuntimeError(
                f"{op}: expected all tensors on one device, but {first_name} is on {first.device} "
                f"and {name} on {x.device}"
            )
        if x.dtype != first.dtype and not autocast:
            raise RuntimeError(
                f"{op}: expected all tensors of one dtype, but {first_name} is {first.dtype} "
                f"and {name} {x.dtype}"
            )


def check_convolution(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    transposed: bool,
) -> None:
    """Raise RuntimeError unless ranks, channels, devices and dtypes fit."""
    check_together(op, input=x, weight=weight, bias=bias)
    if x.dim() not in (3, 4):
        raise RuntimeError(
            f"{op}: expected a 3-D (unbatched) or 4-D input, but got shape {tuple(x.shape)}"
        )
    check_channels(op, x.shape[-3], weight, bias, groups, transposed)


def check_channels(
    op: str,
    channels: int | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    transposed: bool,
) -> None:
    """Raise RuntimeError unless weight and bias fit an input of ``channels`` (None: unknown)."""
    if weight.dim() != 4:
        raise RuntimeError(f"{op}: expected a 4-D weight, but got shape {tuple(weight.shape)}")
    if groups < 1:
        raise RuntimeError(f"{op}: expected groups of at least 1, but got {groups}")
    channels_in = weight.shape[0] if transposed else weight.shape[1] * groups
    channels_out = weight.shape[1] * groups if transposed else weight.shape[0]
    if channels is not None and channels != channels_in:
        raise RuntimeError(
            f"{op}: weight of shape {tuple(weight.shape)} with groups={groups} expects an input of "
            f"{channels_in} channels, but got {channels}"
        )
    if bias is not None and tuple(bias.shape) != (channels_out,):
        raise RuntimeError(
            f"{op}: expected a bias of shape ({channels_out},), but got {tuple(bias.shape)}"
        )
