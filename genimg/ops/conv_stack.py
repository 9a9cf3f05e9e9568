"""A run of convolution blocks as one op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genimg import _native, reference
from genimg.backends import (
    REFERENCE,
    Impl,
    Op,
    choose,
    needed_grads,
    needs_reference,
    not_measured,
    recompute_grads,
    refuse_dtype,
)
from genimg.kernels.triton import runtime as triton_runtime
from genimg.memory_format import in_format
from genimg.ops.batch_norm_act import batch_norm_act, track
from genimg.ops.checks import goes_to_torch, is_autocast
from genimg.ops.conv2d import conv2d
from genimg.ops.conv_block import (
    PARAMETERS,
    TRAINED,
    Layout,
    block_geometry,
    block_goes_to_torch,
    check_block,
    check_type,
    flatten,
    formats_of,
    out_shape,
    refuse_blocks,
    restore,
)
from genimg.ops.conv_transpose2d import conv_transpose2d
from genimg.ops.convolution import (
    TRITON_DTYPES,
    autocast,
    has_winograd_kernel,
    multiplications,
    refuse_native,
    refuse_on_triton,
    why_slower_bfloat16,
)
from genimg.ops.leaky_signs import pack_signs, through_signs
from genimg.reference.conv_stack import (
    CASES,
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
    loads. Where no kernel serves a stack as one, its ops are chosen one by one.

    Args:
        x: ``[N, C, H, W]``, any strides, any floating dtype.
        blocks: of :class:`ConvBlock`, whose weights have their own op's layout; at least one.
        training: of every batch norm that does not say its own. Running statistics and counters are
            written once the kernels have succeeded.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        The last block's output, with the strides that torch's layers give it.

    Kept for backward: per block its raw convolution output and mean and rstd, with Triton what its
    norm multiplies and adds, too; of a LeakyReLU that ends the stack without a norm, the signs of
    its output, which may be edited in place; of tanh and sigmoid the output (the reference keeps
    what the separate ops do). Autocast: as the convolutions'.

    Raises:
        ValueError: no block.
        TypeError: something else than a :class:`ConvBlock` among the blocks; as torch's, for other
            arguments.
        RuntimeError: shapes, devices or dtypes do not fit, with the block's number.
        BackendError: the named backend cannot serve the call.

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
    parameters, layout = flatten(blocks, training)
    # A batch norm's own mode is in the layout, which the kernels follow in a stack that trains.
    training = any(
        block.norm is not None and block.norm.takes_statistics(training) for block in blocks
    )
    momenta = tuple(None if block.norm is None else block.norm.momentum for block in blocks)
    counters = [None if block.norm is None else block.norm.num_batches_tracked for block in blocks]
    keep = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *parameters)
    )
    if keep:
        return _ConvStack.apply(x, name, layout, training, momenta, *parameters, *counters)
    y, kept = CONV_STACK.by_backend[name].fwd(x, parameters, *layout, training, False)
    _track(kept, layout, momenta, parameters, counters)
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
    kept: Sequence[Tensor],
    layout: Layout,
    momenta: Sequence[float | None],
    parameters: Sequence[Tensor | None],
    counters: Sequence[Tensor | None],
) -> None:
    """Take the batch into the running statistics of every norm that took the batch's own."""
    count = len(momenta)
    for b, momentum in enumerate(momenta):
        if layout[0][9 * b + 7] == 1:
            running = parameters[PARAMETERS * b + TRAINED : PARAMETERS * (b + 1)]
            track(running, counters[b], (kept[count + b], kept[3 * count + b]), momentum)


