"""Runs: the same seed the same weights, broken off or not, and no step without a way back."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import genimg
from genimg.train import checkpoint, files, run
from genimg.train.data import Order
from genimg.train.errors import (
    CheckpointError,
    DataError,
    FileError,
    InterruptedRunError,
    NonFiniteError,
    OptionError,
)
from genimg.train.options import Options

Tiny = Callable[..., Options]


def silent(text: str) -> None:
    pass


def trained(options: Options, out: Path) -> Path:
    place = run.start(options, out, say=silent)
    assert place is not None
    return place


def resumed(place: Path, model: str, **changes: Any) -> None:
    run.resume(place, changes, model=model, say=silent)


def statistics(place: Path) -> list[dict[str, float]]:
    """The lines, without what depends on the clock."""
    lines = [json.loads(line) for line in (place / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "time")} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """The same weights, optimisers, random states and pictures, to the bit."""
    one, other = (checkpoint.load_newest(place, pytest.fail)[1] for place in (a, b))
    for state in (one, other):  # what may differ: how often it was saved
        for name in ("steps", "snapshot_every", "checkpoint_every"):
            del state["options"][name]
    assert repr(one) == repr(other)  # the structure, and all that is no tensor
    torch.testing.assert_close(tensors(one), tensors(other), rtol=0, atol=0)
    for name in ("model.safetensors", f"fakes{one['step']:05d}.png"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert statistics(a) == statistics(b)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_run_folder(tmp_path: Path, tiny: Tiny, model: str) -> None:
    place = trained(tiny(model), tmp_path)
    assert place == tmp_path / f"00001-{model}-digits"
    names = {path.name for path in place.iterdir()}
    pictures = {"reals.png"} | {f"fakes0000{step}.png" for step in (0, 4, 8)}
    if model == "vae":
        pictures |= {f"recons0000{step}.png" for step in (0, 4, 8)}
    kept = {path.name for path in checkpoint.checkpoints(place)}
    assert names == pictures | kept | {"options.json", "stats.jsonl", "model.safetensors"}
    assert [path.name[:19] for path in checkpoint.checkpoints(place)] == [
        "checkpoint-00000008",
        "checkpoint-00000004",
    ]
    assert [line["step"] for line in statistics(place)] == [3, 6, 8]
    losses = {"gan": {"loss_d", "loss_g", "d_real", "d_fake"}, "vae": {"loss", "recon", "kl"}}
    assert statistics(place)[0].keys() == losses[model] | {"step", "epoch"}
    about = json.loads((place / "options.json").read_text())
    assert about["options"]["lr"] == 2e-4
    assert about["options"]["channels"] == 1
    assert ("beta" in about["options"]) == (model == "vae")
    assert about["config"]["width"] == 4
    assert about["data"]["images"] == 1797


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_seed_decides(tmp_path: Path, tiny: Tiny, model: str) -> None:
    first = trained(tiny(model), tmp_path)
    torch.rand(5)  # the global state before the run does not
    assert_same_run(first, trained(tiny(model), tmp_path))
    other = trained(tiny(model, seed=1), tmp_path)
    weights = [(place / "model.safetensors").read_bytes() for place in (first, other)]
    assert weights[0] != weights[1]


@pytest.mark.parametrize("model", ["gan", "vae"])
@pytest.mark.parametrize("at", [1, 4, 7])
def test_resumed_run_is_the_unbroken_one(tmp_path: Path, tiny: Tiny, model: str, at: int) -> None:
    # One batch an epoch is left over, and `at` falls into the middle of a line of statistics.
    options = tiny(model, batch_size=500, steps=8)
    whole = trained(options, tmp_path / "whole")
    broken = broken_off(options, tmp_path / "broken", at)
    resumed(broken, model)
    assert_same_run(whole, broken)


def broken_off(options: Options, out: Path, at: int) -> Path:
    """A run that a signal reached in the middle of step ``at``."""
    taken = 0
    following = Order.next

    def interrupting(order: Order) -> torch.Tensor:
        nonlocal taken
        taken += 1
        if taken == at:
            signal.raise_signal(signal.SIGINT)
        return following(order)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Order, "next", interrupting)
        with pytest.raises(InterruptedRunError, match=f"interrupted at step {at}, ") as stop:
            run.start(options, out, say=silent)
    assert stop.value.exit_code == 130
    place = next(out.iterdir())
    assert f"genimg train {options.model} --resume {place}" in str(stop.value)
    assert checkpoint.load_newest(place, pytest.fail)[1]["step"] == at
    return place


def test_resume_restores_the_global_random_state(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dropping(run.VAETrainer):
        def step(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().step(torch.nn.functional.dropout(x))

    monkeypatch.setattr(run, "VAETrainer", Dropping)
    whole = trained(tiny("vae"), tmp_path / "whole")
    broken = broken_off(tiny("vae"), tmp_path / "broken", 5)
    resumed(broken, "vae")
    assert_same_run(whole, broken)


def test_resume_with_more_steps(tmp_path: Path, tiny: Tiny) -> None:
    whole = trained(tiny("gan", steps=9, stats_every=3), tmp_path)
    longer = trained(tiny("gan", steps=6, stats_every=3), tmp_path)
    with pytest.raises(OptionError, match="is at step 6 of 6: nothing is left to do"):
        resumed(longer, "gan")
    resumed(longer, "gan", steps=9)
    assert_same_run(whole, longer)
    assert json.loads((longer / "options.json").read_text())["options"]["steps"] == 9


def test_resume_refuses(tmp_path: Path, tiny: Tiny) -> None:
    place = trained(tiny("gan"), tmp_path)
    before = {path: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(OptionError, match=r"--batch-size was 8 .* cannot change"):
        resumed(place, "gan", steps=9, batch_size=9)
    with pytest.raises(OptionError, match="is a run of a gan, not of a vae"):
        resumed(place, "vae", steps=9)
    with pytest.raises(CheckpointError, match="there is no run folder"):
        resumed(tmp_path / "missing", "gan")
    with pytest.raises(FileError, match="in use by another run"), files.held(place):
        resumed(place, "gan", steps=9)
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_resume_changes_the_learning_rate(tmp_path: Path, tiny: Tiny) -> None:
    place = trained(tiny("gan"), tmp_path)
    resumed(place, "gan", steps=9, lr=1e-3)
    state = checkpoint.load_newest(place, pytest.fail)[1]["trainer"]
    for optimizer in ("optimizer_g", "optimizer_d"):
        assert state[optimizer]["param_groups"][0]["lr"] == 1e-3


def test_resume_passes_over_a_damaged_checkpoint(tmp_path: Path, tiny: Tiny) -> None:
    whole, broken = (trained(tiny("vae"), tmp_path) for _ in range(2))
    newest = checkpoint.checkpoints(broken)[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    said: list[str] = []
    run.resume(broken, {}, model="vae", say=said.append)
    assert f"{newest} is damaged" in said[0]
    assert_same_run(whole, broken)


def test_resume_takes_moved_data_but_no_others(tmp_path: Path, tiny: Tiny) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (i * 30, 0, 90)).save(data / f"{i}.png")
    (data / "broken.png").write_bytes(b"")
    said: list[str] = []
    place = run.start(tiny("gan", data=str(data)), tmp_path, say=said.append)
    assert place is not None
    assert place.name == "00001-gan-data"
    assert said[:2] == [
        "skipped 1 of 9 files, which are no usable images:",
        "  broken.png: empty file",
    ]
    skipped = json.loads((place / "options.json").read_text())["data"]["skipped"]
    assert skipped == [{"file": "broken.png", "reason": "empty file"}]

    moved = data.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="there is no data folder"):
        resumed(place, "gan", steps=9)
    resumed(place, "gan", steps=9, data=str(moved))
    Image.new("RGB", (16, 16), "red").save(moved / "3.png")
    with pytest.raises(DataError, match="are not those that the run began with"):
        resumed(place, "gan", steps=10)


def test_resume_removes_leftovers(tmp_path: Path, tiny: Tiny) -> None:
    place = trained(tiny("gan"), tmp_path)
    leftover = place / ".genimg-0123456789abcdef.tmp"
    leftover.write_bytes(b"half")
    resumed(place, "gan", steps=9)
    assert not leftover.exists()


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(NonFiniteError) as error:
        run.start(tiny("vae", lr=1e30), tmp_path, say=silent)
    place = tmp_path / "00001-vae-digits"
    good = checkpoint.checkpoints(place)
    assert [path.name[:19] for path in good] == ["checkpoint-00000000"]
    assert error.value.exit_code == 1
    message = str(error.value)
    assert message.startswith("loss is nan at step 2: the run stops")
    assert f"last good checkpoint: {good[0]}" in message


def test_losses_that_are_read_late_tell_the_same(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where they are read only when something is due."""

    class Late(run.Run):
        def __init__(self, options: Options, **how: Any) -> None:
            super().__init__(options, **how)
            self._read_every_step = False

    options = tiny("gan", steps=11, snapshot_every=5)
    at_once = trained(options, tmp_path)
    monkeypatch.setattr(run, "Run", Late)
    assert_same_run(at_once, trained(options, tmp_path))
    with pytest.raises(NonFiniteError, match="loss is nan at step 2: the run stops"):
        run.start(tiny("vae", lr=1e30), tmp_path, say=silent)


