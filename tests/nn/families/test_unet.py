"""A U-Net for segmentation: twice 3x3 convolution, batch norm, ReLU; skips; 2x2 transposes."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged, runs_of
from torch import nn


class DoubleConv(nn.Module):
    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 6)
        self.down = nn.Sequential(nn.MaxPool2d(2), DoubleConv(6, 12))
        self.up = nn.ConvTranspose2d(12, 6, kernel_size=2, stride=2)
        self.conv = DoubleConv(12, 6)
        self.outc = nn.Conv2d(6, 2, kernel_size=1)

    def forward(self, x):
        skip = self.inc(x)
        return self.outc(self.conv(torch.cat([skip, self.up(self.down(skip))], dim=1)))


X = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_same_as_plain(training, layout):
    _, report = judged(UNet, X, training=training, layout=layout)
    block = "Conv2d + BatchNorm2d + ReLU"
    assert runs_of(report) == [f"{block} + {block}"] * 3


def test_hooks():
    assert_hooks_run(UNet, X)
