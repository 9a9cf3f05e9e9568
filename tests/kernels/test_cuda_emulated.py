"""Every case of every op with CUDA kernels, forward and all gradients, through the emulator."""

from dataclasses import replace
from importlib import import_module

import emulator
import pytest
import torch
from emulator.ops import emulated, launches, run
from op_checks import is_emulated, small_cases

from genimg.backends import OPS, BackendError
from genimg.reference.reparam_kl import draw_seed, philox_normal

batch_norm_act = import_module("genimg.cases.batch_norm_act")
reparam_kl = import_module("genimg.cases.reparam_kl")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A composed op runs another op's kernel.
OPERATORS = sorted(
    op for op, entry in OPS.items() if "cuda" in entry.by_backend and not entry.composed
)
CASES = [
    pytest.param(op, *case.values, dtype, id=f"{op}-{case.id}-{dtype}", marks=case.marks)
    for op in OPERATORS
    for case in small_cases(op)
    for dtype in DTYPES
    if is_emulated(op, *case.values, dtype)
]
# The half precisions differ from float32 in the width of a vector and in rounding, from each other
# in rounding.
MOST_SCHEDULES = {torch.bfloat16: 1, torch.float16: 1}


def in_dtypes(names):
    """Names with float32 and bfloat16; the first one with float16, too."""
    first, *others = names
    pairs = [(first, dtype) for dtype in DTYPES]
    pairs += [(name, dtype) for name in others for dtype in DTYPES[:2]]
    return [pytest.param(name, dtype, id=f"{name}-{dtype}") for name, dtype in pairs]


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_case(op, case, dtype, monkeypatch):
    entry = OPS[op]
    with emulated(op, monkeypatch, most_schedules=MOST_SCHEDULES.get(dtype)):
        try:
            errors = entry.compare(case, "cuda", dtype)
        except BackendError as refusal:
            pytest.skip(str(refusal))
    assert not [error for error in errors if not error.ok]


def _batch_norm(shape, memory_format=torch.contiguous_format, offset=0):
    def make(generator):
        tensors = batch_norm_act.make(*shape)(generator)
        x = torch.empty(tensors["x"].numel() + offset, dtype=torch.float64)[offset:]
        tensors["x"] = x.view(shape).copy_(tensors["x"]).contiguous(memory_format=memory_format)
        return tensors

    return make


