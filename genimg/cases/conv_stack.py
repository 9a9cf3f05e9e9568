"""Cases of conv_stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genimg.conv_blocks import Activation, Direction
from genimg.reference.conv_stack import BatchNorm, ConvBlock
from genimg.testing import Case, Tensors, integers, normal


@dataclass(frozen=True)
class Layer:
    """A block of a case, without its tensors.

    ``shift``: the mean of a bias before the norm; ``gain``: a factor of the weight; ``dead``:
    channel 0 is 0 everywhere, and the norm leaves it at the kink.
    """

    direction: Direction
    channels: int
    kernel: int = 4
    stride: int = 2
    padding: int = 1
    output_padding: int = 0
    norm: bool = True
    frozen: bool = False
    activation: Activation = Activation.LEAKY_RELU
    negative_slope: float = 0.2
    shift: float = 0.0
    gain: float = 1.0
    dead: bool = False


def make(shape: tuple[int, ...], layers: Sequence[Layer]) -> Callable[..., Tensors]:
    def tensors(generator: torch.Generator) -> Tensors:
        made = {"x": normal(generator, *shape)}
        channels = shape[1]
        for i, layer in enumerate(layers):
            pair = (layer.channels, channels)
            if layer.direction is Direction.UP:
                pair = (channels, layer.channels)
            # Kept near unit scale through the stack, so that tanh does not saturate.
            scale = layer.gain * (channels * layer.kernel**2) ** -0.5
            made[f"weight{i}"] = scale * normal(generator, *pair, layer.kernel, layer.kernel)
            channels = layer.channels
            if layer.norm:
                made[f"mean{i}"] = normal(generator, channels)
                made[f"var{i}"] = normal(generator, channels).abs() + 0.5
                made[f"gamma{i}"] = normal(generator, channels)
                made[f"beta{i}"] = normal(generator, channels)
            if layer.dead:
                made[f"weight{i}"].select(int(layer.direction is Direction.UP), 0).zero_()
                made[f"beta{i}"][0] = 0
            if layer.shift or not layer.norm:
                made[f"bias{i}"] = normal(generator, channels) + layer.shift
        return made

    return tensors


def _away_from_kinks(made: Tensors, generator: torch.Generator) -> Tensors:
    """Integers and 0.25: the input of an activation is 0.25 or more away from 0."""
    constants = {"bias": 0.25, "beta": 0.25, "gamma": 1.0, "mean": 0.0, "var": 1.0}
    return {
        name: torch.full_like(x, constants[name[:-1]])
        if name[:-1] in constants
        else integers(generator, *x.shape, limit=2)
        for name, x in made.items()
    }


def _minus_infinity(made: Tensors, generator: torch.Generator) -> Tensors:
    """Set by the shift: torch's own convolution of an infinite pixel gives NaN in bfloat16."""
    made["beta0" if "beta0" in made else "bias0"][2] = -float("inf")
    return made


def _blocks(layers: Sequence[Layer], t: Tensors) -> list[ConvBlock]:
    return [
        ConvBlock(
            layer.direction,
            t[f"weight{i}"],
            t.get(f"bias{i}"),
            layer.stride,
            layer.padding,
            layer.output_padding,
            norm=BatchNorm(
                t[f"mean{i}"],
                t[f"var{i}"],
                t[f"gamma{i}"],
                t[f"beta{i}"],
                training=False if layer.frozen else None,
            )
            if layer.norm
            else None,
            activation=layer.activation,
            negative_slope=layer.negative_slope,
        )
        for i, layer in enumerate(layers)
    ]


def make_case(
    name: str,
    why: str,
    shape: tuple[int, ...],
    layers: Sequence[Layer],
    training: bool = True,
    change: Callable[[Tensors, torch.Generator], Tensors] = lambda made, generator: made,
    behind: Callable[[Tensor], Tensor] = lambda y: y,
    **options: Any,
) -> Case:
    def tensors(generator: torch.Generator) -> Tensors:
        return change(make(shape, layers)(generator), generator)

    names = make(shape, layers)(torch.Generator()) if 0 not in shape else {}
    names = names or make((1, *shape[1:]), layers)(torch.Generator())
    return Case(
        name,
        why,
        tensors,
        lambda op, t: behind(op(t["x"], _blocks(layers, t), training=training)),
        grad=tuple(key for key in names if not key.startswith(("mean", "var"))),
        state=tuple(key for key in names if key.startswith(("mean", "var"))),
        keep=tuple(key for key in names if key.startswith(("mean", "var", "gamma", "beta"))),
        **options,
    )


UP, DOWN = Direction.UP, Direction.DOWN


