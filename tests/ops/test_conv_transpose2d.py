"""Transposed convolution."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from op_checks import FLOATS, assert_case, small_cases

import genimg
from genimg import _native, priors
from genimg.ops.conv_rules import why_slower_cpu
from genimg.ops.geometry import Geometry

conv_transpose2d = genimg.ops.conv_transpose2d


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("conv_transpose2d"))
def test_forward_backward(case, dtype):
    assert_case("conv_transpose2d", case, dtype)


def test_is_the_adjoint_of_conv2d():
    """<conv(x), y> = <x, conv_transpose(y)>: the definition, exact on integers."""
    x = torch.randint(-3, 4, (2, 3, 8, 10)).double()
    weight = torch.randint(-3, 4, (5, 3, 4, 4)).double()
    y = torch.randint(-3, 4, (2, 5, 4, 5)).double()
    left = (genimg.ops.conv2d(x, weight, None, 2, 1) * y).sum()
    assert left == (x * conv_transpose2d(y, weight, None, 2, 1)).sum()


@pytest.mark.parametrize(
    ("x", "weight", "bias", "groups", "message"),
    [
        ((2, 5, 4, 4), (3, 4, 4, 4), None, 1, "expects an input of 3 channels, but got 5"),
        ((0, 5, 4, 4), (3, 4, 4, 4), None, 1, "expects an input of 3 channels, but got 5"),
        ((2, 4, 4, 4), (4, 3, 4, 4), (3,), 2, r"bias of shape \(6,\), but got \(3,\)"),
        ((2, 3, 4), (3, 4, 4), None, 1, "4-D weight"),
        ((2, 3, 4, 4), (3, 4, 4, 4), None, -1, "groups of at least 1, but got -1"),
    ],
)
def test_refuses_shapes(x, weight, bias, groups, message):
    bias = None if bias is None else torch.randn(bias)
    with pytest.raises(RuntimeError, match=message):
        conv_transpose2d(torch.randn(x), torch.randn(weight), bias, groups=groups)


def test_refuses_what_torch_answers_with_garbage():
    """torch 2.13 on the CPU returns uninitialised memory for a weight on meta."""
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(3, 4, 4, 4)
    with pytest.raises(RuntimeError, match="input is on cpu and weight on meta"):
        conv_transpose2d(x, weight.to("meta"))
    with pytest.raises(RuntimeError, match=r"input is torch.float32 and weight torch.bfloat16"):
        conv_transpose2d(x, weight.bfloat16())


def test_refuses_output_padding_as_torch():
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(3, 4, 4, 4)
    with pytest.raises(RuntimeError, match="output padding"):
        F.conv_transpose2d(x, weight, None, 2, 1, 2)
    with pytest.raises(RuntimeError, match="output padding"):
        conv_transpose2d(x, weight, None, 2, 1, 2)


def test_autocast():
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.randn(3, 4, 4, 4), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_transpose2d(x, weight, bias, 2, 1)
    assert torch.equal(y, conv_transpose2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), 2, 1))
    assert y.dtype == torch.bfloat16


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
@pytest.mark.parametrize(
    ("x", "weight", "options", "reason"),
    [
        ((64, 256, 8, 8), (256, 128, 4, 4), (2, 1), None),
        ((64, 64, 32, 32), (64, 3, 4, 4), (2, 1), None),
        ((1, 100, 1, 1), (100, 512, 4, 4), (1, 0), None),
        ((64, 128, 8, 8), (128, 64, 3, 3), (2, 1, 1), "only 4x4 kernels"),
        ((4, 256, 8, 8), (256, 128, 4, 4), (2, 1), "below 700 million multiplications"),
        ((64, 16, 64, 64), (16, 16, 4, 4), (2, 1), "fewer than 32 channels"),
        ((2, 7, 5, 3), (7, 3, 4, 4), (2, 1), "the call costs more"),
    ],
)
def test_auto_takes_the_kernel_where_it_wins(x, weight, options, reason):
    x, weight = torch.empty(x, device="meta"), torch.empty(weight, device="meta")
    stride, padding, *output_padding = options
    geometry = Geometry(True, stride, padding, *(output_padding or [0]), 1, 1)
    why = why_slower_cpu(x, weight, geometry)
    assert why is None if reason is None else reason in why


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
def test_auto_trains_a_lone_last_layer_in_channels_last_only():
    x, weight = torch.randn(64, 64, 32, 32), torch.randn(64, 3, 4, 4, requires_grad=True)
    pixels = x.contiguous(memory_format=torch.channels_last)
    selected = [
        genimg.explain("conv_transpose2d", t, weight, None, 2, 1).selected for t in (x, pixels)
    ]
    assert selected == ["reference", "cpu"]
    with torch.no_grad():
        assert genimg.explain("conv_transpose2d", x, weight, None, 2, 1).selected == "cpu"


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
@pytest.mark.parametrize("has", [False, True])
def test_auto_leaves_bfloat16_to_dot_products(monkeypatch, has):
    """With dot products PyTorch's convolutions are faster, except the last layer's forward."""
    machines = dataclasses.replace(priors.CPU, bfloat16_products=has)
    monkeypatch.setattr(priors, "CPU", machines)

    def selected(x, weight, needs_grad):
        x = torch.empty(x, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight = torch.empty(weight, dtype=torch.bfloat16, requires_grad=needs_grad)
        return genimg.explain("conv_transpose2d", x, weight, None, 2, 1)

    hidden = selected((64, 256, 8, 8), (256, 128, 4, 4), False)
    assert ("dot products" in str(hidden)) == has
    assert hidden.selected == ("reference" if has else "cpu")
    assert selected((64, 64, 32, 32), (64, 3, 4, 4), False).selected == "cpu"
    assert selected((64, 64, 32, 32), (64, 3, 4, 4), True).selected == (
        "reference" if has else "cpu"
    )
