"""conv_stack in Triton: contractions that read through the last block's norm and activation.

Inner activations never exist in memory. A forward launches per block the contraction, whose
epilogue takes the statistics, and the merge of these. A backward launches per block the weight
gradient, the input gradient, whose epilogue applies the activation's derivative and takes the
norm's sums, and the merge of these; the next two contractions take the gradient through the norm as
they read it. ``genimg/conv_blocks.py`` has the arguments and results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genimg.conv_blocks import (
    NEEDS_WEIGHT,
    Activation,
    Direction,
    Kept,
    NormMode,
    PackedBlocks,
    StackGrads,
)
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
BLOCK_CHANNELS = 64  # at most, of a tile
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
    """The last block's norm and activation, which no contraction applies as it reads."""
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
    """One block: its convolution, parameters and options."""

    convolution: Convolution
    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    norm: NormMode
    activation: str  # of epilogue.py
    eps: float
    negative_slope: float

    @property
    def slope(self) -> float:
        """The slope below zero of the activation behind the norm; 1 unless that is a LeakyReLU."""
        return self.negative_slope if self.activation == LEAKY else 1.0

    @property
    def has_norm(self) -> bool:
        return self.norm is not NormMode.NONE

    @property
    def direct(self) -> str:
        """The activation, if it follows the convolution directly."""
        relu = self.activation == LEAKY and self.negative_slope == 0
        return NONE if self.has_norm else RELU if relu else self.activation

    @property
    def curve(self) -> str:
        """The activation, if no slope describes it."""
        return self.activation if self.activation in (TANH, SIGMOID) else NONE

    def takes_statistics(self, training: bool) -> bool:
        """Whether the norm uses the batch's own statistics."""
        return self.norm is NormMode.BATCH and training


ACTIVATIONS = {
    Activation.NONE: NONE,
    Activation.LEAKY_RELU: LEAKY,
    Activation.TANH: TANH,
    Activation.SIGMOID: SIGMOID,
}


def _read_blocks(packed: PackedBlocks) -> list[Block]:
    return [
        Block(
            Convolution(
                options.direction is Direction.UP,
                options.stride,
                options.padding,
                options.output_padding,
            ),
            *parameters,
            norm=options.norm,
            activation=ACTIVATIONS[options.activation],
            eps=options.eps,
            negative_slope=options.negative_slope,
        )
        for parameters, options in zip(packed.parameters, packed.options, strict=True)
    ]


def _count(image: Tensor) -> int:
    """The number of values per channel."""
    return image.shape[0] * image.shape[2] * image.shape[3]


def _forward(block: Block, image: FusedInput, training: bool) -> tuple[Tensor, moments.Norm | None]:
    """The raw output, with its activation unless a norm precedes that, and the norm."""
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
        assert partial is not None
        return y, moments.statistics(partial, y.shape[1], _count(y), *parameters)
    if block.has_norm:
        assert block.running_mean is not None
        assert block.running_var is not None
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
    x: Tensor, packed: PackedBlocks, training: bool, keep: bool
) -> tuple[Tensor, Kept]:
    """The output in channels_last memory, and what is kept for a backward.

    Without ``keep`` the raw outputs are empty, and there are no coefficients.
    """
    blocks = _read_blocks(packed)
    # Each has its own empty tensor: torch.compile makes outputs of them, which must differ.
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
            means[b], rstds[b], variances[b] = norm.mean, norm.rstd, norm.var
            coefs[b] = norm.coef
            if last:
                y = _activated(block, y, norm)
            else:
                image = FusedInput(y, affine(block.slope), norm.coef, slope=block.slope)
    return y, Kept(raws, means, rstds, variances, coefs if keep else ())


