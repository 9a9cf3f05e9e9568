"""A run of convolution blocks."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from op_checks import FLOATS, assert_case, case_of, needs_triton, small_cases

import genimg
from genimg import _native, priors
from genimg.conv_blocks import NEEDS_OTHERS, NEEDS_WEIGHT, NormMode, PackedBlocks
from genimg.kernels.triton import runtime as triton_runtime
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction
from genimg.ops.conv_block import pack, restore
from genimg.testing import prepare

ROOT = Path(__file__).parents[2]
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
    torch.testing.assert_close(conv_stack(x, blocks, training=True), model(x))
    torch.testing.assert_close(mean, norm.running_mean)


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


native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
each_kernel = pytest.mark.parametrize(
    ("backend", "device"),
    [
        pytest.param("cpu", "cpu", marks=native),
        pytest.param("triton", triton_runtime.DEVICES[-1], marks=needs_triton),
    ],
    ids=["cpu", "triton"],
)


def stack_of(seed, device="cpu", frozen=False):
    """Bias before a norm, a block without one, a norm, tanh: (x, blocks, trained tensors)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).mul_(0.2).to(device).requires_grad_()

    x = torch.randn(2, 5, 7, 7, generator=generator).to(device).requires_grad_()
    statistics = (torch.randn(2, 12, generator=generator).abs() + 0.5).to(device)
    trained = [draw(5, 12, 4, 4), draw(12), draw(12), draw(12), draw(8, 12, 3, 3), draw(8)]
    trained += [draw(8, 3, 4, 4), draw(3)]
    norm = BatchNorm(*statistics, trained[2], trained[3], training=False if frozen else None)
    leaky = Activation.LEAKY_RELU
    blocks = [
        ConvBlock(Direction.UP, *trained[:2], 2, 1, norm=norm, activation=leaky),
        ConvBlock(Direction.DOWN, *trained[4:6], padding=1, activation=leaky, negative_slope=0.0),
        ConvBlock(Direction.UP, *trained[6:], 2, 1, activation=Activation.TANH),
    ]
    return x, blocks, trained


def grads_of(x, blocks, wanted, backend, training=True):
    y = conv_stack(x, blocks, training=training, backend=backend)
    return y, torch.autograd.grad(y.square().sum(), wanted)


def assert_near(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        scale = theirs[torch.isfinite(theirs)].abs().max() if theirs.numel() else 1.0
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=2e-5 * max(float(scale), 1e-3), equal_nan=True
        )


@each_kernel
@pytest.mark.parametrize("frozen", [False, True])
def test_bias_before_a_norm(backend, device, frozen):
    """Statistics of the batch cancel it, frozen ones do not."""
    x, blocks, trained = stack_of(3, device, frozen)
    (ours, got), (theirs, expected) = (
        grads_of(x, blocks, [x, *trained], name) for name in (backend, "reference")
    )
    assert_near([ours], [theirs])
    assert (got[2].abs().max() == 0) == (not frozen)
    assert_near(got[:2] + got[3:], expected[:2] + expected[3:])
    if frozen:
        assert_near(got[2:3], expected[2:3])


CHOSEN = [[0], [1], [3], [4], [7], [8], [2, 5]]


@pytest.mark.parametrize(
    ("backend", "device", "chosen"),
    [pytest.param("cpu", "cpu", chosen, marks=native) for chosen in CHOSEN]
    # The interpreter is slow: parameters below and between.
    + [pytest.param("triton", triton_runtime.DEVICES[-1], [2, 5], marks=needs_triton)],
)
def test_only_some_are_trained(backend, device, chosen):
    """Frozen layers below, above and between: what is asked for comes, and is the same."""
    x, blocks, trained = stack_of(4, device)
    tensors = [x, *trained]
    wanted = [tensors[i] for i in chosen]
    _, every = grads_of(x, blocks, tensors, backend)
    for tensor in tensors:
        tensor.requires_grad_(any(tensor is w for w in wanted))
    _, some = grads_of(x, blocks, wanted, backend)
    for i, grad in zip(chosen, some, strict=True):
        assert torch.equal(grad, every[i])


@pytest.mark.parametrize(
    ("backend", "device", "value"),
    [
        pytest.param("cpu", "cpu", float("nan"), marks=native),
        pytest.param("cpu", "cpu", float("inf"), marks=native),
        pytest.param("cpu", "cpu", 1e30, marks=native),
        # Direct sums treat all of them alike.
        pytest.param("triton", triton_runtime.DEVICES[-1], float("inf"), marks=needs_triton),
    ],
)
def test_not_finite(backend, device, value):
    """NaN and Inf stand where PyTorch puts them; the CPU kernels leave such images to it."""
    x, blocks, trained = stack_of(5, device, frozen=True)
    with torch.no_grad():
        x[1, 2, 3, 4] = value
    (ours, got), (theirs, expected) = (
        grads_of(x, blocks, trained, name) for name in (backend, "reference")
    )
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert_near([ours], [theirs])
    for grad, other in zip(got, expected, strict=True):
        assert torch.equal(grad.isfinite(), other.isfinite())


