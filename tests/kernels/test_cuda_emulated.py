"""Every case of every op with CUDA kernels, forward and all gradients, through the emulator."""

import pytest
import torch
from contract import small_cases
from emulated_ops import HOSTS, emulated

from genimg.backends import OPS, BackendError
from genimg.testing import compare

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [
    pytest.param(op, *case.values, id=f"{op}-{case.id}", marks=case.marks)
    for op in HOSTS
    for case in small_cases(op)
]


def test_every_cuda_kernel_is_here():
    assert {op for op, entry in OPS.items() if "cuda" in entry.by_backend} == set(HOSTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_case(op, case, dtype, monkeypatch):
    entry = OPS[op]
    with emulated(op, monkeypatch):
        try:
            errors = compare(
                case, entry.function, entry.reference, "cuda", dtype, factor=entry.error_factor
            )
        except BackendError as refusal:
            pytest.skip(str(refusal))
    assert not [error for error in errors if not error.ok]
