"""Kernels of the emulator's tests on this machine's GPU: compiles them by nvcc, and calls them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import ROOT, SOURCES, Read, Update, Write

NAMES = (
    "contract_portable.cu",
    "contract_hopper.cu",
    "planted_matmul.cu",
    "planted_gemm90.cu",
    "gpu_dgrad_halo.cu",
)
KERNELS = (*(SOURCES / name for name in NAMES), ROOT / "kernels/cuda/conv_dgrad_halo.cu")


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    named = [str(Path(home) / "bin/nvcc")] if home else []
    return next(filter(None, map(shutil.which, [*named, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)


def build(arch: str) -> Path:
    """The shared object for ``80``, ``90a`` and so on."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip("no nvcc was found under CUDA_HOME, on PATH or in /usr/local/cuda")
    target = ROOT / "build" / "contract" / f"contract-{arch}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-std=c++17", "--expt-relaxed-constexpr", "-shared", "-Xcompiler=-fPIC"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-I", ROOT / "kernels/cuda/simt"]
    command += ["-o", target, *KERNELS]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@cache
def library() -> ctypes.CDLL:
    major, minor = torch.cuda.get_device_capability()
    return ctypes.CDLL(str(build("90a" if (major, minor) == (9, 0) else f"{major}{minor}")))


def call(function: str, *args: Any) -> None:
    """As ``emulator.call``: the tensors go to the GPU, and what is written comes back."""
    passed: list[Any] = []
    written: list[tuple[torch.Tensor, torch.Tensor]] = []
    for arg in args:
        if isinstance(arg, (Read, Write, Update)):
            assert arg.tensor is not None
            # Sizes are the launcher's to read, all other arguments the kernel's.
            on_host = isinstance(arg, Read) and arg.tensor.dtype == torch.int64
            x = arg.tensor if on_host else arg.tensor.cuda()
            passed.append(ctypes.c_void_p(x.data_ptr()))
            written.append((arg.tensor, x))
        else:
            passed.append(ctypes.c_int64(int(arg)))
    torch.cuda.synchronize()
    assert getattr(library(), function)(*passed) == 0
    for to, x in written:
        to.copy_(x)
