"""Convert a DCGAN generator: what genimg.convert changes, the same images, the speed of training.

Run it with `python examples/convert_a_model.py`. It needs nothing but PyTorch and genimg.
"""

import copy

import torch
from torch import nn

import genimg
from genimg.timing import interleaved_medians


def up(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Layers that double the height and the width."""
    convolution = nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


class Generator(nn.Module):
    """Noise [N, 64] to images [N, 3, 64, 64], in ordinary PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.ConvTranspose2d(64, 256, 4, bias=False)
        last = nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1)
        blocks = [first, nn.BatchNorm2d(256), nn.ReLU(inplace=True)]
        blocks += [*up(256, 128), *up(128, 64), *up(64, 32), last, nn.Tanh()]
        self.layers = nn.Sequential(*blocks)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z[:, :, None, None])


torch.manual_seed(0)
plain = Generator()
model = copy.deepcopy(plain)
print(genimg.convert(model))  # in place; genimg.restore(model) undoes it

assert list(model.state_dict()) == list(plain.state_dict())
z = torch.randn(16, 64)
difference = (model(z) - plain(z)).abs().max().item()
print(f"largest difference of the images, which lie in [-1, 1]: {difference:.1e}")


def training_step(generator: nn.Module) -> None:
    optimizer.zero_grad()
    generator(z).square().mean().backward()
    optimizer.step()


optimizer = torch.optim.Adam([*plain.parameters(), *model.parameters()])
steps = {"before": lambda: training_step(plain), "after": lambda: training_step(model)}
ms = interleaved_medians(steps, "cpu", seconds=1)
print(
    f"a training step takes {ms['before']:.1f} ms before and {ms['after']:.1f} ms after: "
    f"{ms['before'] / ms['after']:.2f} times as fast"
)
