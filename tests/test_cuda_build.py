"""A build for CUDA, with a GPU and without: what genimg/_build.json promises is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

import genimg
from genimg import _native, info
from genimg.backends import OPS

pytestmark = pytest.mark.skipif(
    _native.build_info().get("kind") != "cuda", reason="no CUDA kernels were built"
)
SERVED = sorted(name for name, op in OPS.items() if "cuda" in op.by_backend)
OF_THEIR_OWN = [name for name in SERVED if not OPS[name].composed]


def test_the_library_is_loaded():
    assert _native.why_not_cuda() is None


@pytest.mark.parametrize("op", OF_THEIR_OWN)
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_kernels_are_registered(op, direction):
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"genimg::{op}_{direction}", "CUDA")


def cuobjdump() -> str | None:
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton")
        found = shutil.which(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return found


def output_of(tool: str, *options: str) -> str:
    return subprocess.run([tool, *options], capture_output=True, text=True, check=True).stdout


def test_every_architecture_is_in_the_library():
    tool = cuobjdump()
    if tool is None:
        pytest.skip("needs cuobjdump")
    library = _native.load().__file__
    asked = " ".join(_native.build_info()["cuda_archs"])
    if "release 12." in output_of(tool, "--version"):
        asked = asked.replace("a-", "-")  # it calls nvcc 13's sm_90a sm_90; Triton 3.6 brings it
    for kind, option in (("real", "--list-elf"), ("virtual", "--list-ptx")):
        found = re.findall(r"\.sm_(\w+)\.(?:cubin|ptx)", output_of(tool, option, library))
        assert set(found) == set(re.findall(rf"(\w+)-{kind}", asked))


def test_info_names_the_kernels(capsys):
    assert info.main([]) == 0
    page = capsys.readouterr().out
    assert "build     cuda: torch " in page
    assert f"CUDA architectures: {', '.join(_native.build_info()['cuda_archs'])}" in page
    (state,) = re.findall(r"^cuda +(yes|no) +(yes|no) +(.*)$", page, re.MULTILINE)
    if torch.cuda.is_available():
        assert state == ("yes", "yes", "runs tensors on the GPU")
    else:
        assert state == ("yes", "no", "no GPU present, or no driver")
        assert re.search(r"^gpu +none: no GPU present", page, re.MULTILINE)


@pytest.mark.parametrize("op", SERVED)
def test_tensors_elsewhere_are_refused(op):
    case = OPS[op].cases[0]
    with pytest.raises(genimg.BackendError, match="on cpu; this kernel supports cuda tensors"):
        case.call(partial(OPS[op].function, backend="cuda"), case.tensors(torch.Generator()))