@each_kernel
def test_training_without_grad_takes_statistics(backend, device):
    """A generator's images for the discriminator's step."""
    x, blocks, _ = stack_of(6, device)
    norm = blocks[0].norm
    before = norm.running_mean.clone()
    with torch.no_grad():
        y = conv_stack(x, blocks, training=True, backend=backend)
    after = norm.running_mean.clone()
    assert not torch.equal(before, after)
    norm.running_mean.copy_(before)
    assert torch.equal(conv_stack(x, blocks, training=True, backend=backend), y)
    assert torch.equal(norm.running_mean, after)


def saved_bytes(function):
    """Bytes that a forward keeps for backward, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())


@native
def test_keeps_half_of_what_eager_keeps():
    case = case_of("conv_stack", "dcgan_generator")
    tensors = prepare(case, torch.float32, "cpu")
    for name in case.grad:
        tensors[name].requires_grad_()
    kept = {
        backend: saved_bytes(
            lambda backend=backend: case.call(partial(conv_stack, backend=backend), tensors)
        )
        for backend in ("cpu", "reference")
    }
    parameters = sum(tensors[name].nbytes for name in case.grad)
    assert kept["cpu"] - parameters < 0.55 * (kept["reference"] - parameters)


@native
def test_raw_ops_refuse_what_does_not_fit():
    fwd = torch.ops.genimg.conv_stack_fwd
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(3, 2, 4, 4)
    block = [weight, None, None, None, None, None]
    up, numbers = [1, 2, 2, 1, 1, 0, 0, 0, 0], [0.0, 1.0]
    y, *_ = fwd(x, block, up, numbers, True, False)
    assert y.shape == (2, 2, 8, 8)
    ends_in_tanh, running = [1, 2, 2, 1, 1, 0, 0, 0, 2], [1, 2, 2, 1, 1, 0, 0, 2, 0]
    for args, message in (
        ((x, block, up[1:], numbers), "9 options"),
        ((x, [None, *block[1:]], up, numbers), "block 0 has no weight"),
        ((x, [weight, None, torch.ones(3), None, None, None], up, numbers), r"shape \[2\]"),
        ((x, block * 2, [*ends_in_tanh, *up], numbers * 2), "only the last"),
        ((x, block, running, numbers), "running statistics"),
        ((x, block, [2, 2, 2, 1, 1, 0, 0, 0, 0], numbers), "direction is 2; expected 0 to 1"),
        ((x, block, [1, 2, 2, 1, 1, 0, 0, 3, 0], numbers), "norm is 3; expected 0 to 2"),
        ((x, block, [1, 2, 2, 1, 1, 0, 0, 0, -1], numbers), "activation is -1; expected 0 to 3"),
        ((x[:, :2], block, up, numbers), "3 channels"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fwd(*args, False, False)
    bwd, lists = torch.ops.genimg.conv_stack_bwd, ([torch.empty(0)],) * 2
    call = (up, numbers, True, True, [1])
    with pytest.raises(RuntimeError, match="of 1 blocks, but got 0, 1, 1 and 1"):
        bwd(y, x, None, block, [], *lists, *call)


def test_packed_blocks_come_back():
    """What the C++ op takes says all that a kernel needs."""
    norm = BatchNorm(torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3), eps=1e-3)
    blocks = [
        up(bias=torch.zeros(3), stride=(2, 1), padding=1, output_padding=(1, 0), norm=norm),
        up(3, activation=Activation.LEAKY_RELU, negative_slope=0.25),
        up(3, norm=replace(norm, training=False), activation=Activation.TANH),
    ]
    packed = pack(blocks, True)
    modes = [options.norm for options in packed.options]
    assert modes == [NormMode.BATCH, NormMode.NONE, NormMode.RUNNING]
    again = PackedBlocks.unpack(*packed.pack())
    assert again.options == packed.options
    for ours, theirs in zip(again.tensors(), packed.tensors(), strict=True):
        assert ours is theirs
    restored = restore(again)
    assert pack(restored, False).options == packed.options
    assert [block.direction for block in restored] == [Direction.UP] * 3


CPP_ENUMERATIONS = [
    *(("csrc/conv_block.h", kind) for kind in (Direction, NormMode, Activation)),
    *(("kernels/cuda/conv/geometry.h", kind) for kind in (NormMode, Activation)),
]


@pytest.mark.parametrize(("header", "kind"), CPP_ENUMERATIONS)
def test_enumerations_of_cpp(header, kind):
    """Members and order are the Python enumeration's; the CPU kernels' are asserted in C++."""
    path = ROOT / header
    if not path.exists():
        pytest.skip("not run from a source tree")
    found = re.findall(rf"^enum class {kind.__name__} {{([^}}=]*)}};", path.read_text(), re.M)
    assert len(found) == 1
    names = [re.sub(r"^k(?=[A-Z])", "", name.strip()) for name in found[0].split(",")]
    members = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() for name in names]
    assert members == [member.name for member in kind]
    assert [member.code for member in kind] == list(range(len(members)))


def test_bits_of_needs_in_cpp():
    path = ROOT / "csrc/conv_block.h"
    if not path.exists():
        pytest.skip("not run from a source tree")
    assert f"constexpr int64_t kNeedsWeight = {NEEDS_WEIGHT};" in path.read_text()
    assert NEEDS_WEIGHT & NEEDS_OTHERS == 0


@needs_triton
def test_activations_of_triton():
    from genimg.kernels.triton.conv import epilogue, stack

    names = {"none", "leaky", "tanh", "sigmoid"}
    assert list(stack.ACTIVATIONS) == list(Activation)
    assert set(stack.ACTIVATIONS.values()) == names
    assert {epilogue.NONE, epilogue.LEAKY, epilogue.TANH, epilogue.SIGMOID} == names


@native
def test_a_block_without_bias_and_norm_has_no_gradient_of_either():
    """The fake of the raw op says so, too."""
    weights = torch.randn(3, 3, 3, 3), torch.randn(3, 3, 3, 3)
    blocks = [
        ConvBlock(Direction.DOWN, weight, padding=1, activation=Activation.LEAKY_RELU)
        for weight in weights
    ]
    x = torch.randn(2, 3, 4, 4)
    parameters, options, numbers = pack(
        [*blocks, replace(blocks[0], activation=Activation.NONE)], True
    ).pack()
    fwd, bwd = torch.ops.genimg.conv_stack_fwd, torch.ops.genimg.conv_stack_bwd
    y, raws, means, rstds, _ = fwd(x, parameters, options, numbers, True, True)
    args = (y, x, None, parameters, raws, means, rstds, options, numbers, True, True, [1, 1, 1])
    _, _, *others = bwd(*args)
    assert all(grad.numel() == 0 for grads in others for grad in grads)
    torch.library.opcheck(bwd.default, args)


@native
def test_the_kernel_serves_a_cumulative_average():
    """momentum None, which torch's function refuses and its layer has."""
    norm = BatchNorm(
        torch.zeros(3), torch.ones(3), momentum=None, num_batches_tracked=torch.tensor(0)
    )
    block = up(norm=norm)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    y = conv_stack(x, [block], training=True, backend="cpu")
    assert "_ConvStack" in type(y.grad_fn).__name__
    assert norm.num_batches_tracked == 1


