"""A decoder whose layers, Sequentials among them, are in a ModuleList that its forward walks."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged, runs_of
from torch import nn


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(6, 12 * 16),
                nn.Sequential(
                    nn.ConvTranspose2d(12, 8, 5, 2, padding=2), nn.BatchNorm2d(8), nn.ReLU()
                ),
                nn.Sequential(
                    nn.ConvTranspose2d(8, 6, 5, 2, padding=1, output_padding=1),
                    nn.BatchNorm2d(6),
                    nn.ReLU(),
                ),
                nn.Sequential(nn.ConvTranspose2d(6, 3, 5, 1, padding=1), nn.Sigmoid()),
            ]
        )

    def forward(self, z):
        out = z
        for i, layer in enumerate(self.layers):
            out = layer(out)
            if i == 0:
                out = out.reshape(z.shape[0], 12, 4, 4)
        return out


Z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_same_as_plain(training, layout):
    _, report = judged(Decoder, Z, training=training, layout=layout)
    block = "ConvTranspose2d + BatchNorm2d + ReLU"
    assert runs_of(report) == [block, block, "ConvTranspose2d + Sigmoid"]


def test_hooks():
    assert_hooks_run(Decoder, Z)
