"""Losses of the GAN and of the VAE.

The GAN's work on logits ``l``, with D = σ(l). Then log D = -softplus(-l) and
log(1 - D) = -softplus(l): neither takes the logarithm of a rounded 0, at any logit.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

GAN_LOSSES = ("nonsaturating", "minimax")
RECONSTRUCTIONS = ("mse", "bce")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The loss of the discriminator, in both games.

    ``mean(softplus(-l_real)) + mean(softplus(l_fake))``, that is
    ``-E[log D(x)] - E[log(1 - D(G(z)))]``: Goodfellow et al., "Generative Adversarial Nets"
    (2014), eq. 1 with opposite sign, since the discriminator maximises there.

    Args:
        real_logits: of any shape, for images of the data.
        fake_logits: of any shape, for images of the generator.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor, loss: str = "nonsaturating") -> Tensor:
    """The loss of the generator.

    ``nonsaturating``: ``mean(softplus(-l))``, that is ``-E[log D(G(z))]``; its gradient is largest
    where the discriminator is sure of a fake. ``minimax``: ``-mean(softplus(l))``, that is
    ``E[log(1 - D(G(z)))]``, the value of the game itself; its gradient vanishes there. Both are in
    Goodfellow et al. (2014), section 3.

    Args:
        fake_logits: of any shape, for images of the generator.
        loss: one of `GAN_LOSSES`.

    Raises:
        ValueError: for another ``loss``.
    """
    if loss == "nonsaturating":
        return F.softplus(-fake_logits).mean()
    if loss == "minimax":
        return -F.softplus(fake_logits).mean()
    raise ValueError(f"loss is one of {', '.join(GAN_LOSSES)}, not {loss!r}")


def reconstruction_loss(reconstruction: Tensor, x: Tensor, kind: str = "mse") -> Tensor:
    """-log p(x | z) of every sample, summed over its pixels, up to a constant.

    ``mse``: ``Σ (x - x̂)²``, a Gaussian of variance 1/2 around x̂. ``bce``: a Bernoulli for every
    pixel, with t = (x + 1)/2 and p = (x̂ + 1)/2, ``-Σ t log p + (1 - t) log(1 - p)``; logarithms are
    cut off at -100, so that a saturated x̂ = ±1 stays finite. For grey values in between the
    Bernoulli is no normalised density (Loaiza-Ganem and Cunningham, 2019), but is much in use.

    Args:
        reconstruction: x̂ in [-1, 1], ``[N, ...]``.
        x: in [-1, 1], of the same shape.
        kind: one of `RECONSTRUCTIONS`.

    Returns:
        ``[N]``.

    Raises:
        ValueError: for other shapes or another ``kind``.
    """
    if reconstruction.shape != x.shape:
        shapes = f"{tuple(reconstruction.shape)} and {tuple(x.shape)}"
        raise ValueError(f"reconstruction and x have the same shape, not {shapes}")
    if kind == "mse":
        error = (reconstruction - x).square()
    elif kind == "bce":
        error = F.binary_cross_entropy((reconstruction + 1) / 2, (x + 1) / 2, reduction="none")
    else:
        raise ValueError(
            f"reconstruction loss is one of {', '.join(RECONSTRUCTIONS)}, not {kind!r}"
        )
    return error.flatten(1).sum(1)


def negative_elbo(reconstruction_loss: Tensor, kl: Tensor, beta: float = 1.0) -> Tensor:
    """The loss of the VAE: ``mean(-log p(x | z) + beta KL(q(z | x) || p(z)))``.

    Both terms are sums over a sample, averaged over the batch. With ``beta`` 1 it is the negative
    of eq. 10 of Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), with one draw of z
    for each x; other values make it the beta-VAE of Higgins et al. (2017), eq. 4.

    Args:
        reconstruction_loss: ``[N]``, from `reconstruction_loss`.
        kl: ``[N]``.
        beta: weight of the KL term, 0 or more.

    Raises:
        ValueError: for other shapes or a negative or non-finite ``beta``.
    """
    if reconstruction_loss.shape != kl.shape:
        shapes = f"{tuple(reconstruction_loss.shape)} and {tuple(kl.shape)}"
        raise ValueError(f"both terms have the shape [N], not {shapes}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta is 0 or more, not {beta}")
    return (reconstruction_loss + beta * kl).mean()
