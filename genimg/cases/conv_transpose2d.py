"""Cases of conv_transpose2d."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from genimg.cases.conv2d import (
    call,
    call_in_pixels,
    convolution,
    with_huge_values,
    with_nan_and_inf,
    with_values,
)
from genimg.testing import Case, Tensors, integers, normal


def make(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    draw: Callable[..., Tensor] = normal,
    groups: int = 1,
) -> Callable[[torch.Generator], Tensors]:
    return convolution(x, weight, weight[1] * groups, draw)


ALL = ("x", "weight", "bias")


CASES = (
    Case(
        "one_pixel",
        "a generator's first layer, 1x1 -> 4x4: one matrix product",
        make((3, 10, 1, 1), (10, 8, 4, 4)),
        call(),
        ALL,
    ),
    Case(
        "k4s2p1_integers",
        "every partial sum is exact: equal to float64 to the bit",
        make((2, 16, 4, 4), (16, 8, 4, 4), integers),
        call(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "k4s2p1_primes",
        "channels and sizes that divide nothing",
        make((3, 7, 5, 3), (7, 5, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "k4s2p1_wide_integers",
        "sides above 5 take F(3,2) on the CPU, whose weights are halved: still exact",
        make((2, 17, 7, 9), (17, 33, 4, 4), partial(integers, limit=1)),
        call(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "k4s2p1_wide",
        "partial tiles and blocks of channels: 11x7 in tiles of three, 20 channels",
        make((2, 20, 11, 7), (20, 36, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        layout="channels_last",
    ),
    Case(
        "few_channels",
        "three on the large side: the image's",
        make((2, 20, 5, 7), (20, 3, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "weight_channels_last_few_pixels",
        "a weight whose taps lie apart, read as it is",
        make((2, 5, 4, 4), (5, 48, 4, 4), integers),
        call_in_pixels(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "weight_channels_last",
        "the same, packed for F(3,2)",
        make((9, 20, 7, 5), (20, 32, 4, 4), partial(integers, limit=1)),
        call_in_pixels(stride=2, padding=1),
        ALL,
        exact=True,
    ),
    Case(
        "not_finite",
        "NaN and Inf reach the outputs that they belong to, and no neighbour",
        with_nan_and_inf(make((2, 6, 7, 7), (6, 12, 4, 4))),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "not_finite_first_channel",
        "Inf in a channel that begins a vector, and nowhere else",
        with_values(make((6, 16, 7, 7), (16, 12, 4, 4)), (1, 0, 3, 3, float("inf"))),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "not_finite_last_channel",
        "NaN in a channel that ends one",
        with_values(make((6, 16, 7, 7), (16, 12, 4, 4)), (1, 15, 3, 3, float("nan"))),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "huge_values",
        "differences of neighbours would overflow, and so would the weight's gradient",
        with_huge_values(make((6, 6, 9, 9), (6, 12, 4, 4)), "x", "weight"),
        call(stride=2, padding=1),
        ("x", "bias"),
    ),
    Case(
        "few_channels_not_finite",
        "the same for the sums of few channels",
        with_nan_and_inf(make((2, 20, 5, 7), (20, 3, 4, 4))),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "k5s2p2_wide",
        "the same summed by phases, of which the last has fewest taps",
        make((2, 9, 4, 4), (9, 10, 5, 5)),
        call(stride=2, padding=2),
        ALL,
    ),
    Case(
        "k3s4_one_pixel",
        "fewer outputs than phases",
        make((3, 9, 1, 1), (9, 10, 3, 3)),
        call(stride=4),
        ALL,
    ),
    Case(
        "k5s3p1",
        "three phases, of which padding moves the first",
        make((2, 9, 4, 5), (9, 10, 5, 5)),
        call(stride=3, padding=1),
        ALL,
    ),
    Case(
        "k4s2p1_channels_last",
        "the output keeps the memory format",
        make((2, 6, 4, 6), (6, 4, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        layout="channels_last",
    ),
    Case(
        "k3s2p1op1",
        "the VAE decoder's layer: phases of one and two taps",
        make((2, 4, 5, 6), (4, 3, 3, 3)),
        call(stride=2, padding=1, output_padding=1),
        ALL,
    ),
    Case(
        "k4x2s2",
        "few pixels, and a kernel of which one side is 4",
        make((2, 9, 3, 4), (9, 10, 4, 2)),
        call(stride=2),
        ALL,
    ),
    Case(
        "k2x4s2",
        "the same of the other side",
        make((2, 9, 3, 4), (9, 10, 2, 4)),
        call(stride=2),
        ALL,
    ),
    Case(
        "k3x4s2p1",
        "one axis fits Winograd's forms, the other has another kernel",
        make((6, 9, 7, 7), (9, 10, 3, 4)),
        call(stride=2, padding=1, output_padding=(1, 0)),
        ALL,
    ),
    Case(
        "k4x3s2p1",
        "the same of the other axis",
        make((6, 9, 7, 7), (9, 10, 4, 3)),
        call(stride=2, padding=1, output_padding=(0, 1)),
        ALL,
    ),
    Case(
        "k4s2p1_odd_width",
        "one axis is twice as long, the other one more",
        make((6, 9, 7, 7), (9, 10, 4, 4)),
        call(stride=2, padding=1, output_padding=(0, 1)),
        ALL,
    ),
    Case(
        "k2s2",
        "the U-Net's layer: one tap a phase, sliced input",
        make((2, 4, 5, 7), (4, 3, 2, 2)),
        call(stride=2),
        ALL,
        layout="sliced",
    ),
    Case(
        "k5s2p2op1",
        "odd kernel, phases of unequal size",
        make((2, 3, 4, 4), (3, 4, 5, 5)),
        call(stride=2, padding=2, output_padding=1),
        ALL,
    ),
    Case(
        "k2s3",
        "stride above the kernel: phases without a tap hold the bias",
        make((2, 3, 4, 4), (3, 4, 2, 2)),
        call(stride=3, output_padding=(1, 0)),
        ALL,
    ),
    Case(
        "dilated_groups",
        "two dilated ones side by side",
        make((2, 6, 5, 5), (6, 2, 3, 3), groups=2),
        call(stride=2, padding=1, groups=2, dilation=2),
        ALL,
    ),
    Case(
        "no_bias_expanded",
        "no bias, one image for the whole batch",
        make((4, 3, 4, 4), (3, 4, 4, 4)),
        lambda op, t: op(t["x"], t["weight"], None, 2, 1),
        ("x", "weight"),
        layout="expanded",
    ),
    Case(
        "empty_batch",
        "no image",
        make((0, 3, 4, 4), (3, 4, 4, 4)),
        call(stride=2, padding=1),
        ALL,
    ),
    Case(
        "hidden_layer",
        "256 -> 128 at 8x8",
        make((64, 256, 8, 8), (256, 128, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        speed=True,
    ),
    Case(
        "last_layer",
        "few output channels: 64 -> 3 at 32x32",
        make((64, 64, 32, 32), (64, 3, 4, 4)),
        call(stride=2, padding=1),
        ALL,
        speed=True,
    ),
)
