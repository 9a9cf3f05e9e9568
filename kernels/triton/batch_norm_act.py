"""Batch norm and LeakyReLU in Triton. Formulas and source: ``genimg/ops/batch_norm_act.py``.

A channel's sums are split into parts, each of one program; a second, small kernel merges them in a
fixed order, in float64. It is not the last arriver of the first kernel: a launch more buys an
order by the stream alone, with neither a counter that an aborted launch leaves behind nor a buffer
for each stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import DTYPES, Compile, signature_of
from genimg.kernels.triton.channel_layout import (
    COLUMNS_OF_PIXELS,
    COLUMNS_OF_PLANES,
    blocks_of,
    channel_view,
    elements,
    grid_of,
    line_offsets,
    memory_format_of,
    of_channel,
    over_tile,
    split_channels,
    sum_of_channel,
    tile_of_channel,
)
from genimg.kernels.triton.elementary import leaky
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import on_device_of

# Elements of a tile: 16 for each of 256 threads are two or four vectors of 16 bytes. With twice as
# many the moments of planes spill.
TILE = 4096
NUM_WARPS = 8
# A tile of the merging kernel.
BLOCK_P = 32
BLOCK_C = 16

NARROW = {
    # The threads of a column of the tile load the same one.
    "_batch_norm_act_moments_kernel": (9, "the shift, one value for each channel of a part"),
}


@triton.jit
def _store_part(
    to_ptr, value, which, part, parts, block, channels, PIXELS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """One number a channel, into ``[which, parts, channels]``."""
    row = tl.cast(which * parts + part, tl.int64) * channels
    if PIXELS:
        c = block * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(to_ptr + row + c, value, mask=c < channels)
    else:
        tl.store(to_ptr + row + block, value)


@triton.jit
def _affine(x, mean, scale, bias):
    # Not x * scale + (bias - mean * scale), which cancels where the mean is far from 0. Forward and
    # backward share it, so that they agree on the sign.
    return (x - mean) * scale + bias


@triton.jit
def _batch_norm_act_moments_kernel(
    x_ptr,
    parts_ptr,
    channels,
    lines,
    columns,
    line_stride,
    block_stride,
    tiles,
    parts,
    PIXELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Shift, sum of ``x - shift``, sum of squares about the mean, and count, of every part."""
    part = tl.program_id(0) % parts
    block = tl.program_id(0) // parts
    # A value of the part: what is summed is then of the deviation's size, wherever the mean is.
    if PIXELS:
        c = block * BLOCK_N + tl.arange(0, BLOCK_N)
        first = tl.cast(part, tl.int64) * BLOCK_M * line_stride + c
        shift = tl.load(x_ptr + first, mask=c < channels, other=0.0).to(tl.float32)
    else:
        per_line = tl.cdiv(columns, BLOCK_N)
        first = tl.cast(part // per_line, tl.int64) * BLOCK_M * line_stride
        first += tl.cast(block, tl.int64) * block_stride + part % per_line * BLOCK_N
        shift = tl.load(x_ptr + first).to(tl.float32)
    shift = tl.where(tl.abs(shift) < float("inf"), shift, 0.0)
    total = shift * 0.0
    m2 = shift * 0.0
    count = 0.0
    # Strided: the programs walk through memory side by side, and leave its end in the cache.
    for t in range(part, tiles, parts):
        offsets, inside = tile_of_channel(
            t, block, lines, columns, line_stride, block_stride, PIXELS, BLOCK_M, BLOCK_N
        )
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - (shift[None, :] if PIXELS else shift), 0.0)
        if PIXELS:
            size = tl.minimum(lines - tl.cast(t, tl.int64) * BLOCK_M, BLOCK_M).to(tl.float32)
        else:
            size = tl.sum(tl.sum(inside.to(tl.float32), 1), 0)
        tile_total = sum_of_channel(x, PIXELS)
        tile_mean = tile_total / size
        spread = tl.where(inside, x - (tile_mean[None, :] if PIXELS else tile_mean), 0.0)
        tile_m2 = sum_of_channel(spread * spread, PIXELS)
        # Chan's merge. The sum is carried, not the mean: an infinite one stays infinite.
        apart = tile_mean - total / tl.maximum(count, 1.0)
        m2 += tile_m2 + tl.where(count > 0, apart * apart * (count * size / (count + size)), 0.0)
        total += tile_total
        count += size
    _store_part(parts_ptr, shift, 0, part, parts, block, channels, PIXELS, BLOCK_N)
    _store_part(parts_ptr, total, 1, part, parts, block, channels, PIXELS, BLOCK_N)
    _store_part(parts_ptr, m2, 2, part, parts, block, channels, PIXELS, BLOCK_N)
    _store_part(parts_ptr, shift * 0.0 + count, 3, part, parts, block, channels, PIXELS, BLOCK_N)


