"""From latent vectors to images: samples, and the way from one to another."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from genimg.models import gan, vae

Model = gan.Generator | vae.VAE

_CHUNK = 256


def seed_for(seed: int, use: str) -> int:
    """A seed for one ``use`` of randomness, so that no two uses draw the same numbers."""
    digest = hashlib.sha256(f"{seed} {use}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # what torch.Generator takes


def latents(n: int, model: Model, seed: int) -> Tensor:
    """``n`` latent vectors from N(0, 1), ``[n, latent_dim]``.

    They are drawn on the CPU, so that a seed means the same vectors on every device.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, "latents"))
    return torch.randn(n, model.latent_dim, generator=generator)


@torch.no_grad()
def draw(model: Model, z: Tensor) -> Tensor:
    """Decodes ``z`` by a generator or a VAE's decoder, in eval mode.

    Args:
        model: a `genimg.models.gan.Generator` or a `genimg.models.vae.VAE`; its mode is restored.
        z: ``[N, latent_dim]``, on any device.

    Returns:
        ``[N, C, H, W]`` in [-1, 1], on the CPU.
    """
    decode = model.decoder if isinstance(model, vae.VAE) else model
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        return torch.cat([decode(part.to(device)).cpu() for part in z.split(_CHUNK)])
    finally:
        model.train(training)


def interpolate(a: Tensor, b: Tensor, steps: int, *, spherical: bool = True) -> Tensor:
    """``steps`` points from ``a`` to ``b``, both included.

    ``spherical``: ``sin((1 - t)ω)/sin ω · a + sin(tω)/sin ω · b``, ω the angle between a and b
    (Shoemake, 1985; for latent spaces White, 2016). Normal vectors of many dimensions lie near a
    sphere; a straight line would cut through the inside, where no sample ever is. Where sin ω
    vanishes it is the straight ``(1 - t) a + t b``.

    Args:
        a: ``[N, D]``.
        b: ``[N, D]``.
        steps: 2 or more.
        spherical: false for the straight line everywhere.

    Returns:
        ``[N, steps, D]`` in ``a``'s dtype.

    Raises:
        ValueError: for fewer than 2 steps or other shapes.
    """
    if steps < 2:
        raise ValueError(f"an interpolation has 2 steps or more, not {steps}")
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"a and b are [N, D] both, not {tuple(a.shape)} and {tuple(b.shape)}")
    x, y = a.double()[:, None], b.double()[:, None]  # [N, 1, D]
    t = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device)[:, None]  # [steps, 1]
    path = (1 - t) * x + t * y
    if spherical:
        norms = x.norm(dim=-1, keepdim=True) * y.norm(dim=-1, keepdim=True)
        cosine = ((x * y).sum(-1, keepdim=True) / norms).clamp(-1, 1)
        angle = cosine.acos()
        sine = angle.sin()
        sphere = (((1 - t) * angle).sin() * x + (t * angle).sin() * y) / sine
        path = torch.where(sine > 1e-6, sphere, path)  # a NaN, of a zero vector, is not greater
    return path.to(a.dtype)