class _ConvStack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        backend: str,
        layout: Layout,
        training: bool,
        momenta: tuple[float | None, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        count = len(momenta)
        parameters, counters = tensors[: PARAMETERS * count], tensors[PARAMETERS * count :]
        y, kept = CONV_STACK.by_backend[backend].fwd(x, parameters, *layout, training, True)
        _track(kept, layout, momenta, parameters, counters)
        trained = [p for i, p in enumerate(parameters) if i % PARAMETERS < TRAINED]
        # The fourth quarter is for the running statistics alone; what follows is the backend's own.
        kept_for_backward = (*kept[: 3 * count], *kept[4 * count :])
        output = y if layout[0][-1] > _LEAKY else None  # what tanh and sigmoid keep
        if _ends_in_leaky(layout):
            output = pack_signs(y, layout[1][-1])
        ctx.save_for_backward(x, output, *trained, *kept_for_backward)
        ctx.call = (backend, layout, training)
        ctx.output_format = torch.contiguous_format if y.is_contiguous() else torch.channels_last
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        backend, layout, training = ctx.call
        x, y, *saved = ctx.saved_tensors
        count = len(layout[1]) // 2
        kept = saved[TRAINED * count :]
        asked = needed_grads(ctx)
        needs_x, needs = asked[0], asked[5 : 5 + PARAMETERS * count]
        parameters: list[Tensor | None] = []
        for b in range(count):
            parameters += [*saved[TRAINED * b : TRAINED * (b + 1)], None, None]
        if needs_reference(grad_y):
            grads = _recompute(x, parameters, layout, training, kept, grad_y, (needs_x, *needs))
            return grads[0], *(None,) * 4, *grads[1:], *(None,) * count
        needed = [
            sum(
                bit
                for bit, wanted in (
                    (1, needs[PARAMETERS * b]),
                    (2, any(needs[PARAMETERS * b + 1 : PARAMETERS * (b + 1)])),
                )
                if wanted
            )
            for b in range(count)
        ]
        if _ends_in_leaky(layout):
            grad_y, y = through_signs(grad_y, y, layout[1][-1], ctx.output_format), None
            layout = ((*layout[0][:-1], 0), layout[1])
        kept = [*kept[: 3 * count], *kept[:count], *kept[3 * count :]]
        grad_x, found = CONV_STACK.by_backend[backend].bwd(
            grad_y, x, y, parameters, kept, *layout, training, needs_x, needed
        )
        given: list[Tensor | None] = []
        for b in range(count):
            for i in range(PARAMETERS):
                parameter = parameters[PARAMETERS * b + i]
                wanted = parameter is not None and needs[PARAMETERS * b + i]
                given.append(found[TRAINED * b + i].to(parameter.dtype) if wanted else None)  # type: ignore[union-attr]
        return grad_x if needs_x else None, *(None,) * 4, *given, *(None,) * count

    @staticmethod
    def kinks(ctx: Any, y: Tensor) -> list[Kink]:
        """For the judge (genimg/testing/kinks.py)."""
        _, layout, _ = ctx.call
        count = len(layout[1]) // 2
        trained = ctx.saved_tensors[2:]
        kept = trained[TRAINED * count :]
        found = []
        for b in range(count):
            norm, activation = layout[0][9 * b + 7 : 9 * (b + 1)]
            slope = layout[1][2 * b + 1]
            if activation != _LEAKY or (norm and slope == 1):
                continue
            if norm:
                gamma, beta = trained[TRAINED * b + 2 : TRAINED * (b + 1)]
                mean, rstd = kept[count + b], kept[2 * count + b]
                found.append(affine_kink(kept[b], mean, rstd, gamma, beta))
            else:  # what is kept is the activation, which has the sign of what it was taken of
                found.append(exact_kink(kept[b] if b + 1 < count else y))
        return found


_LEAKY = 1  # among the activations of a layout, after none


def _ends_in_leaky(layout: Layout) -> bool:
    """Whether no norm stands before a LeakyReLU at the end, whose raw input would tell the sign."""
    norm, activation = layout[0][-2:]
    return activation == _LEAKY and norm == 0


def _recompute(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    layout: Layout,
    training: bool,
    kept: Sequence[Tensor],
    grad_y: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    count = len(layout[1]) // 2
    statistics = list(parameters)
    for b in range(count):
        norm, eps = layout[0][9 * b + 7], layout[1][2 * b]
        if norm == 2:
            # As they were: the running statistics may have changed since.
            mean, rstd = kept[count + b], kept[2 * count + b]
            statistics[PARAMETERS * b + 4 : PARAMETERS * (b + 1)] = [mean, rstd**-2 - eps]

    def again(x: Tensor, *trained: Tensor | None) -> Tensor:
        given = [
            statistic if i % PARAMETERS >= TRAINED else parameter
            for i, (statistic, parameter) in enumerate(zip(statistics, trained, strict=True))
        ]
        return reference.conv_stack(x, restore(given, layout), training=training)

    return recompute_grads(again, (x, *parameters), (grad_y,), needs)


def _cpp_fwd(*args: Any) -> tuple[Tensor, list[Tensor]]:
    return torch.ops.genimg.conv_stack_fwd(*args)


def _cpp_bwd(*args: Any) -> tuple[Tensor, list[Tensor]]:
    return torch.ops.genimg.conv_stack_bwd(*args)


if _native.available():

    @torch.library.register_fake("genimg::conv_stack_fwd")
    def _(
        x: Tensor,
        parameters: list[Tensor | None],
        options: list[int],
        numbers: list[float],
        training: bool,
        keep: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        blocks = restore(parameters, (tuple(options), tuple(numbers)))
        raws, means, rstds, variances = ([] for _ in range(4))
        shape: Sequence[int] = x.shape
        for b, block in enumerate(blocks):
            shape = out_shape(shape, block)
            norm = block.norm is not None
            raw = keep and (norm or b + 1 < len(blocks))
            raws.append(_empty(x, shape, torch.channels_last) if raw else x.new_empty(0))
            takes = norm and training and options[9 * b + 7] == 1
            means.append(_statistic(x, shape[1] if norm else 0))
            rstds.append(_statistic(x, shape[1] if norm else 0))
            variances.append(_statistic(x, shape[1] if takes else 0))
        y = _empty(x, shape, formats_of(x, blocks)[1])
        return y, [*raws, *means, *rstds, *variances]

    @torch.library.register_fake("genimg::conv_stack_bwd")
    def _(
        grad_y: Tensor,
        x: Tensor,
        y: Tensor | None,
        parameters: list[Tensor | None],
        kept: list[Tensor],
        options: list[int],
        numbers: list[float],
        training: bool,
        needs_x: bool,
        needs: list[int],
    ) -> tuple[Tensor, list[Tensor]]:
        blocks = restore(parameters, (tuple(options), tuple(numbers)))
        formats, _ = formats_of(x, blocks)
        grads = []
        for b, block in enumerate(blocks):
            weight = block.weight if needs[b] & 1 else block.weight.new_empty(0)
            channels = kept[len(blocks) + b].numel()
            below = any(needs[: b + 1]) or needs_x
            bias = block.weight.shape[1 if options[9 * b] else 0]
            grads += [
                torch.empty_like(weight, memory_format=formats[b]) if needs[b] & 1 else weight,
                _statistic(x, bias if block.bias is not None and below else 0),
                _statistic(x, channels if below else 0),
                _statistic(x, channels if below else 0),
            ]
        grad_x = _empty(x, x.shape, formats[0]) if needs_x else x.new_empty(0)
        return grad_x, grads


def _triton_fwd(
    x: Tensor,
    parameters: list[Tensor | None],
    options: tuple[int, ...],
    numbers: tuple[float, ...],
    training: bool,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    from genimg.kernels.triton.conv import stack as kernel

    y, kept = kernel.conv_stack_fwd(x, parameters, options, numbers, training, keep)
    return in_format(y, formats_of(x, restore(parameters, (options, numbers)))[1]), kept


def _triton_bwd(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    parameters: list[Tensor | None],
    kept: list[Tensor],
    options: tuple[int, ...],
    numbers: tuple[float, ...],
    training: bool,
    needs_x: bool,
    needs: list[int],
) -> tuple[Tensor, list[Tensor]]:
    from genimg.kernels.triton.conv import stack as kernel

    formats, _ = formats_of(x, restore(parameters, (options, numbers)))
    call = (options, numbers, training, needs_x, needs, formats)
    grad_x, grads = kernel.conv_stack_bwd(grad_y, x, y, parameters, kept, *call)
    return in_format(grad_x, formats[0]) if needs_x else grad_x, grads


def _empty(x: Tensor, shape: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _statistic(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(channels, dtype=torch.float32 if channels else x.dtype)


def _why_not_cpu(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> str | None:
    return (
        _native.why_not()
        or refuse_dtype(x, (torch.float32, torch.bfloat16))
        or refuse_blocks(x, blocks, training, refuse_native)
    )


def _why_not_cuda(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> str | None:
    return (
        _native.why_not_cuda()
        or refuse_dtype(x, (torch.float32, torch.bfloat16, torch.float16))
        or refuse_blocks(x, blocks, training, refuse_native)
    )


def _why_not_triton(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> str | None:
    return (
        triton_runtime.why_not(x)
        or refuse_dtype(x, TRITON_DTYPES)
        or refuse_blocks(x, blocks, training, refuse_on_triton)
    )


_FAST_SHARE = 0.6


def _why_slower_cpu(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> str | None:
    """Figures: benchmarks/README.md."""
    if x.dim() != 4:
        return None
    shape: Sequence[int] = (1, *x.shape[1:])  # the share is the same for every batch
    fast = every = 0
    for block in blocks:
        geometry = block_geometry(block)
        if isinstance(block.padding, str):
            return None
        count = multiplications(shape, block.weight, geometry)
        fast += count if has_winograd_kernel(shape, block.weight, geometry) else 0
        every += count
        shape = out_shape(shape, block)
    if fast < _FAST_SHARE * every:
        return (
            "most of its multiplications are in other convolutions than 4x4 of stride 2 and "
            "padding 1, where PyTorch's are faster"
        )
    return why_slower_bfloat16(x.dtype)


CONV_STACK = Op(
    "conv_stack",
    conv_stack,
    reference.conv_stack,
    CASES,
    impls=(
        Impl("cuda", ("cuda",), _cpp_fwd, _cpp_bwd, _why_not_cuda, not_measured),
        Impl("cpu", ("cpu",), _cpp_fwd, _cpp_bwd, _why_not_cpu, _why_slower_cpu),
        Impl(
            "triton",
            triton_runtime.DEVICES,
            _triton_fwd,
            _triton_bwd,
            _why_not_triton,
            not_measured,
        ),
    ),
    error_factor=CONVOLUTION_ERROR_FACTOR,
)