TANH = Layer(UP, 3, norm=False, activation=Activation.TANH)


_GENERATOR = (Layer(UP, 18), Layer(UP, 11), TANH)


_DCGAN = (
    Layer(UP, 512, stride=1, padding=0, negative_slope=0.0),
    Layer(UP, 256, negative_slope=0.0),
    Layer(UP, 128, negative_slope=0.0),
    Layer(UP, 64, negative_slope=0.0),
    TANH,
)


CASES = (
    make_case("generator", "three up blocks, tanh at the end", (3, 7, 3, 3), _GENERATOR),
    make_case(
        "discriminator",
        "three down blocks, no norm on the first, no activation on the last",
        (3, 3, 24, 24),
        (
            Layer(DOWN, 10, norm=False),
            Layer(DOWN, 13),
            Layer(DOWN, 1, padding=0, norm=False, activation=Activation.NONE),
        ),
    ),
    make_case("one_block", "the shortest stack", (2, 3, 4, 4), (Layer(UP, 6),)),
    make_case(
        "channels_last",
        "the memory format goes through",
        (2, 4, 4, 4),
        _GENERATOR,
        layout="channels_last",
    ),
    make_case("eval", "running statistics, left as they are", (2, 4, 4, 4), _GENERATOR, False),
    make_case(
        "frozen_norm",
        "one batch norm of a training stack keeps its statistics",
        (2, 4, 4, 4),
        (Layer(UP, 18, frozen=True), Layer(UP, 11), TANH),
    ),
    make_case(
        "vae_decoder",
        "k3 s2 p1 op1, ends in a sigmoid",
        (2, 4, 3, 5),
        (
            Layer(UP, 18, kernel=3, output_padding=1),
            Layer(UP, 1, kernel=3, output_padding=1, norm=False, activation=Activation.SIGMOID),
        ),
    ),
    make_case(
        "relu_masks",
        "0 times the infinite gradient of a root is 0, with and without a norm",
        (2, 3, 8, 8),
        (
            Layer(DOWN, 18, norm=False, negative_slope=0.0),
            Layer(UP, 11, frozen=True, negative_slope=0.0),
        ),
        change=_away_from_kinks,
        behind=torch.sqrt,
    ),
    make_case(
        "relu_masks_at_the_end",
        "the same without a norm",
        (2, 3, 8, 8),
        (Layer(DOWN, 18, norm=False, negative_slope=0.0),),
        change=_away_from_kinks,
        behind=torch.sqrt,
    ),
    make_case(
        "relu_of_minus_infinity",
        "becomes 0 where the next block reads it",
        (2, 3, 8, 8),
        (
            Layer(DOWN, 18, frozen=True, negative_slope=0.0),
            Layer(DOWN, 5, norm=False, negative_slope=0.0),
        ),
        change=_minus_infinity,
    ),
    make_case(
        "relu_of_minus_infinity_without_norm",
        "becomes 0 where it is written",
        (2, 3, 8, 8),
        (Layer(DOWN, 18, norm=False, negative_slope=0.0),),
        change=_minus_infinity,
    ),
    make_case(
        "large_mean",
        "statistics about a mean that is 1000 times the deviation, of several tiles",
        (2, 4, 20, 16),
        (Layer(DOWN, 12, shift=1000.0),),
    ),
    make_case(
        "large_mean_few_pixels",
        "the same, of the form for few pixels",
        (2, 4, 4, 4),
        (Layer(UP, 12, shift=1000.0), TANH),
    ),
    make_case(
        "dead_channel",
        "exactly at the kink, where the derivative is the slope",
        (3, 5, 14, 12),
        (
            Layer(DOWN, 12, dead=True),
            Layer(DOWN, 10, dead=True, negative_slope=0.0),
            Layer(UP, 12, dead=True),
        ),
    ),
    make_case(
        "saturated_tanh",
        "far beyond where tanh is 1",
        (2, 4, 4, 4),
        (Layer(UP, 3, norm=False, activation=Activation.TANH, gain=40.0),),
    ),
    make_case(
        "saturated_sigmoid",
        "far beyond where exp overflows",
        (2, 4, 4, 4),
        (Layer(UP, 3, norm=False, activation=Activation.SIGMOID, gain=40.0),),
    ),
    make_case("sliced", "NaN between the channels", (2, 4, 4, 4), _GENERATOR, layout="sliced"),
    make_case("empty_batch", "no image", (0, 4, 4, 4), _GENERATOR, False),
    make_case(
        "dcgan_generator",
        "100 -> 512 -> 256 -> 128 -> 64 -> 3 at 64x64, 64 images",
        (64, 100, 1, 1),
        _DCGAN,
        speed=True,
    ),
)
