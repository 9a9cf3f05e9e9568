"""Reparameterisation and KL divergence in Triton: formulas in ``genimg/ops/reparam_kl.py``.

One pass. Tiles follow the noise: a counter gives four neighbouring elements, wherever rows begin. A
row longer than a tile is cut into parts, whose sums a second kernel adds in a fixed order.

Key and offset are read on the device, from the pair that torch's generator wrote there. So nothing
waits for the host, and a CUDA graph in which that pair is drawn has fresh noise at every replay.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton.aot import Compile, signature_of
from genimg.kernels.triton.elementary import exp, expm1, expm1_minus_x
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.philox import philox_normal
from genimg.kernels.triton.runtime import empty_elementwise, in_order_of, on_device_of, width_for

# Counters of a tile: two for each of 128 threads, which have eight elements then.
TILE = 256
NUM_WARPS = 4
# A tile of the kernel that adds the parts.
BLOCK_P = 16
BLOCK_N = 32


@triton.jit
def _clamp(logvar):
    # A comparison with NaN is false, so NaN stays.
    logvar = tl.where(logvar < -30.0, -30.0, logvar)
    return tl.where(logvar > 20.0, 20.0, logvar)


@triton.jit
def _tile(
    rows,
    row_size,
    parts,
    ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    """Rows [BLOCK_M], counters [BLOCK_M, COUNTERS], elements and mask [BLOCK_M, 4 COUNTERS]."""
    part = tl.program_id(0) % parts
    row = tl.cast(tl.program_id(0) // parts, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = row * row_size
    # Where 4 does not divide a row, two rows share a counter.
    first = (begin if ALIGNED else begin // 4 * 4) + tl.cast(part, tl.int64) * (4 * COUNTERS)
    counter = (first // 4)[:, None] + tl.arange(0, COUNTERS)[None, :]
    element = first[:, None] + tl.arange(0, 4 * COUNTERS)[None, :]
    inside = (row < rows)[:, None] & (element < (begin + row_size)[:, None])
    if not ALIGNED:
        inside &= element >= begin[:, None]
    return part, row, counter, element, inside


@triton.jit
def _reparam_kl_fwd_kernel(
    mu_ptr,
    logvar_ptr,
    seed_ptr,
    z_ptr,
    kl_ptr,
    rows,
    row_size,
    parts,
    ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    part, row, counter, element, inside = _tile(rows, row_size, parts, ALIGNED, BLOCK_M, COUNTERS)
    mu = tl.load(mu_ptr + element, mask=inside, other=0.0).to(tl.float32)
    logvar = _clamp(tl.load(logvar_ptr + element, mask=inside, other=0.0).to(tl.float32))
    z = mu + exp(0.5 * logvar) * philox_normal(counter, seed_ptr)
    tl.store(z_ptr + element, z.to(z_ptr.dtype.element_ty), mask=inside)
    terms = 0.5 * (mu * mu + expm1_minus_x(logvar))
    kl = tl.sum(tl.where(inside, terms, 0.0), 1)
    tl.store(kl_ptr + tl.cast(part, tl.int64) * rows + row, kl, mask=row < rows)


@triton.jit
def _reparam_kl_sum_kernel(
    parts_ptr, kl_ptr, rows, parts, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr
):
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    kl = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        inside = (part < parts)[:, None] & (row < rows)[None, :]
        offsets = (part.to(tl.int64) * rows)[:, None] + row[None, :]
        kl += tl.sum(tl.load(parts_ptr + offsets, mask=inside, other=0.0), 0)
    tl.store(kl_ptr + row, kl, mask=row < rows)


@triton.jit
def _reparam_kl_bwd_kernel(
    grad_z_ptr,
    grad_kl_ptr,
    mu_ptr,
    logvar_ptr,
    seed_ptr,
    grad_mu_ptr,
    grad_logvar_ptr,
    rows,
    row_size,
    parts,
    ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    _, row, counter, element, inside = _tile(rows, row_size, parts, ALIGNED, BLOCK_M, COUNTERS)
    grad_kl = tl.load(grad_kl_ptr + row, mask=row < rows, other=0.0)[:, None]
    grad_z = tl.load(grad_z_ptr + element, mask=inside, other=0.0).to(tl.float32)
    mu = tl.load(mu_ptr + element, mask=inside, other=0.0).to(tl.float32)
    logvar = tl.load(logvar_ptr + element, mask=inside, other=0.0).to(tl.float32)
    clamped = _clamp(logvar)
    grad_mu = grad_z + grad_kl * mu
    std_eps = philox_normal(counter, seed_ptr) * exp(0.5 * clamped)
    grad_logvar = 0.5 * (grad_z * std_eps + grad_kl * expm1(clamped))
    grad_logvar = tl.where(logvar == clamped, grad_logvar, 0.0)
    tl.store(grad_mu_ptr + element, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=inside)
    to_logvar = grad_logvar.to(grad_logvar_ptr.dtype.element_ty)
    tl.store(grad_logvar_ptr + element, to_logvar, mask=inside)


def _sizes(mu: Tensor) -> tuple[tuple[int, int, int], dict[str, int | bool], int]:
    """Rows, their size and parts; the constants; the programs."""
    rows = mu.shape[0]
    row_size = mu.numel() // rows
    if row_size % 4 == 0:
        aligned, counters = True, row_size // 4
    else:  # one that begins at a counter's last lane has the most
        aligned, counters = False, triton.cdiv(row_size + 3, 4)
    block = width_for(counters, TILE)
    parts = triton.cdiv(counters, block)
    constants = {"ALIGNED": aligned, "BLOCK_M": TILE // block, "COUNTERS": block}
    return (rows, row_size, parts), constants, triton.cdiv(rows, TILE // block) * parts


def reparam_kl_fwd(mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """``z`` like ``mu``, and the KL divergence ``[N]`` in float32; ``seed`` is int64 [2]."""
    z = torch.empty_like(mu, memory_format=torch.contiguous_format)
    if mu.numel() == 0:
        return z, mu.new_zeros(mu.shape[:1], dtype=torch.float32)
    kl = mu.new_empty(mu.shape[:1], dtype=torch.float32)
    sizes, constants, programs = _sizes(mu)
    rows, _, parts = sizes
    sums = kl if parts == 1 else mu.new_empty(parts, rows, dtype=torch.float32)
    with on_device_of(mu):
        launch(_reparam_kl_fwd_kernel, (programs,))(
            mu.contiguous(),
            logvar.contiguous(),
            seed,
            z,
            sums,
            *sizes,
            **constants,
            num_warps=NUM_WARPS,
        )
        if parts > 1:
            launch(_reparam_kl_sum_kernel, (triton.cdiv(rows, BLOCK_N),))(
                sums, kl, rows, parts, BLOCK_P=BLOCK_P, BLOCK_N=BLOCK_N
            )
    return in_order_of(empty_elementwise(mu), z), kl


def reparam_kl_bwd(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``mu`` and ``logvar``, each in its memory order."""
    grad_mu = torch.empty_like(mu, memory_format=torch.contiguous_format)
    grad_logvar = torch.empty_like(grad_mu)
    if mu.numel():
        sizes, constants, programs = _sizes(mu)
        with on_device_of(mu):
            launch(_reparam_kl_bwd_kernel, (programs,))(
                grad_z.contiguous(),
                grad_kl.contiguous(),
                mu.contiguous(),
                logvar.contiguous(),
                seed,
                grad_mu,
                grad_logvar,
                *sizes,
                **constants,
                num_warps=NUM_WARPS,
            )
    in_order = in_order_of(empty_elementwise(mu), grad_mu)
    return in_order, in_order_of(empty_elementwise(logvar), grad_logvar)


