"""A VAE of blocks that are subclasses of Sequential, made of named layers."""

from collections import OrderedDict

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged, runs_of
from torch import nn


class ADN(nn.Sequential):
    """Activation, dropout and norm, in an order that is told."""

    def __init__(self, channels, ordering="NDA"):
        layers = {"N": nn.BatchNorm2d(channels), "D": nn.Dropout(0.0), "A": nn.LeakyReLU(0.1)}
        super().__init__(OrderedDict((each, layers[each]) for each in ordering))


class Convolution(nn.Sequential):
    def __init__(self, channels_in, channels_out, transposed=False, conv_only=False):
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        more = {"output_padding": 1} if transposed else {}
        self.add_module("conv", kind(channels_in, channels_out, 3, 2, 1, **more))
        if not conv_only:
            self.add_module("adn", ADN(channels_out))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(Convolution(3, 8), Convolution(8, 12))
        self.decode = nn.Sequential(
            Convolution(12, 8, transposed=True),
            Convolution(8, 3, transposed=True, conv_only=True),
        )

    def forward(self, x):
        return self.decode(self.encode(x))


X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_same_as_plain(training, layout):
    _, report = judged(Autoencoder, X, training=training, layout=layout)
    down, up = (f"{kind} + BatchNorm2d + LeakyReLU" for kind in ("Conv2d", "ConvTranspose2d"))
    assert runs_of(report) == [f"{down} + {down}", f"{up} + ConvTranspose2d"]


def test_hooks():
    assert_hooks_run(Autoencoder, X)
