"""Loads the compiled module ``genimg._C`` once, and keeps the reason if it cannot.

Nothing is compiled at import, and import never fails here: without the module the other backends
serve.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_FOLDER = Path(__file__).parent


def read_outcome(folder: Path = _FOLDER) -> dict[str, Any]:
    """What the build noted about itself; empty where there was none."""
    try:
        return dict(json.loads((folder / "_build.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def refuse(outcome: dict[str, Any], running: str) -> str | None:
    """Why the build cannot be loaded under the torch that runs, or None.

    Decided before the library is opened: one built for another torch may crash the process.
    """
    if outcome.get("kind", "none") == "none":
        reason = outcome.get("reason") or "genimg was installed without a build"
        return f"no compiled kernels ({reason}); see docs/building.md"
    if outcome["torch"] != running:
        return (
            f"the compiled kernels were built for torch {outcome['torch']}, but torch {running} "
            "runs; rebuild: pip install --no-build-isolation --force-reinstall --no-deps genimg"
        )
    return None


def _load() -> tuple[ModuleType | None, str | None]:
    reason = refuse(read_outcome(), torch.__version__)
    if reason is not None:
        return None, reason
    try:
        return importlib.import_module("genimg._C"), None
    except ImportError as error:
        return None, f"the compiled kernels do not load: {error}"


# torch.compile guards on module globals, so these stay plain values.
_module, _reason = _load()
_info: dict[str, Any] = dict(_module.build_info()) if _module is not None else {}
_reason_cuda: str | None = _reason or (
    None if _info["cuda"] else "the compiled kernels were built without CUDA; see docs/building.md"
)


def available() -> bool:
    """Whether ``torch.ops.genimg`` has its compiled ops."""
    return _module is not None


def why_not() -> str | None:
    """Why there are no compiled ops, or None if there are."""
    return _reason


def why_not_cuda() -> str | None:
    """Why there are no compiled CUDA kernels, or None if there are."""
    return _reason_cuda


def build_info() -> dict[str, Any]:
    """What the module was built from and for; empty without one."""
    return dict(_info)
