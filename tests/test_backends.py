"""Choosing a backend."""

import os
import subprocess
import sys

import pytest
import torch

import genimg
from genimg.backends import OPS, Impl, Op, choose, use_backend


def make_op(refuse=lambda *args: None, why_slower=lambda *args: None):
    def function(x, *, backend=None):
        return x

    impl = Impl(
        *("cpu", ("cpu",), function, function, refuse, why_slower),
        dtypes=(torch.float32,),
        missing=lambda x: None,
    )
    op = Op("probe", function, function, (), (impl,), work=lambda *args: [])
    del OPS["probe"]
    return op


X = torch.zeros(2)


def test_auto_takes_the_kernel_that_serves():
    assert choose(make_op(), None, X) == "cpu"
    assert choose(make_op(), "auto", X) == "cpu"


def test_auto_passes_over_what_cannot_or_is_slower():
    assert choose(make_op(refuse=lambda x: "too odd"), None, X) == "reference"
    assert choose(make_op(why_slower=lambda x: "too small"), None, X) == "reference"


def test_a_name_wins_over_slowness_but_not_over_inability():
    assert choose(make_op(why_slower=lambda x: "too small"), "cpu", X) == "cpu"
    with pytest.raises(genimg.BackendError, match="probe cannot run as asked. cpu: too odd"):
        choose(make_op(refuse=lambda x: "too odd"), "cpu", X)


def test_names_are_tried_in_order():
    op = make_op(refuse=lambda x: "too odd")
    assert choose(op, "triton,cpu,reference", X) == "reference"
    assert choose(make_op(), "triton, cpu", X) == "cpu"
    with pytest.raises(genimg.BackendError, match=r"triton: probe has no triton kernel; cpu: too"):
        choose(op, "triton,cpu", X)


def test_other_dtypes_are_named():
    half = X.to(torch.float16)
    with pytest.raises(genimg.BackendError, match="dtype is float16; this kernel supports float32"):
        choose(make_op(), "cpu", half)
    assert choose(make_op(), None, half) == "reference"


def test_a_backend_that_is_missing_refuses_before_the_op_is_asked():
    def refuse(x):
        raise AssertionError

    op = make_op(refuse)
    object.__setattr__(op.by_backend["cpu"], "missing", lambda x: "it was never built")
    with pytest.raises(genimg.BackendError, match="cpu: it was never built"):
        choose(op, "cpu", X)


def test_other_devices_are_named():
    with pytest.raises(genimg.BackendError, match="on meta; this kernel supports cpu tensors"):
        choose(make_op(), "cpu", X.to("meta"))
    assert choose(make_op(), None, X.to("meta")) == "reference"


def test_use_backend_and_its_end():
    op = make_op()
    with use_backend("reference"):
        assert choose(op, None, X) == "reference"
        assert choose(op, "cpu", X) == "cpu"  # the call's own name is nearer
        with use_backend("auto"):
            assert choose(op, None, X) == "cpu"
        assert choose(op, None, X) == "reference"
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert choose(op, None, X) == "cpu"
    with pytest.raises(ValueError, match="unknown backend 'gpu'"), use_backend("gpu"):
        pass


def test_use_backend_reaches_compiled_code():
    torch._dynamo.reset()
    compiled = torch.compile(genimg.ops.leaky_relu, fullgraph=True, backend="eager")
    x = torch.randn(5)
    expected = compiled(x)
    with use_backend("cuda"), pytest.raises(Exception, match="cannot run as asked"):
        compiled(x)
    assert torch.equal(compiled(x), expected)


def test_explain():
    table = genimg.explain("leaky_relu", torch.randn(3), 0.2)
    assert table == genimg.explain(genimg.ops.leaky_relu, torch.randn(3), negative_slope=0.2)
    assert table.selected == "reference"
    assert "-> reference" in str(table)
    named = genimg.explain(
        "conv2d", torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), backend="cuda"
    )
    assert named.selected == "none"
    with pytest.raises(ValueError, match="no op 'conv9d'; there are batch_norm_act, conv2d"):
        genimg.explain("conv9d", X)
    with pytest.raises(TypeError, match="missing a required argument"):
        genimg.explain("conv2d", X)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_environment_selects_and_logs():
    code = "import torch, genimg; genimg.ops.leaky_relu(torch.randn(3)); print('served')"
    assert run_python(code, GENIMG_BACKEND="reference").stdout == "served\n"
    refused = run_python(code, GENIMG_BACKEND="cuda")
    assert "BackendError: leaky_relu cannot run as asked. cuda:" in refused.stderr
    unknown = run_python(code, GENIMG_BACKEND="cudnn")
    assert "ValueError: unknown backend 'cudnn'" in unknown.stderr
    logged = run_python(code, GENIMG_LOG="1")
    assert logged.stderr.count("[genimg] leaky_relu: not on cpu: ") == 1
    assert run_python(code).stderr == ""


def test_import_is_quick_and_leaves_no_trace():
    """No global state, no file, nothing heavy: Triton is imported when it is needed."""
    code = """
import sys, torch
state = torch.get_rng_state()
threads = torch.get_num_threads()
import time; start = time.perf_counter()
import genimg
assert time.perf_counter() - start < 3
assert torch.equal(torch.get_rng_state(), state)
assert torch.get_num_threads() == threads
assert torch.get_default_dtype() == torch.float32
assert torch.tensor(1e-40) * 1 != 0
for heavy in ("triton", "matplotlib", "sklearn", "click"):
    assert heavy not in sys.modules, heavy
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_explain_lists_the_switches(monkeypatch):
    x, weight = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3)

    before = genimg.explain("conv2d", x, weight).switches  # the interpreter, where the tests use it

    def switches(**options):
        found = genimg.explain("conv2d", x, weight, **options).switches
        return tuple(switch for switch in found if switch not in before)

    assert switches(backend="cpu") == ("backend='cpu' of this call selects the backend",)
    with use_backend("reference"):
        assert switches() == ("genimg.use_backend('reference') selects the backend",)
    with torch.autocast("cpu", torch.bfloat16):
        (switch,) = switches()
        assert switch.startswith("autocast casts to bfloat16 before the choice")
        assert switch not in genimg.explain("leaky_relu", x).switches
    monkeypatch.setenv("GENIMG_CPU_ISA", "baseline")
    monkeypatch.setenv("GENIMG_CUDA_SM90", "1")
    assert [switch.partition(":")[0] for switch in switches()] == [
        "GENIMG_CPU_ISA=baseline",
        "GENIMG_CUDA_SM90=1",
    ]
    assert "switch: GENIMG_CUDA_SM90=1: " in str(genimg.explain("conv2d", x, weight))


@pytest.mark.parametrize("variable", ["GENIMG_LOG", "GENIMG_AUTOTUNE", "GENIMG_CUDA_SM90"])
def test_unknown_values_of_the_environment_are_one_warning(variable):
    code = "import torch, genimg; [genimg.ops.leaky_relu(torch.randn(3)) for _ in range(2)]"
    done = run_python(code, **{variable: "yes"})
    assert done.returncode == 0
    warning = f"{variable}=yes is not a known value; known: 0, 1; it is ignored"
    assert done.stderr.count(warning) == 1
    assert "Warning" not in run_python(code, **{variable: "0"}).stderr
