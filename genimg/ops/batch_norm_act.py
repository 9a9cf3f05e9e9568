"""Batch norm and LeakyReLU in one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from genimg import _native, priors, reference
from genimg.backends import (
    CPU_DTYPES,
    GPU_DTYPES,
    REFERENCE,
    Impl,
    InvalidCall,
    Op,
    choose,
    dtype_name,
)
from genimg.cases.batch_norm_act import CASES
from genimg.kernels.triton import runtime as triton_runtime
from genimg.memory_format import fits_both_formats, in_format, suggested_format
from genimg.ops.autograd import needs_reference, recompute_grads
from genimg.ops.checks import goes_to_torch
from genimg.testing.kinks import Kink, affine_kink
from genimg.work import FORWARD, Work, passes


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
        training, eps: as :func:`torch.nn.functional.batch_norm`'s.
        momentum: the same, or None for ``1 / num_batches_tracked``, the average of all batches.
        negative_slope: of the activation.
        num_batches_tracked: an integer, counted up in training when the statistics are updated;
            None counts nothing.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        Like ``x``.

    Kept for backward: ``x``, mean, rstd, the parameters (the reference also keeps ``z``).

    Raises:
        TypeError: ``x`` is no tensor; as torch's, for other arguments.
        ValueError, IndexError: as torch's: training on a single value per channel, ``eps`` not
            positive, an ``x`` of less than two dimensions.
        RuntimeError: shapes or dtypes do not fit; no running statistics outside training; running
            statistics that require gradients, as torch's.
        BackendError: the named backend does not support the call.

    Source: Ioffe, Szegedy, "Batch normalization", 2015, algorithms 1 and 2.
    """
    if not isinstance(x, Tensor) and not hasattr(x, "__torch_function__"):
        raise TypeError(f"batch_norm_act: expected x to be a Tensor, but got {type(x).__name__}")
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError(
            "batch_norm_act: expected running_mean and running_var, since training=False, "
            "but got None"
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
        num_batches_tracked,
    )
    if (
        goes_to_torch(
            (x,),
            (running_mean, running_var, weight, bias, num_batches_tracked),
            (),
            (eps if momentum is None else momentum, eps),
        )
        or not isinstance(negative_slope, (int, float))
        or type(training) is not bool
        or x.dim() < 2
        or not eps > 0
        or needs_gradients(running_mean, running_var)
    ):
        return reference.batch_norm_act(*args)
    name = choose(BATCH_NORM_ACT, backend, *args)
    if name == REFERENCE:
        return reference.batch_norm_act(*args)
    _check_training_size(x, training)
    state = (running_mean, running_var, num_batches_tracked)
    options = (training, momentum, eps, float(negative_slope))
    return _BatchNormAct.apply(x, weight, bias, *state, *options, name)


def needs_gradients(running_mean: Tensor | None, running_var: Tensor | None) -> bool:
    """Whether a running statistic asks for a gradient, which PyTorch refuses."""
    return torch.is_grad_enabled() and any(
        statistic is not None and statistic.requires_grad
        for statistic in (running_mean, running_var)
    )


def refuse_norm_dtypes(dtype: torch.dtype, parameters: tuple[Tensor | None, ...]) -> str | None:
    """Why the parameters and statistics of a norm of a ``dtype`` input have the wrong dtypes.

    PyTorch takes those of the input, or float32 for an input of a half dtype; one for all.
    """
    found = {parameter.dtype for parameter in parameters if parameter is not None}
    wide = dtype in (torch.bfloat16, torch.float16) and found == {torch.float32}
    if not found or wide or found == {dtype}:
        return None
    names = ", ".join(sorted(map(dtype_name, found)))
    return InvalidCall(f"parameters of {names} for an input of {dtype_name(dtype)} are invalid")


def _check_training_size(x: Tensor, training: bool) -> None:
    if training and x.numel() <= x.shape[1]:
        raise ValueError(
            "batch_norm_act: expected more than 1 value per channel when training, but got x of "
            f"shape {tuple(x.shape)}"
        )