def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(run.GANTrainer):
        def step(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            values = super().step(x)
            with torch.no_grad():
                next(self.discriminator.parameters()).view(-1)[0] = torch.inf
            return values

    monkeypatch.setattr(run, "GANTrainer", Poisoned)
    with pytest.raises(NonFiniteError, match=r"discriminator\.\S+ is not finite after step 1"):
        run.start(tiny("gan", checkpoint_every=1), tmp_path, say=silent)
    place = next(tmp_path.iterdir())
    assert checkpoint.load_newest(place, pytest.fail)[1]["step"] == 0


def test_dry_run_writes_nothing(tmp_path: Path, tiny: Tiny) -> None:
    said: list[str] = []
    out = tmp_path / "runs"
    assert run.start(tiny("gan"), out, dry_run=True, say=said.append) is None
    assert not out.exists()
    assert said[-1] == f"dry run: would train in {out / '00001-gan-digits'}"
    place = trained(tiny("gan"), out)
    before = {path: path.read_bytes() for path in place.iterdir()}
    run.resume(place, {"steps": 9}, model="gan", dry_run=True, say=said.append)
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_epochs_are_counted_in_whole_batches(tmp_path: Path, tiny: Tiny) -> None:
    place = run.start(tiny("gan", batch_size=800), tmp_path, epochs=2, say=silent)
    assert place is not None
    assert [line["step"] for line in statistics(place)] == [3, 4]
    assert [line["epoch"] for line in statistics(place)] == [1, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 30),
        ("image_size", 0),
        ("channels", 2),
        ("batch_size", 1),
        ("steps", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("beta", -1.0),
        ("seed", -1),
        ("seed", 2**63),
        ("preset", "big"),
        ("loss", "hinge"),
        ("recon", "l1"),
        ("threads", 0),
        ("threads", 20_000),
        ("width", 2**40),
        ("image_size", 8192),
        ("lr", 1e39),
        ("data", ""),
        ("device", "tpu"),
    ],
)
def test_options_without_meaning(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"--{name.replace('_', '-')} is .*, not "):
        Options("vae", **{name: value})


