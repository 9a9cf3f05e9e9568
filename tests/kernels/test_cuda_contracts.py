"""Tests each wrapper of PTX against the PTX ISA, in the emulator and on a GPU.

One kernel each (``tests/emulator/kernels/contract_*.cu``); the emulated layouts are confirmed for a
GPU once the second half of these tests has passed there.
"""

import emulator
import pytest
import torch
import torch.nn.functional as F
from emulator import SCHEDULES, Read, Write, conv, nvcc_library


def _emulated(schedule):
    def call(function, *args):
        emulator.call(emulator.library("genimg_seeded_bugs"), function, *args, schedule=schedule)

    return call


@pytest.fixture(
    params=[*SCHEDULES, pytest.param("gpu", marks=pytest.mark.gpu)], ids=lambda value: str(value)
)
def call(request):
    """Calls a function of the C interface, in the emulator or on the GPU."""
    return nvcc_library.call if request.param == "gpu" else _emulated(request.param)


@pytest.fixture
def hopper(call):
    if call is nvcc_library.call and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma, TMA and mbarrier are tested on sm_90 alone")
    return call


def numbers(*shape):
    """Distinct values of two bytes, none of them 0."""
    count = int(torch.tensor(shape).prod())
    return (torch.arange(count, dtype=torch.int32) % 32749 + 1).to(torch.int16).view(shape)


def test_cp_async_fills_with_zeros(call):
    x, out = numbers(32, 8), torch.empty(32, 8, dtype=torch.int16)
    call("contract_cp_async", Read(x), Write(out))
    expected = x.clone()
    expected[::3] = 0
    assert torch.equal(out, expected.flip(0))


def test_cp_async_groups_land_in_order(call):
    x, out = numbers(2, 32, 8), torch.empty(2, 32, 8, dtype=torch.int16)
    call("contract_cp_async_groups", Read(x), Write(out))
    assert torch.equal(out, x)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
def test_ldmatrix(call, transposed):
    x, out = numbers(4, 8, 8), torch.empty(32, 4, 2, dtype=torch.int16)
    call("contract_ldmatrix", Read(x), Write(out), transposed)
    matrices = x.transpose(1, 2) if transposed else x
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        assert torch.equal(out[lane], matrices[:, row, column : column + 2])


DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
NAMES, NHWC = emulator.NAMES, torch.channels_last


