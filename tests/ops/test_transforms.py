"""Transforms that only PyTorch's own ops support: forward mode and batched gradients."""

import pytest
import torch
from op_checks import case_of, needs_triton, tensors_and_function
from torch.autograd import forward_ad

import genimg
from genimg import _native
from genimg.backends import OPS

KERNELS = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not _native.available(), reason=f"{_native.why_not()}")
    ),
    pytest.param("triton", marks=needs_triton),
]
# A case of each op that a kernel supports, and that is quick in Triton's interpreter.
CASE = {
    "batch_norm_act": "primes",
    "conv2d": "k4s2p1_primes",
    "conv2d_avg_pool": "one_window",
    "conv_stack": "one_block",
    "conv_transpose2d": "k4s2p1_primes",
    "leaky_relu": "slope_negative",
    "reparam_kl": "primes",
    "upsample_conv2d": "one_pixel",
}
every_op = pytest.mark.parametrize("op", CASE)


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def tangents_of(function, leaves, tangents):
    with forward_ad.dual_level():
        given = (
            leaf if tangent is None else forward_ad.make_dual(leaf, tangent)
            for leaf, tangent in zip(leaves, tangents, strict=True)
        )
        return [forward_ad.unpack_dual(y).tangent for y in as_tuple(function(*given))]


@every_op
@pytest.mark.parametrize("trainable", [True, False])
def test_each_input_has_a_tangent(op, trainable):
    """Forward mode's is ``J t``, which two reverse passes give as well."""
    case = case_of(op, CASE[op])
    leaves, function = tensors_and_function(op, case, torch.float32)
    _, exact = tensors_and_function(op, case, torch.float64, "reference")
    for i, name in enumerate(case.grad):
        tangents = [torch.randn_like(x) if i == j else None for j, x in enumerate(leaves)]
        given = [x.detach().requires_grad_(trainable) for x in leaves]
        got = tangents_of(function, given, tangents)
        wide = [x.detach().double() for x in leaves]

        def alone(x, wide=wide, i=i):
            return exact(*wide[:i], x, *wide[i + 1 :])

        _, expected = torch.func.jvp(alone, (wide[i],), (tangents[i].double(),))
        for ours, theirs in zip(got, as_tuple(expected), strict=True):
            if ours is None:  # reparam_kl's KL of no tangent
                assert not theirs.any(), name
            else:
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)
        assert any(tangent is not None and tangent.any() for tangent in got), name


@every_op
@pytest.mark.parametrize("backend", KERNELS)
def test_a_named_kernel_refuses_a_tangent(op, backend):
    case = case_of(op, CASE[op])
    leaves, function = tensors_and_function(op, case, torch.float32, backend)
    for i in range(len(leaves)):
        tangents = [torch.ones_like(x) if i == j else None for j, x in enumerate(leaves)]
        with pytest.raises(genimg.BackendError, match=f"{backend}: .* forward-mode tangent"):
            tangents_of(function, leaves, tangents)
    with forward_ad.dual_level():
        function(*leaves)  # nothing is dual


@every_op
@pytest.mark.parametrize("backend", KERNELS)
def test_batched_gradients(op, backend):
    """``is_grads_batched=True`` and ``vmap`` over a backward: as one backward after the other."""
    case = case_of(op, CASE[op])
    leaves, function = tensors_and_function(op, case, torch.float32, backend)
    outputs = as_tuple(function(*leaves))
    grads = [torch.randn(3, *y.shape) for y in outputs]

    def backward(*grad_outputs):
        return torch.autograd.grad(outputs, leaves, grad_outputs, retain_graph=True)

    expected = [torch.stack(of_leaf) for of_leaf in zip(*map(backward, *grads), strict=True)]
    got = torch.autograd.grad(outputs, leaves, grads, retain_graph=True, is_grads_batched=True)
    with genimg.use_backend("reference"):
        vmapped = torch.func.vmap(backward)(*grads)
    for found in (got, vmapped):
        for ours, theirs in zip(found, expected, strict=True):
            assert not ours.requires_grad
            scale = float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * scale)


