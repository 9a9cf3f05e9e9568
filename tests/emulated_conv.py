"""The convolutions' CUDA kernels as conv2d and conv_transpose2d; see ``emulated_ops``."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from emulator import NAMES, Read, Write, launch, library
from torch import Tensor

ACTIVATIONS = ("none", "leaky_relu", "tanh", "sigmoid")
TILES = ("auto", "64x16", "64x64", "128x64", "128x128")

Pair = tuple[int, int]


def _pixels(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    suggest = torch._prims_common.suggest_memory_format
    pixels = torch.channels_last in (suggest(x), suggest(weight))
    return torch.channels_last if pixels else torch.contiguous_format


def geometry(small: Any, large: Any, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    sizes = [small[0], *small[1:], *large[1:], *weight.shape[2:], *stride, *padding]
    return torch.tensor(sizes, dtype=torch.int64)


def fprop(
    large: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    small_shape: Any,
    stride: Pair,
    padding: Pair,
    activation: str = "none",
    slope: float = 0.0,
    tile: str = "auto",
) -> Tensor:
    """The small image, in NHWC memory."""
    return _contract(
        "conv_fprop", large, weight, bias, small_shape, large.shape, stride, padding, activation,
        slope, tile,
    )  # fmt: skip


def dgrad(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    large_shape: Any,
    stride: Pair,
    padding: Pair,
    activation: str = "none",
    slope: float = 0.0,
    tile: str = "auto",
) -> Tensor:
    """The large image, in NHWC memory."""
    return _contract(
        "conv_dgrad", small, weight, bias, small.shape, large_shape, stride, padding, activation,
        slope, tile,
    )  # fmt: skip


def _contract(
    function: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    small_shape: Any,
    large_shape: Any,
    stride: Pair,
    padding: Pair,
    activation: str,
    slope: float,
    tile: str,
) -> Tensor:
    shape = small_shape if function == "conv_fprop" else large_shape
    y = torch.empty(tuple(shape), dtype=x.dtype, memory_format=torch.channels_last)
    launch(
        function,
        x.dtype,
        Read(geometry(small_shape, large_shape, weight, stride, padding)),
        Read(_pixels(x)),
        Read(_pixels(weight)),
        Read(None if bias is None else bias.float()),
        Write(y),
        ACTIVATIONS.index(activation),
        float(slope),
        TILES.index(tile),
    )
    return y


def wgrad(
    small: Tensor,
    large: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    layout: torch.memory_format,
) -> Tensor:
    sizes = geometry(small.shape, large.shape, weight, stride, padding)
    count = getattr(library("genimg_emulated"), f"conv_wgrad_scratch_{NAMES[small.dtype]}")
    count.restype = ctypes.c_int64
    scratch = torch.empty(count(ctypes.c_void_p(sizes.data_ptr())))
    grad = torch.empty(weight.shape, dtype=weight.dtype, memory_format=layout)
    launch(
        "conv_wgrad",
        small.dtype,
        Read(sizes),
        Read(_pixels(small)),
        Read(_pixels(large)),
        Write(scratch),
        Write(grad),
        layout == torch.contiguous_format,
    )
    return grad


def conv2d_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    sizes = [
        (x.shape[2 + d] + 2 * padding[d] - weight.shape[2 + d]) // stride[d] + 1 for d in range(2)
    ]
    y = fprop(x, weight, bias, (x.shape[0], weight.shape[0], *sizes), stride, padding)
    return y.contiguous(memory_format=_output_format(x, weight))


def conv2d_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    layout = _output_format(x, weight)
    grad_x = grad_weight = None
    if needs_x:
        grad_x = dgrad(grad_y, weight, None, x.shape, stride, padding)
        grad_x = grad_x.contiguous(memory_format=layout)
    if needs_weight:
        grad_weight = wgrad(grad_y, x, weight, stride, padding, layout)
    return grad_x, grad_weight


def conv_transpose2d_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> Tensor:
    sizes = [
        (x.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + weight.shape[2 + d] + output_padding[d]
        for d in range(2)
    ]
    y = dgrad(x, weight, bias, (x.shape[0], weight.shape[1], *sizes), stride, padding)
    return y.contiguous(memory_format=_output_format(x, weight))


def conv_transpose2d_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    layout = _output_format(x, weight)
    grad_x = grad_weight = None
    if needs_x:
        grad_x = fprop(grad_y, weight, None, x.shape, stride, padding)
        grad_x = grad_x.contiguous(memory_format=layout)
    if needs_weight:
        grad_weight = wgrad(x, grad_y, weight, stride, padding, layout)
    return grad_x, grad_weight
