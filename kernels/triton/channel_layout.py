"""How a tensor lies in memory, and how programs share it: for kernels that work by channel.

A tensor is lines of neighbouring elements: a pixel's channels (NHWC memory), or the plane of one
image and channel (NCHW). Tiles are ``BLOCK_M`` lines of ``BLOCK_N`` columns; what is summed over a
channel is split into parts of several tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.runtime import INTERPRETED, width_for

# 128 bytes of a half dtype are a full line of the cache.
COLUMNS_OF_PIXELS = 64
COLUMNS_OF_PLANES = 1024
# Four for each of an H200's 132 multiprocessors. Not asked of the device, so that the parts, and
# with them the rounding, depend on the shape alone. And so many parts of a channel at least, if it
# has the tiles.
PROGRAMS = 528
PARTS = 4
# A GPU adds in a tree. The interpreter adds row by row, with the rounding of so long a chain.
IN_STEPS = tl.constexpr(INTERPRETED)


@triton.jit
def line_offsets(lines, channels, batch_stride, line_stride, PIXELS: tl.constexpr):
    """Where lines begin, in 64 bits."""
    if PIXELS:
        offsets = lines.to(tl.int64) * line_stride
    else:
        image = (lines // channels).to(tl.int64)
        offsets = image * batch_stride + (lines % channels).to(tl.int64) * line_stride
    return offsets


@triton.jit
def tile_of_channel(
    t,
    block,
    lines,
    columns,
    line_stride,
    block_stride,
    PIXELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Offsets and mask of tile ``t`` of a channel (planes) or a block of channels (pixels)."""
    if PIXELS:
        row = t
        first = block * BLOCK_N
        base = tl.zeros((), tl.int64)
    else:
        per_line = tl.cdiv(columns, BLOCK_N)
        row = t // per_line
        first = t % per_line * BLOCK_N
        base = tl.cast(block, tl.int64) * block_stride
    m = tl.cast(row, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = first + tl.arange(0, BLOCK_N)
    offsets = base + (m * line_stride)[:, None] + n[None, :]
    return offsets, (m < lines)[:, None] & (n < columns)[None, :]


@triton.jit
def sum_of_channel(tile, PIXELS: tl.constexpr):
    """The sum of each channel: [BLOCK_N] for pixels, a scalar for planes."""
    if PIXELS:
        if IN_STEPS:
            step: tl.constexpr = 16 if tile.shape[0] >= 16 else tile.shape[0]
            tile = tl.reshape(tile, (tile.shape[0] // step, step, tile.shape[1]))
            tile = tl.sum(tile, 1)
        total = tl.sum(tile, 0)
    else:
        total = tl.sum(tl.sum(tile, 1), 0)
    return total


@triton.jit
def elements(
    lines, columns, channels, PIXELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A program's lines, columns, the channel of each, and which exist.

    From the end backwards: what the sums read last is still in the cache.
    """
    per_line = tl.cdiv(columns, BLOCK_N)
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    m = tl.cast(pid // per_line, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = pid % per_line * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (m < lines)[:, None] & (n < columns)[None, :]
    if PIXELS:
        c = n
        exists = n < columns
    else:
        c = (m % channels).to(tl.int32)
        exists = m < lines
    return m, n, c, exists, inside


@triton.jit
def over_tile(values, PIXELS: tl.constexpr):
    """One number a channel, over a tile."""
    return values[None, :] if PIXELS else values[:, None]


@triton.jit
def of_channel(ptr, c, inside, otherwise: tl.constexpr):
    """A parameter as float32, or a constant where there is none."""
    if ptr is None:
        values = tl.full(c.shape, otherwise, tl.float32)
    else:
        values = tl.load(ptr + c, mask=inside, other=otherwise).to(tl.float32)
    return values


class Layout(NamedTuple):
    """How a tensor's lines lie. Strides: of the batch (planes only) and of lines."""

    pixels: bool
    channels: int
    columns: int
    lines: int
    strides: tuple[int, int]
    dense_strides: tuple[int, int]
    """Those of a dense tensor in the same order."""


def _lies_in_pixels(x: Tensor) -> bool:
    if x.stride(1) != 1 and x.shape[1] > 1:
        return False
    if x.numel() == x.shape[0] * x.shape[1]:  # one value a channel: [N, C] in any clothes
        return True
    if x.dim() != 4 or x.shape[1] == 1:
        return False
    height, width, step = x.shape[2], x.shape[3], x.stride(3)
    if width == 1:
        step = x.stride(2)
    if height != 1 and width != 1 and x.stride(2) != width * step:
        return False
    # Not the condition itself: under dynamic shapes that would be symbolic, and no constant.
    if x.shape[0] != 1 and x.stride(0) != height * width * step:  # noqa: SIM103
        return False
    return True


def _lies_in_planes(x: Tensor) -> bool:
    expected = 1
    for d in range(x.dim() - 1, 1, -1):
        if x.shape[d] != 1 and x.stride(d) != expected:
            return False
        expected *= x.shape[d]
    return True


def channel_view(x: Tensor) -> tuple[Tensor, Layout]:
    """``x`` as it is, where the kernels can read it so, else a copy in NCHW order."""
    pixels = _lies_in_pixels(x)
    if not pixels and not _lies_in_planes(x):
        x = x.contiguous()
    batch, channels = x.shape[:2]
    plane = x.numel() // (batch * channels)
    if not pixels:
        strides, dense = (x.stride(0), x.stride(1)), (channels * plane, plane)
        return x, Layout(False, channels, plane, batch * channels, strides, dense)
    line_stride = x.stride(0)
    if plane > 1:
        line_stride = x.stride(3) if x.shape[3] > 1 else x.stride(2)
    return x, Layout(True, channels, channels, batch * plane, (0, line_stride), (0, channels))


def memory_format_of(x: Tensor, layout: Layout) -> torch.memory_format:
    """The memory format of a dense tensor in the same order."""
    last = layout.pixels and layout.lines > x.shape[0]
    return torch.channels_last if last else torch.contiguous_format


def blocks_of(layout: Layout, tile: int) -> dict[str, Any]:
    """The constants of a kernel whose tiles have ``tile`` elements."""
    widest = COLUMNS_OF_PIXELS if layout.pixels else COLUMNS_OF_PLANES
    # Two at least: tiles of one column need more registers than there are.
    block_n = max(2, width_for(layout.columns, min(widest, tile)))
    return {"PIXELS": layout.pixels, "BLOCK_M": tile // block_n, "BLOCK_N": block_n}


class Split(NamedTuple):
    """A channel's lines in tiles, and these in parts. Strides: of lines and of channels."""

    lines: int
    strides: tuple[int, int]
    dense_strides: tuple[int, int]
    tiles: int
    parts: int
    programs: int


def split_channels(layout: Layout, block: dict[str, Any]) -> Split:
    """How programs share the sums over each channel."""
    block_m, block_n = block["BLOCK_M"], block["BLOCK_N"]
    column_tiles = triton.cdiv(layout.columns, block_n)
    if layout.pixels:
        lines, blocks = layout.lines, column_tiles
        strides, dense = (layout.strides[1], 0), (layout.dense_strides[1], 0)
        tiles = triton.cdiv(lines, block_m)
    else:
        lines, blocks = layout.lines // layout.channels, layout.channels
        strides, dense = layout.strides, layout.dense_strides
        tiles = triton.cdiv(lines, block_m) * column_tiles
    parts = min(tiles, max(PARTS, PROGRAMS // blocks))
    return Split(lines, strides, dense, tiles, parts, parts * blocks)


def grid_of(layout: Layout, block: dict[str, Any]) -> tuple[int]:
    """Programs of a kernel that works by elements."""
    tiles = triton.cdiv(layout.lines, block["BLOCK_M"])
    return (tiles * triton.cdiv(layout.columns, block["BLOCK_N"]),)