@every_op
@pytest.mark.parametrize("backend", KERNELS)
def test_batched_second_derivatives(op, backend):
    """A penalty on the gradient, differentiated for several directions at once."""
    leaves, function = tensors_and_function(op, case_of(op, CASE[op]), torch.float32, backend)
    (x, *_), outputs = leaves, as_tuple(function(*leaves))
    loss = sum(y.square().sum() for y in outputs)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    directions = torch.randn(2, *grad.shape)
    expected = [torch.autograd.grad(grad, x, v, retain_graph=True)[0] for v in directions]
    (got,) = torch.autograd.grad(grad, x, directions, is_grads_batched=True)
    scale = float(torch.stack(expected).abs().max())
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-4 * scale)


@every_op
@pytest.mark.parametrize("backend", KERNELS)
def test_a_gradient_with_a_tangent(op, backend):
    """Forward over reverse: a backward is linear in what comes to it."""
    leaves, function = tensors_and_function(op, case_of(op, CASE[op]), torch.float32, backend)
    outputs = as_tuple(function(*leaves))
    grads, tangents = ([torch.randn_like(y) for y in outputs] for _ in range(2))
    expected = torch.autograd.grad(outputs, leaves, tangents, retain_graph=True)
    with forward_ad.dual_level():
        duals = list(map(forward_ad.make_dual, grads, tangents))
        found = torch.autograd.grad(outputs, leaves, duals)
        got = [forward_ad.unpack_dual(x).tangent for x in found]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("op", "strategy"),
    [
        ("batch_norm_act", "reverse-mode"),
        ("batch_norm_act", "forward-mode"),
        ("conv_stack", "reverse-mode"),
        ("conv_stack", "forward-mode"),
        ("reparam_kl", "reverse-mode"),  # in the other, vmap refuses to draw
    ],
)
def test_vectorized_jacobian(op, strategy):
    leaves, function = tensors_and_function(op, case_of(op, CASE[op]), torch.float32)

    def of_x(x):
        return as_tuple(function(x, *leaves[1:]))[0][:, :2].flatten()[:20]

    expected = torch.autograd.functional.jacobian(of_x, leaves[0])
    got = torch.autograd.functional.jacobian(of_x, leaves[0], vectorize=True, strategy=strategy)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@every_op
def test_gradcheck_in_every_way(op):
    """Batched gradients and forward mode, of the reference in float64."""
    leaves, function = tensors_and_function(op, case_of(op, CASE[op]), torch.float64)
    assert torch.autograd.gradcheck(
        function, leaves, check_batched_grad=True, check_forward_ad=True, fast_mode=True
    )


@every_op
def test_explain_says_why_a_tangent_is_pytorchs(op):
    case = case_of(op, CASE[op])
    leaves, _ = tensors_and_function(op, case, torch.float32)
    given = dict(zip(case.grad, leaves, strict=True))
    tables = []

    def explain(*args, **kwargs):
        tables.append(genimg.explain(op, *args, **kwargs))
        return OPS[op].function(*args, **kwargs)

    with forward_ad.dual_level():
        last = case.grad[-1]  # of a stack, within its last block
        dual = forward_ad.make_dual(given[last], torch.ones_like(given[last]))
        made = case.tensors(torch.Generator().manual_seed(0))
        case.call(explain, {**{k: v.float() for k, v in made.items()}, **given, last: dual})
    assert tables[0].selected == "reference"
    if _native.available():
        assert "tangent" in next(row.reason for row in tables[0].rows if row.backend == "cpu")


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_second_derivative_of_a_bias_alone(op, backend):
    x, weight, bias = torch.randn(2, 3, 5, 5), torch.randn(3, 3, 4, 4), torch.randn(3)
    y = OPS[op].function(x, weight, bias.requires_grad_(), 2, 1, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), bias, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), bias)
    torch.testing.assert_close(second, torch.full((3,), 2.0 * y.numel() / 3))
