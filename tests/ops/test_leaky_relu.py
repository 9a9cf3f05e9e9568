"""LeakyReLU on every backend of this machine."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from op_checks import (
    FLOATS,
    assert_case,
    assert_compiles,
    assert_exports,
    case_of,
    needs_triton,
    small_cases,
)

import genimg
from genimg import _native
from genimg.kernels.triton import runtime as triton_runtime

leaky_relu = genimg.ops.leaky_relu

needs_native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
KERNELS = [
    pytest.param("cpu", marks=needs_native),
    pytest.param("triton", marks=needs_triton),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("leaky_relu"))
def test_forward_backward(case, dtype):
    assert_case("leaky_relu", case, dtype)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.2, 1.0, 5.0, -0.5])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param("cpu", torch.bfloat16, marks=needs_native),
        pytest.param("triton", torch.float16, marks=needs_triton),
    ],
)
def test_every_half_bit_pattern(backend, dtype, slope):
    """Equal to torch to the bit on all 65,536 values, subnormals and -0 among them."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).requires_grad_()
    grad_y = torch.roll(bits, 12345).view(dtype)
    # A NaN in the gradient says nothing about the arithmetic on the others.
    grad_y = torch.where(torch.isnan(grad_y), torch.ones_like(grad_y), grad_y)
    expected = F.leaky_relu(x, slope)
    (expected_grad,) = torch.autograd.grad(expected, x, grad_y)
    y = leaky_relu(x, slope, backend=backend)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    for got, want in ((y, expected), (grad_x, expected_grad)):
        nan = torch.isnan(want)
        assert torch.equal(torch.isnan(got), nan)
        assert torch.equal(got[~nan].view(torch.int16), want[~nan].view(torch.int16))


@pytest.mark.parametrize("backend", KERNELS)
def test_equals_torch_to_the_bit(backend):
    case = case_of("leaky_relu", "primes")
    x = case.tensors(torch.Generator().manual_seed(3))["x"].float().requires_grad_()
    grad_y = torch.randn_like(x)
    y = leaky_relu(x, 0.3, backend=backend)
    expected = F.leaky_relu(x, 0.3)
    assert torch.equal(y, expected)
    assert torch.equal(
        torch.autograd.grad(y, x, grad_y)[0], torch.autograd.grad(expected, x, grad_y)[0]
    )


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("offset", range(9))
def test_writes_its_output_only(backend, offset):
    """A view at every misalignment, of odd length, inside a buffer full of sentinels."""
    buffer = torch.full((64,), 7.0)
    x = buffer[offset : offset + 37]
    x.copy_(torch.linspace(-2, 2, 37))
    y = leaky_relu(x, 0.1, backend=backend)
    assert torch.equal(y, F.leaky_relu(x, 0.1))
    assert (buffer[:offset] == 7).all()
    assert (buffer[offset + 37 :] == 7).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_gradient_strides(backend):
    """grad_output expanded, or of the other memory format: torch's values and strides."""
    x = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = leaky_relu(x, 0.2, backend=backend)
    for grad_y in (
        torch.ones(()).expand_as(y),
        torch.randn(2, 6, 4, 5),
        torch.randn(5, 4, 6, 2).permute(3, 2, 1, 0),
    ):
        (got,) = torch.autograd.grad(y, x, grad_y, retain_graph=True)
        (expected,) = torch.autograd.grad(F.leaky_relu(x, 0.2), x, grad_y)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("backend", KERNELS)
def test_no_alias_at_slope_one(backend):
    x = torch.randn(5)
    assert leaky_relu(x, 1.0, backend=backend).data_ptr() != x.data_ptr()


@pytest.mark.parametrize("backend", KERNELS)
def test_backward_twice(backend):
    x = torch.randn(33, requires_grad=True)
    y = leaky_relu(x, 0.1, backend=backend)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("backend", KERNELS)
def test_input_modified_before_backward(backend):
    x = torch.randn(33, requires_grad=True)
    kept = x * 1
    y = leaky_relu(kept, 0.1, backend=backend)
    kept.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@needs_native
