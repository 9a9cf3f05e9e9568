"""What conv2d and conv_transpose2d share: one autograd.Function, one account of what is served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genimg import _native
from genimg.backends import (
    OPS,
    Impl,
    InvalidCall,
    is_below,
    needed_grads,
    needs_reference,
    not_measured,
    recompute_grads,
    refuse_dtype,
)
from genimg.kernels.triton import runtime as triton_runtime
from genimg.memory_format import in_format, suggested_format
from genimg.ops.checks import is_autocast
from genimg.reference.conv2d import IntOrPair

MAX_KERNEL = 16
"""Taps along one axis that the C++ kernels have room for."""

MAX_PIXELS = 2**30
"""The most pixels of a batch that the Triton kernels count; values may exceed 2**31."""

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Pair = tuple[int, int]


def pair(value: IntOrPair) -> Pair:
    """One number for both dimensions, or one for each."""
    if isinstance(value, int):
        return (value, value)
    first, second = value if len(value) == 2 else (value[0], value[0])
    return (first, second)


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


def _is_cast(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != torch.float64


def _why_not_cpu(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why the C++ kernels cannot serve a convolution."""
    return (
        _native.why_not()
        or refuse_dtype(x, (torch.float32, torch.bfloat16))
        or refuse_native(x.shape, x.dtype, weight, geometry)
    )


