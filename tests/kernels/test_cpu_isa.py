"""Every instruction-set level that the machine has gives right results."""

import os
import subprocess
import sys

import pytest

from genimg import _native

LEVELS = _native.build_info().get("isas", [])
SCRIPT = """
import torch
from genimg import _native, ops
from genimg.backends import OPS
from genimg.check import check_case
assert _native.build_info()["isa"] == "{level}", _native.build_info()
for op in OPS.values():
    for case in op.cases:
        if "cpu" in op.by_backend and not case.slow and not case.speed:
            for dtype in (torch.float32, torch.bfloat16):
                row = check_case(op, case, "cpu", dtype, "cpu")
                assert row is None or row.ok, str(row)
                print(row)
"""


def run(level):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(level=level)],
        env={**os.environ, "GENIMG_CPU_ISA": level},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(not LEVELS, reason=f"no _C: {_native.why_not()}")
@pytest.mark.parametrize("level", LEVELS)
def test_level(level):
    done = run(level)
    if "at most" in done.stderr + done.stdout and level != "baseline":
        pytest.skip(f"this CPU has no {level}")
    assert done.returncode == 0, done.stderr
    assert "leaky_relu" in done.stdout
    assert "reparam_kl" in done.stdout


@pytest.mark.skipif(not LEVELS, reason=f"no _C: {_native.why_not()}")
def test_unknown_level_is_refused():
    code = "import torch, genimg; genimg.ops.leaky_relu(torch.ones(2), backend='cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GENIMG_CPU_ISA": "sse9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "GENIMG_CPU_ISA=sse9" in done.stderr
