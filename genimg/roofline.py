"""What an op must move and compute, and how long a machine needs for that at least.

Counted is what the kernels' design has: what is fused is not written, and not read again. A product
and its addition are two operations; taps outside the image count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from genimg import reference
from genimg.reference.conv_stack import Activation, ConvBlock, Direction

FORWARD, FORWARD_BACKWARD = "forward", "forward_backward"


@dataclass(frozen=True)
class Machine:
    """Operations a second in one dtype, and bytes a second, as measured."""

    operations: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """One kernel's floating-point operations, and bytes that go to or come from memory."""

    operations: float
    moved: float

    def seconds(self, machine: Machine) -> float:
        """The least time: the arithmetic's or the memory's, whichever is longer."""
        return max(self.operations / machine.operations, self.moved / machine.bandwidth)


def bound(kernels: Iterable[Work], machine: Machine) -> float:
    """Seconds of kernels that run one after the other."""
    return sum(kernel.seconds(machine) for kernel in kernels)


@dataclass(frozen=True)
class Contraction:
    """A convolution: shapes of input, weight and output, and the bytes of an element.

    ``meetings`` are the pixels that meet every tap: the output's, or a transposed one's input's.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    meetings: int
    size: int

    @property
    def operations(self) -> float:
        """The same forward and for each gradient."""
        return 2.0 * self.meetings * prod(self.weight)

    def _work(self, elements: float, more_bytes: float = 0) -> Work:
        return Work(self.operations, elements * self.size + more_bytes)

    def forward(self) -> Work:
        """Reads input and weight, writes the output."""
        return self._work(prod(self.x) + prod(self.weight) + prod(self.y))

    def x_gradient(self) -> Work:
        """Reads the output's gradient and the weight, writes the input's gradient."""
        return self.forward()

    def weight_gradient(self) -> Work:
        """Reads the input and the output's gradient, writes the weight's gradient."""
        return self.forward()

    def fused_x_gradient(self, normed: bool, previous: bool) -> Work:
        """As ``conv_stack`` has it.

        Args:
            normed: batch norm's backward is applied on load, so that the raw output is read too.
            previous: there is a norm or an activation before, whose backward ends the kernel, so
                that its raw input is read too.
        """
        outputs, inputs = (2 if normed else 1), (2 if previous else 1)
        return self._work(outputs * prod(self.y) + inputs * prod(self.x) + prod(self.weight))

    def fused_weight_gradient(self, normed: bool) -> Work:
        """The same for the weight, whose gradient is in float32."""
        outputs = 2 if normed else 1
        return self._work(outputs * prod(self.y) + prod(self.x), 4.0 * prod(self.weight))


def conv2d(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Contraction:
    """The contraction of :func:`genimg.ops.conv2d`'s arguments."""
    shape = _output(reference.conv2d, x, weight, *args, **kwargs)
    pixels = shape[0] * prod(shape[-2:])
    return Contraction(tuple(x.shape), tuple(weight.shape), shape, pixels, x.element_size())


