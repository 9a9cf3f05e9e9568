"""Running statistics and counters of batch norms: whose they are, when they change, and to what."""

import copy

import pytest
import torch
import torch.nn.functional as F
from op_checks import needs_triton
from torch import nn
from torch.utils.checkpoint import checkpoint

import genimg
from genimg import _native
from genimg.conv_blocks import PackedBlocks
from genimg.nn.batch_norm import apply_norm
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction, batch_norm_act, conv_stack

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
KERNELS = [pytest.param("cpu", marks=native), pytest.param("triton", marks=needs_triton)]
each_backend = pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
INF = float("inf")


def twins(**options):
    """A converted stack and torch's own, of the same numbers."""
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8, **options), nn.LeakyReLU(0.2)]
    layers += [nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4, **options)]
    plain = nn.Sequential(*layers)
    for norm in (plain[1], plain[4]):
        if norm.running_mean is not None:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.weight)
    model = copy.deepcopy(plain)
    genimg.convert(model)
    return model, plain


def assert_same_state(model, plain, **options):
    expected = plain.state_dict()
    assert list(model.state_dict()) == list(expected)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], equal_nan=True, msg=key, **options)


def later_untracked(norm):
    norm.track_running_stats = False


def later_without_statistics(norm):
    norm.running_mean = norm.running_var = None


MODES = {
    "tracked": ({}, lambda norm: None),
    "never_tracked": ({"track_running_stats": False}, lambda norm: None),
    "later_untracked": ({}, later_untracked),
    "later_without_statistics": ({}, later_without_statistics),
}


@each_backend
@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("stack_trains", [True, False])
@pytest.mark.parametrize("norm_trains", [True, False])
def test_a_norms_own_mode_counts(backend, kind, stack_trains, norm_trains):
    """As adapting its statistics at test time does, or freezing it in training."""
    options, change = MODES[kind]
    model, plain = twins(**options)
    x = torch.randn(2, 3, 6, 6)
    results = []
    for layers in (model, plain):
        layers.train(stack_trains)
        layers[1].train(norm_trains)  # the other one follows the stack
        change(layers[1])
        with genimg.use_backend(backend):
            y = layers(x)
        results.append((y, torch.autograd.grad(y.square().sum(), list(layers.parameters()))))
    (ours, grads), (theirs, expected) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert_same_state(model, plain)
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-3)


@each_backend
def test_an_op_takes_a_norms_own_mode(backend):
    """Without modules: ``BatchNorm.training`` over ``conv_stack``'s, in second derivatives, too."""
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    weight = torch.randn(3, 5, 4, 4)
    for stack, own in [(True, None), (True, False), (False, None), (False, True)]:
        takes = stack if own is None else own
        mean, var, theirs = torch.zeros(5), torch.ones(5), (torch.zeros(5), torch.ones(5))
        block = ConvBlock(
            Direction.UP, weight, stride=2, padding=1, norm=BatchNorm(mean, var, training=own)
        )
        y = conv_stack(x, [block], training=stack, backend=backend)
        z = F.conv_transpose2d(x, weight, None, 2, 1)
        expected = F.batch_norm(z, *theirs, training=takes)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close((mean, var), theirs)
        found = []
        for output in (y, expected):
            (grad,) = torch.autograd.grad(output.pow(3).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(grad.square().sum(), x)[0])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3 * float(found[1].abs().max()))


@each_backend
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_an_infinite_variance_stays(backend, momentum):
    """One batch whose variance overflows, then normal ones: Inf, not Inf - Inf."""
    norm = nn.BatchNorm2d(3, momentum=momentum)
    twin = copy.deepcopy(norm)
    for scale in (1.0, 1e20, 1.0, 1.0):
        x = torch.randn(4, 3, 3, 3) * scale
        with genimg.use_backend(backend):
            y = apply_norm(norm, x, 1.0)
        torch.testing.assert_close(y, twin(x), rtol=1e-4, atol=1e-5)
        assert_same_state(norm, twin, rtol=1e-5, atol=0)
    if momentum in (0.1, None):
        assert torch.equal(norm.running_var, torch.full((3,), INF))
        assert torch.isfinite(norm.running_mean).all()