def track(
    running: Sequence[Tensor | None],
    num_batches_tracked: Tensor | None,
    batch: Sequence[Tensor],
    momentum: float | None,
) -> None:
    """Count a batch, and take its mean and unbiased variance into the running ones.

    It belongs behind the kernel, for a refused call changes nothing, and into the forward of the
    ``autograd.Function``, for checkpointing without reentry ends a recomputation where the last
    tensor is saved.
    """
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    weight: float | Tensor = 0.0 if momentum is None else momentum
    if momentum is None and num_batches_tracked is not None:
        weight = num_batches_tracked.double().reciprocal()
    for statistic, of_batch in zip(running, batch, strict=True):
        if statistic is not None:
            with _same_version(statistic):
                _blend(statistic, of_batch, weight)


def _same_version(x: Tensor) -> AbstractContextManager[None]:
    """Write to ``x`` unnoticed, as torch's batch norm does: a backward of eval mode may hold it."""
    if torch.compiler.is_compiling() or x.is_inference():
        return nullcontext()
    return torch.autograd._unsafe_preserve_version_counter((x,))


def _blend(running: Tensor, batch: Tensor, weight: float | Tensor) -> None:
    """``(1 - weight) running + weight batch``.

    Not ``lerp_``: its ``running + weight (batch - running)`` makes NaN of an Inf that has entered.
    """
    if isinstance(weight, Tensor):
        running.mul_(1 - weight).add_(batch * weight)
    else:
        running.mul_(1 - weight).add_(batch, alpha=weight)


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        num_batches_tracked: Tensor | None,
        training: bool,
        momentum: float | None,
        eps: float,
        negative_slope: float,
        backend: str,
    ) -> Tensor:
        y, mean, rstd, var = BATCH_NORM_ACT.by_backend[backend].fwd(
            x, weight, bias, running_mean, running_var, training, eps, negative_slope
        )
        if training:
            track((running_mean, running_var), num_batches_tracked, (mean, var), momentum)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.options = (training, eps, negative_slope)
        ctx.backend = backend
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        training, eps, negative_slope = ctx.options
        needs_grad = ctx.needs_input_grad[:3]
        if needs_reference(grad_y):

            def again(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                if training:
                    return reference.batch_norm_act(
                        x, None, None, weight, bias, True, 0.0, eps, negative_slope
                    )
                # The running statistics may have changed since.
                var = rstd**-2 - eps
                return reference.batch_norm_act(
                    x, mean, var, weight, bias, False, 0.0, eps, negative_slope
                )

            grads = recompute_grads(again, (x, weight, bias), (grad_y,), needs_grad)
        else:
            grad_x, grad_weight, grad_bias = BATCH_NORM_ACT.by_backend[ctx.backend].bwd(
                grad_y, x, weight, bias, mean, rstd, training, negative_slope, needs_grad[0]
            )
            grads = (
                grad_x if needs_grad[0] else None,
                grad_weight.to(weight.dtype) if needs_grad[1] else None,
                grad_bias.to(bias.dtype) if needs_grad[2] else None,
            )
        return *grads, *(None,) * 8

    @staticmethod
    def kinks(ctx: Any, y: Tensor) -> list[Kink]:
        """For the judge (genimg/testing/kinks.py)."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        _, _, negative_slope = ctx.options
        return [] if negative_slope == 1 else [affine_kink(x, mean, rstd, weight, bias)]


def _cpp_fwd(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.ops.genimg.batch_norm_act_fwd(*args)


def _cpp_bwd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.genimg.batch_norm_act_bwd(*args)


def _output_format(x: Tensor, negative_slope: float) -> torch.memory_format:
    """Where both formats fit, torch's norm takes the contiguous one if its input does, and so does
    an activation behind it.
    """
    if x.is_contiguous() or (negative_slope != 1 and fits_both_formats(x.shape)):
        return torch.contiguous_format
    return suggested_format(x)


def _grad_format(x: Tensor, grad_y: Tensor, negative_slope: float) -> torch.memory_format:
    plain = negative_slope == 1 and x.is_contiguous()
    if plain and suggested_format(grad_y) != torch.contiguous_format:
        return torch.contiguous_format
    return suggested_format(x)


if _native.available():

    @torch.library.register_fake("genimg::batch_norm_act_fwd")
    def _(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        eps: float,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        mean, rstd = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
        var = x.new_empty(channels if training else 0, dtype=torch.float32)
        y = torch.empty_like(x, memory_format=_output_format(x, negative_slope))
        return y, mean, rstd, var

    @torch.library.register_fake("genimg::batch_norm_act_bwd")
    def _(
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        training: bool,
        negative_slope: float,
        needs_grad_x: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        layout = _grad_format(x, grad_y, negative_slope)
        grad_x = torch.empty_like(x, memory_format=layout) if needs_grad_x else x.new_empty(0)
        return grad_x, torch.empty_like(mean), torch.empty_like(mean)


def _refuse(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *_: Any,
) -> str | None:
    return refuse_norm(x, x.shape[1], running_mean, running_var, weight, bias)


def _refuse_cuda(x: Tensor, *args: Any) -> str | None:
    return _refuse(x, *args) or _refuse_size(x)


def _refuse_size(x: Tensor) -> str | None:
    if x.shape[1] >= 2**24 or x.numel() >= 2**31 * x.shape[1] > 0:
        return "a channel of 2^31 values, or 2^24 channels, is more than its indices hold"
    return None


def _why_slower_cpu(x: Tensor, *_: Any) -> str | None:
    pixels = x.dim() == 2 or (x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1)
    return priors.of_batch_norm(x.dtype, x.numel(), x.shape[1], x.shape[0] * x.shape[1], pixels)


def _triton_fwd(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from genimg.kernels.triton import batch_norm_act as kernel

    y, mean, rstd, var = kernel.batch_norm_act_fwd(*args)
    x, *_, negative_slope = args
    return in_format(y, _output_format(x, negative_slope)), mean, rstd, var


def _triton_bwd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from genimg.kernels.triton import batch_norm_act as kernel

    grad_x, grad_weight, grad_bias = kernel.batch_norm_act_bwd(*args)
    grad_y, x, *_, negative_slope, needs_grad_x = args
    if needs_grad_x:
        grad_x = in_format(grad_x, _grad_format(x, grad_y, negative_slope))
    return grad_x, grad_weight, grad_bias


def refuse_norm(
    x: Tensor,
    channels: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> str | None:
    """Why no kernel supports a norm of ``channels`` of ``x``'s dtype and device."""
    if (running_mean is None) != (running_var is None):
        return InvalidCall("one running statistic without the other is invalid")
    for parameter in (running_mean, running_var, weight, bias):
        if parameter is None:
            continue
        if tuple(parameter.shape) != (channels,) or parameter.device != x.device:
            shape = tuple(parameter.shape)
            return f"a parameter of shape {shape} on {parameter.device} does not fit"
    return refuse_norm_dtypes(x.dtype, (running_mean, running_var, weight, bias))


def _work(
    mode: str,
    grad: Sequence[str],
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *_: Any,
    **__: Any,
) -> list[Work]:
    """Statistics read x, applying reads it again; so do the two kernels of backward, and grad_y."""
    kernels = [passes(x, 4, 1)] if training else []
    kernels.append(passes(x, 4, 2))
    return kernels if mode == FORWARD else [*kernels, passes(x, 7, 2), passes(x, 8, 3)]


_CPP = (_cpp_fwd, _cpp_bwd)
_TRITON = (_triton_fwd, _triton_bwd, _refuse, priors.of_gpu)

BATCH_NORM_ACT = Op(
    "batch_norm_act",
    batch_norm_act,
    reference.batch_norm_act,
    CASES,
    impls=(
        Impl("cuda", ("cuda",), *_CPP, _refuse_cuda, priors.of_gpu, dtypes=GPU_DTYPES),
        Impl("cpu", ("cpu",), *_CPP, _refuse, _why_slower_cpu, dtypes=CPU_DTYPES),
        Impl("triton", triton_runtime.DEVICES, *_TRITON, dtypes=GPU_DTYPES),
    ),
    work=_work,
)
