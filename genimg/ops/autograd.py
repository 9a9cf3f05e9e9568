"""Shared by the ops' ``autograd.Function``: which gradients are wanted, and by which code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genimg import versions
from genimg.transforms import refuse_transforms, tensors_in

_engine_runs = versions.private("_will_engine_execute_node", lambda node: True)
_is_batched = versions.private("_functorch.is_legacy_batchedtensor", lambda x: True)


def recompute_grads(
    reference: Callable[..., Any],
    args: tuple[Any, ...],
    grad_outputs: tuple[Tensor | None, ...],
    needs_grad: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``reference(*args)``, which under ``create_graph=True`` can be differentiated.

    Every op's backward returns them where :func:`needs_reference`.
    """
    create_graph = torch.is_grad_enabled()
    wanted = [arg for arg, needed in zip(args, needs_grad, strict=True) if needed]
    if not wanted:
        return (None,) * len(needs_grad)
    with torch.enable_grad():
        outputs = reference(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(y, g) for y, g in zip(outputs, grad_outputs, strict=True) if g is not None]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs],
                wanted,
                [g for _, g in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return tuple(next(found) if needed else None for needed in needs_grad)


def needs_reference(*grads: Tensor | None) -> bool:
    """Whether a backward is the reference's: the kernels compute plain first derivatives only.

    Under ``create_graph=True`` the gradients are to be differentiated; under
    ``is_grads_batched=True``, in ``torch.func`` transforms and in forward mode each gradient stands
    for several, or has a tangent.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    return refuse_transforms(grads) is not None or any(map(_is_batched, tensors_in(grads)))


def needed_grads(ctx: Any) -> tuple[bool, ...]:
    """Which inputs of an ``autograd.Function`` want their gradient in this very backward.

    ``ctx.needs_input_grad`` says which could: under ``autograd.grad(y, x)`` also the weight, whose
    gradient nobody would take.
    """
    needs: tuple[bool, ...] = ctx.needs_input_grad
    if torch.compiler.is_compiling():
        return needs
    nodes = (node for node, _ in ctx.next_functions if node is not None)
    return tuple(needed and _runs(next(nodes)) for needed in needs)


def _runs(node: Any) -> bool:
    try:
        return bool(_engine_runs(node))
    except RuntimeError:  # a leaf that autograd.grad was asked for
        return True
