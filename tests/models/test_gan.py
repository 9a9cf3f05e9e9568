"""Tests of the generator and the discriminator; test_models has those of all models."""

import pytest
import torch
from torch import nn

from genimg.models import gan

BOTH = pytest.mark.parametrize("kind", [gan.Generator, gan.Discriminator])
PRESETS = pytest.mark.parametrize("preset", ["article", "dcgan"])


def count(model):
    return sum(p.numel() for p in model.parameters())


def convolutions(model):
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [layer for layer in model.modules() if isinstance(layer, kinds)]


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_dcgan_of_twice_the_width_has_figure_1s_channels():
    generator = gan.Generator("dcgan", width=128)
    assert [layer.out_channels for layer in convolutions(generator)] == [1024, 512, 256, 128, 3]
    discriminator = gan.Discriminator("dcgan", width=128)
    assert [layer.out_channels for layer in convolutions(discriminator)] == [128, 256, 512, 1024, 1]


def test_dcgan_drops_its_widest_map_where_16_does_not_divide_the_size():
    """At 40x40 from 5x5: 100 -> 256 -> 128 -> 64 -> 1 and back, counted by hand."""
    kernels = 25 * 100 * 256 + 16 * (256 * 128 + 128 * 64 + 64)
    generator = gan.Generator("dcgan", image_size=40, channels=1)
    assert count(generator) == kernels + 2 * (256 + 128 + 64) + 1
    kernels = 16 * (64 + 64 * 128 + 128 * 256) + 25 * 256
    discriminator = gan.Discriminator("dcgan", image_size=40, channels=1)
    assert count(discriminator) == kernels + 2 * (128 + 256) + 64 + 1


@BOTH
@PRESETS
def test_a_bias_only_where_no_batch_norm_takes_it_away(kind, preset):
    stack = list(kind(preset, width=2).stack)
    for layer, following in zip(stack, [*stack[1:], None], strict=True):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            assert (layer.bias is None) == isinstance(following, nn.BatchNorm2d)


@BOTH
def test_batch_norms_start_as_the_presets_say(kind):
    scales = torch.cat([norm.weight.detach() for norm in norms(kind("dcgan"))])
    assert abs(scales.mean() - 1) < 4e-3
    assert abs(scales.std() - 0.02) < 3e-3
    for preset, eps, momentum in [("article", 1e-3, 0.01), ("dcgan", 1e-5, 0.1)]:
        for norm in norms(kind(preset, width=2)):
            assert (norm.eps, norm.momentum) == (eps, momentum)
            assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
    for norm in norms(kind("article", width=2)):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))


def test_activations_are_the_presets():
    def slopes(model):
        found = [m for m in model.modules() if isinstance(m, (nn.LeakyReLU, nn.ReLU))]
        return {0.0 if isinstance(m, nn.ReLU) else m.negative_slope for m in found}

    assert slopes(gan.Generator("article", width=2)) == {0.3}
    assert slopes(gan.Discriminator("article", width=2)) == {0.3}
    assert slopes(gan.Generator("dcgan", width=2)) == {0.0}
    assert slopes(gan.Discriminator("dcgan", width=2)) == {0.2}
    for preset in ("article", "dcgan"):
        assert isinstance(gan.Generator(preset, width=2).stack[-1], nn.Tanh)
        assert isinstance(gan.Discriminator(preset, width=2).stack[-1], nn.Conv2d)


@PRESETS
@pytest.mark.parametrize("image_size", [8, 24, 32])
def test_each_image_has_its_own_logit(preset, image_size):
    model = gan.Discriminator(preset, image_size=image_size, channels=1, width=4).eval()
    x = torch.rand(4, 1, image_size, image_size) * 2 - 1
    together = model(x)
    assert together.unique().numel() == 4
    alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone)
    assert model(x[:0]).shape == (0,)


@PRESETS
def test_export_with_any_batch(preset):
    model = gan.Generator(preset, image_size=24, width=4, latent_dim=6).eval()
    batch = {"z": {0: torch.export.Dim("n", min=2, max=64)}}
    exported = torch.export.export(model, (torch.randn(3, 6),), dynamic_shapes=batch).module()
    z = torch.randn(5, 6)
    torch.testing.assert_close(exported(z), model(z))
