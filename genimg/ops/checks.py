"""One wording for every check that an op makes of its arguments before any backend sees them.

What PyTorch refuses by itself is left to it. These are the calls that it accepts and answers with
garbage, or with a silent cast, or without looking because the batch is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_together(op: str, **tensors: Tensor | None) -> None:
    """Raise RuntimeError unless all are on one device, and, outside autocast, of one dtype.

    What is not a tensor is left to PyTorch, which raises TypeError.
    """
    given = [(name, x) for name, x in tensors.items() if isinstance(x, Tensor)]
    if not given:
        return
    first_name, first = given[0]
    autocast = torch.is_autocast_enabled(first.device.type)
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
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        return
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
