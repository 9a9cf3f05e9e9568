"""Strides are torch's to the last one, also of dimensions of size 1: views hang on them."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest
import torch
from op_checks import needs_triton
from torch._subclasses.fake_tensor import FakeTensorMode

import genimg
from genimg import _native
from genimg.kernels.triton import runtime as triton_runtime
from genimg.memory_format import suggested_format
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
each_kernel = pytest.mark.parametrize(
    ("backend", "device"),
    [
        pytest.param("cpu", "cpu", marks=native),
        pytest.param("triton", triton_runtime.DEVICES[-1], marks=needs_triton),
    ],
    ids=["cpu", "triton"],
)


def laid(shape: tuple[int, ...], layout: str) -> torch.Tensor:
    """``contiguous`` or ``channels_last`` by its strides, where a size of 1 lets both fit, too."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    n, c, h, w = shape
    if layout == "channels_last":
        return torch.empty_strided(shape, (c * h * w, 1, w * c, c)).copy_(x)
    if layout == "rows_left_out":
        wide = torch.randn(n, 2 * h, w, c, generator=torch.Generator().manual_seed(1))
        return wide.permute(0, 3, 1, 2)[:, :, ::2]
    return x


def strides(function, leaves, backend, device, grad_layout="contiguous"):
    """The strides of the output and of all gradients."""
    leaves = [x.to(device).detach().requires_grad_() for x in leaves]
    with genimg.use_backend(backend):
        y = function(*leaves)
        grad_y = laid(y.shape, grad_layout).to(device) if y.dim() == 4 else torch.ones_like(y)
        grads = torch.autograd.grad(y, leaves, grad_y)
    return [tuple(x.stride()) for x in (y, *grads)]


@contextmanager
def several_threads():
    """PyTorch takes oneDNN for small convolutions where it has more than one thread.

    On one thread its own loop gives the gradient of a 1x1 weight other strides in dimensions of
    size 1, which no parameter's .grad shows.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def assert_strides(function, leaves, backend, device, grad_layout="contiguous"):
    got = strides(function, leaves, backend, device, grad_layout)
    with several_threads():
        assert got == strides(function, leaves, "reference", "cpu", grad_layout)


CONVOLUTIONS = {
    # Batches of two: torch's oneDNN. Its fallback for single images gives the gradient of a weight
    # with one input channel other strides still, which no parameter's .grad shows.
    "one_channel_out": ("up", (2, 3, 4, 4), (3, 1, 4, 4), 2, 1),
    "one_channel_in": ("down", (2, 1, 4, 4), (3, 1, 4, 4), 2, 1),
    "one_channel_in_transposed": ("up", (2, 1, 4, 4), (1, 3, 4, 4), 2, 1),
    "one_channel_both": ("down", (2, 1, 4, 4), (1, 1, 4, 4), 2, 1),
    "from_one_pixel": ("up", (2, 3, 1, 1), (3, 5, 4, 4), 1, 0),
    "to_one_pixel": ("down", (2, 3, 4, 4), (5, 3, 4, 4), 1, 0),
    "to_one_value": ("down", (2, 3, 4, 4), (1, 3, 4, 4), 1, 0),
    "one_tap": ("down", (2, 3, 4, 5), (5, 3, 1, 1), 1, 0),
    "one_image_to_one_channel": ("up", (1, 3, 4, 4), (3, 1, 4, 4), 2, 1),
    "one_row": ("down", (2, 3, 1, 5), (1, 3, 3, 3), 1, 1),
}


LAYOUTS = {
    "contiguous": ("contiguous", "contiguous", "channels_last"),
    "channels_last": ("channels_last", "channels_last", "contiguous"),
    "input_channels_last": ("channels_last", "contiguous", "contiguous"),
    "weight_channels_last": ("contiguous", "channels_last", "contiguous"),
}


@each_kernel
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case, layouts, backend, device):
    if backend == "triton" and not case.startswith(("one_channel_out", "one_channel_in", "to")):
        pytest.skip("the interpreter is slow, and the formats are the host's to choose")
    direction, x_shape, weight_shape, *options = CONVOLUTIONS[case]
    op = genimg.ops.conv2d if direction == "down" else genimg.ops.conv_transpose2d
    layout, weight_layout, grad_layout = LAYOUTS[layouts]
    leaves = [laid(x_shape, layout), laid(weight_shape, weight_layout)]
    assert_strides(lambda x, w: op(x, w, None, *options), leaves, backend, device, grad_layout)


@native
def test_one_channel_can_be_flattened():
    """A generator's last layer, and what discriminators do with its images."""
    x = torch.randn(2, 8, 14, 14).to(memory_format=torch.channels_last)
    for layer in (
        genimg.nn.ConvTranspose2d(8, 1, 4, 2, 1),
        torch.nn.ConvTranspose2d(8, 1, 4, 2, 1),
    ):
        with genimg.use_backend("cpu"):
            y = layer(x.contiguous())
        assert y.stride() == (784, 784, 28, 1)
        assert y.view(2, -1).shape == (2, 784)


