"""genimg.autotune: choice by measurement."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

import genimg
from genimg import _native, backends
from genimg.backends import OPS, Impl, Op, choose
from genimg.ops import ConvBlock, Direction

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("genimg.tuning.SECONDS", 0.0)
    genimg.autotune(True)
    yield tmp_path / "cache"
    genimg.autotune(False)


@pytest.fixture
def probe():
    """An op of two kernels, one of them slow, and what ran."""
    ran = []

    def function(x, option=1, *, backend=None):
        name = choose(op, backend, x, option)
        ran.append(name)
        time.sleep({"cpu": 0.001, "cuda": 0.0, "reference": 0.01}[name])
        return x + option

    def impl(backend):
        return Impl(
            *(backend, ("cpu",), function, function),
            why_slower=lambda *_: "auto's rule",
            dtypes=(torch.float32, torch.float64),
            missing=lambda x: None,
        )

    op = Op("probe", function, function, (), (impl("cpu"),), work=lambda *args: [])
    yield op, ran
    del OPS["probe"]


X = torch.zeros(3)


def test_takes_the_fastest_and_measures_once(probe):
    op, ran = probe
    op.function(X)
    assert set(ran) == {"cpu", "reference"}
    assert ran[-1] == "cpu"
    ran.clear()
    op.function(X.clone())
    assert ran == ["cpu"]
    for other in (X[:2], X.double(), X.clone().requires_grad_()):
        ran.clear()
        op.function(other)
        assert len(ran) > 10
    ran.clear()
    op.function(X, 2)
    assert len(ran) > 10


def test_a_trial_is_its_threads_alone(probe, monkeypatch):
    """Another thread's call, which the candidate may not serve, takes what is known for it."""
    op, ran = probe
    op.function(X, 2)  # known from here on: cpu
    selected = []
    step = op.function

    def meanwhile(x, option=1, *, backend=None):
        thread = threading.Thread(target=lambda: selected.append(choose(op, None, X, 2)))
        thread.start()
        thread.join()
        return step(x, option, backend=backend)

    monkeypatch.setitem(op.__dict__, "function", meanwhile)
    op.function(X, 3)
    assert len(ran) > 10
    assert set(selected) == {"cpu"}


def test_threads_measure_and_keep_every_decision(probe, folder):
    op, _ = probe
    wrong = []

    def work(option):
        try:
            for size in range(1, 5):
                op.function(torch.zeros(size), option)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(option,)) for option in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    (path,) = folder.glob("*.json")
    assert len(json.loads(path.read_text())["milliseconds"]) == 16


def test_off_returns_to_the_rules(probe):
    op, ran = probe
    op.function(X)
    genimg.autotune(False)
    ran.clear()
    op.function(X)
    assert ran == ["reference"]


def test_remembers_on_disk(probe, folder):
    op, ran = probe
    op.function(X)
    (path,) = folder.iterdir()
    stored = json.loads(path.read_text())
    assert stored["for"]["torch"] == torch.__version__
    ((key, times),) = stored["milliseconds"].items()
    assert "probe" in key
    assert times["cpu"] < times["reference"]
    genimg.autotune(True)  # as another process would begin
    ran.clear()
    op.function(X)
    assert ran == ["cpu"]
    # Entries that another process has added in the meantime stay.
    stored["milliseconds"]["other"] = {"cpu": 1.0}
    path.write_text(json.dumps(stored))
    op.function(X, 3)
    assert set(json.loads(path.read_text())["milliseconds"]) > {key, "other"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"milliseconds": [1]}', "\0"])
def test_a_broken_file_is_measured_anew(probe, folder, text):
    op, _ = probe
    op.function(X)
    (path,) = folder.iterdir()
    path.write_text(text)
    genimg.autotune(True)
    op.function(X)
    assert json.loads(path.read_text())["milliseconds"]


def test_a_folder_that_cannot_be_written_costs_the_memory_only(probe, folder, caplog):
    op, ran = probe
    folder.write_text("a file")
    op.function(X)
    assert ran[-1] == "cpu"
    assert "not kept" in caplog.text


def test_a_new_kernel_is_measured(probe):
    op, ran = probe
    op.function(X)
    op.by_backend["cuda"] = Impl(
        *("cuda", ("cpu",), op.function, op.function),
        dtypes=(torch.float32,),
        missing=lambda x: None,
    )
    genimg.autotune(True)
    op.function(X)
    assert ran[-1] == "cuda"


