"""Compiled kernels of genimg; their ops are under ``torch.ops.genimg``."""

from typing import Any

def build_info() -> dict[str, Any]: ...
