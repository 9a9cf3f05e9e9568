"""``genimg check``: every case, and a failure that shows."""

import pytest
import torch

from genimg import _native
from genimg.backends import OPS, Op
from genimg.check import check, check_case, taken
from genimg.testing import Case, normal


def test_every_op_and_kernel_is_seen():
    rows = list(check(ops=["leaky_relu", "reparam_kl"], dtypes=[torch.float32]))
    assert {row.op for row in rows} == {"leaky_relu", "reparam_kl"}
    assert all(row.ok for row in rows)
    if _native.available():
        assert "cpu" in {row.backend for row in rows}
    names = {row.case for row in rows if row.op == "leaky_relu"}
    assert names == {case.name for case in OPS["leaky_relu"].cases if not case.slow}


def test_a_wrong_op_fails():
    case = Case("wrong", "", lambda g: {"x": normal(g, 5)}, lambda op, t: op(t["x"]))
    op = Op("wrong", lambda x, backend=None: x * 1.01, lambda x: x * 1.0, (case,))
    try:
        row = check_case(op, case, "reference", torch.float32, "cpu")
    finally:
        del OPS["wrong"]
    assert not row.ok
    assert "FAILED" in str(row)


def test_backends_can_be_named():
    rows = list(check(ops=["conv2d"], backends=["reference"], dtypes=[torch.float64]))
    assert {row.backend for row in rows} == {"reference"}
    with pytest.raises(ValueError, match="unknown op 'conv3d'; there are"):
        list(check(ops=["conv3d"]))
    with pytest.raises(ValueError, match="unknown backend 'gpu'; there are cuda, cpu"):
        list(check(backends=["gpu"]))


def test_taken_is_what_auto_takes():
    case = next(c for c in OPS["conv2d"].cases if c.name == "groups")
    assert taken(OPS["conv2d"], case, torch.float32, "cpu") == "reference"
