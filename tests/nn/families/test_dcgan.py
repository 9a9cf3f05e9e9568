"""DCGAN: transposed 4x4 convolutions, batch norm and ReLU in one Sequential, and its mirror."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged, runs_of
from torch import nn


def generator():
    return nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def discriminator():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 1, 4, 1, 0, bias=False),
        nn.Sigmoid(),
    )


Z = torch.randn(4, 10, 1, 1, generator=torch.Generator().manual_seed(0))
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_generator(training, layout):
    _, report = judged(generator, Z, training=training, layout=layout)
    block = "ConvTranspose2d + BatchNorm2d + ReLU"
    assert runs_of(report) == [f"{block} + {block} + ConvTranspose2d + Tanh"]


@SETTINGS
def test_discriminator(training, layout):
    _, report = judged(discriminator, X, training=training, layout=layout)
    assert len(report.fused) == 1


def test_hooks():
    assert_hooks_run(generator, Z)
    assert_hooks_run(discriminator, X)
