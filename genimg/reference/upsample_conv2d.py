"""Nearest upsampling, then a convolution: the definition, and the cases it is checked on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg.reference.conv2d import IntOrPair, convolution, with_values
from genimg.testing import Case, Tensors, integers, normal

Factors = float | tuple[float, ...]
"""One factor for both dimensions, or one for each."""


def upsample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale_factor: Factors = 2,
    size: IntOrPair | None = None,
    mode: str = "nearest",
    padding: IntOrPair | str = "same",
) -> Tensor:
    """``conv2d(u, weight, bias, padding=padding)``, ``u[n, c, i, j] = x[n, c, i // s, j // s]``.

    ``size`` is that of u, in place of the factors s.
    """
    unbatched = isinstance(x, Tensor) and x.dim() == 3
    factors: Any = None if size is not None else scale_factor
    up = F.interpolate(x[None] if unbatched else x, size, factors, mode)
    return F.conv2d(up[0] if unbatched else up, weight, bias, 1, padding)


def _make(
    x: tuple[int, ...], weight: tuple[int, ...], draw: Callable[..., Tensor] = normal
) -> Callable[[torch.Generator], Tensors]:
    return convolution(x, weight, weight[0], draw)


def _call(**options: Any) -> Callable[[Callable[..., Any], Tensors], Tensor]:
    def run(op: Callable[..., Any], t: Tensors) -> Tensor:
        return op(t["x"], t["weight"], t["bias"], **options)

    return run


def call_in_pixels(op: Callable[..., Any], t: Tensors) -> Tensor:
    """Calls a folded op with its weight in channels_last memory."""
    weight = t["weight"].contiguous(memory_format=torch.channels_last)
    return op(t["x"], weight, t["bias"])


_ALL = ("x", "weight", "bias")

CASES = (
    Case(
        "one_pixel",
        "every output is a sum of taps of one pixel",
        _make((2, 3, 1, 1), (4, 3, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "k3_integers",
        "every folded weight and partial sum is exact: equal to float64 to the bit",
        _make((2, 16, 6, 6), (8, 16, 3, 3), partial(integers, limit=2)),
        _call(),
        _ALL,
        exact=True,
    ),
    Case(
        "k3_primes",
        "channels and sizes that divide nothing",
        _make((3, 5, 7, 11), (7, 5, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "channels_last",
        "NHWC memory in and out",
        _make((2, 16, 6, 5), (24, 16, 3, 3)),
        _call(),
        _ALL,
        layout="channels_last",
    ),
    Case(
        "k5",
        "a transposed kernel of 6, phases of three taps",
        _make((2, 6, 5, 6), (9, 6, 5, 5)),
        _call(),
        _ALL,
    ),
    Case(
        "even_kernel",
        "padded on all sides: one output less",
        _make((2, 6, 5, 6), (9, 6, 4, 4)),
        _call(padding=1),
        _ALL,
    ),
    Case(
        "three_times",
        "stride 3: phases of two taps and of one",
        _make((2, 6, 5, 4), (9, 6, 3, 3)),
        _call(scale_factor=3.0, mode="nearest-exact"),
        _ALL,
    ),
    Case(
        "anisotropic",
        "kernel, factor and padding differ by axis",
        _make((2, 4, 5, 6), (6, 4, 3, 5)),
        _call(scale_factor=(2, 3), padding=(1, 0)),
        _ALL,
    ),
    Case(
        "unpadded",
        "outputs smaller than the upsampled image",
        _make((2, 4, 5, 6), (6, 4, 3, 3)),
        _call(padding=0),
        _ALL,
    ),
    Case(
        "to_a_size",
        "height and width given instead of factors",
        _make((2, 4, 5, 6), (6, 4, 3, 3)),
        _call(size=(10, 18)),
        _ALL,
    ),
    Case(
        "not_whole",
        "no box has a factor of 1.5: PyTorch's two ops run",
        _make((2, 4, 6, 4), (6, 4, 3, 3)),
        _call(scale_factor=1.5),
        _ALL,
    ),
    Case(
        "padding_above_the_kernel",
        "no transposed convolution has such outputs: PyTorch's two ops run",
        _make((2, 4, 5, 6), (6, 4, 2, 2)),
        _call(padding=3),
        _ALL,
    ),
    Case(
        "few_channels",
        "the last layer of a generator",
        _make((2, 20, 6, 6), (3, 20, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "nan",
        "a NaN reaches the outputs that its pixel's copies reach",
        with_values(_make((2, 5, 6, 6), (7, 5, 3, 3)), (0, 1, 2, 3, float("nan"))),
        _call(),
        _ALL,
    ),
    Case(
        "sliced",
        "NaN between the channels",
        _make((2, 4, 5, 6), (6, 4, 3, 3)),
        _call(),
        _ALL,
        layout="sliced",
    ),
    Case(
        "weight_channels_last",
        "whose format the output takes",
        _make((2, 4, 5, 6), (6, 4, 3, 3)),
        call_in_pixels,
        _ALL,
    ),
    Case(
        "empty_batch",
        "no image",
        _make((0, 4, 5, 6), (6, 4, 3, 3)),
        _call(),
        _ALL,
    ),
    Case(
        "no_bias",
        "without a bias, one image for the whole batch",
        _make((3, 5, 6, 6), (7, 5, 3, 3)),
        lambda op, t: op(t["x"], t["weight"]),
        ("x", "weight"),
        layout="expanded",
    ),
    Case(
        "generator_layer",
        "128 -> 64 at 16x16, to 32x32",
        _make((32, 128, 16, 16), (64, 128, 3, 3)),
        _call(),
        _ALL,
        speed=True,
    ),
    Case(
        "decoder_layer",
        "256 -> 128 at 16x16, to 32x32, in NHWC memory",
        _make((16, 256, 16, 16), (128, 256, 3, 3)),
        _call(),
        _ALL,
        layout="channels_last",
        speed=True,
    ),
)
