"""Why a kernel does not support a convolution: predicates of the convolutions and of conv_stack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg.backends import InvalidCall
from genimg.ops.geometry import Geometry, pair

MAX_KERNEL = 16
"""Taps along one axis that the C++ kernels have room for."""

MAX_PIXELS = 2**30
"""Pixels of a batch that the Triton kernels count; values there may be more than 2**31."""


def refuse_native(
    shape: Sequence[int], dtype: torch.dtype, weight: Tensor, geometry: Geometry
) -> str | None:
    """Why no C++ or CUDA C++ kernel supports a convolution of an input of such a shape."""
    if pair(geometry.dilation) != (1, 1):
        return f"dilation is {geometry.dilation}; this kernel supports 1"
    reason = refuse_geometry(shape, dtype, weight, geometry)
    if reason is None and max(*weight.shape[2:], *pair(geometry.stride)) > MAX_KERNEL:
        kernel = tuple(weight.shape[2:])
        stride = geometry.stride
        return f"kernel {kernel}, stride {stride}; this kernel supports up to {MAX_KERNEL}"
    return reason


def refuse_on_triton(
    shape: Sequence[int], dtype: torch.dtype, weight: Tensor, geometry: Geometry
) -> str | None:
    """Why no Triton kernel supports a convolution of an input of such a shape."""
    reason = refuse_geometry(shape, dtype, weight, geometry)
    if reason is not None:
        return reason
    out_h, out_w = geometry.out_size(shape, weight)
    # Rounded up to a block of pixels and to whole phases.
    if shape[0] * max(shape[2] * shape[3], out_h * out_w) > MAX_PIXELS:
        return f"more than {MAX_PIXELS:,} pixels; this kernel supports no more"
    return None


def refuse_geometry(
    shape: Sequence[int], dtype: torch.dtype, weight: Tensor, geometry: Geometry
) -> str | None:
    """Why no kernel supports a convolution of an input of such a shape."""
    g = geometry
    if g.groups != 1:
        return f"groups is {g.groups}; this kernel supports 1"
    if isinstance(g.padding, str):
        return f"padding is {g.padding!r}; this kernel supports numbers"
    if len(shape) != 4:
        return f"the input has {len(shape)} dimensions; this kernel supports [N, C, H, W]"
    if weight.dtype != dtype:
        return f"the weight is {weight.dtype}, the input {dtype}; this kernel supports one dtype"
    if 0 in shape or weight.numel() == 0:
        return "an empty tensor leaves nothing to do"
    stride = pair(g.stride)
    if min(pair(g.dilation)) < 1:
        return InvalidCall(f"a dilation of {g.dilation} is invalid")
    if min(stride) < 1 or min(pair(g.padding)) < 0:
        return InvalidCall(f"stride {g.stride} with padding {g.padding} is invalid")
    if g.transposed:
        more = pair(g.output_padding)
        if min(more) < 0 or more[0] >= stride[0] or more[1] >= stride[1]:
            return InvalidCall(f"an output padding of {g.output_padding} is invalid")
    if min(g.out_size(shape, weight)) < 1:
        return InvalidCall(f"an input of {tuple(shape)} leaves no output")
    return None
