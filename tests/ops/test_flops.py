"""FLOP counters find in a converted model what they find in a plain one."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import genimg
from genimg import _native
from genimg.ops import ConvBlock, Direction, conv2d, conv_stack, conv_transpose2d

pytestmark = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


def generator():
    return nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4, 1, 0, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 4, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.LeakyReLU(0.2),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 3, 3, 2, 1, output_padding=1),
        nn.Tanh(),
    )


def discriminator():
    return nn.Sequential(
        nn.Conv2d(8, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 20, 4, 2, 1), nn.ReLU()
    )


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts()["Global"]
    return counter.get_total_flops(), {str(packet).split(".")[0] for packet in counts}


def freeze_all_but(model, names):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(names is None or name in names)


@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize(
    ("make", "trained"),
    [
        (generator, None),
        (generator, ["3.weight"]),
        (generator, ["4.bias"]),
        (generator, ["0.weight", "8.bias"]),
        (generator, []),
        (discriminator, None),
        (discriminator, ["2.weight"]),
    ],
)
def test_a_converted_model(make, trained, needs_x):
    """Forward, and each gradient that is asked for."""
    plain = make()
    model = copy.deepcopy(plain)
    genimg.convert(model)
    x = torch.randn(2, 8, 16, 16)

    def step(each):
        y = each(x.clone().requires_grad_(needs_x))
        if y.requires_grad:
            y.sum().backward()

    for each in (model, plain):
        freeze_all_but(each, trained)
    with genimg.use_backend("cpu"):
        total, packets = counted_without_modules(lambda: step(model))
    assert "genimg.conv_stack_fwd" in packets
    assert all(packet.startswith("genimg.") for packet in packets)
    assert total == counted(lambda: step(plain))[0] > 0
    assert counted(lambda: step(model))[0] == total


def counted_without_modules(function):
    counter = FlopCounterMode(display=False)
    with counter:
        counter.mod_tracker.__exit__()  # its hooks on modules would have every layer called alone
        function()
    return counter.get_total_flops(), {*map(str, counter.get_flop_counts()["Global"])}


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(
    ("op", "theirs", "options"),
    [
        (conv2d, nn.functional.conv2d, ((2, 1), (1, 0))),
        (conv_transpose2d, nn.functional.conv_transpose2d, ((2, 3), (1, 0), (1, 2))),
    ],
    ids=["conv2d", "conv_transpose2d"],
)
def test_a_convolution(op, theirs, options, wanted):
    x, weight = torch.randn(2, 5, 9, 7), torch.randn(5, 5, 4, 3)
    leaves = [x.requires_grad_(), weight.requires_grad_()]

    def step(function, **more):
        y = function(x, weight, None, *options, **more)
        torch.autograd.grad(y.sum(), [leaves[i] for i in wanted])

    total, packets = counted(lambda: step(op, backend="cpu"))
    assert packets == {"genimg"}
    assert total == counted(lambda: step(theirs))[0] > 0


def test_a_stack_in_bfloat16_without_gradients():
    weight = torch.randn(4, 6, 4, 4).bfloat16()
    x = torch.randn(3, 4, 5, 6).bfloat16()
    block = ConvBlock(Direction.UP, weight, None, 2, 1)
    total, _ = counted(lambda: conv_stack(x, [block], training=False, backend="cpu"))
    assert total == 2 * x.numel() * 6 * 16


@pytest.mark.parametrize("first", ["genimg", "torch.utils.flop_counter"])
def test_in_any_order_of_imports(first):
    """A program may import the counter in the function that uses it; genimg does not import it."""
    script = f"""
import sys, torch, {first}
import genimg
assert {first != "genimg"} == ("torch.utils.flop_counter" in sys.modules)
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    genimg.ops.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2), backend="cpu")
assert counter.get_total_flops() == 2 * 9 * 4, counter.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
