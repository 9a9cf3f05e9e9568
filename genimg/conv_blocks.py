"""The blocks of a convolution stack as its kernels read them, field by field.

``csrc/conv_block.h`` has the same enumerations and fields in C++. The C++ op takes the blocks as
lists of tensors, integers and numbers, which :meth:`PackedBlocks.pack` makes and ``read_blocks`` in
``csrc/conv_block.cpp`` parses; the Triton kernels read :class:`PackedBlocks` itself.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

Pair = tuple[int, int]


class _Coded(enum.Enum):
    """An enumeration whose members have the integers that stand for them in C++."""

    code: int

    def __init__(self, value: str) -> None:
        self.code = len(type(self).__members__)  # its place


class Direction(_Coded):
    """The convolution that a block begins with."""

    DOWN = "conv2d"
    UP = "conv_transpose2d"


class NormMode(_Coded):
    """The statistics that a block's batch norm uses; NONE if the block has no norm."""

    NONE = "none"
    BATCH = "batch"
    RUNNING = "running"


class Activation(_Coded):
    """The activation that ends a block; the slope of LEAKY_RELU is its ``negative_slope``."""

    NONE = "none"
    LEAKY_RELU = "leaky_relu"
    TANH = "tanh"
    SIGMOID = "sigmoid"


_DIRECTIONS, _NORM_MODES, _ACTIVATIONS = tuple(Direction), tuple(NormMode), tuple(Activation)

NEEDS_WEIGHT, NEEDS_OTHERS = 1, 2
"""Bits of a block's entry of ``needs``: the gradients of its weight, and of other parameters."""


class BlockParameters(NamedTuple):
    """The tensors of a block."""

    weight: Tensor  # [out, in, kernel_h, kernel_w], of an up block [in, out, kernel_h, kernel_w]
    bias: Tensor | None  # [out]
    gamma: Tensor | None  # [out]
    beta: Tensor | None  # [out]
    running_mean: Tensor | None = None  # [out]
    running_var: Tensor | None = None  # [out]


class BlockOptions(NamedTuple):
    """The options of a block: integers, and two numbers."""

    direction: Direction
    stride: Pair
    padding: Pair
    output_padding: Pair
    norm: NormMode
    activation: Activation
    eps: float
    negative_slope: float


class PackedBlocks(NamedTuple):
    """Parameters and options of every block."""

    parameters: tuple[BlockParameters, ...]
    options: tuple[BlockOptions, ...]

    def tensors(self) -> list[Tensor | None]:
        """The parameters of all blocks in one list, which :func:`per_block` takes apart."""
        return [*chain.from_iterable(self.parameters)]

    def pack(self) -> tuple[list[Tensor | None], list[int], list[float]]:
        """Parameters, integers and numbers, as the C++ op takes them."""
        integers: list[int] = []
        numbers: list[float] = []
        for block in self.options:
            integers.append(block.direction.code)
            integers += (*block.stride, *block.padding, *block.output_padding)
            integers += (block.norm.code, block.activation.code)
            numbers += (block.eps, block.negative_slope)
        return self.tensors(), integers, numbers

    @classmethod
    def unpack(
        cls,
        parameters: Sequence[Tensor | None],
        integers: Sequence[int],
        numbers: Sequence[float],
    ) -> PackedBlocks:
        """The blocks that :meth:`pack` has packed."""
        integer, number = iter(integers), iter(numbers)
        tensors = per_block(BlockParameters, parameters)
        options = tuple(
            BlockOptions(
                direction=_DIRECTIONS[next(integer)],
                stride=(next(integer), next(integer)),
                padding=(next(integer), next(integer)),
                output_padding=(next(integer), next(integer)),
                norm=_NORM_MODES[next(integer)],
                activation=_ACTIVATIONS[next(integer)],
                eps=next(number),
                negative_slope=next(number),
            )
            for _ in tensors
        )
        return cls(tensors, options)


class Kept(NamedTuple):
    """Results of a forward that its backward needs, by block; empty where a block has none.

    Once saved for a backward, ``variances`` are None but for the norms of running statistics.
    """

    raws: Sequence[Tensor]  # [N, C, H, W]: what the next block reads, before the norm if any
    means: Sequence[Tensor]  # float32 [C], of a norm
    rstds: Sequence[Tensor]  # float32 [C]
    variances: Sequence[Tensor | None]  # float32 [C]: the batch's, unbiased, or the running ones
    coefs: Sequence[Tensor] = ()  # float32 [4, C], of Triton: kernels/triton/conv/prologue.py


class StackGrads(NamedTuple):
    """The results of a backward: the input's gradient, and by block those of its parameters.

    A tensor is empty if it is not needed or the block has no such parameter. All but ``x`` and
    ``weights`` are float32.
    """

    x: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    gammas: Sequence[Tensor]
    betas: Sequence[Tensor]


Block = TypeVar("Block", bound=tuple[Any, ...])


def per_block(kind: type[Block], values: Iterable[Any]) -> tuple[Block, ...]:
    """Successive values as tuples ``kind``, a NamedTuple, of as many as it has fields."""
    fields = len(kind._fields)  # type: ignore[attr-defined]
    values = tuple(values)
    return tuple(kind(*values[i : i + fields]) for i in range(0, len(values), fields))
