"""Times of whole models: training steps and images, genimg beside each mode of PyTorch."""

import copy

import pytest
import torch
from harness import DEVICE, describe, time_step
from layers import peak_convolution

import genimg
from genimg.models import gan, vae
from genimg.train.gan import GANTrainer
from genimg.train.vae import VAETrainer

PROVIDERS = ("genimg", "eager", "eager_channels_last", "compile", "compile_channels_last")
INFERENCE = (*PROVIDERS, "compile_freezing")
IMAGES, SIZE = 64, 64


def prepare(network, provider):
    """The network as the provider runs it: genimg's layers, or PyTorch's."""
    network = copy.deepcopy(network).to(DEVICE)
    if provider == "genimg":
        return network
    genimg.restore(network)
    if "channels_last" in provider or "freezing" in provider:
        network = network.to(memory_format=torch.channels_last)
    if provider.startswith("compile"):
        network.compile()
    return network


def images(provider):
    x = torch.rand(IMAGES, 3, SIZE, SIZE, device=DEVICE) * 2 - 1
    last = "channels_last" in provider
    return x.contiguous(memory_format=torch.channels_last) if last else x


def begin(benchmark, name, mode, provider):
    benchmark.group = f"models {name} {mode}"
    describe(benchmark, "models", name, mode, provider, provider)
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.mark.parametrize("provider", PROVIDERS)
def bench_gan_step(benchmark, provider):
    begin(benchmark, "article_gan", "training_step", provider)
    networks = [
        network(preset="article", image_size=SIZE) for network in (gan.Generator, gan.Discriminator)
    ]
    trainer = GANTrainer(*(prepare(network, provider) for network in networks))
    x = images(provider)
    time_step(benchmark, lambda: trainer.step(x), rounds=8)


@pytest.mark.parametrize("provider", PROVIDERS)
def bench_vae_step(benchmark, provider):
    begin(benchmark, "article_vae", "training_step", provider)
    trainer = VAETrainer(prepare(vae.VAE(preset="article", image_size=SIZE), provider))
    x = images(provider)
    time_step(benchmark, lambda: trainer.step(x), rounds=8)


@pytest.mark.parametrize("count", [IMAGES, 1])
@pytest.mark.parametrize("provider", INFERENCE)
def bench_generator(benchmark, provider, count):
    begin(benchmark, f"dcgan_generator_{count}", "images", provider)
    network = prepare(gan.Generator(preset="dcgan", image_size=SIZE).eval(), provider)
    z = torch.randn(count, network.latent_dim, device=DEVICE)
    freezing = torch._inductor.config.patch(freezing=provider == "compile_freezing")
    with torch.no_grad(), freezing:
        time_step(benchmark, lambda: network(z), rounds=15 if count > 1 else 50)


def bench_peak(benchmark):
    """OneDNN's best: the rate that every convolution is to be seen beside."""
    begin(benchmark, "peak", "convolution", "eager_channels_last")
    run, flop = peak_convolution()
    benchmark.extra_info.update(flop=flop)
    time_step(benchmark, run)
