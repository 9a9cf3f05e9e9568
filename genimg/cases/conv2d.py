"""Cases of conv2d."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg.testing import Case, Tensors, integers, normal


def convolution(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    channels: int,
    draw: Callable[..., Tensor] = normal,
) -> Callable[[torch.Generator], Tensors]:
    """Makes the tensors of a case: ``channels`` are the output's."""

    def tensors(generator: torch.Generator) -> Tensors:
        return {
            "x": draw(generator, *x),
            "weight": draw(generator, *weight),
            "bias": draw(generator, channels),
        }

    return tensors


def with_values(
    make: Callable[[torch.Generator], Tensors],
    *values: tuple[int, int, int, int, float],
    of: str = "x",
) -> Callable[[torch.Generator], Tensors]:
    """The same tensors, with these values at four indices of the image, or of the weight."""

    def tensors(generator: torch.Generator) -> Tensors:
        made = make(generator)
        for *at, value in values:
            made[of][tuple(at)] = value
        return made

    return tensors


def with_nan_and_inf(
    make: Callable[[torch.Generator], Tensors],
) -> Callable[[torch.Generator], Tensors]:
    """The same tensors, with two pixels of the image that are not finite."""
    return with_values(make, (0, 1, 0, 2, float("nan")), (1, 0, 3, 3, float("inf")))


def with_huge_values(
    make: Callable[[torch.Generator], Tensors], of: str, other: str
) -> Callable[[torch.Generator], Tensors]:
    """Values whose differences overflow, and others so small that no product does."""
    row = ((1, 2e38), (3, -2e38))
    made = with_values(make, *((0, 1, 1, at, value) for at, value in row), of=of)

    def tensors(generator: torch.Generator) -> Tensors:
        drawn = made(generator)
        return {**drawn, other: drawn[other] / 64}

    return tensors


def call(**options: Any) -> Callable[[Callable[..., Any], Tensors], Tensor]:
    """Calls a convolution, or a folded one, with these options."""

    def run(op: Callable[..., Any], t: Tensors) -> Tensor:
        return op(t["x"], t["weight"], t["bias"], **options)

    return run


def call_in_pixels(**options: Any) -> Callable[[Callable[..., Any], Tensors], Tensor]:
    """The same with the weight in channels_last memory."""

    def run(op: Callable[..., Any], t: Tensors) -> Tensor:
        weight = t["weight"].contiguous(memory_format=torch.channels_last)
        return op(t["x"], weight, t["bias"], **options)

    return run


def make(
    x: tuple[int, ...], weight: tuple[int, ...], draw: Callable[..., Tensor] = normal
) -> Callable[[torch.Generator], Tensors]:
    return convolution(x, weight, weight[0], draw)


ALL = ("x", "weight", "bias")


CASES = (
    Case(
        "one_pixel",
        "a discriminator's last layer: one matrix product",
        make((3, 8, 4, 4), (1, 8, 4, 4)),
        call(),
        ALL,
    ),
    Case(
        "k4s2p1_integers",
        "every partial sum is exact: equal to float64 to the bit",
        make((2, 16, 8, 8), (8, 16, 4, 4), integers),
        call(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "k4s2p1_primes",
        "channels and sizes that divide nothing",
        make((3, 5, 13, 11), (7, 5, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "k4s2p1_wide_integers",
        "sides above 5 take F(3,2) on the CPU, whose weights are halved: still exact",
        make((2, 17, 14, 18), (33, 17, 4, 4), partial(integers, limit=1)),
        call(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "k4s2p1_wide",
        "partial tiles and blocks of channels: 11x7 in tiles of three, 20 channels",
        make((2, 20, 22, 14), (36, 20, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        layout="channels_last",
    ),
    Case(
        "few_channels",
        "three on the large side: the image's",
        make((2, 3, 10, 14), (20, 3, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "weight_channels_last_few_pixels",
        "a weight whose taps lie apart, read as it is",
        make((2, 48, 8, 8), (5, 48, 4, 4), integers),
        call_in_pixels(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "weight_channels_last",
        "the same, packed for F(3,2)",
        make((9, 32, 14, 10), (20, 32, 4, 4), partial(integers, limit=1)),
        call_in_pixels(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "not_finite",
        "NaN and Inf reach the outputs that they belong to, and no neighbour",
        with_nan_and_inf(make((2, 4, 14, 14), (6, 4, 4, 4))),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "not_finite_first_channel",
        "Inf in a channel that begins a vector, and nowhere else",
        with_values(make((2, 16, 14, 14), (6, 16, 4, 4)), (1, 0, 3, 3, float("inf"))),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "not_finite_last_channel",
        "NaN in a channel that ends one",
        with_values(make((2, 16, 14, 14), (6, 16, 4, 4)), (1, 15, 3, 3, float("nan"))),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "huge_values",
        "differences of neighbours would overflow, and so would the weight's gradient",
        with_huge_values(make((2, 12, 14, 14), (6, 12, 4, 4)), "x", "weight"),
        call(stride=2, padding=1),
        ("x", "bias"),
    ),
    Case(
        "k4s2p1_channels_last",
        "the output keeps the memory format",
        make((2, 6, 8, 10), (4, 6, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        layout="channels_last",
    ),
    Case(
        "k3s1p1",
        "the common unstrided layer, sliced input",
        make((2, 4, 6, 7), (5, 4, 3, 3)),
        call(padding=1),
        ALL,
        layout="sliced",
    ),
    Case(
        "k4s2p1_odd_height",
        "one axis is twice as long, the other one more",
        make((6, 9, 15, 14), (10, 9, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "few_channels_tall",
        "many more rows than taps, one column of which is inside at the edges",
        make((1, 3, 400, 4), (5, 3, 3, 3)),
        call(padding=2),
        ALL,
    ),
    Case(
        "padding_above_the_kernel",
        "tiles that lie in the padding alone",
        make((2, 3, 5, 6), (9, 3, 2, 2)),
        call(padding=2),
        ALL,
    ),
    Case(
        "whole_vectors",
        "a last panel of one vector, at every width: 40 and 48 channels",
        make((3, 40, 14, 12), (48, 40, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "k5s2p2",
        "odd kernel, phases of unequal size",
        make((2, 3, 9, 9), (4, 3, 5, 5)),
        call(stride=2, padding=2),
        ALL,
    ),
    Case(
        "anisotropic",
        "height and width differ in every option",
        make((2, 3, 9, 12), (4, 3, 3, 2)),
        call(stride=(2, 3), padding=(1, 0), dilation=(1, 2)),
        ALL,
    ),
    Case(
        "groups",
        "two convolutions side by side",
        make((2, 6, 8, 8), (4, 3, 3, 3)),
        call(padding="same", groups=2),
        ALL,
    ),
    Case(
        "no_bias_expanded",
        "no bias, one image for the whole batch",
        make((4, 3, 8, 8), (4, 3, 4, 4)),
        lambda op, t: op(t["x"], t["weight"], None, 2, 1),
        ("x", "weight"),
        layout="expanded",
    ),
    Case(
        "empty_batch",
        "no image",
        make((0, 3, 8, 8), (4, 3, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "first_layer",
        "few input channels: 3 -> 64 at 64x64",
        make((64, 3, 64, 64), (64, 3, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        speed=True,
    ),
    Case(
        "hidden_layer",
        "64 -> 128 at 32x32",
        make((64, 64, 32, 32), (128, 64, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        speed=True,
    ),
)