def command(options: Options, *more: str) -> Sequence[str]:
    """The command line of a run."""
    given = []
    for name, value in options.told().items():
        if name != "model" and value is not None:
            given += [f"--{name.replace('_', '-')}", str(value)]
    return sys.executable, "-m", "genimg", "train", options.model, *given, *more


def launched(arguments: Sequence[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(Path(genimg.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
    )}  # fmt: skip
    # A child inherits what is ignored, as SIGHUP is under nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        signal.signal(signal.SIGHUP, before)


def after_first_checkpoints(process: subprocess.Popen[str], out: Path) -> Path:
    """Waits until a run has saved more than its start."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        for place in out.glob("*-*"):
            found = checkpoint.checkpoints(place)
            if found and not found[0].name.startswith("checkpoint-00000000"):
                return place
        time.sleep(0.01)
    process.kill()
    return pytest.fail(f"no checkpoint was written: {process.communicate()[1]}")


def test_killed_run_goes_on_to_the_same_weights(tmp_path: Path, tiny: Tiny) -> None:
    # A checkpoint every step, so that the kill often falls into the writing of one.
    options = tiny("gan", steps=100_000, checkpoint_every=1, snapshot_every=25)
    out = tmp_path / "killed"
    process = launched(command(options, "--out", str(out)))
    place = after_first_checkpoints(process, out)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    saved = checkpoint.load_newest(place, pytest.fail)[1]["step"]
    assert saved > 0
    rest = launched([*command(options)[:5], "--resume", str(place), "--steps", str(saved + 20)])
    assert rest.wait(120) == 0, rest.communicate()[1]
    assert not list(place.glob(".genimg-*"))
    steps = saved + 20
    whole = trained(dataclasses.replace(options, steps=steps, checkpoint_every=500), tmp_path)
    assert_same_run(whole, place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, tiny: Tiny, number: signal.Signals
) -> None:
    options = tiny("vae", steps=100_000, checkpoint_every=5, snapshot_every=100_000)
    process = launched(command(options, "--out", str(tmp_path)))
    place = after_first_checkpoints(process, tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    last = errors.splitlines()[-1]
    saved = checkpoint.load_newest(place, pytest.fail)[1]["step"]
    assert last == (
        f"genimg: interrupted at step {saved}, which is saved; "
        f"go on with: genimg train vae --resume {place}"
    )
    assert "Traceback" not in errors


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_nobody_reads_ends_a_run_as_a_signal_does(
    tmp_path: Path, tiny: Tiny, stream: str
) -> None:
    """As of `genimg train ... 2>&1 | head`: when it can be written no more, the step is saved."""
    reading, writing = os.pipe()
    with open(writing, "w", buffering=1) as pipe:
        closed = False

        def say(text: str) -> None:
            nonlocal closed
            if text.startswith("writing to") and not closed:
                os.close(reading)
                closed = True
            print(text, file=pipe if stream == "stdout" else None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", pipe if stream == "stderr" else io.StringIO())
            with pytest.raises(InterruptedRunError, match="which is saved") as stop:
                run.start(tiny("gan", checkpoint_every=100), tmp_path, say=say)
        with contextlib.suppress(OSError):
            pipe.close()
    assert stop.value.exit_code == 141
    saved = checkpoint.load_newest(tmp_path / "00001-gan-digits", pytest.fail)[1]["step"]
    assert saved in (1, 2)
    resumed(tmp_path / "00001-gan-digits", "gan")


def test_run_below_its_own_data_goes_on(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cd photos; genimg train gan --data .`"""
    monkeypatch.chdir(tmp_path)
    for i in range(9):
        Image.new("RGB", (16, 16), (i * 25, 0, 90)).save(f"{i}.png")
    first = trained(tiny("gan", data="."), Path("runs"))
    resumed(first, "gan", steps=9)
    second = trained(tiny("gan", data="."), Path())  # not even in runs/
    shown = json.loads((second / "options.json").read_text())["data"]
    assert shown["images"] == 9
    assert shown["skipped"] == []
    resumed(second, "gan", steps=9)


def test_checkpoint_of_other_networks(tmp_path: Path, tiny: Tiny) -> None:
    place = trained(tiny("gan"), tmp_path)
    state = checkpoint.load_newest(place, pytest.fail)[1]
    del state["format"]
    networks = state["trainer"]["generator"]
    networks["new.weight"] = networks.pop(next(iter(networks)))
    checkpoint.save(place, state.pop("step") + 1, state)
    with pytest.raises(CheckpointError, match="is of another version of genimg: "):
        resumed(place, "gan", steps=99)


def test_threads_that_the_system_does_not_start(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP would end the process; a limit may be far below that of `Options`."""
    starting, started = threading.Thread.start, 0

    def start(thread: threading.Thread) -> None:
        nonlocal started
        if started == 20:
            raise RuntimeError("can't start new thread")
        started += 1
        starting(thread)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OptionError, match="--threads 99: this system starts 21 at most"):
        run.start(tiny("gan", threads=99), tmp_path, say=silent)