@DTYPES
def test_mma_m16n8k16(call, dtype):
    a, b = (torch.randint(-8, 9, shape).to(dtype) for shape in ((16, 16), (16, 8)))
    a_parts, b_parts = torch.empty(32, 4, 2, dtype=dtype), torch.empty(32, 2, 2, dtype=dtype)
    expected, out = torch.empty(32, 4), torch.empty(32, 4)
    product = a.float() @ b.float()
    for lane in range(32):
        group, pair = lane // 4, 2 * (lane % 4)
        for i in range(4):
            row, k = group + 8 * (i % 2), pair + 8 * (i // 2)
            a_parts[lane, i] = a[row, k : k + 2]
            expected[lane, i] = product[group + 8 * (i // 2), pair + i % 2] + lane
        for i in range(2):
            b_parts[lane, i] = b[pair + 8 * i : pair + 8 * i + 2, group]
    call(f"contract_mma_{NAMES[dtype]}", Read(a_parts), Read(b_parts), Write(out))
    assert torch.equal(out, expected)


def test_mbarrier_parity(hopper):
    out = torch.empty(64, dtype=torch.int32)
    hopper("contract_mbarrier", Write(out), 5)
    assert torch.equal(out, (torch.arange(64, dtype=torch.int32) + 5) % 64 + 5)


def swizzled(rows):
    """Rows of 128 bytes as they lie in shared memory: 16-byte pieces exchanged by the row."""
    pieces = rows.view(-1, 8, 8)
    order = torch.arange(8) ^ (torch.arange(len(pieces)) % 8)[:, None]
    return torch.take_along_dim(pieces, order[:, :, None], 1).reshape(rows.shape)


# In the middle, over each edge, and wholly outside.
CORNERS = [(0, 0), (8, 5), (-24, -3), (40, 17), (80, 0), (16, -8)]


@pytest.mark.parametrize("swizzle", [False, True], ids=["plain", "swizzled"])
@pytest.mark.parametrize("corner", CORNERS, ids=str)
def test_tma_box(hopper, corner, swizzle):
    """Elements outside the tensor are zeros, and count as bytes."""
    x, out = numbers(21, 80), torch.empty(8, 64, dtype=torch.int16)
    hopper("contract_tma", Read(x), Write(out), 21, 80, *corner, swizzle)
    padded = F.pad(x, (64, 64, 8, 8))
    column, row = corner[0] + 64, corner[1] + 8
    box = padded[row : row + 8, column : column + 64]
    assert torch.equal(out, swizzled(box) if swizzle else box)


@pytest.mark.parametrize("corner", [(0, 1, 2, 0), (64, 3, 0, 8), (8, 0, 3, 5)], ids=str)
def test_tma_box_of_a_weight(hopper, corner):
    """[ci][kh][kw][co]: one tap's box of channels, which lie a whole kernel apart."""
    x, out = numbers(11, 4, 4, 72), torch.empty(8, 64, dtype=torch.int16)
    hopper("contract_tma_4d", Read(x), Write(out), Read(torch.tensor(x.shape)), *corner)
    co, kw, kh, ci = corner
    box = F.pad(x, (0, 64, 0, 0, 0, 0, 0, 8))
    assert torch.equal(out, swizzled(box[ci : ci + 8, kh, kw, co : co + 64]))


@DTYPES
@pytest.mark.parametrize("b_by_k", [False, True], ids=["b_by_column", "b_by_k"])
@pytest.mark.parametrize("a_is_patch", [False, True], ids=["a_swizzled", "a_patch"])
@pytest.mark.parametrize("columns", [64, 128])
def test_wgmma_m64k16(hopper, columns, a_is_patch, b_by_k, dtype):
    """Descriptors, and which thread holds which sum."""
    a, b = (torch.randint(-8, 9, shape).to(dtype) for shape in ((64, 64), (columns, 64)))
    b = b.T.contiguous() if b_by_k else b
    out = torch.empty(128, columns // 2)
    options = columns, a_is_patch, b_by_k
    hopper(f"contract_wgmma_{NAMES[dtype]}", Read(a), Read(b), Write(out), *options)
    product = a.float() @ (b if b_by_k else b.T).float() + 1
    thread, i = torch.arange(128)[:, None], torch.arange(columns // 2)
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    assert torch.equal(out, product[row, 8 * (i // 4) + 2 * (thread % 4) + i % 2])


@DTYPES
@pytest.mark.parametrize(
    ("kernel", "shape"), [("matmul", (45, 72, 104)), ("gemm90", (72, 40, 296))], ids=str
)
@pytest.mark.gpu
def test_whole_kernels_on_the_gpu(kernel, shape, dtype):
    """The emulator's samples, which ``test_simt`` and ``test_simt_hopper`` run on the CPU."""
    if kernel == "gemm90" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("gemm90 needs sm_90")
    rows, columns, depth = shape
    a = torch.randint(-3, 4, (rows, depth)).to(dtype)
    b = torch.randint(-3, 4, (depth, columns)).to(dtype)
    c = torch.empty(rows, columns)
    sizes = (rows, columns, depth, 0)
    nvcc_library.call(f"seeded_bug_{kernel}_{NAMES[dtype]}", Read(a), Read(b), Write(c), *sizes)
    assert torch.equal(c.double(), a.double() @ b.double())


@DTYPES
@pytest.mark.parametrize(
    ("shape", "large_c"),
    [((2, 40, 5, 5), 72), ((3, 72, 9, 17), 8), ((16, 128, 16, 16), 64), ((4, 256, 8, 8), 128)],
    ids=str,
)
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.gpu
def test_contractions_from_a_halo_on_the_gpu(direction, shape, large_c, dtype):
    """As ``test_cuda_conv_sm90`` has them on the CPU."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernels need sm_90")
    large = (shape[0], large_c, 2 * shape[2], 2 * shape[3])
    given, wanted = (large, shape) if direction == "fprop" else (shape, large)
    x, weight = torch.randint(-2, 3, given), torch.randint(-2, 3, (shape[1], large_c, 4, 4))
    bias = torch.randint(-2, 3, wanted[1:2]).float()
    function = F.conv2d if direction == "fprop" else F.conv_transpose2d
    expected = function(x.double(), weight.double(), bias.double(), 2, 1)
    got = torch.empty(wanted, dtype=dtype, memory_format=NHWC)
    geometry = conv.geometry(shape, large, weight, (2, 2), (1, 1))
    tensors = (x.to(dtype).contiguous(memory_format=NHWC) for x in (x, weight))
    name = f"sm90_{direction}_{NAMES[dtype]}"
    nvcc_library.call(name, Read(geometry), *map(Read, tensors), Read(bias), Write(got))
    assert torch.equal(got.double(), expected.to(dtype).double())


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90a"])
def test_the_gpu_half_compiles(arch):
    """Without a GPU, too; ``make check-cuda`` compiles the same files with every warning."""
    assert nvcc_library.build(arch).exists()
