"""Measures on a GPU, most important first, and writes one JSON file; see gpu_run.sh.

Needs torch and genimg alone. The measurements run in a process of their own. If one hangs or its
process dies, it is recorded as such, and another process continues with the next one; the file is
complete after each row. Each section has its share of the time, and keeps what it has measured.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import torch
from gpu_worker import MARK, SHARES, run_sections

from genimg import info

PATIENCE = 100.0
"""Seconds without a word after which a worker is given up: compiling a step takes half of them."""

Row = dict[str, Any]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


class Results:
    """The file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        commit = _output("git", "rev-parse", "HEAD")
        self.facts = {**info.collect(), "commit": commit, "began": time.strftime("%F %T %Z")}
        self.rows: list[Row] = []
        self.write()

    def add(self, row: Row) -> None:
        """One more, printed and written."""
        self.rows.append(row)
        print(" ".join(f"{value}" for value in row.values()), flush=True)
        self.write()

    def write(self) -> None:
        """Writes by a rename, so that a killed process leaves a complete file."""
        text = json.dumps({"facts": self.facts, "rows": self.rows}, indent=1)
        part = self.path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.path)


class Worker:
    """A process that measures what the file does not have."""

    def __init__(self, results: Results, arguments: list[str]) -> None:
        command = [sys.executable, __file__, str(results.path), "--worker", *arguments]
        self.results = results
        self.open: Row | None = None
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str | None] = queue.Queue()
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.put(line)
        self.lines.put(None)

    def follow(self, deadline: float, patience: float) -> str | None:
        """Take its rows; why it ended before its time, None if it did not."""
        while True:
            wait = min(patience, deadline - time.monotonic())
            try:
                line = self.lines.get(timeout=max(wait, 0.01))
            except queue.Empty:
                self.process.kill()
                self.process.wait()
                late = time.monotonic() >= deadline
                return "stopped: the time was up" if late else f"no result within {patience:.0f} s"
            if line is None:
                code = self.process.wait()
                return f"its process ended with exit code {code}" if code else None
            if not line.startswith(MARK):
                print(line, end="", flush=True)
                continue
            said = json.loads(line[len(MARK) :])
            self.open = said.get("begin")
            if "row" in said:
                self.results.add(said["row"])


def measure(results: Results, seconds: float, arguments: list[str], patience: float) -> None:
    """Workers, one after the other, until nothing is left to measure, or no time."""
    began, wall = time.monotonic(), time.time()
    idle = 0
    while time.monotonic() < began + seconds and idle < 2:
        rows = len(results.rows)
        times = ["--began", str(wall), "--seconds", str(seconds)]
        worker = Worker(results, [*arguments, *times])
        why = worker.follow(began + seconds, patience)
        if why is None:
            return
        if worker.open is not None:
            results.add({**worker.open, "failed": why})
        idle = idle + 1 if len(results.rows) == rows else 0
        if idle:
            print(f"a worker ended with no result: {why}", flush=True)


def summary(rows: list[Row]) -> int:
    """Say which results are wrong, and return the exit code: 1 for those, or if there are none."""
    wrong = [row for row in rows if row.get("failed", "").startswith("WRONG")]
    for row in wrong:
        print(" ".join(f"{value}" for value in row.values()))
    print(f"{len(rows)} rows, {len(wrong)} of them WRONG", flush=True)
    return 0 if rows and not wrong else 1


def main() -> int:
    """Run the sections; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the JSON file")
    parser.add_argument("--seconds", type=float, default=300, help="for all sections together")
    parser.add_argument("--sections", nargs="*", choices=SHARES, default=[*SHARES])
    parser.add_argument("--patience", type=float, default=PATIENCE, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--tiny", action="store_true", help="a few small sizes: tries the runner out"
    )
    asked = parser.parse_args()
    if asked.worker:
        rows = json.loads(asked.out.read_text(encoding="utf-8"))["rows"]
        return run_sections(asked.sections, rows, asked.began, asked.seconds, asked.tiny)
    if not torch.cuda.is_available() and not asked.tiny:
        print("gpu_bench.py: torch sees no GPU here; --tiny tries the runner out", file=sys.stderr)
        return 2
    arguments = ["--sections", *asked.sections, *(["--tiny"] if asked.tiny else [])]
    results = Results(asked.out)
    measure(results, asked.seconds, arguments, asked.patience)
    return summary(results.rows)


if __name__ == "__main__":
    sys.exit(main())
