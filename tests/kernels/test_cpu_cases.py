"""The cases that concern the CPU kernels alone."""

from __future__ import annotations

import cpu_cases
import pytest
import torch

from genimg import _native
from genimg.backends import OPS

CASES = [(op, case) for op, cases in cpu_cases.CASES.items() for case in cases]


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op}-{case.name}" for op, case in CASES])
def test_case(op, case, dtype):
    errors = OPS[op].compare(case, "cpu", dtype, "cpu")
    assert [error for error in errors if not error.ok] == []
