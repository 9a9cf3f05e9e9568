"""Batch norm and LeakyReLU."""

import pytest
import torch
import torch.nn.functional as F
from op_checks import FLOATS, assert_case, case_of, needs_triton, small_cases

import genimg
from genimg import _native
from genimg.backends import OPS
from genimg.kernels.triton import runtime as triton_runtime
from genimg.testing import place

batch_norm_act = genimg.ops.batch_norm_act

needs_native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
KERNELS = [
    pytest.param("cpu", marks=needs_native),
    pytest.param("triton", marks=needs_triton),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("batch_norm_act"))
def test_forward_backward(case, dtype):
    assert_case("batch_norm_act", case, dtype)


def test_is_the_two_layers_it_replaces():
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    layers = torch.nn.Sequential(torch.nn.BatchNorm2d(3, 1e-3, 0.01), torch.nn.LeakyReLU(0.3))
    norm = layers[0]
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    y = batch_norm_act(x, mean, var, norm.weight, norm.bias, True, 0.01, 1e-3, 0.3)
    torch.testing.assert_close(y, layers(x))
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(var, norm.running_var)


def test_pair_fill_statistics_are_exact():
    """x[i] + x[i + 1] = 2 mean: the mean is exact, and the variance of integers nearly."""
    deviation = torch.randint(-5, 6, (1, 3, 4, 4)).float()
    x = torch.cat([2 + deviation, 2 - deviation])
    mean, var = torch.zeros(3), torch.zeros(3)
    batch_norm_act(x, mean, var, training=True, momentum=1.0)
    assert torch.equal(mean, torch.full((3,), 2.0))
    expected = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(var.double(), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_relu_sends_minus_infinity_to_zero(backend):
    x = torch.tensor([[float("-inf")], [1.0]])
    y = batch_norm_act(x, torch.zeros(1), torch.ones(1), negative_slope=0.0, backend=backend)
    assert y[0, 0] == 0


def test_half_input_with_single_parameters():
    x = torch.randn(4, 3, 5, 5).bfloat16()
    weight, bias = torch.rand(3) + 0.5, torch.randn(3)
    mean, var = torch.zeros(3), torch.ones(3)
    y = batch_norm_act(x, mean, var, weight, bias, True)
    assert y.dtype == torch.bfloat16
    assert mean.dtype == torch.float32
    assert mean.abs().max() > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: batch_norm_act(torch.randn(1, 3, 1, 1), None, None, training=True),
            ValueError,
            "more than 1 value per channel",
        ),
        (
            lambda: batch_norm_act(torch.randn(2, 3, 4, 4), None, None),
            RuntimeError,
            "expected running_mean and running_var",
        ),
        (
            lambda: batch_norm_act(torch.randn(2, 3), None, None, training=True, eps=0.0),
            ValueError,
            "eps must be positive",
        ),
        (
            lambda: batch_norm_act(torch.randn(3), torch.zeros(3), torch.ones(3)),
            RuntimeError,
            "running_mean should contain 0 elements not 3",
        ),
        (
            lambda: batch_norm_act(torch.randn(2, 3, 4, 4), torch.zeros(4), torch.ones(4)),
            RuntimeError,
            "running_mean should contain 3 elements not 4",
        ),
        (
            lambda: batch_norm_act(
                torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3), torch.ones(5)
            ),
            RuntimeError,
            "weight should contain 3 elements not 5",
        ),
        (
            lambda: batch_norm_act(None, None, None, training=True),
            TypeError,
            "x to be a Tensor, but got NoneType",
        ),
    ],
    ids=["single_value", "no_statistics", "eps", "rank", "running_mean", "weight", "no_tensor"],
)
def test_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_failing_call_leaves_the_statistics():
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(RuntimeError):
        batch_norm_act(torch.randn(2, 3, 4, 4), mean, var, torch.ones(5), training=True)
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.ones(3))


def test_eval_leaves_the_statistics():
    mean, var = torch.ones(3), torch.full((3,), 2.0)
    version = mean._version
    batch_norm_act(torch.randn(2, 3, 4, 4), mean, var)
    assert mean._version == version


def test_gradient_at_exactly_zero_is_the_slope():
    x = torch.zeros(2, 1, 2, 2, requires_grad=True)
    y = batch_norm_act(x, torch.zeros(1), torch.ones(1), negative_slope=0.25)
    y.sum().backward()
    expected = F.batch_norm(torch.ones(1, 1), torch.zeros(1), torch.ones(1)).item() * 0.25
    torch.testing.assert_close(x.grad, torch.full_like(x, expected))


LAYOUTS = [
    ((3, 5, 7), "contiguous"),
    ((2, 3, 4, 5, 6), "contiguous"),
    ((40, 33), "contiguous"),
    ((4, 37, 6, 5), "channels_last"),  # blocks of 16 channels and a rest
    ((4, 1, 6, 5), "contiguous"),
    ((5, 6, 1, 1), "contiguous"),
    ((7, 70, 1, 5), "channels_last"),  # lines of one pixel
    ((3, 70, 5, 1), "channels_last"),
    ((4, 6, 5, 3), "sliced"),
    ((4, 6, 5, 3), "expanded"),
]
LARGE = [((2, 3, 150, 220), "contiguous"), ((2, 3, 150, 220), "channels_last")]  # three pieces