@native
def test_a_stack_that_no_kernel_serves_still_has_its_fused_norms():
    """3x3 convolutions are PyTorch's, the batch norm and its activation behind them are not."""
    x = torch.randn(64, 16, 32, 32, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    norm = BatchNorm(torch.zeros(16), torch.ones(16))
    block = ConvBlock(
        Direction.DOWN, weight, padding=1, norm=norm, activation=Activation.LEAKY_RELU
    )
    assert genimg.explain("conv_stack", x, [block], training=True).selected == "reference"
    with torch.profiler.profile() as profile:
        y = conv_stack(x, [block], training=True)
    names = {event.name for event in profile.events()}
    assert {"genimg::batch_norm_act_fwd", "aten::convolution"} <= names
    before = norm.running_mean.clone()
    assert_near([y], [conv_stack(x, [block], training=True, backend="reference")])
    assert not torch.equal(before, norm.running_mean)


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
@pytest.mark.parametrize("has", [False, True])
def test_auto_leaves_bfloat16_to_dot_products(monkeypatch, has):
    machines = replace(priors.CPU, bfloat16_products=has)
    monkeypatch.setattr(priors, "CPU", machines)
    x, weight = torch.randn(2, 64, 8, 8).bfloat16(), torch.randn(64, 32, 4, 4).bfloat16()
    block = ConvBlock(Direction.UP, weight, None, 2, 1)
    table = genimg.explain("conv_stack", x, [block], training=True)
    assert table.selected == ("reference" if has else "cpu")
    assert ("dot products" in str(table)) == has


@needs_triton
@pytest.mark.parametrize("normed", [False, True])
def test_relu_sends_minus_inf_to_zero(normed):
    """A slope of 0 would make a NaN of it; PyTorch's ReLU does not."""
    device = triton_runtime.DEVICES[-1]
    x, blocks, _ = stack_of(9, device, frozen=True)
    norm = blocks[0].norm if normed else None
    first = replace(blocks[0], norm=norm, negative_slope=0.0)
    with torch.no_grad():
        x[1, 2, 3, 4] = float("inf")
        first.weight.copy_(-first.weight.abs())
        if normed:
            norm.weight.abs_()
        for last in ([], [blocks[1]]):
            ours, theirs = (
                conv_stack(x, [first, *last], training=True, backend=name)
                for name in ("triton", "reference")
            )
            assert torch.isfinite(theirs).all()
            assert_near([ours], [theirs])
