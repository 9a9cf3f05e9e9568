"""Batch norm's numbers, from what the tiles of a contraction found out about their channels.

A partial result is float32 ``[planes, rows, channels]``, a row for each tile: count, mean and
squared deviations (``statistics``), or the sums of ``dz`` and of ``dz (y - mean)``. Rows are merged
in a fixed order, a block of them in two passes and the blocks by Chan's formula: no difference of
large sums is taken, and two runs agree to the bit. Many rows are first merged into fewer, by
several programs.

The merge is a launch of its own, not the last tile's work. A program for every few channels reads
the rows, where the last tile would read those of all its columns alone, at a core's share of the
cache; and no counter must be zero before, on every stream and in every replay of a graph.

Each kernel ends in the coefficients, float32 ``[4, channels]``, that ``prologue.py`` reads through.

Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, equation 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import Compile, signature_of
from genimg.kernels.triton.conv.epilogue import MOMENTS
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import on_device_of

BLOCK_ROWS = 64
BLOCK_CHANNELS = 16
NUM_WARPS = 4
RUNNING_CHANNELS = 512  # 16 bytes a thread
GROUP = 512
"""Rows that one program merges."""


@triton.jit
def _merge(partial_ptr, first, last, rows, channels, c, BLOCK_ROWS: tl.constexpr):
    """Count, mean and squared deviations of rows ``first .. last``."""
    plane = rows * channels
    known = c < channels
    count = tl.zeros(c.shape, dtype=tl.float32)
    mean = tl.zeros(c.shape, dtype=tl.float32)
    squares = tl.zeros(c.shape, dtype=tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = (row < last)[:, None] & known[None, :]
        at = partial_ptr + row[:, None] * channels + c[None, :]
        counts = tl.load(at, mask=inside, other=0.0)
        means = tl.load(at + plane, mask=inside, other=0.0)
        block_count = tl.sum(counts, 0)
        block_mean = tl.sum(counts * means, 0) / tl.maximum(block_count, 1.0)
        apart = tl.where(inside, means - block_mean[None, :], 0.0)
        tile_squares = tl.load(at + 2 * plane, mask=inside, other=0.0)
        # Where a tile's squares overflowed, it took Inf from Inf; its mean is finite all the same.
        overflowed = (tile_squares != tile_squares) & (means - means == 0.0)
        block_squares = tl.sum(tl.where(overflowed, float("inf"), tile_squares), 0)
        block_squares += tl.sum(counts * apart * apart, 0)
        # The rounding error of the mean, from the deviations about it.
        rest = tl.sum(counts * apart, 0) / tl.maximum(block_count, 1.0)
        block_mean += rest
        block_squares -= tl.where(block_squares < float("inf"), block_count * rest * rest, 0.0)
        total = count + block_count
        delta = block_mean - mean
        share = block_count / tl.maximum(total, 1.0)
        mean += delta * share
        squares += block_squares + delta * (delta * (count * share))  # of no count: 0, not Inf * 0
        count = total
    return count, mean, squares


@triton.jit
def _add(partial_ptr, first, last, rows, channels, c, BLOCK_ROWS: tl.constexpr):
    """The two sums over rows ``first .. last``."""
    plane = rows * channels
    known = c < channels
    total = tl.zeros(c.shape, dtype=tl.float32)
    weighted = tl.zeros(c.shape, dtype=tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = (row < last)[:, None] & known[None, :]
        at = partial_ptr + row[:, None] * channels + c[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0), 0)
        weighted += tl.sum(tl.load(at + plane, mask=inside, other=0.0), 0)
    return total, weighted


@triton.jit
def _moments_group_kernel(
    partial_ptr,
    out_ptr,  # [planes, groups, channels]
    rows,
    channels,
    groups,
    STATISTICS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
):
    group = tl.program_id(0)
    first = group * GROUP
    last = tl.minimum(first + GROUP, rows)
    c = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    at = out_ptr + group * channels + c
    plane = groups * channels
    if STATISTICS:
        count, mean, squares = _merge(partial_ptr, first, last, rows, channels, c, BLOCK_ROWS)
        tl.store(at, count, mask=c < channels)
        tl.store(at + plane, mean, mask=c < channels)
        tl.store(at + 2 * plane, squares, mask=c < channels)
    else:
        total, weighted = _add(partial_ptr, first, last, rows, channels, c, BLOCK_ROWS)
        tl.store(at, total, mask=c < channels)
        tl.store(at + plane, weighted, mask=c < channels)


@triton.jit
def _factor(ptr, c, channels, default):
    """A parameter that may be missing."""
    value = tl.zeros(c.shape, dtype=tl.float32) + default
    if ptr is not None:
        value = tl.load(ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    return value


@triton.jit
def _store_coefficients(coef_ptr, c, channels, mean, scale, shift, tilt):
    at = coef_ptr + c
    tl.store(at, mean, mask=c < channels)
    tl.store(at + channels, scale, mask=c < channels)
    tl.store(at + 2 * channels, shift, mask=c < channels)
    tl.store(at + 3 * channels, tilt, mask=c < channels)


@triton.jit
def _moments_statistics_kernel(
    partial_ptr,
    gamma_ptr,
    beta_ptr,
    coef_ptr,
    mean_ptr,
    rstd_ptr,
    var_ptr,
    rows,
    channels,
    count,  # of a channel's values, as a float
    eps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Mean, rstd and unbiased variance; coefficients of ``z = gamma (y - mean) rstd + beta``."""
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    _, mean, squares = _merge(partial_ptr, 0, rows, rows, channels, c, BLOCK_ROWS)
    rstd = 1.0 / tl.sqrt_rn(squares / count + eps)
    tl.store(mean_ptr + c, mean, mask=c < channels)
    tl.store(rstd_ptr + c, rstd, mask=c < channels)
    tl.store(var_ptr + c, squares / (count - 1.0), mask=c < channels)
    scale = _factor(gamma_ptr, c, channels, 1.0) * rstd
    shift = _factor(beta_ptr, c, channels, 0.0)
    _store_coefficients(coef_ptr, c, channels, mean, scale, shift, tl.zeros_like(mean))


