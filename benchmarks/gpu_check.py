"""Checks every case of every op on the GPU's kernels, an op and backend a process; see gpu_run.sh.

A kernel that faults or hangs takes its own process with it, and no other's results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from genimg import check as checking
from genimg.backends import OPS

KERNELS = ("cuda", "triton")
_AT_A_TIME = 6


def one(op: str, backend: str) -> int:
    """Every case of an op on a backend: a line each; the exit code."""
    failed = served = 0
    for row in checking.check([op], [backend]):
        served += 1
        failed += not row.ok
        print(row, flush=True)
    print(f"{served - failed} passed, {failed} failed")
    return 1 if failed else 0


def _run(op: str, backend: str, seconds: float) -> tuple[str, str, int, str]:
    command = [sys.executable, __file__, "--one", op, backend]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as ended:
        return op, backend, 124, _text(ended.stdout)
    return op, backend, done.returncode, done.stdout + done.stderr


def _text(output: Any) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def main() -> int:
    """Returns the exit code: 0 if no case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("OP", "BACKEND"), help="this one, here")
    parser.add_argument("--seconds", type=float, default=150, help="for each op and backend")
    parser.add_argument("--backend", nargs="*", default=KERNELS)
    asked = parser.parse_args()
    if asked.one:
        return one(*asked.one)
    pairs = [(op, name) for name in asked.backend for op in OPS if name in OPS[op].by_backend]
    summary = []
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for op, backend, code, output in pool.map(lambda pair: _run(*pair, asked.seconds), pairs):
            print(f"== {backend} {op}\n{output}")
            lines = output.strip().splitlines() or ["no output"]
            summary.append((code, f"{backend:<8}{op:<18}exit {code:<5}{lines[-1]}"))
    print("\n".join(line for _, line in summary))
    return 1 if any(code for code, _ in summary) else 0


if __name__ == "__main__":
    sys.exit(main())
