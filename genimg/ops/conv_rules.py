"""The facts of convolutions that their priors depend on (genimg/priors.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg import priors
from genimg.ops.conv_block import block_geometry, out_shape
from genimg.ops.geometry import Geometry, multiplications, pair
from genimg.reference.conv_stack import ConvBlock

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


def why_slower_cpu(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why PyTorch's convolution is expected to be faster."""
    if not has_winograd_kernel(x.shape, weight, geometry):
        return priors.of_other_convolution()
    one_pixel = x.shape[2] == x.shape[3] == 1
    return priors.of_convolution(
        priors.Convolution(
            dtype=x.dtype,
            few=geometry.transposed and weight.shape[1] <= FEW_CHANNELS,
            one_pixel=geometry.transposed and one_pixel,
            channels=min(weight.shape[:2]),
            weight=weight.numel(),
            multiplications=multiplications(x.shape, weight, geometry),
            trains=torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad),
            pixels=x.stride(1) == 1,
        )
    )


def why_slower_stack(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> str | None:
    """Why PyTorch's layers are expected to be faster."""
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
    return priors.of_stack(x.dtype, x.shape[0], fast, every)
