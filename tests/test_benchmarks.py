"""The benchmarks: what is timed was checked, and the report says what the file says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genimg import bench
from genimg.backends import OPS, Op
from genimg.testing import Case, normal

ROOT = Path(__file__).parent.parent


def load(name="report"):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def entry(group, provider, median, backend="cpu"):
    return {
        "group": group,
        "stats": {"median": median, "iqr": median / 10},
        "extra_info": {"provider": provider, "backend": backend},
    }


def test_report(tmp_path, capsys):
    results = tmp_path / "results.json"
    rows = [
        entry("relu big forward", "genimg", 0.002),
        entry("relu big forward", "eager", 0.006, "eager"),
        entry("relu big forward", "compile", 0.003, "compile"),
        entry("relu big forward", "cpu", 0.002),
    ]
    results.write_text(json.dumps({"benchmarks": rows}))
    report = load()
    assert report.main([str(results)]) == 0
    printed = capsys.readouterr().out
    assert (
        "| relu big forward | cpu | 2.000 | 6.000 | 3.000 | 2.000 |  |  | 1.50 (compile) |"
        in printed
    )
    assert (tmp_path / "report.md").read_text() == printed
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_a_gpu():
    """Triton's column fills itself where Triton ran, with its share of the machine's bound."""
    report = load()
    rows = {
        "genimg": {"ms": 0.5, "backend": "reference", "bound_ms": 0.1, "flop": 1e9},
        "eager": {"ms": 0.5, "backend": "eager", "bound_ms": 0.1},
        "triton_channels_last": {"ms": 0.125, "backend": "triton", "bound_ms": 0.1},
    }
    other = {name: row for name, row in rows.items() if "triton" not in name}
    lines = report.table({"conv a forward": rows, "conv b forward": other}).splitlines()
    assert lines[0] == (
        "| op, case, pass | selected | genimg | eager | triton_channels_last | GFLOP/s "
        "| of the bound | best PyTorch / genimg |"
    )
    assert lines[2] == (
        "| conv a forward | reference | 0.500 | 0.500 | 0.125 (80%) | 2000 | 20% | 1.00 (eager) |"
    )
    assert lines[3] == (
        "| conv b forward | reference | 0.500 | 0.500 |  | 2000 | 20% | 1.00 (eager) |"
    )


def test_report_of_failures(tmp_path, capsys):
    """The others keep their times; no speed is claimed where genimg is wrong."""
    results = tmp_path / "results.json"
    rows = [
        entry("relu a forward", "eager", 0.002, "eager"),
        entry("relu a forward", "genimg_channels_last", 0.001),
        entry("relu b forward", "genimg", 0.001),
        entry("relu b forward", "eager", 0.002, "eager"),
    ]
    failures = [
        {"group": "relu a forward", "provider": "genimg", "backend": "cpu", "reason": "WRONG: y"},
        {"group": "relu b forward", "provider": "compile", "backend": "", "reason": "OSError: x"},
        {"group": "relu c forward", "provider": "genimg", "backend": "cpu", "reason": "WRONG: z"},
    ]
    results.write_text(json.dumps({"benchmarks": rows, "failures": failures}))
    assert load().main([str(results)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "| relu a forward | eager | WRONG | 1.000 | 2.000 |  |  |  | WRONG |",
        "| relu b forward | cpu | 1.000 |  | 2.000 | FAILED |  |  | 2.00 (eager) |",
        "| relu c forward | cpu | WRONG |  |  |  |  |  | WRONG |",
    ]
    assert lines[-3:] == [
        "- relu a forward, genimg: WRONG: y",
        "- relu b forward, compile: OSError: x",
        "- relu c forward, genimg: WRONG: z",
    ]


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": []}', "[1]"])
def test_report_refuses_other_files(tmp_path, capsys, text):
    results = tmp_path / "results.json"
    results.write_text(text)
    assert load().main([str(results)]) == 2
    assert "report: " in capsys.readouterr().err
    assert load().main([str(tmp_path / "missing.json")]) == 2


def run_benchmarks(results, *more, **environment):
    """pytest-benchmark on one case, genimg beside eager PyTorch."""
    # Told of pytest-xdist, pytest-benchmark would time nothing.
    here = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_INT", "PYTEST_"))}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(ROOT / "benchmarks" / "bench_reparam_kl.py"),
            "-c",
            str(ROOT / "benchmarks" / "pytest.ini"),
            f"--rootdir={ROOT}",
            f"--benchmark-json={results}",
            "-k",
            "vae_step-forward_backward and (genimg or eager) and not compile",
            *more,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**here, **environment},
    )


def test_one_benchmark_runs(tmp_path):
    """And the report of its file."""
    results = tmp_path / "results.json"
    done = run_benchmarks(results)
    assert done.returncode == 0, done.stdout + done.stderr
    groups = load().load(results)
    assert list(groups) == ["reparam_kl vae_step forward_backward"]
    (rows,) = groups.values()
    assert set(rows) == {"genimg", "eager", "eager_channels_last"}
    assert all(row["ms"] > 0 and row["bound_ms"] > 0 for row in rows.values())


def test_a_benchmark_that_fails_costs_no_other(tmp_path):
    """One is wrong, one raises; the results have both reasons, and the third one's time."""
    (tmp_path / "spoil.py").write_text(
        "from types import SimpleNamespace\n"
        "from genimg import bench, check\n"
        "wrong = SimpleNamespace(ok=False, result='y', error=1, allowed=0, bound=0, note='')\n"
        "check.worst = lambda errors: wrong\n"
        "made = bench.make_step\n"
        "def make_step(op, case, provider, *how):\n"
        "    if provider == 'eager_channels_last': raise MemoryError('none is left')\n"
        "    return made(op, case, provider, *how)\n"
        "bench.make_step = make_step\n"
    )
    done = run_benchmarks(tmp_path / "results.json", "-p", "spoil", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    groups = load().load(tmp_path / "results.json")
    (rows,) = groups.values()
    assert {name: row.get("reason") for name, row in rows.items()} == {
        "genimg": "WRONG: y is off by 1.0e+00, 0.0e+00 is allowed",
        "eager": None,
        "eager_channels_last": "MemoryError: none is left",
    }
    assert rows["eager"]["ms"] > 0


def test_a_wrong_result_has_no_speed():
    case = Case("wrong", "", lambda g: {"x": normal(g, 5)}, lambda op, t: op(t["x"]))
    op = Op(
        "wrong", lambda x, backend=None: x * 1.01, lambda x: x * 1.0, (case,), work=lambda *_: []
    )
    try:
        failure = bench.measure(op, case)
    finally:
        del OPS["wrong"]
    assert isinstance(failure, bench.Failure)
    assert re.match("wrong wrong on reference: (y|grad_x) is off by ", str(failure))
    assert not failure.error.ok
    assert bench.row(failure).split()[3:6] == ["-", "-", "WRONG"]


def test_what_cannot_be_timed_is_named(monkeypatch):
    """As torch.compile where there is no C++ compiler."""
    op = OPS["leaky_relu"]
    case = next(case for case in op.cases if case.name == "discriminator_layer")

    def no_compiler(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    failure = bench.measure(op, case, ("genimg", "compile"), seconds=0)
    assert failure.reason == "compile ended in RuntimeError: no compiler"
    assert "FAILED" in bench.row(failure)


def test_measure_and_render():
    op = OPS["leaky_relu"]
    case = next(case for case in op.cases if case.name == "discriminator_layer")
    timing = bench.measure(op, case, seconds=0.01)
    assert set(timing.milliseconds) == {"genimg", "eager"}
    assert timing.ratio == timing.milliseconds["eager"] / timing.milliseconds["genimg"]
    assert f"{timing.ratio:.2f}x" in bench.row(timing)


def test_eager_reparam_kl_is_the_textbook_s():
    mu, logvar = torch.randn(4, 5), torch.randn(4, 5)
    _, kl = bench.eager_reparam_kl(mu, logvar)
    z, ours = OPS["reparam_kl"].reference(mu, logvar, sample=False)
    torch.testing.assert_close(kl, ours, rtol=1e-4, atol=1e-4)
    assert torch.equal(z, mu)


def test_unknown_op_is_refused():
    with pytest.raises(ValueError, match="unknown op 'conv3d'"):
        bench.timed_cases(["conv3d"])


def gpu_results():
    def timed(p50, provider, section="layer", **more):
        spread = {"p20": p50 * 0.9, "p50": p50, "p80": p50 * 1.2, "runs": 20, "graph": True}
        where = {"section": section, "what": "64->3@32", "batch": 128, "mode": "forward"}
        return {**where, "provider": provider, **spread, **more}

    gpu = {"name": "A GPU", "capability": "9.0", "memory_gib": 1.0, "multiprocessors": 1}
    wrong = {key: timed(1.0, "cuda")[key] for key in ("section", "what", "batch", "mode")}
    return {
        "facts": {
            "gpus": {"devices": [gpu], "driver": "580"},
            "versions": {"torch": "2.11", "triton": "3.6"},
            "commit": "0123456789abcdef",
        },
        "rows": [
            {"section": "ceilings", "what": "matmul", "rate": 8e14},
            {"section": "ceilings", "what": "copy", "rate": 4e12},
            {"section": "clocks", "what": "after ceilings", "clocks": "1980 MHz, 3201 MHz"},
            timed(20.0, "cudnn", bound=5.0, flop=2e9, kernels=["k", "k"]),
            timed(30.0, "compile", graph=False),
            timed(10.0, "triton", bound=5.0),
            {**wrong, "provider": "cuda", "failed": "WRONG: y is off"},
            {**timed(9.0, "eager"), "what": "net"},
            {**timed(3.0, "cuda"), "what": "net", "note": "partly PyTorch's: no kernel"},
        ],
    }


def test_gpu_report(tmp_path):
    module = load("gpu_report")
    text = module.report(gpu_results())
    assert "800 TFLOP/s, copy 4 TB/s" in text
    assert "after ceilings 1980 MHz, 3201 MHz" in text
    row = "| 64->3@32, 128 images, forward | 20.0 (25%) | 30.0 * | 10.0 (50%) | WRONG |  | 2.00 |"
    assert row in text
    assert "| net, 128 images, forward |  |  |  | 3.0 + | 9.0 |  |" in text
    assert "- net, 128 images, forward, cuda: partly PyTorch's: no kernel" in text
    assert "| 64->3@32, 128, forward | 20.0 (18.0 to 24.0) | 100.0 | k |" in text
    assert "- 64->3@32, 128 images, forward, cuda: WRONG: y is off" in text
    assert module.plot(gpu_results(), tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert not module.plot({"rows": []}, tmp_path / "none.png")


@pytest.fixture
def worker(monkeypatch):
    """The module, where its neighbours are importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load("gpu_worker")


def said(capsys, worker):
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line.removeprefix(worker.MARK)) for line in lines]


def test_a_wrong_kernel_is_never_timed(worker, capsys):
    out = worker.Out([], 0.0, tiny=True)
    out.deadline = float("inf")
    right = torch.randn(100, generator=torch.Generator().manual_seed(0))
    ran = []

    def make(result):
        exact = right.double()
        worker.check({"y": result}, {"y": right + 1e-6}, {"y": exact})
        return worker.Timed(lambda: ran.append(1))

    where = {"section": "op", "what": "probe", "batch": 4, "mode": "forward", "provider": "cuda"}
    for wrong in (right * 1.001, right * float("nan")):
        out.time({**where, "what": str(len(out.done))}, lambda: make(wrong))  # noqa: B023
    begin, row, _, other = said(capsys, worker)
    assert begin == {"begin": {**where, "what": "0"}}
    assert row["row"]["failed"].startswith("WRONG: y is off by 1.0e-03 of its norm")
    assert other["row"]["failed"].startswith("WRONG: y is off by nan")
    assert ran == []
    out.time(where, lambda: make(right))
    assert "p50" in said(capsys, worker)[-1]["row"]
    assert ran
    out.time(where, lambda: make(right))  # it is there already
    assert said(capsys, worker) == []


def test_what_hangs_or_dies_takes_nothing_else_with_it(tmp_path, monkeypatch, capsys, worker):
    """One of three measurements ends its process, and one never returns."""
    bench = load("gpu_bench")
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "rows = json.load(open(sys.argv[1]))['rows']\n"
        "def say(**what): print('" + worker.MARK + "' + json.dumps(what), flush=True)\n"
        "for what in ('dies', 'hangs', 'works'):\n"
        "    if what in [row['what'] for row in rows]: continue\n"
        "    say(begin={'what': what})\n"
        "    if what == 'dies': os._exit(7)\n"
        "    if what == 'hangs': time.sleep(600)\n"
        "    say(row={'what': what, 'p50': 1.0})\n"
    )
    monkeypatch.setattr(bench, "__file__", str(script))
    results = bench.Results(tmp_path / "results.json")
    bench.measure(results, seconds=100, arguments=[], patience=6)
    rows = {row["what"]: row for row in json.loads(results.path.read_text())["rows"]}
    assert rows["dies"]["failed"] == "its process ended with exit code 7"
    assert rows["hangs"]["failed"] == "no result within 6 s"
    assert rows["works"] == {"what": "works", "p50": 1.0}


def test_a_worker_without_results_is_not_started_for_ever(tmp_path, monkeypatch, capsys, worker):
    bench = load("gpu_bench")
    script = tmp_path / "worker.py"
    script.write_text("import sys; sys.exit(9)")
    monkeypatch.setattr(bench, "__file__", str(script))
    bench.measure(bench.Results(tmp_path / "results.json"), 100, [], patience=10)
    assert capsys.readouterr().out.count("exit code 9") == 2


def test_checks_end_at_their_time(capsys):
    check = load("gpu_check")
    job = check.Job("cpu", "leaky_relu", "float32")
    assert check.run_all([job], 1, seconds=60, in_all=0) == 1
    printed = capsys.readouterr().out
    assert "not run: no time was left" in printed
    assert "0 of 1 without a fault" in printed


def test_sanitizer_jobs(monkeypatch, capsys, tmp_path):
    check = load("gpu_check")
    found = check.jobs(["cuda"], ["memcheck"])
    assert {job.dtype for job in found} == {"float32", "bfloat16"}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--tools"])
    assert check.main() == 2
    assert "compute-sanitizer is neither on PATH nor beside nvcc" in capsys.readouterr().out
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert found[0].command()[:5] == [str(tool), "--tool", "memcheck", "--error-exitcode", "1"]


def test_gpu_runner_refuses_without_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_bench.py", tmp_path / "results.json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "no GPU" in done.stderr


def test_a_sample_has_its_percentiles():
    sample = load("gpu_timing").sample(lambda: None, "cpu", 0.01)
    assert 0 <= sample.p20 <= sample.p50 <= sample.p80
    assert sample.runs >= 3
    assert not sample.graph
