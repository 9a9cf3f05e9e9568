"""Whole models on a GPU: decoders forward and backward, and training steps; see gpu_bench.py.

genimg's networks are compared with PyTorch's in float64 before they are timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from gpu_check import backend_of
from gpu_worker import HOPPER, KERNELS, Out, Timed, check
from torch import Tensor, nn

import genimg
from genimg.backends import BackendError
from genimg.models import gan, vae
from genimg.train.gan import GANTrainer
from genimg.train.vae import VAETrainer

OURS = (*KERNELS, *HOPPER)
WAYS = (
    ("eager", False),
    ("eager", True),
    *((name, graph) for name in OURS for graph in (False, True)),
    ("compile", False),
    ("compile", True),
    ("reduce-overhead", False),  # it makes graphs of its own
)
"""Providers, and whether the step is captured."""

MODES = {"compile": "default", "reduce-overhead": "reduce-overhead"}


def _size(out: Out) -> int:
    return 16 if out.tiny else 64


def _placed(out: Out, network: nn.Module, dtype: torch.dtype) -> nn.Module:
    network = network.to(out.device, dtype, memory_format=torch.channels_last)
    for module in network.modules():  # as under autocast: statistics stay float32
        if isinstance(module, nn.BatchNorm2d) and dtype != torch.float64:
            module.float()
    return network


def _served(provider: str, attempt: Callable[[str], Any]) -> tuple[str, str]:
    """The backend to name, and a note if it leaves something to PyTorch."""
    if provider not in OURS:
        return "reference", ""
    backend = backend_of(provider)
    try:
        attempt(backend)
    except BackendError as refusal:
        return f"{backend},reference", f"partly PyTorch's: {refusal}"
    return backend, ""


def _gradients(
    network: nn.Module, x: Tensor, grad: Tensor, spec: str
) -> Callable[[], dict[str, Tensor]]:
    names, parameters = zip(*network.named_parameters(), strict=True)

    def step() -> dict[str, Tensor]:
        with genimg.use_backend(spec):
            y = network(x)
            y = torch.cat(y, 1) if isinstance(y, tuple) else y
            grads = torch.autograd.grad(y, parameters, grad.to(y.dtype))
        return {"y": y.detach(), **{f"grad_{n}": g for n, g in zip(names, grads, strict=True)}}

    return step


def _step(out: Out, made: nn.Module, x: Tensor, provider: str) -> Timed:
    """Forward and backward of a network as the provider has it; ours checked against float64."""
    torch._dynamo.reset()
    plain = copy.deepcopy(made)
    genimg.restore(plain)
    with torch.no_grad():
        y = _placed(out, copy.deepcopy(plain), out.dtype)(x)
    grad = torch.randn_like(torch.cat(y, 1) if isinstance(y, tuple) else y)
    placed = partial(_placed, out)
    if provider not in OURS:
        network = placed(plain, out.dtype)
        if provider in MODES:
            network.compile(mode=MODES[provider])
        return Timed(_gradients(network, x, grad, "reference"))
    own, truth = (
        _gradients(placed(copy.deepcopy(plain), dtype), x.to(dtype), grad, "reference")()
        for dtype in (out.dtype, torch.float64)
    )
    network = placed(copy.deepcopy(made), out.dtype)
    spec, note = _served(provider, lambda name: _gradients(network, x, grad, name)())
    timed = _gradients(network, x, grad, spec)
    check(timed(), own, truth)
    return Timed(timed, note=note)


def decoders(out: Out) -> None:
    """Forward and backward."""
    size = _size(out)
    networks = {
        "dcgan_generator": partial(gan.Generator, preset="dcgan", image_size=size),
        "article_generator": partial(gan.Generator, preset="article", image_size=size),
        "article_vae_decoder": partial(vae.Decoder, preset="article", image_size=size),
    }
    for batch in out.batches():
        for what, make in networks.items():
            torch.manual_seed(0)
            made = make()
            latent = made.config["latent_dim"]
            z = torch.randn(batch, latent, device=out.device, dtype=out.dtype)
            for provider, graph in WAYS:
                where = {"section": "model", "what": what, "batch": batch}
                replayed = graph or provider == "reduce-overhead"
                where |= {"mode": "forward_backward" + (", graph" if replayed else "")}
                out.time(
                    {**where, "provider": provider}, partial(_step, out, made, z, provider), graph
                )


def training_steps(out: Out) -> None:
    """The article's GAN and VAE: forward, backward, optimiser, in autocast's bfloat16."""
    for batch in out.batches():
        for what, make in {"article_gan_step": _gan, "article_vae_step": _vae}.items():
            for provider in ("eager", *KERNELS, *MODES):
                where = {"section": "model", "what": what, "batch": batch, "mode": "training"}
                make_step = partial(make, out, batch, provider)
                out.time({**where, "provider": provider}, make_step, graph=False)


def _images(out: Out, batch: int) -> Tensor:
    x = torch.rand(batch, 3, _size(out), _size(out), device=out.device) * 2 - 1
    return x.contiguous(memory_format=torch.channels_last)


def _gan(out: Out, batch: int, provider: str) -> Timed:
    networks = [
        n(preset="article", image_size=_size(out)) for n in (gan.Generator, gan.Discriminator)
    ]
    x = _images(out, batch)
    z = torch.randn(batch, networks[0].latent_dim, device=out.device)
    _verify(out, networks, (z, x), provider)
    return _trained(out, GANTrainer(*(_as(out, n, provider) for n in networks)), x, provider)


def _vae(out: Out, batch: int, provider: str) -> Timed:
    network = vae.VAE(preset="article", image_size=_size(out))
    x = _images(out, batch)
    z = torch.randn(batch, network.decoder.config["latent_dim"], device=out.device)
    _verify(out, (network.encoder, network.decoder), (x, z), provider)
    return _trained(out, VAETrainer(_as(out, network, provider)), x, provider)


def _verify(out: Out, networks: Any, inputs: Any, provider: str) -> None:
    """Ours are compared with float64, as decoders are."""
    if provider in KERNELS:
        for network, x in zip(networks, inputs, strict=True):
            _step(out, network, x.to(out.dtype), provider)


def _as(out: Out, network: nn.Module, provider: str) -> Any:
    """A network as the provider has it, in float32: autocast casts."""
    torch._dynamo.reset()
    network = network.to(out.device, memory_format=torch.channels_last)
    if provider not in KERNELS:
        genimg.restore(network)
    if provider in MODES:
        network.compile(mode=MODES[provider])
    return network


def _trained(out: Out, trainer: Any, x: Tensor, provider: str) -> Timed:
    gpu = out.device == "cuda"

    def step(spec: str) -> Any:
        if provider == "reduce-overhead" and gpu:
            torch.compiler.cudagraph_mark_step_begin()
        half = torch.autocast(out.device, torch.bfloat16) if gpu else nullcontext()
        with half, genimg.use_backend(spec):
            return trainer.step(x)

    spec, note = _served(provider, step)
    return Timed(partial(step, spec), note=note)
