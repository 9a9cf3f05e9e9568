"""Checkpoints and model files: what comes back, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from genimg.models import gan, vae
from genimg.train import checkpoint
from genimg.train.errors import CheckpointError, FileError


def state(value: float) -> dict[str, object]:
    return {"weights": torch.full((3,), value), "list": [1, "two", None]}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, state(0.5))
    found, loaded = checkpoint.load_newest(tmp_path, pytest.fail)
    assert found == path
    assert loaded["step"] == 7
    assert torch.equal(loaded["weights"], torch.full((3,), 0.5))
    assert loaded["list"] == [1, "two", None]


def test_name_carries_the_sha256(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, state(0.5))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"checkpoint-00000007-{digest[:16]}.pt"


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    paths = [checkpoint.save(tmp_path, step, state(step)) for step in (0, 9, 10, 100_000_000)]
    assert checkpoint.checkpoints(tmp_path) == [paths[3], paths[2]]
    # A run that goes on from the older one leaves no newer one of another time behind.
    again = checkpoint.save(tmp_path, 50, state(1))
    assert checkpoint.checkpoints(tmp_path) == [again, paths[2]]


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, state(1))
    size = path.stat().st_size
    for position in [*range(0, size, max(1, size // 40)), size - 1]:
        flip(path, position)
        with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
            checkpoint.load(path)
        flip(path, position)
    checkpoint.load(path)


@pytest.mark.parametrize("length", [0, 1, 500])
def test_truncated(tmp_path: Path, length: int) -> None:
    path = checkpoint.save(tmp_path, 1, state(1))
    os.truncate(path, length)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_damaged_checkpoint_is_named_and_the_one_before_serves(tmp_path: Path) -> None:
    older = checkpoint.save(tmp_path, 1, state(1))
    newer = checkpoint.save(tmp_path, 2, state(2))
    flip(newer, 100)
    said: list[str] = []
    path, loaded = checkpoint.load_newest(tmp_path, said.append)
    assert (path, loaded["step"]) == (older, 1)
    assert len(said) == 1
    assert f"{newer} is damaged" in said[0]
    assert older.name in said[0]
    flip(older, 100)
    with pytest.raises(CheckpointError, match=rf"{newer.name}.*{older.name}"):
        checkpoint.load_newest(tmp_path, said.append)


def test_failed_save_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [checkpoint.save(tmp_path, step, state(step)) for step in (1, 2)]

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FileError, match="No space left on device"):
        checkpoint.save(tmp_path, 3, state(3))
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in kept)
    assert checkpoint.load_newest(tmp_path, pytest.fail)[1]["step"] == 2


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_objects_are_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil"
    if how == "torch":
        torch.save({"format": 1, "step": 1, "x": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    path = path.rename(tmp_path / f"checkpoint-00000001-{digest}.pt")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        checkpoint.load(path)
    assert not (tmp_path / "owned").exists()


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint to go on from"):
        checkpoint.load_newest(tmp_path, pytest.fail)
    with pytest.raises(CheckpointError, match="there is no run folder"):
        checkpoint.load_newest(tmp_path / "missing", pytest.fail)


@pytest.fixture(params=["gan", "vae"])
def model(request: pytest.FixtureRequest) -> gan.Generator | vae.VAE:
    cls = gan.Generator if request.param == "gan" else vae.VAE
    return cls("article", image_size=16, channels=1, width=4, latent_dim=5)


def test_model_file_builds_the_model_again(tmp_path: Path, model: gan.Generator | vae.VAE) -> None:
    path = tmp_path / checkpoint.MODEL_FILE
    checkpoint.save_model(path, model)
    for place in (path, tmp_path):  # the file, or the folder of a run
        loaded = checkpoint.load_model(place)
        assert type(loaded) is type(model)
        assert loaded.config == model.config
        assert not loaded.training
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    first = path.read_bytes()
    checkpoint.save_model(path, model)
    assert path.read_bytes() == first  # the order of the metadata included


def test_every_flipped_bit_of_a_model_file_is_seen(
    tmp_path: Path, model: gan.Generator | vae.VAE
) -> None:
    path = tmp_path / checkpoint.MODEL_FILE
    checkpoint.save_model(path, model)
    size = path.stat().st_size
    header = int.from_bytes(path.read_bytes()[:8], "little")
    inside = range(8, 8 + header, max(1, header // 40))
    for position in [0, *inside, *range(8 + header, size, size // 20), size - 1]:
        flip(path, position)
        with pytest.raises(CheckpointError, match=r"damaged|not written by genimg"):
            checkpoint.load_model(path)
        flip(path, position)
    checkpoint.load_model(path)


def test_other_files_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="there is no model file"):
        checkpoint.load_model(path)
    with pytest.raises(CheckpointError, match="there is no model file"):
        checkpoint.load_model(tmp_path)  # a folder without a model
    for content in (b"", b"\0" * 7, b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged, or no safetensors file"):
            checkpoint.load_model(path)
    tensors = {"weight": torch.zeros(2)}
    for metadata in (None, {"format": "pt"}, {"genimg": "[]"}, {"genimg": "{}"}):
        safetensors.torch.save_file(tensors, path, metadata)
        with pytest.raises(CheckpointError, match="was not written by genimg"):
            checkpoint.load_model(path)


def test_model_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"weight": torch.zeros(2)}
    config = {"preset": "from the future"}
    digest = checkpoint._digest("gan.Generator", config, tensors)
    about = {"model": "gan.Generator", "config": config, "sha256": digest}
    safetensors.torch.save_file(tensors, path, {"genimg": json.dumps(about)})
    with pytest.raises(CheckpointError, match="holds a model that this version"):
        checkpoint.load_model(path)
