"""The generator and the discriminator of a GAN.

Source: Goodfellow et al., "Generative adversarial nets", 2014; the preset ``dcgan`` is Radford,
Metz, Chintala, "Unsupervised representation learning with deep convolutional generative adversarial
networks", 2016 (arXiv:1511.06434), sections 3 and 4, with the 4x4 kernels of Chintala's code
(github.com/soumith/dcgan.torch). The paper's figure 1 has 5x5 kernels and twice the default width:
``width=128`` gives its 1024, 512, 256, 128.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from genimg.models.presets import (
    Preset,
    activation,
    check_images,
    check_latents,
    check_sizes,
    dcgan_widths,
    find_preset,
)
from genimg.nn import Conv2d, ConvTranspose2d, FusedSequential, LeakyReLU

__all__ = ["Discriminator", "Generator"]


def article_decoder(preset: Preset, width: int, channels: int) -> FusedSequential:
    """Three doublings, 4 width -> 2 width -> width -> channels, tanh at the end."""
    last = ConvTranspose2d(width, channels, 4, stride=2, padding=1)
    blocks = [*preset.up(4 * width, 2 * width), *preset.up(2 * width, width)]
    return FusedSequential(*blocks, last, nn.Tanh())


def dcgan_decoder(
    preset: Preset, image_size: int, width: int, channels: int, latent_dim: int
) -> FusedSequential:
    """A latent as a map of 1x1, then a doubling for each of :func:`dcgan_widths`, tanh."""
    widths = dcgan_widths(image_size, width)
    base = image_size >> len(widths)
    blocks = [
        ConvTranspose2d(latent_dim, widths[0], base, bias=False),
        preset.norm(widths[0]),
        activation(preset.generator_slope),
    ]
    for channels_in, channels_out in pairwise(widths):
        blocks += preset.up(channels_in, channels_out)
    last = ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1)
    return FusedSequential(*blocks, last, nn.Tanh())


class Generator(nn.Module):
    """Latents to images in [-1, 1].

    With ``s = image_size``, ``w = width``, ``c = channels``; ConvT is k4 s2 p1 unless said:

    - ``article`` (w = 64): Dense 4w, LeakyReLU 0.3, Dense 4w (s/8)², reshape, ConvT 2w, BN,
      LeakyReLU, ConvT w, BN, LeakyReLU, ConvT c, tanh.
    - ``dcgan`` (w = 64): ConvT 8w (k = s/16, s1 p0, from 1x1), then ConvT 4w, 2w, w, each with BN
      and ReLU, ConvT c, tanh. Where 16 does not divide s, it begins at 4w with k = s/8.

    What ``article`` resolves of its listing: the generator made 40x40 where the discriminator read
    64x64, so the size is an argument on both sides; a relu stood in front of each LeakyReLU, of
    which the LeakyReLU is kept.

    Args:
        preset: ``article`` or ``dcgan``.
        image_size: a multiple of 8.
        channels: of the images.
        width: w; None is the preset's.
        latent_dim: None is 100.

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
        latent_dim = 100 if latent_dim is None else latent_dim
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
                nn.Linear(latent_dim, 4 * width),
                LeakyReLU(numbers.generator_slope),
                nn.Linear(4 * width, 4 * width * base * base),
                nn.Unflatten(1, (4 * width, base, base)),
            )
            self.stack = article_decoder(numbers, width, channels)
        else:
            self.project = nn.Unflatten(1, (latent_dim, 1, 1))
            self.stack = dcgan_decoder(numbers, image_size, width, channels, latent_dim)
        self.apply(numbers.initialise)

    def forward(self, z: Tensor) -> Tensor:
        """``z`` ``[N, latent_dim]`` to ``[N, channels, image_size, image_size]``.

        Raises:
            RuntimeError: another shape.
        """
        check_latents("Generator", z, self.latent_dim)
        return self.stack(self.project(z))


class Discriminator(nn.Module):
    """Images to one logit each: positive for the data's, negative for the generator's.

    With ``s = image_size``, ``w = width``; Conv is k4 s2 p1 unless said:

    - ``article`` (w = 64): Conv w, LeakyReLU 0.3, Conv 2w, BN, LeakyReLU, Conv 4w, BN, LeakyReLU,
      Conv 1 (k = s/8, s1 p0).
    - ``dcgan`` (w = 64): Conv w, LeakyReLU 0.2, then Conv 2w, 4w, 8w, each with BN and LeakyReLU,
      Conv 1 (k = s/16, s1 p0). Where 16 does not divide s, it ends after 4w with k = s/8.

    What ``article`` resolves of its listing: its last convolution (k4 s2) left a map of sigmoids;
    here it covers the whole remaining map, and gives one logit, which the losses take as it is. A
    relu stood in front of each LeakyReLU, of which the LeakyReLU is kept.

    Args:
        preset, image_size, channels, width: as :class:`Generator`'s.

    Raises:
        ValueError: as :class:`Generator`.

    Source: see the module.
    """

    def __init__(
        self,
        preset: str = "article",
        *,
        image_size: int = 64,
        channels: int = 3,
        width: int | None = None,
    ) -> None:
        super().__init__()
        numbers = find_preset(preset)
        width = 64 if width is None else width
        check_sizes(image_size, channels=channels, width=width)
        self.config = {
            "preset": preset,
            "image_size": image_size,
            "channels": channels,
            "width": width,
        }
        widths = [width, 2 * width, 4 * width]
        if preset == "dcgan":
            widths = dcgan_widths(image_size, width)[::-1]
        self.image_size = image_size
        self.channels = channels
        blocks = numbers.down(channels, widths[0], norm=False)
        for channels_in, channels_out in pairwise(widths):
            blocks += numbers.down(channels_in, channels_out)
        self.stack = FusedSequential(*blocks, Conv2d(widths[-1], 1, image_size >> len(widths)))
        self.apply(numbers.initialise)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[N, channels, image_size, image_size]`` to logits ``[N]``.

        Raises:
            RuntimeError: another shape.
        """
        check_images("Discriminator", x, self.channels, self.image_size)
        return self.stack(x).flatten()
