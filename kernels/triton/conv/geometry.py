"""The geometry of a convolution: how its two images are related and laid out in memory.

A convolution ties a *small* image ``[N, hs, ws, cs]`` to a *large* one ``[N, hl, wl, cl]``: pixel
``i`` and tap ``k`` of the small one meet pixel ``i s - p + k d`` of the large one. conv2d reads the
large and writes the small one, conv_transpose2d the other way round; the weight is
``[cs, cl, KH, KW]`` for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FEW_CHANNELS = 8
"""Up to so many channels of the large image, a block of summands or columns spans its taps."""
FEW_COLUMNS = 64
"""Up to so many channels of all phases, dgrad takes them in one tile."""

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Sizes and options.

    Where the taps are folded into the large image's channels, ``coef_channels`` are those without,
    and ``large_shape`` is as torch has it.
    """

    batch: int
    small: Pair
    small_channels: int
    large: Pair
    large_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    coef_channels: int
    small_shape: tuple[int, ...]
    large_shape: tuple[int, ...]

    @property
    def folded(self) -> bool:
        """Whether the taps are folded into the large image's channels."""
        return self.coef_channels != self.large_channels

    @property
    def taps(self) -> int:
        """The number of taps of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def small_pixels(self) -> int:
        """The number of pixels of all small images."""
        return self.batch * self.small[0] * self.small[1]

    @property
    def phase_size(self) -> Pair:
        """The size of one phase of the large image; the last phases may be smaller."""
        (height, width), (stride_h, stride_w) = self.large, self.stride
        return (height + stride_h - 1) // stride_h, (width + stride_w - 1) // stride_w

    @property
    def bucket(self) -> tuple[int | Pair, ...]:
        """A key of calls that share a tile; the batch is rounded up to a power of 2."""
        return (1 << (self.batch - 1).bit_length(), *self[1:-2])

    def constants(self) -> dict[str, int | bool]:
        """The constants that the kernels are compiled for."""
        (kernel_h, kernel_w), (stride_h, stride_w) = self.kernel, self.stride
        (pad_h, pad_w), (dilation_h, dilation_w) = self.padding, self.dilation
        return {
            "KH": kernel_h,
            "KW": kernel_w,
            "STRIDE_H": stride_h,
            "STRIDE_W": stride_w,
            "PAD_H": pad_h,
            "PAD_W": pad_w,
            "DILATION_H": dilation_h,
            "DILATION_W": dilation_w,
            "FOLDED": self.folded,
        }


def geometry_of(
    small: Sequence[int],
    large: Sequence[int],
    kernel: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Geometry:
    """From the images' shapes ``[N, C, H, W]``.

    A small image of one pixel whose taps are just the large one's pixels (a generator's first
    layer) is one matrix product: the taps are folded into the channels. The memory of all three
    tensors is the same either way.
    """
    batch, small_channels, small_h, small_w = small
    _, large_channels, large_h, large_w = large
    kernel_h, kernel_w = kernel
    size, coef_channels = (large_h, large_w), large_channels
    plain = (padding, dilation) == ((0, 0), (1, 1))
    if plain and (small_h, small_w) == (1, 1) and size == (kernel_h, kernel_w):
        large_channels *= kernel_h * kernel_w
        size = kernel_h, kernel_w = stride = (1, 1)
    return Geometry(
        batch,
        (small_h, small_w),
        small_channels,
        size,
        large_channels,
        (kernel_h, kernel_w),
        stride,
        padding,
        dilation,
        coef_channels,
        tuple(small),
        tuple(large),
    )


class Phases(NamedTuple):
    """Which taps reach the large pixels of a phase ``r = pixel mod stride``, along one axis.

    With ``v = r + p``, a tap ``k`` reaches them where ``k d = v (mod s)``. If ``common``, the
    greatest common divisor of ``d`` and ``s``, does not divide ``v`` there is none; else they are
    ``k0, k0 + step, ...`` with ``k0 = (v / common) inverse (mod step)``, and each stands
    ``d / common`` small pixels before the one before it.
    """

    common: int
    step: int
    inverse: int
    uniform: int  # taps of each phase, where all have as many, else 0


def phases(kernel: int, stride: int, dilation: int) -> Phases:
    """The phases of one axis."""
    common = math.gcd(stride, dilation)
    step = stride // common
    inverse = pow(dilation // common, -1, step) if step > 1 else 0
    uniform = kernel // step if common == 1 and kernel % step == 0 else 0
    return Phases(common, step, inverse, uniform)


def empty_channels_last(
    shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """An image ``[N, C, H, W]`` in channels_last memory."""
    return torch.empty(
        tuple(shape),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def to_channels_last(x: Tensor) -> Tensor:
    """``x`` in channels_last memory."""
    return x.contiguous(memory_format=torch.channels_last)


# torch.compile cannot read torch's switches: it takes them as they are when it traces.
@torch.compiler.assume_constant_result
def _allows_tf32() -> bool:
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def precision(x: Tensor) -> str:
    """How float32 is multiplied: as torch's switches for convolutions say."""
    return "tf32" if x.dtype == torch.float32 and _allows_tf32() else "ieee"