def _why_not_triton(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why the Triton kernels cannot serve a convolution."""
    return (
        triton_runtime.why_not(x)
        or refuse_dtype(x, TRITON_DTYPES)
        or refuse_on_triton(x.shape, x.dtype, weight, geometry)
    )


def _why_not_cuda(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why the CUDA kernels cannot serve a convolution."""
    return (
        _native.why_not_cuda()
        or refuse_dtype(x, (torch.float32, torch.bfloat16, torch.float16))
        or refuse_native(x.shape, x.dtype, weight, geometry)
    )


@dataclass(frozen=True)
class Geometry:
    """A convolution's options; ``output_padding`` is a transposed one's."""

    transposed: bool
    stride: IntOrPair
    padding: IntOrPair | str
    output_padding: IntOrPair
    groups: int
    dilation: IntOrPair

    def in_pairs(self) -> tuple[bool, Pair, Pair, Pair, Pair]:
        """All but groups, of one that no kernel refused."""
        assert not isinstance(self.padding, str)
        options = (self.stride, self.padding, self.output_padding, self.dilation)
        stride, padding, output_padding, dilation = map(pair, options)
        return self.transposed, stride, padding, output_padding, dilation

    def out_size(self, shape: Sequence[int], weight: Tensor) -> Pair:
        """Height and width of the output."""
        assert not isinstance(self.padding, str)
        (stride_h, stride_w), (pad_h, pad_w) = pair(self.stride), pair(self.padding)
        # What a kernel of this dilation spans.
        kernel_h, kernel_w = (
            d * (size - 1) + 1
            for d, size in zip(pair(self.dilation), weight.shape[2:], strict=True)
        )
        height, width = shape[2:]
        if self.transposed:
            more_h, more_w = pair(self.output_padding)
            return (
                (height - 1) * stride_h - 2 * pad_h + kernel_h + more_h,
                (width - 1) * stride_w - 2 * pad_w + kernel_w + more_w,
            )
        return (
            (height + 2 * pad_h - kernel_h) // stride_h + 1,
            (width + 2 * pad_w - kernel_w) // stride_w + 1,
        )


def refuse_native(
    shape: Sequence[int], dtype: torch.dtype, weight: Tensor, geometry: Geometry
) -> str | None:
    """Why those in C++ and CUDA C++ cannot serve a convolution of an input of such a shape."""
    if pair(geometry.dilation) != (1, 1):
        return f"dilation={geometry.dilation} is not served, only 1"
    reason = refuse_geometry(shape, dtype, weight, geometry)
    if reason is None and max(*weight.shape[2:], *pair(geometry.stride)) > MAX_KERNEL:
        kernel = tuple(weight.shape[2:])
        stride = geometry.stride
        return f"a kernel of {kernel} with stride {stride}: only up to {MAX_KERNEL} is served"
    return reason


def refuse_on_triton(
    shape: Sequence[int], dtype: torch.dtype, weight: Tensor, geometry: Geometry
) -> str | None:
    """Why the Triton kernels cannot serve a convolution of an input of such a shape."""
    reason = refuse_geometry(shape, dtype, weight, geometry)
    if reason is not None:
        return reason
    out_h, out_w = geometry.out_size(shape, weight)
    # Rounded up to a block of pixels and to whole phases.
    if shape[0] * max(shape[2] * shape[3], out_h * out_w) > MAX_PIXELS:
        return f"more than {MAX_PIXELS:,} pixels are not served"
    return None


def refuse_geometry(
    shape: Sequence[int], dtype: torch.dtype, weight: Tensor, geometry: Geometry
) -> str | None:
    """Why no kernel can serve a convolution of an input of such a shape."""
    g = geometry
    if g.groups != 1:
        return f"groups={g.groups} is not served, only 1"
    if isinstance(g.padding, str):
        return f"padding={g.padding!r} is not served, only numbers"
    if len(shape) != 4:
        return f"an input of {len(shape)} dimensions is not served, only [N, C, H, W]"
    if weight.dtype != dtype:
        return f"a weight of {weight.dtype} for an input of {dtype} is not served"
    if 0 in shape or weight.numel() == 0:
        return "an empty tensor leaves nothing to do"
    stride = pair(g.stride)
    if min(pair(g.dilation)) < 1:
        return InvalidCall(f"a dilation of {g.dilation} is invalid")
    if min(stride) < 1 or min(pair(g.padding)) < 0:
        return InvalidCall(f"stride {g.stride} with padding {g.padding} is invalid")
    if g.transposed:
        more = pair(g.output_padding)
        if min(more) < 0 or more[0] >= stride[0] or more[1] >= stride[1]:
            return InvalidCall(f"an output padding of {g.output_padding} is invalid")
    if min(g.out_size(shape, weight)) < 1:
        return InvalidCall(f"an input of {tuple(shape)} leaves no output")
    return None


def has_winograd_kernel(shape: Sequence[int], weight: Tensor, geometry: Geometry) -> bool:
    """Whether the CPU kernels have a form of fewer multiplications or passes than PyTorch's."""
    g = geometry
    if len(shape) != 4:
        return False
    if tuple(weight.shape[2:]) != (4, 4) or g.groups != 1 or pair(g.dilation) != (1, 1):
        return False
    if g.transposed and tuple(shape[2:]) == (1, 1):
        return True
    if pair(g.stride) != (2, 2) or isinstance(g.padding, str) or pair(g.padding) != (1, 1):
        return False
    if g.transposed:
        return pair(g.output_padding) == (0, 0)
    return shape[2] % 2 == 0 and shape[3] % 2 == 0


def multiplications(shape: Sequence[int], weight: Tensor, geometry: Geometry) -> int:
    """The multiplications of the convolution as it is defined, padding included."""
    sizes = tuple(shape[2:]) if geometry.transposed else geometry.out_size(shape, weight)
    return shape[0] * sizes[0] * sizes[1] * weight.numel()


_WORTH = 700_000_000  # multiplications from which on a lone convolution was measured to win
_CHANNELS = 32  # and channels
_WORTH_A_CALL = 10_000_000  # and one of a pixel, or to few channels
_LARGE_WEIGHT = 2**18
_BF16_DOT_PRODUCTS = any(
    getattr(torch.cpu, name, bool)()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)
FEW_CHANNELS = 8
"""Up to which the CPU kernels have a form for few channels on the large side."""


def why_slower_bfloat16(dtype: torch.dtype) -> str | None:
    """Why PyTorch's convolutions of bfloat16 are faster on this CPU."""
    if dtype == torch.bfloat16 and _BF16_DOT_PRODUCTS:
        return "in bfloat16 PyTorch's use this CPU's dot products, and are faster"
    return None


def why_slower_cpu(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why PyTorch's convolution is faster. Figures: benchmarks/README.md."""
    if not has_winograd_kernel(x.shape, weight, geometry):
        return "only 4x4 kernels of stride 2 and padding 1 were measured faster than PyTorch's"
    count = multiplications(x.shape, weight, geometry)
    one_pixel = x.shape[2] == x.shape[3] == 1
    few = geometry.transposed and weight.shape[1] <= FEW_CHANNELS
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if (trains or not few) and (reason := why_slower_bfloat16(x.dtype)):
        return reason
    if few or (geometry.transposed and one_pixel):
        if trains and not one_pixel and x.stride(1) != 1:
            return "in contiguous memory the copies for its backward cost more than it gains"
        if weight.numel() >= _LARGE_WEIGHT or not is_below(count, _WORTH_A_CALL):
            return None
        return f"below {_WORTH_A_CALL // 1_000_000} million multiplications the call costs more"
    if min(weight.shape[:2]) < _CHANNELS:
        return f"with fewer than {_CHANNELS} channels PyTorch's is faster"
    if is_below(count, _WORTH):
        return f"below {_WORTH // 1_000_000} million multiplications PyTorch's is faster"
    return None


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

    def triton_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        return _triton_fwd(x, weight, bias, geometry_of(*options))

    def triton_bwd(
        grad_y: Tensor, x: Tensor, weight: Tensor, *args: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        *options, needs_x, needs_weight = args
        return _triton_bwd(grad_y, x, weight, geometry_of(*options), needs_x, needs_weight)

    triton = (triton_fwd, triton_bwd, about(_why_not_triton), not_measured)
    return (
        Impl("cuda", ("cuda",), cpp_fwd, cpp_bwd, about(_why_not_cuda), not_measured),
        Impl("cpu", ("cpu",), cpp_fwd, cpp_bwd, about(_why_not_cpu), about(why_slower_cpu)),
        Impl("triton", triton_runtime.DEVICES, *triton),
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
