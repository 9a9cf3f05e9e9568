"""fprop and dgrad by tensor descriptors: exact as by pointers, which serve where they cannot."""

import pytest
import torch
import torch.nn.functional as F
from conv_fixtures import DEVICE, Data, behind, contract, draw, read

from genimg.kernels.triton import runtime

pytestmark = pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")
if runtime.MISSING is None:
    from genimg.kernels.triton import moments
    from genimg.kernels.triton.conv import dgrad as conv_dgrad
    from genimg.kernels.triton.conv import fprop as conv_fprop
    from genimg.kernels.triton.conv import tile_sizes, tma
    from genimg.kernels.triton.conv.epilogue import Epilogue
    from genimg.kernels.triton.conv.geometry import to_channels_last
    from genimg.kernels.triton.conv.tile_sizes import Tile
    from genimg.kernels.triton.conv.tma import Box

    TILE = Tile(32, 32, 16, 4, 2, tma=True)
    FPROP, DGRAD = conv_fprop.fprop, conv_dgrad.dgrad

# Large image [N, C, H, W], small channels, kernel, stride, padding, dilation; what fprop's and
# dgrad's tiles of 32 rows are.
GEOMETRIES = {
    "several_images": ((2, 16, 8, 8), 8, (4, 4), (2, 2), (1, 1), (1, 1), (2, 4, 4), (2, 4, 4)),
    "odd_batch": ((3, 16, 8, 8), 16, (4, 4), (2, 2), (1, 1), (1, 1), (2, 4, 4), (2, 4, 4)),
    "parts_of_an_image": (
        (2, 16, 18, 32),
        8,
        (4, 4),
        (2, 2),
        (1, 1),
        (1, 1),
        (1, 2, 16),
        (1, 2, 16),
    ),
    "blocks_of_channels": ((2, 40, 8, 8), 48, (4, 4), (2, 2), (1, 1), (1, 1), (2, 4, 4), (2, 4, 4)),
    "ragged_channels": ((1, 24, 8, 16), 40, (4, 4), (2, 2), (1, 1), (1, 1), (1, 4, 8), (1, 4, 8)),
    "anisotropic": ((2, 16, 9, 12), 8, (3, 2), (3, 2), (1, 0), (2, 1), (1, 4, 8), (1, 4, 8)),
    "odd_large": ((1, 16, 15, 15), 8, (3, 3), (2, 2), (1, 1), (1, 1), None, (1, 4, 8)),
    "stride_1": ((1, 16, 9, 9), 8, (2, 2), (1, 1), (0, 0), (1, 1), (1, 4, 8), None),
    "common_divisor": ((2, 16, 24, 16), 8, (2, 3), (6, 4), (0, 2), (4, 3), (2, 4, 4), (2, 4, 4)),
    "folded": ((5, 16, 4, 4), 24, (4, 4), (1, 1), (0, 0), (1, 1), (32, 1, 1), (32, 1, 1)),
    "padding_above_kernel": (
        (1, 16, 8, 8),
        8,
        (3, 3),
        (2, 2),
        (4, 3),
        (1, 1),
        (1, 4, 8),
        (2, 4, 4),
    ),
}


@pytest.fixture
def boxed(monkeypatch):
    """Contractions take tiles by descriptors, and the list tells which boxes they were."""
    if not tile_sizes.has_tma(torch.device(DEVICE)):
        pytest.skip("the GPU has no TMA")
    tiles = tile_sizes.Tiles(image=(TILE,), weight=(), weight_few=TILE, image_few=(TILE,))
    monkeypatch.setattr(tile_sizes, "_tiles", lambda x, precision: tiles)
    taken = []
    for module, name in ((conv_fprop, "fprop_operands"), (conv_dgrad, "dgrad_operands")):
        operands = getattr(tma, name)

        def spy(*arguments, operands=operands):
            found = operands(*arguments)
            taken.append(found.box)
            return found

        monkeypatch.setattr(module, name, spy)
    return taken


@pytest.mark.parametrize("name", GEOMETRIES)
def test_exact(name, boxed):
    *shapes, fprop_box, dgrad_box = GEOMETRIES[name]
    data = Data(*shapes)
    bias = draw(data.small.shape[1])
    large = read(data.large, torch.float32)
    y, _ = contract(FPROP, large, data, Epilogue(bias=bias.float()))
    assert torch.equal(y.double(), data.fprop() + bias[:, None, None])
    bias = draw(data.large.shape[1])
    small = read(data.small, torch.float32)
    y, _ = contract(DGRAD, small, data, Epilogue(bias=bias.float()))
    grad_large, _ = data.grads(data.small, data.large.clone())
    assert torch.equal(y.double(), grad_large + bias[:, None, None])
    assert boxed == [fprop_box, dgrad_box]


@pytest.mark.parametrize("prologue", ["affine_leaky", "affine_relu", "two_tensor"])
@pytest.mark.parametrize("name", ["ragged_channels", "odd_batch", "folded"])
def test_prologues(name, prologue, boxed):
    """Exact, and zero at the padding behind the prologue."""
    *shapes, fprop_box, dgrad_box = GEOMETRIES[name]
    data = Data(*shapes)
    small, small_value = behind(data.small, prologue)
    large, large_value = behind(data.large, prologue)
    expected = F.conv2d(large_value, data.weight, None, *data.options)
    assert torch.equal(contract(FPROP, large, data, Epilogue())[0].double(), expected)
    grad_large, _ = data.grads(small_value, large_value.clone())
    assert torch.equal(contract(DGRAD, small, data, Epilogue())[0].double(), grad_large)
    assert boxed == [fprop_box, dgrad_box]


