"""The kernels of a run: decided before it, kept in its folder, and taken again by --resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured import Clock, processes

from genimg import _native, priors, trial, tuning
from genimg.train import choice, run
from genimg.train.gan import GANTrainer
from genimg.train.options import Options

pytestmark = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
CPU = torch.device("cpu")
Tiny = Callable[..., Options]


def trained(options: Options, out: Path, said: list[str] | None = None) -> Path:
    place = run.start(options, out, say=([] if said is None else said).append)
    assert place is not None
    return place


def weights(place: Path) -> bytes:
    return (place / "model.safetensors").read_bytes()


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """On a clock that stands still the kernel wins, which is the first candidate."""
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial, "ROUNDS", 2)
    monkeypatch.setattr(priors, "CPU", priors.OTHER)  # PyTorch, where nothing is decided
    with processes(tmp_path / "cache", Clock()) as begin:
        yield begin


def test_a_run_keeps_what_it_ran_with_and_measures_nothing(
    begin: Any, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = begin()
    measured = []
    step = GANTrainer.step

    def record(self: GANTrainer, x: torch.Tensor) -> Any:
        measured.append(tuning.current().measures)
        return step(self, x)

    monkeypatch.setattr(GANTrainer, "step", record)
    said: list[str] = []
    place = trained(tiny("gan"), tmp_path, said)
    assert "measuring the kernels" in said[-1]
    assert tuning.current() is tuner
    assert measured == [True] + [False] * 9  # to decide, to see what is met, and the run's own
    found = choice.recorded(place)
    assert found
    assert found.items() <= tuner.store.all(CPU).items()


def test_resume_takes_the_same_kernels_to_the_same_bits(
    begin: Any, tiny: Tiny, tmp_path: Path
) -> None:
    """Whatever the machine has measured in the meantime."""
    begin()
    whole = trained(tiny("vae"), tmp_path / "whole")
    half = trained(tiny("vae", steps=4), tmp_path / "half")
    forgotten = tmp_path / "forgotten"
    shutil.copytree(half, forgotten)
    (forgotten / choice.CHOICE_FILE).unlink()
    other = begin()
    for kind, decision in other.store.all(CPU).items():
        other.store.keep(CPU, {kind: replace(decision, chosen="reference")})
    begin()
    for place in (half, forgotten):
        run.resume(place, {"steps": 8}, model="vae", say=lambda text: None)
    assert weights(half) == weights(whole)
    assert weights(forgotten) != weights(whole)  # so the bits do tell the kernels


def test_without_decisions_there_is_no_file(tiny: Tiny, tmp_path: Path) -> None:
    said: list[str] = []
    place = trained(tiny("gan"), tmp_path, said)
    assert "measuring" not in "".join(said)
    assert not (place / choice.CHOICE_FILE).exists()
    assert choice.recorded(place) == {}


def test_a_damaged_file_leaves_the_priors(tmp_path: Path) -> None:
    (tmp_path / choice.CHOICE_FILE).write_bytes(b"\xff{")
    assert choice.recorded(tmp_path) == {}
