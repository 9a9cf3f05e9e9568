"""Convolution, then average pooling: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genimg.reference.conv2d import IntOrPair


def conv2d_avg_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: IntOrPair = 2,
    padding: IntOrPair | str = "same",
) -> Tensor:
    """``avg_pool2d(conv2d(x, weight, bias, padding=padding), kernel_size)``.

    Rows and columns that fill no window are left out.
    """
    return F.avg_pool2d(F.conv2d(x, weight, bias, 1, padding), kernel_size)
