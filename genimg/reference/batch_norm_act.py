"""Batch norm and LeakyReLU in one: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    negative_slope: float = 0.01,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """``z = weight (x - mean) rstd + bias``, then ``z if z > 0 else negative_slope z``.

    Slope 1 is plain batch norm; slope 0 is ReLU, which sends -Inf to 0. The batch is counted before
    its norm, as :class:`torch.nn.BatchNorm2d` does: under activation checkpointing a recomputation
    may end within the norm.
    """
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    if momentum is None:
        counts = training and num_batches_tracked is not None
        momentum = 1.0 / float(num_batches_tracked) if counts else 0.0  # type: ignore[arg-type]
    z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if negative_slope == 1:
        return z
    return F.relu(z) if negative_slope == 0 else F.leaky_relu(z, negative_slope)
