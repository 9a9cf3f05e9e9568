"""Convolution: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IntOrPair = int | tuple[int, ...]
"""One number for both dimensions, or one for each."""


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """``y[n, o, i, j] = bias[o] + sum weight[o, c, k, l] x[n, c, s i - p + d k, s j - ...]``."""
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
