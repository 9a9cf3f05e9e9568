"""Convolution, then average pooling: the definition, and the cases it is checked on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg.reference.conv2d import IntOrPair, convolution, with_values
from genimg.reference.upsample_conv2d import call_in_pixels
from genimg.testing import Case, Tensors, integers, normal


def conv2d_avg_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: IntOrPair = 2,
    padding: IntOrPair | str = "same",
) -> Tensor:
    """``avg_pool2d(conv2d(x, weight, bias, padding=padding), kernel_size)``.

    Rows and columns that fill no window are left out.
    """
    return F.avg_pool2d(F.conv2d(x, weight, bias, 1, padding), kernel_size)


def _make(
    x: tuple[int, ...], weight: tuple[int, ...], draw: Callable[..., Tensor] = normal
) -> Callable[[torch.Generator], Tensors]:
    return convolution(x, weight, weight[0], draw)


def _call(**options: Any) -> Callable[[Callable[..., Any], Tensors], Tensor]:
    def run(op: Callable[..., Any], t: Tensors) -> Tensor:
        return op(t["x"], t["weight"], t["bias"], **options)

    return run


_ALL = ("x", "weight", "bias")

CASES = (
    Case(
        "one_window",
        "the whole image is one window",
        _make((2, 3, 2, 2), (4, 3, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "k3_integers",
        "quarters of integers are exact: equal to float64 to the bit",
        _make((2, 16, 8, 8), (8, 16, 3, 3), partial(integers, limit=2)),
        _call(),
        _ALL,
        exact=True,
    ),
    Case(
        "k3_primes",
        "odd sizes: a last row and column that fill no window",
        _make((3, 5, 13, 11), (7, 5, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "channels_last",
        "NHWC memory in and out",
        _make((2, 16, 6, 8), (24, 16, 3, 3)),
        _call(),
        _ALL,
        layout="channels_last",
    ),
    Case(
        "k1",
        "a shortcut's 1x1 convolution: the pooling alone widens the kernel",
        _make((2, 6, 8, 6), (9, 6, 1, 1)),
        _call(),
        _ALL,
    ),
    Case(
        "k5",
        "a kernel of 6",
        _make((2, 6, 10, 8), (9, 6, 5, 5)),
        _call(),
        _ALL,
    ),
    Case(
        "three_by_three",
        "windows of 3, and a ninth that no float has",
        _make((2, 6, 9, 12), (9, 6, 3, 3)),
        _call(kernel_size=3),
        _ALL,
    ),
    Case(
        "anisotropic",
        "kernel, window and padding differ by axis",
        _make((2, 4, 9, 12), (6, 4, 3, 5)),
        _call(kernel_size=(2, 3), padding=(1, 0)),
        _ALL,
    ),
    Case(
        "unpadded",
        "without padding",
        _make((2, 4, 9, 8), (6, 4, 3, 3)),
        _call(padding=0),
        _ALL,
    ),
    Case(
        "few_channels",
        "the first layer of a discriminator",
        _make((2, 3, 12, 12), (20, 3, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "nan",
        "a NaN reaches the windows that its pixel reaches",
        with_values(_make((2, 5, 8, 8), (7, 5, 3, 3)), (0, 1, 2, 3, float("nan"))),
        _call(),
        _ALL,
    ),
    Case(
        "even_kernel",
        "padded on all sides: one output less before the pooling",
        _make((2, 6, 9, 9), (9, 6, 4, 4)),
        _call(padding=1),
        _ALL,
    ),
    Case(
        "nine_by_nine",
        "windows above the largest fold: PyTorch's two ops run",
        _make((2, 6, 9, 18), (9, 6, 3, 3)),
        _call(kernel_size=9),
        _ALL,
    ),
    Case(
        "padding_above_the_kernel",
        "windows that lie in the padding alone",
        _make((2, 4, 5, 6), (6, 4, 2, 2)),
        _call(padding=3),
        _ALL,
    ),
    Case(
        "sliced",
        "NaN between the channels",
        _make((2, 4, 6, 8), (6, 4, 3, 3)),
        _call(),
        _ALL,
        layout="sliced",
    ),
    Case(
        "weight_channels_last",
        "whose format the output takes",
        _make((2, 4, 6, 8), (6, 4, 3, 3)),
        call_in_pixels,
        _ALL,
    ),
    Case(
        "empty_batch",
        "no image",
        _make((0, 4, 6, 8), (6, 4, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "no_bias",
        "without a bias, one image for the whole batch",
        _make((3, 5, 8, 8), (7, 5, 3, 3)),
        lambda op, t: op(t["x"], t["weight"]),
        ("x", "weight"),
        layout="expanded",
    ),
    Case(
        "discriminator_layer",
        "128 -> 128 at 32x32, to 16x16",
        _make((32, 128, 32, 32), (128, 128, 3, 3)),
        _call(),
        _ALL,
        speed=True,
    ),
)
