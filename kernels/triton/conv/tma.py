"""Tiles as boxes of pixels, fetched by tensor descriptors: TMA, of sm_90 and newer.

The rows of a tile are a box ``[images, height, width]`` of the pixels that a contraction writes.
What one tap reads of them is a box of the image it reads, too, once that image is cut into cells of
``stride`` pixels: ``[N, H / stride, stride, W / stride, stride * C]``, in which a tap is a shift by
whole cells and a place within them. dgrad reads the small image, whose cells are pixels. The
hardware computes the addresses and writes zeros where a box leaves the image.

A tile of ``configs.py`` with ``tma`` is read so where ``fprop_box`` or ``dgrad_box`` finds a box,
and by pointers elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from genimg.kernels.triton.conv.geometry import FEW_CHANNELS, Geometry, Pair
from genimg.kernels.triton.conv.prologue import FusedInput
from genimg.kernels.triton.conv.tile_sizes import Tile, has_tma

ALIGNMENT = 16
"""Bytes: of a descriptor's base and strides."""
SPARE = 8
"""One part in so many is what boxes may add to the tiles of pixels in a row."""


class Box(NamedTuple):
    """The shape of a tile's rows, width innermost; all sizes are powers of two."""

    images: int
    height: int
    width: int

    def tiles(self, batch: int, size: Pair) -> int:
        """The number of boxes that cover ``batch`` images of this size."""
        height, width = size
        return (
            triton.cdiv(batch, self.images)
            * triton.cdiv(height, self.height)
            * triton.cdiv(width, self.width)
        )


class Operands(NamedTuple):
    """The operands of a contraction, as descriptors if there is a box, and the number of tiles."""

    x: Tensor | TensorDescriptor
    y: Tensor | TensorDescriptor | None
    weight: Tensor | TensorDescriptor
    box: Box | None
    tiles: int


def box_constants(box: Box | None) -> dict[str, int]:
    """The constants that a kernel is compiled for; without a box, rows are consecutive pixels."""
    images, height, width = box or (0, 0, 0)
    return {"BOX_N": images, "BOX_H": height, "BOX_W": width}


def fprop_box(tile: Tile, image: FusedInput, weight: Tensor, g: Geometry) -> Box | None:
    """The box of the small image's pixels, or None if ``tile`` is read by pointers."""
    (height, width), (stride_h, stride_w) = g.large, g.stride
    whole = height % stride_h == 0 and width % stride_w == 0
    gathered = not g.folded and g.large_channels <= FEW_CHANNELS
    if not whole or gathered or not _within_reach(tile, image, weight, g):
        return None
    return box_of(tile.m, g.batch, g.small)


def dgrad_box(tile: Tile, image: FusedInput, weight: Tensor, g: Geometry) -> Box | None:
    """The box of one phase of the large image, or None if ``tile`` is read by pointers."""
    return box_of(tile.m, g.batch, g.phase_size) if _within_reach(tile, image, weight, g) else None


