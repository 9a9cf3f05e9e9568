"""The memory format that torch gives a result, and its strides where a size of 1 lets two fit.

A tensor of one channel, or of one pixel an image, is dense in both formats. torch's results then
have the strides of just one of them, on which views and the layers behind depend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ORDERS = {
    4: ((1, 3, 2, 0), torch.channels_last),
    5: ((1, 4, 3, 2, 0), torch.channels_last_3d),
}


def suggested_format(x: Tensor) -> torch.memory_format:
    """``x.suggest_memory_format()`` of C++: which strides channels_last could have, gaps or not."""
    shape, strides = x.shape, x.stride()
    order, channels_last = _ORDERS.get(x.dim(), ((), torch.contiguous_format))
    if not order or strides[1] == 0:
        return torch.contiguous_format
    least = 0
    for d in order:
        if shape[d] == 0 or strides[d] < least:
            return torch.contiguous_format
        if d == 0 and least == strides[1]:  # [N, 1, 1, 1] and [N, C, 1, 1] in order
            return torch.contiguous_format
        least = strides[d] * max(shape[d], 1)
    return channels_last


def fits_both_formats(shape: Sequence[int]) -> bool:
    """Whether a dense tensor of this shape is in both formats."""
    return len(shape) in _ORDERS and (shape[1] == 1 or all(size == 1 for size in shape[2:]))


def elementwise_format(x: Tensor) -> torch.memory_format:
    """The format that torch's elementwise ops give to ``x``: contiguous where both formats fit."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.preserve_format


def in_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``x`` in the format, with just its strides."""
    x = x.contiguous(memory_format=memory_format)
    if not fits_both_formats(x.shape):
        return x
    other = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    # No view of x: autograd refuses to edit in place a view that a Function returns.
    return x if other.stride() == x.stride() else other.copy_(x)
