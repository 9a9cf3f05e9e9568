"""Arguments that PyTorch refuses raise PyTorch's type of exception under every backend."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from genimg import _native
from genimg.ops import (
    Activation,
    BatchNorm,
    ConvBlock,
    Direction,
    batch_norm_act,
    conv2d,
    conv_stack,
    conv_transpose2d,
    leaky_relu,
    reparam_kl,
)

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
)
every_backend = pytest.mark.parametrize("backend", [None, CPU, "reference"])
NO_TENSORS = [np.ones((2, 3, 8, 8), np.float32), [1.0], None, 3.0]
no_tensor = pytest.mark.parametrize("bad", NO_TENSORS, ids=["numpy", "list", "None", "float"])


def image():
    return torch.randn(2, 3, 8, 8)


def kernel():
    return torch.randn(3, 3, 4, 4)


def stack_as_conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, backend):
    block = ConvBlock(
        Direction.DOWN, weight, bias, stride, padding, dilation=dilation, groups=groups
    )
    return conv_stack(x, [block], training=True, backend=backend)


def stack_as_conv_transpose2d(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, backend
):
    options = (stride, padding, output_padding, dilation, groups)
    block = ConvBlock(Direction.UP, weight, bias, *options)
    return conv_stack(x, [block], training=True, backend=backend)


def stack_as_batch_norm(x, mean, var, weight, bias, training, momentum, eps, *, backend):
    """Behind a convolution that changes nothing."""
    norm = BatchNorm(mean, var, weight, bias, momentum, eps)
    identity = torch.eye(3).view(3, 3, 1, 1).to(x.dtype)
    block = ConvBlock(Direction.DOWN, identity, norm=norm)
    return conv_stack(x, [block], training=training, backend=backend)


def batch_norm(*args, backend):
    return batch_norm_act(*args, negative_slope=1.0, backend=backend)


CONVOLUTIONS = [
    (conv2d, F.conv2d),
    (conv_transpose2d, F.conv_transpose2d),
    (stack_as_conv2d, F.conv2d),
    (stack_as_conv_transpose2d, F.conv_transpose2d),
]
NORMS = [(batch_norm, F.batch_norm), (stack_as_batch_norm, F.batch_norm)]
CONVOLUTION_OPTIONS = [
    *({"stride": value} for value in ((1, 2, 3), (), "2", 2.0, True, None, (2, "a"), 0, -1)),
    *({"padding": value} for value in ((1, 2, 3), 1.0, None, -1)),
    *({"dilation": value} for value in ((1, 2, 3), "1", None)),
    *({"groups": value} for value in ("1", 1.0, None, (1,), 0)),
]
BATCH_NORM_OPTIONS = [
    *({"training": value} for value in (1, None, "a", np.bool_(True))),
    *({"momentum": value} for value in ("a", 2j)),
    *({"eps": value} for value in ("a", None, 0.0, -1.0)),
]


def assert_refuses_alike(ours, theirs):
    with pytest.raises(Exception) as expected:
        theirs()
    with pytest.raises(expected.type) as got:
        ours()
    assert got.type is expected.type


@no_tensor
@every_backend
def test_no_tensor(bad, backend):
    x, weight = image(), kernel()
    for ours, theirs in CONVOLUTIONS:
        assert_refuses_alike(
            lambda f=ours: f(bad, weight, backend=backend), lambda f=theirs: f(bad, weight)
        )
        assert_refuses_alike(lambda f=ours: f(x, bad, backend=backend), lambda f=theirs: f(x, bad))
        if bad is not None:
            assert_refuses_alike(
                lambda f=ours: f(x, weight, bad, backend=backend),
                lambda f=theirs: f(x, weight, bad),
            )
    assert_refuses_alike(lambda: leaky_relu(bad, backend=backend), lambda: F.leaky_relu(bad))
    for args in [(bad, None, None, None, None, True), *norm_arguments_with(bad)]:
        with pytest.raises(TypeError):
            batch_norm_act(*args, backend=backend)
    for args in [(bad, x), (x, bad)]:
        with pytest.raises(TypeError):
            reparam_kl(*args, backend=backend)
    with pytest.raises(TypeError):
        conv_stack(x, bad, training=True, backend=backend)


def norm_arguments_with(bad):
    if bad is not None:
        x, c = image(), torch.ones(3)
        yield from [(x, bad, c), (x, c, bad), (x, c, c, bad), (x, c, c, c, bad)]


@pytest.mark.parametrize("option", CONVOLUTION_OPTIONS, ids=str)
@every_backend
def test_options_of_convolutions(option, backend):
    for ours, theirs in CONVOLUTIONS:
        assert_refuses_alike(
            lambda f=ours: f(image(), kernel(), **option, backend=backend),
            lambda f=theirs: f(image(), kernel(), **option),
        )


@pytest.mark.parametrize("value", [2, -1, (0, 1, 0), "1", None], ids=str)
@every_backend
def test_output_padding(value, backend):
    for ours in (conv_transpose2d, stack_as_conv_transpose2d):
        assert_refuses_alike(
            lambda f=ours: f(image(), kernel(), None, 1, 0, value, backend=backend),
            lambda: F.conv_transpose2d(image(), kernel(), None, 1, 0, value),
        )


@pytest.mark.parametrize("slope", ["0.2", None, 2j, (1,)], ids=str)
@every_backend
def test_slopes(slope, backend):
    assert_refuses_alike(
        lambda: leaky_relu(image(), slope, backend=backend), lambda: F.leaky_relu(image(), slope)
    )
    block = ConvBlock(
        Direction.DOWN, kernel(), activation=Activation.LEAKY_RELU, negative_slope=slope
    )
    for ours in (
        lambda: batch_norm_act(
            image(), None, None, training=True, negative_slope=slope, backend=backend
        ),
        lambda: conv_stack(image(), [block], training=True, backend=backend),
    ):
        assert_refuses_alike(ours, lambda: F.leaky_relu(image(), slope))


@pytest.mark.parametrize("option", BATCH_NORM_OPTIONS, ids=str)
@every_backend
def test_options_of_batch_norms(option, backend):
    options = {"training": True, "momentum": 0.1, "eps": 1e-5, **option}
    for ours, theirs in NORMS:

        def call(f, **more):
            statistics = (torch.zeros(3), torch.ones(3))
            f(image(), *statistics, None, None, *options.values(), **more)

        assert_refuses_alike(lambda f=ours: call(f, backend=backend), lambda f=theirs: call(f))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0,), (3,), (), (1,), (0, 3), (1, 3)], ids=str)
@every_backend
def test_batch_norm_of_few_dimensions(shape, training, backend):
    def call(f, **more):
        size = shape[1] if len(shape) > 1 else 0
        mean, var = torch.zeros(size), torch.ones(size)
        return f(torch.ones(shape), mean, var, None, None, training, 0.1, 1e-5, **more)

    try:
        expected = call(F.batch_norm)
    except Exception:
        assert_refuses_alike(lambda: call(batch_norm, backend=backend), lambda: call(F.batch_norm))
    else:
        if backend != "cpu" or len(shape) < 2:  # the kernel refuses empty tensors
            assert torch.equal(call(batch_norm, backend=backend), expected)


@every_backend
def test_one_value_per_channel(backend):
    def call(f, **more):
        f(image()[:1, :, :1, :1], None, None, None, None, True, 0.1, 1e-5, **more)

    for ours, theirs in NORMS:
        assert_refuses_alike(lambda f=ours: call(f, backend=backend), lambda f=theirs: call(f))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("training", [True, False])
@every_backend
def test_statistics_that_require_gradients(which, training, backend):
    for ours, theirs in NORMS:

        def call(f, **more):
            statistics = [torch.zeros(3), torch.ones(3)]
            statistics[which].requires_grad_()
            x = image().requires_grad_()
            y = f(x, *statistics, None, None, training, 0.1, 1e-5, **more)
            return y, statistics

        assert_refuses_alike(lambda f=ours: call(f, backend=backend), lambda f=theirs: call(f))
        with torch.no_grad():
            torch.manual_seed(0)
            y, statistics = call(ours, backend=backend)
            torch.manual_seed(0)
            expected, states = call(theirs)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(statistics, states)


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize(
    ("x_dtype", "parameters", "statistics"),
    [
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16, torch.float16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
    ],
)
@every_backend
def test_mixed_dtypes(x_dtype, parameters, statistics, size, backend):
    """Above and below the sizes from which on auto takes a kernel."""

    def call(f, **more):
        c = torch.ones(16, dtype=parameters)
        mean, var = torch.zeros(16, dtype=statistics), torch.ones(16, dtype=statistics)
        x = torch.ones(64, 16, size, size, dtype=x_dtype)
        return f(x, mean, var, c, c, True, 0.1, 1e-5, **more)

    try:
        expected = call(F.batch_norm)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            call(batch_norm, backend=backend)
    else:
        torch.testing.assert_close(call(batch_norm, backend=backend), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "block 0 to have as direction a Direction, but got str"),
        ({"activation": "tanh"}, "block 0 to have as activation a Activation, but got str"),
        ({"norm": torch.nn.BatchNorm2d(3)}, "as norm a BatchNorm, but got BatchNorm2d"),
    ],
)
def test_parts_of_a_block(options, message):
    block = ConvBlock(**{"direction": Direction.DOWN, "weight": kernel(), **options})
    with pytest.raises(TypeError, match=message):
        conv_stack(image(), [block], training=True)
