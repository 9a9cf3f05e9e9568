"""Upsampling and pooling layers that fold into their convolutions."""

import copy
import pickle

import pytest
import torch
from nn.judged_models import errors_of
from nn.nearest_generator import NearestGenerator
from nn.pooling_discriminator import PoolingDiscriminator
from torch import nn

import genimg
from genimg.nn import FusedSequential
from genimg.nn.conv_stack import plan
from genimg.ops import fold
from genimg.testing import normal

FAMILIES = {
    "nearest_generator": (NearestGenerator, (4, 10)),
    "pooling_discriminator": (PoolingDiscriminator, (4, 3, 16, 16)),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def folds_everything(monkeypatch):
    """Lifts the size from which a fold pays."""
    monkeypatch.setattr(fold, "folding_cost", lambda *_: 0)


def twins(family, **options):
    """A plain model whose statistics have seen a batch, a converted copy, its report, an input."""
    make, shape = FAMILIES[family]
    torch.manual_seed(1)
    plain = make()
    x = normal(torch.Generator().manual_seed(2), *shape)
    plain(x.float())
    model = copy.deepcopy(plain)
    return plain, model, genimg.convert(model, **options), x


@every_family
@pytest.mark.parametrize(
    ("backend", "training", "layout"),
    [
        ("reference", True, "contiguous"),
        ("reference", True, "channels_last"),
        ("reference", False, "contiguous"),
        ("cpu,reference", True, "contiguous"),
        ("cpu,reference", True, "channels_last"),
        ("cpu,reference", False, "channels_last"),
    ],
)
def test_judged(family, backend, training, layout):
    """A named backend folds whatever the size."""
    plain, model, report, x = twins(family)
    assert len(report.folded) == {"nearest_generator": 2, "pooling_discriminator": 3}[family]
    errors = errors_of(plain, model, x, backend, training, layout)
    assert all(error.ok for error in errors), [error for error in errors if not error.ok]


@every_family
def test_parameters_stay_the_layers(family, folds_everything):
    plain, model, _, x = twins(family)
    assert list(model.state_dict()) == list(plain.state_dict())
    for training in (True, False):
        for each in (plain, model):
            each.train(training)
            each(x.float()).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad.shape == theirs.grad.shape
        assert ours.grad.stride() == theirs.grad.stride()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    plain.load_state_dict(model.state_dict())


@every_family
def test_restored(family, folds_everything):
    plain, model, _, x = twins(family, fold=False)
    genimg.restore(model)
    assert repr(model) == repr(plain)
    assert [vars(a).keys() for a in model.modules()] == [vars(b).keys() for b in plain.modules()]
    assert torch.equal(model(x.float()), plain(x.float()))
    genimg.convert(model)  # the switch did not outlive the conversion
    assert any("Upsample" in str(step) or "AvgPool" in str(step) for step in fused_steps(model))


def fused_steps(model):
    """The runs of blocks of a model, each as the names of its layers."""
    stacks = [stack for stack in model.modules() if isinstance(stack, FusedSequential)]
    steps = [step for stack in stacks for step in plan(stack) if isinstance(step, list)]
    return [[type(m).__name__ for block in step for m in block.modules()] for step in steps]


def test_report():
    report = twins("nearest_generator")[2]
    assert [(f.name, f.layers, f.op) for f in report.folded] == [
        ("blocks", "1 Upsample + 2 Conv2d", "conv_transpose2d"),
        ("blocks", "5 Upsample + 6 Conv2d", "conv_transpose2d"),
    ]
    assert "  blocks: 1 Upsample + 2 Conv2d folded into one conv_transpose2d" in str(report)
    assert not report.unfolded
    report = twins("pooling_discriminator")[2]
    assert [f.layers for f in report.folded][1:] == [
        "0.0 Conv2d + 0.1 AvgPool2d",
        "1.0 Conv2d + 1.1 AvgPool2d",
    ]


@every_family
def test_fold_off(family, folds_everything):
    """Each layer runs by itself, in copies and slices too."""
    plain, model, report, x = twins(family, fold=False)
    assert not report.folded
    expected = plain.eval()(x.float())
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any({"Upsample", "AvgPool2d"} & set(step) for step in fused_steps(each))
        assert not any(
            {"Upsample", "AvgPool2d"} & set(step) for step in fused_steps(each.blocks[:9])
        )
        torch.testing.assert_close(each.eval()(x.float()), expected)


LAYERS = {
    "upsample": (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1)),
    "upsample_tanh": (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1), nn.Tanh()),
    "exact": (nn.Upsample(scale_factor=3, mode="nearest-exact"), nn.Conv2d(4, 6, 3, padding=1)),
    "nearest_2d": (nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(4, 6, 5, padding=2)),
    "to_a_size": (
        nn.Conv2d(4, 4, 2, stride=2),
        nn.ReLU(),
        nn.Upsample(size=(16, 24)),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
    ),
    "anisotropic": (nn.Upsample(scale_factor=(2, 1)), nn.Conv2d(4, 6, (3, 1), padding=(1, 0))),
    "pool": (nn.Conv2d(4, 6, 3, padding=1), nn.AvgPool2d(2)),
    "pool_of_three": (nn.Conv2d(4, 6, 3), nn.AvgPool2d(3), nn.BatchNorm2d(6), nn.ReLU()),
    "both": (
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.AvgPool2d((2, 4)),
    ),
    "nested": (nn.Sequential(nn.Upsample(scale_factor=2)), nn.Sequential(nn.Conv2d(4, 4, 3))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_folds(name, folds_everything):
    """The results are the plain layers', and neither upsampling nor pooling runs."""
    plain = nn.Sequential(*copy.deepcopy(LAYERS[name]))
    model = copy.deepcopy(plain)
    report = genimg.convert(model)
    assert report.folded
    x = torch.randn(2, 4, 8, 12)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    with torch.profiler.profile() as profile:
        model(x)
    kernels = {event.key for event in profile.key_averages()}
    assert not {"aten::upsample_nearest2d", "aten::_upsample_nearest_exact2d"} & kernels
    assert "aten::avg_pool2d" not in kernels


UNFOLDED = {
    "bilinear": ((nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 6, 3)), "mode is"),
    "not_whole": ((nn.Upsample(scale_factor=1.5), nn.Conv2d(4, 6, 3)), "scale_factor is 1.5"),
    "strided": (
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, stride=2)),
        r"the convolution's stride is \(2, 2\); a fold supports 1",
    ),
    "dilated": ((nn.Conv2d(4, 6, 3, dilation=2), nn.AvgPool2d(2)), "dilation is"),
    "groups": ((nn.Conv2d(4, 6, 3, groups=2), nn.AvgPool2d(2)), "groups is 2"),
    "one_tap": ((nn.Conv2d(4, 6, 1), nn.AvgPool2d(2)), "a fold saves no products"),
    "much_padding": (
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 2, padding=2)),
        r"padding is \(2, 2\), the kernel \(2, 2\)",
    ),
    "reflected": (
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
        "the Conv2d has hooks, methods or options",
    ),
    "same": (
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding="same")),
        "the Conv2d has hooks, methods or options",
    ),
    "overlapping": ((nn.Conv2d(4, 6, 3), nn.AvgPool2d(3, 2)), "the pooling's stride is 2"),
    "padded_pool": ((nn.Conv2d(4, 6, 3), nn.AvgPool2d(2, padding=1)), "the pooling's padding is 1"),
    "ceil_mode": ((nn.Conv2d(4, 6, 3), nn.AvgPool2d(2, ceil_mode=True)), "ceil_mode is on"),
    "divisor": ((nn.Conv2d(4, 6, 3), nn.AvgPool2d(2, divisor_override=3)), "divisor_override is 3"),
    "taken": (
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3), nn.AvgPool2d(2)),
        "an upsampling is folded into the convolution",
    ),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_left_alone_with_the_reason(name, folds_everything):
    layers, reason = UNFOLDED[name]
    plain = nn.Sequential(*copy.deepcopy(layers), nn.BatchNorm2d(6), nn.ReLU())
    model = copy.deepcopy(plain)
    report = genimg.convert(model)
    assert [bool(found) for found in (report.folded, report.unfolded)] == [name == "taken", True]
    (skip,) = report.unfolded
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(skip.reason)
    assert f"not folded: {skip.reason}" in str(report)
    x = torch.randn(2, 4, 9, 12)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_pair_in_a_sequential_without_anything_to_fuse_is_reported():
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 6, 3))
    report = genimg.convert(model)
    assert [skip.layer for skip in report.unfolded] == ["Upsample + Conv2d"]
    genimg.convert(model, strict=True)  # which is about layers, not about folds


