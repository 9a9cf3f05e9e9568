"""Code that finds, changes and copies layers works on a converted model as before."""

import copy
import io
import pickle

import pytest
import torch
from nn.ordinary_models import dcgan_generator
from torch import nn
from torch.nn.utils import fusion, parametrizations, prune

import genimg
from genimg.nn import BatchNormAct2d, FusedSequential

X = (2, 10, 1, 1)


def discriminator():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Sequential(nn.Conv2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)),
        nn.Conv2d(8, 1, 4),
        nn.Sigmoid(),
    )


def converted(model):
    twin = copy.deepcopy(model)
    assert genimg.convert(twin).fused
    return twin


def assert_same(model, plain, shape=X):
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


def by_name(m):
    """As in PyTorch's DCGAN example."""
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        nn.init.normal_(m.weight, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        nn.init.normal_(m.weight, 1.0, 0.02)
        nn.init.zeros_(m.bias)


def by_name_of_pix2pix(m):
    classname = m.__class__.__name__
    if hasattr(m, "weight") and (classname.find("Conv") != -1 or classname.find("Linear") != -1):
        nn.init.xavier_normal_(m.weight.data)
    elif classname.find("BatchNorm2d") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0.0)


def by_kind(m):
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(m.weight, mode="fan_out")
    elif isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.constant_(m.weight, 0.5)


def by_exact_name(m):
    if type(m).__name__ in ("Conv2d", "ConvTranspose2d"):
        nn.init.orthogonal_(m.weight)


@pytest.mark.parametrize("init", [by_name, by_name_of_pix2pix, by_kind, by_exact_name])
@pytest.mark.parametrize(("make", "shape"), [(dcgan_generator, X), (discriminator, (2, 3, 16, 16))])
def test_initialisers(init, make, shape):
    plain = make()
    model = converted(plain)
    for each in (model, plain):
        torch.manual_seed(1)
        each.apply(init)
    assert not torch.equal(next(plain.parameters()), next(make().parameters()))
    assert_same(model, plain, shape)


def test_containers_do_not_sound_like_layers():
    """And BatchNormAct2d, which does, has what such code takes from a batch norm."""
    name = FusedSequential.__name__
    for layer in ("Conv", "Norm", "Linear", "Embedding", "LeakyReLU", "Pool"):
        assert layer.lower() not in name.lower()
    assert not hasattr(FusedSequential(), "weight")
    layer = BatchNormAct2d(3)
    layer.apply(by_name)
    assert layer.weight is layer[0].weight
    assert layer.bias is layer[0].bias


def test_a_sequential_stays_one():
    """torchsummary and others skip containers by isinstance."""
    model = converted(dcgan_generator())
    assert isinstance(model, nn.Sequential)
    assert [type(m).__name__ for m in model] == [type(m).__name__ for m in dcgan_generator()]
    leaves = [m for m in model.modules() if not list(m.children())]
    assert len(leaves) == len(model)


def test_slices_and_edits():
    plain = dcgan_generator()
    model = converted(plain)
    assert type(model[:3]) is FusedSequential
    assert_same(model[:3], plain[:3])
    for each in (model, plain):
        each.append(nn.Conv2d(3, 3, 1, bias=False))
        each.insert(1, nn.Identity())
        each.extend([nn.Tanh()])
        each.pop(8)
        del each[6]
        torch.manual_seed(2)
        each.apply(by_name)
    assert_same(model, plain)
    assert_same(model + nn.Sequential(nn.Tanh()), plain + nn.Sequential(nn.Tanh()))


def test_copies_and_files():
    model = converted(dcgan_generator()).eval()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        torch.load(buffer, weights_only=False),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        copy.copy(model),
    ):
        assert type(twin) is FusedSequential
        assert_same(twin, model)


def test_state_dicts_both_ways():
    plain, model = dcgan_generator(), converted(dcgan_generator())
    model.load_state_dict(plain.state_dict(), strict=True)
    assert_same(model, plain)
    dcgan_generator().load_state_dict(model.state_dict(), strict=True)


def test_casts():
    plain = discriminator()
    model = converted(plain)
    for cast in (lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.float()):
        assert cast(model) is model
        cast(plain)
        x = torch.randn(2, 3, 16, 16).to(next(plain.parameters()).dtype)
        y, expected = model(x), plain(x)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=0.1, atol=0.1)
    # The running statistics are as far apart as two bfloat16 sums may be, whose unit is 2**-8.
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=2**-5, atol=2**-7)
    model.load_state_dict(plain.state_dict())
    model.to(memory_format=torch.channels_last)
    plain.to(memory_format=torch.channels_last)
    assert_same(model, plain, (2, 3, 16, 16))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ],
    ids=["spectral_norm", "weight_norm", "old_spectral_norm", "old_weight_norm", "prune"],
)
def test_reparametrisations_after_convert(change):
    plain = discriminator()
    model = converted(plain)
    for each in (model, plain):
        torch.manual_seed(3)
        change(each[0])
        change(each[2][0])
    for _ in range(2):
        assert_same(model, plain, (2, 3, 16, 16))
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names


