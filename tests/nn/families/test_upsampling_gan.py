"""A GAN of nearest upsampling, its discriminator with Dropout before batch norm."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged, runs_of
from torch import nn


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1 = nn.Sequential(nn.Linear(10, 12 * 16))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(12),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(12, 12, 3, stride=1, padding=1),
            nn.BatchNorm2d(12, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(12, 3, 3, stride=1, padding=1),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.conv_blocks(self.l1(z).view(-1, 12, 4, 4))


class Discriminator(nn.Module):
    def __init__(self, p=0.25):
        super().__init__()
        self.model = nn.Sequential(*self.block(3, 8, p, False), *self.block(8, 12, p, True))
        self.adv_layer = nn.Sequential(nn.Linear(12 * 16, 1), nn.Sigmoid())

    @staticmethod
    def block(channels_in, channels_out, p, bn):
        layers = [
            nn.Conv2d(channels_in, channels_out, 3, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout2d(p),
        ]
        return [*layers, nn.BatchNorm2d(channels_out, 0.8)] if bn else layers

    def forward(self, x):
        return self.adv_layer(self.model(x).flatten(1))


Z = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_generator(training, layout):
    _, report = judged(Generator, Z, training=training, layout=layout)
    assert len(report.fused) >= 1


@SETTINGS
def test_discriminator(training, layout):
    make = lambda: Discriminator(0.0 if training else 0.25)  # noqa: E731
    _, report = judged(make, X, training=training, layout=layout)
    assert runs_of(report) == ["Conv2d + LeakyReLU + Conv2d + LeakyReLU"]


def test_random_numbers_and_hooks():
    """With hooks on all layers either model draws the same numbers."""
    assert_hooks_run(Generator, Z)
    assert_hooks_run(Discriminator, X)
