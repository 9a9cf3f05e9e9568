"""A run of convolution blocks as one op: the definition, and the cases it is checked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genimg.conv_blocks import Activation, Direction
from genimg.reference.batch_norm_act import batch_norm_act
from genimg.reference.conv2d import IntOrPair, conv2d
from genimg.reference.conv_transpose2d import conv_transpose2d
from genimg.testing import Case, Tensors, integers, normal


@dataclass(frozen=True)
class BatchNorm:
    """A block's batch norm: :func:`genimg.ops.batch_norm_act`'s tensors and numbers.

    ``training`` None follows the stack's; True uses the batch's statistics, False the running ones.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    momentum: float | None = 0.1
    eps: float = 1e-5
    training: bool | None = None
    num_batches_tracked: Tensor | None = None

    def takes_statistics(self, training: bool) -> bool:
        """Whether it uses the batch's statistics, in a stack of mode ``training``."""
        return training if self.training is None else self.training


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, batch norm or none, activation or none.

    ``output_padding`` belongs to direction UP alone.
    """

    direction: Direction
    weight: Tensor
    bias: Tensor | None = None
    stride: IntOrPair = 1
    padding: IntOrPair = 0
    output_padding: IntOrPair = 0
    dilation: IntOrPair = 1
    groups: int = 1
    norm: BatchNorm | None = None
    activation: Activation = Activation.NONE
    negative_slope: float = 0.01


class Layers(NamedTuple):
    """The ops that a stack consists of."""

    conv2d: Callable[..., Tensor]
    conv_transpose2d: Callable[..., Tensor]
    batch_norm_act: Callable[..., Tensor]


def _contract(x: Tensor, block: ConvBlock, layers: Layers) -> Tensor:
    if block.direction is Direction.DOWN:
        return layers.conv2d(
            x,
            block.weight,
            block.bias,
            block.stride,
            block.padding,
            block.dilation,
            block.groups,
        )
    return layers.conv_transpose2d(
        x,
        block.weight,
        block.bias,
        block.stride,
        block.padding,
        block.output_padding,
        block.groups,
        block.dilation,
    )


def _activate(y: Tensor, block: ConvBlock) -> Tensor:
    if block.activation is Activation.TANH:
        return torch.tanh(y)
    if block.activation is Activation.SIGMOID:
        return torch.sigmoid(y)
    if block.activation is Activation.LEAKY_RELU:
        if block.negative_slope == 0:
            return torch.relu(y)
        return torch.nn.functional.leaky_relu(y, block.negative_slope)
    return y


def conv_stack(x: Tensor, blocks: Sequence[ConvBlock], *, training: bool) -> Tensor:
    """Each block's ``activation(norm(convolution(x)))``, one after the other."""
    return layer_by_layer(x, blocks, training, Layers(conv2d, conv_transpose2d, batch_norm_act))


def layer_by_layer(
    x: Tensor, blocks: Sequence[ConvBlock], training: bool, layers: Layers
) -> Tensor:
    """A stack as single ops, which are those of ``layers``."""
    for block in blocks:
        x = _contract(x, block, layers)
        norm = block.norm
        if norm is None:
            x = _activate(x, block)
            continue
        leaky = block.activation is Activation.LEAKY_RELU
        x = layers.batch_norm_act(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.takes_statistics(training),
            norm.momentum,
            norm.eps,
            block.negative_slope if leaky else 1.0,
            norm.num_batches_tracked,
        )
        if not leaky:
            x = _activate(x, block)
    return x


@dataclass(frozen=True)
class _Layer:
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


def _make(shape: tuple[int, ...], layers: Sequence[_Layer]) -> Callable[..., Tensors]:
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


def _blocks(layers: Sequence[_Layer], t: Tensors) -> list[ConvBlock]:
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


def _case(
    name: str,
    why: str,
    shape: tuple[int, ...],
    layers: Sequence[_Layer],
    training: bool = True,
    change: Callable[[Tensors, torch.Generator], Tensors] = lambda made, generator: made,
    behind: Callable[[Tensor], Tensor] = lambda y: y,
    **options: Any,
) -> Case:
    def tensors(generator: torch.Generator) -> Tensors:
        return change(_make(shape, layers)(generator), generator)

    names = _make(shape, layers)(torch.Generator()) if 0 not in shape else {}
    names = names or _make((1, *shape[1:]), layers)(torch.Generator())
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


