"""Transposed convolution: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genimg.reference.conv2d import (
    IntOrPair,
)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Tensor:
    """Pixel ``i`` adds ``weight[c, o, k] x[n, c, i]`` to output pixel ``s i - p + d k``."""
    return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
