"""A variational autoencoder of convolutions.

Source: Kingma, Welling, "Auto-encoding variational Bayes", 2014, section 3 and appendix C; the
preset ``dcgan`` takes its two stacks from Radford et al., 2016 (see ``genimg.models.gan``).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genimg.models.gan import article_decoder, dcgan_decoder
from genimg.models.presets import (
    check_images,
    check_latents,
    check_sizes,
    dcgan_widths,
    find_preset,
)
from genimg.nn import FusedSequential, ReparamKL

__all__ = ["VAE", "Decoder", "Encoder", "VAEOutput"]

_LATENT_DIM = {"article": 64, "dcgan": 100}


class VAEOutput(NamedTuple):
    """The result of a pass through the VAE."""

    reconstruction: Tensor
    """``[N, C, H, W]`` in [-1, 1]."""
    mu: Tensor
    """``[N, latent_dim]``."""
    logvar: Tensor
    """``[N, latent_dim]``."""
    z: Tensor
    """``[N, latent_dim]``; mu in eval mode."""
    kl: Tensor
    """``[N]``: KL(q(z | x) || N(0, 1)), at least float32."""


class Encoder(nn.Module):
    """Images to the mean and the logarithm of the variance of q(z | x).

    With ``w = width``; Conv is k4 s2 p1:

    - ``article`` (w = 64): Conv w, BN, LeakyReLU 0.3, Conv 2w, BN, LeakyReLU, flatten, two Dense.
    - ``dcgan`` (w = 64): Conv w, LeakyReLU 0.2, then Conv 2w, 4w, 8w, each with BN and LeakyReLU
      (to 4w where 16 does not divide the image size), flatten, two Dense.

    What ``article`` resolves of its listing: it had no heads for mean and log-variance, and a relu
    in front of each LeakyReLU, of which the LeakyReLU is kept.

    Args:
        preset: ``article`` or ``dcgan``.
        image_size: a multiple of 8.
        channels: of the images.
        width: w; None is the preset's.
        latent_dim: None is 64 (``article``) or 100 (``dcgan``).

    Raises:
        ValueError: an unknown preset, an image size that is no multiple of 8, or anything below 1.

    Source: see the module.
    """

    def __init__(
        self,
        preset: str = "article",
        *,
        image_size: int = 64,
        channels: int = 3,
        width: int | None = None,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        numbers = find_preset(preset)
        width = 64 if width is None else width
        latent_dim = _LATENT_DIM[preset] if latent_dim is None else latent_dim
        check_sizes(image_size, channels=channels, width=width, latent_dim=latent_dim)
        self.config = {
            "preset": preset,
            "image_size": image_size,
            "channels": channels,
            "width": width,
            "latent_dim": latent_dim,
        }
        self.image_size = image_size
        self.channels = channels
        article = preset == "article"
        widths = [width, 2 * width] if article else dcgan_widths(image_size, width)[::-1]
        blocks = numbers.down(channels, widths[0], norm=article)
        for channels_in, channels_out in pairwise(widths):
            blocks += numbers.down(channels_in, channels_out)
        self.stack = FusedSequential(*blocks)
        features = widths[-1] * (image_size >> len(widths)) ** 2
        self.mu = nn.Linear(features, latent_dim)
        self.logvar = nn.Linear(features, latent_dim)
        self.apply(numbers.initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` ``[N, channels, image_size, image_size]`` to mu and logvar ``[N, latent_dim]``.

        Raises:
            RuntimeError: another shape.
        """
        check_images("Encoder", x, self.channels, self.image_size)
        features = self.stack(x).flatten(1)
        return self.mu(features), self.logvar(features)


class Decoder(nn.Module):
    """Latents to images in [-1, 1].

    With ``s = image_size``, ``w = width``, ``c = channels``; ConvT is k4 s2 p1:

    - ``article`` (w = 64): Dense 4w (s/8)², reshape, ConvT 2w, BN, LeakyReLU 0.3, ConvT w, BN,
      LeakyReLU, ConvT c, tanh.
    - ``dcgan`` (w = 64): the generator's stack.

    What ``article`` resolves of its listing: it made 32x32 where the encoder read 64x64, so the
    size is an argument on both sides; a relu stood in front of each LeakyReLU, of which the
    LeakyReLU is kept.

    Args:
        preset, image_size, channels, width, latent_dim: as :class:`Encoder`'s.

    Raises:
        ValueError: as :class:`Encoder`.

    Source: see the module.
    """

    def __init__(
        self,
        preset: str = "article",
        *,
        image_size: int = 64,
        channels: int = 3,
        width: int | None = None,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        numbers = find_preset(preset)
        width = 64 if width is None else width
        latent_dim = _LATENT_DIM[preset] if latent_dim is None else latent_dim
        check_sizes(image_size, channels=channels, width=width, latent_dim=latent_dim)
        self.config = {
            "preset": preset,
            "image_size": image_size,
            "channels": channels,
            "width": width,
            "latent_dim": latent_dim,
        }
        self.latent_dim = latent_dim
        if preset == "article":
            base = image_size // 8
            self.project: nn.Module = nn.Sequential(
                nn.Linear(latent_dim, 4 * width * base * base),
                nn.Unflatten(1, (4 * width, base, base)),
            )
            self.stack = article_decoder(numbers, width, channels)
        else:
            self.project = nn.Unflatten(1, (latent_dim, 1, 1))
            self.stack = dcgan_decoder(numbers, image_size, width, channels, latent_dim)
        self.apply(numbers.initialise)

    def forward(self, z: Tensor) -> Tensor:
        """``z`` ``[N, latent_dim]`` to ``[N, channels, image_size, image_size]``.

        The tanh runs fused with its convolution, so its argument a is not given out. It rounds to
        ±1 from |a| = 9.02 on in float32 and from 3.47 on in bfloat16, where no loss of the images
        has a gradient any more: for a Bernoulli loss, run the decoder in float32.

        Raises:
            RuntimeError: another shape.
        """
        check_latents("Decoder", z, self.latent_dim)
        return self.stack(self.project(z))


class VAE(nn.Module):
    """Encoder, reparameterisation, decoder.

    Args:
        preset, image_size, channels, width, latent_dim: as :class:`Encoder`'s.

    Raises:
        ValueError: as :class:`Encoder`.

    Source: see the module.
    """

    def __init__(
        self,
        preset: str = "article",
        *,
        image_size: int = 64,
        channels: int = 3,
        width: int | None = None,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            preset, image_size=image_size, channels=channels, width=width, latent_dim=latent_dim
        )
        self.config = dict(self.encoder.config)
        self.reparam = ReparamKL()
        self.decoder = Decoder(
            preset, image_size=image_size, channels=channels, width=width, latent_dim=latent_dim
        )
        self.latent_dim = self.decoder.latent_dim

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> VAEOutput:
        """``x`` ``[N, channels, image_size, image_size]`` through encoder and decoder.

        In eval mode z is the mean. ``generator`` draws the noise; None takes torch's default one.

        Raises:
            RuntimeError: another shape.
        """
        mu, logvar = self.encoder(x)
        z, kl = self.reparam(mu, logvar, generator=generator)
        return VAEOutput(self.decoder(z), mu, logvar, z, kl)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Decodes the mean of q(z | x), in either mode."""
        mu, _ = self.encoder(x)
        return self.decoder(mu)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` images of z ~ N(0, 1), in the mode that the model is in."""
        weight = self.encoder.mu.weight
        z = torch.randn(
            n, self.latent_dim, generator=generator, dtype=weight.dtype, device=weight.device
        )
        return self.decoder(z)