def conv_transpose2d(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Contraction:
    """The contraction of :func:`genimg.ops.conv_transpose2d`'s arguments."""
    shape = _output(reference.conv_transpose2d, x, weight, *args, **kwargs)
    pixels = x.shape[0] * prod(x.shape[-2:])
    return Contraction(tuple(x.shape), tuple(weight.shape), shape, pixels, x.element_size())


def _output(op: Callable[..., Tensor], *args: Any, **kwargs: Any) -> tuple[int, ...]:
    """The shape of a result, without computing it."""
    shapes = (a.to("meta") if isinstance(a, Tensor) else a for a in args)
    return tuple(op(*shapes, **kwargs).shape)


def stack(x: Tensor, blocks: Sequence[ConvBlock]) -> list[Contraction]:
    """The contractions of :func:`genimg.ops.conv_stack`'s arguments."""
    found = []
    x = x.to("meta")
    for block in blocks:
        if block.direction is Direction.DOWN:
            options: tuple[Any, ...] = (block.stride, block.padding, block.dilation, block.groups)
            found.append(conv2d(x, block.weight, None, *options))
        else:
            options = (block.stride, block.padding, block.output_padding)
            options = (*options, block.groups, block.dilation)
            found.append(conv_transpose2d(x, block.weight, None, *options))
        x = x.new_empty(found[-1].y)
    return found


def _of_stack(mode: str, grad: Sequence[str], x: Tensor, blocks: Sequence[ConvBlock]) -> list[Work]:
    contractions = stack(x, blocks)
    kernels = [contraction.forward() for contraction in contractions]
    if mode == FORWARD:
        return kernels
    for i, (block, contraction) in enumerate(zip(blocks, contractions, strict=True)):
        normed = block.norm is not None
        if i > 0 or "x" in grad:
            previous = i > 0 and (
                blocks[i - 1].norm is not None or blocks[i - 1].activation is not Activation.NONE
            )
            kernels.append(contraction.fused_x_gradient(normed, previous))
        kernels.append(contraction.fused_weight_gradient(normed))
    return kernels


def _of_contraction(mode: str, grad: Sequence[str], contraction: Contraction) -> list[Work]:
    gradients = {"x": contraction.x_gradient, "weight": contraction.weight_gradient}
    if mode.endswith("_gradient"):
        return [gradients[mode.removesuffix("_gradient")]()]
    kernels = [contraction.forward()]
    if mode == FORWARD_BACKWARD:
        kernels += [gradients[name]() for name in gradients if name in grad]
    return kernels


def _passes(x: Tensor, operations: float, passes: float, more_bytes: float = 0) -> Work:
    n = x.numel()
    return Work(operations * n, passes * n * x.element_size() + more_bytes)


def _of_leaky_relu(mode: str, x: Tensor) -> list[Work]:
    kernels = [_passes(x, 1, 2)]
    return kernels if mode == FORWARD else [*kernels, _passes(x, 1, 3)]


def _of_batch_norm_act(mode: str, x: Tensor, training: bool) -> list[Work]:
    """Statistics read x, applying reads it again; so do the two kernels of backward, and grad_y."""
    kernels = [_passes(x, 4, 1)] if training else []
    kernels.append(_passes(x, 4, 2))
    return kernels if mode == FORWARD else [*kernels, _passes(x, 7, 2), _passes(x, 8, 3)]


def _of_reparam_kl(mode: str, mu: Tensor) -> list[Work]:
    """Not counting the noise, which is integer arithmetic for the most part."""
    per_sample = 4.0 * mu.shape[0]
    kernels = [_passes(mu, 40, 3, per_sample)]
    return kernels if mode == FORWARD else [*kernels, _passes(mu, 40, 5, per_sample)]


def work(op: str, mode: str, grad: Sequence[str], *args: Any, **kwargs: Any) -> list[Work]:
    """The kernels of a call of an op.

    Args:
        op: its name.
        mode: ``forward``, ``forward_backward``, or ``<input>_gradient`` for that one alone.
        grad: the inputs that gradients are taken for.
        args, kwargs: the call's own.

    Raises:
        ValueError: there is no such op.
    """
    if op == "conv2d":
        return _of_contraction(mode, grad, conv2d(*args, **kwargs))
    if op == "conv_transpose2d":
        return _of_contraction(mode, grad, conv_transpose2d(*args, **kwargs))
    if op == "conv_stack":
        return _of_stack(mode, grad, args[0], args[1])
    if op == "leaky_relu":
        return _of_leaky_relu(mode, args[0])
    if op == "batch_norm_act":
        training = kwargs.get("training", args[5] if len(args) > 5 else False)
        return _of_batch_norm_act(mode, args[0], training)
    if op == "reparam_kl":
        return _of_reparam_kl(mode, args[0])
    raise ValueError(f"no op {op!r} whose work is known")


def measure(device: str, dtype: torch.dtype, copies: int = 10) -> Machine:
    """The machine's own rates: the best of several products of matrices, and of several copies."""
    gpu = device == "cuda"
    side, elements = (8192, 2**29) if gpu else (1024, 2**24)
    a = torch.randn(side, side, device=device).to(dtype)
    b, product = torch.randn_like(a), torch.empty_like(a)
    source = torch.zeros(elements, device=device, dtype=torch.uint8)
    target = torch.zeros_like(source)

    def best(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(copies):
            if gpu:
                torch.cuda.synchronize()
            start = perf_counter()
            run()
            if gpu:
                torch.cuda.synchronize()
            times.append(perf_counter() - start)
        return min(times)

    return Machine(
        2.0 * side**3 / best(lambda: torch.mm(a, b, out=product)),
        2.0 * elements / best(lambda: target.copy_(source)),
    )
