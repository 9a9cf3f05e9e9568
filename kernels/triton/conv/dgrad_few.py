"""dgrad to an image of few channels, the three of a picture: a last layer, with its activation.

A tile of so few columns would read the small image once for every tap. Here the columns are the
channels of all phases, and every small pixel that any phase reads is read once: 9 of them where a
kernel of 4 and stride 2 has 16 taps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import Compile
from genimg.kernels.triton.conv import aot, tile_sizes
from genimg.kernels.triton.conv.epilogue import NONE, Epilogue, activate
from genimg.kernels.triton.conv.geometry import (
    FEW_CHANNELS,
    FEW_COLUMNS,
    Geometry,
    empty_channels_last,
    precision,
)
from genimg.kernels.triton.conv.prologue import FusedInput, read_tile
from genimg.kernels.triton.conv.tile_sizes import Tile
from genimg.kernels.triton.conv.tile_tuner import tile_of
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import on_device_of


@triton.jit
def _product_of_phases(
    x_ptr,
    y_ptr,
    x_coef_ptr,
    weight_ptr,
    base,
    qh,
    qw,
    inside_m,
    rh,
    rw,
    known,
    channel,
    chosen,
    h,
    w,
    channels,
    x_slope,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    FIRST_H: tl.constexpr,
    SHIFTS_H: tl.constexpr,
    FIRST_W: tl.constexpr,
    SHIFTS_W: tl.constexpr,
    FEW: tl.constexpr,
    PROLOGUE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All columns; or those of phase ``chosen``, with nothing that it does not reach."""
    shifts: tl.constexpr = SHIFTS_H * SHIFTS_W
    tile = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(shifts * tl.cdiv(channels, BLOCK_K)):
        shift = step % shifts
        c = (step // shifts) * BLOCK_K + tl.arange(0, BLOCK_K)
        dh = FIRST_H + shift // SHIFTS_W
        dw = FIRST_W + shift % SHIFTS_W
        inside = inside_m & (qh + dh >= 0) & (qh + dh < h) & (qw + dw >= 0) & (qw + dw < w)
        # The tap, times the dilation, that leads from this small pixel to the chosen phase.
        kh = chosen // STRIDE_W + PAD_H - dh * STRIDE_H
        kw = chosen % STRIDE_W + PAD_W - dw * STRIDE_W
        is_tap = (kh >= 0) & (kh < KH * DILATION_H) & (kw >= 0) & (kw < KW * DILATION_W)
        is_tap = is_tap & (kh % DILATION_H == 0) & (kw % DILATION_W == 0)
        # By where: Triton 3.9's interpreter refuses a mask made of a vector and a scalar by &.
        inside = tl.where((chosen < 0) | is_tap, inside, False)
        x = read_tile(
            x_ptr,
            y_ptr,
            x_coef_ptr,
            base[:, None] + ((dh * w + dw) * channels + c)[None, :],
            inside[:, None] & (c < channels)[None, :],
            c,
            channels,
            x_slope,
            PROLOGUE,
        )
        # And to each column's phase.
        kh = rh + PAD_H - dh * STRIDE_H
        kw = rw + PAD_W - dw * STRIDE_W
        reached = (kh >= 0) & (kh < KH * DILATION_H) & (kw >= 0) & (kw < KW * DILATION_W)
        reached = reached & (kh % DILATION_H == 0) & (kw % DILATION_W == 0) & known
        k = (c[:, None] * KH + (kh // DILATION_H)[None, :]) * KW
        weight = tl.load(
            weight_ptr + (k + (kw // DILATION_W)[None, :]) * FEW + channel[None, :],
            mask=(c < channels)[:, None] & reached[None, :],
            other=0.0,
        )
        tile = tl.dot(x, weight, tile, input_precision=PRECISION)
    return tile


@triton.jit
def _conv_dgrad_few_kernel(
    x_ptr,  # [N, H, W, channels]: the small image
    y_ptr,
    x_coef_ptr,
    weight_ptr,  # [channels, KH, KW, FEW]
    bias_ptr,
    out_ptr,  # [N, out_h, out_w, FEW]
    pixels,  # N * phase_h * phase_w
    h,
    w,
    channels,
    out_h,
    out_w,
    phase_h,
    phase_w,
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
    FIRST_H: tl.constexpr,  # the small pixels that any phase reads, from its own on
    SHIFTS_H: tl.constexpr,
    FIRST_W: tl.constexpr,
    SHIFTS_W: tl.constexpr,
    FEW: tl.constexpr,  # the large image's channels
    PROLOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All phases at once: a column is a phase and a channel, a shift of the image is read once."""
    n = tl.arange(0, BLOCK_N)
    channel = n % FEW
    phase = n // FEW
    rh = phase // STRIDE_W
    rw = phase % STRIDE_W
    known = n < STRIDE_H * STRIDE_W * FEW
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_m = m < pixels
    qw = m % phase_w
    qh = (m // phase_w) % phase_h
    image = (m // (phase_w * phase_h)).to(tl.int64)  # 64 bit: more than 2**31 elements
    base = ((image * h + qh) * w + qw) * channels
    # A shift that a phase does not reach meets a weight of 0 there. What is not finite would spill:
    # it leaves a NaN, and then each phase is taken once more, alone.
    tile = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    phases = 0
    chosen = -1
    while chosen < phases:
        product = _product_of_phases(
            x_ptr,
            y_ptr,
            x_coef_ptr,
            weight_ptr,
            base,
            qh,
            qw,
            inside_m,
            rh,
            rw,
            known,
            channel,
            chosen,
            h,
            w,
            channels,
            x_slope,
            KH,
            KW,
            STRIDE_H,
            STRIDE_W,
            PAD_H,
            PAD_W,
            DILATION_H,
            DILATION_W,
            FIRST_H,
            SHIFTS_H,
            FIRST_W,
            SHIFTS_W,
            FEW,
            PROLOGUE,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
        if chosen < 0:
            # Reduced to a row, not to a vector: Triton 3.7 fails on sm_100 else.
            is_nan = tl.max((product != product).to(tl.int32), 0, keep_dims=True)
            phases = tl.max(tl.reshape(is_nan, (BLOCK_N,)), 0) * STRIDE_H * STRIDE_W
        tile = tl.where((phase == chosen)[None, :] | (chosen < 0), product, tile)
        chosen += 1
    if bias_ptr is not None:
        tile += tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    tile = activate(tile, slope, ACTIVATION)
    oh = (qh * STRIDE_H)[:, None] + rh[None, :]
    ow = (qw * STRIDE_W)[:, None] + rw[None, :]
    inside_out = inside_m[:, None] & known[None, :] & (oh < out_h) & (ow < out_w)
    pixel = ((image * out_h)[:, None] + oh) * out_w + ow
    tl.store(
        out_ptr + pixel * FEW + channel[None, :],
        tile.to(out_ptr.dtype.element_ty),
        mask=inside_out,
    )


def is_few(g: Geometry, epilogue: Epilogue) -> bool:
    """Whether the columns of all phases are few enough for one tile."""
    columns = g.stride[0] * g.stride[1] * g.large_channels
    plain = not epilogue.statistics and epilogue.gate == NONE
    return plain and not g.folded and g.large_channels <= FEW_CHANNELS and columns <= FEW_COLUMNS


def dgrad_few(
    image: FusedInput,
    weight: Tensor,
    geometry: Geometry,
    epilogue: Epilogue,
    tile: Tile | None = None,
) -> Tensor:
    """The large image from the small one; ``weight`` is dense in channels_last memory."""
    g = geometry
    if tile is None:
        columns = g.stride[0] * g.stride[1] * g.large_channels
        tiles = tile_sizes.phases_tiles(image.x, precision(image.x), columns, g.small_channels)
        run = functools.partial(dgrad_few, image, weight, g, epilogue)
        facts = (precision(image.x), image.prologue, epilogue.kind)
        tile = tile_of("conv_dgrad_few", image.x, tiles, run, g, *facts)
    out = empty_channels_last(g.large_shape, image.x)
    (stride_h, stride_w), (pad_h, pad_w) = g.stride, g.padding
    first_h, shifts_h = _shifts(g.kernel[0], stride_h, pad_h, g.dilation[0])
    first_w, shifts_w = _shifts(g.kernel[1], stride_w, pad_w, g.dilation[1])
    phase_size = g.phase_size
    pixels = g.batch * phase_size[0] * phase_size[1]
    with on_device_of(out):
        launch(_conv_dgrad_few_kernel, (triton.cdiv(pixels, tile.m),))(
            image.x,
            image.y,
            image.coef,
            weight,
            epilogue.bias,
            out,
            pixels,
            *g.small,
            g.small_channels,
            *g.large,
            *phase_size,
            image.slope,
            epilogue.slope,
            **g.constants(),
            FIRST_H=first_h,
            SHIFTS_H=shifts_h,
            FIRST_W=first_w,
            SHIFTS_W=shifts_w,
            FEW=g.large_channels,
            PROLOGUE=image.prologue,
            ACTIVATION=epilogue.activation,
            PRECISION=precision(image.x),
            **tile.blocks(),
            **tile.options(),
        )
    return out


def _shifts(kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    """The first small pixel that any phase reads, counted from its own, and how many there are."""
    first = -(((kernel - 1) * dilation - padding) // stride)
    return first, (stride - 1 + padding) // stride - first + 1


def compiles() -> Iterator[Compile]:
    """As shipped, for the three channels of a picture."""
    yield from aot.compiles(
        "conv_dgrad few",
        _conv_dgrad_few_kernel,
        (aot.LAST,),
        {"FIRST_H": -1, "SHIFTS_H": 3, "FIRST_W": -1, "SHIFTS_W": 3, "FEW": 3},
        ("channels",),
        16,
    )
