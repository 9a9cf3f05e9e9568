"""Classes of the user's that are Sequentials by their forward, with a fused one in its place."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from genimg.nn.conv_stack import FusedSequential

_SEQUENTIAL = torch.nn.Sequential


def is_sequential(kind: type[torch.nn.Module]) -> bool:
    """Whether a class of the user's is a Sequential that a fused class can stand for.

    Not with a forward or a call of its own, nor where making a subclass or a copy runs code of its.
    """
    return (
        issubclass(kind, _SEQUENTIAL)
        and kind is not _SEQUENTIAL
        and not issubclass(kind, FusedSequential)
        and not kind.__module__.startswith("torch.")  # quantisation's, known by their classes
        and kind.forward is _SEQUENTIAL.forward
        and kind.__call__ is _SEQUENTIAL.__call__
        and type(kind) is type
        and all(
            getattr(kind, name, None) == getattr(_SEQUENTIAL, name, None)
            for name in ("__reduce__", "__reduce_ex__", "__deepcopy__", "__copy__", "__new__")
        )
        and not any("__init_subclass__" in base.__dict__ for base in kind.__mro__[:-1])
    )


class _Subclass(FusedSequential):
    """A fused class for a subclass of Sequential; pickled, copied and scripted by that one."""

    _plain: type[torch.nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(2)
        _, _, *state = reduced
        return _new, (self._plain,), *state

    def __prepare_scriptable__(self) -> torch.nn.Module:
        twin = self._plain.__new__(self._plain)
        twin.__dict__ = self.__dict__
        return twin


def _new(plain: type[torch.nn.Module]) -> torch.nn.Module:
    kind = fused(plain)
    return kind.__new__(kind)


def fused(plain: Any) -> type[torch.nn.Module]:
    """The fused class that stands for a subclass, under its name."""
    return _fused(plain)


@cache
def _fused(plain: Any) -> type[torch.nn.Module]:
    if not is_sequential(plain):  # it was another class when the module was pickled
        return plain
    names = ("__module__", "__qualname__", "__doc__")
    body = {name: getattr(plain, name) for name in names} | {"_plain": plain}
    return type(plain.__name__, (_Subclass, plain), body)


def plain_of(kind: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """The subclass that a fused class stands for, None for other classes."""
    return kind._plain if issubclass(kind, _Subclass) else None
