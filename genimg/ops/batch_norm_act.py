"""Batch norm and LeakyReLU in one."""

from __future__ import annotations

from torch import Tensor

from genimg import reference
from genimg.backends import Op, choose
from genimg.reference.batch_norm_act import CASES


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    negative_slope: float = 0.01,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Batch norm followed by LeakyReLU.

    .. math:: z = \gamma\,(x - \mu)\,\mathrm{rstd} + \beta,\quad
              \mathrm{rstd} = (\sigma^2 + \epsilon)^{-1/2},\quad
              y = z \text{ if } z > 0 \text{ else } s z

    with mean and (biased) variance of the batch per channel in training, the running ones
    otherwise. In training the running statistics become
    ``(1 - momentum) running + momentum batch``, with the unbiased variance. ``s = negative_slope``:
    1 is plain batch norm, 0 is ReLU.

    Args:
        x: ``[N, C, ...]``, any strides, any floating dtype.
        running_mean, running_var: ``[C]``, written in training; None keeps none.
        weight, bias: gamma and beta, ``[C]``, or None for 1 and 0. They and the statistics may be
            float32 beside an ``x`` of a half dtype.
        training, momentum, eps: as :func:`torch.nn.functional.batch_norm`'s.
        negative_slope: of the activation.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        Like ``x``.

    Kept for backward: ``x``, mean, rstd, the parameters (the reference also keeps ``z``).

    Raises:
        ValueError: training on a single value per channel; ``eps`` not positive.
        RuntimeError: shapes do not fit; no running statistics outside training.
        BackendError: the named backend cannot serve the call.

    Source: Ioffe, Szegedy, "Batch normalization", 2015, algorithms 1 and 2.
    """
    if not eps > 0:
        raise ValueError(f"batch_norm_act: expected eps above 0, but got {eps}")
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError(
            "batch_norm_act: expected running_mean and running_var, since training=False, "
            "but got None"
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"batch_norm_act: expected x to be a Tensor, but got {type(x).__name__}")
    if x.dim() < 2:
        raise ValueError(
            f"batch_norm_act: expected x of shape [N, C, ...], but got {tuple(x.shape)}"
        )
    args = (
        x,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        negative_slope,
    )
    choose(BATCH_NORM_ACT, backend, *args)
    return reference.batch_norm_act(*args)


BATCH_NORM_ACT = Op("batch_norm_act", batch_norm_act, reference.batch_norm_act, CASES)
