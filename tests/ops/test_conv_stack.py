"""A run of convolution blocks."""

import pytest
import torch
from contract import FLOATS, assert_case, small_cases

import genimg
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction

conv_stack = genimg.ops.conv_stack


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("conv_stack"))
def test_forward_backward(case, dtype):
    assert_case("conv_stack", case, dtype)


def layers():
    return torch.nn.Sequential(
        torch.nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False),
        torch.nn.BatchNorm2d(6),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Conv2d(6, 3, 3, padding=1),
        torch.nn.Sigmoid(),
    )


def test_is_the_layers_it_replaces():
    model = layers()
    deconv, norm, _, conv, _ = model
    x = torch.randn(2, 4, 5, 5)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    blocks = [
        ConvBlock(
            Direction.UP,
            deconv.weight,
            stride=2,
            padding=1,
            norm=BatchNorm(mean, var, norm.weight, norm.bias),
            activation=Activation.LEAKY_RELU,
            negative_slope=0.2,
        ),
        ConvBlock(Direction.DOWN, conv.weight, conv.bias, padding=1, activation=Activation.SIGMOID),
    ]
    assert torch.equal(conv_stack(x, blocks, training=True), model(x))
    assert torch.equal(mean, norm.running_mean)


def up(channels_in=4, channels_out=3, **options):
    return ConvBlock(Direction.UP, torch.randn(channels_in, channels_out, 4, 4), **options)


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "at least one block"),
        ([torch.nn.Tanh()], TypeError, "block 0 to be a ConvBlock, but got Tanh"),
        ([up(5)], RuntimeError, "block 0: .*expects an input of 5 channels, but got 4"),
        ([up(), up()], RuntimeError, "block 1: .*expects an input of 4 channels, but got 3"),
        ([up(bias=torch.zeros(2))], RuntimeError, r"block 0: expected a bias of shape \(3,\)"),
        (
            [ConvBlock(Direction.DOWN, torch.randn(3, 4, 3, 3), output_padding=1)],
            ValueError,
            "block 0: output_padding belongs to transposed",
        ),
        (
            [ConvBlock(Direction.UP, torch.randn(4, 3, 4, 4, device="meta"))],
            RuntimeError,
            "block 0: .*input is on cpu and weight on meta",
        ),
    ],
    ids=["empty", "no_block", "channels", "second_block", "bias", "output_padding", "device"],
)
def test_refuses(blocks, error, message):
    with pytest.raises(error, match=message):
        conv_stack(torch.randn(2, 4, 5, 5), blocks, training=True)


def test_refuses_an_unbatched_input_before_a_norm():
    """torch's functional batch norm would take the channels for the batch."""
    norm = BatchNorm(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="expected 4D input .got 3D input."):
        conv_stack(torch.randn(4, 5, 5), [up(norm=norm)], training=False)
    assert conv_stack(torch.randn(4, 5, 5), [up()], training=False).shape == (3, 8, 8)
