"""Reparameterisation and KL divergence."""

import math

import pytest
import torch
from op_checks import FLOATS, assert_case, needs_triton, small_cases

import genimg
from genimg import _native
from genimg.reference.reparam_kl import draw_seed, philox_4x32_10, philox_normal

reparam_kl = genimg.ops.reparam_kl

needs_native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
KERNELS = [
    pytest.param("cpu", marks=needs_native),
    pytest.param("triton", marks=needs_triton),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("reparam_kl"))
def test_forward_backward(case, dtype):
    assert_case("reparam_kl", case, dtype)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, expected):
    """The known answers that Random123 publishes for philox4x32-10."""
    words = philox_4x32_10(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**62 + 1])
def test_noise_is_normal(seed):
    """Moments, tails, Kolmogorov-Smirnov and correlation of 2^18 values, at fixed seeds."""
    n = 2**18
    eps = philox_normal(n, torch.tensor([seed, 3]), torch.float64)
    root = math.sqrt(n)
    assert abs(eps.mean()) * root < 4.5
    assert abs(eps.var() - 1) * root / math.sqrt(2) < 4.5
    assert abs((eps**3).mean()) * root / math.sqrt(15) < 4.5
    assert abs((eps**4).mean() - 3) * root / math.sqrt(96) < 4.5
    cumulated = torch.special.ndtr(eps.sort().values)
    steps = torch.arange(1, n + 1) / n
    assert (cumulated - steps).abs().max() * root < 1.95
    for lag in (1, 2, 3, 4, 8, 1024):
        assert abs((eps[lag:] * eps[:-lag]).mean()) * root < 5
    beyond = (eps.abs() > 4).sum()
    expected = n * math.erfc(4 / math.sqrt(2))
    assert abs(beyond - expected) < 5 * math.sqrt(expected)


def test_noise_does_not_depend_on_how_many():
    seed = torch.tensor([12, 34])
    assert torch.equal(
        philox_normal(1001, seed, torch.float32)[:10], philox_normal(10, seed, torch.float32)
    )


def test_largest_and_smallest_word():
    """Both ends of the uniform give finite values: no log(0), and nothing beyond 6.77."""
    u = torch.tensor([0, 2**32 - 1]).to(torch.float32) * 2.0**-32 + 2.0**-33
    radius = torch.sqrt(-2 * torch.log(u))
    assert radius[1] == 0
    assert 6.7 < radius[0] < 6.77


def test_seed_reproduces_and_advances():
    mu, logvar = torch.zeros(4, 8), torch.zeros(4, 8)
    torch.manual_seed(5)
    first, _ = reparam_kl(mu, logvar)
    second, _ = reparam_kl(mu, logvar)
    torch.manual_seed(5)
    again, _ = reparam_kl(mu, logvar)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_generator_is_used_and_the_default_untouched():
    mu, logvar = torch.zeros(4, 8), torch.zeros(4, 8)
    state = torch.get_rng_state()
    one, _ = reparam_kl(mu, logvar, generator=torch.Generator().manual_seed(3))
    two, _ = reparam_kl(mu, logvar, generator=torch.Generator().manual_seed(3))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_mean_only_draws_nothing():
    mu = torch.randn(3, 4)
    state = torch.get_rng_state()
    z, _ = reparam_kl(mu, torch.zeros(3, 4), sample=False)
    assert torch.equal(z, mu)
    assert z.data_ptr() != mu.data_ptr()
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_cover_both_signs():
    seeds = torch.stack([draw_seed(torch.device("cpu")) for _ in range(64)])
    assert (seeds < 0).any()
    assert (seeds > 0).any()
    assert seeds.unique().numel() == seeds.numel()


def test_kl_is_torch_distributions():
    mu, logvar = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    normal = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    standard = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = torch.distributions.kl_divergence(normal, standard).sum(1)
    torch.testing.assert_close(reparam_kl(mu, logvar)[1], expected)


def test_tiny_logvar_does_not_cancel():
    """The textbook's 1 + lv - exp(lv) is 5 % off here, and below 0 elsewhere."""
    logvar = torch.full((1, 1), 1e-3)
    kl = reparam_kl(torch.zeros(1, 1), logvar)[1]
    lv = logvar.double()
    torch.testing.assert_close(
        kl.double(), (0.5 * (torch.expm1(lv) - lv)).sum(1), rtol=2e-4, atol=0
    )


def test_gradients_as_documented():
    mu, logvar = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    z, kl = reparam_kl(mu, logvar, generator=generator)
    grad_z, grad_kl = torch.randn(3, 5).double(), torch.randn(3).double()
    dmu, dlogvar = torch.autograd.grad((z, kl), (mu, logvar), (grad_z, grad_kl))
    g = grad_kl[:, None]
    std_eps = (z - mu).detach()
    torch.testing.assert_close(dmu, grad_z + g * mu.detach())
    torch.testing.assert_close(
        dlogvar, 0.5 * grad_z * std_eps + 0.5 * g * torch.expm1(logvar.detach())
    )


def test_no_gradient_outside_the_clamp():
    logvar = torch.tensor([[-31.0, -29.0, 19.0, 21.0]], requires_grad=True)
    z, kl = reparam_kl(torch.zeros(1, 4), logvar)
    (z.sum() + kl.sum()).backward()
    assert (logvar.grad[0, [0, 3]] == 0).all()
    assert (logvar.grad[0, [1, 2]] != 0).all()


def test_half_dtypes_do_not_overflow():
    """exp(11.1) and 256 squared are Inf in float16."""
    mu = torch.full((2, 3), 300.0, dtype=torch.float16)
    logvar = torch.full((2, 3), 12.0, dtype=torch.float16)
    z, kl = reparam_kl(mu, logvar)
    assert z.dtype == torch.float16
    assert kl.dtype == torch.float32
    assert torch.isfinite(z).all()
    assert torch.isfinite(kl).all()


