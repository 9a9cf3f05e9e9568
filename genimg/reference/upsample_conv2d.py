"""Nearest upsampling, then a convolution: the definition."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from genimg.reference.conv2d import IntOrPair

Factors = float | tuple[float, ...]
"""One factor for both dimensions, or one for each."""


def upsample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale_factor: Factors = 2,
    size: IntOrPair | None = None,
    mode: str = "nearest",
    padding: IntOrPair | str = "same",
) -> Tensor:
    """``conv2d(u, weight, bias, padding=padding)``, ``u[n, c, i, j] = x[n, c, i // s, j // s]``.

    ``size`` is that of u, in place of the factors s.
    """
    unbatched = isinstance(x, Tensor) and x.dim() == 3
    factors: Any = None if size is not None else scale_factor
    up = F.interpolate(x[None] if unbatched else x, size, factors, mode)
    return F.conv2d(up[0] if unbatched else up, weight, bias, 1, padding)
