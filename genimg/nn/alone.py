"""Says why a converted layer runs by itself."""

from __future__ import annotations

from collections.abc import Container, Iterator

import torch

from genimg.nn import declared
from genimg.nn.conv_stack import can_run_inside
from genimg.nn.drop_in import is_called_plainly
from genimg.nn.weights import class_of

_LAYERS = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.BatchNorm2d)
_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict)
_DECLARE = 'declare it and the next layers by fuse=[["...", "..."]]'


def alone(
    model: torch.nn.Module, fused: Container[int]
) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Each convolution and batch norm of genimg's that no run holds: name, layer, reason.

    ``fused`` has the ids of the layers in runs.
    """
    names = {id(module): name for name, module in model.named_modules()}
    seen: set[int] = set()
    for parent in model.modules():
        for layer in parent.children():
            if not isinstance(layer, _LAYERS) or id(layer) in fused or id(layer) in seen:
                continue
            if class_of(layer).__module__.startswith("genimg."):
                seen.add(id(layer))
                yield names[id(layer)], layer, _reason(parent, layer)


def _reason(parent: torch.nn.Module, layer: torch.nn.Module) -> str:
    run, _ = declared.place_of(layer)
    if run is not None:
        return "another layer of its declared run has hooks, or was replaced"
    if not is_called_plainly(layer):
        return "it has a method of its own"
    kind = next(kind for kind in _LAYERS if isinstance(layer, kind))
    if not can_run_inside(layer, kind):
        return "it has hooks, which run where it is called, or a padding that no run supports"
    if isinstance(parent, torch.nn.Sequential):
        return "nothing stands next to it that a run can hold"
    title = type(parent).__name__
    if isinstance(parent, _LISTS):
        return f"a {title} says nothing of the order of calls; {_DECLARE}"
    return f"the forward of {title} calls it; {_DECLARE}"
