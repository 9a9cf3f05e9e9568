"""Helpers of the tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import genimg
from genimg import cli

TINY = (
    "--image-size=16 --width=4 --latent-dim=5 --batch-size=8 --steps=2 --threads=1 --device=cpu"
).split()
"""Options of a run of two steps."""


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that fails for its caller's mistake."""
    capsys.readouterr()
    assert cli.run(arguments) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("genimg: ")
    assert "Traceback" not in shown.out
    return lines[0]


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(genimg.__path__[0]).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        timeout=120,
    )
