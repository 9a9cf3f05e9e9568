"""The roofline of the benchmarks."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from genimg.work import Work

SOURCE = Path(__file__).parents[1] / "benchmarks/roofline.py"
pytestmark = pytest.mark.skipif(not SOURCE.exists(), reason="not run from a source tree")


@pytest.fixture(scope="module")
def roofline():
    spec = importlib.util.spec_from_file_location("roofline", SOURCE)
    module = sys.modules["roofline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bound_is_the_slower_of_both(roofline):
    machine = roofline.Machine(operations=100.0, bandwidth=10.0)
    assert roofline.seconds(Work(200.0, 10.0), machine) == 2
    assert roofline.seconds(Work(200.0, 40.0), machine) == 4
    assert roofline.bound([Work(200.0, 10.0), Work(200.0, 40.0)], machine) == 6


def test_measure(roofline):
    machine = roofline.measure("cpu", torch.float32, copies=2)
    assert 1e8 < machine.operations < 1e15
    assert 1e8 < machine.bandwidth < 1e14
