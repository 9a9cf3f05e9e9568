"""The CPU kernels' exponentials, logarithm, sine and cosine, against double precision."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("cpu_elementary.cpp")
COMPILER = shutil.which("c++") or shutil.which("g++")
LEVELS = {"baseline": (), "fma": ("-mfma",)}
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(not (ROOT / "kernels/cpu").exists(), reason="not run from a source tree")
@pytest.mark.parametrize("level", LEVELS)
def test_as_near_as_the_header_says(tmp_path, level):
    """With fused multiply-adds and without: they round differently."""
    flags = LEVELS[level]
    if flags and not (X86 and "fma" in _cpu_flags()):
        pytest.skip("this CPU has no such flag")
    program = tmp_path / "elementary"
    command = [COMPILER, "-std=c++20", "-O2", "-ffp-contract=fast", "-DGENIMG_ISA=baseline"]
    subprocess.run([*command, *flags, DRIVER, "-o", program], check=True, timeout=300)
    done = subprocess.run([program], capture_output=True, text=True, check=True, timeout=120)
    worst = {name: float(error) for name, error, _ in map(str.split, done.stdout.splitlines())}
    assert worst.keys() == {"exp_of", "expm1_of", "expm1_minus_x", "log_of", "sine", "cosine"}
    assert worst.pop("expm1_minus_x") <= 6
    assert {name: error for name, error in worst.items() if not error <= 2} == {}


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    return set(path.read_text().split()) if path.exists() else set()
