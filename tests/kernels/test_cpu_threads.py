"""The CPU kernels under threads: the same bits for any number, after a fork, from several."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import genimg
from genimg import _native

pytestmark = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


def generator():
    """Every form of the convolutions, statistics and gates: outputs and all gradients."""
    torch.manual_seed(0)
    layers = []
    for c, o, first in ((10, 48, True), (48, 33, False), (33, 20, False)):
        stride, padding = (1, 0) if first else (2, 1)
        layers += [torch.nn.ConvTranspose2d(c, o, 4, stride, padding), torch.nn.BatchNorm2d(o)]
        layers += [torch.nn.LeakyReLU(0.2)]
    layers += [torch.nn.ConvTranspose2d(20, 3, 4, 2, 1), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers)
    genimg.convert(model)
    return model, torch.randn(20, 10, 1, 1)


def results(model, x):
    with genimg.use_backend("cpu"):
        y = model(x)
        grads = torch.autograd.grad(y.square().sum(), model.parameters())
        z, kl = genimg.ops.reparam_kl(*x.view(2, 100).split(1), generator=torch.Generator())
    return [y, *grads, z, kl]


def test_any_number_of_threads_gives_the_same_bits():
    model, x = generator()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(results(model, x))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_several_python_threads_at_once():
    model, x = generator()
    expected = results(model, x)
    wrong = []

    def work():
        for _ in range(3):
            # Backends are chosen for the whole process, so not by use_backend here.
            y = model(x)
            if not torch.allclose(y, expected[0], atol=1e-5):
                wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_after_use():
    """A DataLoader's workers: a child that computes after its parent has."""
    code = """
import os, sys, torch, genimg
torch.set_num_threads(1)  # torch itself does not survive a fork after it has made threads
x, weight = torch.randn(4, 20, 7, 7), torch.randn(20, 40, 4, 4)
def run():
    return genimg.ops.conv_transpose2d(x, weight, None, 2, 1, backend="cpu")
expected = run()
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(run(), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 16, 16, 16), (2, 37, 9, 11), (1, 70, 1, 33)])
def test_images_keep_their_values_through_the_memory_formats(shape, dtype):
    """A 1x1 identity: what a convolution reads and writes in NCHW is what it does in NHWC."""
    x = torch.randint(-9, 10, shape).to(dtype)
    identity = torch.eye(shape[1], dtype=dtype)[:, :, None, None]
    y = genimg.ops.conv2d(x, identity, backend="cpu")
    assert y.is_contiguous()
    assert torch.equal(y, x)
    pixels = x.contiguous(memory_format=torch.channels_last)
    y = genimg.ops.conv2d(pixels, identity, backend="cpu")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, x)
