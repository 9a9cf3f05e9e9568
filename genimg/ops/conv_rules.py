"""Where PyTorch's convolutions were measured to be faster than the CPU kernels.

Figures: benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg.backends import is_below
from genimg.ops.conv_block import block_geometry, out_shape
from genimg.ops.geometry import Geometry, multiplications, pair
from genimg.reference.conv_stack import ConvBlock

_WORTH = 700_000_000  # multiplications from which on a lone convolution was measured to win
_CHANNELS = 32  # and channels
_WORTH_A_CALL = 10_000_000  # and one of a pixel, or to few channels
_LARGE_WEIGHT = 2**18
_BF16_DOT_PRODUCTS = any(
    getattr(torch.cpu, name, bool)()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)
_FAST_SHARE = 0.6  # of a stack's multiplications, from which on its kernels were measured to win
FEW_CHANNELS = 8
"""Up to which the CPU kernels have a form for few channels on the large side."""


def has_winograd_kernel(shape: Sequence[int], weight: Tensor, geometry: Geometry) -> bool:
    """Whether the CPU kernels have a form of fewer multiplications or passes than PyTorch's."""
    g = geometry
    if len(shape) != 4:
        return False
    if tuple(weight.shape[2:]) != (4, 4) or g.groups != 1 or pair(g.dilation) != (1, 1):
        return False
    if g.transposed and tuple(shape[2:]) == (1, 1):
        return True
    if pair(g.stride) != (2, 2) or isinstance(g.padding, str) or pair(g.padding) != (1, 1):
        return False
    if g.transposed:
        return pair(g.output_padding) == (0, 0)
    return shape[2] % 2 == 0 and shape[3] % 2 == 0


def why_slower_bfloat16(dtype: torch.dtype) -> str | None:
    """Why PyTorch's convolutions of bfloat16 are faster on this CPU."""
    if dtype == torch.bfloat16 and _BF16_DOT_PRODUCTS:
        return "in bfloat16 PyTorch's use this CPU's dot products, and are faster"
    return None


def why_slower_cpu(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why PyTorch's convolution is faster."""
    if not has_winograd_kernel(x.shape, weight, geometry):
        return "only 4x4 kernels of stride 2 and padding 1 were measured faster than PyTorch's"
    count = multiplications(x.shape, weight, geometry)
    one_pixel = x.shape[2] == x.shape[3] == 1
    few = geometry.transposed and weight.shape[1] <= FEW_CHANNELS
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if (trains or not few) and (reason := why_slower_bfloat16(x.dtype)):
        return reason
    if few or (geometry.transposed and one_pixel):
        if trains and not one_pixel and x.stride(1) != 1:
            return "in contiguous memory the copies for its backward cost more than it gains"
        if weight.numel() >= _LARGE_WEIGHT or not is_below(count, _WORTH_A_CALL):
            return None
        return f"below {_WORTH_A_CALL // 1_000_000} million multiplications the call costs more"
    if min(weight.shape[:2]) < _CHANNELS:
        return f"with fewer than {_CHANNELS} channels PyTorch's is faster"
    if is_below(count, _WORTH):
        return f"below {_WORTH // 1_000_000} million multiplications PyTorch's is faster"
    return None


def why_slower_stack(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> str | None:
    """Why PyTorch's layers are faster."""
    if x.dim() != 4:
        return None
    shape: Sequence[int] = (1, *x.shape[1:])  # the share is the same for every batch
    fast = every = 0
    for block in blocks:
        geometry = block_geometry(block)
        if isinstance(block.padding, str):
            return None
        count = multiplications(shape, block.weight, geometry)
        fast += count if has_winograd_kernel(shape, block.weight, geometry) else 0
        every += count
        shape = out_shape(shape, block)
    if fast < _FAST_SHARE * every:
        return (
            "most of its multiplications are in other convolutions than 4x4 of stride 2 and "
            "padding 1, where PyTorch's are faster"
        )
    return why_slower_bfloat16(x.dtype)
