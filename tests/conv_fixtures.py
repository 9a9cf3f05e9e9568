"""Shared by the tests of fprop, dgrad and wgrad in Triton: images of small integers."""

import torch
import torch.nn.functional as F

from genimg.kernels.triton import runtime
from genimg.testing import integers

if runtime.MISSING is None:
    from genimg.kernels.triton.conv.geometry import geometry_of, to_channels_last
    from genimg.kernels.triton.conv.prologue import FusedInput

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(*shape):
    return integers(torch.Generator().manual_seed(sum(shape)), *shape).to(DEVICE)


class Data:
    """Two images, a weight, and how they are tied."""

    def __init__(self, large, channels, kernel, *options):
        self.options = options
        self.large = draw(*large)
        self.weight = draw(channels, large[1], *kernel)
        self.small = draw(*self.fprop().shape)
        shapes = (self.small.shape, self.large.shape, kernel)
        self.geometry = geometry_of(*shapes, *self.options)

    def fprop(self):
        return F.conv2d(self.large, self.weight, None, *self.options)

    def grads(self, small, large):
        """dgrad and wgrad, in float64."""
        large, weight = large.requires_grad_(), self.weight.clone().requires_grad_()
        y = F.conv2d(large, weight, None, *self.options)
        return torch.autograd.grad(y, (large, weight), small)


def read(x, dtype, **options):
    return FusedInput(to_channels_last(x.to(dtype)), **options)


def contract(kernel, image, data, epilogue, dtype=torch.float32):
    weight = to_channels_last(data.weight.to(dtype))
    return kernel(image, weight, data.geometry, epilogue)


def coefficients(channels):
    """Mean, scale, shift, tilt: such that nothing is rounded, and padding would not stay 0."""
    rows = [draw(channels), 2.0 ** draw(channels), draw(channels) + 0.5, draw(channels) * 0.5]
    return torch.stack(rows)


def through(x, y, prologue, coef):
    mean, scale, shift, tilt = (row[:, None, None] for row in coef)
    if prologue == "none":
        return x
    if prologue == "affine_leaky":
        z = scale * (x - mean) + shift
        return torch.where(z > 0, z, 0.25 * z)
    if prologue == "affine_relu":
        return torch.relu(scale * (x - mean) + shift)
    return scale * x + tilt * (y - mean) + shift


def behind(x, prologue):
    """An image that is read through a prologue, and its value there."""
    y, coef = x.flip(0) + 1, coefficients(x.shape[1])
    image = read(
        x,
        torch.float32,
        prologue=prologue,
        coef=coef.float(),
        y=to_channels_last(y.float()) if prologue == "two_tensor" else None,
        slope=0.25,
    )
    return image, through(x, y, prologue, coef)