def test_replicas():
    """As nn.DataParallel makes them: parameters are plain tensors on the replica."""
    model = converted(discriminator())
    x = torch.randn(2, 3, 16, 16)
    replica = model._replicate_for_data_parallel()
    replica._modules = dict(replica._modules)
    layer = model[0]._replicate_for_data_parallel()
    layer.weight = layer.bias = None
    layer.weight = model[0].weight.clone()
    replica._modules["0"] = layer
    torch.testing.assert_close(replica(x), model(x), rtol=1e-4, atol=1e-4)


def freeze(model):
    """Fine-tuning with frozen batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.weight.requires_grad_(False)


def norm_model(kind):
    """A model whose norm and activation are one layer, or two of torch's."""
    act = {
        "torch": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.LeakyReLU(0.2)),
        "drop_in": lambda: nn.Sequential(genimg.nn.BatchNorm2d(8), nn.LeakyReLU(0.2)),
        "with_act": lambda: BatchNormAct2d(8, negative_slope=0.2),
    }[kind]()
    torch.manual_seed(4)
    model = nn.Sequential(genimg.nn.Conv2d(3, 8, 4, 2, 1), act)
    with torch.no_grad():
        nn.init.normal_(model[1][0].weight)
        nn.init.normal_(model[1][0].bias)
        model[1][0].running_mean.normal_()
    return model


kinds = pytest.mark.parametrize("kind", ["drop_in", "with_act"])


@kinds
def test_frozen_norms(kind):
    model, plain = norm_model(kind), norm_model("torch")
    for each in (model, plain):
        each.train()
        freeze(each)
    assert_same(model, plain, (4, 3, 8, 8))
    assert_same(model, plain, (4, 3, 8, 8))
    assert model[1][0].num_batches_tracked == 0


@kinds
def test_update_bn(kind):
    model, plain = norm_model(kind), norm_model("torch")
    batches = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    for each in (model, plain):
        torch.optim.swa_utils.update_bn(batches, each)
    assert model[1][0].num_batches_tracked == 3
    assert model[1][0].momentum == 0.1
    assert_same(model.eval(), plain.eval(), (4, 3, 8, 8))


@kinds
def test_sync_batch_norm(kind):
    """It needs a GPU in training; in eval it is a batch norm, and the activation is still there."""
    model, plain = (
        nn.SyncBatchNorm.convert_sync_batchnorm(norm_model(each)) for each in (kind, "torch")
    )
    assert type(model[1][0]) is nn.SyncBatchNorm
    assert_same(model.eval(), plain.eval(), (4, 3, 8, 8))
    genimg.convert(model)
    assert_same(model, plain, (4, 3, 8, 8))


@kinds
def test_fuse_conv_bn_eval(kind):
    model, plain = norm_model(kind).eval(), norm_model("torch").eval()
    x = torch.randn(4, 3, 8, 8)
    fused = fusion.fuse_conv_bn_eval(model[0], model[1][0])
    torch.testing.assert_close(model[1][1](fused(x)), plain(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(AttributeError, match="running_mean"):
        fusion.fuse_conv_bn_eval(model[0], model[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantisation_refuses_what_it_does_not_know():
    """Its tables are of exact classes; ``restore`` gives them back."""
    from torch.ao.quantization import fuse_modules

    model = converted(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    with pytest.raises((AssertionError, NotImplementedError)):
        fuse_modules(model, ["0", "1", "2"])
    genimg.restore(model)
    torch.testing.assert_close(fuse_modules(model, ["0", "1", "2"])(x), expected)


def test_batch_norm_act_is_its_layers():
    """restore, slices, files, and fusion with the convolution before it."""
    model = FusedSequential(
        genimg.nn.Conv2d(3, 8, 4, 2, 1), BatchNormAct2d(8, negative_slope=0.0), nn.Conv2d(8, 1, 1)
    )
    assert type(model[1][:1]) is FusedSequential
    assert type(model[1][1]) is nn.ReLU
    plain = copy.deepcopy(model)
    report = genimg.restore(plain)
    assert "1: genimg.nn.BatchNormAct2d -> torch.nn.Sequential" in str(report)
    assert {type(m).__module__.split(".")[0] for m in plain.modules()} == {"torch"}
    assert_same(model, plain, (2, 3, 8, 8))
    assert_same(pickle.loads(pickle.dumps(model)), plain, (2, 3, 8, 8))
    (fusion_,) = genimg.convert(copy.deepcopy(plain)).fused
    assert fusion_.layers.startswith("0 Conv2d + 1.0 BatchNorm2d + 1.1 ReLU + 2 Conv2d")
