"""The command line where something fails: a result, the machine, a stream, genimg itself."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from command_line import TINY, fails, process
from PIL import Image

from genimg import cli


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wrong_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cases to time: a result that is wrong, one that ends in an exception, a good one."""
    from genimg import bench
    from genimg.backends import OPS, Op
    from genimg.testing import Case, normal

    def off(x: torch.Tensor, backend: str | None = None) -> torch.Tensor:
        return x * 1.01

    def broken(x: torch.Tensor, backend: str | None = None) -> torch.Tensor:
        raise AssertionError("a kernel\nfell over")

    def good(x: torch.Tensor, backend: str | None = None) -> torch.Tensor:
        return x * 1.0

    case = Case("case", "", lambda g: {"x": normal(g, 5)}, lambda op, t: op(t["x"]))
    monkeypatch.setattr("genimg.backends.OPS", dict(OPS))  # Op() enters itself there
    ops = [
        Op(f.__name__, f, lambda x: x * 1.0, (case,), work=lambda *_: [])
        for f in (off, broken, good)
    ]
    monkeypatch.setattr("genimg.check.selected", lambda *_: "reference")
    monkeypatch.setattr(bench, "selected", lambda *_: "reference")
    monkeypatch.setattr(bench, "timed_cases", lambda *_: [(op, case) for op in ops])


@pytest.mark.parametrize("command", [["demo"], ["bench", "--seconds", "0"]])
def test_a_wrong_result_costs_no_other_its_row(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from genimg.train import demo

    wrong_cases(monkeypatch)
    monkeypatch.setattr(demo, "run", lambda out, say: say(f"pictures in {out}"))
    assert cli.run(command) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if " case " in line}
    assert rows["off"][2:6] == ["reference", "-", "-", "WRONG"]
    assert rows["off"][6] == "1.0e-02"
    assert rows["broken"][2:] == ["reference", "-", "-", "FAILED", "-", "-", "-"]
    assert rows["good"][7].endswith("x")
    closing = [line for line in lines if line.startswith("FAILED: ")]
    assert re.match("FAILED: off case on reference: (y|grad_x) is off by .*, .*", closing[0])
    assert closing[1:] == [
        "FAILED: broken case on reference: the check ended in AssertionError: a kernel"
    ]
    assert lines[-1].startswith("2 of 3 cases failed; to report them, attach ")


def test_demo_ends_with_the_table_of_ops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from genimg import bench
    from genimg.train import demo
    from genimg.train.errors import NonFiniteError

    wrong_cases(monkeypatch)
    good = bench.timed_cases()[2:]
    monkeypatch.setattr(bench, "timed_cases", lambda: good)
    monkeypatch.setattr(demo, "run", lambda out, say: say(f"pictures in {out}"))
    assert cli.run(["demo", "--out", "there"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pictures in there\n\nop  ")
    assert re.search(r"^good +case .*x", shown, re.M)

    def diverges(out: Path, say: object) -> None:
        raise NonFiniteError("vae: loss is nan at step 2")

    monkeypatch.setattr(demo, "run", diverges)
    assert cli.run(["demo"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "genimg: vae: loss is nan at step 2\n"
    assert re.search(r"^good +case .*x", shown.out, re.M)


@pytest.mark.parametrize("mistake", [RuntimeError("a bug"), ImportError("a bug", name="genimg.x")])
def test_mistakes_of_our_own_keep_their_traceback(
    mistake: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from genimg.train import run

    def broken(*_: object, **__: object) -> None:
        raise mistake

    monkeypatch.setattr(run, "start", broken)
    with pytest.raises(type(mistake), match="a bug"):
        cli.run(["train", "gan"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "report it with the traceback below" in line
    assert "`genimg info --json`" in line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("3 TiB"), "out of memory: take smaller"),
        (RuntimeError("can't start new thread"), "does not let genimg start a thread"),
        (ImportError("libx.so: no", name="sklearn.x"), "sklearn.x cannot be imported: libx.so"),
    ],
)
def test_what_the_machine_lacks_is_no_mistake_of_ours(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from genimg.train import run

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run, "start", broken)
    assert message in fails(["train", "gan"], capsys)


@pytest.mark.parametrize(
    "command",
    ["train gan --dry-run", "sample missing", "interpolate missing", "check", "bench", "demo"],
)
def test_variables_that_name_nothing_are_refused_before_the_work(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from genimg import _native

    monkeypatch.setenv("GENIMG_BACKEND", "tpu")
    assert "GENIMG_BACKEND: unknown backend 'tpu'" in fails(command.split(), capsys)
    monkeypatch.delenv("GENIMG_BACKEND")
    complaint = "GENIMG_CPU_ISA=sse is not available"
    monkeypatch.setattr(_native, "build_info", lambda: {"isas": ["avx2"], "isa": complaint})
    assert fails(command.split(), capsys) == f"genimg: {complaint}"


def test_streams_that_are_closed_full_or_not_read() -> None:
    """Streams as the shell makes them: `>&-`, `2>&-`, `>/dev/full`, `| true`."""
    program = (
        "import os, sys; from genimg import cli\n"
        "assert cli.run(['--version']) == 0\n"
        "out, err = sys.stdout, sys.stderr\n"
        "sys.stdout = None; assert cli.run(['--version']) == 0\n"
        "sys.stderr = None; assert cli.run(['nonsense']) == 2\n"
        "sys.stdout, sys.stderr = out, err\n"
        "gone, pipe = os.pipe(); os.close(gone)\n"
        "full = os.open('/dev/full', os.O_WRONLY)\n"
        "os.dup2(full, 1); assert cli.run(['info']) == 2\n"
        "os.dup2(pipe, 1); assert cli.run(['info']) == 141\n"
        "os.dup2(pipe, 1); assert cli.run(['--help']) == 141\n"
        "os.dup2(pipe, 2); assert cli.run(['nonsense']) == 2\n"
    )
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    done = process("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "genimg: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_outside_the_encoding_are_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (i * 30, 0, 0)).save(photos / f"{i}.png")
    (photos / "\u4e2d.txt").write_text("")
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    errors = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", errors)
    assert cli.run(["train", "gan", *TINY, "--data", str(photos), "--dry-run"]) == 0
    assert b"  \\u4e2d.txt: empty file\n" in shown.buffer.getvalue()  # type: ignore[attr-defined]
    assert cli.run(["sample", "\u4e2d\udcff", "--out", "a.png"]) == 2
    assert b"no model file \\u4e2d\\xff\n" in errors.buffer.getvalue()  # type: ignore[attr-defined]
    assert cli.run(["--\udcff"]) == 2
