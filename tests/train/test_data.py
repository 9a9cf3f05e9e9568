"""Images of every kind, broken ones too, and the order in which they come."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genimg.train import data
from genimg.train.data import Order, open_images
from genimg.train.errors import DataError
from genimg.train.images import GENERATED, grid, write_png


def level(images: data.Images, index: int = 0) -> list[int]:
    """Mean of every channel of an image, as 0..255."""
    x = images.batch(torch.tensor([index]))
    return ((x + 1) * 127.5).round().mean((0, 2, 3)).int().tolist()


def one(tmp_path: Path, image: Image.Image, name: str = "a.png", **save: object) -> data.Images:
    image.save(tmp_path / name, **save)
    return open_images(str(tmp_path), size=8)


def test_digits() -> None:
    images = open_images("digits", size=32)
    x = images.batch(torch.arange(len(images)))
    assert x.shape == (1797, 1, 32, 32)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    # The first scan is a 0: dark in the middle, with light at its left and right.
    assert x[0, 0, 16, 16] < -0.9
    assert x[0, 0, 16].max() > 0


def test_digits_in_colour_are_grey() -> None:
    x = open_images("digits", size=8, channels=3).batch(torch.tensor([0, 1]))
    assert x.shape == (2, 3, 8, 8)
    assert torch.equal(x[:, 0], x[:, 2])


def test_folder_is_read_at_any_depth_in_order(tmp_path: Path) -> None:
    for i, name in enumerate(["b/2.png", "a/x/1.jpg", "c.bmp", "a/3.webp"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), (i * 60,) * 3).save(path)
    (tmp_path / ".hidden.png").write_bytes(b"")
    images = open_images(str(tmp_path), size=8)
    assert [level(images, i)[0] for i in range(4)] == [180, 60, 0, 120]
    assert images.batch(torch.arange(4)).shape == (4, 3, 8, 8)
    assert not images.skipped


def test_centre_is_cut_out(tmp_path: Path) -> None:
    image = Image.new("RGB", (48, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    red, _, blue = level(one(tmp_path, image))
    assert red < 8  # the resampling takes in a little of what is beyond the edge
    assert blue > 247


@pytest.mark.parametrize("channels", [1, 3])
def test_modes(tmp_path: Path, channels: int) -> None:
    grey = np.full((8, 8), 100, np.uint8)
    palette = Image.fromarray(grey).convert("RGB").quantize(4)
    see_through = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half = Image.new("LA", (8, 8), (0, 128))
    keyed = Image.new("P", (8, 8), 0)
    keyed.putpalette([10, 20, 30])
    saved = {
        "0.png": (Image.fromarray(grey), 100),
        "1.png": (Image.fromarray(grey.astype(np.uint16) * 257), 100),
        "2.tiff": (Image.fromarray(grey).convert("RGB").convert("CMYK"), 100),
        "3.png": (palette, 100),
        "4.png": (see_through, 255),  # on white, whatever colour is hidden in it
        "5.png": (half, 127),
        "6.png": (Image.new("1", (8, 8), 1), 255),
        "7.tiff": (Image.fromarray(grey).convert("RGB").convert("YCbCr"), 100),
    }
    for name, (image, _) in saved.items():
        image.save(tmp_path / name)
    keyed.save(tmp_path / "8.png", transparency=0)
    images = open_images(str(tmp_path), size=8, channels=channels)
    assert not images.skipped
    expected = [e for _, e in saved.values()] + [255]
    assert [level(images, i) for i in range(9)] == [[e] * channels for e in expected]


def test_16_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 8).astype(np.uint16), (8, 1))
    x = one(tmp_path, Image.fromarray(ramp)).batch(torch.tensor([0]))
    torch.testing.assert_close(x[0, 0, 0], torch.linspace(-1, 1, 8), atol=0.005, rtol=0)


def netpbm(path: Path, magic: str, maxval: int, values: np.ndarray) -> None:
    """A file as the format is defined: decimal numbers, or one or two bytes, big end first."""
    height, width = values.shape[:2]
    header = f"{magic}\n# a comment\n{width} {height}\n{maxval}\n".encode()
    if magic in ("P2", "P3"):
        path.write_bytes(header + " ".join(map(str, values.flatten())).encode() + b"\n")
    else:
        path.write_bytes(header + values.astype(">u2" if maxval > 255 else "u1").tobytes())


@pytest.mark.parametrize("maxval", [1, 15, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_netpbm_of_any_range(tmp_path: Path, magic: str, maxval: int) -> None:
    shape = (8, 8, 3) if magic in ("P3", "P6") else (8, 8)
    values = np.random.default_rng(0).integers(0, maxval + 1, shape)
    values[0, 0], values[0, 1] = 0, maxval
    netpbm(tmp_path / "a.pnm", magic, maxval, values)
    images = open_images(str(tmp_path), size=8)
    assert not images.skipped
    expected = torch.from_numpy(values / maxval * 2 - 1).float()
    expected = expected.permute(2, 0, 1) if values.ndim == 3 else expected.expand(3, -1, -1)
    step = 2 / 255
    torch.testing.assert_close(
        images.batch(torch.tensor([0]))[0], expected, atol=step / 2 + 1e-4, rtol=0
    )


def test_netpbm_that_is_cut_off_is_skipped(tmp_path: Path) -> None:
    netpbm(tmp_path / "good.pgm", "P5", 1023, np.full((8, 8), 512))
    whole = (tmp_path / "good.pgm").read_bytes()
    (tmp_path / "cut.pgm").write_bytes(whole[:-9])
    assert [s.file for s in open_images(str(tmp_path), size=8).skipped] == ["cut.pgm"]


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    """A strip of 8x8 values of 12 bits, two in three bytes; Pillow does not scale them."""
    row = np.linspace(0, 4095, 8).round().astype(int)
    packed = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in row.reshape(-1, 2)) * 8
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8)]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    header = b"II*\0" + struct.pack("<I", 8 + len(packed))
    (tmp_path / "a.tiff").write_bytes(header + packed + directory)
    x = open_images(str(tmp_path), size=8).batch(torch.tensor([0]))
    torch.testing.assert_close(x[0, 0, 0], torch.linspace(-1, 1, 8), atol=0.005, rtol=0)


def test_pictures_of_genimg_are_no_data(tmp_path: Path) -> None:
    """Wherever they are, and whatever they are called; a run's folder is not even entered."""
    noise(tmp_path / "photo.png")
    images = torch.rand(4, 3, 8, 8)
    write_png(tmp_path / "sample.png", grid(images), source=GENERATED)
    write_png(tmp_path / "reals.jpg", grid(images))
    run = tmp_path / "runs" / "00001-gan-photos"
    run.mkdir(parents=True)
    (run / "options.json").write_text("{}")
    noise(run / "from elsewhere.png")
    (tmp_path / "00002-holiday").mkdir()
    noise(tmp_path / "00002-holiday" / "photo.png")
    found = open_images(str(tmp_path), size=8)
    assert len(found) == 2
    assert {s.file: s.reason for s in found.skipped} == {
        "reals.jpg": "a picture that genimg wrote",
        "sample.png": "a picture that genimg wrote",
    }


