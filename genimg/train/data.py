"""The images that a run learns from, and the order in which they come."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from genimg.train.errors import DataError
from genimg.train.files import printable, reason
from genimg.train.folder import is_run
from genimg.train.images import SOFTWARE

IN_MEMORY_BYTES = 2**30
"""Up to this size the images of a folder stay in memory, as uint8; beyond it they are read again
whenever their turn comes."""

_MOST_DIGITS_BYTES = 4 * 2**30

# Raster formats only: Pillow would hand PostScript to an interpreter, and formats without a
# signature, such as TGA, take any file for theirs.
_FORMATS = {"PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"}
_BITS_PER_SAMPLE = 258  # TIFF's tag
_CHUNK = 256


@dataclass(frozen=True)
class Skipped:
    """A file that is no use, and why."""

    file: str
    reason: str


class Images:
    """Images of one size, in a fixed order.

    Attributes:
        name: short, for the run folder.
        size: height and width.
        channels: 1 or 3.
        skipped: the files that could not be used.
        fingerprint: SHA-256 of the names and pixels: equal where the data are.
    """

    def __init__(
        self,
        name: str,
        pixels: Tensor | None,
        *,
        paths: Sequence[Path] = (),
        size: int,
        channels: int,
        fingerprint: str,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.skipped = tuple(skipped)
        self._pixels = pixels  # uint8 [N, C, H, W]
        self._paths = tuple(paths)
        self.size = size
        self.channels = channels

    def __len__(self) -> int:
        return len(self._paths) if self._pixels is None else len(self._pixels)

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are held, not read at every use."""
        return self._pixels is not None

    def batch(self, indices: Tensor) -> Tensor:
        """The images at ``indices``: float32 ``[N, C, H, W]`` in [-1, 1].

        Raises:
            DataError: if one that was there when the run began can no longer be read.
        """
        if self._pixels is not None:
            pixels = self._pixels[indices]
        else:
            paths = [self._paths[i] for i in indices.tolist()]
            arrays = []
            with _reading() as pool:
                for path, got in zip(paths, pool.map(self._read, paths), strict=True):
                    if isinstance(got, str):
                        raise DataError(f"{printable(path)} can no longer be read: {got}")
                    arrays.append(got)
            pixels = torch.from_numpy(np.stack(arrays))
        return pixels.float().div_(127.5).sub_(1)

    def _read(self, path: Path) -> np.ndarray | str:
        return _read(path, self.size, self.channels)


def open_images(source: str, *, size: int, channels: int | None = None) -> Images:
    """Opens what ``--data`` names: ``digits``, or a folder of images.

    Args:
        source: ``digits`` for the 1,797 handwritten digits that scikit-learn carries, or a folder.
        size: height and width to bring the images to.
        channels: 1 or 3; by default 1 for the digits and 3 for a folder.

    Raises:
        DataError: if there is no such folder, or no usable image in it.
    """
    if source == "digits":
        return digits(size=size, channels=channels or 1)
    return folder(Path(source), size=size, channels=channels or 3)


def digits(*, size: int, channels: int = 1) -> Images:
    """scikit-learn's 1,797 scanned digits of 8x8 pixels, enlarged by bicubic interpolation.

    Raises:
        DataError: if they are to be so large that they would not fit into memory.
    """
    from sklearn.datasets import load_digits

    scans = load_digits().images.astype(np.float32) * (255 / 16)  # [1797, 8, 8], values 0..16
    needed = len(scans) * channels * size**2
    if needed > _MOST_DIGITS_BYTES:
        raise DataError(
            f"the digits, scans of 8x8 pixels, would take {needed / 2**30:.1f} GiB at "
            f"{size}x{size}: take a smaller --image-size"
        )
    enlarged = np.empty((len(scans), size, size), np.uint8)
    for into, scan in zip(enlarged, scans, strict=True):
        image = Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)
        into[:] = np.asarray(image).round().clip(0, 255)
    grey = torch.from_numpy(enlarged)  # [N, H, W]
    pixels = grey[:, None].expand(-1, channels, -1, -1).contiguous()
    fingerprint = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    return Images("digits", pixels, size=size, channels=channels, fingerprint=fingerprint)


def folder(
    root: Path, *, size: int, channels: int = 3, in_memory_bytes: int = IN_MEMORY_BYTES
) -> Images:
    """The images in a folder, at any depth, in the order of their names.

    Each is turned as its EXIF orientation says, its transparent parts are laid on white, greys of 9
    to 16 bits become 8-bit ones, and its centre is cut out and resized (Lanczos) to ``size``.
    Hidden files and the folders of runs are passed over. Links are followed, each folder being
    entered once. A file that is no image, or a broken one, goes to ``skipped``, as does one with
    more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, and a picture that genimg wrote.

    Args:
        root: the folder.
        size: height and width.
        channels: 1 (grey) or 3 (RGB).
        in_memory_bytes: beyond this the images are not held, but read at every use.

    Raises:
        DataError: if there is no such folder, or no usable image in it.
    """
    if not root.exists():
        raise DataError(f"there is no data folder {printable(root)}")
    if not root.is_dir():
        raise DataError(f"{printable(root)} is a file, and --data takes 'digits' or a folder")
    paths, skipped = _walk(root)
    kept: list[Path] = []
    arrays: list[np.ndarray] | None = []
    sha = hashlib.sha256()
    with _reading() as pool:
        # By chunks, so that results do not pile up faster than they are taken.
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            read = pool.map(lambda path: _read(path, size, channels), chunk)
            for path, got in zip(chunk, read, strict=True):
                name = os.fsencode(path.relative_to(root))
                if isinstance(got, str):
                    skipped.append(Skipped(printable(path.relative_to(root)), got))
                    continue
                kept.append(path)
                sha.update(name + b"\0")
                sha.update(got.tobytes())
                if arrays is not None:
                    arrays.append(got)
                    if len(kept) * got.nbytes > in_memory_bytes:
                        arrays = None
    if not kept:
        found = f"no usable image among its files: {len(skipped)}" if skipped else "no file"
        first = f" ({skipped[0].file}: {skipped[0].reason})" if skipped else ""
        raise DataError(f"the data folder {printable(root)} has {found}{first}")
    return Images(
        printable(root.resolve().name) or "folder",
        None if arrays is None else torch.from_numpy(np.stack(arrays)),
        paths=kept,
        size=size,
        channels=channels,
        fingerprint=sha.hexdigest(),
        skipped=skipped,
    )


