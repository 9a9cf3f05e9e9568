"""Compile a converted model by torch.compile into one graph, and compare it with the model itself.

Run it with `python examples/compile_a_model.py`. torch.compile's default backend, inductor, needs a
C++ compiler; `python examples/compile_a_model.py --backend aot_eager` needs none.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import genimg

parser = argparse.ArgumentParser(description="torch.compile of a converted model")
parser.add_argument("--backend", default="inductor", help="torch.compile's [inductor]")
backend = parser.parse_args().backend


def loss_and_gradients(generator: Callable[[Tensor], Tensor]) -> tuple[float, tuple[Tensor, ...]]:
    loss = generator(z).square().mean()
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Linear(64, 128 * 8 * 8), nn.Unflatten(1, (128, 8, 8))),
    *(nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2)),
    *(nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1), nn.Tanh()),
)
genimg.convert(model)
z = torch.randn(8, 64)
loss, gradients = loss_and_gradients(model)
compiled = torch.compile(model, fullgraph=True, backend=backend)  # a graph break would raise
start = time.perf_counter()
compiled_loss, compiled_gradients = loss_and_gradients(compiled)
print(f"compiled by {backend} into one graph, and run, in {time.perf_counter() - start:.1f} s")
pairs = zip(compiled_gradients, gradients, strict=True)
difference = max(((c - g).abs().max() / g.abs().max()).item() for c, g in pairs)
print(f"loss: compiled {compiled_loss:.6f}, not compiled {loss:.6f}")
print(f"largest relative difference of a gradient: {difference:.1e}")
