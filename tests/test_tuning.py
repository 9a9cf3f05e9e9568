"""Choice by measurement, on a clock that the tests set: no test depends on a time."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from measured import Clock, Probe, processes
from torch.utils.flop_counter import FlopCounterMode

import genimg
from genimg import _native, budget, isolation, priors, trial, tuning
from genimg.backends import OPS, choose
from genimg.budget import Budget

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def begin(tmp_path, clock):
    with processes(tmp_path / "cache", clock) as begin:
        yield begin


@pytest.fixture
def tuner(begin):
    return begin()


@pytest.fixture
def probe(clock):
    made = Probe(clock)
    yield made
    del OPS["probe"]


X = torch.zeros(3, 5)


def test_the_fastest_is_taken_and_measured_once(probe, tuner):
    ran = probe(X)
    assert set(ran) == {"cpu", "reference"}
    assert ran[-1] == "cpu"
    assert probe(X.clone()) == ["cpu"]
    assert probe(X, 2)[-1] == "cpu"
    probe.seconds["cpu"] = 0.01
    assert probe(X.double())[-1] == "reference"


@pytest.mark.parametrize(
    "other",
    [
        X.double(),
        torch.zeros(3, 6),
        torch.zeros(5, 3).t(),
        X.clone().requires_grad_(),
    ],
    ids=["dtype", "shape", "strides", "gradient"],
)
def test_another_kind_is_measured_anew(probe, tuner, other):
    probe(X)
    assert len(probe(other)) > 1


def test_threads_are_part_of_a_kind(probe, tuner):
    probe(X)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert len(probe(X)) > 1
    finally:
        torch.set_num_threads(threads)


def test_batches_up_to_a_power_of_two_share_a_decision(probe, tuner):
    probe(torch.zeros(33, 5))
    for batch in (34, 50, 64):
        assert probe(torch.zeros(batch, 5)) == ["cpu"]


def test_the_last_batch_of_an_epoch_measures_nothing(probe, tuner):
    """It takes its neighbour's decision, until it has been met often."""
    probe(torch.zeros(64, 5))
    for _ in range(tuning.OFTEN):
        assert probe(torch.zeros(7, 5)) == ["cpu"]
    assert len(probe(torch.zeros(7, 5))) > 1


def test_a_slope_is_no_kind_of_its_own(tuner):
    x = torch.randn(4, 4)
    calls = [tuner._meet(OPS["leaky_relu"], (x, slope, False)) for slope in (0.1, 0.2, 0.0)]
    assert calls[0].kind == calls[1].kind != calls[2].kind


def test_a_clear_case_takes_two_rounds(probe, tuner):
    probe.seconds["reference"] = 0.004
    # Once each to warm up, two rounds, and the call itself.
    assert len(probe(X)) == 2 + 2 * 2 + 1


def test_a_close_case_takes_more_rounds(probe, tuner):
    probe.seconds["reference"] = 0.0011
    assert len(probe(X)) == 2 + 2 * trial.ROUNDS + 1


def test_short_calls_are_repeated(probe, tuner):
    probe.seconds = {"cpu": 1e-5, "reference": 1.1e-5}
    assert len(probe(X)) == 2 + 2 * trial.MOST_ROUNDS + 1


def test_the_second_process_measures_nothing(probe, begin):
    begin()
    probe(X)
    begin()
    assert probe(X) == ["cpu"]
    begin(measures=False)
    assert probe(X) == ["cpu"]


def test_another_kernel_is_measured(probe, begin):
    begin()
    probe(X)
    probe.op.by_backend["cuda"] = probe.impl("cuda")
    begin()
    assert probe(X)[-1] == "cuda"


def test_off_measures_nothing_and_reads_what_is_stored(probe, begin):
    begin(measures=False)
    assert probe(X) == ["reference"]
    begin()
    probe(X)
    begin(measures=False)
    assert probe(X) == ["cpu"]
    assert probe(X.double()) == ["reference"]


def test_autotune_switches_the_process(tmp_path, monkeypatch, begin):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path))
    genimg.autotune(False)
    assert not tuning.current().measures
    genimg.autotune()
    assert tuning.current().measures
    assert tuning.current().budget is tuning.BUDGET
    assert list(tmp_path.iterdir()) == []