@each_backend
def test_an_infinite_variance_stays_in_a_stack(backend):
    model, plain = twins()
    for scale in (1.0, 1e25, 1.0):
        x = torch.randn(2, 3, 6, 6) * scale
        with genimg.use_backend(backend):
            model(x)
        plain(x)
        # The second norm sees what the first one's rstd left, which was 0 for torch.
        assert_same_state(model[:2], plain[:2], rtol=1e-3, atol=1e-5)
    assert torch.equal(model[1].running_var, torch.full((8,), INF))
    assert torch.isfinite(model[1].running_mean).all()
    assert torch.isfinite(model[4].running_var).all()


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param("cpu", torch.bfloat16, marks=native),
        pytest.param("triton", torch.float16, marks=needs_triton),
    ],
)
def test_statistics_of_a_half_dtype(backend, dtype):
    """To two units in the last place of what torch makes of the same statistics."""
    x = (torch.randn(4, 3, 5, 5) * 3 + 7).to(dtype)
    ours = [torch.full((3,), 5.0, dtype=dtype) for _ in range(2)]
    for _ in range(3):
        theirs = [statistic.clone() for statistic in ours]
        batch_norm_act(x, *ours, training=True, momentum=0.3, backend=backend)
        F.batch_norm(x, *theirs, training=True, momentum=0.3)
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=0)


@each_backend
def test_cumulative_average(backend):
    """momentum None: the mean over all batches, counted where the statistics are."""
    model, plain = twins(momentum=None)
    for _ in range(3):
        x = torch.randn(2, 3, 6, 6)
        with genimg.use_backend(backend):
            model(x).sum().backward()
        plain(x)
    assert_same_state(model, plain, rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked == 3


@each_backend
def test_a_refused_batch_changes_nothing(backend):
    """A batch with other channels, with one value per channel after a norm, or of another dtype."""
    model, plain = twins(momentum=None)
    x = torch.randn(2, 3, 6, 6)
    for layers in (model, plain):
        with genimg.use_backend(backend):
            layers(x)
            for wrong in (torch.randn(2, 4, 6, 6), torch.randn(3, 6, 6), x.double()):
                with pytest.raises((RuntimeError, ValueError)):
                    layers(wrong)
            layers(2 * x)
    assert_same_state(model, plain, rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked == 2


@pytest.mark.parametrize("backend", KERNELS)
def test_a_kernel_that_is_named_and_refuses_changes_nothing(backend):
    norm = genimg.nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), norm, nn.ReLU())
    genimg.convert(model)
    with genimg.use_backend(backend):
        with pytest.raises(genimg.BackendError):
            norm(torch.randn(2, 3, 4, 4, dtype=torch.float64))
        with pytest.raises(genimg.BackendError):
            model(torch.randn(2, 3, 4, 4))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_what_torch_refuses_within_a_stack_leaves_torchs_state():
    """Found by the norm itself, behind a convolution: torch has counted by then."""
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(5), nn.ReLU()]
    plain = nn.Sequential(*layers)
    model = copy.deepcopy(plain)
    genimg.convert(model)
    for stack in (model, plain):
        with pytest.raises(RuntimeError, match="running_mean should contain 6 elements not 5"):
            stack(torch.randn(2, 3, 6, 6))
    assert_same_state(model, plain)


