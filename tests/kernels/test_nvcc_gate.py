"""The compile gate of the CUDA kernels, on reports that nvcc might make."""

import shutil
import subprocess
from importlib import util
from pathlib import Path

import pytest

SPEC = util.spec_from_file_location("nvcc_gate", Path(__file__).with_name("nvcc_gate.py"))
gate = util.module_from_spec(SPEC)
SPEC.loader.exec_module(gate)

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z8a_kernelv' for 'sm_80'
ptxas info    : Function properties for _Z8a_kernelv
    {stack} bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 3088 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z8b_kernelv' for 'sm_90a'
ptxas info    : Function properties for _Z8b_kernelv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
KERNEL = "__global__ void a_kernel();"


def test_a_report_is_read():
    rows = gate.kernels_in(REPORT.format(stack=0, stores=0))
    assert [(r["name"], r["arch"], r["registers"], r["shared"]) for r in rows] == [
        ("_Z8a_kernelv", "80", 40, 3088),
        ("_Z8b_kernelv", "90a", 32, 0),
    ]
    assert gate.faults(REPORT, rows, KERNEL) == []


@pytest.mark.parametrize(("stack", "stores"), [(32, 0), (0, 8), (16, 16)])
def test_stack_and_spills_do_not_pass(stack, stores):
    report = REPORT.format(stack=stack, stores=stores)
    (fault,) = gate.faults(report, gate.kernels_in(report), KERNEL)
    assert fault.startswith("_Z8a_kernelv for sm_80")


def test_advice_on_wgmma_does_not_pass():
    report = REPORT.format(stack=0, stores=0) + "ptxas info    : (C7510) Potential Performance Loss"
    assert len(gate.faults(report, gate.kernels_in(report), KERNEL)) == 1
    report = report.replace("C7510", "C7519")
    assert len(gate.faults(report, gate.kernels_in(report), KERNEL)) == 1


def test_a_file_of_kernels_has_some():
    assert gate.faults("", [], KERNEL) == ["ptxas reported no kernel"]
    assert gate.faults("", [], "cudaError_t launch_conv_stack_fwd();") == []


def test_a_matrix_kernel_has_matrix_instructions():
    call = "simt::mma_m16n8k16(acc, a, b, T{});"
    sass = {"80": "HMMA.16816.F32.BF16 R4, R4", "90a": "FFMA R4, R4"}
    assert gate.matrix_faults(call, sass) == ["no HMMA for sm_90a"]
    assert gate.matrix_faults("y[i] = x[i];", sass) == []
    call = "simt::wgmma_m64n64k16<true>(acc, a, b, T{}); simt::wgmma_commit();"
    assert gate.matrix_faults(call, {"80": "RET", "90a": "HMMA"}) == ["no HGMMA for sm_90a"]
    assert gate.matrix_faults(call, {"80": "RET", "90a": "HGMMA.64x64x16.F32 R4, gdesc"}) == []


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "arch", "share"),
    [
        (32, 0, 256, "80", "100%"),
        (33, 0, 256, "80", "75%"),
        (255, 0, 256, "90a", "12%"),
        (32, 100_000, 256, "90a", "25%"),
        (255, 0, 128, "90a", "12%"),
        (168, 0, 128, "90a", "18%"),
        (16, 0, 32, "80", "37%"),  # 24 blocks
        (32, 0, 0, "80", "-"),
    ],
)
def test_occupancy(registers, shared, threads, arch, share):
    row = {"registers": registers, "shared": shared, "threads": threads, "arch": arch}
    assert gate.occupancy({**row, "dynamic": False}) == share
    if threads:
        assert gate.occupancy({**row, "dynamic": True}) == f"<={share}"


def test_who_has_dynamic_memory():
    source = (
        "template <int N>\n__global__ void __launch_bounds__(f<N>(), 1)\n"
        "    first_kernel(const float* x) {\n  SIMT_DYN_SHARED(float, shared);\n}\n"
        "__global__ void second_kernel(float* y) {\n  // as SIMT_DYN_SHARED(float, shared)\n}\n"
        "int launch_first() { return simt::launch(first_kernel<1>, 1, 1, 4, 0); }\n"
    )
    assert gate.with_dynamic_memory(source) == {"first_kernel"}


def test_threads_are_read_from_a_binary(tmp_path):
    """Compiled here, for the format is nobody's promise."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    source = tmp_path / "two.cu"
    source.write_text(
        'extern "C" __global__ void __launch_bounds__(96) small(float* y) { y[0] = 1; }\n'
        'extern "C" __global__ void any(float* y) { y[0] = 1; }\n'
    )
    binary = tmp_path / "two.o"
    command = [nvcc, "-c", source, "-o", binary, "-gencode=arch=compute_90a,code=sm_90a"]
    subprocess.run(command, check=True, timeout=120)
    assert gate.threads_in(binary) == {("90a", "small"): 96}
