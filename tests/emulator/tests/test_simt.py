"""The emulator: right kernels pass under every schedule, and each planted bug is found and named.

The numbers of the bugs are those of ``tests/emulator/README.md``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulator
import pytest
import torch
from emulator import SCHEDULES, KernelError, Read, Update, Write, call

schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
checked = pytest.mark.skipif("config.getoption('--sanitized')", reason="the checker is not built")


def total(seeded_bugs, schedule, bug=0, n=3001, blocks=5):
    x = torch.arange(n, dtype=torch.float32) % 17
    partials, result = torch.empty(blocks), torch.empty(1)
    ticket = torch.zeros(1, dtype=torch.int32)
    args = (Read(x), n, Write(partials), Update(ticket), Write(result), blocks, bug)
    call(seeded_bugs, "seeded_bug_total", *args, schedule=schedule)
    assert ticket.item() == 0
    assert result.item() == x.sum().item()


def affine(seeded_bugs, schedule, bug=0, n=1200, channels=12, blocks=2):
    x, scale, shift = torch.randn(n), torch.randn(channels), torch.randn(channels)
    y = torch.empty(n)
    args = (Read(x), Write(y), n, channels, Read(scale), Read(shift), blocks, bug)
    call(seeded_bugs, "seeded_bug_affine", *args, schedule=schedule)
    expected = (x.view(-1, channels) * scale + shift).flatten()
    torch.testing.assert_close(y, expected)


def matmul(seeded_bugs, schedule, bug=0, rows=45, columns=72, depth=104, dtype=torch.bfloat16):
    """Small integers, so that the sums are exact."""
    a = torch.randint(-3, 4, (rows, depth)).to(dtype)
    b = torch.randint(-3, 4, (depth, columns)).to(dtype)
    c = torch.empty(rows, columns)
    name = "seeded_bug_matmul_" + {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    call(
        seeded_bugs, name, Read(a), Read(b), Write(c), rows, columns, depth, bug, schedule=schedule
    )
    assert torch.equal(c.double(), a.double() @ b.double())


KERNELS = {"total": total, "affine": affine, "matmul": matmul}


@schedules
@pytest.mark.parametrize("kernel", KERNELS)
def test_right_kernels_pass(seeded_bugs, kernel, schedule):
    KERNELS[kernel](seeded_bugs, schedule)


@schedules
def test_many_blocks(seeded_bugs, schedule):
    total(seeded_bugs, schedule, n=40_000, blocks=31)


@schedules
def test_float16_products(seeded_bugs, schedule):
    matmul(seeded_bugs, schedule, dtype=torch.float16)
    statistics = emulator.statistics(seeded_bugs)
    assert statistics["products"] == statistics["blocks"] * 4 * 4 * 2 * 2
    assert statistics["row_conflicts"] == 0


# number, kernel, what the message says, what it names
BUGS = (
    (1, "total", "(uninitialised|race on) shared warp_sums", "seeded_bug_reduce.cu:"),
    (2, "total", "array index out of bounds", "seeded_bug_reduce.cu:"),
    (3, "total", "out-of-bounds read at offset 12004 of argument 0, which has 12004 bytes", ".cu:"),
    (4, "total", "divergent barrier", "seeded_bug_reduce.cu:.* by thread .*seeded_bug_reduce.cu:"),
    (5, "matmul", "cp.async that was not waited for", "seeded_bug_matmul.cu:"),
    (6, "matmul", "is not ordered after a read", "seeded_bug_matmul.cu:"),
    (7, "total", "__shfl_xor_sync .* never completes: lane 5 of warp 0 waits in", ".cu:"),
    (8, "affine", "misaligned", "seeded_bug_reduce.cu:"),
    (9, "total", "race on argument 3.*another block's thread 0", "seeded_bug_reduce.cu:"),
    (10, "matmul", "out-of-bounds read", "seeded_bug_matmul.cu:"),
    (11, "affine", "out-of-bounds read at offset 48 of argument 4", "seeded_bug_reduce.cu:"),
    (12, "affine", "(uninitialised|race on) dynamic shared", "seeded_bug_reduce.cu:"),
    (13, "total", "race on argument 2.*another block's thread 0", "seeded_bug_reduce.cu:"),
    (14, "total", "never completes: lane 5 of warp 1 has exited", "seeded_bug_reduce.cu:"),
    (16, "total", "__ldg of data that this launch has written", "seeded_bug_reduce.cu:"),
    (17, "matmul", "(uninitialised|race on) shared [ab]_tile", "seeded_bug_matmul.cu:"),
    (18, "affine", "out-of-bounds write .* of dynamic shared", "seeded_bug_reduce.cu:"),
    (
        22,
        "total",
        "race on argument 2.*another block's",
        "seeded_bug_reduce.cu:",
    ),  # fence too early
    (
        23,
        "total",
        "race on argument 2.*another block's",
        "seeded_bug_reduce.cu:",
    ),  # of the block only
    (
        24,
        "total",
        "race on argument 2.*another block's",
        "seeded_bug_reduce.cu:",
    ),  # reader unfenced
)


@checked
@schedules
@pytest.mark.parametrize(("bug", "kernel", "message", "names"), BUGS, ids=lambda v: str(v)[:8])
def test_seeded_bug_bug_is_named(seeded_bugs, bug, kernel, message, names, schedule):
    with pytest.raises(KernelError) as caught:
        KERNELS[kernel](seeded_bugs, schedule, bug)
    first_line = str(caught.value).splitlines()[0]
    assert re.search(message, first_line), first_line
    assert re.search(names, first_line), first_line
    assert f"{kernel}_kernel" in str(caught.value)


@schedules
def test_seeded_bug_logic_error_gives_a_wrong_result(seeded_bugs, schedule):
    """Bug 15, rows of a fragment exchanged: no rule is broken."""
    with pytest.raises(AssertionError) as caught:
        matmul(seeded_bugs, schedule, 15)
    assert not isinstance(caught.value, KernelError)


def ints(n, fill=0):
    return torch.full((n,), fill, dtype=torch.int32)


@schedules
def test_warp_reduce(seeded_bugs, schedule):
    out = ints(2)
    call(seeded_bugs, "small_warp_reduce", Write(out), 0, schedule=schedule)
    assert out.tolist() == [sum(range(32)), sum(range(32, 64))]


@schedules
def test_atomic_histogram(seeded_bugs, schedule):
    x, out = torch.arange(1000, dtype=torch.int32), ints(8)
    call(seeded_bugs, "small_histogram", Read(x), 1000, Update(out), 0, schedule=schedule)
    assert out.tolist() == [375] * 8


@schedules
def test_half_warp_masks_and_width_16(seeded_bugs, schedule):
    """In a block of 16x3 threads, whose second warp has half its lanes."""
    out = ints(48)
    call(seeded_bugs, "small_half_warps", Write(out), schedule=schedule)
    expected = [sum(range(first, first + 16)) for first in (0, 16, 32)]
    assert out.tolist() == [value for value in expected for _ in range(16)]


@schedules
def test_partial_masks(seeded_bugs, schedule):
    out = ints(32)
    call(seeded_bugs, "small_partial_mask", Write(out), 0, schedule=schedule)
    assert out[:8].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


@schedules
@pytest.mark.parametrize("n", [1, 31, 33, 1024])
def test_reversal_through_shared_memory(seeded_bugs, n, schedule):
    x, out = torch.arange(n, dtype=torch.int32), ints(n)
    call(seeded_bugs, "small_reverse", Read(x), Write(out), n, schedule=schedule)
    assert torch.equal(out, x.flip(0))


@schedules
def test_votes_and_counts(seeded_bugs, schedule):
    out = ints(7)
    call(seeded_bugs, "small_votes", Write(out), schedule=schedule)
    assert out.tolist() == [0xAAAAAAAA - 2**32, 1, 1, 16, 32, 0, 1]


@schedules
def test_bytes_do_not_share_a_granule(seeded_bugs, schedule):
    out = torch.zeros(64, dtype=torch.uint8)
    call(seeded_bugs, "small_bytes", Write(out), schedule=schedule)
    assert out.tolist() == list(range(63, -1, -1))


# function, arguments, what the message says
WRONG = {
    "lock_step": ("small_warp_reduce", lambda: (Write(ints(2)), 1), "race on shared values"),
    "histogram_read_early": (
        "small_histogram",
        lambda: (Read(torch.arange(1000, dtype=torch.int32)), 1000, Update(ints(8)), 1),
        "race on shared counts",
    ),
    "partial_mask_orders_no_other": (
        "small_partial_mask",
        lambda: (Write(ints(32)), 1),
        "(uninitialised|race on) shared values",
    ),
    "third_reader": (
        "small_readers",
        lambda: (Write(ints(96)), 96),
        "race on shared value|read by",
    ),
    "in_place_neighbours": ("small_neighbours", lambda: (Update(ints(64)), 64), "race on argument"),
    "uneven_loop": ("small_uneven_loop", lambda: (Write(ints(64)),), "divergent barrier"),
    "local_overrun": (
        "small_local_overrun",
        lambda: (Write(ints(32)), 5),
        "array index out of bounds at tests/emulator/kernels/seeded_bug_small.cu:",
    ),
    "caller_not_in_mask": ("small_lonely_lane", lambda: (Write(ints(32)),), "the mask does not"),
    "program_variable": ("small_misread", lambda: (Read(ints(32)), 0), "write to a program var"),
    "source_not_in_mask": ("small_misread", lambda: (Write(ints(32)), 1), "does not take part"),
    "plain_beside_atomic": (
        "small_misread",
        lambda: (Update(ints(32)), 2),
        "after an atomic|atomic",
    ),
    "unwritten_output": ("small_misread", lambda: (Write(ints(40)), 3), "read of uninitialised"),
    "unwritten_shared": ("small_misread", lambda: (Write(ints(32)), 4), "uninitialised shared"),
    "unawaited_copy": ("small_misread", lambda: (Read(ints(32)), 5), "waited for|cp.async"),
    "uninitialised_atomic": ("small_misread", lambda: (Write(ints(32)), 6), "uninitialised shared"),
    "copy_to_global": ("small_misread", lambda: (Update(ints(32)), 7), "not in shared memory"),
    "misaligned_copy": ("small_misread", lambda: (Read(ints(32)), 8), "target that is not aligned"),
    "written_input": ("small_votes", lambda: (Read(ints(7)),), "an input, at"),
    "too_many_threads": ("small_too_large", lambda: (Write(ints(7)), 1025, 0), "1025 threads"),
    "too_much_shared": (
        "small_too_large",
        lambda: (Write(ints(7)), 64, 232449),
        "bytes of dynamic",
    ),
}


@checked
@schedules
@pytest.mark.parametrize("name", WRONG)
def test_broken_rule_is_named(seeded_bugs, name, schedule):
    function, args, message = WRONG[name]
    with pytest.raises(KernelError, match=message):
        call(seeded_bugs, function, *args(), schedule=schedule)


def test_after_an_error_the_emulator_goes_on(seeded_bugs):
    with pytest.raises(KernelError):
        total(seeded_bugs, SCHEDULES[0], 4)
    total(seeded_bugs, SCHEDULES[0])


@checked
def test_overlapping_buffers_are_refused(seeded_bugs):
    x = ints(64)
    with pytest.raises(KernelError, match="overlaps"):
        call(seeded_bugs, "small_histogram", Read(x[:40]), 40, Update(x[32:]), 0)


@pytest.mark.skipif("not config.getoption('--sanitized')", reason="needs --sanitized")
@pytest.mark.parametrize(("bug", "kernel"), [(3, "total"), (10, "matmul"), (18, "affine")])
def test_address_sanitizer_sees_the_ends(bug, kernel):
    """In a process of its own, which it ends."""
    code = (
        "import sys, emulator; emulator.sanitized = True; import test_simt as t\n"
        f"t.{kernel}(emulator.library('genimg_seeded_bugs'), emulator.SCHEDULES[0], {bug})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{emulator.ROOT}/tests:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
