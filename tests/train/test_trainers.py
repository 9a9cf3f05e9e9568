"""A step of either trainer, against the same step written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from genimg.models import gan, vae
from genimg.train.gan import GANTrainer
from genimg.train.vae import VAETrainer

SIZES: dict[str, Any] = {"image_size": 16, "channels": 1, "width": 4}
# Adam divides a rounding error by a gradient that may be as small; a step of its own is 1e-2.
ADAM: dict[str, Any] = {"rtol": 0, "atol": 1e-3}


def gan_trainer(**options: Any) -> GANTrainer:
    torch.manual_seed(0)
    generator = gan.Generator("article", latent_dim=5, **SIZES)
    return GANTrainer(generator, gan.Discriminator("article", **SIZES), **options)


def vae_trainer(**options: Any) -> VAETrainer:
    torch.manual_seed(0)
    return VAETrainer(vae.VAE("article", latent_dim=5, **SIZES), **options)


def batches(n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(6, 1, 16, 16, generator=generator) * 2 - 1 for _ in range(n)]


@pytest.mark.parametrize("loss", ["nonsaturating", "minimax"])
def test_gan_steps_are_goodfellows_algorithm_1(loss: str) -> None:
    trainer = gan_trainer(loss=loss, lr=1e-2, betas=(0.3, 0.9), seed=7)
    G, D = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    adam_g = torch.optim.Adam(G.parameters(), 1e-2, (0.3, 0.9))
    adam_d = torch.optim.Adam(D.parameters(), 1e-2, (0.3, 0.9))
    noise = torch.Generator().manual_seed(7)
    for x in batches():
        fakes = G(torch.randn(6, 5, generator=noise)).detach()
        real, fake = D(x), D(fakes)
        loss_d = -(logsigmoid(real).mean() + logsigmoid(-fake).mean())
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        fooled = D(G(torch.randn(6, 5, generator=noise)))
        loss_g = -logsigmoid(fooled).mean()
        if loss == "minimax":
            loss_g = logsigmoid(-fooled).mean()
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()

        values = trainer.step(x)
        told = {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "d_real": real.sigmoid().mean().detach(),
            "d_fake": fake.sigmoid().mean().detach(),
        }
        torch.testing.assert_close(values, told)
    expected = {"generator": G.state_dict(), "discriminator": D.state_dict()}
    torch.testing.assert_close(trainer.networks(), expected, **ADAM)
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


@pytest.mark.parametrize(("recon", "beta"), [("mse", 1.0), ("mse", 4.0), ("bce", 0.5)])
def test_vae_steps_go_down_the_negative_elbo(recon: str, beta: float) -> None:
    trainer = vae_trainer(recon=recon, beta=beta, lr=1e-2, betas=(0.3, 0.9), seed=7)
    model = copy.deepcopy(trainer.vae)
    adam = torch.optim.Adam(model.parameters(), 1e-2, (0.3, 0.9))
    noise = torch.Generator().manual_seed(7)
    for x in batches():
        out = model(x, generator=noise)
        if recon == "mse":
            error = (out.reconstruction - x) ** 2
        else:
            p, t = (out.reconstruction + 1) / 2, (x + 1) / 2
            error = -(t * p.log() + (1 - t) * (1 - p).log())
        kl = 0.5 * (out.mu**2 + out.logvar.exp() - 1 - out.logvar)
        loss = (error.sum() + beta * kl.sum()) / 6
        adam.zero_grad()
        loss.backward()
        adam.step()

        values = trainer.step(x)
        told = {"loss": loss, "recon": error.sum() / 6, "kl": kl.sum() / 6}
        torch.testing.assert_close(values, {k: v.detach() for k, v in told.items()})
    torch.testing.assert_close(trainer.vae.state_dict(), model.state_dict(), **ADAM)


@pytest.mark.parametrize("make", [gan_trainer, vae_trainer])
def test_noise_is_the_trainers_own(make: Any) -> None:
    states = []
    for other in (1, 2):
        trainer = make(seed=3)
        torch.manual_seed(other)
        trainer.step(batches()[0])
        states.append(trainer.networks())
    torch.testing.assert_close(*states, rtol=0, atol=0)
    trainer = make(seed=4)
    trainer.step(batches()[0])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(trainer.networks(), states[0], rtol=0, atol=0)


@pytest.mark.parametrize("make", [gan_trainer, vae_trainer])
def test_pictures_leave_training_alone(make: Any) -> None:
    one, other = make(), make()
    for x in batches():
        one.step(x)
        other.step(x)
        other.pictures(torch.randn(4, 5), x)
    torch.testing.assert_close(one.networks(), other.networks(), rtol=0, atol=0)


@pytest.mark.parametrize("make", [gan_trainer, vae_trainer])
def test_learning_rate_can_be_set(make: Any) -> None:
    trainer = make()
    before = copy.deepcopy([dict(n.named_parameters()) for n in networks(trainer)])
    trainer.set_lr(0.0)
    trainer.step(batches()[0])
    after = [dict(n.named_parameters()) for n in networks(trainer)]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def networks(trainer: GANTrainer | VAETrainer) -> list[torch.nn.Module]:
    if isinstance(trainer, VAETrainer):
        return [trainer.vae]
    return [trainer.generator, trainer.discriminator]


def test_losses_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="loss is one of nonsaturating, minimax, not 'hinge'"):
        gan_trainer(loss="hinge")
    with pytest.raises(ValueError, match="recon is one of mse, bce, not 'l1'"):
        vae_trainer(recon="l1")
