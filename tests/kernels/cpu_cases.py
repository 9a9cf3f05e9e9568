"""Cases of the convolutions that concern the CPU kernels alone, beside those of genimg.cases.

A weight that is not finite meets zeros of the padding in a kernel of direct sums, and in some of
PyTorch's own: where the NaN of that stands is not one answer, and a huge one is Inf in float16. The
CPU kernels leave such a call to PyTorch, and must see it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

from genimg.cases.conv2d import ALL, call, convolution, with_huge_values, with_values
from genimg.testing import Case, Tensors, integers

stacks = import_module("genimg.cases.conv_stack")  # not the function of that name
INF, NAN = float("inf"), float("nan")


def _down(x: tuple[int, ...], weight: tuple[int, ...]) -> Callable[..., Tensors]:
    return convolution(x, weight, weight[0])


def _up(x: tuple[int, ...], weight: tuple[int, ...]) -> Callable[..., Tensors]:
    return convolution(x, weight, weight[1])


CASES: dict[str, tuple[Case, ...]] = {
    "conv2d": (
        Case(
            "huge_weight",
            "differences of taps would overflow, and so would the image's gradient",
            with_huge_values(_down((2, 12, 14, 14), (16, 12, 4, 4)), "weight", "x"),
            call(stride=2, padding=1),
            ("weight", "bias"),
        ),
        Case(
            "weight_not_finite_first",
            "Inf in the weight's first tap, and nowhere else",
            with_values(_down((2, 16, 14, 14), (32, 16, 4, 4)), (0, 0, 0, 0, INF), of="weight"),
            call(stride=2, padding=1),
            ALL,
        ),
        Case(
            "weight_not_finite_last",
            "NaN in its last one",
            with_values(_down((2, 16, 14, 14), (32, 16, 4, 4)), (31, 15, 3, 3, NAN), of="weight"),
            call(stride=2, padding=1),
            ALL,
        ),
        Case(
            "few_channels_weight_not_finite",
            "Inf in the first tap, which padding must not meet",
            with_values(_down((2, 3, 10, 14), (20, 3, 4, 4)), (0, 0, 0, 0, INF), of="weight"),
            call(stride=2, padding=1),
            ALL,
        ),
        Case(
            "few_channels_chunks",
            "more pixels than the weight's gradient takes at once",
            convolution((5, 3, 32, 32), (1024, 3, 4, 4), 1024, partial(integers, limit=1)),
            call(stride=2, padding=1),
            ("weight",),
            exact=True,
        ),
    ),
    "conv_transpose2d": (
        Case(
            "huge_weight",
            "differences of taps would overflow, and so would the image's gradient",
            with_huge_values(_up((6, 6, 9, 9), (6, 16, 4, 4)), "weight", "x"),
            call(stride=2, padding=1),
            ("weight", "bias"),
        ),
        Case(
            "weight_not_finite",
            "Inf in the weight's first tap, and nowhere else",
            with_values(_up((6, 6, 9, 9), (6, 16, 4, 4)), (0, 0, 0, 0, INF), of="weight"),
            call(stride=2, padding=1),
            ALL,
        ),
        Case(
            "few_channels_weight_not_finite",
            "Inf in the first tap",
            with_values(_up((2, 20, 5, 7), (20, 3, 4, 4)), (0, 0, 0, 0, INF), of="weight"),
            call(stride=2, padding=1),
            ALL,
        ),
        Case(
            "few_channels_unpadded",
            "no row lies before an image's first: its outputs take part of fewer",
            _up((2, 20, 5, 7), (20, 3, 4, 4)),
            call(stride=2),
            ALL,
        ),
    ),
    # Large for a checker or an interpreter, which have no such forms.
    "conv_stack": (
        stacks.make_case(
            "down_wide",
            "statistics of few channels, then a ReLU in front of few, then more than a panel",
            (2, 3, 28, 20),
            (
                stacks.Layer(stacks.DOWN, 6, negative_slope=0.0),
                stacks.Layer(stacks.DOWN, 36),
                stacks.Layer(stacks.DOWN, 10),
            ),
        ),
        stacks.make_case(
            "down_few_leaky",
            "a LeakyReLU in front of few channels, and its gate",
            (2, 3, 28, 20),
            (stacks.Layer(stacks.DOWN, 3), stacks.Layer(stacks.DOWN, 10)),
        ),
        stacks.make_case(
            "large_mean_wide",
            "statistics about a mean that is 1000 times the deviation, in two layers",
            (2, 4, 28, 20),
            (stacks.Layer(stacks.DOWN, 12, shift=1000.0), stacks.Layer(stacks.DOWN, 9)),
        ),
        stacks.make_case(
            "up_wide",
            "F(3,2) with statistics: rests of one and two, more than a panel, few channels",
            (5, 5, 7, 8),
            (stacks.Layer(stacks.UP, 36), stacks.Layer(stacks.UP, 6), stacks.TANH),
        ),
        stacks.make_case(
            "up_small_sides",
            "F(2,2) with statistics: more than 256 pixels of a side of five",
            (11, 5, 5, 5),
            (stacks.Layer(stacks.UP, 36), stacks.TANH),
        ),
    ),
}
