"""When a drop-in layer computes by genimg's op, and when torch's own forward runs instead.

The files of layers have no ``from __future__ import annotations``: ``torch.fx`` copies a forward's
annotations into the code of its graph, where a string is an error when it is pickled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy

# The torch classes behind genimg's layers and in its fused blocks, and the function of
# torch.nn.functional that each one's forward calls.
_KINDS: dict[type[torch.nn.Module], str | None] = {
    torch.nn.Conv2d: "conv2d",
    torch.nn.ConvTranspose2d: "conv_transpose2d",
    torch.nn.BatchNorm2d: "batch_norm",
    torch.nn.LeakyReLU: "leaky_relu",
    torch.nn.ReLU: "relu",
    torch.nn.Tanh: None,
    torch.nn.Sigmoid: None,
    torch.nn.Upsample: "interpolate",
    torch.nn.UpsamplingNearest2d: "interpolate",
    torch.nn.AvgPool2d: "avg_pool2d",
    torch.nn.Sequential: None,
    torch.nn.Identity: None,
    torch.nn.Dropout: "dropout",
    torch.nn.Dropout2d: "dropout2d",
}


def _torchs(kind: type[torch.nn.Module], name: str) -> object:
    """A method of ``kind``, or nothing's equal where it was replaced before genimg was imported."""
    method = getattr(kind, name)
    return method if str(method.__module__).startswith("torch.") else object()


def _helpers_of(kind: type[torch.nn.Module]) -> dict[str, object]:
    """The private methods of a class below nn.Module: ``_conv_forward`` and its like."""
    names = {name for name in set(dir(kind)) - set(dir(torch.nn.Module)) if name[:2] != "__"}
    return {name: _torchs(kind, name) for name in sorted(names) if name[0] == "_"}


# As they are when genimg is imported: programs replace them on an instance, in a subclass or on
# torch's class itself; counters of operations replace the functions.
_FUNCTIONS = {name: getattr(F, name) for name in _KINDS.values() if name is not None}
_HELPERS = {kind: _helpers_of(kind) for kind in _KINDS}
_FORWARDS = {kind: _torchs(kind, "forward") for kind in _KINDS}
_CALL = torch.nn.Module.__call__
_CALL_PATH = ("forward", "_call_impl", "_wrapped_call_impl", "_slow_forward")


def replaced_method(module: torch.nn.Module, kind: type[torch.nn.Module]) -> str | None:
    """The name of a method that ``module`` has for itself, of those that calling it would run.

    Args:
        module: any module.
        kind: the torch class whose forward it would run.
    """
    own = module.__dict__
    return next((name for name in (*_CALL_PATH, *_HELPERS[kind]) if name in own), None)


def has_torchs_methods(module: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    """Whether ``kind``'s forward, and the methods and function that it calls, are torch's own."""
    own = module.__dict__
    for name, method in _HELPERS[kind].items():
        if name in own or getattr(type(module), name) is not method:
            return False
    function = _KINDS[kind]
    return kind.forward is _FORWARDS[kind] and (
        function is None or getattr(F, function) is _FUNCTIONS[function]
    )


def is_called_plainly(module: torch.nn.Module) -> bool:
    """Whether calling ``module`` does no more than its class's forward, but for hooks."""
    own = module.__dict__
    return (
        "forward" not in own
        and "_compiled_call_impl" not in own
        and "_call_impl" not in own
        and "_wrapped_call_impl" not in own
        and "_slow_forward" not in own
        and type(module).__call__ is _CALL
    )


def computes(module: torch.nn.Module, kind: type[torch.nn.Module], input: object) -> bool:
    """Whether genimg's op computes the layer; else :func:`forward_as_torch` does.

    It does not for what is no tensor, nor under ``torch.jit.trace``, whose graph has to run where
    genimg is not installed, nor with a method of torch's class, or its function, replaced.
    """
    return (
        isinstance(input, Tensor)
        and not torch.jit.is_tracing()
        and has_torchs_methods(module, kind)
    )


def forward_as_torch(module: Any, kind: type[torch.nn.Module], input: Any, *args: Any) -> Any:
    """Runs torch's forward of the class; ``torch.fx`` records it as a call of the layer."""
    if isinstance(input, Proxy) and is_inside(module, input):
        return call_module(module, input, *args)
    return kind.forward(module, input, *args)


def is_inside(module: torch.nn.Module, proxy: Proxy) -> bool:
    """Whether ``module`` is part of the model that ``torch.fx`` traces, and not all of it."""
    return getattr(proxy.tracer, "root", module) is not module


def call_module(module: torch.nn.Module, proxy: Proxy, *args: Any, **kwargs: Any) -> Any:
    """Record a call of ``module`` itself, as ``torch.fx`` does for the layers of torch.nn.

    Its tracer knows them by the name of their package, and traces all others through.
    """
    tracer: Any = proxy.tracer
    path = tracer.path_of_module(module)
    return tracer.create_proxy("call_module", path, (proxy, *args), kwargs)


def as_scriptable(module: Any) -> Any:
    """The layer as torch's class, of the same parameters: ``__prepare_scriptable__``.

    ``torch.jit.script`` puts it in the layer's place, so that the model is left restored.
    """
    kinds = type(module).__mro__
    if not kinds[0].__module__.startswith("genimg."):
        return module  # a subclass, which may compute something else
    kind = next(kind for kind in kinds if kind in _KINDS)
    twin = kind.__new__(kind)
    twin.__dict__ = module.__dict__
    return twin
