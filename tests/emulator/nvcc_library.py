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
    "seeded_bug_matmul.cu",
    "seeded_bug_gemm90.cu",
    "gpu_conv_sm90.cu",
)
KERNELS = (
    *(SOURCES / name for name in NAMES),
    ROOT / "kernels/cuda/conv/sm90_dgrad.cu",
    ROOT / "kernels/cuda/conv/sm90_fprop.cu",
)


def nvcc() -> Path | None:
    """The one that is named, on PATH, of a toolkit, or of the packages beside torch."""
    packages = Path(torch.__file__).parents[1] / "nvidia"
    on_path = shutil.which("nvcc")
    found = [Path(os.environ["CUDA_HOME"], "bin/nvcc")] if "CUDA_HOME" in os.environ else []
    found += [Path(on_path)] if on_path else []
    found += [Path("/usr/local/cuda/bin/nvcc"), *sorted(packages.glob("cu[0-9]*/bin/nvcc"))]
    return next((path for path in found if path.exists()), None)


def build(arch: str) -> Path:
    """The shared object for ``80``, ``90a`` and so on."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip(
            "no nvcc was found under CUDA_HOME, on PATH, in /usr/local/cuda or as a package"
        )
    target = ROOT / "build" / "contract" / f"contract-{arch}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    libraries = compiler.parents[1] / "lib"  # where the packages have what nvcc seeks in lib64
    command: list[str | Path] = [
        compiler,
        f"-L{libraries}",
        "-std=c++17",
        "--expt-relaxed-constexpr",
        "-shared",
        "-Xcompiler=-fPIC",
        f"-DSIMT_WAIT_LIMIT={1 << 20}",
    ]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-I", ROOT / "kernels/cuda/simt"]
    command += ["-I", ROOT / "tests/emulator/src"]
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
