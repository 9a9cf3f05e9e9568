"""The demo, with a few steps only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from genimg.train import checkpoint, demo
from genimg.train.errors import NonFiniteError
from genimg.train.options import Options

Tiny = Callable[..., Options]


def test_demo_writes_its_files_and_touches_no_others(tmp_path: Path, tiny: Tiny) -> None:
    out = tmp_path / "out" / "demo"
    said: list[str] = []
    plans = {"vae": tiny("vae"), "gan": tiny("gan")}
    written = demo.run(out, **plans, say=said.append)
    names = {"vae.png", "gan.png", "losses.png", "vae.safetensors", "gan.safetensors"}
    assert {path.name for path in out.iterdir()} == {path.name for path in written} == names
    for name in ("vae.png", "gan.png", "losses.png"):
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 100
    assert all(name in " ".join(said) for name in names)
    assert checkpoint.load_model(out / "gan.safetensors").config["width"] == 4

    before = {path: path.read_bytes() for path in written}
    (out / "mine.txt").write_text("mine")
    torch.rand(7)
    demo.run(out, **plans, say=said.append)
    assert {path: path.read_bytes() for path in written} == before
    assert (out / "mine.txt").read_text() == "mine"


def test_demo_stops_at_a_loss_that_is_not_finite(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(NonFiniteError, match="vae: loss is nan at step 2"):
        demo.run(tmp_path, vae=dataclasses.replace(tiny("vae"), lr=1e30), say=lambda _: None)
