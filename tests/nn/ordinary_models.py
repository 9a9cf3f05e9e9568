"""Model code of ordinary shape, as a user would have it: nothing of genimg in it."""

import torch
from torch import Tensor, nn


def dcgan_generator(width: int = 8) -> nn.Module:
    """DCGAN as one Sequential."""
    w = width
    return nn.Sequential(
        nn.ConvTranspose2d(10, w * 4, 4, 1, 0, bias=False),
        nn.BatchNorm2d(w * 4),
        nn.ReLU(True),
        nn.ConvTranspose2d(w * 4, w * 2, 4, 2, 1, bias=False),
        nn.BatchNorm2d(w * 2),
        nn.ReLU(True),
        nn.ConvTranspose2d(w * 2, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


class VAE(nn.Module):
    """A VAE of nested Sequentials, its decoder of k3 s2 p1 op1 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(self.down(3, 6), self.down(6, 8))
        self.mu = nn.Linear(8 * 16, 5)
        self.logvar = nn.Linear(8 * 16, 5)
        self.decoder_input = nn.Linear(5, 8 * 16)
        self.decoder = nn.Sequential(self.up(8, 6))
        self.final_layer = nn.Sequential(
            nn.ConvTranspose2d(6, 6, 3, 2, 1, output_padding=1),
            nn.BatchNorm2d(6),
            nn.LeakyReLU(),
            nn.Conv2d(6, 3, kernel_size=3, padding=1),
            nn.Tanh(),
        )

    @staticmethod
    def down(channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, 2, 1),
            nn.BatchNorm2d(channels_out),
            nn.LeakyReLU(),
        )

    @staticmethod
    def up(channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(
            nn.ConvTranspose2d(channels_in, channels_out, 3, 2, 1, output_padding=1),
            nn.BatchNorm2d(channels_out),
            nn.LeakyReLU(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x).flatten(1)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        h = self.decoder_input(z).view(-1, 8, 4, 4)
        return self.final_layer(self.decoder(h)), mu, logvar


class UNet(nn.Module):
    """Two levels, k2 s2 transposed convolutions, skip connections, layers as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.double(3, 6)
        self.pool = nn.MaxPool2d(2)
        self.bottom = self.double(6, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.last = self.double(12, 6)
        self.head = nn.Conv2d(6, 2, 1)

    @staticmethod
    def double(channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        top = self.first(x)
        h = self.up(self.bottom(self.pool(top)))
        return self.head(self.last(torch.cat([top, h], 1)))
