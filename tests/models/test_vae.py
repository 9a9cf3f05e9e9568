"""Tests of the VAE; test_models has those of all models."""

import pytest
import torch
from torch import nn

from genimg.models import vae

PRESETS = pytest.mark.parametrize("preset", ["article", "dcgan"])


def count(model):
    return sum(p.numel() for p in model.parameters())


def small(preset, **options):
    return vae.VAE(preset, **{"image_size": 32, "channels": 1, "width": 4} | options)


def images(n, image_size=32):
    return torch.rand(n, 1, image_size, image_size) * 2 - 1


def test_article_has_its_layers():
    """64x64, counted by hand: 64, 128, two Dense 64; Dense 256 8 8, 128, 64, 3."""
    kernels = 16 * (3 * 64 + 64 * 128)
    heads = 2 * (128 * 16 * 16 * 64 + 64)
    assert count(vae.Encoder("article")) == kernels + 2 * (64 + 128) + heads
    dense = 64 * 256 * 8 * 8 + 256 * 8 * 8
    kernels = 16 * (256 * 128 + 128 * 64 + 64 * 3)
    assert count(vae.Decoder("article")) == dense + kernels + 2 * (128 + 64) + 3


def test_dcgan_has_the_gans_layers():
    """64x64, counted by hand: 64, 128, 256, 512, two Dense 100; then the generator's stack."""
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
    heads = 2 * (512 * 4 * 4 * 100 + 100)
    assert count(vae.Encoder("dcgan")) == kernels + 64 + 2 * (128 + 256 + 512) + heads
    kernels = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    assert count(vae.Decoder("dcgan")) == kernels + 2 * (512 + 256 + 128 + 64) + 3


@PRESETS
def test_a_bias_only_where_no_batch_norm_takes_it_away(preset):
    model = small(preset)
    for stack in (list(model.encoder.stack), list(model.decoder.stack)):
        for layer, following in zip(stack, [*stack[1:], None], strict=True):
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                assert (layer.bias is None) == isinstance(following, nn.BatchNorm2d)


@PRESETS
def test_learns_a_batch(preset):
    """The negative ELBO of a fixed batch falls, under the same noise in every step."""
    model = small(preset, image_size=8, latent_dim=4)
    x = images(16, 8)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    def loss():
        out = model(x, generator=torch.Generator().manual_seed(0))
        return ((out.reconstruction - x).square().flatten(1).sum(1) + out.kl).mean()

    losses = []
    for _ in range(16):
        optimizer.zero_grad()
        losses.append(loss())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@PRESETS
def test_kl_alone_teaches_the_encoder_and_not_the_decoder(preset):
    model = small(preset)
    model(images(3)).kl.sum().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in model.decoder.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


@PRESETS
def test_kl_is_float32_at_least(preset):
    model, x = small(preset), images(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).kl.dtype == torch.float32
    out = model.bfloat16()(x.bfloat16())
    assert (out.z.dtype, out.kl.dtype) == (torch.bfloat16, torch.float32)
    assert model.double()(x.double()).kl.dtype == torch.float64


@PRESETS
def test_samples(preset):
    model = small(preset, latent_dim=6).eval()
    assert model.sample(0).shape == (0, 1, 32, 32)
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.sample(3, torch.Generator().manual_seed(1)), model.decoder(z))
    torch.manual_seed(2)
    first = model.sample(2)
    torch.manual_seed(2)
    assert torch.equal(model.sample(2), first)
    assert model.bfloat16().sample(2).dtype == torch.bfloat16


@PRESETS
def test_reconstructs_by_the_mean_in_train_mode_too(preset):
    model, x = small(preset).train(), images(4)
    mu, _ = model.encoder(x)
    assert torch.equal(model.reconstruct(x), model.decoder(mu))
    assert not torch.equal(model.reconstruct(x), model(x).reconstruction)


@PRESETS
def test_export_with_any_batch(preset):
    model = small(preset).eval()
    batch = {"x": {0: torch.export.Dim("n", min=2, max=64)}}
    exported = torch.export.export(model, (images(3),), dynamic_shapes=batch).module()
    x = images(5)
    for got, expected in zip(exported(x), model(x), strict=True):
        torch.testing.assert_close(got, expected)