def test_digits_too_large_for_memory() -> None:
    with pytest.raises(DataError, match=r"would take 7\.0 GiB at 2048x2048"):
        open_images("digits", size=2048)


def test_orientation_of_exif_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    x = one(tmp_path, image, exif=exif).batch(torch.tensor([0]))
    assert (x[0, 0, :, 7] == 1).all()
    assert (x[0, 0, :, 0] == -1).all()


def noise(path: Path, **save: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path.read_bytes()


def test_broken_files_are_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = noise(tmp_path / "good.png")
    (tmp_path / "also good.jpg").write_bytes(good)  # its content counts, not its name
    jpeg = noise(tmp_path / "photo.jpeg")
    (tmp_path / "bad").mkdir()
    bad = {
        "empty.png": b"",
        "text.png": b"not an image\n",
        "half.png": good[: len(good) // 2],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "flipped.png": good[:60] + bytes([good[60] ^ 1]) + good[61:],
        "notes.txt": b"read me",
    }
    for name, content in bad.items():
        (tmp_path / "bad" / name).write_bytes(content)
    # Formats that Pillow hands to another program, or that have no signature, are not tried.
    Image.new("RGB", (8, 8)).save(tmp_path / "bad" / "drawing.eps")
    Image.new("RGB", (8, 8)).save(tmp_path / "bad" / "old.tga")
    Image.new("F", (4, 4)).save(tmp_path / "bad" / "float.tiff")
    (tmp_path / "bad" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "bad" / "itself.png").symlink_to(tmp_path / "bad" / "itself.png")
    os.mkfifo(tmp_path / "bad" / "pipe.png")
    Image.new("1", (64, 64)).save(tmp_path / "bad" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)  # a warning, not yet an error

    images = open_images(str(tmp_path), size=8)
    assert len(images) == 3
    reasons = {s.file: s.reason for s in images.skipped}
    names = [
        *bad,
        "drawing.eps",
        "old.tga",
        "float.tiff",
        "gone.png",
        "itself.png",
        "pipe.png",
        "bomb.png",
    ]
    assert set(reasons) == {f"bad/{name}" for name in names}
    assert reasons["bad/empty.png"] == "empty file"
    for name in ("text.png", "drawing.eps", "old.tga"):
        assert reasons[f"bad/{name}"] == "not an image"
    assert reasons["bad/pipe.png"] == "not a regular file"
    assert "bomb" in reasons["bad/bomb.png"]
    assert all(len(r.splitlines()) == 1 for r in reasons.values())


def test_unreadable_files_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "good.png")
    noise(tmp_path / "locked.png")
    (tmp_path / "closed").mkdir()
    opened, listed = Image.open, os.scandir

    def refuse(path: object) -> None:  # chmod would not keep root out
        if Path(str(path)).name in ("locked.png", "closed"):
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", lambda p, **k: refuse(p) or opened(p, **k))
    monkeypatch.setattr(os, "scandir", lambda p: refuse(p) or listed(p))
    images = open_images(str(tmp_path), size=8)
    assert len(images) == 1
    assert {s.file: s.reason for s in images.skipped} == {
        "closed": "Permission denied",
        "locked.png": "Permission denied",
    }


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    noise(tmp_path / "data" / "a.png")
    noise(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "sub" / "loop").symlink_to(tmp_path / "data")
    assert len(open_images(str(tmp_path / "data"), size=8)) == 2


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    try:
        noise(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    noise(tmp_path / "good.png")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    images = open_images(str(tmp_path), size=8)
    assert len(images) == 2
    assert images.skipped[0].file == "\\xff.png"


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "useless"])
def test_no_usable_image_is_an_error(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "data"
    if kind == "file":
        noise(tmp_path / "a.png")
        root = tmp_path / "a.png"
    elif kind != "missing":
        root.mkdir()
    if kind == "useless":
        (root / "a.png").write_bytes(b"")
    wanted = {
        "missing": "there is no data folder",
        "file": "is a file",
        "empty": "has no file",
        "useless": r"no usable image among its files: 1 \(a.png: empty file\)",
    }
    with pytest.raises(DataError, match=wanted[kind]):
        open_images(str(root), size=8)


def test_on_demand_equals_in_memory(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (9, 9), (i * 50, 0, 0)).save(tmp_path / f"{i}.png")
    held = data.folder(tmp_path, size=8)
    read = data.folder(tmp_path, size=8, in_memory_bytes=2 * 3 * 8 * 8)
    assert (held.in_memory, read.in_memory) == (True, False)
    assert (len(held), held.fingerprint) == (len(read), read.fingerprint)
    indices = torch.tensor([4, 0, 3])
    assert torch.equal(held.batch(indices), read.batch(indices))
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png can no longer be read: No such file"):
        read.batch(indices)


def test_fingerprint_follows_names_and_pixels(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_images(str(tmp_path), size=8).fingerprint

    noise(tmp_path / "a.png")
    first = fingerprint()
    assert fingerprint() == first
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert fingerprint() != first
    (tmp_path / "b.png").rename(tmp_path / "a.png")
    assert fingerprint() == first
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert fingerprint() != first


def test_order_takes_every_image_once_an_epoch() -> None:
    order = Order(10, 3, seed=1)
    epochs = [torch.cat([order.next() for _ in range(3)]).tolist() for _ in range(3)]
    assert [len(set(e)) for e in epochs] == [9, 9, 9]
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.epoch == 2


def test_order_follows_its_seed_and_not_the_global_one() -> None:
    def batches(seed: int) -> list[list[int]]:
        order = Order(20, 4, seed)
        return [order.next().tolist() for _ in range(12)]

    first = batches(1)
    torch.manual_seed(99)
    assert batches(1) == first
    assert batches(2) != first


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 7, 10])
def test_order_goes_on_from_its_state(taken: int) -> None:
    order = Order(20, 4, seed=1)
    for _ in range(taken):
        order.next()
    other = Order(20, 4, seed=2)
    other.load_state_dict(order.state_dict())
    for _ in range(12):
        assert order.next().tolist() == other.next().tolist()
        assert order.epoch == other.epoch


def test_batch_larger_than_the_data() -> None:
    with pytest.raises(DataError, match="a batch of 11 is larger than the data, 10 images"):
        Order(10, 11, seed=0)