@triton.jit
def _moments_running_kernel(
    mean_ptr,
    rstd_ptr,
    var_ptr,
    running_mean_ptr,
    running_var_ptr,
    gamma_ptr,
    beta_ptr,
    coef_ptr,
    channels,
    eps,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The same from the running statistics."""
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    mean = tl.load(running_mean_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    var = tl.load(running_var_ptr + c, mask=c < channels, other=1.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt_rn(var + eps)
    tl.store(mean_ptr + c, mean, mask=c < channels)
    tl.store(rstd_ptr + c, rstd, mask=c < channels)
    tl.store(var_ptr + c, var, mask=c < channels)
    scale = _factor(gamma_ptr, c, channels, 1.0) * rstd
    shift = _factor(beta_ptr, c, channels, 0.0)
    _store_coefficients(coef_ptr, c, channels, mean, scale, shift, tl.zeros_like(mean))


@triton.jit
def _moments_grads_kernel(
    partial_ptr,
    forward_ptr,  # the coefficients of the forward
    rstd_ptr,
    coef_ptr,
    bias_ptr,
    gamma_ptr,
    beta_ptr,
    rows,
    channels,
    count,
    BATCH: tl.constexpr,  # the statistics were the batch's, so the gradient goes through them
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Gradients of bias, gamma, beta; coefficients of ``dy = scale dz + tilt (y - mean) + shift``.

    With ``S1 = sum dz`` and ``S2 = sum dz (y - mean)``: ``shift = -scale S1 / n`` and
    ``tilt = -scale rstd^2 S2 / n``.
    """
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    total, weighted = _add(partial_ptr, 0, rows, rows, channels, c, BLOCK_ROWS)
    mean = tl.load(forward_ptr + c, mask=c < channels, other=0.0)
    scale = tl.load(forward_ptr + channels + c, mask=c < channels, other=0.0)
    rstd = tl.load(rstd_ptr + c, mask=c < channels, other=0.0)
    tl.store(gamma_ptr + c, weighted * rstd, mask=c < channels)
    tl.store(beta_ptr + c, total, mask=c < channels)
    if BATCH:
        share = -scale / count
        shift = share * total
        tilt = share * rstd * rstd * weighted
        bias = tl.zeros_like(total)  # the mean takes it away
    else:
        mean = tl.zeros_like(total)
        shift = tl.zeros_like(total)
        tilt = tl.zeros_like(total)
        bias = scale * total
    tl.store(bias_ptr + c, bias, mask=c < channels)
    _store_coefficients(coef_ptr, c, channels, mean, scale, shift, tilt)


@triton.jit
def _moments_bias_kernel(
    partial_ptr,
    bias_ptr,
    rows,
    channels,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The gradient of a bias with no norm behind it."""
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    total, _ = _add(partial_ptr, 0, rows, rows, channels, c, BLOCK_ROWS)
    tl.store(bias_ptr + c, total, mask=c < channels)


class Norm(NamedTuple):
    """A batch norm: coefficients, and mean, rstd and variance, ``[channels]`` each.

    The variance is unbiased if it is the batch's, else the running one.
    """

    coef: Tensor
    mean: Tensor
    rstd: Tensor
    var: Tensor


class NormGrads(NamedTuple):
    """Gradients of a block's parameters, float32; ``coef`` takes the gradient through the norm."""

    bias: Tensor
    gamma: Tensor
    beta: Tensor
    coef: Tensor


_BLOCKS = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_CHANNELS": BLOCK_CHANNELS}


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _grid(channels: int) -> tuple[int]:
    return (triton.cdiv(channels, BLOCK_CHANNELS),)


def _grouped(partial: Tensor, channels: int) -> Tensor:
    """So few rows that one program merges them."""
    # Taps that are folded into channels are so many more rows, in memory as it is.
    partial = partial.view(partial.shape[0], -1, channels)
    planes, rows, _ = partial.shape
    if rows <= 2 * GROUP:
        return partial
    groups = triton.cdiv(rows, GROUP)
    out = _floats(partial, planes, groups, channels)
    launch(_moments_group_kernel, (groups, *_grid(channels)))(
        partial,
        out,
        rows,
        channels,
        groups,
        STATISTICS=planes == MOMENTS,
        GROUP=GROUP,
        num_warps=NUM_WARPS,
        **_BLOCKS,
    )
    return _grouped(out, channels)


def _dense(*parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if p is None else p.contiguous() for p in parameters)


def statistics(
    partial: Tensor,
    channels: int,
    count: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Norm:
    """The norm of ``count`` values per channel, from the rows of the tiles."""
    with on_device_of(partial):
        partial = _grouped(partial, channels)
        coef = _floats(partial, 4, channels)
        mean, rstd, var = (_floats(partial, channels) for _ in range(3))
        launch(_moments_statistics_kernel, _grid(channels))(
            partial,
            *_dense(gamma, beta),
            coef,
            mean,
            rstd,
            var,
            partial.shape[1],
            channels,
            float(count),
            eps,
            num_warps=NUM_WARPS,
            **_BLOCKS,
        )
    return Norm(coef, mean, rstd, var)


def running(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Norm:
    """The norm of the running statistics."""
    channels = running_mean.numel()
    coef = _floats(running_mean, 4, channels)
    mean, rstd, var = (_floats(running_mean, channels) for _ in range(3))
    with on_device_of(coef):
        launch(_moments_running_kernel, (triton.cdiv(channels, RUNNING_CHANNELS),))(
            mean,
            rstd,
            var,
            *_dense(running_mean, running_var, gamma, beta),
            coef,
            channels,
            eps,
            BLOCK_CHANNELS=RUNNING_CHANNELS,
            num_warps=NUM_WARPS,
        )
    return Norm(coef, mean, rstd, var)


def norm_grads(
    partial: Tensor, forward: Tensor, rstd: Tensor, count: int, batch: bool
) -> NormGrads:
    """From the rows of a gate; ``batch``: the statistics were those of ``count`` values."""
    channels = rstd.numel()
    with on_device_of(partial):
        partial = _grouped(partial, channels)
        coef = _floats(partial, 4, channels)
        bias, gamma, beta = (_floats(partial, channels) for _ in range(3))
        launch(_moments_grads_kernel, _grid(channels))(
            partial,
            forward,
            rstd,
            coef,
            bias,
            gamma,
            beta,
            partial.shape[1],
            channels,
            float(count),
            BATCH=batch,
            num_warps=NUM_WARPS,
            **_BLOCKS,
        )
    return NormGrads(bias, gamma, beta, coef)


def bias_grad(partial: Tensor, channels: int) -> Tensor:
    """From the rows of a gate with no norm behind it, float32."""
    with on_device_of(partial):
        partial = _grouped(partial, channels)
        bias = _floats(partial, channels)
        launch(_moments_bias_kernel, _grid(channels))(
            partial, bias, partial.shape[1], channels, num_warps=NUM_WARPS, **_BLOCKS
        )
    return bias


def compiles() -> Iterator[Compile]:
    """As shipped: what a training step launches."""
    blocks = {**_BLOCKS, "GROUP": GROUP}
    for kernel, constants in (
        (_moments_group_kernel, {"STATISTICS": True}),
        (_moments_group_kernel, {"STATISTICS": False}),
        (_moments_statistics_kernel, {}),
        (_moments_running_kernel, {"BLOCK_CHANNELS": RUNNING_CHANNELS}),
        (_moments_grads_kernel, {"BATCH": True}),
        (_moments_bias_kernel, {}),
    ):
        constexprs = {k: v for k, v in {**blocks, **constants}.items() if k in kernel.arg_names}
        pointers = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
        yield Compile(
            kernel,
            kernel.fn.__name__.strip("_").removesuffix("_kernel"),
            signature_of(kernel, {**pointers, "count": "fp32", "eps": "fp32"}, constexprs),
            constexprs,
            {"num_warps": NUM_WARPS},
            (*pointers, "channels"),
            dtypes=("fp32",),
        )
