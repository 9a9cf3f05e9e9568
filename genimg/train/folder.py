"""The folder of a run: its number, its options, its statistics.

::

    runs/00001-gan-digits/
        options.json        what the run was asked for, and the data it found
        decisions.json      the kernels that were measured to be the fastest, for `--resume`
        stats.jsonl         a line of means every --stats-every steps
        reals.png           some of the images it learns from
        fakes00010.png      what the fixed noise gives after 10 steps
        model.safetensors   what `genimg sample` needs
        checkpoint-*.pt     what `--resume` needs; the last two
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from genimg.train.errors import FileError
from genimg.train.files import held, make_folder, printable, reason, write_whole

OPTIONS_FILE = "options.json"
_NUMBERED = re.compile(r"(\d{5,})-")


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run."""
    return _NUMBERED.match(path.name) is not None and (path / OPTIONS_FILE).is_file()


def next_name(out: Path, name: str) -> str:
    """The name that the next run in ``out`` gets, such as ``00003-gan-digits``."""
    taken = [0]
    if out.is_dir():
        taken += [int(m[1]) for m in map(_NUMBERED.match, os.listdir(out)) if m]
    return f"{max(taken) + 1:05d}-{name}"


def create(out: Path, name: str) -> Path:
    """Makes the next numbered folder in ``out``; runs that start together get different numbers.

    Raises:
        FileError: if it cannot be made.
    """
    make_folder(out)
    # The number must be free whatever name stands behind it, which mkdir alone cannot see to.
    with held(out, wait=True):
        while True:
            folder = out / next_name(out, name)
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # no locks here, and another run was faster
                continue
            except OSError as error:
                text = f"cannot make a run folder in {printable(out)}: {reason(error)}"
                raise FileError(text) from error


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as JSON that a person can read."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


class StatsLog:
    """``stats.jsonl``: one JSON object a line, in the order of their steps.

    Opening it for a run that goes on from ``step`` drops the lines after that step, and a last line
    that a kill tore: the steps are about to be taken again.
    """

    def __init__(self, path: Path, *, step: int = 0) -> None:
        self.path = path
        if path.exists():
            kept = []
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    after = json.loads(line)["step"] > step
                except (ValueError, KeyError, TypeError):
                    break
                if after or not line.endswith(b"\n"):
                    break
                kept.append(line)
            write_whole(path, b"".join(kept))
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise FileError(f"cannot write {printable(path)}: {reason(error)}") from error

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line, and hands it to the system at once."""
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise FileError(f"cannot write {printable(self.path)}: {reason(error)}") from error

    def sync(self) -> None:
        """Brings the lines to the disk, so that they are not behind a checkpoint."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {printable(self.path)}: {reason(error)}") from error

    def __enter__(self) -> StatsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