def noise(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_as_by_pointers_to_the_bit(dtype, boxed, monkeypatch):
    """On integers, whose sums are exact in any order: NumPy's order differs from CPU to CPU."""
    data = Data(*GEOMETRIES["odd_batch"][:-2])
    for kernel, x, y in ((FPROP, data.large, data.small), (DGRAD, data.small, data.large)):
        image = read(x, dtype)
        raw, coef = draw(*y.shape), draw(4, y.shape[1]).float()
        gate = {"gate": "affine", "gate_y": to_channels_last(raw.to(dtype)), "gate_coef": coef}
        for epilogue in (Epilogue(statistics=True), Epilogue(slope=0.2, **gate)):
            got, partial = contract(kernel, image, data, epilogue, dtype)
            with monkeypatch.context() as patch:
                patch.setattr(tma, "box_of", lambda *_: None)
                wanted, wanted_partial = contract(kernel, image, data, epilogue, dtype)
            assert boxed[-2] is not None
            assert boxed[-1] is None
            assert torch.equal(got, wanted)
            assert torch.equal(partial, wanted_partial)


@pytest.mark.parametrize("name", ["odd_batch", "parts_of_an_image", "odd_large"])
def test_statistics(name, boxed):
    """Every value is counted once, where mean and deviation are five orders of magnitude apart.

    A tile's mean is then rounded by 1/300 of the deviation, as it is by pointers.
    """
    data = Data(*GEOMETRIES[name][:-2])
    for kernel, x, channels in (
        (FPROP, data.large, data.small.shape[1]),
        (DGRAD, data.small, data.large.shape[1]),
    ):
        image = read(1e-3 * noise(*x.shape, seed=1), torch.float32)
        bias = torch.full((channels,), 1e3, device=DEVICE)
        epilogue = Epilogue(bias=bias, statistics=True)
        y, partial = contract(kernel, image, data, epilogue)
        values = y.double().transpose(0, 1).flatten(1)
        norm = moments.statistics(partial, channels, values.shape[1], None, None, 1e-5)
        torch.testing.assert_close(norm.mean.double(), values.mean(1), rtol=2e-7, atol=0)
        torch.testing.assert_close(norm.var.double(), values.var(1), rtol=1e-3, atol=0)
    assert any(boxed)


def test_not_finite(boxed):
    """A box reaches over the last channels into the next pixel; the product does not."""
    data = Data(*GEOMETRIES["ragged_channels"][:-2])
    data.weight = data.weight.abs() + 1
    data.large[0, 0, 1, 3] = float("nan")
    expected = data.fprop()
    got, _ = contract(FPROP, read(data.large, torch.float32), data, Epilogue())
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[~got.isnan()].double(), expected[~expected.isnan()])
    assert boxed == [(1, 4, 8)]


@pytest.mark.parametrize(
    ("rows", "batch", "size", "box"),
    [
        (128, 512, (4, 4), (8, 4, 4)),
        (128, 512, (8, 8), (2, 8, 8)),
        (128, 512, (16, 16), (1, 8, 16)),
        (128, 3, (32, 32), (1, 8, 16)),
        (64, 128, (16, 16), (1, 8, 8)),
        # Odd maps: many images at one pixel, if there are so many; 31 rows lack but one.
        (128, 512, (5, 5), (128, 1, 1)),
        (128, 100, (5, 5), None),
        (128, 512, (10, 10), (32, 2, 2)),
        (128, 512, (31, 31), (1, 8, 16)),
        # Never more tiles than pixels in a row take, and an eighth.
        (128, 1, (4, 4), (8, 4, 4)),
        (128, 9, (4, 4), (8, 4, 4)),
        (128, 17, (4, 4), (8, 4, 4)),
    ],
)
def test_box(rows, batch, size, box):
    assert tma.box_of(rows, batch, size) == (Box(*box) if box else None)


def operands(shape, channels, tile, offset=0, dtype=torch.float16):
    data = Data(shape, channels, (4, 4), (2, 2), (1, 1), (1, 1))
    x = torch.empty(data.large.numel() + offset, device=DEVICE, dtype=dtype)[offset:]
    image = read(x.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2), dtype)
    return tile, image, to_channels_last(data.weight.to(dtype)), data.geometry


def test_only_what_descriptors_may_name(monkeypatch):
    tile = Tile(128, 32, 32, 8, 3, tma=True)
    monkeypatch.setattr(tma, "has_tma", lambda device: True)
    assert tma.fprop_box(*operands((8, 16, 8, 8), 16, tile)) == (8, 4, 4)
    for refused in (
        operands((8, 16, 8, 8), 16, tile._replace(tma=False)),
        operands((8, 16, 8, 8), 16, tile, offset=1),
        operands((8, 20, 8, 8), 16, tile),
        operands((8, 16, 8, 8), 20, tile),
        operands((8, 16, 9, 8), 16, tile),
        operands((8, 3, 8, 8), 16, tile),
    ):
        assert tma.fprop_box(*refused) is None
    four = operands((8, 20, 8, 8), 20, tile, dtype=torch.float32)
    assert tma.fprop_box(*four) == (8, 4, 4)
    with monkeypatch.context() as patch:  # what is traced may run on memory of another alignment
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert tma.fprop_box(*four) is None
    monkeypatch.setattr(tma, "has_tma", lambda device: False)
    assert tma.fprop_box(*four) is None


def test_tiles_ship_without():
    """Until a GPU has measured them."""
    assert not any(tile.tma for entry in tile_sizes.shipped() for tile in entry.tiles.image)
    assert all(tile.tma for tile, _ in tile_sizes.by_descriptors())
