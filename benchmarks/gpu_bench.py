"""What is measured on a GPU, in the order of its worth, into one JSON file; see gpu_run.sh.

Needs torch and genimg alone. Every section stops at the deadline, and what was measured by then is
in the file. A result that breaks the tolerance rule is recorded as wrong, and not timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import kernel_names, sample
from layers import LAYERS as CASES

import genimg
from genimg import info
from genimg.backends import OPS, BackendError
from genimg.bench import make_step
from genimg.models import gan, vae
from genimg.testing import Case, compare
from genimg.train.gan import GANTrainer
from genimg.train.vae import VAETrainer

LAYERS = ((100, 512, 1), (512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 3, 32))
"""The DCGAN generator's: channels before and after, side before."""

KERNELS = ("cuda", "triton")
CONTRACTIONS = ("conv_transpose2d", "conv2d")


class Out:
    """The results file, and the time that is left."""

    def __init__(self, path: Path, device: str, seconds: float, tiny: bool) -> None:
        self.path, self.device, self.tiny = path, device, tiny
        self.deadline = time.monotonic() + seconds
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.rows: list[dict[str, Any]] = []
        self.facts = {**info.collect(), "commit": _output("git", "rev-parse", "HEAD")}

    def time(
        self, where: dict[str, Any], run: Callable[[], Any], graph: bool = True, **more: Any
    ) -> None:
        """Time one closure and write the file; skipped where no time is left."""
        if time.monotonic() > self.deadline:
            return
        try:
            measured = sample(run, self.device, 0.02 if self.tiny else 0.1, graph).as_dict()
        except (RuntimeError, BackendError) as error:  # memory, above all
            measured = {"failed": str(error).splitlines()[0]}
        self.add({**where, **measured, **more})

    def add(self, row: dict[str, Any]) -> None:
        """One more row; the file is whole after each."""
        self.rows.append(row)
        print(" ".join(f"{value}" for value in row.values()), flush=True)
        self.write()

    def write(self) -> None:
        """The file as it stands."""
        clocks = _output("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader")
        text = json.dumps({"facts": self.facts, "clocks": clocks, "rows": self.rows}, indent=1)
        self.path.write_text(text, encoding="utf-8")

    def batches(self) -> tuple[int, ...]:
        """Images at a time."""
        return (4,) if self.tiny else (128, 512, 2048)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def ceilings(out: Out) -> None:
    """The device's own copy and matrix product."""
    side, size = (256, 2**20) if out.tiny else (8192, 2**30)
    a, b = (torch.randn(side, side, device=out.device, dtype=out.dtype) for _ in range(2))
    product = torch.empty_like(a)
    out.time(
        {"section": "ceiling", "what": "matmul", "flop": 2 * side**3},
        partial(torch.mm, a, b, out=product),
    )
    source = torch.randint(0, 255, (size,), device=out.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    out.time(
        {"section": "ceiling", "what": "copy", "bytes": 2 * size}, partial(target.copy_, source)
    )


def vendor_layers(out: Out) -> None:
    """cuDNN, layer by layer: what a contraction of our own has to beat."""
    for batch in out.batches():
        for layer in LAYERS:
            _vendor_layer(out, batch, *layer)


def _vendor_layer(out: Out, batch: int, before: int, after: int, side: int) -> None:
    stride, padding = (1, 0) if side == 1 else (2, 1)
    x, weight, grad = _layer(out, batch, before, after, side, stride, padding)
    options = (None, [stride] * 2, [padding] * 2, [1, 1], True, [0, 0], 1)

    def gradients(needs_x: bool, needs_weight: bool) -> Any:
        needs = (needs_x, needs_weight, False)
        return torch.ops.aten.convolution_backward(grad, x, weight, *options, needs)

    for mode, run in (
        ("forward", lambda: F.conv_transpose2d(x, weight, None, stride, padding)),
        ("x_gradient", partial(gradients, True, False)),
        ("weight_gradient", partial(gradients, False, True)),
    ):
        where = {"section": "cudnn", "what": f"{before}->{after}@{side}", "mode": mode}
        flop = 2 * batch * side**2 * before * after * 16
        names = kernel_names(run) if batch == out.batches()[0] else None
        out.time({**where, "batch": batch}, run, flop=flop, kernels=names)


def _layer(
    out: Out, batch: int, before: int, after: int, side: int, stride: int, padding: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    last = torch.channels_last
    make = partial(torch.randn, device=out.device, dtype=out.dtype)
    x = make(batch, before, side, side).contiguous(memory_format=last)
    weight = make(before, after, 4, 4).mul_(0.02).contiguous(memory_format=last)
    large = (side - 1) * stride - 2 * padding + 4
    return x, weight, make(batch, after, large, large).contiguous(memory_format=last)


def our_layers(out: Out) -> None:
    """Our contractions, by name, each checked first."""
    for op in CONTRACTIONS:
        for case in OPS[op].cases[:1] if out.tiny else CASES[op]:
            _ops(out, "layer", op, case, ("forward", "x_gradient", "weight_gradient"))


def single_ops(out: Out) -> None:
    """Every timed case of every other op."""
    for op, entry in OPS.items():
        if op in CONTRACTIONS:
            continue
        timed = [case for case in entry.cases if case.speed]
        for case in entry.cases[:1] if out.tiny else timed:
            _ops(out, "op", op, case, ("forward", "forward_backward"))


def _ops(out: Out, section: str, op: str, case: Case, modes: tuple[str, ...]) -> None:
    entry = OPS[op]
    providers = {
        "eager_channels_last": "eager_channels_last",
        "compile_channels_last": "compile_channels_last",
    } | {name: f"{name}_channels_last" for name in KERNELS if name in entry.by_backend}
    for mode in modes:
        for name, provider in providers.items():
            if time.monotonic() > out.deadline:
                return
            where = {
                "section": section,
                "what": f"{op} {case.name}",
                "mode": mode,
                "provider": name,
            }
            if name in KERNELS and (wrong := _wrong(out, op, case, name)):
                out.add({**where, "failed": wrong})
                continue
            torch._dynamo.reset()
            try:
                run = make_step(entry, case, provider, out.dtype, out.device, mode)
            except (RuntimeError, BackendError) as error:
                out.add({**where, "failed": str(error).splitlines()[0]})
                continue
            out.time(where, run)


def _wrong(out: Out, op: str, case: Case, backend: str) -> str | None:
    """Why a kernel's result is not to be timed."""
    entry = OPS[op]
    try:
        errors = compare(
            case,
            entry.function,
            entry.reference,
            backend,
            out.dtype,
            out.device,
            entry.error_factor,
        )
    except BackendError as refusal:
        return str(refusal)
    bad = [error for error in errors if not error.ok]
    return f"WRONG: {bad[0]}" if bad else None


def models(out: Out) -> None:
    """Decoders forward and backward, and whole training steps."""
    for batch in out.batches():
        for what, network, latent in _networks(out):
            z = torch.randn(batch, latent, device=out.device, dtype=out.dtype)
            for name, run, graph in _ways(out, network, z):
                where = {"section": "model", "what": what, "batch": batch, "provider": name}
                out.time({**where, "mode": "forward_backward"}, run, graph)


def _networks(out: Out) -> Iterator[tuple[str, Callable[[], torch.nn.Module], int]]:
    size = 16 if out.tiny else 64
    yield "dcgan_generator", lambda: gan.Generator(preset="dcgan", image_size=size), 100
    yield "article_generator", lambda: gan.Generator(preset="article", image_size=size), 100
    yield "article_decoder", lambda: vae.VAE(preset="article", image_size=size).decoder, 64


def _ways(
    out: Out, make: Callable[[], torch.nn.Module], z: torch.Tensor
) -> Iterator[tuple[str, Callable[[], Any], bool]]:
    """Name, step and whether to capture it, of PyTorch's ways and of ours."""
    for name, mode, graph in (
        ("eager", None, True),
        ("compile", "default", True),
        ("reduce-overhead", "reduce-overhead", False),
    ):
        torch._dynamo.reset()
        network = _placed(out, make())
        genimg.restore(network)
        if mode:
            network.compile(mode=mode)
        yield name, _step(network, z), graph
    for backend in ("auto", *KERNELS):
        spec = backend if backend == "auto" else f"{backend},reference"
        yield f"genimg {backend}", _step(_placed(out, make()), z, spec), True


def _placed(out: Out, network: torch.nn.Module) -> torch.nn.Module:
    network = network.to(out.device, out.dtype, memory_format=torch.channels_last)
    for module in network.modules():  # as under autocast: statistics stay float32
        if isinstance(module, torch.nn.BatchNorm2d):
            module.float()
    return network


def _step(network: torch.nn.Module, z: torch.Tensor, spec: str | None = None) -> Callable[[], Any]:
    parameters = list(network.parameters())
    grads: list[torch.Tensor] = []

    def step() -> Any:
        with genimg.use_backend(spec) if spec else nullcontext():
            y = network(z)
            if not grads:
                grads.append(torch.randn_like(y))
            return torch.autograd.grad(y, parameters, grads)

    return step


def training_steps(out: Out) -> None:
    """The article's GAN and VAE: forward, backward, optimiser, in autocast's bfloat16."""
    size = 16 if out.tiny else 64
    for batch in out.batches()[:2]:
        x = torch.rand(batch, 3, size, size, device=out.device) * 2 - 1
        for ours in (False, True):
            networks = [
                n(preset="article", image_size=size) for n in (gan.Generator, gan.Discriminator)
            ]
            both = vae.VAE(preset="article", image_size=size)
            for network in (*networks, both):
                network.to(out.device)
                if not ours:
                    genimg.restore(network)
            trainers = {
                "article_gan_step": GANTrainer(*networks),
                "article_vae_step": VAETrainer(both),
            }
            for what, trainer in trainers.items():
                where = {"section": "model", "what": what, "batch": batch}
                provider = "genimg auto" if ours else "eager"
                out.time({**where, "provider": provider}, _autocast(out, trainer, x), graph=False)


def _autocast(out: Out, trainer: Any, x: torch.Tensor) -> Callable[[], Any]:
    def step() -> Any:
        with torch.autocast(out.device, torch.bfloat16):
            return trainer.step(x)

    return step


SECTIONS = (ceilings, vendor_layers, single_ops, our_layers, models, training_steps)


def main() -> int:
    """Run the sections; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the JSON file")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument(
        "--tiny", action="store_true", help="a few small sizes: tries the runner out"
    )
    asked = parser.parse_args()
    if not torch.cuda.is_available() and not asked.tiny:
        print("gpu_bench.py: torch sees no GPU here; --tiny tries the runner out", file=sys.stderr)
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    out = Out(asked.out, device, asked.seconds, asked.tiny)
    for section in SECTIONS:
        section(out)
    out.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
