"""Every C++ op against torch.library.opcheck, on the calls that the ops' cases make of it."""

from functools import partial

import pytest
import torch
from op_checks import case_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from genimg import _native
from genimg.backends import OPS
from genimg.testing import prepare, run

pytestmark = pytest.mark.skipif(not _native.available(), reason=_native.why_not() or "")

NAMED = {
    "batch_norm_act": ("primes", "channels_last", "eval", "no_affine_no_statistics"),
    "conv2d": ("one_pixel", "k4s2p1_primes", "k4s2p1_channels_last", "weight_channels_last"),
    "conv2d_avg_pool": ("k3_primes", "weight_channels_last"),
    "conv_stack": (
        "generator",
        "discriminator",
        "channels_last",
        "eval",
        "frozen_norm",
        "relu_masks_at_the_end",
    ),
    "conv_transpose2d": ("one_pixel", "k4s2p1_primes", "k4s2p1_channels_last", "few_channels"),
    "leaky_relu": ("primes", "channels_last"),
    "reparam_kl": ("primes",),
    "upsample_conv2d": ("k3_primes", "weight_channels_last"),
}
CALLED = {"conv2d_avg_pool": "conv2d", "upsample_conv2d": "conv_transpose2d"}
"""The op whose kernels a composed one runs."""


class _Calls(TorchDispatchMode):
    """Keeps the calls of genimg's ops; what is differentiated is the autograd.Function's affair."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "genimg":
            self.calls.append((func, tree_map_only(torch.Tensor, torch.Tensor.detach, args)))
        return func(*args, **(kwargs or {}))


def calls_of(op, *names):
    with _Calls() as seen:
        for name in names:
            case = case_of(op, name)
            function = partial(OPS[op].function, backend="cpu")
            run(case, function, prepare(case, torch.float32, "cpu"))
    return seen.calls


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, names in NAMED.items() for name in names]
)
def test_opcheck(op, name):
    calls = calls_of(op, name)
    ops = {func._opname for func, _ in calls}
    called = CALLED.get(op, op)
    assert {f"{called}_fwd", f"{called}_bwd"} <= ops
    for func, args in calls:
        torch.library.opcheck(func, args)


def test_every_op_of_the_library_is_checked():
    """A new C++ op is called by the cases above."""
    checked = {
        func._opname for op, names in NAMED.items() for func, _ in calls_of(op, names[0], names[-1])
    }
    schemas = torch._C._jit_get_all_schemas()
    library = {s.name.removeprefix("genimg::") for s in schemas if s.name.startswith("genimg::")}
    assert library <= checked, library - checked
