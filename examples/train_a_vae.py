"""Train a small VAE, made of genimg's layers, on scikit-learn's digits: the loss falls.

Run it with `python examples/train_a_vae.py`. It needs scikit-learn (`pip install scikit-learn`).
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from genimg.nn import BatchNorm2d, Conv2d, ConvTranspose2d, FusedSequential, LeakyReLU, ReparamKL

LATENT, BATCH, EPOCHS = 16, 64, 3


class VAE(nn.Module):
    """Images [N, 1, 16, 16] of values in [0, 1] to logits of the same shape, and the KL [N]."""

    def __init__(self) -> None:
        super().__init__()
        # FusedSequential takes the same arguments as nn.Sequential and has the same state_dict.
        self.encoder = FusedSequential(
            *(Conv2d(1, 16, 4, stride=2, padding=1), BatchNorm2d(16), LeakyReLU(0.2)),
            *(Conv2d(16, 32, 4, stride=2, padding=1), BatchNorm2d(32), LeakyReLU(0.2)),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 2 * LATENT),
        )
        self.reparam = ReparamKL()
        self.decoder = FusedSequential(
            *(nn.Linear(LATENT, 32 * 4 * 4), nn.Unflatten(1, (32, 4, 4))),
            *(ConvTranspose2d(32, 16, 4, stride=2, padding=1), BatchNorm2d(16), LeakyReLU(0.2)),
            ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z, kl = self.reparam(mu, logvar)  # z ~ N(mu, exp(logvar)); KL divergence from N(0, 1)
        return self.decoder(z), kl


torch.manual_seed(0)
scans = torch.tensor(load_digits().images, dtype=torch.float32) / 16  # [1797, 8, 8]
images = F.interpolate(scans[:, None], size=(16, 16), mode="bilinear")
model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
means = []
for epoch in range(1, EPOCHS + 1):
    losses = []
    for x in images[torch.randperm(len(images))].split(BATCH):
        logits, kl = model(x)
        error = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        loss = (error + kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    means.append(sum(losses) / len(losses))
    print(f"epoch {epoch}: loss {means[-1]:.1f}")
print(f"the loss fell from {means[0]:.1f} to {means[-1]:.1f}")