SHAPES = {
    "one_channel": (2, 1, 4, 5),
    "one_pixel": (3, 4, 1, 1),
    "one_row": (2, 3, 1, 4),
    "one_column": (2, 3, 4, 1),
    "one_image": (1, 3, 4, 5),
    "one_of_all": (2, 1, 1, 1),
    "plain": (2, 3, 4, 5),
}


@each_kernel
@pytest.mark.parametrize("op", ["norm", "norm_relu", "leaky_relu", "reparam_kl"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "rows_left_out"])
@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise(shape, layout, op, backend, device):
    channels = SHAPES[shape][1]

    def norm(x, slope):
        statistics = (torch.zeros(channels, device=x.device), torch.ones(channels, device=x.device))
        return genimg.ops.batch_norm_act(x, *statistics, training=True, negative_slope=slope)

    functions = {
        "norm": lambda x: norm(x, 1.0),
        "norm_relu": lambda x: norm(x, 0.0),
        "leaky_relu": lambda x: genimg.ops.leaky_relu(x, 0.2),
        "reparam_kl": lambda x: genimg.ops.reparam_kl(x, x * 0.5)[0],
    }
    if backend == "triton" and shape in ("one_row", "one_column", "one_image", "one_of_all"):
        pytest.skip("the interpreter is slow, and the formats are the host's to choose")
    if op == "reparam_kl" and layout == "rows_left_out":
        pytest.skip("torch has no such op; its elementwise ones lose the gap in several ways")
    # Where a gradient's format meets the input's, torch's elementwise ops mix the two in dimensions
    # of size 1. TensorIterator does that for the CPU's leaky_relu; the others keep the input's.
    alone = op == "reparam_kl" or (op == "leaky_relu" and backend != "cpu")
    for grad_layout in (layout,) if alone else ("contiguous", "channels_last"):
        x = laid(SHAPES[shape], layout)
        assert_strides(functions[op], [x], backend, device, grad_layout)


@native
def test_batch_norm_keeps_channels_last_3d():
    x = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    statistics = (torch.zeros(3), torch.ones(3))
    ours, theirs = (
        genimg.ops.batch_norm_act(x, *statistics, training=True, negative_slope=0.2, backend=name)
        for name in ("cpu", "reference")
    )
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == theirs.stride()


def stack(*channels, kernel=4, norm=False, activation=Activation.LEAKY_RELU):
    blocks = []
    for before, after in itertools.pairwise(channels):
        statistics = BatchNorm(torch.zeros(after), torch.ones(after)) if norm else None
        weight = torch.randn(after, before, kernel, kernel)
        blocks.append(
            ConvBlock(Direction.DOWN, weight, None, 2, 1, norm=statistics, activation=activation)
        )
    return blocks


