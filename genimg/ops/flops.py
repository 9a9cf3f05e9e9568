"""Operations of genimg's own kernels, for ``torch.utils.flop_counter.FlopCounterMode``.

A convolution counts as PyTorch's does: two for each multiplication of its definition, forward and
for each gradient, so that a model counts the same before and after ``genimg.convert``. A kernel may
need fewer.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from genimg import _native
from genimg.conv_blocks import NEEDS_WEIGHT, PackedBlocks
from genimg.ops.conv_block import block_geometry, out_shape, restore
from genimg.ops.geometry import Geometry, multiplications

_COUNTER = "torch.utils.flop_counter"
_CONVOLUTIONS = ("conv2d", "conv_transpose2d")


def register_formulas() -> None:
    """Have ``FlopCounterMode`` count the ops of the compiled library.

    Its module imports Triton, which takes half a second, so the formulas enter when a program
    imports it.
    """
    if not _native.available():
        return
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register(counter: Any) -> None:
    for op in _CONVOLUTIONS:
        _register_as(counter, f"{op}_fwd", _convolution(op == "conv_transpose2d"))
        _register_as(counter, f"{op}_bwd", _convolution(op == "conv_transpose2d"))
    _register_as(counter, "conv_stack_fwd", _stack)
    _register_as(counter, "conv_stack_bwd", _stack)


def _register_as(counter: Any, op: str, formula: Callable[[dict[str, Any]], int]) -> None:
    packet = getattr(torch.ops.genimg, op)
    names = [argument.name for argument in packet.default._schema.arguments]

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return 2 * formula(dict(zip(names, args, strict=False)) | kwargs)

    counter.register_flop_formula(packet, get_raw=True)(count)


def _convolution(transposed: bool) -> Callable[[dict[str, Any]], int]:
    """Multiplications of a convolution, or of those of its gradients that are asked for."""

    def formula(call: dict[str, Any]) -> int:
        geometry = Geometry(
            transposed,
            tuple(call["stride"]),
            tuple(call["padding"]),
            tuple(call.get("output_padding", (0, 0))),
            1,
            1,
        )
        passes = call["needs_x"] + call["needs_weight"] if "needs_x" in call else 1
        return passes * multiplications(call["x"].shape, call["weight"], geometry)

    return formula


def _stack(call: dict[str, Any]) -> int:
    """The same of every block; an inner one's input gradient is needed by what lies before it."""
    packed = PackedBlocks.unpack(call["parameters"], call["options"], call["numbers"])
    shape: Sequence[int] = call["x"].shape
    count = 0
    for b, block in enumerate(restore(packed)):
        passes = 1
        if "needs_x" in call:
            needs = call["needs"]
            passes = (call["needs_x"] or any(needs[:b])) + bool(needs[b] & NEEDS_WEIGHT)
        count += passes * multiplications(shape, block.weight, block_geometry(block))
        shape = out_shape(shape, block)
    return count
