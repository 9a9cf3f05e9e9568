"""Reparameterisation and KL divergence: the definition.

The noise is part of the definition, so that every backend draws the same: Philox 4x32-10 (Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written here in 64-bit integer
tensor arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0
"""logvar is clamped to this range, with zero gradient outside: ``exp`` of it stays finite."""


_MASK = 0xFFFFFFFF


_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)


_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox_4x32_10(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Four 32-bit words (in int64) for each counter of four words under a key of two.

    A product of two 32-bit words may wrap in int64; its high half is right all the same.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32 & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            (p0 >> 32 & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def philox_normal(n: int, seed: Tensor, dtype: torch.dtype) -> Tensor:
    """``n`` standard normal values from the stream of ``seed``.

    Element ``i`` is lane ``i % 4`` of counter ``(i // 4, offset)``, each a 64-bit number of two
    words; the four words of a counter give four values by two Box-Muller steps. A word ``w`` stands
    for ``w 2^-32 + 2^-33`` rounded to float32, whatever ``dtype``, so that float64 and float32 draw
    from the same uniform numbers; no value passes 6.77.

    Args:
        n: how many.
        seed: int64 [2], the key and the offset.
        dtype: float32 or float64.
    """
    index = torch.arange((n + 3) // 4, device=seed.device)
    key, offset = seed[0], seed[1]
    words = philox_4x32_10(
        (index & _MASK, index >> 32, (offset & _MASK).expand_as(index), offset >> 32 & _MASK),
        (key & _MASK, key >> 32 & _MASK),
    )
    u = [(w.to(torch.float32) * 2.0**-32 + 2.0**-33).to(dtype) for w in words]
    lanes = []
    for radius_u, angle_u in ((u[0], u[1]), (u[2], u[3])):
        radius = torch.sqrt(-2 * torch.log(radius_u))
        angle = 2 * math.pi * angle_u
        lanes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(lanes, dim=1).flatten()[:n]


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Key and offset, int64 [2], from torch's generator of the device; no host synchronisation."""
    return torch.randint(
        -(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device, generator=generator
    )


def reparam_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
) -> tuple[Tensor, Tensor]:
    """``z = mu + exp(logvar / 2) eps`` and ``kl[n] = sum (mu^2 + expm1(logvar) - logvar) / 2``."""
    seed = draw_seed(mu.device, generator) if sample else None
    return reparam_kl_of_seed(mu, logvar, seed)


def reparam_kl_of_seed(mu: Tensor, logvar: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`reparam_kl` with the noise of a seed that was drawn before; None is no noise."""
    dtype = torch.promote_types(mu.dtype, torch.float32)
    wide_mu = mu.to(dtype)
    wide_logvar = logvar.to(dtype).clamp(LOGVAR_MIN, LOGVAR_MAX)
    kl = 0.5 * (wide_mu.square() + (torch.expm1(wide_logvar) - wide_logvar)).flatten(1).sum(1)
    if seed is None:
        return mu.clone(), kl
    eps = philox_normal(mu.numel(), seed, dtype).view(mu.shape)
    return (wide_mu + torch.exp(0.5 * wide_logvar) * eps).to(mu.dtype), kl