def compiles() -> Iterator[Compile]:
    """Rows of 128, of more than a tile, and of a size that 4 does not divide."""
    for block, aligned in ((32, True), (TILE, True), (32, False)):
        constants = {"ALIGNED": aligned, "BLOCK_M": TILE // block, "COUNTERS": block}
        for kernel in (_reparam_kl_fwd_kernel, _reparam_kl_bwd_kernel):
            pointers = tuple(name for name in kernel.arg_names if name.endswith("_ptr"))
            single = {"seed_ptr": "*i64", "kl_ptr": "*fp32", "grad_kl_ptr": "*fp32"}
            types = {**dict.fromkeys(pointers, "*T"), **single}
            yield Compile(
                kernel,
                f"{kernel.__name__.strip('_').removesuffix('_kernel')} {TILE // block}x{4 * block}"
                + ("" if aligned else " unaligned"),
                signature_of(kernel, types, constants),
                constants,
                {"num_warps": NUM_WARPS},
                # Rows that begin between two counters begin at any address.
                (*pointers, "row_size") if aligned else (),
            )
    pointers, constants = ("parts_ptr", "kl_ptr"), {"BLOCK_P": BLOCK_P, "BLOCK_N": BLOCK_N}
    yield Compile(
        _reparam_kl_sum_kernel,
        "reparam_kl_sum",
        signature_of(_reparam_kl_sum_kernel, dict.fromkeys(pointers, "*fp32"), constants),
        constants,
        {"num_warps": 4},
        (*pointers, "rows"),
        dtypes=("fp32",),
    )
