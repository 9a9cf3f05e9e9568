"""Bytes and operations, against figures that were worked out by hand and against torch's counter.

The rates and the table are those of one NVIDIA H200 in bfloat16: 790 TFLOP/s, 4.3 TB/s, times in
microseconds, to the digits that are given.
"""

from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from genimg.backends import OPS
from genimg.cases.conv_stack import CASES
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction
from genimg.ops.contraction import contraction
from genimg.ops.conv_stack_work import stack_contractions
from genimg.ops.geometry import Geometry
from genimg.testing import prepare

OPERATIONS, BANDWIDTH = 790e12, 4.3e12
BATCHES = (128, 512, 2048)

# in, out, side, then at each batch: arithmetic, unfused memory, memory of the fused gradient of x
# and of the fused one of the weight.
LAYERS = [
    (512, 256, 4, (10.9, 2.4, 3.9, 4.4), (43.5, 6.8, 12.7, 11.7), (174, 24.4, 47.8, 41.0)),
    (256, 128, 8, (10.9, 3.2, 6.1, 5.4), (43.5, 11.9, 23.7, 20.0), (174, 47.1, 93.9, 78.5)),
    (128, 64, 16, (10.9, 5.9, 11.8, 9.9), (43.5, 23.5, 46.9, 39.1), (174, 93.7, 187, 156)),
    (64, 3, 32, (1.0, 4.6, 8.5, 4.6), (4.1, 18.5, 34.1, 18.5), (16.3, 74.1, 137, 74.1)),
    (256, 128, 5, (4.2, 1.4, 2.5, 2.4), (17.0, 4.8, 9.4, 8.1), (68.0, 18.5, 36.8, 31.0)),
    (128, 64, 10, (4.2, 2.3, 4.6, 3.9), (17.0, 9.2, 18.4, 15.4), (68.0, 36.6, 73.2, 61.1)),
    (64, 3, 20, (0.4, 1.8, 3.3, 1.8), (1.6, 7.2, 13.3, 7.2), (6.4, 29.0, 53.3, 29.0)),
    (256, 128, 4, (2.7, 1.0, 1.5, 1.7), (10.9, 3.2, 5.1, 5.4), (43.5, 11.9, 19.8, 20.0)),
    (128, 64, 8, (2.7, 1.5, 3.0, 2.6), (10.9, 5.9, 11.8, 9.9), (43.5, 23.5, 46.9, 39.1)),
    (64, 3, 16, (0.3, 1.2, 2.1, 1.2), (1.0, 4.6, 8.5, 4.6), (4.1, 18.5, 34.1, 18.5)),
]
# Whole generators: forward and backward at each batch, without the latent's gradient.
CHAINS = {
    "dcgan": (
        [(100, 512, 1), *(row[:3] for row in LAYERS[:4])],
        [(38, 81), (151, 322), (604, 1284)],
    ),
    "article": (
        [(100, 256, 1), *(row[:3] for row in LAYERS[4:7])],
        [(11, 24), (43, 94), (171, 372)],
    ),
}


def meta(*shape):
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def conv(x, weight, stride, padding, groups=1, transposed=False):
    geometry = Geometry(transposed, stride, padding, 0, groups, 1)
    return contraction(x.shape, x.dtype, weight, geometry)


def conv_transpose(x, weight):
    return conv(x, weight, 2, 1, transposed=True)


def bound(kernels):
    """Seconds on that GPU."""
    return sum(max(each.operations / OPERATIONS, each.moved / BANDWIDTH) for each in kernels)


def work(op, mode, grad, *args, **kwargs):
    return OPS[op].work(mode, grad, *args, **kwargs)


@pytest.mark.parametrize("row", LAYERS, ids=lambda row: "{}_{}_at_{}".format(*row))
def test_layers(row):
    inputs, outputs, side, *at_batches = row
    for images, expected in zip(BATCHES, at_batches, strict=True):
        x, weight = meta(images, inputs, side, side), meta(inputs, outputs, 4, 4)
        layer = conv_transpose(x, weight)
        # The last layers have no norm; before a VAE's first one is none either.
        normed, previous = outputs > 3, (inputs, side) != (256, 4)
        found = (
            layer.operations / OPERATIONS,
            layer.forward().moved / BANDWIDTH,
            layer.fused_x_gradient(normed, previous).moved / BANDWIDTH,
            layer.fused_weight_gradient(normed).moved / BANDWIDTH,
        )
        for value, given in zip(found, expected, strict=True):
            # Half a digit of rounding, on either side.
            assert value * 1e6 == pytest.approx(given, abs=0.051 if given < 100 else 0.51)


