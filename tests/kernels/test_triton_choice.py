"""Tiles by measurement: decisions obey the times, are kept, and only what ships is a candidate.

Times are given, not taken: a clock says which tile is fast.
"""

import importlib
import json
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import genimg
from genimg import isolation, tuning
from genimg.backends import BACKENDS
from genimg.budget import Budget
from genimg.decisions import DecisionStore, cache_folder
from genimg.kernels.triton import runtime
from genimg.kernels.triton.conv import tile_tuner
from genimg.ops import BatchNorm, ConvBlock, Direction
from genimg.trial import MOST_ROUNDS, Trial

pytestmark = pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")
if runtime.MISSING is None:
    from genimg.kernels.triton.conv import stack as conv_stack  # with all that it runs
    from genimg.kernels.triton.conv import tile_sizes
    from genimg.kernels.triton.conv.tile_sizes import Tile

    assert conv_stack

CONTRACTIONS = ("conv_fprop", "conv_dgrad", "conv_dgrad_few", "conv_wgrad")


class Clock:
    """Replaces the trials of candidates: runs each once and gives it its time."""

    def __init__(self):
        self.milliseconds = {}
        self.measured = []
        self.is_current = False

    def trial(self, names):
        return GivenTrial(self, names)

    @contextmanager
    def current(self, device):
        self.is_current = True
        yield
        self.is_current = False


