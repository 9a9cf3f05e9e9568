"""Checkpoints, from which a run goes on, and model files, from which it is sampled.

A checkpoint is a ``torch.save`` file whose name carries the start of its SHA-256, as the files of
`torch.hub` do: ``checkpoint-00000200-3fa9c2d1b0e57a46.pt``. Content and checksum thus change in one
rename. The last two are kept; if the newer is damaged, the older serves.

A model file is a safetensors file whose metadata say how to build the model and what the SHA-256 of
its tensors is.

Nothing here unpickles objects: ``weights_only=True`` always.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genimg.models import gan, vae
from genimg.train.errors import CheckpointError
from genimg.train.files import printable, reason, write_whole

MODEL_FILE = "model.safetensors"
_FORMAT = 1
_CHECKPOINT = re.compile(r"checkpoint-(\d{8,})-([0-9a-f]{16})\.pt")
_KEY = "genimg"  # one key only: safetensors writes several in an order that changes


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest first."""
    found = [(m, path) for path in folder.iterdir() if (m := _CHECKPOINT.fullmatch(path.name))]
    return [path for m, path in sorted(found, key=lambda f: int(f[0][1]), reverse=True)]


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes the checkpoint of ``step``, keeps the one before it, and removes the others.

    Args:
        folder: the run's folder.
        step: how many steps led to ``state``.
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        FileError: if it cannot be written; the checkpoints that were there still are.
    """
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "step": step, **state}, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = folder / f"checkpoint-{step:08d}-{digest}.pt"
    write_whole(path, content)
    before = [p for p in checkpoints(folder) if _step(p) < step]
    for old in checkpoints(folder):
        # Those after this step too: a run that went on from an older one has left them behind.
        if old not in (path, *before[:1]):
            old.unlink(missing_ok=True)
    return path


def _step(path: Path) -> int:
    found = _CHECKPOINT.fullmatch(path.name)
    assert found
    return int(found[1])


def load(path: Path) -> dict[str, Any]:
    """Reads one checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: if it cannot be read, or is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {printable(path)}: {reason(error)}") from error
    found = _CHECKPOINT.fullmatch(path.name)
    if found is None:
        raise CheckpointError(f"{printable(path)} is not named like a checkpoint")
    if hashlib.sha256(content).hexdigest()[:16] != found[2]:
        raise CheckpointError(f"{printable(path)} is damaged: its SHA-256 is not {found[2]}...")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise CheckpointError(f"{printable(path)} is no checkpoint: {reason(error)}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{printable(path)} is not a checkpoint of this version of genimg")
    return state


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint in ``folder`` that is whole.

    Args:
        folder: the run's folder.
        warn: is told of each damaged one that was passed over.

    Raises:
        CheckpointError: if there is none.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no run folder {printable(folder)}")
    candidates = checkpoints(folder)
    if not candidates:
        raise CheckpointError(f"{printable(folder)} has no checkpoint to go on from")
    errors: list[CheckpointError] = []
    for path in candidates:
        try:
            state = load(path)
        except CheckpointError as error:
            errors.append(error)
            continue
        for passed in errors:
            warn(f"{passed}; going on from {path.name}")
        return path, state
    raise CheckpointError("; ".join(map(str, errors)))


def _digest(name: str, config: Any, tensors: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha256(json.dumps([name, config], sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


_CLASSES: dict[str, type[gan.Generator] | type[vae.VAE]] = {
    "gan.Generator": gan.Generator,
    "vae.VAE": vae.VAE,
}


def save_model(path: Path, model: gan.Generator | vae.VAE) -> None:
    """Writes ``model`` so that `load_model` can build it again.

    Args:
        path: the file to write, whole or not at all.
        model: a `gan.Generator` or a `vae.VAE`, with its ``config``.

    Raises:
        FileError: if it cannot be written.
    """
    import safetensors.torch

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    name = next(k for k, cls in _CLASSES.items() if type(model) is cls)
    digest = _digest(name, model.config, tensors)
    about = {"model": name, "config": model.config, "sha256": digest}
    metadata = {_KEY: json.dumps(about, sort_keys=True)}
    write_whole(path, safetensors.torch.save(tensors, metadata))


def find_model(path: Path) -> Path:
    """The model file that ``path``, a file or a run folder, means.

    Raises:
        CheckpointError: if there is none.
    """
    found = path / MODEL_FILE if path.is_dir() else path
    if not found.exists():
        raise CheckpointError(f"there is no model file {printable(found)}")
    if not found.is_file():  # reading a pipe would never end
        raise CheckpointError(f"{printable(found)} is not a regular file")
    return found


def load_model(path: Path, device: torch.device | str = "cpu") -> gan.Generator | vae.VAE:
    """Builds the model in a model file or in a run folder, in eval mode.

    Raises:
        CheckpointError: if there is none, or it is damaged, or it is not one of genimg's.
    """
    import safetensors
    import safetensors.torch

    path = find_model(path)
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        tensors = safetensors.torch.load(content)
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_KEY])
        name, config, digest = about["model"], about["config"], about["sha256"]
    except OSError as error:
        raise CheckpointError(f"cannot read {printable(path)}: {reason(error)}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{printable(path)} is damaged, or no safetensors file: {reason(error)}"
        ) from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{printable(path)} was not written by genimg") from error
    if digest != _digest(name, config, tensors):
        raise CheckpointError(f"{printable(path)} is damaged: its content has another SHA-256")
    try:
        model: gan.Generator | vae.VAE = _CLASSES[name](**config)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{printable(path)} holds a model that this version of genimg cannot build: "
            f"{reason(error)}"
        ) from error
    return model.to(device).eval()
