"""Launches, past Triton's binder where a kernel was launched with such arguments before.

Triton sorts all arguments anew at every call to find out which compiled kernel they need. Here that
kernel is kept by what it depends on, and more: the value of every argument that is no tensor, so
that no rule for integers is repeated; of a tensor its dtype, and whether its address divides by 16;
and the device. It is launched by its own ``[grid]``, which takes the current stream and tells
Triton's launch hooks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

from genimg import versions
from genimg.kernels.triton.runtime import INTERPRETED, VERSION

_PLAIN = (int, float, bool, str, type(None))
_MOST = 4096
"""Kept at once; sizes that never come back are then forgotten."""

_kept: dict[tuple[Any, ...], tuple[CompiledKernel, tuple[Any, ...]]] = {}


def _keeps() -> bool:
    """Whether this Triton's launcher is one that was read for the rules of this module.

    The binders of the tested releases look at the same properties of arguments. ``genimg info``
    names any other release.
    """
    if INTERPRETED or VERSION is None or torch.version.hip is not None:
        return False
    return versions.is_tested("Triton", VERSION)


_KEEPS = _keeps()


def _is_watched(kernel: Any) -> bool:
    """Whether Triton is told to do more than to launch, or to compile otherwise."""
    runtime = knobs.runtime
    return bool(
        kernel.pre_run_hooks
        or runtime.debug
        or runtime.add_stages_inspection_hook is not None
        or knobs.compilation.instrumentation_mode
    )


def _key(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...]:
    values = tuple(constants.values())
    return (
        kernel.fn,
        driver.active.get_current_device(),
        tuple([(a.dtype, a.data_ptr() % 16) if isinstance(a, Tensor) else a for a in args]),
        tuple(constants),
        values,
        # 1, 1.0 and True are equal, and three kernels.
        tuple(map(type, args)),
        tuple(map(type, values)),
    )


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """Returns a launcher that replaces ``kernel[grid]``."""
    # Dynamo must see the plain launch.
    if torch.compiler.is_compiling() or not _KEEPS or _is_watched(kernel):
        plain: Callable[..., None] = kernel[grid]
        return plain
    return functools.partial(_launch, kernel, grid)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    key = _key(kernel, args, constants)
    try:
        kept = _kept.get(key)
    except TypeError:  # arguments that cannot be hashed are not kept
        kept = None
    if kept is not None:
        compiled, rest = kept
        compiled[(*grid, 1, 1)[:3]](*args, *rest)
        return
    compiled = kernel[grid](*args, **constants)
    named = kernel.arg_names[len(args) :]
    known = all(isinstance(a, Tensor) or type(a) in _PLAIN for a in (*args, *constants.values()))
    # Arguments that are not named have the kernel's own defaults.
    if known and constants.keys() >= {*named} and isinstance(compiled, CompiledKernel):
        if len(_kept) >= _MOST:
            _kept.clear()
        _kept[key] = compiled, tuple(constants[name] for name in named)
