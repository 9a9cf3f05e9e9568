"""The store of measured decisions: files, threads, processes, and what must never be read."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from genimg import decisions as module
from genimg.decisions import BY_TUNE, Decision, DecisionStore, Kind, fastest

CPU = torch.device("cpu")
FAST = fastest({"cpu": 1.0, "reference": 2.0})
SLOW = fastest({"cpu": 3.0, "reference": 2.0})


def test_the_fastest_is_chosen():
    assert FAST.chosen == "cpu"
    assert SLOW.chosen == "reference"


def test_another_store_reads_what_one_has_kept(tmp_path):
    note = Decision("reference", {"cpu": 1.0, "reference": 2.0}, BY_TUNE, "a note")
    store = DecisionStore(tmp_path / "made")
    store.keep(CPU, {Kind("a", 4): FAST})
    store.keep(CPU, {Kind("a", 8): note})
    again = DecisionStore(tmp_path / "made")
    assert again.all(CPU) == {Kind("a", 4): FAST, Kind("a", 8): note}
    assert again.find(CPU, Kind("a", 16)) is None
    stored = json.loads(again.path(CPU).read_text())
    assert stored["for"]["torch"] == torch.__version__


def test_batches_that_agree():
    store = DecisionStore(None)
    assert store.agreed(CPU, "a") is None
    store.keep(CPU, {Kind("a", 4): FAST, Kind("a", 8): FAST, Kind("b", 4): SLOW})
    assert store.agreed(CPU, "a") == FAST
    store.keep(CPU, {Kind("a", 16): SLOW})
    assert store.agreed(CPU, "a") is None


@pytest.mark.parametrize("switch", ["ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"])
def test_another_machine_has_another_file(tmp_path, monkeypatch, switch):
    """A pretended one too: the switches change PyTorch's speed."""
    DecisionStore(tmp_path).keep(CPU, {Kind("a", 4): FAST})
    monkeypatch.setenv(switch, "avx2")
    assert DecisionStore(tmp_path).all(CPU) == {}


def kept(tmp_path):
    store = DecisionStore(tmp_path)
    store.keep(CPU, {Kind("a", 4): FAST})
    return store.path(CPU)


def torn(text):
    return text[: len(text) // 2]


def foreign(text):
    return json.dumps({**json.loads(text), "for": {"torch": "1.0"}})


def other_format(text):
    return json.dumps({**json.loads(text), "format": module.FORMAT + 1})


def unknown_choice(text):
    return text.replace('"chosen": "cpu"', '"chosen": "gone"')


def not_a_number(text):
    return text.replace("1.0", "NaN")


def empty(text):
    return ""


def nested(text):
    return "[" * 100_000


def other_types(text):
    return '{"format": 2, "for": {}, "decisions": {"a": [1]}}'


@pytest.mark.parametrize(
    "damage",
    [torn, foreign, other_format, unknown_choice, not_a_number, empty, nested, other_types],
)
def test_a_file_that_cannot_be_trusted_is_not_read(tmp_path, damage):
    path = kept(tmp_path)
    damaged = damage(path.read_text())
    path.write_text(damaged)
    store = DecisionStore(tmp_path)
    assert store.all(CPU) == {}
    store.keep(CPU, {Kind("b", 4): SLOW})
    assert DecisionStore(tmp_path).all(CPU) == {Kind("b", 4): SLOW}


def test_bytes_that_are_no_text(tmp_path):
    kept(tmp_path).write_bytes(b"\xff\xfe\0")
    assert DecisionStore(tmp_path).all(CPU) == {}


def test_a_write_takes_in_what_another_process_has_written(tmp_path):
    ours, theirs = DecisionStore(tmp_path), DecisionStore(tmp_path)
    assert ours.all(CPU) == theirs.all(CPU) == {}
    theirs.keep(CPU, {Kind("theirs", 4): FAST})
    ours.keep(CPU, {Kind("ours", 4): SLOW})
    assert ours.all(CPU) == {Kind("theirs", 4): FAST, Kind("ours", 4): SLOW}
    assert DecisionStore(tmp_path).all(CPU) == ours.all(CPU)


def test_a_tuned_decision_outlives_one_of_first_calls(tmp_path):
    tuned = Decision("reference", FAST.milliseconds, BY_TUNE)
    ours, theirs = DecisionStore(tmp_path), DecisionStore(tmp_path)
    assert ours.all(CPU) == {}
    theirs.keep(CPU, {Kind("a", 4): tuned})
    ours.keep(CPU, {Kind("a", 4): FAST})
    assert DecisionStore(tmp_path).find(CPU, Kind("a", 4)) == tuned
    # With another kernel in the race it is decided anew.
    new = fastest({"cpu": 1.0, "cuda": 0.5, "reference": 2.0})
    ours.keep(CPU, {Kind("a", 4): new})
    assert DecisionStore(tmp_path).find(CPU, Kind("a", 4)) == new


def test_a_read_only_folder_costs_one_line_and_the_disk(tmp_path, caplog):
    """The tests may run as root, whom no mode stops: a file stands where the folder would."""
    (tmp_path / "file").write_text("")
    store = DecisionStore(tmp_path / "file" / "cache")
    for batch in (4, 8):
        store.keep(CPU, {Kind("a", batch): FAST})
    assert len(store.all(CPU)) == 2
    assert caplog.text.count("not kept") == 1


def test_a_lock_that_is_never_released(tmp_path, monkeypatch):
    """What could not be written goes along with the next decision."""
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.0)
    store = DecisionStore(tmp_path)
    store.keep(CPU, {Kind("first", 4): FAST})
    with module._locked(store.path(CPU).with_suffix(".lock")):
        store.keep(CPU, {Kind("second", 4): FAST})
    assert set(DecisionStore(tmp_path).all(CPU)) == {Kind("first", 4)}
    store.keep(CPU, {Kind("third", 4): FAST})
    assert {kind.call for kind in DecisionStore(tmp_path).all(CPU)} == {"first", "second", "third"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = kept(tmp_path)
    before = path.read_text()

    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", fails)
    DecisionStore(tmp_path).keep(CPU, {Kind("b", 4): SLOW})
    assert path.read_text() == before
    assert sorted(tmp_path.iterdir()) == sorted([path, path.with_suffix(".lock")])


def test_no_home(monkeypatch):
    monkeypatch.delenv("GENIMG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def fails():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module.Path, "home", fails)
    assert module.cache_folder() is None


def test_threads_lose_nothing(tmp_path):
    store = DecisionStore(tmp_path)

    def work(number):
        for batch in range(8):
            store.keep(CPU, {Kind(f"thread {number}", batch): FAST})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(DecisionStore(tmp_path).all(CPU)) == len(store.all(CPU)) == 32


WRITER = """
import sys, pathlib, torch
from genimg.decisions import DecisionStore, Kind, fastest
store = DecisionStore(pathlib.Path(sys.argv[1]))
device = torch.device("cpu")
store.all(device)
print("ready", flush=True)
sys.stdin.read(1)
for batch in range(20):
    store.keep(device, {Kind(sys.argv[2], batch): fastest({"cpu": 1.0, "reference": 2.0})})
"""


def test_processes_lose_nothing_of_each_other(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    names = ["one", "two", "three"]
    pipe = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "env": {**os.environ},
    }
    writers = [subprocess.Popen([*command, name], **pipe) for name in names]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("g", timeout=60)
        assert writer.returncode == 0
    found = DecisionStore(tmp_path).all(CPU)
    assert len(found) == 60
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".lock"]
