"""Tensors may be edited in place between forward and backward where torch allows it."""

from __future__ import annotations

import pytest
import torch
from op_checks import needs_triton

import genimg
from genimg import _native
from genimg.kernels.triton import runtime as triton_runtime
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction
from genimg.ops.leaky_signs import pack_signs, through_signs

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
each_kernel = pytest.mark.parametrize(
    ("backend", "device"),
    [
        pytest.param("cpu", "cpu", marks=native),
        pytest.param("triton", triton_runtime.DEVICES[-1], marks=needs_triton),
    ],
    ids=["cpu", "triton"],
)


def conv_stack(x, weight, norm, activation, slope=0.2):
    channels = weight.shape[0]
    statistics = (torch.zeros(channels, device=x.device), torch.ones(channels, device=x.device))
    block = ConvBlock(
        Direction.DOWN,
        weight,
        None,
        2,
        1,
        norm=BatchNorm(*statistics) if norm else None,
        activation=activation,
        negative_slope=slope,
    )
    return genimg.ops.conv_stack(x, [block], training=True)


def norm_act(x, weight, slope):
    channels = x.shape[1]
    statistics = (torch.zeros(channels, device=x.device), torch.ones(channels, device=x.device))
    return genimg.ops.batch_norm_act(x, *statistics, training=True, negative_slope=slope)


LEAKY = Activation.LEAKY_RELU
OPS = {
    "conv2d": lambda x, w: genimg.ops.conv2d(x, w, None, 2, 1),
    "batch_norm": lambda x, w: norm_act(x, w, 1.0),
    "batch_norm_leaky": lambda x, w: norm_act(x, w, 0.2),
    "leaky_relu": lambda x, w: genimg.ops.leaky_relu(x, 0.2),
    "stack": lambda x, w: conv_stack(x, w, False, Activation.NONE),
    "stack_leaky": lambda x, w: conv_stack(x, w, False, LEAKY),
    "stack_relu": lambda x, w: conv_stack(x, w, False, LEAKY, 0.0),
    "stack_norm": lambda x, w: conv_stack(x, w, True, Activation.NONE),
    "stack_norm_leaky": lambda x, w: conv_stack(x, w, True, LEAKY),
}


def grads(op, edit, backend, device, edits_input=False):
    generator = torch.Generator().manual_seed(2)
    leaves = [torch.randn(s, generator=generator) for s in ((2, 3, 8, 8), (5, 3, 4, 4))]
    leaves = [x.to(device).requires_grad_() for x in leaves]
    x = leaves[0] * 1.0  # no leaf: those cannot be edited in any case
    with genimg.use_backend(backend):
        y = OPS[op](x, leaves[1])
    torch.manual_seed(3)
    edit(x if edits_input else y)
    return torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)


EDITS = {
    "add": lambda y: y.add_(1),
    "mul": lambda y: y.mul_(3),
    "dropout": lambda y: torch.nn.functional.dropout(y, inplace=True),
}


@each_kernel
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("op", OPS)
def test_output_may_be_edited(op, edit, backend, device):
    if op == "stack_relu":  # torch's own ReLU keeps its output; ours need not
        undone = grads(op, lambda y: None, backend, device)
        assert torch.equal(grads(op, lambda y: y.add_(0), backend, device)[0], undone[0])
        return
    got = grads(op, EDITS[edit], backend, device)
    for ours, theirs in zip(got, grads(op, EDITS[edit], "reference", "cpu"), strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


@each_kernel
@pytest.mark.parametrize("op", OPS)
def test_input_may_not(op, backend, device):
    """torch keeps it, too, and says so."""
    for name, where in ((backend, device), ("reference", "cpu")):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            grads(op, lambda x: x.add_(1), name, where, edits_input=True)


@each_kernel
@pytest.mark.parametrize("activation", [Activation.TANH, Activation.SIGMOID])
def test_output_of_a_curve_may_not(activation, backend, device, monkeypatch):
    monkeypatch.setitem(OPS, "curve", lambda x, w: conv_stack(x, w, False, activation))
    for name, where in ((backend, device), ("reference", "cpu")):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            grads("curve", lambda y: y.add_(1), name, where)


VALUES = torch.tensor([1.0, -1.0, 0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("slope", [0.2, 0.0, 1.0])
@pytest.mark.parametrize("size", [1, 7, 128, 5000])
def test_signs(size, slope, dtype):
    """The gradient of a LeakyReLU, or of torch's ReLU, by the signs of its output."""
    x = VALUES.repeat(size // 8 + 1)[:size].to(dtype).requires_grad_()
    grad = VALUES.repeat_interleave(8).repeat(size // 64 + 1)[:size].to(dtype)
    y = torch.relu(x) if slope == 0 else torch.nn.functional.leaky_relu(x, slope)
    signs = pack_signs(y.detach(), slope)
    if signs.dtype == torch.uint8:
        assert signs.numel() <= size / 8 + 16
    got = through_signs(grad, signs, slope, torch.contiguous_format)
    (expected,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@native
def test_raw_signs_refuse_what_does_not_fit():
    y = torch.randn(4, 6)
    with pytest.raises(RuntimeError, match="expected y to be dense"):
        torch.ops.genimg.leaky_signs(y[:, ::2], 0.2)
    with pytest.raises(RuntimeError, match="expected signs of 24 values"):
        torch.ops.genimg.leaky_signs_bwd(y, torch.zeros(3, dtype=torch.uint8), 0.2)
