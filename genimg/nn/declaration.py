"""Reads ``convert(model, fuse=[["conv1", "bn1", "relu1"]])``, and refuses what is no run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genimg.nn import declared

_CONVOLUTIONS = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
_INNER = (torch.nn.LeakyReLU, torch.nn.ReLU)
_LAYERS = "Conv2d, ConvTranspose2d, BatchNorm2d, LeakyReLU, ReLU, Tanh and Sigmoid"
_ORDER = "a run is of convolution, batch norm or none, activation or none, and so on"

Fuse = bool | Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Declaration:
    """A declared run that the model has.

    Attributes:
        names: the layers' names in the model.
        layers: the layers.
        owner: the innermost module that holds them all.
        blocks: convolution, norm and activation of each block, as places in the run.
    """

    names: tuple[str, ...]
    layers: tuple[torch.nn.Module, ...]
    owner: torch.nn.Module
    blocks: tuple[tuple[int | None, int | None, int | None], ...]

    def attach(self) -> None:
        """Make the layers one run; their classes have been changed."""
        prefix = _shared_path(self.names)
        paths = tuple(tuple(name.split(".")[len(prefix) :]) for name in self.names)
        run = declared.Run(self.owner, paths, self.blocks, prefix)
        for place, layer in enumerate(self.layers):
            layer._run, layer._place = run, place  # type: ignore[assignment]


def read(
    model: torch.nn.Module, fuse: Fuse, why_not: Callable[[torch.nn.Module], str | None]
) -> list[Declaration]:
    """The runs that ``fuse`` declares and that the model does not have yet.

    ``why_not`` has the reason why a layer cannot be converted. Raises TypeError and ValueError.
    """
    if isinstance(fuse, bool):
        return []
    if isinstance(fuse, str) or not isinstance(fuse, Sequence):
        raise TypeError(
            "convert: expected fuse to be True, False or lists of names of submodules, but got "
            f"{fuse!r}"
        )
    is_one = bool(fuse) and all(isinstance(name, str) for name in fuse)
    runs: list[Any] = [fuse] if is_one else list(fuse)
    found = []
    seen: dict[int, str] = {}
    for names in runs:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"convert: expected a list of names of submodules, but got {names!r}")
        layers = tuple(_find(model, name) for name in names)
        for name, layer in zip(names, layers, strict=True):
            if id(layer) in seen:
                first = seen[id(layer)]
                twice = "is named twice" if first == name else f"and {first!r} are one layer"
                raise ValueError(f"convert: fuse: {name!r} {twice}; it can be in one run only")
            seen[id(layer)] = name
        declaration = _declaration(model, tuple(names), layers, why_not)
        if declaration is not None:
            found.append(declaration)
    return found


def _find(model: torch.nn.Module, name: str) -> torch.nn.Module:
    module: torch.nn.Module | None = model
    for part in name.split("."):
        module = None if module is None else module._modules.get(part)
    if module is None:
        raise ValueError(f"convert: fuse: the model has no submodule {name!r}")
    return module


def _declaration(
    model: torch.nn.Module,
    names: tuple[str, ...],
    layers: tuple[torch.nn.Module, ...],
    why_not: Callable[[torch.nn.Module], str | None],
) -> Declaration | None:
    if len(names) < 2:
        raise ValueError(f"convert: fuse: a run needs two layers or more, but got {list(names)}")
    places = [declared.place_of(layer) for layer in layers]
    run = places[0][0]
    if run is not None and run.layers_in_place() == list(layers):
        return None  # converted before
    for name, layer, (run, _) in zip(names, layers, places, strict=True):
        reason = why_not(layer)
        if run is not None:
            reason = "it is in another run already; restore the model first"
        elif reason is None and declared.kind_of(layer) is None:
            reason = f"{type(layer).__name__} is not supported in a run; {_LAYERS} are"
        if reason is not None:
            raise ValueError(f"convert: fuse: {name!r} cannot be fused: {reason}")
    owner = model
    for part in _shared_path(names):
        owner = owner._modules[part]  # type: ignore[assignment]
    return Declaration(names, layers, owner, _blocks(names, layers))


def _shared_path(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the modules that hold all of the named ones, outermost first."""
    parents = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)


def _blocks(
    names: Sequence[str], layers: Sequence[torch.nn.Module]
) -> tuple[tuple[int | None, int | None, int | None], ...]:
    """Sort a run's layers into blocks; raises ValueError for an order that is no run's."""
    blocks: list[list[int | None]] = []
    channels = expected = given = None
    for place, layer in enumerate(layers):
        block: list[int | None] = blocks[-1] if blocks else [None, None, None]
        convolution, norm, activation = (None if i is None else layers[i] for i in block)
        if isinstance(layer, _CONVOLUTIONS):
            fits = not blocks or (
                convolution is not None and isinstance(activation, (*_INNER, type(None)))
            )
            blocks.append([place, None, None])
            expected, given, channels = channels, layer.in_channels, layer.out_channels
        elif isinstance(layer, torch.nn.BatchNorm2d):
            fits = norm is None and activation is None
            if not blocks:
                blocks.append(block)
            block[1] = place
            expected, given, channels = channels, layer.num_features, layer.num_features
        else:
            fits = activation is None and (
                convolution is not None or (norm is not None and isinstance(layer, _INNER))
            )
            block[2] = place
            expected = None
        before = f"follow {_title(names, layers, place - 1)}" if place else "begin a run"
        if not fits:
            raise ValueError(
                f"convert: fuse: {_title(names, layers, place)} cannot {before}; {_ORDER}"
            )
        if expected is not None and expected != given:
            raise ValueError(
                f"convert: fuse: {_title(names, layers, place)} cannot {before}: it takes {given} "
                f"channels, and that gives {expected}"
            )
    if len(blocks) > 1:
        for place, layer in enumerate(layers):
            if isinstance(layer, _CONVOLUTIONS) and (layer.groups, *layer.dilation) != (1, 1, 1):
                raise ValueError(
                    f"convert: fuse: {names[place]!r} has groups={layer.groups} and "
                    f"dilation={layer.dilation}; a run of several convolutions supports 1"
                )
    return tuple((a, b, c) for a, b, c in blocks)


def _title(names: Sequence[str], layers: Sequence[torch.nn.Module], place: int) -> str:
    return f"{names[place]!r} ({type(layers[place]).__name__})"
