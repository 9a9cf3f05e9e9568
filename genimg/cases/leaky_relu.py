"""Cases of leaky_relu."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg.testing import Case, normal


def _edges(generator: torch.Generator) -> dict[str, Tensor]:
    inf, nan = float("inf"), float("nan")
    special = [0.0, -0.0, inf, -inf, nan, 1e-40, -1e-40, 6e4, -6e4, 1.0, -1.0]
    return {"x": torch.tensor(special * 7, dtype=torch.float64)}


CASES = (
    Case(
        "one_element",
        "the smallest vector loop is all remainder",
        lambda g: {"x": normal(g, 1)},
        lambda op, t: op(t["x"], 0.2),
    ),
    Case(
        "scalar",
        "a tensor of no dimension",
        lambda g: {"x": normal(g)},
        lambda op, t: op(t["x"], 0.2),
    ),
    Case(
        "primes",
        "no size is a multiple of a vector or a block",
        lambda g: {"x": normal(g, 3, 7, 11, 13)},
        lambda op, t: op(t["x"], 0.3),
    ),
    Case(
        "special_values",
        "0, -0, Inf, NaN and subnormals at every position of a vector",
        _edges,
        lambda op, t: op(t["x"], 0.2),
    ),
    Case(
        "slope_zero",
        "ReLU, at exactly 0 too",
        lambda g: {"x": normal(g, 2, 3, 5, 5).round()},
        lambda op, t: op(t["x"], 0.0),
    ),
    Case(
        "slope_one",
        "the identity, which must not alias its input",
        lambda g: {"x": normal(g, 37)},
        lambda op, t: op(t["x"], 1.0),
    ),
    Case(
        "slope_negative",
        "max(x, slope * x) would be wrong",
        lambda g: {"x": normal(g, 37)},
        lambda op, t: op(t["x"], -0.5),
    ),
    Case(
        "slope_above_one",
        "max(x, slope * x) would be wrong",
        lambda g: {"x": normal(g, 37)},
        lambda op, t: op(t["x"], 5.0),
    ),
    Case(
        "channels_last",
        "the output keeps the memory format",
        lambda g: {"x": normal(g, 2, 5, 4, 6)},
        lambda op, t: op(t["x"], 0.2),
        layout="channels_last",
    ),
    Case(
        "sliced",
        "every second channel, NaN between",
        lambda g: {"x": normal(g, 3, 4, 5, 7)},
        lambda op, t: op(t["x"], 0.2),
        layout="sliced",
    ),
    Case(
        "expanded",
        "stride 0 over the batch",
        lambda g: {"x": normal(g, 4, 3, 5)},
        lambda op, t: op(t["x"], 0.2),
        layout="expanded",
    ),
    Case(
        "offset",
        "not aligned to a vector",
        lambda g: {"x": normal(g, 131)},
        lambda op, t: op(t["x"], 0.2),
        layout="offset",
    ),
    Case(
        "empty_batch",
        "nothing to do",
        lambda g: {"x": normal(g, 0, 3, 4, 4)},
        lambda op, t: op(t["x"], 0.2),
    ),
    Case(
        "generator_layer",
        "64 images of 64x32x32: larger than the caches",
        lambda g: {"x": normal(g, 64, 64, 32, 32)},
        lambda op, t: op(t["x"], 0.2),
        speed=True,
    ),
    Case(
        "discriminator_layer",
        "64 images of 128x8x8: inside the caches",
        lambda g: {"x": normal(g, 64, 128, 8, 8)},
        lambda op, t: op(t["x"], 0.3),
        layout="channels_last",
        speed=True,
    ),
)
