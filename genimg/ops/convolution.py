"""Shared by conv2d and conv_transpose2d: the autograd.Function, and the table of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genimg import priors
from genimg.backends import CPU_DTYPES, GPU_DTYPES, OPS, Impl
from genimg.kernels.triton import runtime as triton_runtime
from genimg.memory_format import in_format, suggested_format
from genimg.ops.autograd import needed_grads, needs_reference, recompute_grads
from genimg.ops.checks import is_autocast
from genimg.ops.conv_refusals import refuse_native, refuse_on_triton
from genimg.ops.conv_rules import why_slower_cpu
from genimg.ops.geometry import Geometry, Pair


class ConvolutionFunction(torch.autograd.Function):
    """A convolution by a backend's kernels: first derivatives, and the reference's second ones.

    ``options`` are the op's own after bias, in its order; kept for backward: input and weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        op: str,
        backend: str,
        options: tuple[Pair | int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.call = (op, backend, options)
        return OPS[op].by_backend[backend].fwd(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        op, backend, options = ctx.call
        needs_x, needs_weight, needs_bias = needed_grads(ctx)[:3]
        grad_bias = grad_y.sum((0, 2, 3)) if needs_bias else None
        if needs_reference(grad_y):
            grad_x, grad_weight = recompute_grads(
                lambda x, weight: OPS[op].reference(x, weight, None, *options),
                (x, weight),
                (grad_y,),
                (needs_x, needs_weight),
            )
        elif needs_x or needs_weight:
            grad_x, grad_weight = (
                OPS[op].by_backend[backend].bwd(grad_y, x, weight, *options, needs_x, needs_weight)
            )
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad_bias,
            None,
            None,
            None,
        )


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype, where it is on: convolutions run in the lower precision."""
    if not is_autocast(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)  # type: ignore[union-attr]
    return tuple(x.to(dtype) if x is not None and _is_cast(x) else x for x in tensors)


def autocast_dtype(tensor: Tensor, x: Tensor) -> torch.dtype:
    """The dtype that :func:`autocast` gives ``tensor``, in a call whose input is ``x``."""
    if is_autocast(x) and _is_cast(tensor):
        return torch.get_autocast_dtype(x.device.type)
    return tensor.dtype


def _is_cast(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != torch.float64


def conv_impls(
    geometry_of: Callable[..., Geometry],
    cpp_fwd: Callable[..., Tensor],
    cpp_bwd: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Impl, ...]:
    """A convolution's kernels. ``geometry_of`` takes the op's options, all that follows bias."""

    def about(question: Callable[..., str | None]) -> Callable[..., str | None]:
        def why(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> str | None:
            return question(x, weight, geometry_of(*options))

        return why

    def refuse(question: Callable[..., str | None]) -> Callable[..., str | None]:
        def why(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> str | None:
            return question(x.shape, x.dtype, weight, geometry_of(*options))

        return why

    def triton_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        return _triton_fwd(x, weight, bias, geometry_of(*options))

    def triton_bwd(
        grad_y: Tensor, x: Tensor, weight: Tensor, *args: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        *options, needs_x, needs_weight = args
        return _triton_bwd(grad_y, x, weight, geometry_of(*options), needs_x, needs_weight)

    native = (cpp_fwd, cpp_bwd, refuse(refuse_native))
    triton = (triton_fwd, triton_bwd, refuse(refuse_on_triton))
    return (
        Impl("cuda", ("cuda",), *native, priors.of_gpu, dtypes=GPU_DTYPES),
        Impl("cpu", ("cpu",), *native, about(why_slower_cpu), dtypes=CPU_DTYPES),
        Impl("triton", triton_runtime.DEVICES, *triton, priors.of_gpu, dtypes=GPU_DTYPES),
    )


def _triton_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    from genimg.kernels.triton.conv import convolution as kernel

    y = kernel.convolve(x, weight, bias, kernel.Convolution(*geometry.in_pairs()))
    return in_format(y, memory_format_of(x, weight))


def _triton_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    from genimg.kernels.triton.conv import convolution as kernel

    layout = memory_format_of(x, weight)
    convolution = kernel.Convolution(*geometry.in_pairs())
    grad_x, grad_weight = kernel.convolve_backward(
        grad_y, x, weight, convolution, layout, needs_x, needs_weight
    )
    if grad_x is not None:
        grad_x = in_format(grad_x, layout)
    return grad_x, grad_weight


def empty_output(x: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """A fake output, in the memory format that the kernels give it."""
    layout = memory_format_of(x, weight)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def fake_grads(
    grad_y: Tensor, x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Fake gradients of input and weight; empty where they are not asked for."""
    layout = memory_format_of(x, weight)
    return (
        torch.empty_like(x, memory_format=layout) if needs_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=layout) if needs_weight else weight.new_empty(0),
    )


def memory_format_of(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The memory format of a convolution's output and gradients, as PyTorch passes it on."""
    layout = suggested_format(x)
    return suggested_format(weight) if layout == torch.contiguous_format else layout
