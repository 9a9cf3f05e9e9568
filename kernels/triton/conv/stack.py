"""conv_stack in Triton: contractions that read through the last block's norm and activation.

Inner activations never exist in memory. A forward launches per block the contraction, whose
epilogue takes the statistics, and the merge of these. A backward launches per block the weight
gradient, the input gradient, whose epilogue goes through the activation and takes the norm's sums,
and the merge of these; the gradient goes through the norm where the next two read it. What is kept:
``genimg/ops/conv_stack.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.kernels.triton import moments
from genimg.kernels.triton.aot import Compile, signature_of
from genimg.kernels.triton.conv.convolution import Convolution
from genimg.kernels.triton.conv.epilogue import (
    LEAKY,
    NONE,
    RELU,
    SIGMOID,
    SUMS,
    TANH,
    Epilogue,
    activate,
    gate,
    write_tile,
)
from genimg.kernels.triton.conv.geometry import to_channels_last
from genimg.kernels.triton.conv.prologue import (
    AFFINE_LEAKY,
    TWO_TENSOR,
    FusedInput,
    affine,
    read_tile,
)
from genimg.kernels.triton.launch import launch
from genimg.kernels.triton.runtime import on_device_of

BLOCK = 4096  # values of a tile
BLOCK_CHANNELS = 64  # of them in a row at most
NUM_WARPS = 8


@triton.jit
def _conv_stack_fwd_kernel(
    raw_ptr,
    coef_ptr,
    y_ptr,
    pixels,
    channels,
    slope,
    PROLOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The last block's output behind its norm: nothing reads it through a prologue."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = m.to(tl.int64)[:, None] * channels + n[None, :]
    inside = (m < pixels)[:, None] & (n < channels)[None, :]
    z = read_tile(raw_ptr, raw_ptr, coef_ptr, offsets, inside, n, channels, slope, PROLOGUE)
    y = activate(z.to(tl.float32), slope, ACTIVATION)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _conv_stack_bwd_kernel(
    grad_ptr,
    y_ptr,  # the output, for tanh and sigmoid
    dz_ptr,
    gate_ptr,
    coef_ptr,
    partial_ptr,
    pixels,
    channels,
    rows,
    slope,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradient through the last block's activation, with the sums that its norm needs."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = m.to(tl.int64)[:, None] * channels + n[None, :]
    inside = (m < pixels)[:, None] & (n < channels)[None, :]
    tile = tl.load(grad_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION != "none":
        y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        tile *= 1.0 - y * y if ACTIVATION == "tanh" else y * (1.0 - y)
    write_tile(
        tile,
        dz_ptr,
        None,
        gate_ptr,
        coef_ptr,
        partial_ptr,
        offsets,
        m < pixels,
        n,
        channels,
        n,
        channels,
        tl.program_id(0),
        rows,
        slope,
        "none",
        False,
        GATE,
    )


def _tile(channels: int) -> dict[str, int]:
    columns = min(BLOCK_CHANNELS, triton.next_power_of_2(channels))
    return {"BLOCK_M": BLOCK // columns, "BLOCK_N": columns}


class Block(NamedTuple):
    """One block: its convolution, parameters, norm (0 none, 1 batch, 2 running), activation."""

    convolution: Convolution
    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    norm: int
    activation: str
    eps: float
    negative_slope: float

    @property
    def slope(self) -> float:
        """Below zero, of what stands behind the norm; without an activation, 1."""
        return self.negative_slope if self.activation == LEAKY else 1.0

    @property
    def direct(self) -> str:
        """The activation, where it follows on the convolution."""
        relu = self.activation == LEAKY and self.negative_slope == 0
        return NONE if self.norm else RELU if relu else self.activation

    @property
    def curve(self) -> str:
        """The activation, where it is none that a slope says."""
        return self.activation if self.activation in (TANH, SIGMOID) else NONE

    def takes_statistics(self, training: bool) -> bool:
        """Whether the norm is by the batch's own statistics."""
        return self.norm == 1 and training


_ACTIVATIONS = (NONE, LEAKY, TANH, SIGMOID)


