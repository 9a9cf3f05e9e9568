"""The VAE of world models: layers as attributes, called with functional activations."""

import torch
import torch.nn.functional as F
from nn.model_judge import SETTINGS, assert_hooks_run, judged
from torch import nn


class ConvVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 4, stride=2)
        self.conv2 = nn.Conv2d(6, 8, 4, stride=2)
        self.fc = nn.Linear(8 * 36, 10)
        self.deconv1 = nn.ConvTranspose2d(10, 8, 5, stride=2)
        self.deconv2 = nn.ConvTranspose2d(8, 6, 5, stride=2)
        self.deconv3 = nn.ConvTranspose2d(6, 3, 6, stride=2)

    def forward(self, x):
        h = F.relu(self.conv2(F.relu(self.conv1(x))))
        z = self.fc(h.view(h.size(0), -1) if h.is_contiguous() else h.flatten(1))
        h = F.relu(self.deconv1(z.unsqueeze(-1).unsqueeze(-1)))
        h = F.relu(self.deconv2(h))
        return torch.sigmoid(self.deconv3(h)), z


X = torch.randn(3, 3, 30, 30, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_same_as_plain(training, layout):
    judged(ConvVAE, X, training=training, layout=layout)


def test_hooks():
    assert_hooks_run(ConvVAE, X)
