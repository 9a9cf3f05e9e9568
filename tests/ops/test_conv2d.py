"""Convolution."""

import pytest
import torch
import torch.nn.functional as F
from op_checks import FLOATS, assert_case, small_cases

import genimg
from genimg.backends import OPS
from genimg.testing import integers

conv2d = genimg.ops.conv2d

OPTIONS = (None, 2, 1, 1, 1)  # of a call: bias, stride, padding, dilation, groups


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("conv2d"))
def test_forward_backward(case, dtype):
    assert_case("conv2d", case, dtype)


def test_unbatched():
    x, weight = torch.randn(3, 9, 9), torch.randn(4, 3, 4, 4)
    assert genimg.explain("conv2d", x, weight).selected == "reference"
    assert torch.equal(conv2d(x, weight, None, 2, 1), F.conv2d(x, weight, None, 2, 1))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "groups", "message"),
    [
        ((2, 5, 8, 8), (4, 3, 3, 3), None, 1, "expects an input of 3 channels, but got 5"),
        ((0, 5, 8, 8), (4, 3, 3, 3), None, 1, "expects an input of 3 channels, but got 5"),
        ((2, 3, 8, 8), (4, 3, 3, 3), (5,), 1, r"bias of shape \(4,\), but got \(5,\)"),
        ((2, 3, 8), (4, 3, 3), None, 1, "4-D weight"),
        ((8, 8), (4, 3, 3, 3), None, 1, "3-D .unbatched. or 4-D input"),
        ((2, 3, 8, 8), (4, 3, 3, 3), None, 0, "groups of at least 1, but got 0"),
    ],
)
def test_refuses_shapes(x, weight, bias, groups, message):
    bias = None if bias is None else torch.randn(bias)
    with pytest.raises(RuntimeError, match=message):
        conv2d(torch.randn(x), torch.randn(weight), bias, groups=groups)


def test_refuses_what_torch_answers_with_garbage():
    x, weight, bias = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    with pytest.raises(RuntimeError, match="input is on cpu and weight on meta"):
        conv2d(x, weight.to("meta"))
    with pytest.raises(RuntimeError, match=r"input is torch.float32 and bias torch.float64"):
        conv2d(x, weight, bias.double())


@pytest.mark.parametrize(
    "option", [{"stride": 0}, {"stride": -1}, {"padding": -1}, {"dilation": 0}]
)
def test_refuses_options_as_torch(option):
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with pytest.raises(Exception) as theirs:
        F.conv2d(x, weight, **option)
    with pytest.raises(type(theirs.value)):
        conv2d(x, weight, **option)


def test_refuses_what_is_no_tensor():
    with pytest.raises(TypeError):
        conv2d([1.0], torch.randn(4, 3, 3, 3))
    with pytest.raises(TypeError):
        conv2d(torch.randn(2, 3, 8, 8), None)


def test_autocast():
    x, weight, bias = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(x.bfloat16(), weight, bias)
        assert y.dtype == torch.bfloat16
        with genimg.use_backend("reference"):
            assert torch.equal(conv2d(x, weight, bias), F.conv2d(x, weight, bias))
    assert torch.equal(y, conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_that_nobody_asks_for_are_not_computed(backend):
    """autograd.grad(y, x), as in a gradient penalty, must not pay for the weight."""
    if reason := OPS["conv2d"].why_not(
        backend, torch.ones(2, 3, 8, 8), torch.ones(4, 3, 4, 4), *OPTIONS
    ):
        pytest.skip(reason)
    x = integers(torch.Generator(), 2, 3, 8, 8).float().requires_grad_()
    weight = torch.randn(4, 3, 4, 4, requires_grad=True)
    for wanted, mask in ((x, (True, False)), (weight, (False, True)), ((x, weight), (True, True))):
        y = conv2d(x, weight, None, 2, 1, backend=backend)
        with torch.profiler.profile(record_shapes=True) as profile:
            torch.autograd.grad(y.sum(), wanted)
        names = ("aten::convolution_backward", "genimg::conv2d_bwd")
        (call,) = [e for e in profile.events() if e.name in names]
        given = call.concrete_inputs
        assert tuple(given[-1][:2] if backend == "reference" else given[-2:]) == mask


def test_gradients_of_what_is_no_leaf():
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 4, 4)
    weight.requires_grad_()
    middle = 2 * x
    (grad,) = torch.autograd.grad(conv2d(middle, weight, None, 2, 1).sum(), middle)
    (twice,) = torch.autograd.grad(conv2d(2 * x, weight, None, 2, 1).sum(), x)
    assert torch.equal(2 * grad, twice)
    conv2d(2 * x, weight, None, 2, 1).sum().backward(inputs=[weight])
    assert x.grad is None
    assert weight.grad is not None
