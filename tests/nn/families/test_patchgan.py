"""PatchGAN's discriminator: 4x4 convolutions of stride 2, its tail of stride 1."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged
from torch import nn


def discriminator():
    layers = [nn.Conv2d(6, 8, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for channels, stride in ((8, 2), (16, 1)):
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, stride, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.LeakyReLU(0.2, True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(32, 1, 4, 1, 1))


X = torch.randn(2, 6, 32, 32, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_same_as_plain(training, layout):
    _, report = judged(discriminator, X, training=training, layout=layout)
    assert len(report.fused) == 1
    assert report.fused[0].layers.endswith("8 Conv2d")


def test_hooks():
    assert_hooks_run(discriminator, X)
