"""dgrad, the transposed convolution: the forward of conv_transpose2d, the input gradient of conv2d.

The large image falls into ``STRIDE_H x STRIDE_W`` phases, each an ordinary correlation of the
small image with its own taps (``geometry.Phases``): no product with an inserted zero ever happens.
Weights are ``[small channels, KH, KW, large channels]`` in memory, every block of them dense along
the columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import Compile
from genimg.kernels.triton.conv import aot, tile_sizes
from genimg.kernels.triton.conv.dgrad_few import dgrad_few, is_few
from genimg.kernels.triton.conv.epilogue import Epilogue, write_tile
from genimg.kernels.triton.conv.geometry import (
    Geometry,
    Pair,
    empty_channels_last,
    phases,
    precision,
)
from genimg.kernels.triton.conv.prologue import FusedInput, read_box, read_tile
from genimg.kernels.triton.conv.tile_sizes import Tile
from genimg.kernels.triton.conv.tile_tuner import tile_of
from genimg.kernels.triton.conv.tma import box_constants, dgrad_box, dgrad_operands, pixels_of_tile
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import on_device_of


@triton.jit
def _taps_of_phase(
    phase,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    COMMON: tl.constexpr,
    STEP: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """First tap, how many there are, and the small pixel that the first one reads."""
    v = phase + PAD
    first = (v // COMMON * INVERSE) % STEP
    count = tl.maximum(K - first + STEP - 1, 0) // STEP
    count = tl.where(v % COMMON == 0, count, 0)
    # Exact where there is a tap, so that rounding towards zero does not matter.
    return first, count, (v - first * DILATION) // STRIDE


@triton.jit
def _conv_dgrad_kernel(
    x_ptr,  # [N, H, W, channels]: the small image
    y_ptr,
    x_coef_ptr,
    weight_ptr,  # [channels, KH, KW, columns]; these three are descriptors for boxes
    bias_ptr,
    out_ptr,  # [N, out_h, out_w, columns]
    gate_ptr,
    gate_coef_ptr,
    partial_ptr,  # [.., rows, columns]
    pixels,  # N * phase_h * phase_w: of one phase
    h,
    w,
    channels,
    out_h,
    out_w,
    phase_h,  # out_h / STRIDE_H, rounded up
    phase_w,
    columns,
    coef_channels,
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
    COMMON_H: tl.constexpr,
    STEP_H: tl.constexpr,
    INVERSE_H: tl.constexpr,
    UNIFORM_H: tl.constexpr,
    COMMON_W: tl.constexpr,
    STEP_W: tl.constexpr,
    INVERSE_W: tl.constexpr,
    UNIFORM_W: tl.constexpr,
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
):
    # Columns and phases of one block of pixels are neighbours: they read the same image.
    column_blocks = tl.cdiv(columns, BLOCK_N)
    row = tl.program_id(0) // column_blocks
    first_column = (tl.program_id(0) % column_blocks) * BLOCK_N
    n = first_column + tl.arange(0, BLOCK_N)
    phase = row % (STRIDE_H * STRIDE_W)
    rh = phase // STRIDE_W
    rw = phase % STRIDE_W
    _, image, qh, qw, exists, first_n, first_qh, first_qw = pixels_of_tile(
        row // (STRIDE_H * STRIDE_W), pixels, phase_h, phase_w, BLOCK_M, BOX_N, BOX_H, BOX_W
    )
    image = image.to(tl.int64)  # 64 bit: more than 2**31 elements
    base = ((image * h + qh) * w + qw) * channels
    oh = qh * STRIDE_H + rh
    ow = qw * STRIDE_W + rw
    inside_m = exists & (oh < out_h) & (ow < out_w)

    first_h, taps_h, at_h = _taps_of_phase(
        rh, KH, STRIDE_H, PAD_H, DILATION_H, COMMON_H, STEP_H, INVERSE_H
    )
    first_w, taps_w, at_w = _taps_of_phase(
        rw, KW, STRIDE_W, PAD_W, DILATION_W, COMMON_W, STEP_W, INVERSE_W
    )
    if UNIFORM_H:
        taps_h = UNIFORM_H
    if UNIFORM_W:
        taps_w = UNIFORM_W
    taps = taps_h * taps_w
    tile = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(taps * tl.cdiv(channels, BLOCK_K)):
        # Taps innermost: what one of them loads, the next ones find in the cache.
        tap = step % taps
        c = (step // taps) * BLOCK_K + tl.arange(0, BLOCK_K)
        th = tap // taps_w
        tw = tap % taps_w
        dh = at_h - th * (DILATION_H // COMMON_H)
        dw = at_w - tw * (DILATION_W // COMMON_W)
        inside = inside_m & (qh + dh >= 0) & (qh + dh < h) & (qw + dw >= 0) & (qw + dw < w)
        inside = inside[:, None] & (c < channels)[None, :]
        if BOX_N:
            first_c = (step // taps) * BLOCK_K
            at = (first_h + th * STEP_H) * KW + first_w + tw * STEP_W
            x = read_box(
                x_ptr,
                y_ptr,
                x_coef_ptr,
                (first_n, first_qh + dh, 0, first_qw + dw, first_c),
                inside,
                c,
                channels,
                x_slope,
                PROLOGUE,
                False,
            )
            weight = weight_ptr.load([at, first_c, first_column])
            weight = tl.reshape(weight, [BLOCK_K, BLOCK_N])
        else:
            x = read_tile(
                x_ptr,
                y_ptr,
                x_coef_ptr,
                base[:, None] + ((dh * w + dw) * channels + c)[None, :],
                inside,
                c,
                channels,
                x_slope,
                PROLOGUE,
            )
            k = (c.to(tl.int64) * KH + first_h + th * STEP_H) * KW + first_w + tw * STEP_W
            weight = tl.load(
                weight_ptr + k[:, None] * columns + n[None, :],
                mask=(c < channels)[:, None] & (n < columns)[None, :],
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
        ((image * out_h + oh) * out_w + ow)[:, None] * columns + n[None, :],
        inside_m,
        n,
        columns,
        n % coef_channels if FOLDED else n,
        coef_channels,
        row,
        rows,
        slope,
        ACTIVATION,
        STATISTICS,
        GATE,
    )


def dgrad(
    image: FusedInput,
    weight: Tensor,
    geometry: Geometry,
    epilogue: Epilogue,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The large image from the small one, and the tiles' partial results of the epilogue.

    ``weight`` is ``[small channels, large channels, KH, KW]``, dense in channels_last memory.
    """
    g = geometry
    if is_few(g, epilogue):
        return dgrad_few(image, weight, g, epilogue), None
    if tile is None:
        kind = precision(image.x)
        tiles = tile_sizes.image_tiles(image.x, kind, g.large_channels, g.small_channels)
        others = (tile for tile in tiles[1:] if not tile.tma or dgrad_box(tile, image, weight, g))
        tiles = [tiles[0], *others]
        run = functools.partial(dgrad, image, weight, g, epilogue)
        facts = (kind, image.prologue, epilogue.kind)
        tile = tile_of("conv_dgrad", image.x, tiles, run, g, *facts)
    out = empty_channels_last(g.large_shape, image.x)
    height, width = g.phase_size
    operands = dgrad_operands(tile, image, weight, g)
    rows = operands.tiles * g.stride[0] * g.stride[1]
    partial = epilogue.partials(rows, g.large_channels, out)
    with on_device_of(out):
        launch(_conv_dgrad_kernel, (rows * triton.cdiv(g.large_channels, tile.n),))(
            operands.x,
            operands.y,
            image.coef,
            operands.weight,
            epilogue.bias,
            out,
            epilogue.gate_y,
            epilogue.gate_coef,
            partial,
            g.batch * height * width,
            *g.small,
            g.small_channels,
            *g.large,
            height,
            width,
            g.large_channels,
            g.coef_channels,
            rows,
            image.slope,
            epilogue.slope,
            **g.constants(),
            **_phase_constants(g.kernel, g.stride, g.dilation),
            PROLOGUE=image.prologue,
            ACTIVATION=epilogue.activation,
            STATISTICS=epilogue.statistics,
            GATE=epilogue.gate,
            PRECISION=precision(image.x),
            **box_constants(operands.box),
            **tile.blocks(),
            **tile.options(),
        )
    return out, partial


def _phase_constants(kernel: Pair, stride: Pair, dilation: Pair) -> dict[str, int]:
    constants = {}
    for axis, name in enumerate("HW"):
        common, step, inverse, uniform = phases(kernel[axis], stride[axis], dilation[axis])
        constants[f"COMMON_{name}"] = common
        constants[f"STEP_{name}"] = step
        constants[f"INVERSE_{name}"] = inverse
        constants[f"UNIFORM_{name}"] = uniform
    return constants


def compiles() -> Iterator[Compile]:
    """As shipped, at kernel 4, stride 2, padding 1."""
    yield from aot.compiles(
        "conv_dgrad",
        _conv_dgrad_kernel,
        (aot.PLAIN, aot.FORWARD, aot.BACKWARD),
        _phase_constants((4, 4), (2, 2), (1, 1)),
        ("channels", "columns", "coef_channels"),
        weight_block="kn",
    )
