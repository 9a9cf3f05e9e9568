"""The guarantees of every op; each op's own tests are in its own file."""

from functools import partial

import pytest
import torch
from op_checks import (
    HALF_PRECISION_CASES,
    assert_compiles,
    assert_derivatives,
    assert_exports,
    case_of,
    tensors_and_function,
)

import genimg
from genimg import _native
from genimg.backends import OPS
from genimg.kernels.triton import runtime as triton_runtime
from genimg.testing import prepare, run

# One case of each op that has neither randomness outside it nor a state that is an edge by itself.
TYPICAL = {
    "batch_norm_act": "primes",
    "conv2d": "k4s2p1_primes",
    "conv2d_avg_pool": "k3_primes",
    "conv_stack": "generator",
    "conv_transpose2d": "k4s2p1_primes",
    "leaky_relu": "primes",
    "reparam_kl": "primes",
    "upsample_conv2d": "k3_primes",
}
SMALL = {
    "batch_norm_act": "two_values",
    "conv2d": "one_pixel",
    "conv2d_avg_pool": "one_window",
    "conv_stack": "one_block",
    "conv_transpose2d": "one_pixel",
    "leaky_relu": "slope_negative",
    "reparam_kl": "one_element",
    "upsample_conv2d": "one_pixel",
}


@pytest.fixture
def typical(op, backend):
    """A typical case; a shorter one in Triton's interpreter, which takes a second a layer."""
    if backend == "triton" and OPS[op].composed:
        return case_of(op, SMALL[op])
    is_long = backend == "triton" and op == "conv_stack"
    return case_of(op, "vae_decoder" if is_long else TYPICAL[op])


@pytest.fixture(params=["auto", "cpu", "triton"])
def backend(request):
    """The backend. For the small cases here auto mostly selects the reference."""
    if request.param == "cpu" and not _native.available():
        pytest.skip(_native.why_not())
    if request.param == "triton":
        if triton_runtime.MISSING is not None:
            pytest.skip(triton_runtime.MISSING)
        if "cpu" not in triton_runtime.DEVICES:
            pytest.skip("Triton's kernels take tensors on the CPU in its interpreter only")
        if "triton" not in OPS[request.getfixturevalue("op")].by_backend:
            pytest.skip("no Triton kernel yet")
    with genimg.use_backend(request.param):
        yield request.param


@pytest.fixture
def traced_backend(backend, request):
    """The interpreter's kernels cannot be traced; test_triton_trace.py traces the real ones."""
    if "triton" in request.node.callspec.id:
        pytest.skip("the interpreter cannot be traced")


def test_every_op_is_here():
    assert set(TYPICAL) == set(SMALL) == set(OPS)
    for op, names in HALF_PRECISION_CASES.items():
        assert set(names) <= {case.name for case in OPS[op].cases}


@pytest.mark.parametrize("op", TYPICAL)
def test_double_backward(op):
    assert_derivatives(op, case_of(op, SMALL[op]))


@pytest.mark.parametrize("op", TYPICAL)
def test_compile(op, traced_backend):
    assert_compiles(op, case_of(op, TYPICAL[op]))


@pytest.mark.parametrize("op", TYPICAL)
def test_export(op, traced_backend):
    assert_exports(op, case_of(op, TYPICAL[op]))


@pytest.mark.parametrize("op", ["batch_norm_act", "conv2d", "conv_transpose2d", "leaky_relu"])
def test_export_with_any_batch(op, traced_backend):
    """Auto's limits of size must not tie the graph to the batch that it was exported with."""
    weight = torch.randn(32, 32, 4, 4)

    class Layer(torch.nn.Module):
        def forward(self, x):
            if op.startswith("conv"):
                return OPS[op].function(x, weight, None, 2, 1)
            if op == "leaky_relu":
                return OPS[op].function(x, 0.2)
            return OPS[op].function(x, torch.zeros(32), torch.ones(32))

    batch = {"x": {0: torch.export.Dim("n", min=2)}}
    exported = torch.export.export(Layer(), (torch.randn(3, 32, 8, 8),), dynamic_shapes=batch)
    x = torch.randn(70, 32, 8, 8)
    torch.testing.assert_close(exported.module()(x), Layer()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", TYPICAL)
def test_reads_its_inputs_only(op, typical):
    tensors = prepare(typical, torch.float32, "cpu")
    before = {name: x.clone() for name, x in tensors.items()}
    versions = {name: x._version for name, x in tensors.items()}
    run(typical, OPS[op].function, tensors)  # works on copies of what the case lists as written
    for name, x in tensors.items():
        assert torch.equal(x, before[name]), name
        assert x._version == versions[name], name


@pytest.mark.parametrize("op", TYPICAL)
def test_without_grad(op, typical):
    _, function = tensors_and_function(op, typical, torch.float32)
    leaves, _ = tensors_and_function(op, typical, torch.float32)
    expected = function(*leaves)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got = function(*leaves)
        torch.testing.assert_close(got, expected)
        for y in got if isinstance(got, tuple) else (got,):
            assert not y.requires_grad


@pytest.mark.parametrize("op", TYPICAL)
def test_each_input_alone(op, typical):
    """Only what asks for a gradient gets one."""
    leaves, function = tensors_and_function(op, typical, torch.float32)
    outputs = function(*leaves)
    y = outputs[0] if isinstance(outputs, tuple) else outputs
    every = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)
    for i, expected in enumerate(every):
        alone = tuple(x.detach().requires_grad_(i == j) for j, x in enumerate(leaves))
        outputs = function(*alone)
        y = outputs[0] if isinstance(outputs, tuple) else outputs
        if expected is not None:
            y.square().sum().backward()
            torch.testing.assert_close(alone[i].grad, expected)
        assert all(x.grad is None for j, x in enumerate(alone) if j != i)


