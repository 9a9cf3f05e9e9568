"""A LeakyReLU's gradient from the signs of its output, which outlive an edit of it in place.

On the CPU a sign is one bit, elsewhere a bool of torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genimg import _native

_GROUP, _GROUP_BYTES = 128, 16
"""Values, and bytes that hold their signs: of ``kernels/cpu/leaky_signs.h``."""


def pack_signs(y: Tensor, negative_slope: float) -> Tensor:
    """Where the gradient of ``y``, a dense output, passes unchanged; under slope 0 NaN lets it."""
    supported = y.device.type == "cpu" and y.dtype in (torch.float32, torch.bfloat16)
    if supported and _native.available():
        return torch.ops.genimg.leaky_signs(y, negative_slope)
    return ~(y <= 0) if negative_slope == 0 else y > 0


def through_signs(
    grad_y: Tensor, signs: Tensor, negative_slope: float, memory_format: torch.memory_format
) -> Tensor:
    """The gradient in front of the activation; ``memory_format`` is that of the output."""
    if signs.dtype == torch.uint8:
        dense = grad_y.contiguous(memory_format=memory_format)
        return torch.ops.genimg.leaky_signs_bwd(dense, signs, negative_slope)
    off = torch.zeros_like(grad_y) if negative_slope == 0 else grad_y * negative_slope
    return torch.where(signs, grad_y, off)


if _native.available():

    @torch.library.register_fake("genimg::leaky_signs")
    def _(y: Tensor, negative_slope: float) -> Tensor:
        groups = (y.numel() + _GROUP - 1) // _GROUP
        return y.new_empty(groups * _GROUP_BYTES, dtype=torch.uint8)

    @torch.library.register_fake("genimg::leaky_signs_bwd")
    def _(grad_y: Tensor, signs: Tensor, negative_slope: float) -> Tensor:
        return torch.empty_like(grad_y)
