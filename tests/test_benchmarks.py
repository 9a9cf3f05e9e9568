"""The benchmarks: what is timed was checked, and the report says what the file says."""

import importlib.util
import json
import os
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
        "| op, case, pass | taken | genimg | eager | triton_channels_last | GFLOP/s | of the bound "
        "| best PyTorch / genimg |"
    )
    assert lines[2] == (
        "| conv a forward | reference | 0.500 | 0.500 | 0.125 (80%) | 2000 | 20% | 1.00 (eager) |"
    )
    assert lines[3] == (
        "| conv b forward | reference | 0.500 | 0.500 |  | 2000 | 20% | 1.00 (eager) |"
    )


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": []}', "[1]"])
def test_report_refuses_other_files(tmp_path, capsys, text):
    results = tmp_path / "results.json"
    results.write_text(text)
    assert load().main([str(results)]) == 2
    assert "report: " in capsys.readouterr().err
    assert load().main([str(tmp_path / "missing.json")]) == 2


def test_one_benchmark_runs(tmp_path):
    """pytest-benchmark on one case, and the report of its file."""
    results = tmp_path / "results.json"
    done = subprocess.run(
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
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    groups = load().load(results)
    assert list(groups) == ["reparam_kl vae_step forward_backward"]
    (rows,) = groups.values()
    assert set(rows) == {"genimg", "eager", "eager_channels_last"}
    assert all(row["ms"] > 0 and row["bound_ms"] > 0 for row in rows.values())


def test_a_wrong_result_has_no_speed():
    case = Case("wrong", "", lambda g: {"x": normal(g, 5)}, lambda op, t: op(t["x"]))
    op = Op("wrong", lambda x, backend=None: x * 1.01, lambda x: x * 1.0, (case,))
    try:
        with pytest.raises(ArithmeticError, match="wrong wrong on reference: .* is off by"):
            bench.measure(op, case)
    finally:
        del OPS["wrong"]


def test_measure_and_render():
    op = OPS["leaky_relu"]
    case = next(case for case in op.cases if case.name == "discriminator_layer")
    timing = bench.measure(op, case, seconds=0.01)
    assert set(timing.milliseconds) == {"genimg", "eager"}
    assert timing.ratio == timing.milliseconds["eager"] / timing.milliseconds["genimg"]
    assert "discriminator_layer" in bench.render([timing])


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
    def timed(section, what, p50, **more):
        spread = {"p20": p50 * 0.9, "p50": p50, "p80": p50 * 1.2, "runs": 20, "graph": True}
        return {"section": section, "what": what, **spread, **more}

    gpu = {"name": "A GPU", "capability": "9.0", "memory_gib": 1.0, "multiprocessors": 1}
    op = {"section": "op", "what": "leaky_relu large", "mode": "forward"}
    return {
        "facts": {
            "gpus": {"devices": [gpu], "driver": "580"},
            "versions": {"torch": "2.11", "triton": "3.6"},
            "commit": "0123456789abcdef",
        },
        "clocks": "1980 MHz, 3201 MHz",
        "rows": [
            timed("ceiling", "matmul", 1000.0, flop=8e11),
            timed("ceiling", "copy", 500.0, bytes=2e9),
            timed(
                "cudnn", "64->3@32", 10.0, mode="forward", batch=128, flop=2e9, kernels=["k", "k"]
            ),
            timed("op", "leaky_relu large", 30.0, mode="forward", provider="eager_channels_last"),
            timed("op", "leaky_relu large", 20.0, mode="forward", provider="compile_channels_last"),
            timed("op", "leaky_relu large", 10.0, mode="forward", provider="triton"),
            {**op, "provider": "cuda", "failed": "WRONG: y is off"},
        ],
    }


def test_gpu_report():
    text = load("gpu_report").report(gpu_results())
    assert "800 TFLOP/s, copy 4.00 TB/s" in text
    assert "| leaky_relu large, forward | 30.0 | 20.0 | 10.0 | WRONG | 2.00 |" in text
    assert "| 64->3@32, 128 | forward | 10.0 (9.0 to 12.0) | 200.0 | 25% | k |" in text
    assert "- leaky_relu large, forward, cuda: WRONG: y is off" in text


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
