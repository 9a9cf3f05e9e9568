"""Tile sizes as they ship, by architecture, precision and shape.

Chosen from what the compiler says of registers, spills and shared memory; a measurement may replace
a line here without touching a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from genimg.kernels.triton.runtime import INTERPRETED


class Tile(NamedTuple):
    """Rows, columns and summands of a product's tile, warps, and stages of its pipeline.

    ``tma``: fprop and dgrad fetch their operands by tensor descriptors where they can
    (``boxes.py``).
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    tma: bool = False

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}{' tma' if self.tma else ''}"

    @property
    def name(self) -> str:
        """Unlike that of any other."""
        return f"{self} warps {self.warps} stages {self.stages}"

    def blocks(self) -> dict[str, int]:
        """The constants that a kernel is compiled for."""
        return {"BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k}

    def options(self) -> dict[str, int]:
        """The options of the compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages}


class Tiles(NamedTuple):
    """The tiles of fprop and dgrad by columns, and of wgrad by rows and columns.

    The first tile that holds them is used; larger ones use the last tile. ``weight_few``: wgrad's
    tile for few channels. ``image_more``: tiles of fprop and dgrad that only a measurement selects,
    in place of a tile of the same width. ``image_few``: fprop's tiles where it gathers few
    channels, whose addresses need many registers.
    """

    image: tuple[Tile, ...]
    weight: tuple[Tile, ...]
    weight_few: Tile
    image_few: tuple[Tile, ...]
    image_more: tuple[Tile, ...] = ()


HALF, TF32, IEEE = "half", "tf32", "ieee"

# float32 that is not TF32 runs on the ordinary cores, whose operands are registers: small tiles.
_IEEE = Tiles(
    image=(Tile(64, 16, 16, 2, 2), Tile(64, 32, 16, 4, 2), Tile(64, 64, 16, 4, 2)),
    weight=(Tile(64, 64, 16, 4, 2),),
    weight_few=Tile(64, 64, 16, 8, 2),
    image_few=(Tile(64, 32, 16, 4, 2), Tile(64, 64, 16, 4, 2)),
)
_Table = dict[str, Tiles]

_ROOMY: _Table = {  # at least 160 KB of shared memory a block
    HALF: Tiles(
        image=(
            Tile(128, 16, 64, 8, 3),
            Tile(128, 32, 64, 8, 3),
            Tile(128, 64, 64, 8, 3),
            Tile(128, 128, 64, 8, 3),
        ),
        weight=(Tile(64, 64, 64, 4, 3), Tile(128, 64, 64, 8, 3), Tile(128, 128, 64, 8, 3)),
        weight_few=Tile(64, 64, 64, 8, 3),
        image_few=(Tile(64, 16, 32, 4, 4), Tile(128, 64, 64, 8, 3)),
        image_more=(Tile(64, 16, 32, 4, 4), Tile(64, 64, 64, 4, 3)),
    ),
    TF32: Tiles(
        image=(Tile(128, 16, 32, 8, 3), Tile(128, 32, 32, 8, 3), Tile(128, 64, 32, 8, 3)),
        weight=(Tile(64, 64, 32, 4, 3), Tile(128, 64, 32, 8, 3)),
        weight_few=Tile(64, 64, 32, 8, 3),
        image_few=(Tile(64, 16, 32, 4, 3), Tile(128, 64, 32, 8, 3)),
        image_more=(Tile(64, 16, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
    ),
    IEEE: _IEEE,
}
_AMPERE: _Table = {
    **_ROOMY,
    # The gate's registers: at _ROOMY's warps and stages Triton 3.6 spills a few of them.
    HALF: _ROOMY[HALF]._replace(image=(*_ROOMY[HALF].image[:3], Tile(128, 128, 32, 8, 4))),
    IEEE: _IEEE._replace(
        image=(Tile(64, 16, 16, 2, 3), _IEEE.image[1], Tile(64, 64, 16, 8, 3)),
        image_few=(_IEEE.image_few[0], Tile(64, 64, 16, 8, 3)),
    ),
}
_BLACKWELL: _Table = {
    **_ROOMY,
    # Warps and stages at which neither Triton 3.6 nor 3.7 spills: at some, ptxas holds to 64, 80 or
    # 128 registers and spills a few bytes for it.
    HALF: _ROOMY[HALF]._replace(
        image=(
            Tile(128, 16, 64, 8, 2),
            Tile(128, 32, 64, 8, 4),
            Tile(128, 64, 64, 4, 2),
            Tile(128, 128, 64, 8, 4),
        ),
        weight=(*_ROOMY[HALF].weight[:2], Tile(128, 128, 64, 8, 2)),
        image_few=(Tile(64, 16, 32, 4, 4), Tile(128, 64, 64, 4, 2)),
        image_more=(Tile(64, 16, 32, 4, 3), Tile(64, 128, 64, 4, 3)),
    ),
    TF32: _ROOMY[TF32]._replace(image=(Tile(128, 16, 32, 8, 4), *_ROOMY[TF32].image[1:])),
    IEEE: _IEEE._replace(
        image=(*_IEEE.image[:2], Tile(64, 64, 16, 4, 3)),
        image_few=(Tile(64, 32, 16, 4, 2), Tile(64, 64, 16, 4, 3)),
    ),
}
_TIGHT: _Table = {  # 99 KB
    HALF: Tiles(
        image=(
            Tile(128, 16, 32, 8, 3),
            Tile(128, 32, 32, 8, 3),
            Tile(128, 64, 32, 8, 3),
            Tile(128, 128, 32, 8, 3),
        ),
        weight=(Tile(64, 64, 32, 4, 3), Tile(128, 64, 32, 8, 3), Tile(128, 128, 32, 8, 3)),
        weight_few=Tile(64, 64, 32, 8, 3),
        image_few=(Tile(64, 16, 32, 4, 3), Tile(128, 64, 32, 8, 3)),
        image_more=(
            Tile(64, 16, 32, 4, 3),
            Tile(64, 64, 32, 4, 3),
            Tile(64, 128, 32, 8, 3),
        ),
    ),
    TF32: Tiles(
        image=(Tile(128, 16, 32, 8, 2), Tile(128, 32, 32, 8, 2), Tile(128, 64, 32, 8, 2)),
        weight=(Tile(64, 64, 16, 4, 3), Tile(128, 64, 16, 8, 3)),
        weight_few=Tile(64, 64, 16, 8, 3),
        image_few=(Tile(64, 16, 32, 4, 2), Tile(128, 64, 32, 8, 2)),
        image_more=(Tile(64, 16, 32, 4, 2), Tile(64, 64, 32, 4, 2)),
    ),
    IEEE: _IEEE,
}
TILES: dict[int, _Table] = {
    **{80: _AMPERE, 87: _AMPERE, 90: _ROOMY},
    **{100: _BLACKWELL, 103: _BLACKWELL},
    **{86: _TIGHT, 89: _TIGHT, 120: _TIGHT, 121: _TIGHT},
}
"""By compute capability, then by precision; one that is not here takes the tight ones."""

_TMA_ROOMY = (
    Tile(128, 64, 64, 8, 3, tma=True),
    Tile(128, 64, 64, 8, 4, tma=True),
    Tile(128, 128, 64, 8, 3, tma=True),
    Tile(128, 128, 64, 8, 4, tma=True),
)
# On sm_120, tiles of 128 columns spill in float16 under Triton 3.7.
_TMA_TIGHT = (Tile(128, 64, 64, 8, 3, tma=True), Tile(128, 64, 32, 8, 3, tma=True))
TMA: dict[int, tuple[Tile, ...]] = {
    # On sm_100, tiles of 64 pixels spill in float16.
    90: (*_TMA_ROOMY, Tile(64, 64, 64, 4, 4, tma=True)),
    **{100: _TMA_ROOMY, 103: _TMA_ROOMY},
    **{120: _TMA_TIGHT, 121: _TMA_TIGHT},
}
"""Tiles of fprop and dgrad by descriptors in half precision, by compute capability.

None is taken by itself: ``genimg.autotune`` measures them beside one as wide. All fit without a
spill; on sm_90 the registers of 128 x 64 let two programs run on a core at once, with a prologue
and statistics (at most 128, by pointers 136 and more).
"""

# A program costs the interpreter the same for any tile: several of each, and no more.
_INTERPRETED = Tiles(
    image=(Tile(128, 32, 32, 1, 1),),
    weight=(Tile(32, 32, 128, 1, 1),),
    weight_few=Tile(32, 32, 128, 1, 1),
    image_few=(Tile(128, 32, 32, 1, 1),),
)
_SMALLEST = 16  # what tl.dot takes

PROGRAMS = 264
"""The least programs of wgrad, where the pixels suffice: two for each core of the largest GPUs."""
PART_STEPS = 2
"""Blocks of pixels at least in a part of wgrad."""
SUM_BLOCK = 1024
SUM_WARPS = 4


# torch.compile would put the question into its graph.
@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def has_tma(device: torch.device) -> bool:
    """Whether tiles of this device may be fetched by tensor descriptors."""
    return INTERPRETED or _capability(device) >= 90


def _tiles(x: Tensor, precision: str) -> Tiles:
    if INTERPRETED:
        return _INTERPRETED
    kind = precision if x.dtype == torch.float32 else HALF
    return TILES.get(_capability(x.device), _TIGHT)[kind]


MOST_TILES = 6
"""Measured for a contraction; the CUDA kernel and PyTorch beside them make eight."""


def image_tiles(x: Tensor, precision: str, columns: int, summands: int) -> list[Tile]:
    """The tiles of fprop and dgrad for ``columns`` columns and ``summands`` summands of one tap.

    First the table's tile, then those that may be faster: the next narrower one, which gives more
    programs, and others of the same width; those that read by descriptors support some images only.
    """
    tiles = _tiles(x, precision)
    widths = tiles.image
    at = next((i for i, tile in enumerate(widths) if columns <= tile.n), len(widths) - 1)
    others = (*tiles.image_more, *(tile for tile in _by_descriptors(x) if tile.k <= summands))
    as_wide = [tile for tile in others if tile.n == widths[at].n]
    return _fitted([widths[at], *widths[:at][-1:], *as_wide], summands)


def im2col_tiles(x: Tensor, precision: str, columns: int, summands: int) -> list[Tile]:
    """The tiles of fprop where it gathers the summands of all taps; the first holds the columns."""
    tiles = _tiles(x, precision).image_few
    at = next((i for i, tile in enumerate(tiles) if columns <= tile.n), len(tiles) - 1)
    return _fitted([tiles[at], *tiles[:at], *tiles[at + 1 :]], summands)


def _by_descriptors(x: Tensor) -> tuple[Tile, ...]:
    if INTERPRETED or x.dtype == torch.float32:
        return ()
    return TMA.get(_capability(x.device), ())


def phases_tiles(x: Tensor, precision: str, columns: int, summands: int) -> list[Tile]:
    """The tiles of dgrad for few channels: those that hold all columns."""
    width = _power_of_2(columns)
    table, *others = image_tiles(x, precision, columns, summands)
    return [table._replace(n=width), *(tile for tile in others if tile.n == width and not tile.tma)]


def _fitted(tiles: list[Tile], summands: int) -> list[Tile]:
    size = _power_of_2(summands)
    fitted = dict.fromkeys(tile._replace(k=min(tile.k, size)) for tile in tiles)
    return list(fitted)[:MOST_TILES]


def weight_tiles(x: Tensor, precision: str, rows: int, columns: int, few: bool) -> Sequence[Tile]:
    """The tiles of wgrad: first the table's, then smaller ones, which split the pixels less."""
    tiles = _tiles(x, precision)
    if few:
        return (tiles.weight_few,)
    sizes = tiles.weight
    fits = (i for i, tile in enumerate(sizes) if rows <= tile.m and columns <= tile.n)
    at = next(fits, len(sizes) - 1)
    return sizes[: at + 1][::-1][:MOST_TILES]


def _power_of_2(size: int) -> int:
    return max(_SMALLEST, triton.next_power_of_2(size))


def splits(blocks: int, pixels: int, block: int) -> tuple[int, int]:
    """How many parts wgrad's pixels are split into, and how many pixels a part has.

    By shape and tile alone: neither data nor the load of the GPU change the order of a sum.
    """
    steps = triton.cdiv(pixels, block)
    wanted = max(1, min(triton.cdiv(PROGRAMS, blocks), steps // PART_STEPS))
    part = triton.cdiv(steps, wanted) * block
    return triton.cdiv(pixels, part), part


def by_descriptors() -> Iterator[tuple[Tile, int]]:
    """Every tile of ``TMA``, for the architectures that are compiled for."""
    for capability in (90, 100, 120):
        for tile in TMA[capability]:
            yield tile, capability


class Shipped(NamedTuple):
    """A set of tiles, and what it is for."""

    tiles: Tiles
    precision: str
    dtypes: tuple[str, ...]
    capabilities: tuple[int, ...]


def shipped() -> Iterator[Shipped]:
    """Every set of tiles, for the architectures that are compiled for."""
    for kind, precision, dtypes in (
        (HALF, "ieee", ("fp16", "bf16")),
        (TF32, "tf32", ("fp32",)),
        (IEEE, "ieee", ("fp32",)),
    ):
        sets: dict[Tiles, list[int]] = {}
        for capability in (80, 90, 100, 120):
            sets.setdefault(TILES[capability][kind], []).append(capability)
        for tiles, capabilities in sets.items():
            yield Shipped(tiles, precision, dtypes, tuple(capabilities))