STACKS = {
    "one_channel": stack(3, 1),
    "one_channel_without_activation": stack(3, 1, activation=Activation.NONE),
    "through_one_channel": stack(3, 1, 4),
    "through_one_channel_without_activation": stack(3, 1, 4, activation=Activation.NONE),
    "to_one_pixel": stack(3, 4, 5, 6),
    "norm_of_one_channel": stack(3, 1, norm=True, activation=Activation.NONE),
    "tanh_of_one_channel": stack(3, 1, activation=Activation.TANH),
}


@each_kernel
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", STACKS)
def test_stack(case, layout, backend, device):
    blocks = STACKS[case]
    leaves = [laid((2, 3, 8, 8), layout), *(laid(tuple(b.weight.shape), layout) for b in blocks)]

    def function(x, *weights):
        given = [
            ConvBlock(
                b.direction,
                weight,
                None,
                b.stride,
                b.padding,
                norm=b.norm
                and BatchNorm(b.norm.running_mean.to(x.device), b.norm.running_var.to(x.device)),
                activation=b.activation,
            )
            for b, weight in zip(blocks, weights, strict=True)
        ]
        return genimg.ops.conv_stack(x, given, training=True)

    assert_strides(function, leaves, backend, device)


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", ["one_channel_out", "to_one_pixel", "one_channel_in", "plain"])
def test_fakes_have_the_kernels_strides(case, layout):
    """The fakes of the raw ops, which torch.compile uses, have the strides of the kernels."""
    shapes = {**CONVOLUTIONS, "plain": ("down", (2, 3, 8, 8), (5, 3, 4, 4), 2, 1)}
    direction, x_shape, weight_shape, stride, padding = shapes[case]
    x, weight = laid(x_shape, layout), laid(weight_shape, layout)
    up = direction == "up"
    name, more = ("conv_transpose2d", ([0, 0],)) if up else ("conv2d", ())
    options = ([stride] * 2, [padding] * 2, *more)
    y = getattr(torch.ops.genimg, f"{name}_fwd")(x, weight, None, *options)
    grad_y = laid(y.shape, layout)
    block = [int(up), *[stride] * 2, *[padding] * 2, 0, 0, 0]
    parameters = [weight, None, None, None, None, None]
    kept = ([torch.empty(0)],) * 3  # raws, means, rstds
    calls = [
        (f"{name}_fwd", (x, weight, None, *options)),
        (f"{name}_bwd", (grad_y, x, weight, *options, True, True)),
        ("batch_norm_act_fwd", (x, None, None, None, None, True, 1e-5, 0.2)),
        ("batch_norm_act_fwd", (x, None, None, None, None, True, 1e-5, 1.0)),
        ("conv_stack_fwd", (x, parameters, [*block, 0], [0.0, 0.0], True, True)),
        ("conv_stack_fwd", (x, parameters, [*block, 1], [0.0, 0.2], True, True)),
        (
            "conv_stack_bwd",
            (grad_y, x, None, parameters, *kept, [*block, 0], [0.0, 0.0], True, True, [1]),
        ),
        ("leaky_signs", (x, 0.2)),
        ("leaky_relu_fwd", (x, 0.2)),
        ("reparam_kl_fwd", (x, x, torch.tensor([1, 2]))),
    ]
    for raw, args in calls:
        torch.library.opcheck(
            getattr(torch.ops.genimg, raw).default, args, test_utils=("test_faketensor",)
        )
        # opcheck looks at strides of sizes above 1 alone.
        real = torch.utils._pytree.tree_leaves(getattr(torch.ops.genimg, raw)(*args))
        with FakeTensorMode() as mode:
            fake_args = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args)
            fake = torch.utils._pytree.tree_leaves(getattr(torch.ops.genimg, raw)(*fake_args))
        assert [y.stride() for y in fake] == [y.stride() for y in real], raw


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "rows_left_out"])
def test_suggested_format_is_torchs(shape, layout):
    x = laid(SHAPES[shape], layout)
    assert suggested_format(x) == torch._prims_common.suggest_memory_format(x)
