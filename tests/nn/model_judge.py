"""A converted model beside the plain one, by the judge: outputs, gradients, buffers, and the rest.

Kinks are not moved (genimg/testing/kinks.py): the models are small, and their seeds fixed.
"""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import genimg
from genimg.testing import CONVOLUTION_ERROR_FACTOR, judge, place
from genimg.testing.rounding import perturbed

CALLS = 2
"""The second call starts from the statistics, and the vectors u and v, that the first has left."""


def randomized(model):
    """Norms that are no identity, which would hide a norm left out."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.normal_(module.weight, 0.5, 0.5)
                nn.init.normal_(module.bias, 0.5, 0.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def results_of(model, inputs, calls):
    """Outputs, gradients and buffers of some calls."""
    generator = torch.Generator().manual_seed(3)
    results = {}
    for call in range(calls):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        torch.manual_seed(call)
        outputs = model(*leaves)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        assert all(type(y) is torch.Tensor for y in outputs)
        results |= {f"y{call}.{i}": y.detach() for i, y in enumerate(outputs)}
        grads = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs]
        used = [(y, g.to(y.dtype)) for y, g in zip(outputs, grads, strict=True) if y.requires_grad]
        if used:
            torch.autograd.backward([y for y, _ in used], [g for _, g in used])
        results |= {f"grad_x{call}.{i}": x.grad for i, x in enumerate(leaves) if x.grad is not None}
    results |= {
        f"grad_{name}": torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    return results | dict(model.named_buffers())


def built(make, training, layout, dtype=torch.float32):
    """The same model every time; not by a deep copy, which old weight_norm does not support."""
    torch.manual_seed(1)
    model = randomized(make()).train(training).to(dtype)
    return model.to(memory_format=torch.channels_last) if layout == "channels_last" else model


def judged(make, *inputs, convert=genimg.convert, training=True, layout="contiguous", calls=CALLS):
    """Assert that conversion changes nothing but roundings; return the converted model, report."""
    plain, model = (built(make, training, layout) for _ in range(2))
    report = convert(model)
    inputs = [place(x, layout) if x.dim() == 4 else x for x in inputs]
    assert list(model.state_dict()) == list(plain.state_dict())
    names = [name for name, _ in plain.named_modules()]
    assert [name for name, _ in model.named_modules()] == names
    own, got = (results_of(each, inputs, calls) for each in (plain, model))

    def truth_of():
        wide = built(make, training, layout, torch.float64)
        doubles = [x.double() if x.is_floating_point() else x for x in inputs]
        results = results_of(wide, doubles, calls)
        return {name: value.double() for name, value in results.items()}

    truth = truth_of()
    moved = perturbed(truth_of, truth, torch.float32)
    assert list(got) == list(own)
    for name, value in own.items():
        if not value.is_floating_point():
            assert torch.equal(got[name], value), name
            continue
        factor = CONVOLUTION_ERROR_FACTOR
        bound = factor * moved[name]
        error = judge(name, got[name], value, truth[name], factor=factor, bound=bound)
        assert error.ok, error
    genimg.restore(model)
    assert repr(model) == repr(plain)
    kinds = [parametrize.type_before_parametrizations(module) for module in plain.modules()]
    restored = [parametrize.type_before_parametrizations(module) for module in model.modules()]
    assert restored == kinds
    convert(model)
    return model, report


SETTINGS = pytest.mark.parametrize(
    ("training", "layout"),
    [(True, "contiguous"), (True, "channels_last"), (False, "contiguous")],
    ids=["train", "train_channels_last", "eval"],
)
"""The settings that every family of models is judged in."""


def runs_of(report):
    """The runs of a report as kinds of layers, with what they are computed by: 'Conv2d + ReLU'."""
    return [
        " + ".join(layer.split(" ")[-1] for layer in fusion.layers.split(" + "))
        for fusion in report.fused
    ]


def assert_hooks_run(make, *inputs, convert=genimg.convert):
    """Forward hooks on all layers see the same outputs, in the same order, on either model."""
    seen = []
    for converts in (False, True):
        model = built(make, True, "contiguous")
        if converts:
            convert(model)
        outputs = []
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(
                    lambda m, a, y, name=name, into=outputs: into.append((name, y.detach().clone()))
                )
        for call in range(2):
            torch.manual_seed(call)
            model(*inputs)
        seen.append(outputs)
    theirs, ours = seen
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, y), (_, expected) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4, msg=name)
