"""Options and fixtures of every test."""

import os
import signal
import tempfile
from pathlib import Path

# The processes of pytest-xdist share the cores: a thread that spins for another takes its core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# No test measures, nor reads what was measured here, but those that are about it: the same kernels
# run everywhere and every time.
os.environ["GENIMG_AUTOTUNE"] = "0"
os.environ["GENIMG_CACHE"] = str(Path(tempfile.gettempdir()) / f"genimg-tests-{os.getpid()}")

# Triton reads it when a kernel is defined. Without a GPU its kernels run in the interpreter.
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import emulator
import pytest

from genimg import priors

# A shell that starts us in the background has SIGINT ignored; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption(
        "--sanitized",
        action="store_true",
        help="run the emulated CUDA kernels under AddressSanitizer and UBSan",
    )
    parser.addoption(
        "--emulated-kernels",
        type=Path,
        metavar="FOLDER",
        help="CUDA kernels to emulate instead of kernels/cuda",
    )


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of ``make test``; one for slow tests, of which some take most of the memory."""
    return 1 if config.getoption("--slow") else min(os.cpu_count() or 1, 8)


def pytest_configure(config: pytest.Config) -> None:
    emulator.sanitized = config.getoption("--sanitized")
    emulator.thorough = config.getoption("--slow")
    emulator.kernels = config.getoption("--emulated-kernels")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: give --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def seeded_bugs():
    """The kernels with mistakes that the emulator must find."""
    return emulator.library("genimg_seeded_bugs")


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """torch.empty gives NaN, so that an output that a kernel leaves unwritten shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch):
    """The priors of one class of machines, whatever the tests run on."""
    monkeypatch.setattr(priors, "CPU", priors.AVX512)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest):
    """With a GPU, a test of Triton's kernels makes its tensors there."""
    if "triton" in request.node.name and torch.cuda.is_available():
        with torch.device("cuda"):
            yield
    else:
        yield
