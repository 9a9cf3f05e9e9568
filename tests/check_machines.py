"""Checks the CPU kernels on pretended machines (machines.py), each in a process of its own.

Run by ``make check-machines``. A machine runs what ``genimg check --backend cpu`` runs, but for the
cases worth timing, and two whole models at full width and eight images; ``--all`` adds the cases
worth timing. The table says how many rows there were and how long they took.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from machines import MACHINES, Machine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/kernels"))
IMAGES = 8


def model_cases() -> list[Any]:
    """DCGAN's two networks: deep sums, and an activation behind every norm."""
    from genimg.cases.conv_stack import (
        CASES,
        Activation,
        Direction,
        Layer,
        make_case,
    )

    generator = next(case for case in CASES if case.name == "dcgan_generator")

    def few_images(draw: Any) -> Any:
        tensors = generator.tensors(draw)
        return {**tensors, "x": tensors["x"][:IMAGES]}

    down, last = Direction.DOWN, Activation.NONE
    discriminator = make_case(
        "dcgan_discriminator",
        "3 -> 64 -> 128 -> 256 -> 512 -> 1 at 64x64",
        (IMAGES, 3, 64, 64),
        (
            Layer(down, 64, norm=False),
            *(Layer(down, channels) for channels in (128, 256, 512)),
            Layer(down, 1, stride=1, padding=0, norm=False, activation=last),
        ),
    )
    return [replace(generator, tensors=few_images, speed=False), discriminator]


def work(everything: bool) -> int:
    """In the process that pretends: one line for each row that fails, and the number of rows."""
    import cpu_cases
    import torch

    from genimg import _native, ops
    from genimg.backends import OPS
    from genimg.check import DTYPES, HEADER, check_case

    assert ops  # importing it fills OPS
    assert _native.available(), _native.why_not()
    isa = _native.build_info()["isa"]
    if isa != os.environ["GENIMG_CPU_ISA"]:
        print(isa)
        return 2
    rows = []
    for op in OPS.values():
        cases = [case for case in op.cases if not case.slow and (everything or not case.speed)]
        cases += cpu_cases.CASES.get(op.name, ())
        rows += [check_case(op, case, "cpu", dtype, "cpu") for case in cases for dtype in DTYPES]
    stack = OPS["conv_stack"]
    rows += [check_case(stack, case, "cpu", torch.float32, "cpu") for case in model_cases()]
    served = [row for row in rows if row is not None]
    failed = [row for row in served if not row.ok]
    if failed:
        print(HEADER, *failed, sep="\n")
    print(f"{len(served)} rows, {len(failed)} failed")
    return 1 if failed else 0


def check(machine: Machine, everything: bool) -> bool:
    """Run a pretended machine and print its line of the table; whether all is right there."""
    if machine.missing():
        print(f"{machine}  not pretended: this CPU has no {', '.join(machine.missing())}")
        return True
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--work", *(["--all"] if everything else [])],
        cwd=ROOT,
        env=machine.environment(),
        capture_output=True,
        text=True,
    )
    *rows, summary = done.stdout.splitlines() or [""]
    if done.returncode not in (0, 1) or "rows" not in summary:
        summary = f"ended with {done.returncode}: {done.stderr.strip()[-500:] or summary}"
    print("\n".join([f"{machine}  {summary:<22} {time.monotonic() - began:>4.0f} s", *rows]))
    sys.stdout.flush()
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="the cases worth timing, too")
    parser.add_argument("--machine", action="append", help="by name; default: all")
    options = parser.parse_args()
    if options.work:
        return work(options.all)
    chosen = [m for m in MACHINES if not options.machine or m.name in options.machine]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        right = list(pool.map(lambda machine: check(machine, options.all), chosen))
    return 0 if chosen and all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