@pytest.mark.parametrize("position", [0, 1, 2])
def test_hooks_run(position, folds_everything):
    """Also those of the layers that a fold would swallow, which they keep from it."""
    layers = (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1), nn.AvgPool2d(2))
    plain = nn.Sequential(*layers)
    model = copy.deepcopy(plain)
    genimg.convert(model)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    seen = []
    for each in (plain, model):
        each[position].register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
        each[position].register_full_backward_hook(lambda module, gx, gy: seen.append((gx, gy)))
        each(x).sum().backward()
    assert len(seen) == 4
    torch.testing.assert_close(seen[2], seen[0])
    torch.testing.assert_close(seen[3], seen[1])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("norm", "folds"),
    [
        (nn.utils.weight_norm, True),
        (nn.utils.spectral_norm, True),
        (nn.utils.parametrizations.weight_norm, False),
        (nn.utils.parametrizations.spectral_norm, False),
    ],
    ids=["weight_norm", "spectral_norm", "parametrized_weight_norm", "parametrized_spectral_norm"],
)
def test_normed_weights(norm, folds, folds_everything):
    """A hook sets the weight once, before it is folded; a parametrization would do so at a look."""
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        conv = norm(nn.Conv2d(4, 6, 3, padding=1))
        pair.append(nn.Sequential(nn.Upsample(scale_factor=2), conv, nn.LeakyReLU(0.2)))
    plain, model = pair
    report = genimg.convert(model)
    assert (len(report.folded), len(report.unfolded)) == ((1, 0) if folds else (0, 1))
    x = torch.randn(2, 4, 8, 8)
    for _ in range(2):
        y, expected = model(x), plain(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        for each in (y, expected):
            each.square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_replaced_functions_run(monkeypatch, folds_everything):
    """A program's own F.interpolate is called, as the layer calls it."""
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1))
    genimg.convert(model)
    calls = []
    function = nn.functional.interpolate
    replaced = lambda *args, **options: calls.append(1) or function(*args, **options)  # noqa: E731
    monkeypatch.setattr(nn.functional, "interpolate", replaced)
    model(torch.randn(2, 4, 8, 8))
    assert calls == [1]