def _read_blocks(
    parameters: Sequence[Tensor | None], options: Sequence[int], numbers: Sequence[float]
) -> list[Block]:
    """Six parameters, nine options and two numbers a block, as the C++ op takes them."""
    blocks = []
    for b in range(len(numbers) // 2):
        up, s_h, s_w, p_h, p_w, o_h, o_w, norm, activation = options[9 * b : 9 * (b + 1)]
        weight, *others = parameters[6 * b : 6 * (b + 1)]
        assert weight is not None
        convolution = Convolution(bool(up), (s_h, s_w), (p_h, p_w), (o_h, o_w))
        blocks.append(
            Block(
                convolution, weight, *others, norm, _ACTIVATIONS[activation], *numbers[2 * b :][:2]
            )
        )
    return blocks


def _count(image: Tensor) -> int:
    """Values of a channel."""
    return image.shape[0] * image.shape[2] * image.shape[3]


def _forward(block: Block, image: FusedInput, training: bool) -> tuple[Tensor, moments.Norm | None]:
    """The raw output, with its activation where no norm stands between, and the norm."""
    measures = block.takes_statistics(training)
    epilogue = Epilogue(
        bias=block.bias,
        activation=block.direct,
        slope=block.negative_slope,
        statistics=measures,
    )
    y, partial = block.convolution.forward(image, block.weight, epilogue)
    parameters = (block.gamma, block.beta, block.eps)
    if measures:
        return y, moments.statistics(partial, y.shape[1], _count(y), *parameters)
    if block.norm:
        return y, moments.running(block.running_mean, block.running_var, *parameters)
    return y, None


def _activated(block: Block, raw: Tensor, norm: moments.Norm) -> Tensor:
    y = torch.empty_like(raw)
    tile = _tile(y.shape[1])
    grid = (triton.cdiv(_count(y), tile["BLOCK_M"]), triton.cdiv(y.shape[1], tile["BLOCK_N"]))
    with on_device_of(y):
        launch(_conv_stack_fwd_kernel, grid)(
            raw,
            norm.coef,
            y,
            _count(y),
            y.shape[1],
            block.slope,
            PROLOGUE=affine(block.slope),
            ACTIVATION=block.curve,
            num_warps=NUM_WARPS,
            **tile,
        )
    return y


def conv_stack_fwd(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    options: Sequence[int],
    numbers: Sequence[float],
    training: bool,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The output in channels_last memory; then raw outputs, means, rstds and variances by block.

    The latter are empty where a block has none; raw outputs also unless ``keep``, with which the
    norms' coefficients follow, so that no backward computes them again.
    """
    blocks = _read_blocks(parameters, options, numbers)
    # Each its own: torch.compile takes what is kept for outputs, which must differ.
    raws, means, rstds, variances, coefs = ([x.new_empty(0) for _ in blocks] for _ in range(5))
    image = FusedInput(to_channels_last(x))
    y = x
    for b, block in enumerate(blocks):
        last = b + 1 == len(blocks)
        y, norm = _forward(block, image, training)
        if keep and (norm is not None or not last):
            raws[b] = y
        image = FusedInput(y)
        if norm is not None:
            means[b], rstds[b], coefs[b] = norm.mean, norm.rstd, norm.coef
            if norm.var is not None:
                variances[b] = norm.var
            if last:
                y = _activated(block, y, norm)
            else:
                image = FusedInput(y, affine(block.slope), norm.coef, slope=block.slope)
    return y, [*raws, *means, *rstds, *variances, *(coefs if keep else ())]


class _Backward:
    """The gradient that wanders down, and what it leaves behind by block."""

    def __init__(
        self, blocks: list[Block], x: Tensor, kept: Sequence[Tensor], training: bool
    ) -> None:
        count = len(blocks)
        self.blocks = blocks
        self.x = to_channels_last(x)
        self.raws, _, self.rstds, _, self.coefs = (
            kept[i * count : (i + 1) * count] for i in range(5)
        )
        self.training = training
        self.grads: list[list[Tensor]] = [[x.new_empty(0)] * 4 for _ in blocks]
        self.grad = FusedInput(self.x)

    def coef(self, b: int) -> Tensor | None:
        """The coefficients of block ``b``'s norm, as its forward had them."""
        return self.coefs[b] if self.blocks[b].norm else None

    def image(self, b: int) -> FusedInput:
        """What block ``b`` read."""
        if b == 0:
            return FusedInput(self.x)
        before, raw = self.blocks[b - 1], self.raws[b - 1]
        if not before.norm:
            return FusedInput(raw)
        return FusedInput(raw, affine(before.slope), self.coef(b - 1), slope=before.slope)

    def begin(self, grad_y: Tensor, y: Tensor | None) -> None:
        """Through the last activation."""
        b = len(self.blocks) - 1
        block = self.blocks[b]
        grad_y = to_channels_last(grad_y)
        y = grad_y if y is None else to_channels_last(y)
        dz = torch.empty_like(grad_y)
        channels = dz.shape[1]
        tile = _tile(channels)
        rows = triton.cdiv(_count(dz), tile["BLOCK_M"])
        partial = torch.empty(SUMS, rows, channels, dtype=torch.float32, device=dz.device)
        with on_device_of(dz):
            launch(_conv_stack_bwd_kernel, (rows, triton.cdiv(channels, tile["BLOCK_N"])))(
                grad_y,
                y,
                dz,
                self.raws[b] if block.norm else y,
                self.coef(b),
                partial,
                _count(dz),
                channels,
                rows,
                block.slope,
                ACTIVATION=block.curve,
                GATE=gate(bool(block.norm), block.slope),
                num_warps=NUM_WARPS,
                **tile,
            )
        self.arrive(b, dz, partial)

    def descend(self, b: int) -> None:
        """From block ``b``'s convolution to that of the block before it."""
        before, raw = self.blocks[b - 1], self.raws[b - 1]
        epilogue = Epilogue(
            slope=before.slope,
            gate=gate(bool(before.norm), before.slope),
            gate_y=raw,
            gate_coef=self.coef(b - 1),
        )
        block = self.blocks[b]
        dz, partial = block.convolution.input_gradient(self.grad, raw.shape, block.weight, epilogue)
        self.arrive(b - 1, dz, partial)

    def arrive(self, b: int, dz: Tensor, partial: Tensor | None) -> None:
        """At block ``b``'s norm, with the gradient behind it and the sums of its tiles."""
        assert partial is not None
        block = self.blocks[b]
        coef = self.coef(b)
        if coef is None:
            self.grads[b][1] = moments.bias_grad(partial, dz.shape[1])
            self.grad = FusedInput(dz)
            return
        batch = block.takes_statistics(self.training)
        found = moments.norm_grads(partial, coef, self.rstds[b], _count(dz), batch)
        self.grads[b][1:] = found.bias, found.gamma, found.beta
        if batch:
            self.grad = FusedInput(dz, TWO_TENSOR, found.coef, self.raws[b])
        else:
            self.grad = FusedInput(dz, AFFINE_LEAKY, found.coef)


_NEEDS_WEIGHT = 1  # in `needs`, beside a block's other parameters


def conv_stack_bwd(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    parameters: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    options: Sequence[int],
    numbers: Sequence[float],
    training: bool,
    needs_x: bool,
    needs: Sequence[int],
    formats: Sequence[torch.memory_format],
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of ``x`` in channels_last memory, and by block of weight, bias, gamma, beta.

    Empty where not asked for; the weights' are in ``formats``, the others float32.
    """
    blocks = _read_blocks(parameters, options, numbers)
    backward = _Backward(blocks, x, kept, training)
    lowest = 0 if needs_x else next((b for b, need in enumerate(needs) if need), len(blocks))
    grad_x = x.new_empty(0)
    if lowest < len(blocks):
        backward.begin(grad_y, y)
    for b in reversed(range(lowest, len(blocks))):
        block = blocks[b]
        if needs[b] & _NEEDS_WEIGHT:
            backward.grads[b][0] = block.convolution.weight_gradient(
                backward.grad, backward.image(b), block.weight, formats[b]
            )
        if b > lowest:
            backward.descend(b)
        elif needs_x:
            grad_x, _ = block.convolution.input_gradient(
                backward.grad, x.shape, block.weight, Epilogue()
            )
    return grad_x, [grad for grads in backward.grads for grad in grads]


def compiles() -> Iterator[Compile]:
    """As shipped, behind a norm."""
    for kernel, constants in (
        (_conv_stack_fwd_kernel, {"ACTIVATION": "none", "PROLOGUE": "affine_leaky"}),
        (_conv_stack_fwd_kernel, {"ACTIVATION": "tanh", "PROLOGUE": "affine_leaky"}),
        (_conv_stack_bwd_kernel, {"ACTIVATION": "tanh", "GATE": "affine"}),
    ):
        constexprs = {**constants, **_tile(BLOCK_CHANNELS)}
        pointers = {
            name: "*fp32" if name in ("coef_ptr", "partial_ptr") else "*T"
            for name in kernel.arg_names
            if name.endswith("_ptr")
        }
        yield Compile(
            kernel,
            f"{kernel.fn.__name__.strip('_').removesuffix('_kernel')} {constants['ACTIVATION']}",
            signature_of(kernel, {**pointers, "slope": "fp32"}, constexprs),
            constexprs,
            {"num_warps": NUM_WARPS},
            (*pointers, "channels"),
        )
