"""Losses against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from genimg.train.losses import (
    discriminator_loss,
    generator_loss,
    negative_elbo,
    reconstruction_loss,
)


def logits(n: int = 50) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64) * 3


def test_discriminator_loss_is_goodfellow_eq_1() -> None:
    real, fake = logits(), logits()
    expected = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)


def test_generator_losses_are_those_of_section_3() -> None:
    fake = logits()
    D = fake.sigmoid()
    torch.testing.assert_close(generator_loss(fake), -D.log().mean())
    torch.testing.assert_close(generator_loss(fake, "minimax"), (1 - D).log().mean())


def test_equilibrium_is_log_4() -> None:
    undecided = torch.zeros(3)
    assert discriminator_loss(undecided, undecided).item() == pytest.approx(math.log(4))


def test_extreme_logits_stay_finite() -> None:
    real = torch.tensor([-1e4, 1e4], requires_grad=True)
    fake = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = discriminator_loss(real, fake)
    loss.backward()
    assert loss.item() == 1e4  # one of two wrong by 1e4, on each side
    assert real.grad.tolist() == [-0.5, 0.0]
    assert fake.grad.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(("loss", "gradient"), [("nonsaturating", -1.0), ("minimax", 0.0)])
def test_gradient_where_the_discriminator_is_sure(loss: str, gradient: float) -> None:
    sure = torch.tensor([-200.0], requires_grad=True)
    generator_loss(sure, loss).backward()
    assert sure.grad.item() == gradient


def test_mse_is_summed_over_a_sample() -> None:
    x, y = torch.rand(2, 4, 3, 5, 5, dtype=torch.float64) * 2 - 1
    expected = torch.stack([((a - b) ** 2).sum() for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(reconstruction_loss(y, x), expected)
    # Up to a constant, a Gaussian of variance 1/2.
    density = -Normal(y, math.sqrt(0.5)).log_prob(x).flatten(1).sum(1)
    differences = density - expected
    torch.testing.assert_close(differences, differences[:1].expand(4))


def test_bce_is_a_bernoulli_of_every_pixel() -> None:
    x = torch.randint(0, 2, (4, 1, 5, 5)).double() * 2 - 1
    y = torch.randn(4, 1, 5, 5, dtype=torch.float64).tanh()
    expected = -Bernoulli((y + 1) / 2).log_prob((x + 1) / 2).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction_loss(y, x, "bce"), expected)


def test_bce_of_saturated_pixels_is_finite() -> None:
    y = torch.tensor([[-1.0, 1.0, -1.0, 1.0]], requires_grad=True)
    loss = reconstruction_loss(y, torch.tensor([[-1.0, 1.0, 1.0, -1.0]]), "bce")
    loss.sum().backward()
    assert loss.item() == 200.0
    assert y.grad.isfinite().all()


def test_negative_elbo_is_summed_per_sample_and_averaged_over_the_batch() -> None:
    mu, logvar = torch.randn(2, 6, 3, dtype=torch.float64)
    posterior = Normal(mu, (logvar / 2).exp())
    prior = Normal(torch.zeros_like(mu), 1.0)
    kl = kl_divergence(posterior, prior).sum(1)
    recon = torch.rand(6, dtype=torch.float64)
    expected = sum((r + 0.25 * k).item() for r, k in zip(recon, kl, strict=True)) / 6
    assert negative_elbo(recon, kl, 0.25).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: generator_loss(torch.zeros(1), "hinge"),
        lambda: reconstruction_loss(torch.zeros(1, 2), torch.zeros(1, 2), "l1"),
        lambda: reconstruction_loss(torch.zeros(1, 2), torch.zeros(2, 2)),
        lambda: negative_elbo(torch.zeros(2), torch.zeros(3)),
        lambda: negative_elbo(torch.zeros(2), torch.zeros(2), -1.0),
        lambda: negative_elbo(torch.zeros(2), torch.zeros(2), math.nan),
    ],
)
def test_refuses(call) -> None:
    with pytest.raises(ValueError, match="not"):
        call()
