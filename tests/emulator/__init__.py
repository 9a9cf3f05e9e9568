"""Builds and calls the CUDA kernels on the CPU, every access checked (README.md)."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests/emulator/kernels"

sanitized = False
"""Whether the kernels are built for AddressSanitizer and UBSan; pytest's --sanitized sets it."""

thorough = False
"""Whether kernels run under every schedule rather than two; pytest's --slow sets it."""

kernels: Path | None = None
"""Other kernels than the repository's; pytest's --emulated-kernels sets it."""


class KernelError(AssertionError):
    """A kernel broke a rule of the emulator; the message says which, and where."""


@dataclass(frozen=True)
class Schedule:
    """In which order threads and blocks run, and when asynchronous copies land."""

    name: str
    order: int
    seed: int = 0
    eager: bool = False

    def __str__(self) -> str:
        return self.name


SCHEDULES = (
    Schedule("ascending", 0),
    Schedule("descending_eager", 1, eager=True),
    Schedule("random", 2, seed=1),
    Schedule("random_eager", 2, seed=2, eager=True),
)


NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""How the C interface ends a function's name for a dtype."""


@dataclass(frozen=True)
class Read:
    """An argument that the kernel may only read."""

    tensor: Tensor | None


@dataclass(frozen=True)
class Write:
    """An output: what the kernel reads of it, it must have written."""

    tensor: Tensor | None


@dataclass(frozen=True)
class Update:
    """An argument with values that the kernel may read and write."""

    tensor: Tensor | None


def _tool(name: str) -> str | None:
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def build(folder: Path, target: str) -> None:
    """Compile what has changed; a failure is a failed test, no tools are a skipped one."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if cmake is None or ninja is None or _tool("c++") is None or sys.platform != "linux":
        pytest.skip("the emulated kernels need Linux, cmake, ninja and a C++ compiler")
    configure = [cmake, "-S", SOURCES, "-B", folder, "-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=None",
        f"-DSIMT_SANITIZE={'ON' if sanitized else 'OFF'}",
    ]
    if kernels is not None:
        configure.append(f"-DGENIMG_KERNELS={kernels}")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        steps = [[cmake, "--build", folder, "--target", target]]
        if not (folder / "build.ninja").exists():
            steps.insert(0, configure)
        for step in steps:
            done = subprocess.run([str(part) for part in step], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


@cache
def library(name: str) -> ctypes.CDLL:
    """A target of tests/emulator/kernels: kernels, kernels with mistakes, or csrc/ around them."""
    # csrc/ is compiled against this torch.
    kind = f"{sys.implementation.cache_tag}-torch{torch.__version__}"
    folder = ROOT / "build" if kernels is None else kernels.parent
    folder /= f"emulator{'-sanitized' if sanitized else ''}-{kind}"
    build(folder, name)
    loaded = ctypes.CDLL(str(folder / f"lib{name}.so"))
    loaded.simt_error.restype = loaded.simt_kernel.restype = ctypes.c_char_p
    return loaded


def extent(x: Tensor) -> int:
    """Bytes from the first element to behind the last."""
    if x.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


def add_buffer(
    lib: ctypes.CDLL,
    name: str,
    begin: int,
    size: int,
    element_size: int,
    read_only: bool = True,
    initialised: bool = True,
) -> bool:
    """Let kernels use ``size`` bytes from ``begin``; False if they overlap others' in part."""
    sizes = (ctypes.c_size_t(size), ctypes.c_size_t(element_size))
    rights = (int(read_only), int(initialised))
    return not lib.simt_add_buffer(name.encode(), ctypes.c_void_p(begin), *sizes, *rights)


def set_schedule(lib: ctypes.CDLL, schedule: Schedule) -> None:
    """Sets the schedule of all later launches."""
    lib.simt_set_options(schedule.order, ctypes.c_uint64(schedule.seed), int(schedule.eager), 0)


def schedules() -> tuple[Schedule, ...]:
    """The schedules that a kernel runs under.

    Races are found by the order that barriers give, under any schedule. Two that differ in the
    order of threads and in when copies land show most of what else depends on it; the sanitizers
    see no more in several.
    """
    if sanitized:
        return SCHEDULES[-1:]
    return SCHEDULES if thorough else (SCHEDULES[0], SCHEDULES[-1])


def call(lib: ctypes.CDLL, function: str, *args: Any, schedule: Schedule = SCHEDULES[0]) -> None:
    """Call a function of the C interface. Integers are int64_t there, and floats float.

    Raises:
        KernelError: the kernel broke a rule.
    """
    passed: list[Any] = []
    set_schedule(lib, schedule)
    registered = True
    try:
        for number, arg in enumerate(args):
            if isinstance(arg, (Read, Write, Update)):
                x = arg.tensor
                passed.append(ctypes.c_void_p(None if x is None else x.data_ptr()))
                if x is not None and not sanitized:
                    registered &= add_buffer(
                        lib,
                        f"argument {number}",
                        x.data_ptr(),
                        extent(x),
                        x.element_size(),
                        isinstance(arg, Read),
                        not isinstance(arg, Write),
                    )
            elif isinstance(arg, float):
                passed.append(ctypes.c_float(arg))
            else:
                passed.append(ctypes.c_int64(int(arg)))
        if not registered or getattr(lib, function)(*passed):
            raise KernelError(lib.simt_error().decode())
    finally:
        lib.simt_clear_buffers()


def launch(function: str, dtype: torch.dtype, *args: Any) -> None:
    """Call a launcher under every schedule, from the same state, and compare what it writes."""
    written = [
        arg.tensor for arg in args if isinstance(arg, (Write, Update)) and arg.tensor is not None
    ]
    before = [x.clone() for x in written]
    first: list[Tensor] = []
    for schedule in schedules():
        for x, start in zip(written, before, strict=True):
            x.copy_(start)
        call(library("genimg_emulated"), f"{function}_{NAMES[dtype]}", *args, schedule=schedule)
        first = first or [x.clone() for x in written]
        for x, expected in zip(written, first, strict=True):
            assert_same_bits(x, expected, f"{function} under {schedule}")


def assert_same_bits(x: Tensor, expected: Tensor, what: str) -> None:
    """NaN and the sign of zero included."""
    assert torch.equal(_bits(x), _bits(expected)), f"{what} differs"


def _bits(x: Tensor) -> Tensor:
    kinds = {2: torch.int16, 4: torch.int32}
    return x.view(kinds[x.element_size()]) if x.is_floating_point() else x


def last_kernel(lib: ctypes.CDLL) -> str:
    """The kernel of the last launch, with its template's arguments."""
    name: bytes = lib.simt_kernel()
    return name.decode()


def statistics(lib: ctypes.CDLL) -> dict[str, int]:
    """Numbers of the last launch."""
    numbers = (ctypes.c_uint64 * 5)()
    lib.simt_statistics(numbers)
    names = ("blocks", "switches", "accesses", "products", "row_conflicts")
    return dict(zip(names, numbers, strict=True))
