"""pix2pix's generator: nested U-Net blocks, activations before convolutions, concatenated skips."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged
from torch import nn


class SkipBlock(nn.Module):
    def __init__(self, outer, inner, submodule=None, outermost=False):
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(3 if outermost else outer, inner, 4, 2, 1, bias=False)
        channels = inner if submodule is None else 2 * inner
        up = nn.ConvTranspose2d(channels, outer, 4, 2, 1, bias=outermost)
        if outermost:
            layers = [down, submodule, nn.ReLU(True), up, nn.Tanh()]
        else:
            before = [nn.LeakyReLU(0.2, True), down]
            inside = [] if submodule is None else [nn.BatchNorm2d(inner), submodule]
            layers = [*before, *inside, nn.ReLU(True), up, nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def generator():
    innermost = SkipBlock(8, 12)
    return SkipBlock(3, 6, SkipBlock(6, 8, innermost), outermost=True)


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_same_as_plain(training, layout):
    _, report = judged(generator, X, training=training, layout=layout)
    assert len(report.fused) == 4


def test_hooks():
    assert_hooks_run(generator, X)
