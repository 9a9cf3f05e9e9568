"""Gradients of gradients, in float32, on every backend of this machine: judged as the op itself is.

Gradient penalties (WGAN-GP, R1) differentiate a backward that a kernel's forward began.
"""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from op_checks import case_of, device_for

from genimg.backends import OPS, BackendError
from genimg.kernels.triton import runtime as triton_runtime
from genimg.testing import normal, rule, seeded

stacks = import_module("genimg.cases.conv_stack")  # not the function of that name
Activation, Layer, UP, DOWN = stacks.Activation, stacks.Layer, stacks.UP, stacks.DOWN


def second_order(op, case):
    """A case whose outputs are the case's gradients, under a grad_output that is an input, too."""

    def tensors(generator):
        made = case.tensors(generator)
        copies = {name: x.clone() for name, x in made.items()}
        outputs = seeded(case.call, OPS[op].reference, copies)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {**made, **{f"v{i}": normal(generator, *y.shape) for i, y in enumerate(outputs)}}

    def call(function, given):
        outputs = case.call(function, given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grad_outputs = [given[f"v{i}"].to(y.dtype) for i, y in enumerate(outputs)]
        leaves = [given[name] for name in case.grad]
        return torch.autograd.grad(outputs, leaves, grad_outputs, create_graph=True)

    count = len(tensors(torch.Generator())) - len(case.tensors(torch.Generator()))
    grad = (*case.grad, *(f"v{i}" for i in range(count)))
    return replace(case, tensors=tensors, call=call, grad=grad, exact=False)


def _stack(name, *layers, training=True, shape=(2, 5, 4, 4)):
    return pytest.param("conv_stack", stacks.make_case(name, "", shape, layers, training), id=name)


# Each way that a block's norm, bias and activation can enter the recomputed graph.
STACKS = [
    _stack("norm_of_the_batch_alone", Layer(UP, 6, activation=Activation.NONE)),
    _stack("norm_frozen_inside", Layer(UP, 6, frozen=True), Layer(DOWN, 4)),
    _stack("norm_running_in_eval", Layer(UP, 6), Layer(DOWN, 4), training=False),
    _stack("bias_and_leaky_relu", Layer(DOWN, 6, norm=False), Layer(UP, 4, norm=False)),
    _stack("relu", Layer(UP, 6, negative_slope=0.0), Layer(UP, 3, norm=False, negative_slope=0.0)),
    _stack("tanh", Layer(UP, 6), Layer(UP, 3, norm=False, activation=Activation.TANH)),
    _stack("sigmoid_behind_a_norm", Layer(UP, 6), Layer(UP, 3, activation=Activation.SIGMOID)),
]
NAMED = {
    "batch_norm_act": ("primes", "channels_last", "relu", "plain", "eval", "large_mean"),
    "conv2d": ("one_pixel", "k4s2p1_primes", "few_channels", "k3s1p1", "no_bias_expanded"),
    "conv2d_avg_pool": ("one_window", "k3_primes", "channels_last"),
    "conv_transpose2d": ("one_pixel", "k4s2p1_primes", "few_channels", "k3s2p1op1"),
    "leaky_relu": ("primes", "channels_last", "slope_negative"),
    "reparam_kl": ("primes", "one_element"),
    "upsample_conv2d": ("one_pixel", "k3_primes", "channels_last"),
}
CASES = [
    pytest.param(op, case_of(op, name), id=f"{op}-{name}")
    for op, names in NAMED.items()
    for name in names
]


@pytest.mark.parametrize("backend", ["cuda", "cpu", "triton", "reference"])
@pytest.mark.parametrize(("op", "case"), CASES + STACKS)
def test_second_derivatives(op, case, backend, monkeypatch):
    if backend == "triton" and triton_runtime.MISSING is not None:
        pytest.skip(triton_runtime.MISSING)
    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if OPS[op].composed:
        # Folding the weight is PyTorch's ops, whose second derivatives have an order of their own.
        monkeypatch.setattr(rule, "dense_strides", lambda x: ())
    try:
        device = device_for(backend)
        errors = OPS[op].compare(second_order(op, case), backend, torch.float32, device)
    except BackendError as refusal:
        pytest.skip(str(refusal))
    assert all(error.ok for error in errors), [error for error in errors if not error.ok]
