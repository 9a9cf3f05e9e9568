"""The layers of DCGANs and of the article's models, by which the kernels are judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from genimg.ops import Activation, ConvBlock, Direction
from genimg.testing import Case, Tensors, normal

IMAGES = 64
SHAPES = ((512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 32, 32), (256, 128, 5), (128, 64, 10))
"""Channels of the small image, of the large one, and the small one's side; all k4 s2 p1."""


def _draw(x: tuple[int, ...], weight: tuple[int, ...]) -> Callable[..., Tensors]:
    def tensors(generator: torch.Generator) -> Tensors:
        # Kept near unit scale, so that a tanh behind does not saturate.
        scale = (weight[0] * 4) ** -0.5
        return {"x": normal(generator, *x), "weight": scale * normal(generator, *weight)}

    return tensors


def _call(op: Callable[..., Any], t: Tensors) -> Any:
    return op(t["x"], t["weight"], None, 2, 1)


def _layer(small: int, large: int, side: int, transposed: bool) -> Case:
    images = (IMAGES, small, side, side) if transposed else (IMAGES, large, 2 * side, 2 * side)
    name = f"{small}_{large}_at_{side}" if transposed else f"{large}_{small}_to_{side}"
    return Case(
        name, "a layer", _draw(images, (small, large, 4, 4)), _call, ("x", "weight"), speed=True
    )


def _tanh_layer(op: Callable[..., Any], t: Tensors) -> Any:
    block = ConvBlock(Direction.UP, t["weight"], t["bias"], 2, 1, activation=Activation.TANH)
    return op(t["x"], [block], training=True)


def _last_layer(generator: torch.Generator) -> Tensors:
    made = _draw((IMAGES, 64, 32, 32), (64, 3, 4, 4))(generator)
    return {**made, "bias": normal(generator, 3)}


LAYERS = {
    "conv2d": tuple(_layer(*shape, transposed=False) for shape in SHAPES),
    "conv_transpose2d": tuple(_layer(*shape, transposed=True) for shape in SHAPES),
    "conv_stack": (
        Case(
            "last_layer_tanh",
            "64 -> 3 at 32x32 with bias and tanh",
            _last_layer,
            _tanh_layer,
            ("x", "weight", "bias"),
            speed=True,
        ),
    ),
}


def peak_convolution() -> tuple[Callable[[], Any], float]:
    """A large 3x3 convolution, at which oneDNN comes near the machine's rate; and its FLOP."""
    channels, side, images = 256, 28, 16
    x, weight = torch.randn(images, channels, side, side), torch.randn(channels, channels, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    run = partial(torch.nn.functional.conv2d, x, weight, None, 1, 1)
    return run, 2.0 * images * side**2 * channels**2 * 9
