"""The noise of the Triton kernels, against the definition and against float64."""

import pytest
import torch

from genimg.kernels.triton import runtime
from genimg.reference.reparam_kl import philox_4x32_10, philox_normal

if runtime.MISSING is not None:
    pytest.skip(f"{runtime.MISSING}", allow_module_level=True)

import triton
import triton.language as tl

from genimg.kernels.triton import elementary, philox

DEVICE = runtime.DEVICES[-1]
N = 256
SEEDS = [(0, 0), (-1, -1), (0x299F31D0A4093822, 0x0370734413198A2E), (-(2**63), 2**32)]


@triton.jit
def _words_kernel(counter_ptr, seed_ptr, words_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    words = philox.philox_words(tl.load(counter_ptr + i), seed_ptr)
    for word in tl.static_range(4):
        tl.store(words_ptr + word * N + i, words[word].to(tl.int64))


@triton.jit
def _normal_kernel(counter_ptr, seed_ptr, normal_ptr, N: tl.constexpr):
    normal = philox.philox_normal(tl.load(counter_ptr + tl.arange(0, N)), seed_ptr)
    tl.store(normal_ptr + tl.arange(0, 4 * N), normal)


@triton.jit
def _elementary_kernel(x_ptr, u_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    u = tl.load(u_ptr + i)
    sine, cosine = elementary.sincos_turn(u)
    tl.store(y_ptr + i, elementary.exp(x))
    tl.store(y_ptr + N + i, elementary.expm1(x))
    tl.store(y_ptr + 2 * N + i, elementary.expm1_minus_x(x))
    tl.store(y_ptr + 3 * N + i, elementary.log(u))
    tl.store(y_ptr + 4 * N + i, sine)
    tl.store(y_ptr + 5 * N + i, cosine)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("first", [0, 2**32 - 7, 2**40 + 3])
def test_words_are_the_reference_s_to_the_bit(seed, first):
    """Counters on both sides of 2**32, keys and offsets of both signs."""
    counter = torch.arange(first, first + N, device=DEVICE)
    words = torch.full((4, N), -1, dtype=torch.int64, device=DEVICE)
    pair = torch.tensor(seed, device=DEVICE)
    _words_kernel[(1,)](counter, pair, words, N=N)
    low, high = (pair & 0xFFFFFFFF).unbind(), (pair >> 32 & 0xFFFFFFFF).unbind()
    offset = (low[1].expand(N), high[1].expand(N))
    expected = philox_4x32_10((counter & 0xFFFFFFFF, counter >> 32, *offset), (low[0], high[0]))
    assert torch.equal(words, torch.stack(expected))


def test_normal_values_to_a_few_ulp():
    """In the definition's order, within 4 ulp (of 1, below 1) of the same words in float64."""
    seed = torch.tensor([5, 6], device=DEVICE)
    normal = torch.full((4 * N,), float("nan"), device=DEVICE)
    _normal_kernel[(1,)](torch.arange(N, device=DEVICE), seed, normal, N=N)
    expected = philox_normal(4 * N, seed, torch.float64)
    error = (normal.double() - expected).abs() / expected.abs().clamp_min(1)
    assert error.max() <= 4 * 2**-23


@pytest.mark.parametrize("exponent", [0, -3, -12])
def test_elementary_functions(exponent):
    """In ulp. exp on [-30, 30] and near 0, the logarithm from the smallest uniform number to 1."""
    x = torch.linspace(-30, 30, N, device=DEVICE) * 2.0**exponent
    u = torch.linspace(0, 1, N, device=DEVICE)
    u = 1 - u * 2.0**exponent if exponent else u.pow(4).clamp_min(2.0**-33)
    y = torch.full((6, N), float("nan"), device=DEVICE)
    _elementary_kernel[(1,)](x, u, y, N=N)
    wide, turn = x.double(), 2 * torch.pi * u.double()
    expm1 = torch.expm1(wide)
    # expm1 and x cancel in float64, too: the series, where it has converged.
    series = sum(
        wide**k / torch.tensor(float(k)).double().add(1).lgamma().exp() for k in range(2, 12)
    )
    tiny = torch.where(wide.abs() < 0.3, series, expm1 - wide)
    expected = torch.stack([wide.exp(), expm1, tiny, u.double().log(), turn.sin(), turn.cos()])
    ulp = torch.finfo(torch.float32).eps * expected.abs()
    ulp[4:].clamp_min_(torch.finfo(torch.float32).eps / 2)
    error = (y.double() - expected).abs() / ulp.clamp_min(1e-30)
    # expm1(x) - x cancels where x is small and not within half of ln 2.
    assert (error.max(1).values <= torch.tensor([2, 2, 8, 2, 2, 2], device=DEVICE)).all()
