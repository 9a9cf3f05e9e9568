"""Training a VAE: a step down the negative ELBO for every batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genimg.models import vae
from genimg.train import sampling
from genimg.train.losses import RECONSTRUCTIONS, negative_elbo, reconstruction_loss


class VAETrainer:
    """The VAE, its optimiser, and the noise of its sampling.

    Args:
        model: in train mode from now on.
        recon: one of `genimg.train.losses.RECONSTRUCTIONS`.
        beta: weight of the KL term.
        lr: of Adam.
        betas: of Adam.
        seed: of the noise.

    Raises:
        ValueError: for another ``recon``.
    """

    def __init__(
        self,
        model: vae.VAE,
        *,
        recon: str = "mse",
        beta: float = 1.0,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        seed: int = 0,
    ) -> None:
        if recon not in RECONSTRUCTIONS:
            raise ValueError(f"recon is one of {', '.join(RECONSTRUCTIONS)}, not {recon!r}")
        self.vae = model.train()
        self.recon = recon
        self.beta = beta
        self.device = next(model.parameters()).device
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=betas)

    @property
    def model(self) -> vae.VAE:
        """The module that a model file stores."""
        return self.vae

    def step(self, x: Tensor) -> dict[str, Tensor]:
        """A step of the optimiser.

        Args:
            x: ``[N, C, H, W]`` in [-1, 1].

        Returns:
            Scalars that still are on the device: ``loss`` (the negative ELBO, its KL term times
            beta), and its terms ``recon`` and ``kl``, means over the batch.
        """
        out = self.vae(x, generator=self.noise)
        recon = reconstruction_loss(out.reconstruction, x, self.recon)
        loss = negative_elbo(recon, out.kl, self.beta)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {
            "loss": loss.detach(),
            "recon": recon.detach().mean(),
            "kl": out.kl.detach().mean(),
        }

    def pictures(self, z: Tensor, reals: Tensor) -> dict[str, Tensor]:
        """The pictures that the run saves: images of ``z``, and ``reals`` reconstructed."""
        return {"fakes": sampling.draw(self.vae, z), "recons": self.reconstruct(reals)}

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructs ``x`` from the mean of q(z | x), in eval mode; returns it on the CPU."""
        self.vae.eval()
        try:
            return self.vae.reconstruct(x.to(self.device)).cpu()
        finally:
            self.vae.train()

    def set_lr(self, lr: float) -> None:
        """Gives the optimiser another learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def networks(self) -> dict[str, Any]:
        """The state of the network."""
        return {"vae": self.vae.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """All that another trainer of the same network needs to go on."""
        return {
            **self.networks(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from another trainer's `state_dict`."""
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])