@triton.jit
def _part(from_ptr, which, p, parts, c, inside, channels):
    """A tile ``[BLOCK_P, BLOCK_C]`` of ``[which, parts, channels]``, as float64."""
    rows = (which * parts + p).to(tl.int64) * channels
    return tl.load(from_ptr + rows[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float64)


@triton.jit
def _batch_norm_act_statistics_kernel(
    parts_ptr,
    running_mean_ptr,
    running_var_ptr,
    mean_ptr,
    rstd_ptr,
    var_ptr,
    channels,
    parts,
    n,
    eps,
    TRAINING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean, rstd and unbiased variance; from the running ones in eval mode."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    if TRAINING:
        total = tl.zeros([BLOCK_C], tl.float64)
        for first in range(0, parts, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            inside = (p < parts)[:, None] & exists[None, :]
            shift = _part(parts_ptr, 0, p, parts, c, inside, channels)
            count = _part(parts_ptr, 3, p, parts, c, inside, channels)
            total += tl.sum(shift * count + _part(parts_ptr, 1, p, parts, c, inside, channels), 0)
        size = tl.cast(n, tl.float64)
        mean = total / size
        m2 = tl.zeros([BLOCK_C], tl.float64)
        for first in range(0, parts, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            inside = (p < parts)[:, None] & exists[None, :]
            shift = _part(parts_ptr, 0, p, parts, c, inside, channels)
            count = _part(parts_ptr, 3, p, parts, c, inside, channels)
            # Where nothing was counted the sum is 0, too.
            part_total = _part(parts_ptr, 1, p, parts, c, inside, channels)
            apart = shift - mean[None, :] + part_total / tl.maximum(count, 1.0)
            spread = _part(parts_ptr, 2, p, parts, c, inside, channels) + apart * apart * count
            m2 += tl.sum(tl.where(inside, spread, 0.0), 0)
        var = m2 / size
        tl.store(var_ptr + c, (m2 / (size - 1)).to(tl.float32), mask=exists)
    else:
        mean = tl.load(running_mean_ptr + c, mask=exists, other=0.0).to(tl.float64)
        var = tl.load(running_var_ptr + c, mask=exists, other=1.0).to(tl.float64)
    tl.store(mean_ptr + c, mean.to(tl.float32), mask=exists)
    tl.store(rstd_ptr + c, (1.0 / tl.sqrt(var + eps)).to(tl.float32), mask=exists)


@triton.jit
def _batch_norm_act_fwd_kernel(
    x_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    channels,
    lines,
    columns,
    batch_stride,
    line_stride,
    y_batch_stride,
    y_line_stride,
    negative_slope,
    PIXELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m, n, c, exists, inside = elements(lines, columns, channels, PIXELS, BLOCK_M, BLOCK_N)
    mean = of_channel(mean_ptr, c, exists, 0.0)
    scale = of_channel(weight_ptr, c, exists, 1.0) * of_channel(rstd_ptr, c, exists, 1.0)
    bias = of_channel(bias_ptr, c, exists, 0.0)
    from_x = line_offsets(m, channels, batch_stride, line_stride, PIXELS)[:, None] + n[None, :]
    x = tl.load(x_ptr + from_x, mask=inside, other=0.0).to(tl.float32)
    z = _affine(x, over_tile(mean, PIXELS), over_tile(scale, PIXELS), over_tile(bias, PIXELS))
    y = leaky(z, z, negative_slope)
    to_y = line_offsets(m, channels, y_batch_stride, y_line_stride, PIXELS)[:, None] + n[None, :]
    tl.store(y_ptr + to_y, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _batch_norm_act_sums_kernel(
    grad_y_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    parts_ptr,
    channels,
    lines,
    columns,
    grad_line_stride,
    grad_block_stride,
    line_stride,
    block_stride,
    tiles,
    parts,
    negative_slope,
    PIXELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sum of ``dz`` and of ``dz (x - mean)``, of every part."""
    part = tl.program_id(0) % parts
    block = tl.program_id(0) // parts
    c = block * BLOCK_N + tl.arange(0, BLOCK_N) if PIXELS else block + tl.arange(0, 1)
    exists = c < channels
    mean = of_channel(mean_ptr, c, exists, 0.0)[None, :]
    scale = of_channel(weight_ptr, c, exists, 1.0) * of_channel(rstd_ptr, c, exists, 1.0)
    bias = of_channel(bias_ptr, c, exists, 0.0)
    # A sum for each place of the tile, so that threads meet once, at the end.
    dz_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    dz_x_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for t in range(part, tiles, parts):
        from_x, inside = tile_of_channel(
            t, block, lines, columns, line_stride, block_stride, PIXELS, BLOCK_M, BLOCK_N
        )
        from_grad, _ = tile_of_channel(
            t, block, lines, columns, grad_line_stride, grad_block_stride, PIXELS, BLOCK_M, BLOCK_N
        )
        x = tl.load(x_ptr + from_x, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_y_ptr + from_grad, mask=inside, other=0.0).to(tl.float32)
        z = _affine(x, mean, scale[None, :], bias[None, :])
        dz = leaky(z, grad, negative_slope)
        dz_sums += dz
        dz_x_sums += tl.where(inside, dz * (x - mean), 0.0)
    dz_total = sum_of_channel(dz_sums, PIXELS)
    dz_x_total = sum_of_channel(dz_x_sums, PIXELS)
    _store_part(parts_ptr, dz_total, 0, part, parts, block, channels, PIXELS, BLOCK_N)
    _store_part(parts_ptr, dz_x_total, 1, part, parts, block, channels, PIXELS, BLOCK_N)


@triton.jit
def _batch_norm_act_grads_kernel(
    parts_ptr,
    rstd_ptr,
    weight_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    slope_ptr,
    offset_ptr,
    channels,
    parts,
    n,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The parameters' gradients, and what a batch's statistics add to that of ``x``."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    dz = tl.zeros([BLOCK_C], tl.float64)
    dz_x = tl.zeros([BLOCK_C], tl.float64)
    for first in range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = (p < parts)[:, None] & exists[None, :]
        dz += tl.sum(_part(parts_ptr, 0, p, parts, c, inside, channels), 0)
        dz_x += tl.sum(_part(parts_ptr, 1, p, parts, c, inside, channels), 0)
    rstd = tl.load(rstd_ptr + c, mask=exists, other=0.0).to(tl.float64)
    scale = of_channel(weight_ptr, c, exists, 1.0).to(tl.float64) * rstd
    size = tl.cast(n, tl.float64)
    tl.store(grad_weight_ptr + c, (dz_x * rstd).to(tl.float32), mask=exists)
    tl.store(grad_bias_ptr + c, dz.to(tl.float32), mask=exists)
    if slope_ptr is not None:
        slope = -scale * rstd * rstd * dz_x / size
        tl.store(slope_ptr + c, slope.to(tl.float32), mask=exists)
        tl.store(offset_ptr + c, (-scale * dz / size).to(tl.float32), mask=exists)


@triton.jit
def _batch_norm_act_bwd_kernel(
    grad_y_ptr,
    x_ptr,
    grad_x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    offset_ptr,
    channels,
    lines,
    columns,
    batch_stride,
    line_stride,
    dense_batch_stride,
    dense_line_stride,
    negative_slope,
    PIXELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``grad_x = scale dz + slope (x - mean) + offset``; no slope and offset in eval mode.

    About the mean, not as ``c2 x + c3``: those two cancel where the mean is far from 0.
    """
    m, n, c, exists, inside = elements(lines, columns, channels, PIXELS, BLOCK_M, BLOCK_N)
    mean = over_tile(of_channel(mean_ptr, c, exists, 0.0), PIXELS)
    scale = of_channel(weight_ptr, c, exists, 1.0) * of_channel(rstd_ptr, c, exists, 1.0)
    scale = over_tile(scale, PIXELS)
    bias = over_tile(of_channel(bias_ptr, c, exists, 0.0), PIXELS)
    from_x = line_offsets(m, channels, batch_stride, line_stride, PIXELS)[:, None] + n[None, :]
    dense = line_offsets(m, channels, dense_batch_stride, dense_line_stride, PIXELS)
    dense = dense[:, None] + n[None, :]
    x = tl.load(x_ptr + from_x, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_y_ptr + dense, mask=inside, other=0.0).to(tl.float32)
    dz = leaky(_affine(x, mean, scale, bias), grad, negative_slope)
    grad_x = scale * dz
    if slope_ptr is not None:  # else an x that is not finite has a part in nothing
        slope = over_tile(of_channel(slope_ptr, c, exists, 0.0), PIXELS)
        offset = over_tile(of_channel(offset_ptr, c, exists, 0.0), PIXELS)
        grad_x += (x - mean) * slope + offset
    tl.store(grad_x_ptr + dense, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)


def _dense(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def batch_norm_act_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y``, and mean, rstd and unbiased variance of the batch.

    In eval mode they are what the running statistics give, and there is no variance.
    """
    running_mean, running_var, weight, bias = map(_dense, (running_mean, running_var, weight, bias))
    channels = x.shape[1]
    mean, rstd = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    var = x.new_empty(channels if training else 0, dtype=torch.float32)
    if x.numel() == 0 and running_mean is not None and running_var is not None:  # not in training
        rstd.copy_(torch.rsqrt(running_var + eps))
        return torch.empty_like(x), mean.copy_(running_mean), rstd, var
    x, layout = channel_view(x)
    y = torch.empty_like(x, memory_format=memory_format_of(x, layout))
    block = blocks_of(layout, TILE)
    with on_device_of(x):
        parts, number = None, 1
        if training:
            split = split_channels(layout, block)
            number = split.parts
            parts = x.new_empty(4, number, channels, dtype=torch.float32)
            walk = (channels, split.lines, layout.columns, *split.strides, split.tiles, number)
            launch(_batch_norm_act_moments_kernel, (split.programs,))(
                x, parts, *walk, **block, num_warps=NUM_WARPS
            )
        tensors = (parts, running_mean, running_var, mean, rstd, var)
        counts = (channels, number, x.numel() // channels, eps)
        launch(_batch_norm_act_statistics_kernel, (triton.cdiv(channels, BLOCK_C),))(
            *tensors, *counts, TRAINING=training, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C
        )
        sizes = (channels, layout.lines, layout.columns, *layout.strides, *layout.dense_strides)
        launch(_batch_norm_act_fwd_kernel, grid_of(layout, block))(
            x, y, mean, rstd, weight, bias, *sizes, negative_slope, **block, num_warps=NUM_WARPS
        )
    return y, mean, rstd, var


def batch_norm_act_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    negative_slope: float,
    needs_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``grad_x`` (empty if not needed), and the parameters' gradients in float32."""
    channels = x.shape[1]
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    if x.numel() == 0:
        return torch.empty_like(x), grad_weight.fill_(0), grad_bias.fill_(0)
    x, layout = channel_view(x)
    grad_y = grad_y.contiguous(memory_format=memory_format_of(x, layout))
    grad_x = torch.empty_like(grad_y) if needs_grad_x else x.new_empty(0)
    slope, offset = (torch.empty_like(mean) if training else None for _ in range(2))
    weight, bias = _dense(weight), _dense(bias)
    parameters = (mean, rstd, weight, bias)
    block = blocks_of(layout, TILE)
    split = split_channels(layout, block)
    parts = x.new_empty(2, split.parts, channels, dtype=torch.float32)
    with on_device_of(x):
        walk = (channels, split.lines, layout.columns, *split.dense_strides, *split.strides)
        shares = (split.tiles, split.parts, negative_slope)
        launch(_batch_norm_act_sums_kernel, (split.programs,))(
            grad_y, x, *parameters, parts, *walk, *shares, **block, num_warps=NUM_WARPS
        )
        sums = (parts, rstd, weight, grad_weight, grad_bias, slope, offset)
        counts = (channels, split.parts, x.numel() // channels)
        launch(_batch_norm_act_grads_kernel, (triton.cdiv(channels, BLOCK_C),))(
            *sums, *counts, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C
        )
        if needs_grad_x:
            tensors = (grad_y, x, grad_x, *parameters, slope, offset)
            sizes = (channels, layout.lines, layout.columns, *layout.strides, *layout.dense_strides)
            launch(_batch_norm_act_bwd_kernel, grid_of(layout, block))(
                *tensors, *sizes, negative_slope, **block, num_warps=NUM_WARPS
            )
    return grad_x, grad_weight, grad_bias


def compiles() -> Iterator[Compile]:
    """Every kernel at every width of a tile, 64 channels first; some without parameters."""
    widths = [(2**i, True) for i in range(COLUMNS_OF_PIXELS.bit_length() - 1, 0, -1)]
    widths += [(2**i, False) for i in range(COLUMNS_OF_PLANES.bit_length() - 1, 0, -1)]
    absent = {"weight_ptr": None, "bias_ptr": None}
    in_eval = {"slope_ptr": None, "offset_ptr": None}
    for columns, pixels in widths:
        for kernel, optional in (
            (_batch_norm_act_fwd_kernel, absent),
            (_batch_norm_act_bwd_kernel, {**absent, **in_eval}),
            (_batch_norm_act_moments_kernel, None),
            (_batch_norm_act_sums_kernel, absent),
        ):
            block = {"PIXELS": pixels, "BLOCK_M": TILE // columns, "BLOCK_N": columns}
            size = f"{TILE // columns}x{columns} {'pixels' if pixels else 'planes'}"
            # Sizes and strides of narrower blocks are not known to be multiples of 16.
            known = ("columns", "stride") if columns >= 16 else ()
            yield _compile(kernel, size, block, NUM_WARPS, known)
            if optional and columns == 64:
                yield _compile(kernel, f"{size} alone", {**block, **optional}, NUM_WARPS, known)
    merge = {"BLOCK_P": BLOCK_P, "BLOCK_C": BLOCK_C}
    training = {**merge, "TRAINING": True, "running_mean_ptr": None, "running_var_ptr": None}
    yield _compile(_batch_norm_act_statistics_kernel, "training", training, 4)
    evaluation = {**merge, "TRAINING": False, "parts_ptr": None}
    yield _compile(_batch_norm_act_statistics_kernel, "eval", evaluation, 4)
    yield _compile(_batch_norm_act_grads_kernel, "training", merge, 4)
    evaluation = {**merge, **in_eval, "weight_ptr": None}
    yield _compile(_batch_norm_act_grads_kernel, "eval", evaluation, 4)


def _compile(
    kernel: Any, size: str, constexprs: dict[str, Any], num_warps: int, known: tuple[str, ...] = ()
) -> Compile:
    types = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
    elements_of = {"x_ptr", "y_ptr", "grad_y_ptr", "grad_x_ptr"} & types.keys()
    types |= {**dict.fromkeys(elements_of, "*T"), "eps": "fp32", "negative_slope": "fp32"}
    signature = signature_of(kernel, types, constexprs)
    aligned = [
        name
        for name, kind in signature.items()
        if (kind[0] == "*" and (known or kind != "*T")) or name.endswith(known)
    ]
    stem = kernel.__name__.strip("_").removesuffix("_kernel")
    return Compile(
        kernel,
        f"{stem} {size}",
        signature,
        constexprs,
        {"num_warps": num_warps},
        tuple(aligned),
        dtypes=DTYPES if elements_of else ("fp32",),
    )
