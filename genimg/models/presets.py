"""Shared by the presets of both models: parameter counts, sizes, initial weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from genimg.nn import BatchNorm2d, Conv2d, ConvTranspose2d, LeakyReLU


@dataclass(frozen=True)
class Preset:
    """The numbers of a published model."""

    generator_slope: float
    discriminator_slope: float
    eps: float
    momentum: float
    initialise: Callable[[nn.Module], None]

    def norm(self, channels: int) -> BatchNorm2d:
        """The batch norm of a layer."""
        return BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)

    def up(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        """A generator's block, twice the size: transposed convolution, batch norm, activation."""
        # Batch norm takes the mean away, and a bias with it.
        layer = ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
        return [layer, self.norm(channels_out), activation(self.generator_slope)]

    def down(self, channels_in: int, channels_out: int, norm: bool = True) -> list[nn.Module]:
        """A discriminator's block, half the size: convolution, batch norm or none, activation."""
        layer = Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=not norm)
        norms = [self.norm(channels_out)] if norm else []
        return [layer, *norms, activation(self.discriminator_slope)]


def activation(negative_slope: float) -> nn.Module:
    """LeakyReLU, or ReLU where the slope is 0."""
    return nn.ReLU() if negative_slope == 0 else LeakyReLU(negative_slope)


def _keras(module: nn.Module) -> None:
    """Keras's defaults: Glorot's uniform weights, biases 0."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _radford(module: nn.Module) -> None:
    """Weights of mean 0 and standard deviation 0.02, as Radford et al., section 4.

    Batch norm's are of mean 1 and standard deviation 0.02, as in the authors' two codes,
    Newmu/dcgan_code and soumith/dcgan.torch.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


PRESETS = {
    # Keras's batch norm momentum 0.99 is torch's 0.01.
    "article": Preset(0.3, 0.3, eps=1e-3, momentum=0.01, initialise=_keras),
    "dcgan": Preset(0.0, 0.2, eps=1e-5, momentum=0.1, initialise=_radford),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"expected preset to be one of {', '.join(PRESETS)}, but got {name!r}")
    return PRESETS[name]


def check_sizes(image_size: int, **positive: int) -> None:
    """Raise ValueError unless ``image_size`` is a multiple of 8 and the others are at least 1."""
    if image_size < 8 or image_size % 8:
        raise ValueError(f"expected image_size to be a multiple of 8, but got {image_size}")
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"expected {name} to be at least 1, but got {value}")


def dcgan_widths(image_size: int, width: int) -> list[int]:
    """Channels from the smallest map to the largest: a doubling of the size from each to the next.

    Four doublings where 16 divides the image size, else three, without the widest map.
    """
    widths = [8 * width, 4 * width, 2 * width, width]
    return widths if image_size % 16 == 0 else widths[1:]


def check_images(name: str, x: torch.Tensor, channels: int, image_size: int) -> None:
    """Raise RuntimeError unless ``x`` is a batch of such images."""
    if x.dim() != 4 or tuple(x.shape[1:]) != (channels, image_size, image_size):
        raise RuntimeError(
            f"{name}: expected images of shape [N, {channels}, {image_size}, {image_size}], "
            f"but got {list(x.shape)}"
        )


def check_latents(name: str, z: torch.Tensor, latent_dim: int) -> None:
    """Raise RuntimeError unless ``z`` is a batch of latents."""
    if z.dim() != 2 or z.shape[1] != latent_dim:
        raise RuntimeError(
            f"{name}: expected latents of shape [N, {latent_dim}], but got {list(z.shape)}"
        )
