"""``genimg info``: it speaks for everything, and works whatever is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import genimg
from genimg import _native, info, versions
from genimg.backends import BACKENDS, OPS


def run(code: str, **environment: str) -> str:
    """The output of another Python; its error stream must be empty."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def row(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.split()[:1] == [start])


def test_page_speaks_for_every_backend_op_and_variable(capsys):
    assert info.main([]) == 0
    page = capsys.readouterr().out
    assert row(page, "genimg").split()[1] == genimg.__version__
    for name in (*BACKENDS, *OPS, *info.ENVIRONMENT, "torch", "nvcc", "cmake", "ninja", "gpu"):
        assert row(page, name)
    assert row(page, "leaky_relu").split()[1:] == ["yes"] * 4
    assert row(page, "conv2d").split()[-1] == "yes"


def test_json_is_what_the_page_is_made_of(capsys):
    assert info.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["ops"]["leaky_relu"] == ["cuda", "cpu", "triton", "reference"]
    assert facts["backends"]["reference"]["usable"]
    assert facts["backends"]["cpu"]["built"] == _native.available()
    assert info.render(facts).startswith("genimg")


def test_needs_torch_alone():
    blocked = "click numpy PIL matplotlib sklearn safetensors tqdm pytest triton".split()
    page = run(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        "sys.argv = ['genimg', 'info']\n"
        "from genimg.__main__ import main\n"
        "sys.exit(main())"
    )
    assert "Triton is not installed" in row(page, "triton") + page
    assert 'pip install "genimg[triton]"' in page


def test_names_what_is_missing_to_build_with(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.setattr(info.sysconfig, "get_path", lambda name: str(tmp_path))
    info.main([])
    page = capsys.readouterr().out
    assert "apt-get install g++" in row(page, "c++")
    assert "pip install cmake" in row(page, "cmake")
    assert "pip install ninja" in row(page, "ninja")
    assert "none" in row(page, "nvcc")


@pytest.mark.parametrize(
    ("cuda", "advice"),
    [
        (None, "not needed"),
        ("12.8", "toolkit 12.8"),
        ("13.0", '"nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*"'),
    ],
)
def test_how_to_get_nvcc(monkeypatch, cuda, advice):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert advice in info._nvcc_advice()


def test_a_tool_that_does_not_run_is_missing(tmp_path):
    broken = tmp_path / "cmake"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert info._tool([str(broken)], "get one") == {
        "path": None,
        "version": None,
        "advice": "get one",
    }


def test_gpus_are_described(monkeypatch):
    gpu = SimpleNamespace(
        name="GPU X", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    page = info.render(info.collect())
    assert "GPU X, compute capability 9.0, 132 multiprocessors, 80.0 GiB" in row(page, "gpu")


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(info, "_output", lambda *command: "")
    facts = info.collect()
    assert "no GPU present" in row(info.render(facts), "gpu")
    assert not facts["backends"]["cuda"]["usable"]


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
def test_a_wrong_level_is_shown_and_not_raised():
    page = run("from genimg import info; info.main([])", GENIMG_CPU_ISA="sse9")
    assert row(page, "cpu")
    line = next(line for line in page.splitlines() if line.startswith("cpu  ") and "yes" in line)
    assert "GENIMG_CPU_ISA=sse9" in line
    assert line.split()[1:3] == ["yes", "no"]


def test_untested_versions_are_named_once(monkeypatch):
    """A torch, Triton or Python that is not in the table works, and the page says so."""
    tested = {"Python": "3.14.2", "torch": "2.15.1+cu132", "Triton": "3.9.0"}
    assert versions.notes(tested) == versions.notes({})
    monkeypatch.setattr(torch, "__version__", "2.16.0a0+git123")
    monkeypatch.setattr(info, "_distribution", lambda name: "4.0.0rc1")
    monkeypatch.setattr(info.platform, "python_version", lambda: "3.15.0b1")
    page = info.render(info.collect())
    notes = [line for line in page.splitlines() if line.startswith("note ")]
    assert [note.split()[1:3] for note in notes[:3]] == [
        ["Python", "3.15.0b1"],
        ["torch", "2.16.0a0+git123"],
        ["Triton", "4.0.0rc1"],
    ]
    assert "2.11 to 2.15 are" in notes[1]
    assert "through Triton's own binder" in notes[2]


def test_private_functions_that_torch_lacks_cost_speed_alone():
    """Import, ops and gradients work without them, in PyTorch; the page says what is missing."""
    page = run(
        "import torch\n"
        "del torch._C._will_engine_execute_node, torch._C._len_torch_dispatch_stack\n"
        "del torch._C._functorch.peek_interpreter_stack\n"
        "del torch._C._functorch.is_legacy_batchedtensor\n"
        "del torch._C._len_torch_function_stack, torch._C._get_function_stack_at\n"
        "del torch._C._autograd._top_saved_tensors_default_hooks\n"
        "del torch._C._autograd._profiler_enabled\n"
        "del torch.autograd.forward_ad._current_level\n"
        "import genimg\n"
        "from genimg import info\n"
        "x = torch.randn(2, 3, 8, 8, requires_grad=True)\n"
        "w = torch.randn(3, 4, 4, 4, requires_grad=True)\n"
        "y = genimg.ops.conv_transpose2d(x, w, stride=2, padding=1)\n"
        "torch.autograd.grad(y.sum(), x)\n"
        "assert torch.equal(y, torch.nn.functional.conv_transpose2d(x, w, None, 2, 1))\n"
        "genimg.autotune(True)\n"
        "genimg.ops.leaky_relu(x, 0.2).sum().backward()\n"
        "print(genimg.explain('conv_transpose2d', x, w))\n"
        "info.main([])"
    )
    assert "does not tell whether a torch.func transform is active" in page
    for name in versions.PRIVATE:
        assert page.count(f"torch._C.{name} is missing") == 1