@pytest.mark.parametrize(
    ("shape", "layout", "backend"),
    [
        *(pytest.param(*row, "cpu", marks=needs_native) for row in (*LAYOUTS, *LARGE)),
        *(pytest.param(*row, "triton", marks=needs_triton) for row in LAYOUTS),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_kernel_on_every_layout(shape, layout, training, backend):
    """Planes and pixels, in one piece and in several, against PyTorch in float64."""
    torch.manual_seed(0)
    x = place(torch.randn(shape) * 2 + 1, layout).requires_grad_()
    channels = shape[1]
    weight = torch.randn(channels, requires_grad=True)
    bias = torch.randn(channels, requires_grad=True)
    mean, var = torch.randn(channels), torch.rand(channels) + 0.5
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    wide_mean, wide_var = mean.double(), var.double()
    y = batch_norm_act(x, mean, var, weight, bias, training, negative_slope=0.2, backend=backend)
    z = F.batch_norm(wide[0], wide_mean, wide_var, *wide[1:], training)
    expected = F.leaky_relu(z, 0.2)
    grad_y = torch.randn(shape)
    grads = torch.autograd.grad(y, (x, weight, bias), grad_y)
    expected_grads = torch.autograd.grad(expected, wide, grad_y.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.double(), wide_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), wide_var, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", KERNELS)
def test_kernel_keeps_one_tensor(backend):
    """x alone of its size, where PyTorch keeps x and z."""
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        batch_norm_act(x, None, None, torch.ones(16), torch.zeros(16), True, backend=backend)
    assert sum(n for n in kept if n >= x.numel()) == x.numel()


@needs_native
def test_kernel_threads_agree_to_the_bit():
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = []
            for layout in ("contiguous", "channels_last"):
                torch.manual_seed(2)
                x = place(torch.randn(16, 24, 20, 20), layout).requires_grad_()
                y = batch_norm_act(x, None, None, training=True, backend="cpu")
                found += [y, torch.autograd.grad(y, x, torch.randn_like(y))[0]]
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_keeps_non_finite_values_in_their_channel(value, layout, backend):
    for index in (0, 37):
        x = torch.randn(4, 3, 5, 5)
        x.view(4, 3, 25)[index // 25, 1, index % 25] = value
        x = place(x, layout)
        ours, theirs = (torch.zeros(3), torch.ones(3)), (torch.zeros(3), torch.ones(3))
        y = batch_norm_act(x, *ours, training=True, backend=backend)
        expected = batch_norm_act(x, *theirs, training=True, backend="reference")
        torch.testing.assert_close(y, expected, equal_nan=True)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.fixture
def small_tiles(monkeypatch):
    """Triton's kernels in many tiles and several parts, on tensors for the interpreter."""
    from genimg.kernels.triton import batch_norm_act as kernel
    from genimg.kernels.triton import channel_layout

    for name, value in (("TILE", 64), ("BLOCK_P", 2)):
        monkeypatch.setattr(kernel, name, value)
    for name, value in (("PROGRAMS", 12), ("PARTS", 3), ("COLUMNS_OF_PIXELS", 4)):
        monkeypatch.setattr(channel_layout, name, value)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", ["primes", "rank_2", "channels_last", "large_mean", "constant_channel", "eval"]
)
def test_triton_in_tiles_and_parts(small_tiles, name, dtype):
    case = case_of("batch_norm_act", name)
    op = OPS["batch_norm_act"]
    device = triton_runtime.DEVICES[-1]
    errors = op.compare(case, "triton", dtype, device)
    assert not [error for error in errors if not error.ok]


@needs_triton
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_triton_merges_the_moments_of_a_large_mean(small_tiles, layout):
    """Mean 1000, deviation 0.01, 20 tiles: the mean to half an ulp, the variance to 1e-5."""
    x = place(torch.randn(16, 2, 9, 9) * 0.01 + 1e3, layout)
    mean, var = torch.zeros(2), torch.zeros(2)
    batch_norm_act(x, mean, var, training=True, momentum=1.0, backend="triton")
    wide = x.double().transpose(0, 1).flatten(1)
    assert (mean - wide.mean(1)).abs().max() <= 2**-15  # half of what 1000 and its neighbour differ
    torch.testing.assert_close(var.double(), wide.var(1), rtol=1e-5, atol=0)


@needs_triton
def test_triton_twice_is_equal_to_the_bit(small_tiles):
    x = torch.randn(5, 3, 6, 7, requires_grad=True)

    def run():
        y = batch_norm_act(x, None, None, training=True, backend="triton")
        return y, *torch.autograd.grad(y, x, torch.linspace(-1, 2, y.numel()).view_as(y))

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("training", [True, False])
def test_kernel_reads_parameters_of_any_stride(training, backend):
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    dense = [torch.rand(3) + 0.5 for _ in range(4)]
    mean, var, weight, bias = (torch.stack([p, p], 1).flatten()[::2] for p in dense)
    y = batch_norm_act(x, mean, var, weight, bias, training, backend=backend)
    grad_y = torch.randn(4, 3, 5, 5)
    (grad,) = torch.autograd.grad(y, x, grad_y)
    expected = batch_norm_act(x, *dense, training, backend="reference")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    (expected_grad,) = torch.autograd.grad(expected, x, grad_y)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@needs_triton
def test_triton_refuses_what_it_cannot():
    x = torch.randn(4, 3, 2, 2)
    with pytest.raises(genimg.BackendError, match="triton: dtype is float64; this kernel"):
        batch_norm_act(x.double(), None, None, training=True, backend="triton")
    with pytest.raises(genimg.BackendError, match=r"triton: a parameter of shape \(5,\)"):
        batch_norm_act(x, None, None, torch.ones(5), training=True, backend="triton")
    table = genimg.explain("batch_norm_act", x, None, None, training=True)
    assert "not yet measured" in str(table) or "the tensor is on cpu" in str(table)


@needs_native
def test_opcheck():
    weight, bias = torch.rand(6), torch.randn(6)
    mean, var = torch.randn(6), torch.rand(6) + 0.5
    fwd = torch.ops.genimg.batch_norm_act_fwd.default
    bwd = torch.ops.genimg.batch_norm_act_bwd.default
    for layout in ("contiguous", "channels_last", "sliced"):
        x = place(torch.randn(3, 6, 4, 5), layout)
        torch.library.opcheck(fwd, (x, weight, bias, None, None, True, 1e-5, 0.2))
        torch.library.opcheck(fwd, (x, None, None, mean, var, False, 1e-5, 0.2))
        grad_y = torch.randn(3, 6, 4, 5)
        for needs in (True, False):
            args = (grad_y, x, weight, bias, mean, var.rsqrt(), True, 0.2, needs)
            torch.library.opcheck(bwd, args)


@needs_native
def test_raw_op_refuses():
    fwd, bwd = torch.ops.genimg.batch_norm_act_fwd, torch.ops.genimg.batch_norm_act_bwd
    x, c = torch.randn(3, 4, 2, 2), torch.ones(4)
    with pytest.raises(NotImplementedError, match="only float32 and bfloat16"):
        fwd(x.double(), None, None, None, None, True, 1e-5, 0.2)
    with pytest.raises(RuntimeError, match=r"weight of shape \[4\], but got \[5\]"):
        fwd(x, torch.ones(5), None, None, None, True, 1e-5, 0.2)
    with pytest.raises(RuntimeError, match="running statistics, since training=False"):
        fwd(x, None, None, None, None, False, 1e-5, 0.2)
    with pytest.raises(RuntimeError, match="more than 1 value per channel"):
        fwd(x[:1, :, :1, :1], None, None, None, None, True, 1e-5, 0.2)
    with pytest.raises(RuntimeError, match=r"x of shape \[N, C, ...\]"):
        fwd(c, None, None, None, None, True, 1e-5, 0.2)
    with pytest.raises(RuntimeError, match="grad_y to have the shape of x"):
        bwd(x[:2], x, None, None, c, c, True, 0.2, True)
    with pytest.raises(RuntimeError, match=r"mean of shape \[4\], but got \[3\]"):
        bwd(x, x, None, None, c[:3], c, True, 0.2, True)


@needs_native
def test_auto_takes_the_kernel_where_it_wins():
    def selected(x):
        return genimg.explain("batch_norm_act", x, None, None, training=True)

    large = torch.randn(64, 16, 32, 32)
    for x in (large, place(large, "channels_last"), torch.randn(4096, 64)):
        assert selected(x).selected == "cpu"
    for slower, reason in (
        (large[:32], "below 1,048,576 elements"),
        (large.bfloat16(), "below 4,194,304 elements"),
        (place(large[:8], "channels_last"), "below 262,144 elements"),
        (place(large.view(256, 4, 32, 32), "channels_last"), "fewer than 16 channels"),
        (large.view(64, 1024, 4, 4), "planes of fewer than 64 values"),
    ):
        table = selected(slower)
        assert table.selected == "reference"
        assert reason in next(row.reason for row in table.rows if row.backend == "cpu")


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_triton_beyond_2_to_the_31_elements(layout):
    """Mean 0 and 2 in the two halves of a batch, whose second lies beyond 32-bit offsets."""
    shape = (2, 4, 2**14 + 8, 2**14) if layout == "planes" else (2**29 + 8, 4)
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    half = shape[0] // 2
    x[half:] = 2
    mean, var = torch.zeros(4, device="cuda"), torch.zeros(4, device="cuda")
    y = batch_norm_act(x, mean, var, training=True, momentum=1.0, backend="triton")
    torch.testing.assert_close(mean, torch.ones(4, device="cuda"))
    torch.testing.assert_close(var, torch.ones(4, device="cuda"))
    assert (y[half:] == 1).all()
    assert (y[:half] < 0).all()
