"""Loads the C++ module ``genimg._C`` once, on import, and keeps the reason if it cannot.

The record of the build, ``genimg/_build.json``, is compared with the running torch before the
library is opened: one that was compiled against another torch may crash, not just fail to load.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent


def load() -> ModuleType | None:
    """The module ``genimg._C``, or None where :func:`why_not` gives a reason."""
    return _module


def available() -> bool:
    """Whether the C++ ops, ``torch.ops.genimg.*``, are there."""
    return _module is not None


def why_not() -> str | None:
    """Why there are no compiled kernels, or None if there are."""
    return _why_not


def why_not_cuda() -> str | None:
    """Why there are no compiled CUDA kernels, or None if there are; says nothing of a GPU."""
    return _why_not_cuda


def build_info() -> dict[str, Any]:
    """The record of the build, empty if there was none.

    Where the module is loaded there is also ``isa``, the level that the CPU kernels run at, or the
    complaint about ``GENIMG_CPU_ISA`` that they raise.
    """
    return dict(_record) if _module is None else {**_record, **_module.build_info()}


def rebuild_command() -> str:
    """The command that builds the kernels for the running torch."""
    source = _PACKAGE.parent
    if (source / "CMakeLists.txt").exists():
        return f"pip install --no-build-isolation -e {source}"
    return "pip install --no-build-isolation --no-deps --force-reinstall genimg"


def _read_record() -> dict[str, Any]:
    try:
        record = json.loads((_PACKAGE / "_build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _describe(version: str, cuda: str | None) -> str:
    return f"torch {version.split('+')[0]} ({f'CUDA {cuda}' if cuda else 'without CUDA'})"


def _check(record: dict[str, Any]) -> str | None:
    """Why the library must not be opened, or None."""
    if not record:
        return f"no compiled kernels (they were never built); build them: {rebuild_command()}"
    if record.get("kind") == "none":
        return f"no compiled kernels ({record.get('reason')}); see docs/building.md"
    built = _describe(str(record.get("torch")), record.get("torch_cuda"))
    running = _describe(torch.__version__, torch.version.cuda)
    if built != running:
        return (
            f"the compiled kernels were built for {built}, but {running} runs; "
            f"rebuild: {rebuild_command()}"
        )
    return None


def _load() -> tuple[ModuleType | None, str | None]:
    reason = _check(_record)
    if reason is not None:
        return None, reason
    # Here and nowhere else: with two copies of genimg on the path, the import system could find the
    # other one's library.
    spec = PathFinder.find_spec("genimg._C", [str(_PACKAGE)])
    if spec is None or spec.loader is None:
        python = _record.get("python")
        reason = f"the compiled kernels were built for Python {python}, and there are none for this"
        return None, f"{reason}; rebuild: {rebuild_command()}"
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"the compiled kernels do not load ({error}); rebuild: {rebuild_command()}"
    sys.modules[spec.name] = module
    return module, None


_record = _read_record()
_module, _why_not = _load()
_why_not_cuda = _why_not
if _why_not is None and _record["kind"] != "cuda":
    _why_not_cuda = (
        f"the compiled kernels were built without CUDA ({_record.get('reason')}); "
        "see docs/building.md"
    )
