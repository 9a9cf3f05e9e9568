"""Files are whole or not there: after a failure, a full disk, or a kill."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genimg.train import files, folder
from genimg.train.errors import FileError


def test_write_goes_to_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    synced, renamed = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or synced(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("rename") or renamed(a, b))
    files.write_whole(tmp_path / "a", b"content")
    assert calls == ["fsync", "rename", "fsync"]  # the file, its name, the folder
    assert (tmp_path / "a").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["a"]


def test_mode_is_that_of_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    files.write_whole(tmp_path / "whole", b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    program = (
        "import resource, sys; from pathlib import Path; from genimg.train import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"files.write_whole(Path({str(path)!r}), bytes(1001))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"FileError: cannot write {path}: File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_overwrites_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_whole(path, b"first", overwrite=False)
    with pytest.raises(FileError, match="exists"):
        files.write_whole(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    files.write_whole(path, b"third")
    assert path.read_bytes() == b"third"
    assert os.listdir(tmp_path) == ["a"]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".genimg-0123456789abcdef.tmp", "a.tmp", ".other-1.tmp", "b.pt"):
        (tmp_path / name).write_bytes(b"")
    files.remove_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".other-1.tmp", "a.tmp", "b.pt"]


def test_held_folder_keeps_others_out(tmp_path: Path) -> None:
    with files.held(tmp_path):
        with pytest.raises(FileError, match="in use by another run"), files.held(tmp_path):
            pass
    with files.held(tmp_path):
        pass


def test_runs_are_numbered(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert folder.create(out, "gan-digits").name == "00001-gan-digits"
    assert folder.create(out, "vae-digits").name == "00002-vae-digits"
    (out / "00041-mine").mkdir()
    (out / "1-not numbered").mkdir()
    assert folder.next_name(out, "vae-cats") == "00042-vae-cats"
    assert folder.create(out, "vae-cats").name == "00042-vae-cats"


def test_runs_that_start_together_get_different_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = threading.Barrier(8)
    choose = folder.next_name

    def slowly(out: Path, name: str) -> str:
        chosen = choose(out, name)
        time.sleep(0.01)
        return chosen

    monkeypatch.setattr(folder, "next_name", slowly)

    def create(i: int) -> str:
        ready.wait()
        return folder.create(tmp_path, f"run{i}").name[:5]

    with ThreadPoolExecutor(8) as pool:
        numbers = sorted(pool.map(create, range(8)))
    assert numbers == [f"{i:05d}" for i in range(1, 9)]


def test_run_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match="cannot make the folder"):
        folder.create(tmp_path / "file" / "runs", "gan")


def test_folder_that_is_not_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # chmod would not keep root out
    with pytest.raises(FileError, match="cannot write to the folder .*: Permission denied"):
        folder.create(tmp_path, "gan")
    assert os.listdir(tmp_path) == []


def test_statistics_go_on_without_the_lines_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    with folder.StatsLog(path) as log:
        for step in (10, 20, 30):
            log.write({"step": step, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # torn by a kill
    with folder.StatsLog(path, step=20) as log:
        log.write({"step": 30, "loss": 0.25})
    assert path.read_text() == (
        '{"step": 10, "loss": 0.5}\n{"step": 20, "loss": 0.5}\n{"step": 30, "loss": 0.25}\n'
    )
