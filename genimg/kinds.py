"""The kind of a call: all that its speed depends on, in words that a file can hold.

Calls of one kind share a decision. Their batches differ by less than a factor of two, the strides
of dense tensors count as their memory format, and numbers that are not whole, such as a slope, by
their sign. ``torch.compile`` traces :func:`call_of`; a size that it keeps dynamic is not
looked at, so that no decision limits what a graph is compiled for.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from genimg.memory_format import fits_both_formats, suggested_format

DYNAMIC = -1
"""The batch of a graph that is for every batch."""

_PRIMES = (2, 3, 5)
_grad_mode = torch.is_grad_enabled
_threads = torch.get_num_threads


def quick_key(op: str, parts: Sequence[Any]) -> tuple[Hashable, ...] | None:
    """A key that is quick to make, of which several may be of one kind; eager mode only.

    None for tensors that have no strides, and for subclasses, whose speed is their own. A value of
    another kind may have no hash: then its dictionary raises TypeError.
    """
    key: list[Any] = [op, _grad_mode(), _threads()]
    for part in parts:
        kind = type(part)
        if kind is Tensor or kind is torch.nn.Parameter:
            try:
                key += (part.shape, part.stride(), part.dtype, part.device, part.requires_grad)
            except RuntimeError:
                return None
        elif isinstance(part, Tensor):
            return None
        else:
            key.append(part)
    return tuple(key)


def call_of(op: str, parts: Sequence[Any]) -> tuple[tuple[Any, ...], int] | None:
    """The facts of a call but for its batch, and the batch up to a power of two.

    Args:
        op: its name.
        parts: the call's tensors and options, the batched tensor first.

    Returns:
        None where a size other than the batch is dynamic, or a tensor has no strides.
    """
    x = parts[0]
    grad = torch.is_grad_enabled()
    facts: list[Any] = []
    trains = False
    for i, part in enumerate(parts):
        if isinstance(part, Tensor):
            if part.layout != torch.strided or part.is_nested:
                return None
            sizes = part.shape[1:] if i == 0 else part.shape
            if not all(map(_is_static, sizes)) or (layout := _layout(part)) is None:
                return None
            kind = (str(part.dtype).removeprefix("torch."), part.device.type)
            wanted = ("requires grad",) if grad and part.requires_grad else ()
            trains = trains or bool(wanted)
            facts.append((*kind, tuple(sizes), layout, *wanted))
        else:
            fact = _fact(part)
            if fact is None:
                return None
            facts.append(fact)
    mode = "forward and backward" if trains else "forward"
    return (op, mode, *facts), batch_of(x.shape[0]) if x.dim() else 1


def batch_of(size: int) -> int:
    """The least power of two that is no less; 0 for 0, :data:`DYNAMIC` for a dynamic size."""
    if not _is_static(size):
        return DYNAMIC
    batch = 1
    while batch < size:
        batch *= 2
    return batch if size else 0


def _layout(x: Tensor) -> str | None:
    """The memory format of a dense tensor, the strides of another; None if they are dynamic."""
    if x.dim() == 4 and fits_both_formats(x.shape):
        if suggested_format(x) == torch.channels_last:
            return "channels_last"
    elif x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    if x.is_contiguous():
        return "contiguous"
    strides = tuple(x.stride())
    return f"strides {strides}" if all(map(_is_static, strides)) else None


def _fact(value: Any) -> str | int | tuple[Any, ...] | None:
    """An option, or what of it matters to speed; None if it is dynamic."""
    if isinstance(value, (bool, str)) or value is None:
        return str(value)
    if isinstance(value, int):
        return value if _is_static(value) else None
    if isinstance(value, float):
        if value.is_integer():
            return f"{value:g}"
        return "positive" if value > 0 else "negative"
    if isinstance(value, (tuple, list)):
        facts = tuple(_fact(each) for each in value)
        if None in facts:
            return None
        return facts[0] if len(set(facts)) == 1 else facts  # 2 is (2, 2)
    return type(value).__name__


def _is_static(size: int) -> bool:
    """Whether a size is a number, and no symbol."""
    if not torch.compiler.is_dynamo_compiling():
        return type(size) is int
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    # Dynamo calls a symbol an int too; but of a symbol it does not know all these remainders.
    return all(
        any(statically_known_true(size % prime == rest) for rest in range(prime))
        for prime in _PRIMES
    )