class GivenTrial(Trial):
    def __init__(self, clock, names):
        super().__init__(names)
        self.clock = clock

    def round(self, seconds):
        assert self.clock.is_current
        self.clock.measured.append(list(self.samples))
        for name in self.samples:
            seconds(name)
            self.samples[name] = [self.clock.milliseconds.get(name, 1.0) / 1e3] * MOST_ROUNDS


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Autotune under the interpreter, which has two tiles for each contraction."""
    few, many = Tile(32, 32, 16, 1, 1), Tile(64, 32, 16, 1, 1)
    tiles = tile_sizes.Tiles((many,), (few, many), few, (many, few), (few,))
    clock = Clock()
    monkeypatch.setattr(tile_sizes, "_INTERPRETED", tiles)
    monkeypatch.setattr(runtime, "INTERPRETED", False)
    monkeypatch.setattr(tuning, "Trial", clock.trial)
    monkeypatch.setattr(isolation, "apart", clock.current)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path))
    before = tuning.current()
    torch.use_deterministic_algorithms(False)
    begin()
    yield clock
    tuning.install(before)


def begin(measures=True):
    """As another process would."""
    store = DecisionStore(cache_folder())
    tuning.install(tuning.Tuner(store, Budget(lambda: 0.0), measures=measures))


def module_of(contraction):
    name = contraction.removeprefix("conv_")
    return importlib.import_module(f"genimg.kernels.triton.conv.{name}")


@pytest.fixture
def launched(monkeypatch):
    """The rows of the tile of each launch, by contraction."""
    rows = {}
    for name in CONTRACTIONS:
        module = module_of(name)
        monkeypatch.setattr(module, "launch", _recorder(rows.setdefault(name, []), module.launch))
    return rows


def _recorder(rows, launch):
    def recorded(kernel, grid):
        def run(*args, **constants):
            if "BLOCK_M" in constants:
                rows.append(constants["BLOCK_M"])
            launch(kernel, grid)(*args, **constants)

        return run

    return recorded


NAMES = {rows: f"{rows}x32x16 warps 1 stages 1" for rows in (32, 64)}
DEVICE = runtime.DEVICES[-1]


def conv2d(batch=3, channels=9, bias=None):
    x = torch.ones(batch, channels, 8, 8, device=DEVICE)
    weight = torch.ones(20, channels, 4, 4, device=DEVICE)
    return genimg.ops.conv2d(x, weight, bias, 2, 1, backend="triton")


@pytest.mark.parametrize("fast", [32, 64])
def test_the_fastest_is_taken(clock, launched, fast):
    clock.milliseconds = {NAMES[fast]: 0.5}
    expected = conv2d()
    assert clock.measured == [[NAMES[64], NAMES[32]]]
    assert launched["conv_fprop"] == [32, 64, 64, 32, fast]  # to warm up, timed, and the call
    assert torch.equal(conv2d(), expected)
    assert launched["conv_fprop"][5:] == [fast]
    tuning.install(tuning.Tuner(DecisionStore(None), Budget(), measures=False))
    assert torch.equal(conv2d(), expected)
    assert launched["conv_fprop"][-1] == 64


def test_every_contraction_of_a_layer(clock, launched):
    clock.milliseconds = {NAMES[32]: 0.5}
    torch.manual_seed(0)
    x = torch.randn(2, 40, 4, 4, device=DEVICE, requires_grad=True)
    weight = torch.randn(40, 9, 4, 4, device=DEVICE, requires_grad=True)
    few = torch.randn(40, 8, 4, 4, device=DEVICE)  # 32 of all phases
    for w in (weight, few):
        got = genimg.ops.conv_transpose2d(x, w, None, 2, 1, backend="triton")
        right = genimg.ops.conv_transpose2d(x, w, None, 2, 1, backend="reference")
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
        wanted = [leaf for leaf in (x, w) if leaf.requires_grad]
        grads = torch.autograd.grad(got.sum(), wanted)
        for grad, expected in zip(grads, torch.autograd.grad(right.sum(), wanted), strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)
    taken = {name: rows[-1] for name, rows in launched.items()}
    assert taken == {"conv_fprop": 32, "conv_dgrad": 32, "conv_dgrad_few": 32, "conv_wgrad": 32}


def test_what_is_fused_is_measured_for_itself(clock):
    x = torch.randn(2, 9, 4, 4, device=DEVICE)
    norm = BatchNorm(None, None)
    weights = (torch.randn(9, 9, 4, 4, device=DEVICE) for _ in range(2))
    blocks = [ConvBlock(Direction.UP, w, None, 2, 1, norm=norm) for w in weights]
    genimg.ops.conv_stack(x, blocks, training=True, backend="triton")
    assert len(clock.measured) == 2
    conv2d()
    conv2d(bias=torch.ones(20, device=DEVICE))
    assert len(clock.measured) == 4


def test_batches_share_a_decision_up_to_a_power_of_two(clock):
    conv2d(batch=3)
    conv2d(batch=4)
    assert len(clock.measured) == 1
    conv2d(batch=5)
    assert len(clock.measured) == 2


def test_decisions_are_kept_for_a_triton(clock, launched, tmp_path, monkeypatch):
    clock.milliseconds = {NAMES[32]: 0.5}
    conv2d()
    (path,) = tmp_path.glob("*.json")
    stored = json.loads(path.read_text())
    assert stored["for"]["triton"] == runtime.VERSION
    (decisions,) = stored["decisions"].values()
    assert decisions["1"]["milliseconds"] == {NAMES[64]: 1.0, NAMES[32]: 0.5}
    begin()
    conv2d()
    assert len(clock.measured) == 1
    assert launched["conv_fprop"][-1] == 32
    monkeypatch.setattr(runtime, "VERSION", "3.99.0")
    begin()
    conv2d()
    assert len(clock.measured) == 2
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_another_tile_is_measured(clock, tmp_path):
    conv2d()
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace(NAMES[32], "gone"))
    begin()
    conv2d()
    assert len(clock.measured) == 2


def test_capture_measures_nothing_and_takes_what_is_known(clock, launched, monkeypatch):
    clock.milliseconds = {NAMES[32]: 0.5}
    monkeypatch.setattr(isolation, "is_capturing", lambda x: True)
    conv2d()
    assert clock.measured == []
    assert launched["conv_fprop"] == [64]
    monkeypatch.setattr(isolation, "is_capturing", lambda x: False)
    conv2d()
    assert len(clock.measured) == 1
    monkeypatch.setattr(isolation, "is_capturing", lambda x: True)
    conv2d()
    assert launched["conv_fprop"][-1] == 32


@pytest.mark.parametrize("where", ["interpreter", "dispatch mode"])
def test_nothing_is_measured_where_a_time_means_nothing(clock, launched, monkeypatch, where):
    if where == "interpreter":
        monkeypatch.setattr(runtime, "INTERPRETED", True)
        conv2d()
    else:
        with FlopCounterMode(display=False):
            conv2d()
    assert clock.measured == []
    assert launched["conv_fprop"] == [64]


def test_compiled_code_takes_the_table(clock, monkeypatch):
    """Whatever is known: a graph may run for other batches, and an exported one elsewhere."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    tiles = Tile(64, 32, 16, 1, 1), Tile(32, 32, 16, 1, 1)
    assert tile_tuner.tile_of("conv_fprop", torch.ones(1), tiles, None, None) == tiles[0]


