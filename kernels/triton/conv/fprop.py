"""fprop, the strided convolution: the forward of conv2d, the input gradient of conv_transpose2d.

An implicit matrix product over NHWC images: rows are pixels of the small image, columns its
channels, summands the taps and channels of the large one. Weights are ``[small channels, KH, KW,
large channels]`` in memory, so that every block of them is dense along the summands.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import Compile
from genimg.kernels.triton.conv import aot, tile_sizes
from genimg.kernels.triton.conv.epilogue import Epilogue, write_tile
from genimg.kernels.triton.conv.geometry import (
    FEW_CHANNELS,
    Geometry,
    empty_channels_last,
    precision,
)
from genimg.kernels.triton.conv.prologue import FusedInput, read_box, read_tile
from genimg.kernels.triton.conv.tile_sizes import Tile
from genimg.kernels.triton.conv.tile_tuner import tile_of
from genimg.kernels.triton.conv.tma import box_constants, fprop_box, fprop_operands, pixels_of_tile
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import on_device_of


@triton.jit
def _conv_fprop_kernel(
    x_ptr,  # [N, H, W, channels]: the large image
    y_ptr,
    x_coef_ptr,
    weight_ptr,  # [columns, KH, KW, channels]; these three are descriptors for boxes
    bias_ptr,
    out_ptr,  # [N, out_h, out_w, columns]
    gate_ptr,
    gate_coef_ptr,
    partial_ptr,  # [.., rows, columns]
    pixels,  # N * out_h * out_w
    h,
    w,
    channels,
    coef_channels,
    out_h,
    out_w,
    columns,
    rows,
    x_slope,
    slope,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    FOLDED: tl.constexpr,
    FEW: tl.constexpr,  # channels, where they are few: a block of summands then spans taps
    PROLOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STATISTICS: tl.constexpr,
    GATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BOX_N: tl.constexpr,  # of boxes.Box
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    RAGGED: tl.constexpr,  # channels are no multiple of BLOCK_K
):
    # The blocks of columns of one block of pixels are neighbours: they read the same image.
    column_blocks = tl.cdiv(columns, BLOCK_N)
    row = tl.program_id(0) // column_blocks
    first_column = (tl.program_id(0) % column_blocks) * BLOCK_N
    n = first_column + tl.arange(0, BLOCK_N)
    m, image, oh, ow, inside_m, first_n, first_h, first_w = pixels_of_tile(
        row, pixels, out_h, out_w, BLOCK_M, BOX_N, BOX_H, BOX_W
    )
    top = oh * STRIDE_H - PAD_H
    left = ow * STRIDE_W - PAD_W
    # 64 bit: an image may have more than 2**31 elements.
    base = ((image.to(tl.int64) * h + top) * w + left) * channels
    weight_row = n.to(tl.int64) * (KH * KW * channels)

    taps: tl.constexpr = KH * KW
    CELLS_H: tl.constexpr = (PAD_H + STRIDE_H - 1) // STRIDE_H
    CELLS_W: tl.constexpr = (PAD_W + STRIDE_W - 1) // STRIDE_W
    steps = tl.cdiv(taps * channels, BLOCK_K) if FEW else taps * tl.cdiv(channels, BLOCK_K)
    tile = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(steps):
        if FEW:
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            tap = k // FEW
            c = k % FEW
            inside_k = k < taps * FEW
            kh = (tap // KW)[None, :]
            kw = (tap % KW)[None, :]
        else:
            # Taps innermost: what one of them loads, the next ones find in the cache.
            tap = step % taps
            c = (step // taps) * BLOCK_K + tl.arange(0, BLOCK_K)
            k = tap * channels + c
            inside_k = c < channels
            kh = tap // KW
            kw = tap % KW
        ih = top[:, None] + kh * DILATION_H
        iw = left[:, None] + kw * DILATION_W
        inside = inside_m[:, None] & (ih >= 0) & (ih < h) & (iw >= 0) & (iw < w)
        inside = inside & inside_k[None, :]
        channel = c % coef_channels if FOLDED else c
        if BOX_N:
            # Whole cells before the padding, so that nothing is divided below 0.
            down = kh * DILATION_H + CELLS_H * STRIDE_H - PAD_H
            right = kw * DILATION_W + CELLS_W * STRIDE_W - PAD_W
            corner = (
                first_n,
                first_h + down // STRIDE_H - CELLS_H,
                down % STRIDE_H,
                first_w + right // STRIDE_W - CELLS_W,
                right % STRIDE_W * channels + step // taps * BLOCK_K,
            )
            x = read_box(
                x_ptr,
                y_ptr,
                x_coef_ptr,
                corner,
                inside,
                channel,
                coef_channels,
                x_slope,
                PROLOGUE,
                RAGGED,
            )
            weight = weight_ptr.load([tap, first_column, step // taps * BLOCK_K])
            weight = tl.trans(tl.reshape(weight, [BLOCK_N, BLOCK_K]))
        else:
            shift = (kh * DILATION_H * w + kw * DILATION_W) * channels
            x = read_tile(
                x_ptr,
                y_ptr,
                x_coef_ptr,
                base[:, None] + (shift + c[None, :]),
                inside,
                channel,
                coef_channels,
                x_slope,
                PROLOGUE,
            )
            weight = tl.load(
                weight_ptr + weight_row[None, :] + k[:, None],
                mask=inside_k[:, None] & (n < columns)[None, :],
                other=0.0,
            )
        tile = tl.dot(x, weight, tile, input_precision=PRECISION)
    write_tile(
        tile,
        out_ptr,
        bias_ptr,
        gate_ptr,
        gate_coef_ptr,
        partial_ptr,
        m.to(tl.int64)[:, None] * columns + n[None, :],
        inside_m,
        n,
        columns,
        n,
        columns,
        row,
        rows,
        slope,
        ACTIVATION,
        STATISTICS,
        GATE,
    )


def fprop(
    image: FusedInput,
    weight: Tensor,
    geometry: Geometry,
    epilogue: Epilogue,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The small image from the large one, and the tiles' partial results of the epilogue.

    ``weight`` is ``[small channels, large channels, KH, KW]``, dense in channels_last memory.
    """
    g = geometry
    few = 0 if g.folded or g.large_channels > FEW_CHANNELS else g.large_channels
    if tile is None:
        find = tile_sizes.im2col_tiles if few else tile_sizes.image_tiles
        summands = few * g.taps or g.large_channels
        tiles = find(image.x, precision(image.x), g.small_channels, summands)
        others = (tile for tile in tiles[1:] if not tile.tma or fprop_box(tile, image, weight, g))
        tiles = [tiles[0], *others]
        run = functools.partial(fprop, image, weight, g, epilogue)
        facts = (precision(image.x), image.prologue, epilogue.kind)
        tile = tile_of("conv_fprop", image.x, tiles, run, g, *facts)
    out = empty_channels_last(g.small_shape, image.x)
    operands = fprop_operands(tile, image, weight, g)
    rows = operands.tiles
    partial = epilogue.partials(rows, g.small_channels, out)
    with on_device_of(out):
        launch(_conv_fprop_kernel, (rows * triton.cdiv(g.small_channels, tile.n),))(
            operands.x,
            operands.y,
            image.coef,
            operands.weight,
            epilogue.bias,
            out,
            epilogue.gate_y,
            epilogue.gate_coef,
            partial,
            g.small_pixels,
            *g.large,
            g.large_channels,
            g.coef_channels,
            *g.small,
            g.small_channels,
            rows,
            image.slope,
            epilogue.slope,
            **g.constants(),
            FEW=few,
            PROLOGUE=image.prologue,
            ACTIVATION=epilogue.activation,
            STATISTICS=epilogue.statistics,
            GATE=epilogue.gate,
            PRECISION=precision(image.x),
            RAGGED=g.large_channels % tile.k > 0,
            **box_constants(operands.box),
            **tile.blocks(),
            **tile.options(),
        )
    return out, partial


def compiles() -> Iterator[Compile]:
    """As shipped: of many channels, and of the three that an image has."""
    fusions = (aot.PLAIN, aot.FORWARD, aot.BACKWARD)
    aligned = ("channels", "columns")
    yield from aot.compiles(
        "conv_fprop", _conv_fprop_kernel, fusions, {"FEW": 0}, aligned, weight_block="nk"
    )
    few = (aot.FIRST,), {"FEW": 3}, ("columns",)
    yield from aot.compiles("conv_fprop few", _conv_fprop_kernel, *few, gathers=True)
