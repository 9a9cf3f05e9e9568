"""Drop-in batch norm."""

import torch
from torch import Tensor

from genimg import ops
from genimg.nn.drop_in import as_scriptable, computes, forward_as_torch


def norm_arguments(module: torch.nn.BatchNorm2d) -> ops.BatchNorm:
    """A batch norm layer's arguments for one call of its op; the op counts the batch."""
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

    __prepare_scriptable__ = as_scriptable

    def forward(self, input: Tensor) -> Tensor:
        """Like torch's."""
        if not computes(self, torch.nn.BatchNorm2d, input):
            return forward_as_torch(self, torch.nn.BatchNorm2d, input)
        return apply_norm(self, input, 1.0)