@pytest.mark.parametrize(
    ("mu", "logvar", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"shape of mu, \(2, 3\), but got \(2, 4\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), "mu is torch.float32 and logvar"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), "mu is on cpu and logvar on meta"),
        (torch.zeros(3), torch.zeros(3), r"\[N, ...\], but got \(3,\)"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3).int(), "floating dtype, but got torch.int32"),
    ],
    ids=["shape", "dtype", "device", "rank", "integers"],
)
def test_refuses(mu, logvar, message):
    with pytest.raises(RuntimeError, match=message):
        reparam_kl(mu, logvar)


def test_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="expected mu to be a Tensor, but got list"):
        reparam_kl([0.0], torch.zeros(1, 1))


def test_compiled_code_draws_the_same():
    compiled = torch.compile(reparam_kl, fullgraph=True, backend="aot_eager")
    mu, logvar = torch.zeros(4, 8), torch.zeros(4, 8)
    torch.manual_seed(5)
    expected = reparam_kl(mu, logvar)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled(mu, logvar), expected)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5), (7, 64), (5, 63), (2, 1000), (64, 128), (3, 4099), (2, 4096)]
)
def test_kernel_draws_the_reference_s_noise(shape, backend):
    """Rows that begin anywhere in a block of noise; the words equal, the values to a few ulp."""
    mu, logvar = torch.randn(shape), torch.randn(shape)
    torch.manual_seed(11)
    expected, kl = reparam_kl(mu.double(), logvar.double(), backend="reference")
    torch.manual_seed(11)
    got, own_kl = reparam_kl(mu, logvar, backend=backend)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(own_kl.double(), kl, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", KERNELS)
def test_kernel_backward_draws_the_forward_s_noise(backend):
    """Though the generator has moved on: dz/dlogvar holds the noise that made z."""
    mu = torch.zeros(4, 9, requires_grad=True)
    logvar = torch.zeros(4, 9, requires_grad=True)
    z, _ = reparam_kl(mu, logvar, backend=backend)
    torch.rand(100)
    (grad,) = torch.autograd.grad(z.sum(), logvar)
    torch.testing.assert_close(grad, 0.5 * z.detach())


@needs_native
def test_kernel_threads_agree_to_the_bit():
    mu, logvar = torch.randn(512, 100), torch.randn(512, 100)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            results.append(reparam_kl(mu, logvar, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for z, kl in results[1:]:
        assert torch.equal(z, results[0][0])
        assert torch.equal(kl, results[0][1])


@pytest.mark.parametrize("backend", KERNELS)
def test_kernel_keeps_nan_where_it_is(backend):
    nan, inf = float("nan"), float("inf")
    mu = torch.tensor([[1.0, nan, inf, 0.0], [0.0, 0.0, 0.0, 0.0]])
    logvar = torch.tensor([[0.0, 0.0, 0.0, nan], [inf, -inf, 1e30, -1e30]])
    torch.manual_seed(1)
    z, kl = reparam_kl(mu, logvar, backend=backend)
    torch.manual_seed(1)
    expected, expected_kl = reparam_kl(mu, logvar, backend="reference")
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(kl, expected_kl, rtol=1e-5, atol=1e-5, equal_nan=True)


@needs_native
def test_opcheck():
    mu, logvar, seed = torch.randn(3, 8), torch.randn(3, 8), torch.tensor([1, 2])
    for given in ((mu, logvar), (mu.bfloat16(), logvar.bfloat16()), (mu[:, ::2], logvar[:, ::2])):
        torch.library.opcheck(torch.ops.genimg.reparam_kl_fwd.default, (*given, seed))
        grads = (torch.randn(given[0].shape).to(given[0]), torch.randn(3))
        torch.library.opcheck(torch.ops.genimg.reparam_kl_bwd.default, (*grads, *given, seed))


@needs_native
def test_raw_op_refuses():
    fwd, bwd = torch.ops.genimg.reparam_kl_fwd, torch.ops.genimg.reparam_kl_bwd
    mu, seed = torch.randn(3, 4), torch.tensor([1, 2])
    with pytest.raises(NotImplementedError, match="only float32 and bfloat16"):
        fwd(mu.double(), mu.double(), seed)
    with pytest.raises(RuntimeError, match="logvar to have the shape of mu"):
        fwd(mu, mu[:, :2], seed)
    with pytest.raises(RuntimeError, match=r"mu of shape \[N, ...\]"):
        fwd(mu[0], mu[0], seed)
    for wrong in (seed.int(), seed[:1], seed.reshape(2, 1)):
        with pytest.raises(RuntimeError, match=r"seed to be int64 \[2\] on the CPU"):
            fwd(mu, mu, wrong)
    with pytest.raises(RuntimeError, match=r"grad_kl to be float32 \[3\]"):
        bwd(mu, torch.randn(4), mu, mu, seed)
    with pytest.raises(RuntimeError, match="grad_z to have the shape of mu"):
        bwd(mu[:2], torch.randn(3), mu, mu, seed)


@pytest.mark.gpu
def test_triton_graph_replays_fresh_noise():
    """The key is drawn in the graph, and read on the device."""
    mu, logvar = (torch.zeros(64, 128, device="cuda") for _ in range(2))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm, as capturing wants it
        reparam_kl(mu, logvar, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z, kl = reparam_kl(mu, logvar, backend="triton")
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append(z.clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert abs(torch.stack(seen).std().item() - 1) < 0.02
    assert torch.equal(kl, torch.zeros(64, device="cuda"))