def test_opcheck():
    x = torch.randn(3, 5, 7)
    for given in (x, x.transpose(0, 2), x[:, ::2], x.bfloat16(), x[:0]):
        torch.library.opcheck(torch.ops.genimg.leaky_relu_fwd.default, (given, 0.2))
        torch.library.opcheck(
            torch.ops.genimg.leaky_relu_bwd.default,
            (torch.randn(given.shape).to(given), given, 0.2),
        )


@needs_native
def test_compile_through_the_kernel():
    assert_compiles("leaky_relu", case_of("leaky_relu", "channels_last"), "cpu")


@needs_native
def test_export_through_the_kernel():
    assert_exports("leaky_relu", case_of("leaky_relu", "primes"), "cpu")


@needs_native
def test_threads_agree_to_the_bit():
    x = torch.randn(300_001)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = leaky_relu(x, 0.2, backend="cpu")
        torch.set_num_threads(2)
        assert torch.equal(leaky_relu(x, 0.2, backend="cpu"), one)
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_from_several_python_threads():
    x = torch.randn(100_003)
    expected = F.leaky_relu(x, 0.2)
    wrong = []

    def work():
        for _ in range(20):
            if not torch.equal(leaky_relu(x, 0.2, backend="cpu"), expected):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_native
def test_raw_op_refuses():
    """torch.ops.genimg.* can be called by anybody: it checks for itself."""
    fwd, bwd = torch.ops.genimg.leaky_relu_fwd, torch.ops.genimg.leaky_relu_bwd
    x = torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match="not supported, only float32 and bfloat16"):
        fwd(x.double(), 0.1)
    with pytest.raises(RuntimeError, match=r"grad_y to have the shape of x, \[4, 3\], but got \[3"):
        bwd(torch.randn(3, 4), x, 0.1)
    with pytest.raises(RuntimeError, match="grad_y to have the dtype of x"):
        bwd(x.bfloat16(), x, 0.1)
    with pytest.raises((RuntimeError, NotImplementedError)):
        bwd(x.to("meta"), x, 0.1)


@pytest.mark.parametrize("inplace", [False, True])
def test_refuses_what_torch_refuses(inplace):
    for wrong in (torch.arange(3), [1.0, 2.0], None):
        with pytest.raises(Exception) as theirs:
            F.leaky_relu(wrong, 0.1, inplace)
        with pytest.raises(type(theirs.value)):
            leaky_relu(wrong, 0.1, inplace)


def test_inplace():
    x = torch.randn(7)
    expected = F.leaky_relu(x, 0.2)
    y = leaky_relu(x, 0.2, inplace=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)
    leaf = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="in-place"):
        leaky_relu(leaf, 0.2, True)


@needs_triton
def test_inplace_is_no_kernel_s():
    x = torch.randn(7)
    with pytest.raises(genimg.BackendError, match="in place"):
        leaky_relu(x.to(triton_runtime.DEVICES[-1]), 0.2, True, backend="triton")


def test_autocast_leaves_the_dtype():
    x = torch.randn(5)
    with torch.autocast("cpu", torch.bfloat16):
        assert leaky_relu(x).dtype == torch.float32


def test_layer_is_drop_in():
    ours, theirs = genimg.nn.LeakyReLU(0.3), torch.nn.LeakyReLU(0.3)
    assert repr(ours) == repr(theirs)
    x = torch.randn(4, 5)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(copy.deepcopy(ours)(x), theirs(x))


@pytest.mark.slow
@needs_native
def test_more_than_2_to_the_31_elements():
    n = 2**31 + 8
    x = torch.full((n,), -1.0, dtype=torch.bfloat16)
    x[-3:] = torch.tensor([2.0, -4.0, 8.0])
    y = leaky_relu(x, 0.5, backend="cpu")
    assert y[-4:].tolist() == [-0.5, 2.0, -2.0, 8.0]
    assert y[0] == -0.5
