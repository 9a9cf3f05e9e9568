"""A VAE of nested Sequentials: 3x3 convolutions of stride 2, and their transposes."""

import torch
from nn.model_judge import SETTINGS, assert_hooks_run, judged, runs_of
from torch import nn


class VanillaVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(self.block(nn.Conv2d, 3, 8), self.block(nn.Conv2d, 8, 12))
        self.fc_mu = nn.Linear(12 * 16, 6)
        self.fc_var = nn.Linear(12 * 16, 6)
        self.decoder_input = nn.Linear(6, 12 * 16)
        self.decoder = nn.Sequential(self.block(nn.ConvTranspose2d, 12, 8))
        self.final_layer = nn.Sequential(
            *self.block(nn.ConvTranspose2d, 8, 8), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh()
        )

    @staticmethod
    def block(kind, channels_in, channels_out):
        more = {"output_padding": 1} if kind is nn.ConvTranspose2d else {}
        return nn.Sequential(
            kind(channels_in, channels_out, 3, stride=2, padding=1, **more),
            nn.BatchNorm2d(channels_out),
            nn.LeakyReLU(),
        )

    def forward(self, x):
        h = torch.flatten(self.encoder(x), start_dim=1)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        z = torch.randn_like(mu) * torch.exp(0.5 * log_var) + mu
        h = self.decoder_input(z).view(-1, 12, 4, 4)
        return self.final_layer(self.decoder(h)), mu, log_var


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@SETTINGS
def test_same_as_plain(training, layout):
    _, report = judged(DrawsZero, X, training=training, layout=layout)
    down, up = (f"{kind} + BatchNorm2d + LeakyReLU" for kind in ("Conv2d", "ConvTranspose2d"))
    assert runs_of(report) == [f"{down} + {down}", up, f"{up} + Conv2d + Tanh"]


class DrawsZero(VanillaVAE):
    """float32 and float64 draw other numbers."""

    def forward(self, x):
        h = torch.flatten(self.encoder(x), start_dim=1)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        h = self.decoder_input(mu + torch.exp(0.5 * log_var)).view(-1, 12, 4, 4)
        return self.final_layer(self.decoder(h)), mu, log_var


def test_hooks():
    assert_hooks_run(VanillaVAE, X)