class TestBudget:
    """A second at the start, then a twentieth of the running time."""

    def test_a_second_at_the_start(self, clock):
        spent = Budget(clock)
        assert spent.left == budget.START
        with spent.spending():
            clock.now += 0.75
            assert spent.left == pytest.approx(0.25)
            with spent.spending():  # a stack's layers, within the stack
                clock.now += 0.25
        assert spent.spent == pytest.approx(1.0)
        assert spent.left == pytest.approx(0.0)

    def test_then_a_share_of_the_time_that_is_not_measuring(self, clock):
        spent = Budget(clock)
        with spent.spending():
            clock.now += 3.0
        assert spent.left == pytest.approx(-2.0)
        clock.now += 40.0
        assert spent.left == pytest.approx(0.0)
        clock.now += 40.0
        assert spent.left == pytest.approx(2.0)

    def test_without_limit(self, clock):
        spent = Budget(clock)
        with spent.unlimited(), spent.spending():
            clock.now += 100.0
            assert spent.left > 1000
        assert spent.left < 0

    def test_a_program_never_spends_more(self, probe, tuner, clock):
        """Slow calls of ever new kinds: at every moment at most one run beyond what is allowed."""
        probe.seconds = {"cpu": 0.1, "reference": 0.11}
        for step in range(300):
            began = clock.now
            probe(torch.zeros(3, 3 + step % 20))
            clock.now += 0.5
            allowed = budget.START + budget.SHARE * (clock.now - tuner.budget.spent)
            # The budget may be overdrawn by the copies' first runs and one round.
            assert tuner.budget.spent <= allowed + 4 * 0.11, (step, began)
        assert tuner.budget.spent > 0.5 * budget.SHARE * clock.now

    def test_first_runs_do_not_eat_up_all_that_is_earned(self, probe, tuner, clock):
        """They come before every round; where the second is spent, a round has to be earned too."""
        probe.seconds = {"cpu": 0.3, "reference": 0.33}
        with tuner.budget.spending():
            clock.now += budget.START
        calls = 0
        while probe(X) != ["cpu"]:
            clock.now += 1.0
            calls += 1
            assert calls < 500
        assert tuner.budget.left > -1.0

    def test_what_is_not_decided_goes_by_the_prior_and_goes_on_later(self, probe, tuner, clock):
        probe.seconds = {"cpu": 0.3, "reference": 0.33}
        assert probe(X)[-1] == "reference"
        assert probe(X) == ["reference"]
        assert "without AMX; measured in 1 of 5 rounds" in genimg.explain("probe", X).decided
        for _ in range(10):
            clock.now += 100.0
            last = probe(X)
        assert last == ["cpu"]


@pytest.mark.parametrize("where", ["deterministic", "saved tensors", "anomaly", "profiler"])
def test_where_measuring_would_be_seen(probe, tuner, where):
    if where == "deterministic":
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert probe(X) == ["reference"]
        torch.use_deterministic_algorithms(False)
    elif where == "saved tensors":
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            assert probe(X) == ["reference"]
    elif where == "anomaly":
        with torch.autograd.set_detect_anomaly(True):
            assert probe(X) == ["reference"]
    else:
        with torch.profiler.profile():
            assert probe(X) == ["reference"]
    assert len(probe(X)) > 1


def test_deterministic_algorithms_read_what_is_stored(probe, begin):
    begin()
    probe(X)
    torch.use_deterministic_algorithms(True, warn_only=True)
    begin()
    assert probe(X) == ["cpu"]


def test_not_where_a_time_means_nothing(probe, tuner):
    ran = []
    for x in (torch.empty(3, device="meta"), torch.empty(0)):
        ran += probe(x)
    ran += probe(X.to_sparse())
    probe.ran.clear()
    torch.func.vmap(lambda x: probe.op.function(x))(torch.zeros(2, 3))
    ran += probe.ran
    with FlopCounterMode(display=False):
        ran += probe(X)
    assert set(ran) == {"reference"}


def test_a_default_device_does_not_hinder(probe, tuner):
    with torch.device("cpu"):
        assert len(probe(X)) > 1