@pytest.mark.parametrize("op", TYPICAL)
def test_checkpoint(op, typical):
    """Recomputed in backward, to the bit; reparam_kl's noise, drawn by a seed, included."""
    leaves, function = tensors_and_function(op, typical, torch.float32)

    def loss(*args):
        outputs = function(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(y.square().sum() for y in outputs)

    expected = torch.autograd.grad(loss(*leaves), leaves)
    for reentrant in (False, True):
        y = torch.utils.checkpoint.checkpoint(loss, *leaves, use_reentrant=reentrant)
        y.backward()
        for x, grad in zip(leaves, expected, strict=True):
            assert torch.equal(x.grad, grad)
            x.grad = None


@pytest.mark.parametrize("op", TYPICAL)
def test_two_runs_agree(op, typical):
    tensors = prepare(typical, torch.float32, "cpu")
    first, grad_outputs = run(typical, OPS[op].function, tensors)
    second, _ = run(typical, OPS[op].function, tensors, grad_outputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("op", TYPICAL)
def test_refuses_unknown_backend(op):
    case = case_of(op, TYPICAL[op])
    with pytest.raises(ValueError, match="unknown backend 'cudnn'.*reference"):
        run(case, partial(OPS[op].function, backend="cudnn"), prepare(case, torch.float32, "cpu"))


@pytest.mark.parametrize("op", TYPICAL)
def test_named_backend_raises_its_reason(op):
    case = case_of(op, TYPICAL[op])
    with pytest.raises(genimg.BackendError, match=f"{op} cannot run as asked. cuda: .+"):
        run(
            case,
            partial(OPS[op].function, backend="cuda"),
            prepare(case, torch.float32, "cpu"),
        )


@pytest.mark.parametrize("op", TYPICAL)
def test_explain_agrees_with_the_call(op):
    case = case_of(op, TYPICAL[op])
    tables = []

    def explain(*args, **kwargs):
        tables.append(genimg.explain(op, *args, **kwargs))
        return OPS[op].function(*args, **kwargs)

    case.call(explain, prepare(case, torch.float32, "cpu"))
    (table,) = tables
    # The others' kernels win on larger tensors only, or tie with PyTorch.
    native = op in ("conv_stack", "reparam_kl") and _native.available()
    assert table.selected == ("cpu" if native else "reference")
    assert [row.backend for row in table.rows] == ["cuda", "cpu", "triton", "reference"]
    assert all(row.reason for row in table.rows)
    assert f"{op}: {table.selected}" in str(table)


@pytest.mark.parametrize("op", TYPICAL)
def test_func_transforms(op):
    """torch.func.grad and vjp give what autograd gives; nothing is silently zero."""
    case = case_of(op, TYPICAL[op])
    leaves, function = tensors_and_function(op, case, torch.float64)

    def loss(x):
        outputs = function(x, *(leaf.detach() for leaf in leaves[1:]))
        return (outputs[0] if isinstance(outputs, tuple) else outputs).square().sum()

    (expected,) = torch.autograd.grad(loss(leaves[0]), leaves[:1])
    torch.testing.assert_close(torch.func.grad(loss)(leaves[0].detach()), expected)
    _, tangent = torch.func.jvp(loss, (leaves[0].detach(),), (torch.ones_like(leaves[0]),))
    torch.testing.assert_close(tangent, expected.sum())
