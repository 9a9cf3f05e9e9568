"""Training a GAN as the article has it: per batch a discriminator step, then a generator step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg.models import gan
from genimg.train import sampling
from genimg.train.losses import GAN_LOSSES, discriminator_loss, generator_loss


class GANTrainer:
    """Both networks, both optimisers, and the noise.

    Args:
        generator: in train mode from now on, as is ``discriminator``.
        discriminator: makes logits ``[N]`` of images.
        loss: one of `genimg.train.losses.GAN_LOSSES`.
        lr: of both Adams.
        betas: of both Adams.
        seed: of the noise.

    Raises:
        ValueError: for another ``loss``.
    """

    def __init__(
        self,
        generator: gan.Generator,
        discriminator: gan.Discriminator,
        *,
        loss: str = "nonsaturating",
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        seed: int = 0,
    ) -> None:
        if loss not in GAN_LOSSES:
            raise ValueError(f"loss is one of {', '.join(GAN_LOSSES)}, not {loss!r}")
        self.generator = generator.train()
        self.discriminator = discriminator.train()
        self.loss = loss
        self.device = next(generator.parameters()).device
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.optimizer_g = torch.optim.Adam(generator.parameters(), lr=lr, betas=betas)
        self.optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=betas)

    @property
    def model(self) -> gan.Generator:
        """The module that a model file stores."""
        return self.generator

    def step(self, x: Tensor) -> dict[str, Tensor]:
        """A step of the discriminator, then one of the generator, each with its own noise.

        Args:
            x: ``[N, C, H, W]`` in [-1, 1].

        Returns:
            Scalars that still are on the device: ``loss_d``, ``loss_g`` and the mean D of the
            images (``d_real``) and of the fakes (``d_fake``) before the discriminator's step.
        """
        # Images and fakes go through the discriminator apart: its batch norm then normalises each
        # by its own statistics, as in the DCGAN.
        with torch.no_grad():
            fakes = self.generator(self._latents(len(x)))
        real_logits = self.discriminator(x)
        fake_logits = self.discriminator(fakes)
        loss_d = discriminator_loss(real_logits, fake_logits)
        self.optimizer_d.zero_grad()
        loss_d.backward()
        self.optimizer_d.step()

        # Only the way through the discriminator is wanted now, not its weights' gradients.
        self.discriminator.requires_grad_(False)
        loss_g = generator_loss(
            self.discriminator(self.generator(self._latents(len(x)))), self.loss
        )
        self.optimizer_g.zero_grad()
        loss_g.backward()
        self.optimizer_g.step()
        self.discriminator.requires_grad_(True)

        return {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "d_real": F.sigmoid(real_logits.detach()).mean(),
            "d_fake": F.sigmoid(fake_logits.detach()).mean(),
        }

    def _latents(self, n: int) -> Tensor:
        return torch.randn(n, self.generator.latent_dim, generator=self.noise, device=self.device)

    def pictures(self, z: Tensor, reals: Tensor) -> dict[str, Tensor]:
        """The pictures that the run saves: the images of ``z``."""
        return {"fakes": sampling.draw(self.generator, z)}

    def set_lr(self, lr: float) -> None:
        """Gives both optimisers another learning rate."""
        for optimizer in (self.optimizer_g, self.optimizer_d):
            for group in optimizer.param_groups:
                group["lr"] = lr

    def networks(self) -> dict[str, Any]:
        """The state of the networks."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that another trainer of the same networks needs to go on."""
        return {
            **self.networks(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from another trainer's `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.noise.set_state(state["noise"])