def test_a_candidate_that_fails_leaves_the_table(clock, monkeypatch):
    from genimg.kernels.triton.conv import fprop as conv_fprop

    class OutOfResourcesError(Exception):
        pass

    launch = conv_fprop.launch

    def fails(kernel, grid):
        def run(*args, **constants):
            if constants["BLOCK_M"] == 32:
                raise OutOfResourcesError
            launch(kernel, grid)(*args, **constants)

        return run

    expected = conv2d()
    monkeypatch.setenv("GENIMG_CACHE", "/nowhere")
    begin()
    monkeypatch.setattr(conv_fprop, "launch", fails)
    assert torch.equal(conv2d(), expected)


PRECISIONS = ((torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
# The architecture for which the tiles of each architecture are compiled.
COMPILED_FOR = {86: 120, 87: 80, 89: 120, 103: 100, 121: 120}
FEW = 3


def candidates(capability, dtype, precision, monkeypatch):
    """(contraction, whether of few channels, candidates) of every kind of key.

    With summands for a whole tile: fewer cut it, and with it what it needs.
    """
    monkeypatch.setattr(tile_sizes, "INTERPRETED", False)
    monkeypatch.setattr(tile_sizes, "_capability", lambda device: capability)
    x = torch.empty(1, dtype=dtype)
    for columns in (1, FEW, 16, 20, 32, 64, 100, 128, 512):
        for summands in (FEW * 16, 64, 512):
            yield "conv_fprop", False, tile_sizes.image_tiles(x, precision, columns, summands)
        yield "conv_fprop", True, tile_sizes.im2col_tiles(x, precision, columns, 16 * FEW)
        yield "conv_dgrad", False, tile_sizes.image_tiles(x, precision, columns, 64)
        for rows in (20, 64, 512):
            for few in (False, True):
                tiles = tile_sizes.weight_tiles(x, precision, rows, columns, few)
                yield "conv_wgrad", few, tiles
    yield "conv_dgrad_few", True, tile_sizes.phases_tiles(x, precision, 4 * FEW, 64)


@pytest.mark.parametrize("capability", sorted(tile_sizes.TILES) if runtime.MISSING is None else [])
def test_candidates_are_few_and_compiled(capability, monkeypatch):
    """With the other backends at most eight, each in what make check-triton compiles."""
    compiled = set()
    for name in CONTRACTIONS:
        for entry in module_of(name).compiles():
            found = entry.constexprs
            if "BLOCK_M" not in found or COMPILED_FOR.get(capability, capability) not in (
                entry.capabilities
            ):
                continue
            tile = Tile(
                *(found[f"BLOCK_{axis}"] for axis in "MNK"),
                *entry.options.values(),
                tma=bool(found.get("BOX_N")),
            )
            few = name == "conv_dgrad_few" or bool(found.get("FEW"))
            for dtype in entry.dtypes:
                compiled.add((name, few, dtype == "fp32", found["PRECISION"], tile))
    others = len({*BACKENDS} - {"triton", "cpu"})
    several = set()
    by_descriptors = set()
    for dtype, precision in PRECISIONS:
        for name, few, tiles in candidates(capability, dtype, precision, monkeypatch):
            assert 1 <= len(tiles) <= 8 - others
            assert len({tile.name for tile in tiles}) == len(tiles)
            if len(tiles) > 1:
                several.add(name)
            by_descriptors.update(name for tile in tiles if tile.tma)
            for tile in tiles:
                assert (name, few, dtype == torch.float32, precision, tile) in compiled
    assert several == {*CONTRACTIONS}
    assert by_descriptors == (
        {"conv_fprop", "conv_dgrad"} if capability in tile_sizes.TMA else set()
    )


def test_as_wide_as_all_columns_of_all_phases(monkeypatch):
    """dgrad for few channels has one tile of columns, whatever is measured."""
    for capability in tile_sizes.TILES:
        monkeypatch.setattr(tile_sizes, "INTERPRETED", False)
        monkeypatch.setattr(tile_sizes, "_capability", lambda device, found=capability: found)
        for columns in (2, 12, 27, 64):
            for dtype, precision in PRECISIONS:
                x = torch.empty(1, dtype=dtype)
                tiles = tile_sizes.phases_tiles(x, precision, columns, 64)
                assert all(tile.n >= columns for tile in tiles)
