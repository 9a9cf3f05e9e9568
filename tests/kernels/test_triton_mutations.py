"""The tests are tested: a fault planted in a Triton kernel is caught by the op's cases.

Each row replaces a text, which stands once in the kernel's source, in a copy of the module; the op
then runs on the copy. A new kernel's faults are new rows, and nothing else.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import genimg.kernels.triton as package
from genimg import testing
from genimg.backends import OPS
from genimg.kernels.triton import runtime

pytestmark = pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")


@dataclass(frozen=True)
class Fault:
    """A mutation of one module, and the case that must catch it.

    Attributes:
        name: what is wrong.
        op: whose kernels are run.
        module: of ``kernels/triton``, dotted.
        old, new: the texts.
        case: one of the op's cases.
        constants: module.NAME -> value, such as tiles small enough for a case to have several.
    """

    name: str
    op: str
    module: str
    old: str
    new: str
    case: str
    constants: dict[str, Any] = field(default_factory=dict)


# Two parts of two tiles or more, in each of the two layouts.
_TILES = {"batch_norm_act.TILE": 64, "batch_norm_act.BLOCK_P": 1}
_PARTS = {"channel_layout.PROGRAMS": 1, "channel_layout.PARTS": 2}


def _norm(name: str, old: str, new: str, case: str, module: str = "batch_norm_act") -> Fault:
    return Fault(name, "batch_norm_act", module, old, new, case, {**_TILES, **_PARTS})


def _reparam(name: str, old: str, new: str, case: str, module: str = "reparam_kl") -> Fault:
    return Fault(name, "reparam_kl", module, old, new, case)


def _fprop(name: str, old: str, new: str, case: str = "k4s2p1_wide") -> Fault:
    return Fault(name, "conv2d", "conv.fprop", old, new, case)


def _dgrad(name: str, old: str, new: str, case: str, module: str = "conv.dgrad") -> Fault:
    return Fault(name, "conv_transpose2d", module, old, new, case)


def _wgrad(name: str, old: str, new: str, case: str = "k4s2p1_wide") -> Fault:
    return Fault(name, "conv2d", "conv.wgrad", old, new, case, {"conv.tile_sizes.PART_STEPS": 1})


# Rows of tiles merge in two blocks or more.
_ROWS = {"moments._BLOCKS": {"BLOCK_ROWS": 2, "BLOCK_CHANNELS": 16}}


def _stack(name: str, module: str, old: str, new: str, case: str = "vae_decoder") -> Fault:
    return Fault(name, "conv_stack", module, old, new, case, _ROWS)


FAULTS = (
    _fprop("dropped_mask_of_the_padding", "& (iw >= 0) & (iw < w)", "& (iw >= 0)"),
    _fprop("swapped_tap", "            kw = tap % KW\n", "            kw = KW - 1 - tap % KW\n"),
    _fprop(
        "swapped_tap_of_few_channels",
        "kw = (tap % KW)[None, :]",
        "kw = (KW - 1 - tap % KW)[None, :]",
        "few_channels",
    ),
    _dgrad(
        "dropped_mask_of_the_padding",
        "& (qw + dw >= 0) & (qw + dw < w)",
        "& (qw + dw >= 0)",
        "k4s2p1_wide",
    ),
    _dgrad(
        "swapped_tap",
        "first_w + tw * STEP_W\n            weight = tl.load(",
        "first_w + (taps_w - 1 - tw) * STEP_W\n            weight = tl.load(",
        "k4s2p1_wide",
    ),
    _dgrad("every_phase_the_first", "oh = qh * STRIDE_H + rh", "oh = qh * STRIDE_H", "k4s2p1_wide"),
    _dgrad(
        "swapped_tap_of_few_channels",
        "kw = rw + PAD_W - dw * STRIDE_W",
        "kw = rw + PAD_W + (dw - FIRST_W + 1 - SHIFTS_W) * STRIDE_W",
        "few_channels",
        "conv.dgrad_few",
    ),
    _dgrad(
        "tap_of_another_phase_of_few_channels",
        "& (kw < KW * DILATION_W)\n        reached = reached &",
        "\n        reached = reached &",
        "few_channels",
        "conv.dgrad_few",
    ),
    _wgrad(
        "swapped_tap",
        "[:, None] + kw * DILATION_W",
        "[:, None] + (KW - 1 - kw) * DILATION_W",
    ),
    _wgrad("missing_second_pass", "for _ in range(splits):", "for _ in range(1):"),
    _wgrad("parts_overlap", "tl.minimum(first + split_pixels, pixels)", "pixels"),
    _wgrad("dropped_mask_of_the_padding", "& (iw >= 0) & (iw < large_w)", "& (iw >= 0)"),
    _stack(
        "padding_not_zero_behind_the_prologue",
        "conv.prologue",
        "x = tl.where(inside, wide, 0.0).to(x.dtype)",
        "x = wide.to(x.dtype)",
    ),
    _stack(
        "prologue_without_its_activation",
        "conv.prologue",
        "wide = tl.where(wide > 0, wide, wide * slope)",
        "wide = wide",
    ),
    _stack(
        "gradient_of_the_mean_left_out",
        "conv.prologue",
        "apart * tilt[None, :] + shift[None, :]",
        "apart * tilt[None, :]",
    ),
    _stack(
        "sign_of_y_in_place_of_z",
        "conv.epilogue",
        "tile = tl.where(z > 0, tile, tile * slope)",
        "tile = tl.where(y > 0, tile, tile * slope)",
    ),
    _stack(
        "dropped_mask_of_the_statistics",
        "conv.epilogue",
        "tl.where(inside, values - mean[None, :], 0.0)",
        "values - mean[None, :]",
    ),
    _stack(
        "statistics_without_the_merge_of_tiles",
        "moments",
        "block_squares += tl.sum(counts * apart * apart, 0)",
        "block_squares += 0.0",
    ),
    _stack(
        "statistics_without_the_merge_of_blocks",
        "moments",
        "squares += block_squares + delta * (delta * (count * share))",
        "squares += block_squares",
    ),
    _stack(
        "missing_finalize",
        "moments",
        "_merge(partial_ptr, 0, rows, rows, channels, c, BLOCK_ROWS)",
        "_merge(partial_ptr, 0, 1, rows, channels, c, BLOCK_ROWS)",
    ),
    _norm(
        "dropped_mask_of_the_moments",
        "spread = tl.where(inside, x - (tile_mean[None, :] if PIXELS else tile_mean), 0.0)",
        "spread = x - (tile_mean[None, :] if PIXELS else tile_mean)",
        "primes",
    ),
    _norm(
        "moments_without_the_merge",
        "m2 += tile_m2 + tl.where(count > 0, apart * apart * (count * size / (count + size)), 0.0)",
        "m2 += tile_m2",
        "primes",
    ),
    _norm(
        "parts_without_the_merge",
        "+ apart * apart * count\n",
        "\n",
        "primes",
    ),
    _norm(
        "missing_finalize",
        "total += tl.sum(shift * count + _part(parts_ptr, 1, p, parts, c, inside, channels), 0)",
        "total = tl.sum(shift * count + _part(parts_ptr, 1, p, parts, c, inside, channels), 0)",
        "primes",
    ),
    _norm(
        "squares_about_the_shift",
        "x - (tile_mean[None, :] if PIXELS else tile_mean), 0.0",
        "x, 0.0",
        "large_mean",
    ),
    _norm("biased_variance_kept", "(m2 / (size - 1))", "(m2 / size)", "primes"),
    _norm(
        "sign_of_x_in_place_of_z",
        "dz = leaky(_affine(x, mean, scale, bias), grad, negative_slope)",
        "dz = leaky(x, grad, negative_slope)",
        "channels_last",
    ),
    _norm("dz_sum_left_out", "+= (x - mean) * slope + offset", "+= (x - mean) * slope", "primes"),
    _norm(
        "gradient_of_the_statistics_left_out",
        "grad_x += (x - mean) * slope + offset",
        "grad_x += 0.0 * slope",
        "channels_last",
    ),
    _norm(
        "dropped_mask_of_the_sums",
        "dz_x_sums += tl.where(inside, dz * (x - mean), 0.0)",
        "dz_x_sums += (dz + 1.0) * (x - mean)",
        "primes",
    ),
    _norm(
        "columns_beyond_the_end", "& (n < columns)[None, :]\n\n", "\n\n", "primes", "channel_layout"
    ),
    _norm("every_channel_the_first", "offsets = base + ", "offsets = ", "primes", "channel_layout"),
    _reparam("dropped_mask_of_the_sum", "tl.where(inside, terms, 0.0)", "terms + 0.1", "primes"),
    _reparam("no_clamp", "tl.where(logvar > 20.0, 20.0, logvar)", "logvar", "extreme_logvar"),
    _reparam(
        "gradient_outside_the_clamp",
        "tl.where(logvar == clamped, grad_logvar, 0.0)",
        "grad_logvar",
        "extreme_logvar",
    ),
    Fault(
        "part_left_out",
        "reparam_kl",
        "reparam_kl",
        "for first in range(0, parts, BLOCK_P)",
        "for first in range(0, 1)",
        "primes",
        {"reparam_kl.TILE": 2, "reparam_kl.BLOCK_P": 1},
    ),
    _reparam(
        "rows_share_a_beginning",
        "(begin if ALIGNED else begin // 4 * 4)",
        "begin",
        "primes",
    ),
    _reparam("nine_rounds", "tl.static_range(10)", "tl.static_range(9)", "primes", "philox"),
    _reparam("swapped_words", "return c0, c1, c2, c3", "return c1, c0, c2, c3", "primes", "philox"),
    _reparam(
        "swapped_lanes",
        "tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))",
        "tl.interleave(tl.interleave(n0, n1), tl.interleave(n2, n3))",
        "primes",
        "philox",
    ),
    _reparam(
        "key_not_raised", "k1 = tl.add(k1, 0xBB67AE85,", "k1 = tl.add(k1, 0,", "primes", "philox"
    ),
    _reparam(
        "cancelling_kl",
        "(scale * r - x) + (scale * remainder + (scale - 1.0))",
        "scale * (1.0 + r + remainder) - 1.0 - x",
        "tiny_logvar",
        "elementary",
    ),
    Fault(
        "slope_on_the_wrong_side",
        "leaky_relu",
        "leaky_relu",
        "y = tl.where(x > 0, x, x * negative_slope)",
        "y = tl.where(x < 0, x, x * negative_slope)",
        "primes",
    ),
)


@pytest.fixture
def plant(tmp_path):
    """Imports the kernels from a copy with a fault; afterwards every module is as it was."""
    copy = tmp_path / "triton"
    shutil.copytree(package.__path__[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    start = f"{package.__name__}."
    kept = {name: module for name, module in sys.modules.items() if name.startswith(start)}
    attributes = dict(vars(package))
    for name in kept.keys() - {runtime.__name__}:
        del sys.modules[name]
        vars(package).pop(name.removeprefix(start), None)
    package.__path__ = [str(copy)]

    def plant(fault: Fault, mutate: bool = True) -> None:
        source = copy / f"{fault.module.replace('.', '/')}.py"
        text = source.read_text(encoding="utf-8")
        found = text.count(fault.old)
        assert found == 1, f"{fault.name}: {fault.old!r} stands {found} times in {source.name}"
        if mutate:
            source.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        for constant, value in fault.constants.items():
            module, name = constant.rsplit(".", 1)
            module = importlib.import_module(f"{package.__name__}.{module}")
            assert hasattr(module, name), constant
            setattr(module, name, value)

    yield plant
    for name in [name for name in sys.modules if name.startswith(start)]:
        del sys.modules[name]
    sys.modules.update(kept)
    vars(package).clear()
    vars(package).update(attributes)


def errors_of(fault: Fault) -> list[testing.Error]:
    op = OPS[fault.op]
    case = next(case for case in op.cases if case.name == fault.case)
    return op.compare(case, "triton", torch.float32, runtime.DEVICES[-1])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.op}-{fault.name}")
def test_a_seeded_bug_fault_is_caught(plant, fault):
    plant(fault)
    assert [error for error in errors_of(fault) if not error.ok]


# One of each case and its constants.
SOUND = {(fault.op, fault.case, *fault.constants): fault for fault in FAULTS}


@pytest.mark.parametrize("fault", SOUND.values(), ids=lambda fault: f"{fault.op}-{fault.case}")
def test_without_a_fault_nothing_is_caught(plant, fault):
    """The same cases with the same constants: it is the fault that is caught, not the copy."""
    plant(fault, mutate=False)
    assert not [error for error in errors_of(fault) if not error.ok]
