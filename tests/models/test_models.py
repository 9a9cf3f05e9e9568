"""The GAN and the VAE, in both presets, at any size."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import genimg
from genimg.models import gan, vae
from genimg.nn.conv_stack import plan

PRESETS = ("article", "dcgan")
EVERY = [
    pytest.param(kind, preset, id=f"{kind.__name__}-{preset}")
    for kind in (gan.Generator, gan.Discriminator, vae.Encoder, vae.Decoder, vae.VAE)
    for preset in PRESETS
]


def make(kind, preset, image_size=32, channels=3, width=4, **options):
    torch.manual_seed(0)
    if kind is not gan.Discriminator:
        options.setdefault("latent_dim", 6)
    return kind(preset, image_size=image_size, channels=channels, width=width, **options)


def input_of(model, n=3):
    config = model.config
    if isinstance(model, (gan.Generator, vae.Decoder)):
        return torch.randn(n, config["latent_dim"])
    return torch.rand(n, config["channels"], config["image_size"], config["image_size"]) * 2 - 1


def outputs_of(model, x):
    outputs = model(x)
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("image_size", "channels"), [(8, 1), (24, 5), (32, 1), (40, 3), (48, 3), (64, 3)]
)
def test_shapes(preset, image_size, channels):
    sizes = {"image_size": image_size, "channels": channels}
    image = (2, channels, image_size, image_size)
    fake = make(gan.Generator, preset, **sizes)(torch.randn(2, 6))
    assert fake.shape == image
    assert fake.abs().max() <= 1
    assert make(gan.Discriminator, preset, **sizes)(fake).shape == (2,)
    out = make(vae.VAE, preset, **sizes)(fake)
    assert out.reconstruction.shape == image
    assert out.mu.shape == out.logvar.shape == out.z.shape == (2, 6)
    assert out.kl.shape == (2,)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_dcgan_has_the_papers_layers():
    """Counted by hand: 100 -> 512 -> 256 -> 128 -> 64 -> 3, kernels of 4x4."""
    kernels = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    norms = 2 * (512 + 256 + 128 + 64)
    assert count(gan.Generator("dcgan")) == kernels + norms + 3
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    norms = 2 * (128 + 256 + 512)
    assert count(gan.Discriminator("dcgan")) == kernels + norms + 64 + 1


def test_article_has_its_layers():
    """Dense 256, Dense 5 5 256, then 128, 64, 3 at 40x40."""
    dense = 100 * 256 + 256 + 256 * 6400 + 6400
    kernels = 16 * (256 * 128 + 128 * 64 + 64 * 3) + 3
    assert count(gan.Generator("article", image_size=40)) == dense + kernels + 2 * (128 + 64)
    discriminator = gan.Discriminator("article", image_size=40)
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256) + 25 * 256
    assert count(discriminator) == kernels + 64 + 1 + 2 * (128 + 256)
    norm = discriminator.stack[3]
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    assert discriminator.stack[1].negative_slope == 0.3


@pytest.mark.parametrize(
    ("kind", "preset", "blocks"),
    [
        (gan.Generator, "article", 3),
        (gan.Generator, "dcgan", 5),
        (gan.Discriminator, "article", 4),
        (gan.Discriminator, "dcgan", 5),
        (vae.Encoder, "article", 2),
        (vae.Decoder, "article", 3),
    ],
)
def test_each_stack_is_one_run(kind, preset, blocks):
    """Fusion needs whole runs: the stack is one call, of so many blocks."""
    (step,) = plan(make(kind, preset, image_size=64).stack)
    assert len(step) == blocks


@pytest.mark.parametrize(("kind", "preset"), EVERY)
def test_config_rebuilds_it(kind, preset):
    model = make(kind, preset, image_size=24, channels=2)
    config = json.loads(json.dumps(model.config))
    twin = kind(**config)
    twin.load_state_dict(model.state_dict())
    x = input_of(model)
    for got, expected in zip(outputs_of(twin.eval(), x), outputs_of(model.eval(), x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("kind", "preset"), EVERY)
def test_restored_to_torch_it_is_the_same_model(kind, preset):
    model = make(kind, preset)
    plain = copy.deepcopy(model)
    genimg.restore(plain)
    layers = {type(m) for m in plain.modules() if not list(m.children())}
    ours = {k.__name__ for k in layers if k.__module__.startswith("genimg")}
    assert ours <= {"ReparamKL"}
    assert list(plain.state_dict()) == list(model.state_dict())
    x = input_of(model)
    for got, expected in zip(outputs_of(plain.eval(), x), outputs_of(model.eval(), x), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("kind", "preset"), EVERY)
def test_every_parameter_learns(kind, preset):
    model = make(kind, preset)
    loss = sum(y.square().sum() for y in outputs_of(model, input_of(model)))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("kind", "preset"), EVERY)
def test_pickle_deepcopy_dtype(kind, preset):
    model = make(kind, preset).eval()
    x = input_of(model)
    expected = outputs_of(model, x)[0]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs_of(twin, x)[0], expected)
    wide = outputs_of(copy.deepcopy(model).double(), x.double())[0]
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", [gan.Generator, gan.Discriminator, vae.VAE])
def test_compile(kind, preset):
    torch._dynamo.reset()
    model = make(kind, preset)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs_of(compiled, input_of(model))[0].sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "logvar" not in n)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_each_way(preset):
    """The discriminator learns to tell a fixed batch apart, then the generator to mislead it."""
    generator = make(gan.Generator, preset, width=8)
    discriminator = make(gan.Discriminator, preset, width=8)
    real = torch.rand(8, 3, 32, 32) * 2 - 1
    z = torch.randn(8, 6)
    optimizers = [torch.optim.Adam(m.parameters(), 2e-3) for m in (discriminator, generator)]

    def loss_d():
        return (
            nn.functional.softplus(-discriminator(real)).mean()
            + nn.functional.softplus(discriminator(generator(z).detach())).mean()
        )

    def loss_g():
        return nn.functional.softplus(-discriminator(generator(z))).mean()

    for loss, optimizer in zip((loss_d, loss_g), optimizers, strict=True):
        first = loss().item()
        for _ in range(8):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        assert loss().item() < first


def test_vae_kl_and_noise():
    model = make(vae.VAE, "article")
    x = input_of(model)
    first = model(x, generator=torch.Generator().manual_seed(1))
    again = model(x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.z, again.z)
    assert not torch.equal(first.z, first.mu)
    normal = torch.distributions.Normal(first.mu, torch.exp(0.5 * first.logvar))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(
        1
    )
    torch.testing.assert_close(first.kl, expected, rtol=1e-5, atol=1e-5)
    model.eval()
    out = model(x)
    assert torch.equal(out.z, out.mu)
    assert torch.equal(model.reconstruct(x), out.reconstruction)
    images = model.sample(5, torch.Generator().manual_seed(1))
    assert images.shape == (5, 3, 32, 32)
    assert torch.equal(images, model.sample(5, torch.Generator().manual_seed(1)))


def test_same_seed_same_weights():
    for kind in (gan.Generator, gan.Discriminator, vae.VAE):
        one, two = make(kind, "dcgan"), make(kind, "dcgan")
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b)


def test_initial_weights():
    radford = gan.Generator("dcgan").stack[3].weight
    assert abs(radford.std() - 0.02) < 1e-3
    glorot = gan.Generator("article").project[2].weight
    bound = (6 / sum(glorot.shape)) ** 0.5
    assert glorot.abs().max() <= bound
    assert glorot.abs().max() > 0.99 * bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 36}, "image_size to be a multiple of 8, but got 36"),
        ({"image_size": 0}, "image_size to be a multiple of 8, but got 0"),
        ({"channels": 0}, "channels to be at least 1, but got 0"),
        ({"width": -2}, "width to be at least 1, but got -2"),
        ({"preset": "stylegan"}, "preset to be one of article, dcgan, but got 'stylegan'"),
    ],
)
@pytest.mark.parametrize("kind", [gan.Generator, gan.Discriminator, vae.Encoder, vae.Decoder])
def test_refuses_arguments(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
    if kind is gan.Generator:
        with pytest.raises(ValueError, match="latent_dim to be at least 1"):
            kind(latent_dim=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_refuses_shapes(preset):
    with pytest.raises(RuntimeError, match=r"latents of shape \[N, 6\], but got \[2, 7\]"):
        make(gan.Generator, preset)(torch.randn(2, 7))
    with pytest.raises(RuntimeError, match=r"latents of shape \[N, 6\], but got \[2, 6, 1, 1\]"):
        make(vae.Decoder, preset)(torch.randn(2, 6, 1, 1))
    message = r"images of shape \[N, 3, 32, 32\], but got \[2, 3, 40, 40\]"
    for kind in (gan.Discriminator, vae.Encoder, vae.VAE):
        with pytest.raises(RuntimeError, match=message):
            make(kind, preset)(torch.randn(2, 3, 40, 40))