def test_capture_takes_what_is_known(probe, tuner, monkeypatch):
    """And measures nothing: waiting for the device would end the capture."""
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "is_capturing", lambda x: True)
        assert probe(X) == ["reference"]
    probe(X)
    monkeypatch.setattr(isolation, "is_capturing", lambda x: True)
    assert probe(X) == ["cpu"]


def test_a_trial_is_its_threads_alone(probe, tuner, monkeypatch):
    """Another thread's call, which the candidate may not serve, takes what is known for it."""
    probe(X, 2)
    step = probe.op.function
    seen = []

    def elsewhere():
        seen.append(tuner.selected(probe.op, (X, 2)))
        seen.append(tuner.selected(probe.op, (X.double(), 2)))

    def during(x, option=1, *, backend=None):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return step(x, option, backend=backend)

    monkeypatch.setitem(probe.op.__dict__, "function", during)
    probe.op.function(torch.zeros(3, 9))
    # What is decided is known there; what is not is not measured while another thread measures.
    assert set(seen) == {"cpu", None}


def test_threads_keep_every_decision(probe, tuner, begin):
    wrong = []

    def work(option):
        try:
            for size in range(1, 5):
                for _ in range(200):
                    probe.op.function(torch.zeros(2, size), option)
        except Exception as error:
            wrong.append(error)

    with tuner.budget.unlimited():
        threads = [threading.Thread(target=work, args=(option,)) for option in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(begin().store.all(torch.device("cpu"))) == len(tuner.store.all(torch.device("cpu")))


def test_names_win(probe, tuner):
    assert probe(X, backend="reference") == ["reference"]
    with genimg.use_backend("reference"):
        assert probe(X) == ["reference"]
        assert "measured" not in str(genimg.explain("probe", X))


def test_explain_shows_the_times_and_who_decides(probe, begin):
    begin(measures=False)
    table = genimg.explain("probe", X)
    assert table.decided.startswith("the priors of x86-64, AVX-512 without AMX; nothing was ")
    assert table.decided.endswith("measured: autotune is off")
    assert "nothing is measured; stored decisions and priors select" in str(table)
    begin()
    table = genimg.explain("probe", X)
    assert table.selected == "cpu"
    assert "-> cpu        measured: 1 ms" in str(table)
    assert "decided by measurement, by the first calls" in str(table)


def test_a_candidate_that_fails_leaves_the_prior(probe, tuner):
    function = probe.op.function

    def fails(x, option=1, *, backend=None):
        if choose(probe.op, backend, x, option) == "cpu":
            raise MemoryError("no room")
        return function(x, option, backend=backend)

    probe.op.__dict__["function"] = fails
    probe.op.function(X)
    assert probe.ran[-1] == "reference"
    assert "not measured: MemoryError: no room" in str(genimg.explain("probe", X))
    count = len(probe.ran)
    probe.op.function(X)
    assert len(probe.ran) == count + 1


CODE = """
import torch, genimg
x = torch.randn(4, 8)
genimg.ops.reparam_kl(x, x)
print(genimg.explain("reparam_kl", x, x))
"""


@native
def test_by_the_environment(tmp_path):
    """A process that measures, one that finds it decided, and one that may not measure."""

    def run(folder, autotune):
        given = {"GENIMG_AUTOTUNE": autotune, "GENIMG_CACHE": str(folder), "GENIMG_LOG": "1"}
        return subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )

    first, second = (run(tmp_path / "cache", "1") for _ in range(2))
    assert "measured: " in first.stdout
    assert "reparam_kl: measured " in first.stderr
    assert "measured: " in second.stdout
    assert "reparam_kl: measured " not in second.stderr
    (path,) = (tmp_path / "cache").glob("*.json")
    assert len(json.loads(path.read_text())["decisions"]) == 1
    off = run(tmp_path / "other", "0")
    assert "GENIMG_AUTOTUNE=0: nothing is measured" in off.stdout
    assert not (tmp_path / "other").exists()


def test_what_has_not_run_on_a_kind_of_device_is_not_tried(probe, tuner, monkeypatch):
    monkeypatch.setattr(priors, "is_proved", lambda device: device != "cpu")
    assert probe(X) == ["reference"]
    assert "there is one candidate" in genimg.explain("probe", X).decided