NHWC = torch.channels_last
# Cases beyond the ops' own small ones: vectors, several blocks per channel, idle threads.
LARGER = {
    "planes_vectors": _batch_norm((4, 16, 16, 16)),
    "planes_shares": _batch_norm((3, 2, 64, 96)),
    "planes_scalar_shares": _batch_norm((3, 2, 45, 47)),
    "pixels_vectors": _batch_norm((4, 64, 9, 9), NHWC),
    "pixels_idle_columns": _batch_norm((5, 40, 12, 12), NHWC),
    "pixels_groups": _batch_norm((2, 264, 5, 5), NHWC),
    "pixels_scalar_shares": _batch_norm((4, 5, 33, 31), NHWC),
    "pixels_of_one_image": _batch_norm((1, 24, 6, 6), NHWC),
    "rows": _batch_norm((64, 24)),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(("name", "dtype"), in_dtypes(LARGER))
def test_batch_norm_act_in_larger_tensors(name, dtype, training, monkeypatch):
    case = batch_norm_act.make_case(
        name, "", LARGER[name], batch_norm_act.call(training, negative_slope=0.2)
    )
    entry = OPS["batch_norm_act"]
    with emulated("batch_norm_act", monkeypatch, most_schedules=MOST_SCHEDULES.get(dtype)):
        errors = entry.compare(case, "cuda", dtype)
    assert not [error for error in errors if not error.ok]


# Enough channels for a block each, whose values it has room for; see batch_norm_act_single_pass.cu.
ON_CHIP = {
    "planes_vectors": _batch_norm((2, 32, 16, 16)),
    "planes_scalars": _batch_norm((3, 33, 7, 45)),
    "pixels_vectors": _batch_norm((2, 512, 5, 7), NHWC),
    "pixels_idle_column": _batch_norm((2, 520, 3, 3), NHWC),
    "pixels_scalars": _batch_norm((2, 521, 3, 3), NHWC),
    "rows": _batch_norm((24, 528)),
    "large_mean": batch_norm_act.make(4, 40, 8, 8, mean=1e3, std=1e-2),
    "not_finite": lambda generator: _not_finite(_batch_norm((2, 40, 6, 6))(generator)),
}


def _not_finite(tensors):
    tensors["x"][0, 3, 2, 2] = float("nan")
    tensors["x"][1, 5, 0, 0] = float("inf")
    tensors["x"][:, 7] = -3.0  # and a constant channel
    return tensors


@pytest.mark.parametrize(("name", "dtype"), in_dtypes(ON_CHIP))
def test_batch_norm_act_single_pass(name, dtype, monkeypatch):
    """One launch a pass: without the partial results, and their tickets, of the other form."""
    call = batch_norm_act.call(negative_slope=0.2)
    case = batch_norm_act.make_case(name, "", ON_CHIP[name], call)
    entry = OPS["batch_norm_act"]
    with emulated("batch_norm_act", monkeypatch, most_schedules=MOST_SCHEDULES.get(dtype)):
        errors = entry.compare(case, "cuda", dtype)
    assert not [error for error in errors if not error.ok]
    assert launches() == 1


def test_batch_norm_act_single_pass_limits(monkeypatch):
    """A backward keeps twice as much as a forward: between the two limits it takes two launches."""
    x = torch.randn(8, 32, 40, 40, requires_grad=True)
    with emulated("batch_norm_act", monkeypatch):
        y = OPS["batch_norm_act"].function(x, None, None, training=True, backend="cuda")
        assert launches() == 1
        y.sum().backward()
        assert launches() == 2


@pytest.mark.parametrize(
    ("shape", "dtype"), in_dtypes([(17, 64), (3, 2050), (2, 4099), (9, 1), (1, 5000), (300, 3)])
)
def test_reparam_kl_in_larger_tensors(shape, dtype, monkeypatch):
    """Rows of a warp and of a block, that begin anywhere in a counter's four values."""
    case = replace(OPS["reparam_kl"].cases[1], tensors=reparam_kl.make(*shape))
    entry = OPS["reparam_kl"]
    with emulated("reparam_kl", monkeypatch, most_schedules=MOST_SCHEDULES.get(dtype)):
        errors = entry.compare(case, "cuda", dtype)
    assert not [error for error in errors if not error.ok]


@pytest.mark.skipif(emulator.sanitized, reason="the emulator's own checker is off")
def test_the_bindings_are_watched():
    """Memory that neither an argument nor an allocation of the op covers is not read unseen."""
    x = torch.ones(8)
    with pytest.raises(emulator.KernelError, match="out-of-bounds|far from every buffer"):
        run(lambda: torch.ops.genimg.leaky_relu_fwd(x, 0.1), (), emulator.SCHEDULES[0])


def test_philox_is_the_reference_s(monkeypatch):
    """mu 0 and logvar 0 leave the noise: words equal to the bit, values to a few ulp."""
    mu = torch.zeros(7, 33)
    with emulated("reparam_kl", monkeypatch):
        torch.manual_seed(3)
        got, _ = OPS["reparam_kl"].function(mu, mu, backend="cuda")
    torch.manual_seed(3)
    seed = draw_seed(mu.device)
    expected = philox_normal(mu.numel(), seed, torch.float64).view(mu.shape)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("op", OPERATORS)
def test_auto_passes_over_what_was_not_measured(op):
    """One readable sentence, and the kernel still runs when it is named."""
    impl = OPS[op].by_backend["cuda"]
    x = torch.empty(4, 4)
    rest = {
        "leaky_relu": (0.1, False),
        "batch_norm_act": (None,) * 8,
        "conv_stack": ([], True),
        "reparam_kl": (x, None, True),
    }
    assert "measured" in impl.why_slower(x, *rest.get(op, ()))
