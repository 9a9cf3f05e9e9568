"""Layers whose weight a hook or a parametrization computes run fused, with that weight."""

import copy

import pytest
import torch
from nn.model_judge import judged
from nn.test_declared import stacks_in
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import genimg

NORMS = {
    "spectral_norm_hook": nn.utils.spectral_norm,
    "weight_norm_hook": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}
HOOKS = ("spectral_norm_hook", "weight_norm_hook")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
each_norm = pytest.mark.parametrize("norm", NORMS)
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def discriminator(norm):
    """As SNGAN's, its last layer alone."""
    return nn.Sequential(
        norm(nn.Conv2d(3, 6, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(6, 8, 4, 2, 1, bias=False)),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.Flatten(2),
        nn.Unflatten(2, (4, 4)),
        norm(nn.ConvTranspose2d(8, 5, 4, 2, 1)),
    )


class Called(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv1 = norm(nn.Conv2d(3, 6, 4, 2, 1))
        self.act1 = nn.LeakyReLU(0.2)
        self.conv2 = norm(nn.Conv2d(6, 8, 4, 2, 1))
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn2(self.conv2(self.act1(self.conv1(x))))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@each_norm
def test_same_as_plain(norm, training):
    model, report = judged(lambda: discriminator(NORMS[norm]), X, training=training)
    assert not report.skipped
    assert report.fused
    assert stacks_in(model, X) == 1


@pytest.mark.parametrize("one_run", [False, True], ids=["two_runs", "one_run"])
@each_norm
def test_declared(norm, one_run):
    """The hook of a run's first layer runs as it is called; a second one's would run twice."""
    runs = [["conv1", "act1"], ["conv2", "bn2"]]
    runs = [[*runs[0], *runs[1]]] if one_run else runs
    model, _ = judged(
        lambda: Called(NORMS[norm]), X, convert=lambda model: genimg.convert(model, fuse=runs)
    )
    expected = (0 if norm in HOOKS else 1) if one_run else 2
    assert stacks_in(model, X) == expected


@each_norm
def test_the_vectors_of_a_power_iteration(norm):
    """One iteration for each forward in training, none in eval: the same u and v to the bit."""
    models = []
    for converts in (False, True):
        torch.manual_seed(2)
        model = discriminator(NORMS[norm])
        if converts:
            genimg.convert(model)
        for mode in (True, True, False, True):
            model.train(mode)(X)
        models.append(model)
    plain, model = models
    vectors = {n: b for n, b in plain.named_buffers() if n[-2:] in ("_u", "_v")}
    assert len(vectors) == (6 if "spectral" in norm else 0)
    for name, vector in vectors.items():
        assert torch.equal(model.get_buffer(name), vector), name


@pytest.mark.parametrize("norm", ["spectral_norm", "weight_norm"])
def test_a_parametrized_layer_alone(norm):
    layer = NORMS[norm](nn.Conv2d(3, 4, 3))
    twin = copy.deepcopy(layer)
    report = genimg.convert(twin)
    assert "parametrized torch.nn.Conv2d -> parametrized genimg.nn.Conv2d" in str(report)
    assert isinstance(twin, genimg.nn.Conv2d)
    assert not isinstance(layer, genimg.nn.Conv2d)  # a copy shares its class
    assert not genimg.convert(twin).changed
    assert type(copy.deepcopy(twin)) is type(twin)
    for each in (twin, layer):
        each.eval()
    torch.testing.assert_close(twin(X), layer(X))
    assert parametrize.is_parametrized(twin)
    parametrize.remove_parametrizations(twin, "weight")
    assert type(twin) is genimg.nn.Conv2d
    torch.testing.assert_close(twin(X), layer(X))


def test_added_and_removed_after_convert():
    model = nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
    plain = copy.deepcopy(model)
    genimg.convert(model)
    for change in (
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: nn.utils.remove_weight_norm(layer),
    ):
        for each in (model, plain):
            change(each[0])
        assert stacks_in(model, X) == 1
        plain(X)
        torch.testing.assert_close(model(X), plain(X), rtol=1e-4, atol=1e-5)


def test_other_hooks_are_called():
    """Pruning's, a subclass of spectral norm's, and a weight hook beside another hook."""
    model = discriminator(nn.utils.spectral_norm).eval()
    prune.l1_unstructured(model[2], "weight_orig", 0.5)
    genimg.convert(model)
    assert stacks_in(model, X) == 1  # of the first convolution
    model = discriminator(nn.utils.spectral_norm).eval()
    genimg.convert(model)
    seen = []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(1))
    model(X)
    assert seen == [1]


def test_checkpoint_runs_the_hook_again_as_in_torch():
    for norm in ("spectral_norm_hook", "spectral_norm"):
        results = []
        for converts in (False, True):
            torch.manual_seed(2)
            model = discriminator(NORMS[norm])
            if converts:
                genimg.convert(model)
            x = X.clone().requires_grad_()
            y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
            y.square().sum().backward()
            vectors = [b for n, b in model.named_buffers() if n[-2:] in ("_u", "_v")]
            results.append((y, *vectors))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_a_pruned_layer_is_the_same():
    def make():
        model = discriminator(lambda layer: layer)
        prune.l1_unstructured(model[0], "weight", 0.5)
        return model

    judged(make, X)