_UP, _DOWN = Direction.UP, Direction.DOWN
_TANH = _Layer(_UP, 3, norm=False, activation=Activation.TANH)
_GENERATOR = (_Layer(_UP, 18), _Layer(_UP, 11), _TANH)
_DCGAN = (
    _Layer(_UP, 512, stride=1, padding=0, negative_slope=0.0),
    _Layer(_UP, 256, negative_slope=0.0),
    _Layer(_UP, 128, negative_slope=0.0),
    _Layer(_UP, 64, negative_slope=0.0),
    _TANH,
)

CASES = (
    _case("generator", "three up blocks, tanh at the end", (3, 7, 3, 3), _GENERATOR),
    _case(
        "discriminator",
        "three down blocks, no norm on the first, no activation on the last",
        (3, 3, 24, 24),
        (
            _Layer(_DOWN, 10, norm=False),
            _Layer(_DOWN, 13),
            _Layer(_DOWN, 1, padding=0, norm=False, activation=Activation.NONE),
        ),
    ),
    _case("one_block", "the shortest stack", (2, 3, 4, 4), (_Layer(_UP, 6),)),
    _case(
        "channels_last",
        "the memory format goes through",
        (2, 4, 4, 4),
        _GENERATOR,
        layout="channels_last",
    ),
    _case("eval", "running statistics, left as they are", (2, 4, 4, 4), _GENERATOR, False),
    _case(
        "frozen_norm",
        "one batch norm of a training stack keeps its statistics",
        (2, 4, 4, 4),
        (_Layer(_UP, 18, frozen=True), _Layer(_UP, 11), _TANH),
    ),
    _case(
        "vae_decoder",
        "k3 s2 p1 op1, ends in a sigmoid",
        (2, 4, 3, 5),
        (
            _Layer(_UP, 18, kernel=3, output_padding=1),
            _Layer(_UP, 1, kernel=3, output_padding=1, norm=False, activation=Activation.SIGMOID),
        ),
    ),
    _case(
        "relu_masks",
        "0 times the infinite gradient of a root is 0, with and without a norm",
        (2, 3, 8, 8),
        (
            _Layer(_DOWN, 18, norm=False, negative_slope=0.0),
            _Layer(_UP, 11, frozen=True, negative_slope=0.0),
        ),
        change=_away_from_kinks,
        behind=torch.sqrt,
    ),
    _case(
        "relu_masks_at_the_end",
        "the same without a norm",
        (2, 3, 8, 8),
        (_Layer(_DOWN, 18, norm=False, negative_slope=0.0),),
        change=_away_from_kinks,
        behind=torch.sqrt,
    ),
    _case(
        "relu_of_minus_infinity",
        "becomes 0 where the next block reads it",
        (2, 3, 8, 8),
        (
            _Layer(_DOWN, 18, frozen=True, negative_slope=0.0),
            _Layer(_DOWN, 5, norm=False, negative_slope=0.0),
        ),
        change=_minus_infinity,
    ),
    _case(
        "relu_of_minus_infinity_without_norm",
        "becomes 0 where it is written",
        (2, 3, 8, 8),
        (_Layer(_DOWN, 18, norm=False, negative_slope=0.0),),
        change=_minus_infinity,
    ),
    _case(
        "large_mean",
        "statistics about a mean that is 1000 times the deviation, of several tiles",
        (2, 4, 20, 16),
        (_Layer(_DOWN, 12, shift=1000.0),),
    ),
    _case(
        "large_mean_few_pixels",
        "the same, of the form for few pixels",
        (2, 4, 4, 4),
        (_Layer(_UP, 12, shift=1000.0), _TANH),
    ),
    _case(
        "dead_channel",
        "exactly at the kink, where the derivative is the slope",
        (3, 5, 14, 12),
        (
            _Layer(_DOWN, 12, dead=True),
            _Layer(_DOWN, 10, dead=True, negative_slope=0.0),
            _Layer(_UP, 12, dead=True),
        ),
    ),
    _case(
        "saturated_tanh",
        "far beyond where tanh is 1",
        (2, 4, 4, 4),
        (_Layer(_UP, 3, norm=False, activation=Activation.TANH, gain=40.0),),
    ),
    _case(
        "saturated_sigmoid",
        "far beyond where exp overflows",
        (2, 4, 4, 4),
        (_Layer(_UP, 3, norm=False, activation=Activation.SIGMOID, gain=40.0),),
    ),
    _case("sliced", "NaN between the channels", (2, 4, 4, 4), _GENERATOR, layout="sliced"),
    _case("empty_batch", "no image", (0, 4, 4, 4), _GENERATOR, False),
    _case(
        "dcgan_generator",
        "100 -> 512 -> 256 -> 128 -> 64 -> 3 at 64x64, 64 images",
        (64, 100, 1, 1),
        _DCGAN,
        speed=True,
    ),
)
