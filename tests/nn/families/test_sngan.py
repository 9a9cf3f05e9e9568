"""SNGAN's blocks: layers called in forward, batch norm first, spectral norm, pooling."""

import pytest
import torch
import torch.nn.functional as F
from nn.model_judge import SETTINGS, assert_hooks_run, judged
from torch import nn
from torch.nn.utils import parametrizations

import genimg


class GenBlock(nn.Module):
    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.activation = nn.ReLU(inplace=True)
        self.conv2d0 = nn.Conv2d(channels_in, channels_out, 1)
        self.conv2d1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2d2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x):
        x0 = self.conv2d0(F.interpolate(x, scale_factor=2, mode="nearest"))
        h = self.activation(self.bn1(x))
        h = self.conv2d1(F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.conv2d2(self.activation(self.bn2(h)))
        return h + x0


def generator():
    return nn.Sequential(
        nn.Linear(8, 12 * 16),
        nn.Unflatten(1, (12, 4, 4)),
        GenBlock(12, 8),
        GenBlock(8, 6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 3, 3, padding=1),
        nn.Tanh(),
    )


class DisBlock(nn.Module):
    def __init__(self, norm, channels_in, channels_out):
        super().__init__()
        self.activation = nn.ReLU(inplace=False)
        self.conv2d0 = norm(nn.Conv2d(channels_in, channels_out, 1))
        self.conv2d1 = norm(nn.Conv2d(channels_in, channels_out, 3, padding=1))
        self.activation1 = nn.ReLU(inplace=True)
        self.conv2d2 = norm(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.average_pooling = nn.AvgPool2d(2)

    def forward(self, x):
        h = self.activation1(self.conv2d1(self.activation(x)))
        h = self.average_pooling(self.conv2d2(h))
        return h + self.average_pooling(self.conv2d0(x))


def discriminator(norm):
    return nn.Sequential(
        norm(nn.Conv2d(3, 6, 4, 2, 1)), nn.LeakyReLU(0.1), DisBlock(norm, 6, 8), nn.ReLU()
    )


Z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NORMS = {"hook": nn.utils.spectral_norm, "parametrization": parametrizations.spectral_norm}


def declared(model):
    return genimg.convert(model, fuse=["2.conv2d1", "2.activation1"])


@SETTINGS
def test_generator(training, layout):
    _, report = judged(generator, Z, training=training, layout=layout)
    assert len(report.fused) == 2


@pytest.mark.parametrize("norm", NORMS)
@SETTINGS
def test_discriminator(training, layout, norm):
    make = lambda: discriminator(NORMS[norm])  # noqa: E731
    _, report = judged(make, X, convert=declared, training=training, layout=layout)
    assert not report.skipped
    assert len(report.fused) == 2


def test_hooks():
    assert_hooks_run(generator, Z)
    for norm in NORMS.values():
        assert_hooks_run(lambda norm=norm: discriminator(norm), X, convert=declared)
