"""How a kernel is judged: named cases, one tolerance rule, one comparison.

Tests, benchmarks and ``genimg check`` all come through here, so that they agree on what is right.
"""

from genimg.testing.cases import Case, Tensors, integers, normal, place, prepare, run, seeded
from genimg.testing.rule import (
    CONVOLUTION_ERROR_FACTOR,
    ERROR_FACTOR,
    Error,
    compare,
    dense_strides,
    judge,
)

__all__ = [
    "CONVOLUTION_ERROR_FACTOR",
    "ERROR_FACTOR",
    "Case",
    "Error",
    "Tensors",
    "compare",
    "dense_strides",
    "integers",
    "judge",
    "normal",
    "place",
    "prepare",
    "run",
    "seeded",
]
