"""VQ-VAE's encoder and decoder: 4x4 convolutions of stride 2, residual blocks of ReLU first."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged
from torch import nn


class ResBlock(nn.Module):
    def __init__(self, channels, inner):
        super().__init__()
        self.conv = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, inner, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, x):
        return self.conv(x) + x


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 12, 3, padding=1),
            ResBlock(12, 4),
            ResBlock(12, 4),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.blocks(x)


def decoder():
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1),
        ResBlock(12, 4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1),
    )


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Q = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_encoder(training, layout):
    _, report = judged(Encoder, X, training=training, layout=layout)
    assert len(report.fused) == 3


@SETTINGS
def test_decoder(training, layout):
    _, report = judged(decoder, Q, training=training, layout=layout)
    assert len(report.fused) == 2


def test_hooks():
    assert_hooks_run(Encoder, X)
    assert_hooks_run(decoder, Q)
