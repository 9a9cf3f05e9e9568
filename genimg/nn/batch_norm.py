"""Batch norm layers, drop-in and with the activation fused in."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg import ops


def norm_arguments(module: torch.nn.BatchNorm2d) -> ops.BatchNorm:
    """What a batch norm layer hands to its op for one call; the op counts the batch."""
    keeps_statistics = module.running_mean is not None or module.running_var is not None
    reads_statistics = not module.training or module.track_running_stats
    return ops.BatchNorm(
        module.running_mean if reads_statistics else None,
        module.running_var if reads_statistics else None,
        module.weight,
        module.bias,
        module.momentum,
        module.eps,
        module.training or not keeps_statistics,
        module.num_batches_tracked if module.training and module.track_running_stats else None,
    )


def apply_norm(module: torch.nn.BatchNorm2d, x: Tensor, negative_slope: float) -> Tensor:
    """Run a batch norm layer and a LeakyReLU as one op."""
    module._check_input_dim(x)
    norm = norm_arguments(module)
    return ops.batch_norm_act(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        bool(norm.training),
        norm.momentum,
        norm.eps,
        negative_slope,
        norm.num_batches_tracked,
    )


class BatchNorm2d(torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` over :func:`genimg.ops.batch_norm_act` with slope 1.

    Same signature, state and repr; ``y = weight (x - mean) rstd + bias``, ``x`` ``[N, C, H, W]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Like torch's."""
        return apply_norm(self, input, 1.0)


class BatchNormAct2d(torch.nn.BatchNorm2d):
    """Batch norm and LeakyReLU as one layer, with :class:`torch.nn.BatchNorm2d`'s state.

    ``z = weight (x - mean) rstd + bias``, ``y = z if z > 0 else negative_slope z``, for ``x``
    ``[N, C, H, W]``; see :func:`genimg.ops.batch_norm_act`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as torch's.
        negative_slope: 0 is ReLU, 1 is no activation.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        negative_slope: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return apply_norm(self, input, self.negative_slope)

    def extra_repr(self) -> str:
        """BatchNorm2d's, and the slope."""
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"
