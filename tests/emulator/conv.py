"""The convolutions' CUDA launchers, whose options the ops do not all use."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from emulator import NAMES, Read, Write, launch, library

ACTIVATIONS = ("none", "leaky_relu", "tanh", "sigmoid")
PRECISIONS = ("float", "tf32")
TILES = ("auto", "64x16", "64x64", "128x64", "128x128", "sm90")

Pair = tuple[int, int]


def _pixels(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


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
    precision: str = "float",
) -> Tensor:
    """The small image, in NHWC memory."""
    return _contract(
        "conv_fprop", large, weight, bias, small_shape, large.shape, stride, padding, activation,
        slope, tile, precision,
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
    precision: str = "float",
) -> Tensor:
    """The large image, in NHWC memory."""
    return _contract(
        "conv_dgrad", small, weight, bias, small.shape, large_shape, stride, padding, activation,
        slope, tile, precision,
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
    precision: str,
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
        PRECISIONS.index(precision),
    )
    return y


def wgrad(
    small: Tensor,
    large: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    layout: torch.memory_format,
    precision: str = "float",
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
        PRECISIONS.index(precision),
    )
    return grad
