"""conv_stack's CUDA kernels beyond the op's cases: what is trained, and how float is multiplied."""

from functools import partial
from importlib import import_module

import pytest
import torch
from emulator.ops import emulated, last_kernel

from genimg.backends import OPS
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction, conv_stack
from genimg.testing import prepare

stacks = import_module("genimg.cases.conv_stack")
LEAKY = Activation.LEAKY_RELU


def stack_of(frozen):
    """Bias before a norm, a ReLU without one, tanh: x, blocks, trained tensors."""

    def draw(*shape):
        return torch.randn(shape).mul_(0.2).requires_grad_()

    x = torch.randn(2, 5, 5, 5, requires_grad=True)
    trained = [draw(5, 12, 4, 4), draw(12), draw(12), draw(12)]
    trained += [draw(8, 12, 3, 3), draw(8), draw(8, 3, 4, 4), draw(3)]
    statistics = torch.randn(2, 12).abs() + 0.5
    norm = BatchNorm(*statistics, trained[2], trained[3], training=False if frozen else None)
    blocks = [
        ConvBlock(Direction.UP, *trained[:2], 2, 1, norm=norm, activation=LEAKY),
        ConvBlock(Direction.DOWN, *trained[4:6], padding=1, activation=LEAKY, negative_slope=0.0),
        ConvBlock(Direction.UP, *trained[6:], 2, 1, activation=Activation.TANH),
    ]
    return x, blocks, [x, *trained]


def run(x, blocks, wanted, backend):
    y = conv_stack(x, blocks, training=True, backend=backend)
    return y, *torch.autograd.grad(y.square().sum(), wanted)


def assert_near(got, expected, room):
    for ours, theirs in zip(got, expected, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=room * max(scale, 1e-3))


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
def test_only_some_are_trained(frozen, monkeypatch):
    """All; a weight below, between and above; parameters alone."""
    x, blocks, tensors = stack_of(frozen)
    expected = run(x, blocks, tensors, "reference")
    with emulated("conv_stack", monkeypatch):
        every = run(x, blocks, tensors, "cuda")
        # The bias goes with the mean that a batch's norm takes away.
        assert (every[3].abs().max() == 0) == (not frozen)
        assert_near(every[:3] + every[4:], expected[:3] + expected[4:], 2e-5)
        if frozen:
            assert_near(every[3:4], expected[3:4], 2e-5)
        for chosen in ([1], [5], [8], [3, 6]):
            for i, tensor in enumerate(tensors):
                tensor.requires_grad_(i in chosen)
            _, *some = run(x, blocks, [tensors[i] for i in chosen], "cuda")
            for i, grad in zip(chosen, some, strict=True):
                assert torch.equal(grad, every[1 + i])


def test_tf32(monkeypatch):
    """Forward and gradients are near, and not what float gives."""
    x, blocks, tensors = stack_of(True)
    expected = run(x, blocks, tensors, "reference")
    with emulated("conv_stack", monkeypatch, precision="tf32"):
        got = run(x, blocks, tensors, "cuda")
    for ours, theirs in zip(got[:2], expected[:2], strict=True):
        assert (ours - theirs).abs().max() > 2e-5 * theirs.abs().max()
    assert_near(got, expected, 2e-2)


Layer, UP, DOWN = stacks.Layer, Direction.UP, Direction.DOWN
TANH = Layer(UP, 3, norm=False, activation=Activation.TANH)
# Whether the last launch, forward and backward, is the kernel for few channels.
FEW = {
    "last_layer": ((2, 5, 5, 7), (Layer(UP, 24), TANH), (True, False)),
    "frozen_last_layer": ((2, 5, 5, 7), (Layer(UP, 21, frozen=True), TANH), (True, False)),
    "first_layer": ((2, 3, 13, 27), (Layer(DOWN, 24), Layer(DOWN, 9)), (False, True)),
    "frozen_first_layer": (
        (2, 3, 13, 27),
        (Layer(DOWN, 21, frozen=True), Layer(DOWN, 9)),
        (False, True),
    ),
    "normed_last_layer": ((2, 5, 5, 7), (Layer(UP, 24), Layer(UP, 3)), (False, False)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FEW)
def test_few_channels_have_their_kernel(name, dtype, monkeypatch):
    """Behind a norm, and below one whose gradient goes through the batch's statistics or not."""
    shape, layers, expected = FEW[name]
    case, entry = stacks.make_case(name, "", shape, layers), OPS["conv_stack"]
    with emulated("conv_stack", monkeypatch):
        errors = entry.compare(case, "cuda", dtype)
        assert not [error for error in errors if not error.ok]
        backward = last_kernel()
        with torch.no_grad():
            case.call(partial(conv_stack, backend="cuda"), prepare(case, dtype, "cpu"))
        few = tuple("conv_dgrad_few_kernel" in kernel for kernel in (last_kernel(), backward))
    assert few == expected


def test_the_kernels_for_hopper_when_asked(monkeypatch):
    """A generator's inner layers; the last launches are dgrad forward and fprop backward."""
    monkeypatch.setenv("GENIMG_CUDA_SM90", "1")
    layers = (Layer(UP, 24), Layer(UP, 16, norm=False, activation=Activation.TANH))
    case, entry = stacks.make_case("hopper", "", (3, 16, 9, 8), layers), OPS["conv_stack"]
    with emulated("conv_stack", monkeypatch):
        errors = entry.compare(case, "cuda", torch.bfloat16)
        assert not [error for error in errors if not error.ok]
        assert "conv_sm90_fprop_kernel" in last_kernel()
        with torch.no_grad():
            case.call(partial(conv_stack, backend="cuda"), prepare(case, torch.bfloat16, "cpu"))
        assert "conv_sm90_dgrad_kernel" in last_kernel()
