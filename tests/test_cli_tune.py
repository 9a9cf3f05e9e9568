"""``genimg tune``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import fails
from measured import Clock, processes

from genimg import cli, trial, tuning

TINY = "--image-size=16 --width=4 --latent-dim=5 --batch-size=8 --device=cpu --threads=1".split()


class Ticking(Clock):
    """Goes on by the same at each look, so that everything takes equally long."""

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


@pytest.fixture(autouse=True)
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial, "ROUNDS", 2)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    with processes(tmp_path / "cache", Ticking()) as begin:
        begin()
        yield begin
    torch.set_num_threads(threads)


def test_the_shipped_models(capsys: pytest.CaptureFixture[str], begin: Any) -> None:
    assert cli.run(["tune", *TINY]) == 0
    shown = capsys.readouterr().out
    for text in ("generator, input 8x5, cpu", "discriminator, input 8x1x16x16", "VAE, input"):
        assert text in shown
    assert "a whole step" in shown
    assert f"decisions: {tuning.current().store.path(torch.device('cpu'))}" in shown
    begin()
    assert cli.run(["tune", "vae", *TINY]) == 0
    assert "as measured earlier" in capsys.readouterr().out


MODEL = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(0.2))

def number():
    return 3
"""


def test_a_model_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own_model.py").write_text(MODEL)
    assert cli.run(["tune", "own_model:make", "--input", "2,3,8,8", "--eval"]) == 0
    assert "own_model:make, input 2x3x8x8, cpu" in capsys.readouterr().out
    assert "needs --input" in fails(["tune", "own_model:make"], capsys)
    assert "returns a int" in fails(["tune", "own_model:number", "--input", "2"], capsys)
    assert "no attribute" in fails(["tune", "own_model:gone", "--input", "2"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "gone"], "there is no model gone; there are gan, vae, MODULE:FACTORY"),
        (["tune", "gan", "--input", "1,2"], "--input belongs to MODULE:FACTORY"),
        (["tune", "x:y", "--input", "1,a"], "1,a is no shape such as 64,3,32,32"),
        (["tune", "gan", "--image-size=9"], "--image-size is a multiple of 8, not 9"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(arguments, capsys)


def test_where_nothing_is_measured(begin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    begin(measures=False)
    assert "GENIMG_AUTOTUNE=0: nothing is measured" in fails(["tune", *TINY], capsys)
