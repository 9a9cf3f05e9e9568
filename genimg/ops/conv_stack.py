"""A run of convolution blocks as one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genimg import _native, priors, reference
from genimg.backends import CPU_DTYPES, GPU_DTYPES, REFERENCE, Impl, Op, choose
from genimg.cases.conv_stack import CASES
from genimg.conv_blocks import (
    NEEDS_OTHERS,
    NEEDS_WEIGHT,
    BlockOptions,
    BlockParameters,
    Kept,
    NormMode,
    PackedBlocks,
    StackGrads,
    per_block,
)
from genimg.kernels.triton import runtime as triton_runtime
from genimg.memory_format import in_format
from genimg.ops.autograd import needed_grads, needs_reference, recompute_grads
from genimg.ops.batch_norm_act import batch_norm_act, track
from genimg.ops.checks import goes_to_torch, is_autocast
from genimg.ops.conv2d import conv2d
from genimg.ops.conv_block import (
    block_goes_to_torch,
    check_block,
    check_type,
    formats_of,
    out_shape,
    pack,
    refuse_blocks,
    restore,
    stack_parts,
)
from genimg.ops.conv_refusals import refuse_native, refuse_on_triton
from genimg.ops.conv_rules import why_slower_stack
from genimg.ops.conv_stack_work import conv_stack_work
from genimg.ops.conv_transpose2d import conv_transpose2d
from genimg.ops.convolution import autocast
from genimg.ops.geometry import Geometry
from genimg.ops.leaky_signs import pack_signs, through_signs
from genimg.reference.conv_stack import (
    Activation,
    BatchNorm,
    ConvBlock,
    Direction,
    Layers,
    layer_by_layer,
)
from genimg.testing import CONVOLUTION_ERROR_FACTOR
from genimg.testing.kinks import Kink, affine_kink, exact_kink

__all__ = ["Activation", "BatchNorm", "ConvBlock", "Direction", "conv_stack"]


def conv_stack(
    x: Tensor,
    blocks: Sequence[ConvBlock],
    *,
    training: bool,
    backend: str | None = None,
) -> Tensor:
    r"""Run blocks of {convolution or transposed convolution, batch norm or none, activation}.

    .. math:: x_{b+1} = \mathrm{act}_b(\mathrm{norm}_b(\mathrm{conv}_b(x_b)))

    The op behind generators, discriminators, encoders and decoders: as one op, an inner activation
    need never exist in memory, since the next contraction can apply norm and activation as it
    loads. Where no kernel supports the stack as a whole, a backend is selected for each of its ops.

    Args:
        x: ``[N, C, H, W]``, any strides, any floating dtype.
        blocks: at least one :class:`ConvBlock`, whose weight has the layout of its own op.
        training: the mode of every batch norm that has none of its own. Running statistics and
            counters are written once the kernels have succeeded.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        The last block's output, with the strides that torch's layers give it.

    Kept for backward: per block the raw output of its convolution, mean and rstd, with running
    statistics a copy of the variance, with Triton the coefficients of its norm; if a LeakyReLU
    without a norm ends the stack, the signs of the output, which may be edited in place; if tanh or
    sigmoid ends it, the output (the reference keeps what the separate ops keep). Autocast: as in
    the convolutions.

    Raises:
        ValueError: no block.
        TypeError: one of the blocks is no :class:`ConvBlock`; as torch's, for other arguments.
        RuntimeError: shapes, devices or dtypes do not fit, with the block's number.
        BackendError: the named backend does not support the call.

    Source: Radford, Metz, Chintala, "Unsupervised representation learning with deep convolutional
    generative adversarial networks", 2016, section 3.
    """
    blocks = tuple(blocks)
    if not blocks:
        raise ValueError("conv_stack: expected at least one block, but got none")
    for i, block in enumerate(blocks):
        check_type(f"conv_stack: expected block {i}", block)
    if goes_to_torch((x,)) or type(training) is not bool or any(map(block_goes_to_torch, blocks)):
        return reference.conv_stack(x, blocks, training=training)
    channels = x.shape[-3] if x.dim() > 2 else None
    for i, block in enumerate(blocks):
        channels = check_block(f"conv_stack: block {i}", x, channels, block)
    blocks = _autocast(x, blocks)
    (x,) = autocast(x)  # type: ignore[assignment]
    name = choose(CONV_STACK, backend, x, blocks, training)
    if name == REFERENCE:
        if backend in (None, "auto"):
            layers = Layers(conv2d, conv_transpose2d, batch_norm_act)
            return layer_by_layer(x, blocks, training, layers)
        return reference.conv_stack(x, blocks, training=training)
    packed = pack(blocks, training)
    # The mode of each batch norm is in its options; the kernels follow it in a stack that trains.
    training = any(options.norm is NormMode.BATCH for options in packed.options)
    momenta = tuple(None if block.norm is None else block.norm.momentum for block in blocks)
    counters = [None if block.norm is None else block.norm.num_batches_tracked for block in blocks]
    parameters = packed.tensors()
    keep = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *parameters)
    )
    if keep:
        return _ConvStack.apply(x, name, packed.options, training, momenta, *parameters, *counters)
    y, kept = CONV_STACK.by_backend[name].fwd(x, packed, training, False)
    _track(packed, kept, momenta, counters)
    return y


def _autocast(x: Tensor, blocks: Sequence[ConvBlock]) -> Sequence[ConvBlock]:
    if not is_autocast(x):
        return blocks
    cast = [autocast(block.weight, block.bias) for block in blocks]
    return [
        replace(block, weight=weight, bias=bias)  # type: ignore[arg-type]
        for block, (weight, bias) in zip(blocks, cast, strict=True)
    ]


def _track(
    packed: PackedBlocks,
    kept: Kept,
    momenta: Sequence[float | None],
    counters: Sequence[Tensor | None],
) -> None:
    """Update the running statistics of every norm that used the batch's."""
    for parameters, options, momentum, counter, mean, variance in zip(
        *packed, momenta, counters, kept.means, kept.variances, strict=True
    ):
        if options.norm is NormMode.BATCH:
            running = (parameters.running_mean, parameters.running_var)
            track(running, counter, (mean, variance), momentum)