def fprop_operands(tile: Tile, image: FusedInput, weight: Tensor, g: Geometry) -> Operands:
    """For tiles of the small image's pixels."""
    box = fprop_box(tile, image, weight, g)
    if box is None:
        return _pointers(tile, image, weight, g.small_pixels)
    (height, width), (stride_h, stride_w) = g.large, g.stride
    cells = (height // stride_h, stride_h, width // stride_w, stride_w * g.large_channels)
    x, y = (_describe_image(x, (g.batch, *cells), box, tile.k) for x in (image.x, image.y))
    described = _describe_weight(weight, g, (tile.n, tile.k))
    return Operands(x, y, described, box, box.tiles(g.batch, g.small))


def dgrad_operands(tile: Tile, image: FusedInput, weight: Tensor, g: Geometry) -> Operands:
    """For tiles of the pixels of one phase."""
    box = dgrad_box(tile, image, weight, g)
    height, width = g.phase_size
    if box is None:
        return _pointers(tile, image, weight, g.batch * height * width)
    cells = (g.small[0], 1, g.small[1], g.small_channels)
    x, y = (_describe_image(x, (g.batch, *cells), box, tile.k) for x in (image.x, image.y))
    described = _describe_weight(weight, g, (tile.k, tile.n))
    return Operands(x, y, described, box, box.tiles(g.batch, g.phase_size))


def _pointers(tile: Tile, image: FusedInput, weight: Tensor, pixels: int) -> Operands:
    return Operands(image.x, image.y, weight, None, triton.cdiv(pixels, tile.m))


def _within_reach(tile: Tile, image: FusedInput, weight: Tensor, g: Geometry) -> bool:
    """Whether the GPU has TMA, and descriptors may name these tensors."""
    # A traced call may run on tensors of another alignment.
    if not tile.tma or torch.compiler.is_compiling() or not has_tma(image.x.device):
        return False
    channels = (g.small_channels, g.large_channels)
    tensors = [x for x in (image.x, image.y, weight) if x is not None]
    return all(n * image.x.element_size() % ALIGNMENT == 0 for n in channels) and all(
        x.numel() > 0 and x.data_ptr() % ALIGNMENT == 0 for x in tensors
    )


def box_of(rows: int, batch: int, size: Pair) -> Box | None:
    """The box that shares most pixels between taps, of those with about the fewest tiles."""
    in_a_row = triton.cdiv(batch * size[0] * size[1], rows)
    most = in_a_row + in_a_row // SPARE
    boxes = [box for box in _boxes(rows, size) if box.tiles(batch, size) <= most]
    return min(boxes, key=_halo, default=None)


def _boxes(rows: int, size: Pair) -> Iterator[Box]:
    height = 1
    while height <= min(rows, triton.next_power_of_2(size[0])):
        width = 1
        while width <= min(rows // height, triton.next_power_of_2(size[1])):
            yield Box(rows // height // width, height, width)
            width *= 2
        height *= 2


def _halo(box: Box) -> tuple[int, int]:
    """Pixels that a box of 3x3 taps reads; the wider one of two that are alike."""
    return box.images * (box.height + 2) * (box.width + 2), box.height


def _describe_image(
    x: Tensor | None, shape: tuple[int, ...], box: Box, k: int
) -> TensorDescriptor | None:
    """An image in cells: ``[N, H, cell height, W, cell width * C]``."""
    if x is None:
        return None
    _, rows, cell_rows, cells, values = shape
    line = cells * values
    strides = [rows * cell_rows * line, cell_rows * line, line, values, 1]
    return TensorDescriptor(x, list(shape), strides, [box.images, box.height, 1, box.width, k])


def _describe_weight(weight: Tensor, g: Geometry, block: Pair) -> TensorDescriptor:
    """One tap's block: ``[taps, small channels, large channels]``."""
    shape = [g.taps, g.small_channels, g.large_channels]
    strides = [g.large_channels, g.taps * g.large_channels, 1]
    return TensorDescriptor(weight, shape, strides, [1, *block])


@triton.jit
def pixels_of_tile(
    row,
    pixels,
    height,
    width,
    BLOCK_M: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
):
    """A tile's pixels: index, image, row, column, whether they exist; then the tile's corner."""
    m = tl.arange(0, BLOCK_M)
    if BOX_N:
        across = tl.cdiv(width, BOX_W)
        down = tl.cdiv(height, BOX_H)
        first_w = row % across * BOX_W
        first_h = row // across % down * BOX_H
        first_n = row // across // down * BOX_N
        w = first_w + m % BOX_W
        h = first_h + m // BOX_W % BOX_H
        n = first_n + m // (BOX_W * BOX_H)
        exists = (w < width) & (h < height) & (n < pixels // (width * height))
        m = (n * height + h) * width + w
    else:
        first_n = 0
        first_h = 0
        first_w = 0
        m += row * BLOCK_M
        w = m % width
        h = (m // width) % height
        n = m // (width * height)
        exists = m < pixels
    return m, n, h, w, exists, first_n, first_h, first_w
