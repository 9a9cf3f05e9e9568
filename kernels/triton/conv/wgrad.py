"""wgrad, the weight gradient of conv2d and of conv_transpose2d.

A matrix product whose summands are the small image's pixels: rows are its channels, columns those
of the large image under one tap. The pixels are split among programs; each writes its part, and a
second pass adds the parts in their order, so that two runs agree to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import Compile, signature_of
from genimg.kernels.triton.conv import tile_sizes
from genimg.kernels.triton.conv.aot import K4S2P1
from genimg.kernels.triton.conv.geometry import FEW_CHANNELS, Geometry, precision
from genimg.kernels.triton.conv.prologue import FusedInput, read_tile
from genimg.kernels.triton.conv.tile_sizes import Tile
from genimg.kernels.triton.conv.tile_tuner import tile_of
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import on_device_of


@triton.jit
def _conv_wgrad_kernel(
    small_ptr,  # [N, H, W, rows]
    small_y_ptr,
    small_coef_ptr,
    large_ptr,  # [N, large_h, large_w, channels]
    large_y_ptr,
    large_coef_ptr,
    out_ptr,  # [splits, rows, KH, KW, channels], by strides
    pixels,  # N * H * W
    split_pixels,  # of one part
    h,
    w,
    rows,
    large_h,
    large_w,
    channels,
    coef_channels,
    out_stride_split,
    out_stride_row,
    out_stride_channel,
    out_stride_tap,
    small_slope,
    large_slope,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    FOLDED: tl.constexpr,
    FEW: tl.constexpr,  # channels, where they are few: a block of columns then spans taps
    SMALL_PROLOGUE: tl.constexpr,
    LARGE_PROLOGUE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Blocks of columns and taps of the same pixels are neighbours: they read the same images.
    taps: tl.constexpr = 1 if FEW else KH * KW
    columns = KH * KW * channels if FEW else channels
    column_blocks = tl.cdiv(columns, BLOCK_N)
    row_blocks = tl.cdiv(rows, BLOCK_M)
    tap = tl.program_id(0) % taps
    rest = tl.program_id(0) // taps
    n = (rest % column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    rest = rest // column_blocks
    m = (rest % row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = rest // row_blocks
    if FEW:
        c = n % FEW
        kh = (n // FEW // KW)[None, :]
        kw = (n // FEW % KW)[None, :]
    else:
        c = n
        kh = tap // KW
        kw = tap % KW
    known = n < columns

    tile = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    first = split * split_pixels
    for start in range(first, tl.minimum(first + split_pixels, pixels), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside_k = k < pixels
        small = read_tile(
            small_ptr,
            small_y_ptr,
            small_coef_ptr,
            k.to(tl.int64)[:, None] * rows + m[None, :],
            inside_k[:, None] & (m < rows)[None, :],
            m,
            rows,
            small_slope,
            SMALL_PROLOGUE,
        )
        ih = ((k // w) % h * STRIDE_H - PAD_H)[:, None] + kh * DILATION_H
        iw = (k % w * STRIDE_W - PAD_W)[:, None] + kw * DILATION_W
        image = (k // (w * h)).to(tl.int64)[:, None]
        inside = inside_k[:, None] & (ih >= 0) & (ih < large_h) & (iw >= 0) & (iw < large_w)
        large = read_tile(
            large_ptr,
            large_y_ptr,
            large_coef_ptr,
            ((image * large_h + ih) * large_w + iw) * channels + c[None, :],
            inside & known[None, :],
            c % coef_channels if FOLDED else c,
            coef_channels,
            large_slope,
            LARGE_PROLOGUE,
        )
        tile = tl.dot(tl.trans(small), large, tile, input_precision=PRECISION)
    column = c.to(tl.int64)[None, :] * out_stride_channel + (kh * KW + kw) * out_stride_tap
    tl.store(
        out_ptr
        + split.to(tl.int64) * out_stride_split
        + m.to(tl.int64)[:, None] * out_stride_row
        + column,
        tile.to(out_ptr.dtype.element_ty),
        mask=(m < rows)[:, None] & known[None, :],
    )


@triton.jit
def _conv_wgrad_sum_kernel(
    part_ptr,  # [splits, rows, taps, channels]
    out_ptr,
    elements,  # of a part
    splits,
    taps,
    channels,
    out_stride_row,
    out_stride_channel,
    out_stride_tap,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    at = offsets
    for _ in range(splits):
        total += tl.load(part_ptr + at, mask=inside, other=0.0)
        at += elements
    c = offsets % channels
    tap = offsets // channels % taps
    row = offsets // channels // taps
    out = out_ptr + row * out_stride_row + c * out_stride_channel + tap * out_stride_tap
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=inside)


def wgrad(
    small: FusedInput,
    large: FusedInput,
    weight: Tensor,
    geometry: Geometry,
    memory_format: torch.memory_format,
    tile: Tile | None = None,
) -> Tensor:
    """The gradient of ``weight``, in its dtype and in ``memory_format``.

    The parts' memory is torch's for each call, as ``Epilogue.partials`` says why.
    """
    g = geometry
    few = 0 if g.folded or g.large_channels > FEW_CHANNELS else g.large_channels
    columns = g.taps * few or g.large_channels
    if tile is None:
        kind = precision(small.x)
        tiles = tile_sizes.weight_tiles(small.x, kind, g.small_channels, columns, few > 0)
        run = functools.partial(wgrad, small, large, weight, g, memory_format)
        facts = (kind, small.prologue, large.prologue, str(memory_format))
        tile = tile_of("conv_wgrad", small.x, tiles, run, g, *facts)
    out = torch.empty(
        weight.shape, dtype=weight.dtype, device=weight.device, memory_format=memory_format
    )
    blocks = triton.cdiv(g.small_channels, tile.m) * triton.cdiv(columns, tile.n)
    blocks *= 1 if few else g.taps
    splits, split_pixels = tile_sizes.splits(blocks, g.small_pixels, tile.k)
    # Straight into the gradient where there is one part, and its columns lie as the weight's do.
    in_place = splits == 1 and (not g.folded or memory_format == torch.channels_last)
    taps, channels = weight.shape[2] * weight.shape[3], weight.shape[1]
    part = (
        out
        if in_place
        else torch.empty(
            splits,
            g.small_channels,
            g.taps,
            g.large_channels,
            dtype=torch.float32,
            device=out.device,
        )
    )
    row_stride, tap_stride, channel_stride = part.stride()[1:] if part is not out else _strides(out)
    with on_device_of(out):
        launch(_conv_wgrad_kernel, (blocks * splits,))(
            small.x,
            small.y,
            small.coef,
            large.x,
            large.y,
            large.coef,
            part,
            g.small_pixels,
            split_pixels,
            *g.small,
            g.small_channels,
            *g.large,
            g.large_channels,
            g.coef_channels,
            out.numel(),
            row_stride,
            channel_stride,
            tap_stride,
            small.slope,
            large.slope,
            **g.constants(),
            FEW=few,
            SMALL_PROLOGUE=small.prologue,
            LARGE_PROLOGUE=large.prologue,
            PRECISION=precision(small.x),
            **tile.blocks(),
            **tile.options(),
        )
        if part is not out:
            row_stride, tap_stride, channel_stride = _strides(out)
            launch(_conv_wgrad_sum_kernel, (triton.cdiv(out.numel(), tile_sizes.SUM_BLOCK),))(
                part,
                out,
                out.numel(),
                splits,
                taps,
                channels,
                row_stride,
                channel_stride,
                tap_stride,
                BLOCK=tile_sizes.SUM_BLOCK,
                num_warps=tile_sizes.SUM_WARPS,
            )
    return out


def _strides(weight: Tensor) -> tuple[int, int, int]:
    """Strides of rows, taps and channels of a dense weight; a tap is ``kh * KW + kw``."""
    _, channels, kernel_h, kernel_w = weight.shape
    if weight.is_contiguous(memory_format=torch.channels_last):
        return channels * kernel_h * kernel_w, channels, 1
    return channels * kernel_h * kernel_w, 1, kernel_h * kernel_w


def compiles() -> Iterator[Compile]:
    """As shipped, between an activation and the gradient behind a batch norm; and the sum."""
    for entry in tile_sizes.shipped():
        for few, tile in [(0, tile) for tile in entry.tiles.weight] + [(3, entry.tiles.weight_few)]:
            pointers = {
                "small_ptr": "*T",
                "small_coef_ptr": "*fp32",
                "large_ptr": "*T",
                "out_ptr": "*fp32",
            }
            if not few:
                pointers |= {"large_y_ptr": "*T", "large_coef_ptr": "*fp32"}
            constexprs = {
                **K4S2P1,
                **tile.blocks(),
                **{name: None for name in _POINTERS if name not in pointers},
                "out_stride_channel": 1,
                "FEW": few,
                "SMALL_PROLOGUE": "affine_leaky",
                "LARGE_PROLOGUE": "none" if few else "two_tensor",
                "PRECISION": entry.precision,
            }
            floats = {"small_slope": "fp32", "large_slope": "fp32"}
            strides = ("out_stride_split", "out_stride_row")
            yield Compile(
                _conv_wgrad_kernel,
                f"conv_wgrad{' few' if few else ''} {tile} {entry.precision}",
                signature_of(_conv_wgrad_kernel, {**pointers, **floats}, constexprs),
                constexprs,
                tile.options(),
                (*pointers, "rows", *(() if few else ("channels", *strides, "out_stride_tap"))),
                True,
                "pixels of few channels are gathered" if few else "",
                entry.dtypes,
                entry.capabilities,
            )
    pointers = {"part_ptr": "*fp32", "out_ptr": "*T"}
    constexprs = {"BLOCK": tile_sizes.SUM_BLOCK, "out_stride_channel": 1}
    yield Compile(
        _conv_wgrad_sum_kernel,
        f"conv_wgrad_sum {tile_sizes.SUM_BLOCK}",
        signature_of(_conv_wgrad_sum_kernel, pointers, constexprs),
        constexprs,
        {"num_warps": tile_sizes.SUM_WARPS},
        (*pointers, "elements", "channels", "out_stride_row", "out_stride_tap"),
    )


_POINTERS = ("small_y_ptr", "small_coef_ptr", "large_y_ptr", "large_coef_ptr")
