"""How a contraction reads an image: as it lies, or through a batch norm and an activation.

An image is ``[pixels, channels]`` in memory. ``coef`` is float32 ``[4, channels]``: mean, scale,
shift and tilt.

- ``none``: ``x``
- ``affine_leaky``: ``z if z > 0 else slope z`` with ``z = scale (x - mean) + shift``: the
  activation that follows the layer which wrote ``x``
- ``affine_relu``: the same with slope 0, which sends -Inf to 0
- ``two_tensor``: ``scale x + tilt (y - mean) + shift``: the gradient ``x`` taken back through a
  batch norm that read ``y``

The mean is subtracted first: ``scale x`` alone would cancel where the mean is large.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

NONE, AFFINE_LEAKY, AFFINE_RELU = "none", "affine_leaky", "affine_relu"
TWO_TENSOR = "two_tensor"


class FusedInput(NamedTuple):
    """An image ``[N, C, H, W]``, dense in channels_last memory, and how it is read."""

    x: Tensor
    prologue: str = NONE
    coef: Tensor | None = None
    y: Tensor | None = None
    slope: float = 1.0


def affine(slope: float) -> str:
    """The prologue of an activation of this slope below zero."""
    return AFFINE_RELU if slope == 0 else AFFINE_LEAKY


@triton.jit
def _through(
    x,
    y,
    offsets,
    coef_ptr,
    inside,
    channel,
    channels,
    slope,
    PROLOGUE: tl.constexpr,
    LOADED: tl.constexpr,
):
    """The tile behind the prologue; ``y`` is the second tensor's, or where it lies."""
    if PROLOGUE != "none":
        known = channel < channels
        mean = tl.load(coef_ptr + channel, mask=known, other=0.0)
        scale = tl.load(coef_ptr + channels + channel, mask=known, other=0.0)
        shift = tl.load(coef_ptr + 2 * channels + channel, mask=known, other=0.0)
        wide = x.to(tl.float32)
        if PROLOGUE == "affine_leaky":
            wide = (wide - mean[None, :]) * scale[None, :] + shift[None, :]
            wide = tl.where(wide > 0, wide, wide * slope)
        elif PROLOGUE == "affine_relu":
            wide = (wide - mean[None, :]) * scale[None, :] + shift[None, :]
            wide = tl.where(wide < 0, 0.0, wide)
        else:
            tilt = tl.load(coef_ptr + 3 * channels + channel, mask=known, other=0.0)
            if not LOADED:  # last: the registers of sm_100 just suffice
                y = tl.load(y + offsets, mask=inside, other=0.0)
            apart = y.to(tl.float32) - mean[None, :]
            wide = wide * scale[None, :] + apart * tilt[None, :] + shift[None, :]
        # Padding is zero behind the prologue, not before it.
        x = tl.where(inside, wide, 0.0).to(x.dtype)
    return x


@triton.jit
def read_tile(
    x_ptr,
    y_ptr,
    coef_ptr,
    offsets,
    inside,
    channel,
    channels,
    slope,
    PROLOGUE: tl.constexpr,
):
    """The tile at ``offsets``, 0 where not ``inside``; ``channel`` is that of each column."""
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    return _through(x, y_ptr, offsets, coef_ptr, inside, channel, channels, slope, PROLOGUE, False)


@triton.jit
def read_box(
    x,
    y,
    coef_ptr,
    corner,
    inside,
    channel,
    channels,
    slope,
    PROLOGUE: tl.constexpr,
    RAGGED: tl.constexpr,  # the box reaches into values that are no padding and not of the tile
):
    """The same by descriptors (``boxes.py``): the box at ``corner``, a pixel a row."""
    tile = tl.reshape(x.load(corner), inside.shape)
    other = tile
    if PROLOGUE == "two_tensor":
        other = tl.reshape(y.load(corner), inside.shape)
    if RAGGED and PROLOGUE == "none":
        tile = tl.where(inside, tile, 0.0)
    return _through(tile, other, 0, coef_ptr, inside, channel, channels, slope, PROLOGUE, True)
