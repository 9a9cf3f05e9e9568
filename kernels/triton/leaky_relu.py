"""LeakyReLU in Triton. Formula, dtypes and source: ``genimg/ops/leaky_relu.py``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import Compile, signature_of
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import empty_elementwise, in_order_of, on_device_of

# 1024 elements are two (half dtypes) or four vectors of 16 bytes for each of the 128 threads.
BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def _leaky_relu_fwd_kernel(x_ptr, y_ptr, n, negative_slope, BLOCK: tl.constexpr):
    # 64 bit: n may pass 2**31
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside).to(tl.float32)
    y = tl.where(x > 0, x, x * negative_slope)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _leaky_relu_bwd_kernel(grad_y_ptr, x_ptr, grad_x_ptr, n, negative_slope, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside).to(tl.float32)
    grad_y = tl.load(grad_y_ptr + offsets, mask=inside).to(tl.float32)
    grad_x = tl.where(x > 0, grad_y, grad_y * negative_slope)
    tl.store(grad_x_ptr + offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)


def leaky_relu_fwd(x: Tensor, negative_slope: float) -> Tensor:
    """``y`` of ``x``, any strides; the result is dense in ``x``'s memory format."""
    y = empty_elementwise(x)
    n = x.numel()
    if n:
        with on_device_of(x):
            launch(_leaky_relu_fwd_kernel, (triton.cdiv(n, BLOCK),))(
                in_order_of(y, x), y, n, negative_slope, BLOCK=BLOCK, num_warps=NUM_WARPS
            )
    return y


def leaky_relu_bwd(grad_y: Tensor, x: Tensor, negative_slope: float) -> Tensor:
    """``grad_x`` of ``grad_y`` and ``x``, any strides; dense in ``x``'s memory format."""
    grad_x = empty_elementwise(x) if grad_y.is_contiguous() else torch.empty_like(x)
    n = x.numel()
    if n:
        with on_device_of(x):
            launch(_leaky_relu_bwd_kernel, (triton.cdiv(n, BLOCK),))(
                in_order_of(grad_x, grad_y),
                in_order_of(grad_x, x),
                grad_x,
                n,
                negative_slope,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
    return grad_x


def compiles() -> Iterator[Compile]:
    """Both passes; ``n`` in 64 bits, as it is from 2**31 elements on."""
    for kernel in (_leaky_relu_fwd_kernel, _leaky_relu_bwd_kernel):
        pointers = tuple(name for name in kernel.arg_names if name.endswith("_ptr"))
        types = {**dict.fromkeys(pointers, "*T"), "n": "i64", "negative_slope": "fp32"}
        yield Compile(
            kernel,
            f"{kernel.__name__.strip('_').removesuffix('_kernel')} {BLOCK}",
            signature_of(kernel, types, {"BLOCK": BLOCK}),
            {"BLOCK": BLOCK},
            {"num_warps": NUM_WARPS},
            (*pointers, "n"),
        )
