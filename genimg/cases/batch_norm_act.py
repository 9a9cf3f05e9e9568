"""Cases of batch_norm_act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genimg.testing import Case, Tensors, normal


def _tensors(x: Tensor, generator: torch.Generator) -> Tensors:
    channels = x.shape[1]
    return {
        "x": x,
        "running_mean": normal(generator, channels),
        "running_var": normal(generator, channels).abs() + 0.5,
        "weight": normal(generator, channels),  # of both signs
        "bias": normal(generator, channels),
    }


def make(*shape: int, mean: float = 0.5, std: float = 2.0) -> Callable[[torch.Generator], Tensors]:
    return lambda g: _tensors(normal(g, *shape, mean=mean, std=std), g)


def _constant_channel(generator: torch.Generator) -> Tensors:
    tensors = make(4, 3, 5, 5)(generator)
    tensors["x"][:, 1] = 7.0
    return tensors


def _not_finite(generator: torch.Generator) -> Tensors:
    tensors = make(4, 5, 5, 6)(generator)
    tensors["x"][1, 1, 2, 3] = float("nan")
    tensors["x"][2, 2, 4, 0] = float("inf")
    tensors["x"][0, 3, 0, 0] = float("-inf")
    tensors["x"][3, 3, 4, 5] = float("inf")
    return tensors


def _plus_or_minus_one(generator: torch.Generator) -> Tensors:
    """``z`` is 0.5 or more away from 0 in every channel, in training and with the statistics."""
    tensors = make(4, 6, 4, 6)(generator)
    x = torch.ones(4 * 4 * 6, 6, dtype=torch.float64)
    for c in range(6):
        x[torch.randperm(len(x), generator=generator)[: len(x) // 2], c] = -1
    tensors["x"] = x.view(4, 4, 6, 6).permute(0, 3, 1, 2)
    tensors |= {"weight": tensors["weight"].sign(), "bias": torch.full_like(tensors["bias"], 0.25)}
    return tensors | {"running_mean": tensors["bias"], "running_var": 4 * tensors["bias"]}


def _relu_not_finite(generator: torch.Generator) -> Tensors:
    tensors = _plus_or_minus_one(generator)
    for at, value in (((0, 0, 0, 0), "nan"), ((1, 1, 2, 3), "inf"), ((2, 2, 3, 5), "-inf")):
        tensors["x"][at] = float(value)
    return tensors


def _root(**options: Any) -> Callable[[Callable[..., Any], Tensors], Tensor]:
    """ReLU and a root behind it, whose gradient at 0 is infinite."""
    norm = call(negative_slope=0.0, **options)
    return lambda op, t: norm(op, t).sqrt()


def call(training: bool = True, **options: Any) -> Callable[[Callable[..., Any], Tensors], Tensor]:
    def call(op: Callable[..., Any], t: Tensors) -> Tensor:
        return op(
            t["x"],
            t["running_mean"],
            t["running_var"],
            t["weight"],
            t["bias"],
            training,
            **options,
        )

    return call


ALL = ("x", "weight", "bias")


_STATE = ("running_mean", "running_var")


_KEEP = ("running_mean", "running_var", "weight", "bias")


def make_case(name: str, why: str, *args: Any, **options: Any) -> Case:
    return Case(name, why, *args, **{"grad": ALL, "state": _STATE, "keep": _KEEP, **options})


CASES = (
    make_case(
        "two_values",
        "two values a channel, the fewest that training allows",
        make(2, 3, 1, 1),
        call(),
    ),
    make_case("primes", "no size divides anything", make(3, 7, 5, 11), call(negative_slope=0.2)),
    make_case("rank_2", "after a dense layer: [N, C]", make(13, 10), call(negative_slope=0.3)),
    make_case(
        "channels_last",
        "the output keeps the memory format",
        make(4, 6, 5, 7),
        call(negative_slope=0.2, momentum=0.01, eps=1e-3),
        layout="channels_last",
    ),
    make_case("sliced", "NaN between the channels", make(4, 6, 5, 7), call(), layout="sliced"),
    make_case(
        "large_mean",
        "mean 1000 with std 0.01: E[x^2] - E[x]^2 is noise",
        make(8, 3, 8, 8, mean=1e3, std=1e-2),
        call(),
    ),
    make_case("constant_channel", "variance 0, eps alone in the root", _constant_channel, call()),
    make_case("not_finite", "NaN and Inf stay in their channels", _not_finite, call()),
    make_case(
        "float16_range",
        "6e4, near the largest float16",
        make(4, 3, 4, 4, mean=6e4, std=1e3),
        call(),
    ),
    make_case("relu", "slope 0", make(4, 3, 5, 5), call(negative_slope=0.0)),
    make_case("relu_masks", "0 times an infinite gradient is 0", _plus_or_minus_one, _root()),
    make_case(
        "relu_masks_channels_last",
        "the same by pixels",
        _plus_or_minus_one,
        _root(),
        layout="channels_last",
    ),
    make_case(
        "relu_not_finite",
        "-Inf becomes 0; by running statistics each value stays alone",
        _relu_not_finite,
        _root(training=False),
    ),
    make_case(
        "leaky_not_finite",
        "the same, times a slope",
        _relu_not_finite,
        call(False, negative_slope=0.2),
        layout="channels_last",
    ),
    make_case("plain", "slope 1: batch norm alone", make(4, 3, 5, 5), call(negative_slope=1.0)),
    make_case("eval", "running statistics, left as they are", make(4, 3, 5, 5), call(False)),
    make_case(
        "no_affine_no_statistics",
        "every optional tensor left out",
        make(4, 3, 5, 5),
        lambda op, t: op(t["x"], None, None, training=True),
        grad=("x",),
    ),
    make_case("empty_batch", "no image", make(0, 3, 4, 4), call(False)),
    make_case(
        "generator_layer",
        "64x64x32x32: larger than the caches",
        make(64, 64, 32, 32),
        call(negative_slope=0.2),
        speed=True,
    ),
    make_case(
        "decoder_layer",
        "64x128x16x16, channels_last",
        make(64, 128, 16, 16),
        call(negative_slope=0.3),
        layout="channels_last",
        speed=True,
    ),
)
