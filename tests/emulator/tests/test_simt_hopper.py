"""The emulator on Hopper's instructions: right kernels pass, each planted bug is found and named.

The numbers of the bugs are those of ``tests/emulator/README.md``.
"""

import ctypes
import re

import emulator
import pytest
import torch
from emulator import SCHEDULES, KernelError, Read, Write, call

schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
checked = pytest.mark.skipif("config.getoption('--sanitized')", reason="the checker is not built")


def gemm90(seeded_bugs, schedule, bug=0, rows=72, columns=40, depth=296, dtype=torch.bfloat16):
    """Small integers, so that the sums are exact; no size is a multiple of the tile's."""
    a = torch.randint(-3, 4, (rows, depth)).to(dtype)
    b = torch.randint(-3, 4, (depth, columns)).to(dtype)
    c = torch.empty(rows, columns)
    name = "seeded_bug_gemm90_" + {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    call(
        seeded_bugs, name, Read(a), Read(b), Write(c), rows, columns, depth, bug, schedule=schedule
    )
    assert torch.equal(c.double(), a.double() @ b.double())


@schedules
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_right_kernel_passes(seeded_bugs, dtype, schedule):
    gemm90(seeded_bugs, schedule, dtype=dtype)
    statistics = emulator.statistics(seeded_bugs)
    assert statistics["products"] == statistics["blocks"] * 5 * 4


# number, what the message says
BUGS = (
    (31, "TMA load at .* is not ordered after (the end of wgmma|a TMA load)|more arrivals than 1"),
    (32, "TMA load that was not waited for|waits for ever .* bytes are missing"),
    (33, "(uninitialised|wgmma at .* is not ordered after a TMA load)"),
    (34, "race on dynamic shared.*TMA load at .* is not ordered after the end of wgmma"),
    (37, "initialised without mbarrier_init_fence"),
)


@checked
@schedules
@pytest.mark.parametrize(("bug", "message"), BUGS, ids=lambda v: str(v)[:8])
def test_seeded_bug_bug_is_named(seeded_bugs, bug, message, schedule):
    with pytest.raises(KernelError) as caught:
        gemm90(seeded_bugs, schedule, bug)
    first_line = str(caught.value).splitlines()[0]
    assert re.search(message, first_line), first_line
    assert "seeded_bug_gemm90.cu:" in first_line
    assert "gemm90_kernel" in str(caught.value)


def staged(seeded_bugs, schedule, bug=0):
    a, b = (torch.randint(-3, 4, (64, 16)).bfloat16() for _ in range(2))
    d = torch.empty(64, 64)
    call(seeded_bugs, "seeded_bug_staged", Read(a), Read(b), Write(d), bug, schedule=schedule)
    assert torch.equal(d.double(), a.double() @ b.double().T)


@schedules
def test_operands_written_by_threads(seeded_bugs, schedule):
    staged(seeded_bugs, schedule)


PROXY = "wgmma at .* without fence.proxy.async after the write by thread"


@checked
@schedules
@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (35, "the thread ends before its wgmma has been waited for"),
        (36, "no wgmma_fence since the last wait"),
        (38, PROXY),
        (39, PROXY),  # too late: behind the barrier
        (41, "write at .* is not ordered after the end of wgmma"),
    ],
)
def test_staging_bug_is_named(seeded_bugs, bug, message, schedule):
    with pytest.raises(KernelError, match=message):
        staged(seeded_bugs, schedule, bug)


def test_sums_read_before_the_wait_are_wrong(seeded_bugs):
    """Bug 40, where products land at the last moment: at once is a legal moment, too."""
    with pytest.raises(AssertionError) as caught:
        staged(seeded_bugs, SCHEDULES[0], 40)
    assert not isinstance(caught.value, KernelError)


# In the order of seeded_bug_misused.cu's enum.
MISUSES = {
    "misaligned_barrier": "mbarrier that is not aligned to 8 bytes",
    "global_barrier": "mbarrier that is not in shared memory",
    "uninitialised_barrier": "uninitialised shared barriers",
    "unordered_init": "(uninitialised|race on) shared barriers",
    "too_many_arrivals": "more arrivals than 1 in a phase",
    "missing_arrival": "waits for ever .* 1 arrivals and -1024 bytes are missing",
    "missing_bytes": "waits for ever .* 0 arrivals and 1024 bytes are missing",
    "unawaited_load": "the block ends before a TMA load has been waited for",
    "read_early": "read at .* is not ordered after a TMA load that was not waited for",
    "misaligned_target": "TMA: a target that is not aligned",
    "target_past_end": "TMA: the target at .* is not in shared memory",
    "other_rank": "TMA: a map of another rank",
    "few_threads": "by a warpgroup of fewer than 128 threads",
    "other_operands": "the threads of a warpgroup name different operands",
    "other_line": "warpgroup diverged: thread .* comes to wgmma at",
    "operand_outside": "an operand outside shared memory",
    "unwritten_operand": "uninitialised shared operand",
    "one_warp_goes_on": "write at .* is not ordered after the end of wgmma",
    "unwritten_columns": "uninitialised shared wide",
}


def misuse(seeded_bugs, schedule, number):
    x, out = torch.zeros(8, 64).bfloat16(), torch.zeros(160)
    call(seeded_bugs, "seeded_bug_misuse", Read(x), Write(out), number, schedule=schedule)


@schedules
def test_nothing_misused(seeded_bugs, schedule):
    misuse(seeded_bugs, schedule, 0)


@checked
@schedules
@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_named(seeded_bugs, name, schedule):
    with pytest.raises(KernelError, match=MISUSES[name]):
        misuse(seeded_bugs, schedule, 1 + list(MISUSES).index(name))


@pytest.mark.parametrize("wrong", range(7))
def test_maps_that_the_driver_would_refuse(seeded_bugs, wrong):
    """Base, pitch, inner box, outer box, rank, size; 0 is the right one."""
    x = torch.zeros(16, 64).bfloat16()
    refused = seeded_bugs.seeded_bug_map_refused(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(wrong)
    )
    assert refused == (wrong != 0)
