"""LeakyReLU on every backend; the template op that ``docs/adding_an_op.md`` walks through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genimg import _native, priors, reference
from genimg.backends import (
    CPU_DTYPES,
    GPU_DTYPES,
    REFERENCE,
    Impl,
    Op,
    choose,
)
from genimg.cases.leaky_relu import CASES
from genimg.kernels.triton import runtime as triton_runtime
from genimg.ops.autograd import needs_reference, recompute_grads
from genimg.ops.checks import goes_to_torch
from genimg.work import FORWARD, Work, passes


def leaky_relu(
    input: Tensor,
    negative_slope: float = 0.01,
    inplace: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""LeakyReLU, elementwise: a drop-in for :func:`torch.nn.functional.leaky_relu`.

    .. math:: y = x \text{ if } x > 0 \text{ else } s \cdot x, \qquad
              \partial L / \partial x = g \text{ if } x > 0 \text{ else } s \cdot g

    with ``s = negative_slope``. At exactly 0 the derivative is ``s``, as torch has it. ``s = 0`` is
    ReLU (but ``-Inf`` gives NaN), ``s = 1`` a copy.

    Args:
        input: any shape, any strides. Kernels: float32, bfloat16, and float16 on a GPU; the rest
            runs through PyTorch.
        negative_slope: any float.
        inplace: write the result over ``input``, through PyTorch.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        Same shape, dtype and memory format as ``input``.

    Kept for backward: ``input``. No autocast rule: it computes in ``input``'s dtype.

    Raises:
        BackendError: the named backend does not support the call.
        TypeError: as torch's, for arguments of other types.
        NotImplementedError: as torch, for a dtype that is not floating-point.

    Source: Maas, Hannun, Ng, "Rectifier nonlinearities improve neural network acoustic models",
    2013, section 2.
    """
    if goes_to_torch((input,), numbers=(negative_slope,)):
        return reference.leaky_relu(input, negative_slope, inplace)
    name = choose(LEAKY_RELU, backend, input, negative_slope, inplace)
    if name == REFERENCE:
        return reference.leaky_relu(input, negative_slope, inplace)
    if input.requires_grad and torch.is_grad_enabled():
        return _LeakyReLU.apply(input, float(negative_slope), name)
    return LEAKY_RELU.by_backend[name].fwd(input, float(negative_slope))


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, negative_slope: float, backend: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.negative_slope = negative_slope
        ctx.backend = backend
        return LEAKY_RELU.by_backend[backend].fwd(x, negative_slope)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        args = (x, ctx.negative_slope)
        if needs_reference(grad_y):
            grads = recompute_grads(reference.leaky_relu, args, (grad_y,), (True, False))
            return *grads, None
        return LEAKY_RELU.by_backend[ctx.backend].bwd(grad_y, *args), None, None


def _cpp_fwd(x: Tensor, negative_slope: float) -> Tensor:
    return torch.ops.genimg.leaky_relu_fwd(x, negative_slope)


def _cpp_bwd(grad_y: Tensor, x: Tensor, negative_slope: float) -> Tensor:
    return torch.ops.genimg.leaky_relu_bwd(grad_y, x, negative_slope)


if _native.available():

    @torch.library.register_fake("genimg::leaky_relu_fwd")
    def _(x: Tensor, negative_slope: float) -> Tensor:
        if x.is_contiguous():  # torch's own fake keeps channels_last where both formats fit
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        return torch.ops.aten.leaky_relu(x, negative_slope)

    @torch.library.register_fake("genimg::leaky_relu_bwd")
    def _(grad_y: Tensor, x: Tensor, negative_slope: float) -> Tensor:
        if x.is_contiguous() and grad_y.is_contiguous() and x.device == grad_y.device:
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        return torch.ops.aten.leaky_relu_backward(grad_y, x, negative_slope, False)


def _refuse(x: Tensor, negative_slope: float, inplace: bool) -> str | None:
    if inplace:
        return "in place: PyTorch's own kernel already makes the one pass that is needed"
    return None


def _why_slower(x: Tensor, negative_slope: float, inplace: bool) -> str | None:
    return priors.of_leaky_relu(x.device.type)


def _triton_fwd(x: Tensor, negative_slope: float) -> Tensor:
    from genimg.kernels.triton import leaky_relu as kernel

    return kernel.leaky_relu_fwd(x, negative_slope)


def _triton_bwd(grad_y: Tensor, x: Tensor, negative_slope: float) -> Tensor:
    from genimg.kernels.triton import leaky_relu as kernel

    return kernel.leaky_relu_bwd(grad_y, x, negative_slope)


def _work(mode: str, grad: Sequence[str], x: Tensor, *_: Any, **__: Any) -> list[Work]:
    kernels = [passes(x, 1, 2)]
    return kernels if mode == FORWARD else [*kernels, passes(x, 1, 3)]


_CPP = (_cpp_fwd, _cpp_bwd, _refuse, _why_slower)
_TRITON = (_triton_fwd, _triton_bwd, _refuse, _why_slower)

LEAKY_RELU = Op(
    "leaky_relu",
    leaky_relu,
    reference.leaky_relu,
    CASES,
    impls=(
        Impl("cuda", ("cuda",), *_CPP, dtypes=GPU_DTYPES),
        Impl("cpu", ("cpu",), *_CPP, dtypes=CPU_DTYPES),
        Impl("triton", triton_runtime.DEVICES, *_TRITON, dtypes=GPU_DTYPES),
    ),
    work=_work,
)