@each_backend
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_updates_twice(backend, momentum, reentrant):
    """As torch's: once in forward, once in backward's recomputation; the counter as well."""
    model, plain = twins(momentum=momentum)
    x = torch.randn(2, 3, 6, 6)
    for layers in (model, plain):
        with genimg.use_backend(backend):
            leaf = x.clone().requires_grad_()
            checkpoint(layers, leaf, use_reentrant=reentrant).square().sum().backward()
    assert_same_state(model, plain, rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked == model[4].num_batches_tracked == 2
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


@each_backend
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_a_lone_norm_updates_twice(backend, reentrant):
    norm = nn.BatchNorm2d(3, momentum=None)
    twin = copy.deepcopy(norm)
    x = torch.randn(2, 3, 4, 4)

    def ours(x):
        with genimg.use_backend(backend):
            return apply_norm(norm, x, 1.0)

    for function in (ours, twin):
        checkpoint(function, x.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert_same_state(norm, twin, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 2


BACKENDS = ["reference", *KERNELS]


@pytest.mark.parametrize("trains", BACKENDS)
@pytest.mark.parametrize("evaluates", BACKENDS)
@pytest.mark.parametrize("op", ["batch_norm_act", "conv_stack"])
def test_eval_then_train_then_one_backward(op, evaluates, trains):
    """The training forward writes to statistics that the first one's backward needs."""
    model, _ = twins()
    if op == "batch_norm_act":
        model = nn.Sequential(nn.BatchNorm2d(3))
        genimg.convert(model)
    first, second = torch.randn(2, 2, 3, 6, 6).requires_grad_()
    parameters = list(model.parameters())

    def forward(training, x, backend):
        with genimg.use_backend(backend):
            return model.train(training)(x).square().sum()

    alone = torch.autograd.grad(forward(False, first, evaluates), parameters, allow_unused=True)
    loss = forward(False, first, evaluates)
    forward(True, second, trains)
    together = torch.autograd.grad(loss, parameters, allow_unused=True)
    if evaluates == "reference":  # torch's own, which looks at the statistics of now
        return
    for ours, theirs in zip(together, alone, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs)


def storages(value):
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr()} - {0}
    if isinstance(value, (list, tuple)):
        return set().union(*map(storages, value))
    return set()


@native
@pytest.mark.parametrize("training", [True, False])
def test_no_op_hands_out_an_alias(training):
    """No alias of an input or of running statistics: saved tensors must not see their updates."""
    ops = torch.ops.genimg
    x, c = torch.randn(2, 4, 6, 6), torch.rand(4) + 0.5
    mean, var = torch.randn(4), torch.rand(4) + 0.5
    up, down = torch.randn(4, 4, 4, 4), torch.randn(4, 4, 4, 4)
    norm = [up, None, c, c, mean, var]
    options = [1, 2, 2, 1, 1, 0, 0, 1 if training else 2, 1]
    calls = {
        ops.leaky_relu_fwd: (x, 0.2),
        ops.reparam_kl_fwd: (x, x, torch.tensor([1, 2])),
        ops.batch_norm_act_fwd: (x, c, c, mean, var, training, 1e-5, 0.2),
        ops.conv2d_fwd: (x, down, c, [2, 2], [1, 1]),
        ops.conv_transpose2d_fwd: (x, up, c, [2, 2], [1, 1], [0, 0]),
        ops.conv_stack_fwd: (x, norm * 2, options * 2, [1e-5, 0.2] * 2, training, True),
    }
    for op, args in calls.items():
        assert not storages(op(*args)) & storages(args), op
    args = calls[ops.conv_stack_fwd]
    torch.library.opcheck(ops.conv_stack_fwd.default, args)


@needs_triton
def test_triton_hands_out_no_alias():
    from genimg.kernels.triton import batch_norm_act as norm_kernel
    from genimg.kernels.triton.conv import stack as stack_kernel

    mean, var = torch.randn(4), torch.rand(4) + 0.5
    for x in (torch.randn(2, 4, 3, 3), torch.randn(0, 4, 3, 3)):
        args = (x, None, None, mean, var)
        assert not storages(norm_kernel.batch_norm_act_fwd(*args, False, 1e-5, 0.2)) & storages(
            args
        )
    x, weight = torch.randn(2, 4, 3, 3), torch.randn(4, 4, 4, 4)
    block = [weight, None, None, None, mean, var]
    packed = PackedBlocks.unpack(block, (1, 2, 2, 1, 1, 0, 0, 2, 1), (1e-5, 0.2))
    kept = stack_kernel.conv_stack_fwd(x, packed, False, True)
    assert not storages(kept) & storages((x, *block))


@native
@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiled_as_one_graph(momentum):
    """The state's update is in the graph, forward and backward, and without a gradient."""
    torch._dynamo.reset()
    model, plain = twins(momentum=momentum)
    with genimg.use_backend("cpu"):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for grad in (True, False, True):
            x = torch.randn(2, 3, 6, 6)
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-4)
            if grad:
                compiled(x).sum().backward()
                plain(x)
    assert_same_state(model, plain, rtol=1e-4, atol=1e-5)


def test_statistics_made_in_inference_mode():
    with torch.inference_mode():
        model, plain = twins()
        x = torch.randn(2, 3, 6, 6)
        for layers in (model, plain):
            layers(x)
        assert_same_state(model, plain)


@each_backend
def test_statistics_that_torch_refuses(backend):
    """One without the other, of a gradient, or of another dtype: in torch's words."""
    x, weight = torch.randn(4, 3, 5, 5), torch.randn(3, 3, 3, 3)
    for statistics, message in (
        ((torch.zeros(3), None), "both be None"),
        ((torch.zeros(3).requires_grad_(), torch.ones(3)), "not differentiable"),
        ((torch.zeros(3).bfloat16(), torch.ones(3).bfloat16()), "mixed dtype"),
    ):
        block = ConvBlock(Direction.DOWN, weight, norm=BatchNorm(*statistics))
        for call in (
            lambda: batch_norm_act(x, *statistics, training=True, backend=backend),  # noqa: B023
            lambda: conv_stack(x, [block], training=True, backend=backend),  # noqa: B023
        ):
            with pytest.raises((RuntimeError, ValueError), match=message):
                call()


def test_the_activation_is_not_taken_for_a_mode():
    """An eval stack of one training norm and none behind it: the last block has no statistics."""
    weight = torch.randn(4, 4, 4, 4)
    norm = BatchNorm(torch.zeros(4), torch.ones(4), training=True)
    blocks = [
        ConvBlock(Direction.UP, weight, stride=2, padding=1, norm=norm),
        ConvBlock(Direction.UP, weight, stride=2, padding=1, activation=Activation.TANH),
    ]
    x = torch.randn(2, 4, 3, 3)
    y = conv_stack(x, blocks, training=False)
    torch.testing.assert_close(y, conv_stack(x, blocks, training=False, backend="reference"))
    assert norm.running_mean.any()
