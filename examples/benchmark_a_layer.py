"""Time forward and backward of a layer of yours: PyTorch in two memory formats, and genimg.

Put your own layer and its input into `layer` and `x` below, and run it with
`python examples/benchmark_a_layer.py`. It needs nothing but PyTorch and genimg.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import genimg
from genimg.timing import interleaved_medians

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
layer = nn.Sequential(
    nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1, bias=False),
    nn.BatchNorm2d(64),
    nn.LeakyReLU(0.2),
).to(device)
x = torch.randn(32, 128, 16, 16, device=device)


def step(layer: nn.Module, x: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A function that runs the layer, then backward to its input and its parameters."""
    x = x.detach().requires_grad_()
    inputs = [x, *layer.parameters()]
    grad_y = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), inputs, grad_y)


def in_channels_last(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).to(memory_format=torch.channels_last)


converted = copy.deepcopy(layer)
print(genimg.convert(converted))
with torch.no_grad():
    difference = (converted(x) - layer(x)).norm() / layer(x).norm()
print(f"relative difference of the output: {difference:.1e}")
x_channels_last = x.contiguous(memory_format=torch.channels_last)
steps = {
    "PyTorch": step(layer, x),
    "PyTorch, channels_last": step(in_channels_last(layer), x_channels_last),
    "genimg": step(converted, x),
    "genimg, channels_last": step(in_channels_last(converted), x_channels_last),
}
medians = interleaved_medians(steps, device, seconds=2)
print()
for name, ms in medians.items():
    print(f"{name:<23}{ms:>8.2f} ms")
best = {who: min(ms for n, ms in medians.items() if who in n) for who in ("PyTorch", "genimg")}
print(f"genimg is {best['PyTorch'] / best['genimg']:.2f} times as fast as the better PyTorch")
