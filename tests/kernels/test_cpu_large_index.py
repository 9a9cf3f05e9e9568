"""The CPU kernels where indices pass 2^31, on memory that is mapped but not there."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import genimg
from genimg import _native

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("cpu_large_index.cpp")
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(platform.system() != "Linux", reason="maps memory as Linux does")
@pytest.mark.skipif(not (ROOT / "kernels/cpu").exists(), reason="not run from a source tree")
def test_large_indices(tmp_path):
    sources = [path for path in (ROOT / "kernels/cpu").rglob("*.cpp") if path.stem != "isa"]
    program = tmp_path / "cpu_large_index"
    command = [COMPILER, "-std=c++20", "-O0", "-DGENIMG_ISA=baseline"]
    command += ["-DGENIMG_ONLY_ISA=baseline", "-o", program]
    subprocess.run([*command, DRIVER, *sources], check=True, timeout=300)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok: ") == len(done.stdout.splitlines()) == 16


needs_native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


@pytest.mark.slow  # 9 to 13 GB
@needs_native
def test_batch_norm_act_of_more_than_2_31_elements():
    images, channels, side = 2**31 // (64 * 64 * 64) + 1, 64, 64
    x = torch.ones(images, channels, side, side, dtype=torch.bfloat16)
    x[-1] = 3
    statistics = [torch.zeros(channels), torch.ones(channels)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory_format)
        y = genimg.ops.batch_norm_act(x, *statistics, training=True, momentum=1.0, backend="cpu")
        mean = 1 + 2 / images
        torch.testing.assert_close(statistics[0], torch.full((channels,), mean))
        rstd = (4 / images - (2 / images) ** 2 + 1e-5) ** -0.5
        expected = torch.full_like(x[-1], (3 - mean) * rstd)
        torch.testing.assert_close(y[-1], expected)
        del y


@pytest.mark.slow
@needs_native
def test_conv2d_of_more_than_2_31_elements():
    """Contiguous, so that the copy to channels_last is of as many."""
    images = 2**31 // (8 * 64 * 64) + 1
    x = torch.zeros(images, 8, 64, 64, dtype=torch.bfloat16)
    x[-1] = torch.randint(-2, 3, x[-1].shape)
    weight = torch.randint(-1, 2, (3, 8, 4, 4)).bfloat16()
    y = genimg.ops.conv2d(x, weight, None, 2, 1, backend="cpu")
    expected = torch.nn.functional.conv2d(x[-1:].double(), weight.double(), None, 2, 1)
    assert torch.equal(y[-1:].double(), expected)
    assert not y[:-1].any()


@pytest.mark.slow
@needs_native
def test_leaky_relu_of_more_than_2_31_elements():
    x = torch.zeros(2**31 + 5, dtype=torch.bfloat16)
    x[-1] = -2
    assert genimg.ops.leaky_relu(x, 0.5, backend="cpu")[-1] == -1
