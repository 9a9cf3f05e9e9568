"""``genimg check``: every case, and a failure that shows."""

import re

import pytest
import torch

from genimg import _native
from genimg.backends import OPS, Op
from genimg.bench import timed_cases
from genimg.check import check, check_case, report, selected, worst
from genimg.testing import Case, Error, normal


def test_every_op_and_kernel_is_seen():
    rows = list(check(ops=["leaky_relu", "reparam_kl"], dtypes=[torch.float32]))
    assert {row.op for row in rows} == {"leaky_relu", "reparam_kl"}
    assert all(row.ok for row in rows)
    if _native.available():
        assert "cpu" in {row.backend for row in rows}
    names = {row.case for row in rows if row.op == "leaky_relu"}
    assert names == {case.name for case in OPS["leaky_relu"].cases if not case.slow}


def probe(function):
    case = Case("case", "", lambda g: {"x": normal(g, 5)}, lambda op, t: op(t["x"]))
    op = Op("probe", function, lambda x: x * 1.0, (case,), work=lambda *_: [])
    try:
        return check_case(op, case, "reference", torch.float32, "cpu")
    finally:
        del OPS["probe"]


def test_a_wrong_op_fails():
    row = probe(lambda x, backend=None: x * 1.01)
    assert not row.ok
    assert re.search("FAILED (y|grad_x) is off by .*, .* is allowed", str(row))


def test_an_exception_is_a_row_and_the_rest_goes_on():
    def broken(x, backend=None):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    failed, good = probe(broken), probe(lambda x, backend=None: x * 1.0)
    said = []
    assert report([failed, good], said.append) == 1
    assert said[1].endswith("FAILED OutOfMemoryError: CUDA out of memory.")
    assert said[2].endswith("ok")
    assert said[3:] == [
        "FAILED: probe case on reference in float32: OutOfMemoryError: CUDA out of memory.",
        "1 passed, 1 failed",
    ]


def test_a_nan_error_is_the_worst():
    good, nan = Error("y", 1.0, 1.0, 2.0, 1.0), Error("grad_x", float("nan"), 1.0, 2.0, 1.0)
    assert worst([good, nan]) is worst([nan, good]) is nan


def test_nothing_checked_is_no_success():
    said = []
    assert report([], said.append) == 1
    assert said[-1].startswith("nothing was checked")


def test_one_name_is_no_list_of_letters():
    rows = list(check(ops="leaky_relu", backends="reference", dtypes=[torch.float32]))
    assert {row.op for row in rows} == {"leaky_relu"}
    assert {op.name for op, _ in timed_cases("conv2d")} == {"conv2d"}


def test_backends_can_be_named():
    rows = list(check(ops=["conv2d"], backends=["reference"], dtypes=[torch.float64]))
    assert {row.backend for row in rows} == {"reference"}
    with pytest.raises(ValueError, match="unknown op 'conv3d'; there are"):
        list(check(ops=["conv3d"]))
    with pytest.raises(ValueError, match="unknown backend 'gpu'; there are cuda, cpu"):
        list(check(backends=["gpu"]))


def test_taken_is_what_auto_takes():
    case = next(c for c in OPS["conv2d"].cases if c.name == "groups")
    assert selected(OPS["conv2d"], case, torch.float32, "cpu") == "reference"