def _walk(root: Path) -> tuple[list[Path], list[Skipped]]:
    """Regular files below ``root`` sorted by name, and what could not be looked at."""
    found: list[Path] = []
    skipped: list[Skipped] = []

    def skip(path: str | Path, why: str) -> None:
        skipped.append(Skipped(printable(os.path.relpath(path, root)), why))

    entered: set[tuple[int, int]] = set()
    unreadable = lambda error: skip(error.filename, reason(error))  # noqa: E731
    for here, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        about = os.stat(here)
        if (about.st_dev, about.st_ino) in entered:  # by a link, perhaps one to a folder above
            folders.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        # With runs/ below the data, a run would learn from its own pictures, and find other data
        # when it goes on.
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and not is_run(Path(here, f))
        )
        for file in files:
            path = Path(here, file)
            if file.startswith("."):
                continue
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
            except OSError as error:
                skip(path, reason(error))
                continue
            if regular:
                found.append(path)
            else:  # reading a pipe would never end
                skip(path, "not a regular file")
    return sorted(found, key=os.fsencode), sorted(skipped, key=lambda s: s.file)


@contextlib.contextmanager
def _reading() -> Iterator[ThreadPoolExecutor]:
    """Threads to decode in, where Pillow's decompression-bomb warning is an error."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        warnings.simplefilter("ignore")  # broken metadata of a good image
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield pool


@lru_cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in Image.OPEN if name in _FORMATS)


def _read(path: Path, size: int, channels: int) -> np.ndarray | str:
    """uint8 ``[C, size, size]``, or the reason why there is none."""
    try:
        with Image.open(path, formats=_formats()) as opened:
            if opened.info.get("Software") == SOFTWARE:
                return "a picture that genimg wrote"
            mode = "L" if channels == 1 else "RGB"
            image = _opaque(ImageOps.exif_transpose(opened), mode, _peak(opened))
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    # Decoders of damaged files raise nearly anything: OSError, ValueError, SyntaxError,
    # struct.error, IndexError, ZeroDivisionError, ... One file must not end the run.
    except Exception as error:
        if isinstance(error, Image.UnidentifiedImageError):
            return "empty file" if path.stat().st_size == 0 else "not an image"
        return reason(error)
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))


def _peak(opened: Image.Image) -> int | None:
    """White, in the values of a grey image with more than 8 bits; None for any other."""
    if opened.mode.startswith("I;16"):
        # Pillow scales 10 and 12 bits to 16 itself, but for those of a TIFF.
        bits = getattr(opened, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
        return 2 ** int(bits[0]) - 1
    if opened.mode == "I" and opened.format == "PPM":  # scaled to 16 bits, whatever its maxval is
        return 65535
    return None


def _opaque(image: Image.Image, mode: str, peak: int | None) -> Image.Image:
    """``image`` in ``mode`` (L or RGB), with 8 bits and laid on white where it is transparent."""
    if peak is not None:
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey * 510 + peak) // (2 * peak)).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no known range")
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB").convert(mode) if image.mode == "CMYK" else image.convert(mode)


class Order:
    """Batches of indices: all images once, shuffled, and then again in another order.

    What is left over at the end of an epoch, less than a batch, waits for another shuffle. The
    same seed gives the same batches, and `state_dict` goes on in the middle of an epoch.

    Args:
        length: how many images there are.
        batch_size: how many make a batch, at most ``length``.
        seed: of the shuffling.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        if batch_size > length:
            raise DataError(f"a batch of {batch_size} is larger than the data, {length} images")
        self.length = length
        self.batch_size = batch_size
        self.epoch = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffle()

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return self.length // self.batch_size

    def _shuffle(self) -> None:
        self._before = self._generator.get_state()
        self._indices = torch.randperm(self.length, generator=self._generator)
        self._batch = 0

    def next(self) -> Tensor:
        """The indices of the next batch."""
        if self._batch == self.batches:
            self._shuffle()
            self.epoch += 1
        start = self._batch * self.batch_size
        self._batch += 1
        return self._indices[start : start + self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands."""
        return {"epoch": self.epoch, "batch": self._batch, "generator": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another order of the same length and batch size stood."""
        self._generator.set_state(state["generator"])
        self._shuffle()
        self.epoch, self._batch = state["epoch"], state["batch"]
