"""Weights that a hook or a parametrization computes: spectral norm, weight norm and their like.

``torch.nn.utils.spectral_norm`` and ``weight_norm`` set a layer's weight in a forward pre-hook, so
that a run which includes the layer calls the hook itself, once. A parametrization makes a subclass
for the layer, whose weight is a property: conversion changes that subclass's base.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# As they are when genimg is imported.
_HOOKS: dict[Any, Any] = {kind: kind.__call__ for kind in (SpectralNorm, WeightNorm)}


def class_of(module: torch.nn.Module) -> type[torch.nn.Module]:
    """The module's class, without the subclass that a parametrization has made of it."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized_class(kind) else kind


def is_parametrized_class(kind: type[torch.nn.Module]) -> bool:
    """Whether a parametrization has made the class, for one module and its copies."""
    return kind.__module__ == parametrize.__name__ and len(kind.__bases__) == 1


def with_base(kind: type[torch.nn.Module], base: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """``base``, or for a class that a parametrization has made, its like over ``base``.

    A new class, for copies of the module share the old one.
    """
    if not is_parametrized_class(kind):
        return base
    body = {
        name: value
        for name, value in kind.__dict__.items()
        if name not in ("__dict__", "__weakref__", "__doc__")
    }
    return type(f"Parametrized{base.__name__}", (base,), body)


def has_only_weight_hooks(module: torch.nn.Module) -> bool:
    """Whether every forward pre-hook of the module does no more than set a weight."""
    return not module._forward_pre_hooks_with_kwargs and all(
        _HOOKS.get(type(hook)) is type(hook).__call__ for hook in module._forward_pre_hooks.values()
    )


def set_weights(module: Any) -> None:
    """Call the module's weight hooks, as a call of the module would."""
    for hook in module._forward_pre_hooks.values():
        hook(module, ())
