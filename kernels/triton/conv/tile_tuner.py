"""Which tile a contraction takes: the table's, or by ``genimg.autotune`` the fastest."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genimg.kernels.triton.conv.geometry import Geometry
    from genimg.kernels.triton.conv.tile_sizes import Tile


class Tuner(Protocol):
    """Measures: ``genimg/tuning.py``."""

    def tile(
        self,
        key: tuple[Hashable, ...],
        x: Tensor,
        tiles: Sequence[Tile],
        run: Callable[[Tile], Any],
    ) -> Tile:
        """The fastest of ``tiles``, or the first where that cannot be known."""


_tuner: Tuner | None = None


def set_tuner(tuner: Tuner | None) -> None:
    """Let ``tuner`` decide; None returns to the table."""
    global _tuner
    _tuner = tuner


def tile_of(
    contraction: str,
    x: Tensor,
    tiles: Sequence[Tile],
    run: Callable[[Tile], Any],
    geometry: Geometry,
    *facts: Hashable,
) -> Tile:
    """The tile for a call of ``contraction`` on ``x``; ``facts``: prologue, epilogue and precision.

    ``run`` computes the call by a tile, into memory of its own. What is compiled or exported takes
    the table's, the first of ``tiles``: it may run on another machine, or for another batch.
    """
    if len(tiles) == 1 or torch.compiler.is_compiling() or _tuner is None:
        return tiles[0]
    key = (contraction, str(x.dtype), str(x.device), geometry.bucket, *facts)
    return _tuner.tile(key, x, tiles, run)