class _ConvStack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        backend: str,
        options: tuple[BlockOptions, ...],
        training: bool,
        momenta: tuple[float | None, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        count = len(options)
        parameters, counters = tensors[:-count], tensors[-count:]
        packed = PackedBlocks(per_block(BlockParameters, parameters), options)
        y, kept = CONV_STACK.by_backend[backend].fwd(x, packed, training, True)
        _track(packed, kept, momenta, counters)
        *_, last = options
        output = y if last.activation in (Activation.TANH, Activation.SIGMOID) else None
        if _ends_in_leaky(options):
            output = pack_signs(y, last.negative_slope)
        ctx.save_for_backward(x, output, *_saved_tensors(packed, kept))
        ctx.call = (backend, options, training)
        ctx.output_format = torch.contiguous_format if y.is_contiguous() else torch.channels_last
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        backend, options, training = ctx.call
        x, y, *saved = ctx.saved_tensors
        packed, kept = _restored(options, saved)
        count = len(options)
        needs_x, _, _, _, _, *others = needed_grads(ctx)
        needs = others[:-count]
        if needs_reference(grad_y):
            grads = _recompute(x, packed, training, kept, grad_y, (needs_x, *needs))
            return grads[0], *(None,) * 4, *grads[1:], *(None,) * count
        needs_by_block = per_block(BlockParameters, needs)
        needed = [
            NEEDS_WEIGHT * bool(need.weight)
            + NEEDS_OTHERS * any((need.bias, need.gamma, need.beta))
            for need in needs_by_block
        ]
        if _ends_in_leaky(options):
            *before, last = options
            grad_y, y = through_signs(grad_y, y, last.negative_slope, ctx.output_format), None
            last = last._replace(activation=Activation.NONE)
            packed = PackedBlocks(packed.parameters, (*before, last))
        found = CONV_STACK.by_backend[backend].bwd(
            grad_y, x, y, packed, kept, training, needs_x, needed
        )
        given: list[Tensor | None] = []
        for parameters, need, *grads_of_block in zip(
            packed.parameters,
            needs_by_block,
            found.weights,
            found.biases,
            found.gammas,
            found.betas,
            strict=True,
        ):
            statistics = (None, None)
            for parameter, wanted, grad in zip(
                parameters, need, (*grads_of_block, *statistics), strict=True
            ):
                is_given = parameter is not None and wanted
                given.append(grad.to(parameter.dtype) if is_given else None)
        return found.x if needs_x else None, *(None,) * 4, *given, *(None,) * count

    @staticmethod
    def kinks(ctx: Any, y: Tensor) -> list[Kink]:
        """Return the kinks for the judge (genimg/testing/kinks.py)."""
        _, options, _ = ctx.call
        _, _, *saved = ctx.saved_tensors
        packed, kept = _restored(options, saved)
        # Without a norm the activation is kept, which has the sign of its input.
        *inner, _ = kept.raws
        found = []
        for block, parameters, raw, mean, rstd, activated in zip(
            options,
            packed.parameters,
            kept.raws,
            kept.means,
            kept.rstds,
            (*inner, y),
            strict=True,
        ):
            has_norm = block.norm is not NormMode.NONE
            if block.activation is not Activation.LEAKY_RELU or (
                has_norm and block.negative_slope == 1
            ):
                continue
            if has_norm:
                found.append(affine_kink(raw, mean, rstd, parameters.gamma, parameters.beta))
            else:
                found.append(exact_kink(activated))
        return found


def _saved_tensors(packed: PackedBlocks, kept: Kept) -> list[Tensor | None]:
    """The tensors that a backward needs, which :func:`_restored` takes apart."""
    saved: list[Tensor | None] = []
    for block in packed.parameters:
        saved += [block.weight, block.bias, block.gamma, block.beta]
    # A second derivative needs the running variance as it was; the batch's it computes again.
    variances = [
        variance if options.norm is NormMode.RUNNING else None
        for options, variance in zip(packed.options, kept.variances, strict=True)
    ]
    return [*saved, *kept.raws, *kept.means, *kept.rstds, *variances, *kept.coefs]


def _restored(
    options: tuple[BlockOptions, ...], saved: Sequence[Tensor | None]
) -> tuple[PackedBlocks, Kept]:
    """The blocks, without running statistics, and what was kept."""
    count = len(options)
    tensors = iter(saved)
    parameters = tuple(
        BlockParameters(next(tensors), next(tensors), next(tensors), next(tensors))  # type: ignore[arg-type]
        for _ in options
    )
    rest = tuple(tensors)
    kept = Kept(*(rest[i : i + count] for i in range(0, len(rest), count)))  # type: ignore[arg-type]
    return PackedBlocks(parameters, options), kept


def _ends_in_leaky(options: Sequence[BlockOptions]) -> bool:
    """Whether the stack ends in a LeakyReLU without a norm, whose input is not kept."""
    *_, last = options
    return last.activation is Activation.LEAKY_RELU and last.norm is NormMode.NONE


def _recompute(
    x: Tensor,
    packed: PackedBlocks,
    training: bool,
    kept: Kept,
    grad_y: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    # The running statistics as they were: they may have changed since.
    statistics = [
        (mean, variance) if options.norm is NormMode.RUNNING else (None, None)
        for options, mean, variance in zip(packed.options, kept.means, kept.variances, strict=True)
    ]

    def again(x: Tensor, *tensors: Tensor | None) -> Tensor:
        parameters = tuple(
            block._replace(running_mean=mean, running_var=variance)
            for block, (mean, variance) in zip(
                per_block(BlockParameters, tensors), statistics, strict=True
            )
        )
        blocks = restore(PackedBlocks(parameters, packed.options))
        return reference.conv_stack(x, blocks, training=training)

    return recompute_grads(again, (x, *packed.tensors()), (grad_y,), needs)


def _cpp_fwd(x: Tensor, packed: PackedBlocks, training: bool, keep: bool) -> tuple[Tensor, Kept]:
    y, *kept = torch.ops.genimg.conv_stack_fwd(x, *packed.pack(), training, keep)
    return y, Kept(*kept)


def _cpp_bwd(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    packed: PackedBlocks,
    kept: Kept,
    training: bool,
    needs_x: bool,
    needs: list[int],
) -> StackGrads:
    parameters, integers, numbers = packed.pack()
    statistics = (kept.raws, kept.means, kept.rstds)
    call = (parameters, *statistics, integers, numbers, training, needs_x, needs)
    return StackGrads(*torch.ops.genimg.conv_stack_bwd(grad_y, x, y, *call))


if _native.available():

    @torch.library.register_fake("genimg::conv_stack_fwd")
    def _(
        x: Tensor,
        parameters: list[Tensor | None],
        options: list[int],
        numbers: list[float],
        training: bool,
        keep: bool,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        blocks = restore(PackedBlocks.unpack(parameters, options, numbers))
        raws: list[Tensor] = []
        means: list[Tensor] = []
        rstds: list[Tensor] = []
        variances: list[Tensor] = []
        shape: Sequence[int] = x.shape
        for b, block in enumerate(blocks):
            shape = out_shape(shape, block)
            norm = block.norm is not None
            raw = keep and (norm or b + 1 < len(blocks))
            raws.append(_empty(x, shape, torch.channels_last) if raw else x.new_empty(0))
            for statistics in (means, rstds, variances):
                statistics.append(_statistic(x, shape[1] if norm else 0))
        y = _empty(x, shape, formats_of(x, blocks)[1])
        return y, raws, means, rstds, variances

    @torch.library.register_fake("genimg::conv_stack_bwd")
    def _(
        grad_y: Tensor,
        x: Tensor,
        y: Tensor | None,
        parameters: list[Tensor | None],
        raws: list[Tensor],
        means: list[Tensor],
        rstds: list[Tensor],
        options: list[int],
        numbers: list[float],
        training: bool,
        needs_x: bool,
        needs: list[int],
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        blocks = restore(PackedBlocks.unpack(parameters, options, numbers))
        formats, _ = formats_of(x, blocks)
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        gammas: list[Tensor] = []
        betas: list[Tensor] = []
        for b, block in enumerate(blocks):
            weight = block.weight.new_empty(0)
            if needs[b] & NEEDS_WEIGHT:
                weight = torch.empty_like(block.weight, memory_format=formats[b])
            weights.append(weight)
            below = any(needs[: b + 1]) or needs_x
            channels = block.weight.shape[1 if block.direction is Direction.UP else 0]
            biases.append(_statistic(x, channels if block.bias is not None and below else 0))
            for grads in (gammas, betas):
                grads.append(_statistic(x, channels if block.norm is not None and below else 0))
        grad_x = _empty(x, x.shape, formats[0]) if needs_x else x.new_empty(0)
        return grad_x, weights, biases, gammas, betas


def _triton_fwd(x: Tensor, packed: PackedBlocks, training: bool, keep: bool) -> tuple[Tensor, Kept]:
    from genimg.kernels.triton.conv import stack as kernel

    y, kept = kernel.conv_stack_fwd(x, packed, training, keep)
    return in_format(y, formats_of(x, restore(packed))[1]), kept


def _triton_bwd(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    packed: PackedBlocks,
    kept: Kept,
    training: bool,
    needs_x: bool,
    needs: list[int],
) -> StackGrads:
    from genimg.kernels.triton.conv import stack as kernel

    formats, _ = formats_of(x, restore(packed))
    grads = kernel.conv_stack_bwd(grad_y, x, y, packed, kept, training, needs_x, needs, formats)
    return grads._replace(x=in_format(grads.x, formats[0])) if needs_x else grads


def _empty(x: Tensor, shape: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _statistic(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(channels, dtype=torch.float32 if channels else x.dtype)


def _refuse(
    question: Callable[[Sequence[int], torch.dtype, Tensor, Geometry], str | None],
) -> Callable[..., str | None]:
    """The predicate of an :class:`Impl` whose convolutions answer ``question``."""

    def refuse(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> str | None:
        return refuse_blocks(x, blocks, training, question)

    return refuse


_CPP = (_cpp_fwd, _cpp_bwd, _refuse(refuse_native))
_TRITON = (_triton_fwd, _triton_bwd, _refuse(refuse_on_triton), priors.of_gpu)

CONV_STACK = Op(
    "conv_stack",
    conv_stack,
    reference.conv_stack,
    CASES,
    impls=(
        Impl("cuda", ("cuda",), *_CPP, priors.of_gpu, dtypes=GPU_DTYPES),
        Impl("cpu", ("cpu",), *_CPP, why_slower_stack, dtypes=CPU_DTYPES),
        Impl("triton", triton_runtime.DEVICES, *_TRITON, dtypes=GPU_DTYPES),
    ),
    work=conv_stack_work,
    error_factor=CONVOLUTION_ERROR_FACTOR,
    parts=stack_parts,
)
