"""The CUDA kernels as a backend of the ops: csrc/'s own bindings, on CPU tensors (README.md).

Every call runs under every schedule, and all must give the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import emulator
from emulator import Schedule, assert_same_bits
from genimg import _native
from genimg.backends import OPS


@cache
def _bindings() -> ctypes.CDLL:
    """The library of torch.ops.genimg_bindings: csrc/'s CUDA ops, on CPU tensors."""
    library = emulator.library("genimg_bindings")
    torch.ops.load_library(library._name)
    return library


def _register(library: ctypes.CDLL, tensors: Sequence[Tensor]) -> None:
    """The arguments, which no kernel may write to, with their bounds."""
    owners = [x.untyped_storage().data_ptr() for x in tensors]
    for number, (x, owner) in enumerate(zip(tensors, owners, strict=True)):
        # Two views of one tensor may lie within each other: then all of it.
        whole = owners.count(owner) > 1
        emulator.add_buffer(
            library,
            f"argument {number}",
            owner if whole else x.data_ptr(),
            x.untyped_storage().nbytes() if whole else emulator.extent(x),
            x.element_size(),
        )


@contextmanager
def _ops_of_the_bindings() -> Iterator[None]:
    """torch.ops.genimg is the bindings'; the emulator fills the memory of torch.empty."""
    ops, deterministic = torch.ops.genimg, torch.utils.deterministic
    fills = deterministic.fill_uninitialized_memory
    torch.ops.genimg = torch.ops.genimg_bindings
    deterministic.fill_uninitialized_memory = False  # it would pass for what the op has written
    try:
        yield
    finally:
        torch.ops.genimg = ops
        deterministic.fill_uninitialized_memory = fills


def run(function: Callable[..., Any], args: Sequence[Any], schedule: Schedule) -> Any:
    """``function(*args)`` on tensors of the CPU, with torch.ops.genimg the bindings'."""
    library = _bindings()
    _register(library, [x for x in _tensors(args) if x.numel() > 0])
    emulator.set_schedule(library, schedule)
    library.bindings_begin()
    try:
        with _ops_of_the_bindings():
            return function(*args)
    except RuntimeError as error:
        said = library.simt_error().decode()
        if said and said in str(error):
            raise emulator.KernelError(said) from None
        raise
    finally:
        library.bindings_end()


def launches() -> int:
    """The number of kernels that the last call of an op launched."""
    return _bindings().bindings_launches()


def last_kernel() -> str:
    """The last one that an op has launched."""
    return emulator.last_kernel(_bindings())


def _under_every(schedules: Sequence[Schedule], function: Callable[..., Any]) -> Callable[..., Any]:
    def under_every(*args: Any) -> Any:
        first, *others = schedules
        outputs = run(function, args, first)
        expected = list(_tensors(outputs))
        for schedule in others:
            again = _tensors(run(function, args, schedule))
            for x, y in zip(again, expected, strict=True):
                assert_same_bits(x, y, f"{function.__name__} under {schedule}")
        return outputs

    return under_every


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


@contextmanager
def emulated(
    op: str,
    monkeypatch: pytest.MonkeyPatch,
    precision: str = "ieee",
    most_schedules: int | None = None,
) -> Iterator[None]:
    """``backend="cuda"`` of an op takes CPU tensors, by its own ``why_not``, to the emulator.

    ``precision`` is what torch's switch for convolutions of float32 says; its default is "tf32".
    Calls run under the last ``most_schedules`` schedules, all by default; after the first backward,
    under one.
    """
    entry = OPS[op]
    impl = entry.by_backend["cuda"]
    schedules = list(emulator.schedules())[-(most_schedules or 0) :]
    fwd, bwd = _under_every(schedules, impl.fwd), _under_every(schedules, impl.bwd)

    def first_bwd(*args: Any) -> Any:
        grads = bwd(*args)
        del schedules[:-1]
        return grads

    with monkeypatch.context() as patch:
        patch.setitem(
            entry.by_backend, "cuda", replace(impl, devices=("cpu",), fwd=fwd, bwd=first_bwd)
        )
        patch.setattr(_native, "_why_not_cuda", None)
        switch, asked = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
        switch.fp32_precision = precision
        try:
            yield
        finally:
            switch.fp32_precision = asked
