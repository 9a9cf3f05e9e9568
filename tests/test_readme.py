"""The README's examples work: its Python runs, its commands and targets exist."""

import re
import shlex
import time
from pathlib import Path

import click
import pytest
import torch
from measured import processes

from genimg import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
    return [body for found, body in fenced if found == language]


def test_python(tmp_path):
    names = {
        "torch": torch,
        "model": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(0.2)),
        "x": torch.randn(2, 3, 8, 8),
    }
    with processes(tmp_path, time.perf_counter) as begin:
        begin()
        for code in blocks("python"):
            exec(code, names)
    assert len(blocks("python")) == 3
    assert names["images"].shape == (64, 3, 32, 32)
    assert type(names["model"]) is torch.nn.Sequential  # restored


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line.startswith("genimg ")]


def test_there_are_commands():
    assert len(commands()) >= 7


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line):
    """Every command and option of it is known; other tests run them."""
    arguments = shlex.split(line)[1:]
    command = cli.cli
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments, resilient_parsing=False)


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make (\w+)", README))
    assert targets >= {"demo", "test", "bench", "setup"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_lead_somewhere():
    names = ("", "docs", "kernels", "benchmarks", "tests/emulator", "examples")
    folders = [ROOT / name for name in names]
    for path in (path for folder in folders for path in folder.glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