def generator(images, layers):
    blocks = []
    for inputs, outputs, side in layers:
        kernel = 5 if (inputs, outputs) == (100, 256) else 4  # to 5x5, or 4x4, pixels
        options = (1, 0) if side == 1 else (2, 1)
        last = outputs == 3
        blocks.append(
            ConvBlock(
                Direction.UP,
                meta(inputs, outputs, kernel, kernel),
                None,
                *options,
                norm=None if last else BatchNorm(None, None),
                activation=Activation.TANH if last else Activation.LEAKY_RELU,
            )
        )
    return meta(images, layers[0][0], 1, 1), blocks


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name):
    layers, times = CHAINS[name]
    for images, (forward, backward) in zip(BATCHES, times, strict=True):
        x, blocks = generator(images, layers)
        ahead = bound(work("conv_stack", "forward", (), x, blocks, training=True))
        both = bound(work("conv_stack", "forward_backward", (), x, blocks, training=True))
        assert ahead * 1e6 == pytest.approx(forward, abs=0.6)
        assert (both - ahead) * 1e6 == pytest.approx(backward, abs=0.6)


def test_a_strided_convolution_is_its_adjoint():
    small, large, weight = meta(8, 64, 16, 16), meta(8, 32, 32, 32), meta(64, 32, 4, 4)
    down, up = (
        conv(large, weight, 2, 1),
        conv_transpose(small, weight),
    )
    assert down.operations == up.operations == 2 * 8 * 256 * 64 * 32 * 16
    assert down.forward().moved == up.forward().moved
    assert (down.y, up.y) == (tuple(small.shape), tuple(large.shape))


def test_groups():
    grouped = conv(meta(2, 8, 5, 5), meta(6, 4, 3, 3), 1, 1, groups=2)
    assert grouped.operations == 2 * 2 * 25 * 6 * 4 * 9


def test_passes():
    """Batch norm with its activation: 3 and 5 of a tensor; 2 and 5 in eval mode."""
    x = meta(4, 8, 16, 16)
    nbytes = x.numel() * 2

    def passes(op, mode, *args, **kwargs):
        return sum(kernel.moved for kernel in work(op, mode, ("x",), *args, **kwargs)) / nbytes

    for training, forward in ((True, 3), (False, 2)):
        args = (x, None, None, None, None, training)
        assert passes("batch_norm_act", "forward", *args) == forward
        assert passes("batch_norm_act", "forward_backward", *args) == forward + 5
    assert passes("batch_norm_act", "forward", x, None, None, training=True) == 3
    assert passes("leaky_relu", "forward", x, 0.2) == 2
    assert passes("leaky_relu", "forward_backward", x, 0.2) == 5
    latents = meta(2048, 128)
    both = work("reparam_kl", "forward_backward", ("mu", "logvar"), latents, latents)
    assert sum(kernel.moved for kernel in both) == 8 * 2048 * 128 * 2 + 2 * 4 * 2048


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_work(op):
    case = next(case for case in OPS[op].cases if case.speed)
    seen = []

    def record(*args, **kwargs):
        seen.append(work(op, "forward_backward", case.grad, *args, **kwargs))
        return OPS[op].reference(*args, **kwargs)

    case.call(record, prepare(case, torch.float32, "cpu"))
    (kernels,) = seen
    assert all(kernel.moved > 0 and kernel.operations > 0 for kernel in kernels)


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d", "conv_stack"])
@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_operations_are_those_of_torch(op, mode):
    """Every case that torch's counter can run: stride, padding, groups, dilation, no batch."""
    compared = 0
    for case in OPS[op].cases:
        if "groups" in case.name and mode != "forward":
            continue  # torch counts the weight's gradient as if there was one group
        made = prepare(case, torch.float32, "cpu")
        for name in case.grad:
            made[name].requires_grad_()
        expected = []

        def record(*args, case=case, expected=expected, **kwargs):
            expected.extend(OPS[op].work(mode, case.grad, *args, **kwargs))
            return OPS[op].reference(*args, **kwargs)

        with FlopCounterMode(display=False) as counter:
            y = case.call(record, made)
            if mode != "forward":
                y.sum().backward()
        found = sum(kernel.operations for kernel in expected)
        assert counter.get_total_flops() == found, case.name
        compared += found > 0
    assert compared > 5


def test_stack_follows_its_shapes():
    case = next(case for case in CASES if case.speed)
    seen = []

    def record(x, blocks, *, training):
        seen.append(
            (
                stack_contractions(x, blocks),
                OPS["conv_stack"].reference(x, blocks, training=training),
            )
        )
        return seen[0][1]

    case.call(record, prepare(case, torch.float32, "cpu"))
    contractions, y = seen[0]
    assert contractions[-1].y == tuple(y.shape)
    for before, after in pairwise(contractions):
        assert before.y == after.x
