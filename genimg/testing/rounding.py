"""The error that a problem has by itself, whoever computes it: bounds without PyTorch's own error.

PyTorch's own error depends on how a library sums on that CPU, and may be very small by chance. The
bounds here come from float64 alone, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genimg.testing.cases import Case, Tensors, run

DRAWS = 2
"""Runs with perturbed operations, of which the largest deviation counts; large cases need one."""

_aten: Any = torch.ops.aten


def magnitudes(
    case: Case, reference: Callable[..., Any], wide: Tensors, grad_outputs: list[Tensor]
) -> Tensors:
    """The magnitudes that each result of a bilinear op sums: ``|x| * |w| + |b|`` and so on.

    The reference in float64 of absolute values; rounding each term and each partial sum costs an
    element ``eps`` times a part of it.
    """
    sizes = {name: x.abs() for name, x in wide.items()}
    results, _ = run(case, reference, sizes, [g.abs() for g in grad_outputs])
    return results


def perturbed(
    run_truth: Callable[[], Tensors], truth: Tensors, dtype: torch.dtype, draws: int = DRAWS
) -> Tensors:
    """How far each result moves, at most, when every operation behind it is off by its rounding.

    A first-order model of any sane implementation in ``dtype``: each operation's result, forward
    and backward, moves by one float32 ulp of what it sums, and by half an ulp of ``dtype`` as it is
    stored, up or down by chance.

    Args:
        run_truth: runs the reference in float64.
        truth: its results when nothing is perturbed.
        dtype: the dtype under test.
        draws: how often.
    """
    moved = {name: torch.zeros_like(value) for name, value in truth.items()}
    for seed in range(draws):
        with _Perturb(dtype, seed):
            results = run_truth()
        for name, value in results.items():
            change = (value - truth[name]).abs().nan_to_num(0.0, 0.0)
            if change.numel():
                moved[name] = torch.maximum(moved[name], change.max())
    return moved


class _Perturb(TorchDispatchMode):
    """Adds to every float64 result what rounding could, with a sign by chance."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.summing = torch.finfo(torch.float32).eps
        self.storing = torch.finfo(dtype).eps / 2
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func.is_view or func.overloadpacket in _EXACT:
            return outputs
        made = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        summed = _SUMS.get(func.overloadpacket, _nothing_summed)(made, *args, **(kwargs or {}))
        for y, size in zip(made, summed, strict=True):
            if isinstance(y, Tensor) and y.dtype == torch.float64 and y.numel():
                self._move(y, y.abs() if size is None else size)
        if func.overloadpacket is _aten.native_batch_norm:
            self._move_running(*args)
        return outputs

    def _move_running(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> None:
        if not training or mean is None or var is None:
            return
        off = (x - _channel_mean(x)).abs()
        for running, size in (
            (mean, _channel_mean(x.abs())),
            (var, _channel_mean(off * (off + x.abs()))),
        ):
            self._move(running, running.abs() + momentum * size.flatten())

    def _move(self, y: Tensor, size: Tensor) -> None:
        signs = torch.randint(0, 2, y.shape, generator=self.generator).to(y) * 2 - 1
        by = self.summing * size + self.storing * y.abs()
        y += torch.where(by.isfinite(), signs.to(y.device) * by, 0.0)


def _nothing_summed(made: Any, *args: Any, **kwargs: Any) -> list[None]:
    return [None] * len(made)


def _convolution(made: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
    sizes = (x.abs(), weight.abs(), None if bias is None else bias.abs())
    return [_aten.convolution(*sizes, *options)]


def _convolution_backward(made: Any, grad: Tensor, x: Tensor, weight: Tensor, *options: Any) -> Any:
    return list(_aten.convolution_backward(grad.abs(), x.abs(), weight.abs(), *options))


def _per_channel(values: Tensor | None, like: Tensor) -> Tensor:
    """``values`` along the channels of ``like``; None is 1."""
    if values is None:
        return like.new_ones(())
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _channel_mean(x: Tensor) -> Tensor:
    return x.mean([d for d in range(x.dim()) if d != 1], keepdim=True)


def _batch_norm(
    made: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    *options: Any,
) -> Any:
    mean, rstd = made[1], made[2]
    if not training:
        *_, eps = options
        mean = running_mean
        rstd = None if running_var is None else (running_var + eps).rsqrt()
    scale = _per_channel(rstd, x) * _per_channel(weight, x)
    centre = _per_channel(mean, x)
    size = (x.abs() + centre.abs()) * scale.abs()
    if bias is not None:
        size = size + _per_channel(bias, x).abs()
    return [size, None, None]


def _batch_norm_backward(
    made: Any,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    training: bool,
    eps: float,
    mask: Any,
) -> Any:
    if not training:
        mean = running_mean
        rstd = None if running_var is None else (running_var + eps).rsqrt()
    scale = _per_channel(rstd, x)
    normed = ((x - _per_channel(mean, x)) * scale).abs()
    # The error of x - mean is an ulp of either.
    reach = normed + (x.abs() + _per_channel(mean, x).abs()) * scale
    size = grad.abs()
    if training:
        size = size + _channel_mean(grad.abs()) + reach * _channel_mean(grad.abs() * reach)
    of_channels = [d for d in range(x.dim()) if d != 1]
    sums = (
        size * (scale * _per_channel(weight, x)).abs(),
        (grad.abs() * reach).sum(of_channels),
        grad.abs().sum(of_channels),
    )
    return [found if y is not None else None for y, found in zip(made, sums, strict=True)]


def _sum(made: Any, x: Tensor, *options: Any, **kwargs: Any) -> Any:
    return [_aten.sum(x.abs(), *options, **kwargs)]


_SUMS: dict[Any, Callable[..., Any]] = {
    _aten.convolution: _convolution,
    _aten.convolution_backward: _convolution_backward,
    _aten.native_batch_norm: _batch_norm,
    _aten.native_batch_norm_backward: _batch_norm_backward,
    _aten.sum: _sum,
}
"""What the results of operations that sum are sums of."""

_EXACT = {
    _aten.abs,
    _aten.clone,
    _aten.contiguous,
    _aten.copy_,
    _aten.detach,
    _aten.empty,
    _aten.empty_like,
    _aten.new_empty,
    _aten.new_zeros,
    _aten.ones_like,
    _aten.relu,
    _aten.threshold_backward,
    _aten.where,
    _aten.zeros,
    _aten.zeros_like,
    _aten._to_copy,
}
"""Operations that round nothing."""