def test_an_image_that_is_no_batch(folds_everything):
    """Upsample takes it for a batch of rows, and doubles them alone."""
    plain = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    model = copy.deepcopy(plain)
    genimg.convert(model)
    x = torch.randn(4, 8, 8)
    assert plain(x).shape == (6, 8, 16)
    torch.testing.assert_close(model(x), plain(x))


def test_sizes_without_a_fold(folds_everything):
    plain = nn.Sequential(nn.Upsample(size=(12, 12)), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    model = copy.deepcopy(plain)
    genimg.convert(model)
    for side in (5, 6, 12, 24):
        x = torch.randn(2, 4, side, side)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Conv2d(4, 6, 3), nn.AvgPool2d(2)),
        lambda: (nn.Conv2d(4, 6, 3, padding=1), nn.AvgPool2d(4)),
        lambda: (nn.Upsample(scale_factor=2), nn.Conv2d(3, 6, 3)),
        lambda: (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 7)),
    ],
    ids=["no_output", "no_window", "channels", "kernel"],
)
def test_wrong_inputs_raise_as_torchs(make, folds_everything):
    plain = nn.Sequential(*make(), nn.ReLU())
    model = copy.deepcopy(plain)
    genimg.convert(model)
    x = torch.randn(2, 4, 2, 2)
    with pytest.raises(RuntimeError):
        plain(x)
    with pytest.raises(RuntimeError):
        model(x)


def test_small_images_are_not_folded():
    """Folding the weight costs more there; larger ones are."""
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    genimg.convert(model)
    for side, upsamples in ((8, True), (64, False)):
        with torch.profiler.profile() as profile:
            model(torch.randn(1, 32, side, side))
        kernels = {event.key for event in profile.key_averages()}
        assert ("aten::upsample_nearest2d" in kernels) == upsamples


def test_compile(folds_everything):
    torch._dynamo.reset()
    plain, model, _, x = twins("pooling_discriminator")
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(x.float())
    torch.testing.assert_close(y, plain(x.float()), rtol=1e-4, atol=1e-5)
    y.sum().backward()


@every_family
def test_export_with_any_batch(family, folds_everything):
    plain, model, _, x = twins(family)
    x = x.float()
    batch = {0: torch.export.Dim("n", min=2)}
    exported = torch.export.export(model.eval(), (x,), dynamic_shapes=(batch,)).module()
    more = torch.cat([x, x, x])
    torch.testing.assert_close(exported(more), plain.eval()(more), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", [True, False])
def test_tracers_record_torchs_layers(fold, folds_everything):
    plain, model, _, x = twins("nearest_generator", fold=fold)
    plain.eval()
    model.eval()
    x = x.float()
    expected = plain(x)
    assert torch.equal(torch.jit.trace(model, x)(x), expected)
    assert torch.equal(torch.jit.script(copy.deepcopy(model))(x), expected)
    graph = torch.fx.symbolic_trace(model.blocks)
    images = plain.project(x).view(4, -1, 4, 4)
    torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)


def test_gradient_penalty(folds_everything):
    """Second derivatives through a folded discriminator."""
    plain, model, _, x = twins("pooling_discriminator")
    x = x.float().requires_grad_()
    for each in (plain, model):
        (grad,) = torch.autograd.grad(each(x).sum(), x, create_graph=True)
        ((grad.flatten(1).norm(dim=1) - 1) ** 2).mean().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_transforms(folds_everything):
    """vmap over an ensemble's inputs, and forward mode."""
    plain, model, _, _ = twins("pooling_discriminator")
    plain.eval()
    model.eval()
    x = torch.randn(3, 2, 3, 16, 16)
    torch.testing.assert_close(torch.vmap(model)(x), torch.vmap(plain)(x), rtol=1e-4, atol=1e-5)
    tangents = [torch.func.jvp(each, (x[0],), (x[1],))[1] for each in (model, plain)]
    torch.testing.assert_close(*tangents, rtol=1e-4, atol=1e-5)


def test_autocast(folds_everything):
    plain, model, _, x = twins("nearest_generator")
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = model(x.float()), plain(x.float())
    assert y.dtype == expected.dtype
    exact = copy.deepcopy(plain).double()(x)
    assert (y - exact).abs().max() <= 3 * (expected - exact).abs().max()
