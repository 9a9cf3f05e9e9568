"""The driver of make check-triton: what it passes, and that it refuses what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genimg.kernels.triton import runtime
from genimg.kernels.triton.aot import Compile, Compiled, faults, narrow_accesses

FOLDER = Path(__file__).parent

pytestmark = pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")


def check(cache, *arguments):
    """A process of its own: under the interpreter there is nothing to compile."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, FOLDER / "check_triton.py", "--here", "--jobs", "2", *arguments],
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_leaky_relu_compiles_for_gpus_that_are_not_here(tmp_path):
    """Every architecture and dtype, bf16 included, with 16-byte accesses."""
    done = check(tmp_path, "--only", "leaky_relu", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "sm_" in line]
    assert len(rows) == 4 * 3 * 2
    assert all(8 <= int(row[-2]) <= 255 for row in rows)


def test_seeded_bug_faults_are_refused(tmp_path):
    arguments = ("--all", "--arch", "90", "--dtype", "fp16")
    done = check(tmp_path, "--module", str(FOLDER / "faulty_kernels.py"), *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    rows = done.stdout.split(" sm_90 ")
    names = [row.splitlines()[-1].strip() for row in rows[:-1]]
    found = dict(zip(names, (row.partition("FAULT")[2].strip() for row in rows[1:]), strict=True))
    assert found["sound"] == ""
    assert "bytes of stack" in found["spilling"]
    assert "accesses of fewer than 16 bytes: " in found["narrow"]
    assert "bytes of shared memory, 232448 are there" in found["large"]
    assert "multiplies matrices without wgmma" in found["slow"]
    assert "CompilationError" in found["broken"]
    assert found["narrow behind a box"].startswith("accesses of fewer than 16 bytes: ")
    assert "fetches no box by a tensor descriptor" in found["without its box"]


def found_by_name():
    """Stands for a kernel, of which the name alone is asked."""


@pytest.mark.parametrize(("version", "allowed"), [("3.6.0", 0), ("3.7.1", 0), ("3.9.0", 16)])
def test_four_registers_may_spill_under_one_release(monkeypatch, version, allowed):
    monkeypatch.setattr("genimg.kernels.triton.aot.VERSION", version)
    entry = Compile(found_by_name, "", {}, {}, {}, ())

    def found(stack):
        return faults(entry, 90, "bf16", Compiled(64, stack, 0, 0, 0, ()))

    assert found(allowed) == []
    assert found(allowed + 8) == [f"spills: {allowed + 8} bytes of stack"]


def test_nothing_to_compile_is_no_success(tmp_path):
    assert check(tmp_path, "--only", "no such kernel").returncode == 2


PTX = """
    ld.param.b64 %rd1, [_k_param_0];
    ld.param.b64 %rd2, [_k_param_1];
    mov.b64 %rd5, %rd1;
$loop:
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd5 + 0 ];
    add.s64 %rd5, %rd5, %rd9;
    mad.wide.s32 %rd3, %r7, 2, %rd2;
    @!%p1 ld.global.L1::evict_first.v2.b32 { %r1, %r2 }, [ %rd3 + 0 ];
    st.global.b16 [ %rd5 + 2 ], %rs1;
    cp.async.ca.shared.global [ %r8 + 0 ], [ %rd3 + 0 ], 0x4, %r9;
    cp.async.cg.shared.global [ %r8 + 0 ], [ %rd5 + 0 ], 0x10, %r9;
    ld.global.v4.b64 { %rd10, %rd11, %rd12, %rd13 }, [ %rd3 + 0 ];
"""


def test_accesses_are_laid_to_their_pointers():
    """Through loops, sums and predicates; by bytes, of vectors and of asynchronous copies."""
    assert narrow_accesses(PTX, {0}) == ["st.global.b16"]
    assert narrow_accesses(PTX, {1}) == [
        "ld.global.L1::evict_first.v2.b32",
        "cp.async.ca.shared.global",
    ]
    assert narrow_accesses(PTX, set()) == []