class _Backward:
    """The pass of a gradient from the last block to the lowest one that needs any.

    ``incoming`` is the gradient of the output of the current block's convolution.
    """

    def __init__(self, blocks: list[Block], x: Tensor, kept: Kept, training: bool) -> None:
        self.blocks = blocks
        self.x = to_channels_last(x)
        self.kept = kept
        self.training = training
        self.weights, self.biases, self.gammas, self.betas = (
            [x.new_empty(0)] * len(blocks) for _ in range(4)
        )
        self.incoming = FusedInput(self.x)

    def coef(self, b: int) -> Tensor | None:
        """The coefficients of block ``b``'s norm, as its forward had them."""
        return self.kept.coefs[b] if self.blocks[b].has_norm else None

    def image(self, b: int) -> FusedInput:
        """The image that block ``b`` read."""
        if b == 0:
            return FusedInput(self.x)
        before, raw = self.blocks[b - 1], self.kept.raws[b - 1]
        if not before.has_norm:
            return FusedInput(raw)
        return FusedInput(raw, affine(before.slope), self.coef(b - 1), slope=before.slope)

    def begin(self, grad_y: Tensor, y: Tensor | None) -> None:
        """Take the gradient through the last activation."""
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
                self.kept.raws[b] if block.has_norm else y,
                self.coef(b),
                partial,
                _count(dz),
                channels,
                rows,
                block.slope,
                ACTIVATION=block.curve,
                GATE=gate(block.has_norm, block.slope),
                num_warps=NUM_WARPS,
                **tile,
            )
        self.arrive(b, dz, partial)

    def descend(self, b: int) -> None:
        """Take the gradient from block ``b``'s convolution to that of the block before it."""
        before, raw = self.blocks[b - 1], self.kept.raws[b - 1]
        epilogue = Epilogue(
            slope=before.slope,
            gate=gate(before.has_norm, before.slope),
            gate_y=raw,
            gate_coef=self.coef(b - 1),
        )
        block = self.blocks[b]
        dz, partial = block.convolution.input_gradient(
            self.incoming, raw.shape, block.weight, epilogue
        )
        self.arrive(b - 1, dz, partial)

    def arrive(self, b: int, dz: Tensor, partial: Tensor | None) -> None:
        """Take ``dz``, the gradient behind block ``b``'s norm, and its sums through that norm."""
        assert partial is not None
        block = self.blocks[b]
        coef = self.coef(b)
        if coef is None:
            self.biases[b] = moments.bias_grad(partial, dz.shape[1])
            self.incoming = FusedInput(dz)
            return
        batch = block.takes_statistics(self.training)
        found = moments.norm_grads(partial, coef, self.kept.rstds[b], _count(dz), batch)
        self.biases[b], self.gammas[b], self.betas[b] = found.bias, found.gamma, found.beta
        if batch:
            self.incoming = FusedInput(dz, TWO_TENSOR, found.coef, self.kept.raws[b])
        else:
            self.incoming = FusedInput(dz, AFFINE_LEAKY, found.coef)


def conv_stack_bwd(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    packed: PackedBlocks,
    kept: Kept,
    training: bool,
    needs_x: bool,
    needs: Sequence[int],
    formats: Sequence[torch.memory_format],
) -> StackGrads:
    """The gradients, that of ``x`` in channels_last memory, those of the weights in ``formats``."""
    blocks = _read_blocks(packed)
    backward = _Backward(blocks, x, kept, training)
    lowest = 0 if needs_x else next((b for b, need in enumerate(needs) if need), len(blocks))
    grad_x = x.new_empty(0)
    if lowest < len(blocks):
        backward.begin(grad_y, y)
    for b in reversed(range(lowest, len(blocks))):
        block = blocks[b]
        if needs[b] & NEEDS_WEIGHT:
            backward.weights[b] = block.convolution.weight_gradient(
                backward.incoming, backward.image(b), block.weight, formats[b]
            )
        if b > lowest:
            backward.descend(b)
        elif needs_x:
            grad_x, _ = block.convolution.input_gradient(
                backward.incoming, x.shape, block.weight, Epilogue()
            )
    return StackGrads(grad_x, backward.weights, backward.biases, backward.gammas, backward.betas)


def compiles() -> Iterator[Compile]:
    """List what is shipped: the kernels behind a norm."""
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
