"""Operations on a contraction's tile in registers, before and beside its store.

- bias and activation (leaky, relu, tanh, sigmoid)
- ``statistics``: per tile and channel the number of values, their mean and their squared deviations
  about it, taken in two passes over the values as stored
- ``gate``: the tile is the gradient of an activation ``leaky(z)``; stored is
  ``dz = z > 0 ? tile : slope tile``, with ``z`` from the raw ``y`` that lies where the tile goes
  (``affine``: ``z = scale (y - mean) + shift``; ``sign``: ``z`` has ``y``'s sign), and per tile and
  channel the sums of ``dz`` and of ``dz (y - mean)``; ``affine_relu`` and ``sign_relu`` are
  for a slope of 0, which masks: multiplying an infinite gradient by 0 would give NaN

``moments.py`` merges the tiles' rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

NONE, LEAKY, RELU, TANH, SIGMOID = "none", "leaky", "relu", "tanh", "sigmoid"
AFFINE, SIGN, AFFINE_RELU, SIGN_RELU = "affine", "sign", "affine_relu", "sign_relu"
MOMENTS, SUMS = 3, 2
"""Planes of a tile's partial result: count, mean, squares; or the two sums."""


class Epilogue(NamedTuple):
    """The epilogue of a result; ``gate_y`` and ``gate_coef`` are as in ``prologue.py``."""

    bias: Tensor | None = None
    activation: str = NONE
    slope: float = 1.0
    statistics: bool = False
    gate: str = NONE
    gate_y: Tensor | None = None
    gate_coef: Tensor | None = None

    @property
    def kind(self) -> tuple[bool, str, bool, str]:
        """The constants that a kernel is compiled for."""
        return self.bias is not None, self.activation, self.statistics, self.gate

    def partials(self, rows: int, columns: int, like: Tensor) -> Tensor | None:
        """Room for what each of ``rows`` tiles finds out about each column.

        From torch's allocator at every call, which knows streams and gives a captured graph a pool
        of its own. One kept for the shape would be written by the graph's replays and by eager
        calls on another stream at once, or be freed under the graph; and the allocator, too, hands
        back the same memory at no more than the cost of looking the kept one up.
        """
        planes = MOMENTS if self.statistics else SUMS if self.gate != NONE else 0
        if not planes:
            return None
        return torch.empty(planes, rows, columns, dtype=torch.float32, device=like.device)


def gate(normed: bool, slope: float) -> str:
    """The gate of an activation of this slope below zero, behind a norm or not."""
    if slope == 0:
        return AFFINE_RELU if normed else SIGN_RELU
    return AFFINE if normed else SIGN


@triton.jit
def tanh(x):
    """Below 0.55 an odd polynomial, relative error 1e-7; above it no digits cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    z = x * x
    p = ((-6.65018e-3 * z + 2.133397e-2) * z - 5.391406e-2) * z + 1.3333141e-1
    near = x + x * z * (p * z - 3.3333332e-1)
    return tl.where(tl.abs(x) < 0.55, near, tl.where(x < 0, -far, far))


@triton.jit
def activate(x, slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == "leaky":
        x = tl.where(x > 0, x, x * slope)
    elif ACTIVATION == "relu":  # unlike a slope of 0, it sends -Inf to 0
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    elif ACTIVATION == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    return x


@triton.jit
def write_tile(
    tile,
    out_ptr,
    bias_ptr,
    gate_ptr,
    coef_ptr,
    partial_ptr,
    offsets,
    inside_rows,
    column,
    columns,
    channel,
    channels,
    row,
    rows,
    slope,
    ACTIVATION: tl.constexpr,
    STATISTICS: tl.constexpr,
    GATE: tl.constexpr,
):
    """Store ``tile`` at ``offsets``, and what the epilogue finds in row ``row`` of ``partial``."""
    known = column < columns
    inside = inside_rows[:, None] & known[None, :]
    if bias_ptr is not None:
        tile += tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    tile = activate(tile, slope, ACTIVATION)
    partial = partial_ptr
    if partial_ptr is not None:
        partial += row * columns + column
    plane = rows * columns
    if GATE != "none":
        y = tl.load(gate_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        z = y
        if GATE == "affine" or GATE == "affine_relu":
            mean = tl.load(coef_ptr + channel, mask=known, other=0.0)
            scale = tl.load(coef_ptr + channels + channel, mask=known, other=0.0)
            shift = tl.load(coef_ptr + 2 * channels + channel, mask=known, other=0.0)
            y -= mean[None, :]
            z = y * scale[None, :] + shift[None, :]
        if GATE == "affine_relu" or GATE == "sign_relu":
            tile = tl.where(z <= 0, 0.0, tile)
        else:
            tile = tl.where(z > 0, tile, tile * slope)
    stored = tile.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + offsets, stored, mask=inside)
    # The statistics are of the values as stored, which the next kernel reads.
    values = tl.where(inside, stored.to(tl.float32), 0.0)
    if STATISTICS:
        count = tl.sum(inside_rows.to(tl.float32), 0)
        mean = tl.sum(values, 0) / tl.maximum(count, 1.0)
        deviation = tl.where(inside, values - mean[None, :], 0.0)
        # The rounding error of the mean, from the deviations about it.
        rest = tl.sum(deviation, 0) / tl.maximum(count, 1.0)
        squares = tl.sum(deviation * deviation, 0) - count * rest * rest
        tl.store(partial, tl.zeros_like(mean) + count, mask=known)
        tl.store(partial + plane, mean + rest, mask=known)
        tl.store(partial + 2 * plane, squares, mask=known)
    if GATE != "none":
        tl.store(partial, tl.sum(values, 0), mask=known)
        tl.store(partial + plane, tl.sum(tl.where(inside, values * y, 0.0), 0), mask=known)
