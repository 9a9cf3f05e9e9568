"""Checks every case of every op on the GPU's kernels; see gpu_run.sh.

An op, a backend and a dtype are a process: a kernel that faults or hangs takes its own process with
it, and no other's results. With ``--tools`` the same processes run the small cases under tools of
compute-sanitizer, and judge no result.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from genimg import check as checking
from genimg.backends import OPS, BackendError
from genimg.testing import prepare, run

HALO = "cuda_sm90"
"""The CUDA kernels, those for Hopper (``GENIMG_CUDA_SM90``) among them where they serve."""
KERNELS = ("cuda", HALO, "triton")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOOLS = ("memcheck", "racecheck", "synccheck")
SANITIZED = ("float32", "bfloat16")  # the scalar paths, and those of the tensor cores


def backend_of(name: str) -> str:
    """The backend that genimg names for a name in ``KERNELS``."""
    return "cuda" if name == HALO else name


@dataclass(frozen=True)
class Job:
    """A process of its own."""

    backend: str
    op: str
    dtype: str
    tool: str = ""

    def __str__(self) -> str:
        return f"{self.backend:<10}{self.op:<18}{self.dtype:<10}{self.tool:<10}"

    def command(self) -> list[str]:
        """Runs it; the exit code is 0 if nothing was wrong."""
        here = [sys.executable, __file__, "--one", backend_of(self.backend), self.op, self.dtype]
        if not self.tool:
            return here
        return [_sanitizer(), "--tool", self.tool, "--error-exitcode", "1", *here, "--bare"]


def one(backend: str, op: str, dtype: str) -> int:
    """Every case: a line each; the exit code."""
    failed = served = 0
    for row in checking.check([op], [backend], [DTYPES[dtype]]):
        served += 1
        failed += not row.ok
        print(row, flush=True)
    print(f"{served - failed} passed, {failed} failed")
    return 1 if failed or not served else 0


def bare(backend: str, op: str, dtype: str) -> int:
    """Every small case, its results not looked at: no other kernels than ours and torch's fills."""
    entry = OPS[op]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ran = 0
    for case in entry.cases:
        if case.speed or case.slow:
            continue
        try:
            tensors = prepare(case, DTYPES[dtype], device)
            run(case, partial(entry.function, backend=backend), tensors)
        except BackendError:
            continue
        ran += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} cases ran")
    return 0 if ran else 1


def _sanitizer() -> str:
    """Path of compute-sanitizer: on PATH, or beside nvcc."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    places = [os.environ.get("PATH", ""), os.path.dirname(os.path.realpath(nvcc))]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places)) or ""


def _run(job: Job, seconds: float, deadline: float) -> tuple[int, str]:
    left = min(seconds, deadline - time.monotonic())
    if left <= 0:
        return 124, "not run: no time was left"
    # Its writes past the end of a tensor are seen only where torch's cache is off.
    more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if job.tool else {}
    more["GENIMG_CUDA_SM90"] = "1" if job.backend == HALO else "0"
    env = {**os.environ, "OMP_NUM_THREADS": "2", **more}
    try:
        done = subprocess.run(job.command(), capture_output=True, text=True, timeout=left, env=env)
    except subprocess.TimeoutExpired as ended:
        return 124, f"{_text(ended.stdout)}{_text(ended.stderr)}\nstopped after {left:.0f} s"
    return done.returncode, done.stdout + done.stderr


def _text(output: Any) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _serves(backend: str, op: str) -> bool:
    return "conv" in op if backend == HALO else backend in OPS[op].by_backend


def jobs(backends: Sequence[str], tools: Sequence[str]) -> list[Job]:
    """The jobs to run, the longest (the contractions) first."""
    pairs = [(name, op) for op in OPS for name in backends if _serves(name, op)]
    pairs.sort(key=lambda pair: "conv" not in pair[1])
    if tools:
        found = [Job(*p, dtype, tool) for tool in tools for p in pairs for dtype in SANITIZED]
    else:
        found = [Job(*pair, dtype) for pair in pairs for dtype in DTYPES]
    lacks = (("cpu", "float16"), (HALO, "float32"))
    return [job for job in found if (job.backend, job.dtype) not in lacks]


def run_all(found: Sequence[Job], at_a_time: int, seconds: float, in_all: float) -> int:
    """Run them side by side, print what each says as it ends, and a summary; the exit code."""
    deadline = time.monotonic() + in_all
    summary = []
    with ThreadPoolExecutor(at_a_time) as pool:
        running = {pool.submit(_run, job, seconds, deadline): job for job in found}
        for ended in as_completed(running):
            job, (code, output) = running[ended], ended.result()
            print(f"== {job}\n{output}", flush=True)
            lines = output.strip().splitlines() or ["no output"]
            summary.append((code, f"{job}exit {code:<5}{lines[-1]}"))
    print("\n".join(sorted(line for _, line in summary)))
    bad = sum(code != 0 for code, _ in summary)
    print(f"{len(summary) - bad} of {len(summary)} without a fault")
    return 1 if bad else 0


def main() -> int:
    """Returns the exit code: 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("BACKEND", "OP", "DTYPE")
    parser.add_argument("--one", nargs=3, metavar=names, help="this one, in this process")
    parser.add_argument("--bare", action="store_true", help="of --one, small cases, not judged")
    parser.add_argument("--seconds", type=float, default=600, help="for each process")
    parser.add_argument("--in-all", type=float, default=3600, help="seconds for all of them")
    parser.add_argument("--at-a-time", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--backend", nargs="*", default=KERNELS)
    parser.add_argument("--tools", nargs="*", choices=TOOLS, help="default: all three")
    asked = parser.parse_args()
    if asked.one:
        return bare(*asked.one) if asked.bare else one(*asked.one)
    tools: Sequence[str] = ()
    if asked.tools is not None:
        tools = asked.tools or TOOLS
        if not _sanitizer():
            print("compute-sanitizer is neither on PATH nor beside nvcc: nothing was run")
            return 2
    return run_all(jobs(asked.backend, tools), asked.at_a_time, asked.seconds, asked.in_all)


if __name__ == "__main__":
    sys.exit(main())