def test_names_win(probe):
    op, ran = probe
    op.function(X, backend="reference")
    with genimg.use_backend("reference"):
        op.function(X)
        assert "measured" not in str(genimg.explain("probe", X))
    assert ran == ["reference"] * 2


def test_explain_shows_the_times(probe):
    table = genimg.explain("probe", X)
    assert table.selected == "cpu"
    assert [row.reason.startswith("measured: ") for row in table.rows if row.backend == "cpu"]


def test_compiled_code_follows_the_rules(probe):
    op, _ = probe
    names = []
    torch.compile(lambda x: names.append(choose(op, None, x, 1)) or x + 1, backend="eager")(X)
    assert names == ["reference"]
    assert not backends._tuner._known


@native
def test_nothing_that_a_call_writes_is_touched_by_measuring():
    x = torch.randn(8, 4, 8, 8, requires_grad=True)
    state = [torch.zeros(4), torch.ones(4)]
    y = genimg.ops.batch_norm_act(x, *state, training=True)
    expected = [torch.zeros(4), torch.ones(4)]
    genimg.ops.batch_norm_act(x, *expected, training=True, backend="reference")
    for got, right in zip(state, expected, strict=True):
        torch.testing.assert_close(got, right)
    y.sum().backward()
    assert x.grad is not None

    mu, logvar = torch.randn(4, 8), torch.randn(4, 8)
    left = []
    for tuned in (True, False):
        genimg.autotune(tuned)
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(6)
        genimg.ops.reparam_kl(mu, logvar, generator=generator, backend=None)
        genimg.ops.reparam_kl(mu, logvar)
        left.append(torch.stack([torch.rand(3), torch.rand(3, generator=generator)]))
    assert torch.equal(*left)


@native
def test_a_stack_against_its_layers():
    """PyTorch's candidate for a stack is its layers, each of which is measured too."""
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    weight = torch.randn(8, 6, 4, 4, requires_grad=True)
    block = ConvBlock(Direction.UP, weight, None, 2, 1)
    y = genimg.ops.conv_stack(x, [block], training=True)
    expected = genimg.ops.conv_stack(x, [block], training=True, backend="reference")
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    measured = {key[0] for key, times in backends._tuner._known.items() if times}
    assert measured >= {"conv_stack", "conv_transpose2d"}
    assert weight.grad is None


def test_errors_are_the_calls_own():
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        genimg.ops.conv2d(torch.randn(1, 3, 2, 2), torch.randn(4, 3, 5, 5))
    with pytest.raises(ValueError, match="more than 1 value"):
        genimg.ops.batch_norm_act(torch.randn(1, 3, 1, 1), None, None, training=True)


def test_not_where_a_time_means_nothing(probe):
    op, ran = probe
    for x in (torch.empty(3, device="meta"), torch.empty(0)):
        op.function(x)
    torch.func.vmap(lambda x: op.function(x))(torch.zeros(2, 3))
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        op.function(X)
    assert set(ran) == {"reference"}


def test_capture_takes_what_is_known(probe, monkeypatch):
    """And measures nothing: waiting for the device would end the capture."""
    op, ran = probe
    monkeypatch.setattr("genimg.tuning._is_capturing", lambda x: True)
    op.function(X)
    assert ran == ["reference"]
    monkeypatch.setattr("genimg.tuning._is_capturing", lambda x: False)
    op.function(X)
    ran.clear()
    monkeypatch.setattr("genimg.tuning._is_capturing", lambda x: True)
    op.function(X)
    assert ran == ["cpu"]


@native
def test_a_converted_model_trains():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(6, 8, 4, 2, 1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.LeakyReLU(0.2),
        torch.nn.ConvTranspose2d(8, 3, 4, 2, 1),
        torch.nn.Tanh(),
    )
    x = torch.randn(4, 6, 4, 4)
    expected = model(x)
    model[1].reset_running_stats()
    genimg.convert(model)
    got = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    got.sum().backward()


@native
def test_by_the_environment(tmp_path):
    code = (
        "import torch, genimg; x = torch.randn(4, 8); "
        "genimg.ops.reparam_kl(x, x); print(genimg.explain('reparam_kl', x, x))"
    )
    given = {"GENIMG_AUTOTUNE": "1", "GENIMG_CACHE": str(tmp_path), "GENIMG_LOG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "measured: " in done.stdout
    assert "reparam_kl: measured " in done.stderr
    assert len(list(tmp_path.iterdir())) == 1
