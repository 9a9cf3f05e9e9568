"""LeakyReLU: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``y = x if x > 0 else negative_slope * x``; at 0 the gradient is ``negative_slope``."""
    return F.leaky_relu(x, negative_slope, inplace)
