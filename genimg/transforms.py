"""Finds what only PyTorch's own ops have rules for: ``torch.func`` transforms, forward mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genimg import versions

_interpreter = versions.private("_functorch.peek_interpreter_stack", lambda: versions.UNKNOWN)


def refuse_transforms(args: Sequence[Any]) -> str | None:
    """Refuse what only PyTorch's own ops have rules for, in ``args`` and in what they hold.

    ``torch.func`` transforms (vmap, jvp, ...) and the dual tensors of forward mode.
    """
    if torch.compiler.is_compiling():
        return None
    active = _interpreter()
    if active is versions.UNKNOWN:
        return "this torch does not tell whether a torch.func transform is active: genimg info"
    if active is not None:
        return "inside a torch.func transform, whose rules only PyTorch's own ops have"
    if getattr(forward_ad, "_current_level", 0) >= 0 and any(map(_is_dual, tensors_in(args))):
        return "a tensor has a forward-mode tangent, whose rules only PyTorch's own ops have"
    return None


def tensors_in(args: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among ``args``, and in what they hold."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from tensors_in(arg)
        elif dataclasses.is_dataclass(arg):
            yield from tensors_in([getattr(arg, each.name) for each in dataclasses.fields(arg)])


def _is_dual(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None
