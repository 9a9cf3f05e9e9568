"""Pictures of many images, as PNG files that say where they come from."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from genimg.train.files import write_whole

SOFTWARE = "genimg"
"""The PNG text "Software" of every picture that genimg writes; a run does not learn from those."""

GENERATED = "trainedAlgorithmicMedia"
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
"""IPTC's digital source types: made by a model; and images of a model beside others."""

_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{}"/>'
    "</rdf:RDF></x:xmpmeta>"
)
_GAP = 2


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded; what lies outside is cut off."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, *, columns: int | None = None, scale: int = 1) -> Image.Image:
    """One picture of all images, row by row.

    Args:
        images: ``[N, C, H, W]`` in [-1, 1], C 1 or 3, N at least 1.
        columns: by default as many as make the grid about square.
        scale: how many pixels high and wide each pixel becomes.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    high, wide = height * scale + _GAP, width * scale + _GAP
    sheet = np.full((rows * high + _GAP, columns * wide + _GAP, channels), 255, np.uint8)
    pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()  # [N, H, W, C]
    for i, image in enumerate(pixels.repeat(scale, axis=1).repeat(scale, axis=2)):
        top, left = _GAP + i // columns * high, _GAP + i % columns * wide
        sheet[top : top + height * scale, left : left + width * scale] = image
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


@dataclass(frozen=True)
class Block:
    """A labelled grid in a sheet."""

    label: str
    images: Tensor
    columns: int


def sheet(blocks: Sequence[Block], *, scale: int = 2) -> Image.Image:
    """Grids under one another, each below its label."""
    font = ImageFont.load_default(size=16)
    line = 26
    grids = [grid(b.images, columns=b.columns, scale=scale) for b in blocks]
    size = max(g.width for g in grids), sum(g.height + line for g in grids)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    top = 0
    for block, part in zip(blocks, grids, strict=True):
        pen.text((_GAP, top + 4), block.label, fill="black", font=font)
        picture.paste(part, (0, top + line))
        top += line + part.height
    return picture


def write_png(
    path: Path, image: Image.Image, *, source: str | None = None, overwrite: bool = True
) -> None:
    """Writes ``image`` to ``path``: all of it, or nothing.

    Args:
        path: the file.
        image: the picture.
        source: where its content comes from, `GENERATED` or `COMPOSITE`; it goes into the file as
            XMP, so that a picture of a model can be told from a photograph.
        overwrite: whether a file that is there already may be replaced.

    Raises:
        FileError: if it cannot be written, or exists and ``overwrite`` is false.
    """
    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    if source is not None:
        about.add_itxt("XML:com.adobe.xmp", _XMP.format(source))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=about)
    write_whole(path, buffer.getvalue(), overwrite=overwrite)
