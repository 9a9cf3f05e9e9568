"""The command line: what it writes, and one clear line for whatever cannot be."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from command_line import TINY, fails, process
from PIL import Image

import genimg
from genimg import cli
from genimg.train import checkpoint
from genimg.train.options import Options


@pytest.fixture(autouse=True)
def _threads():
    """One, for nothing here is large enough for two; the next test has its own again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", params=["gan", "vae"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    out = tmp_path_factory.mktemp("runs")
    threads = torch.get_num_threads()
    assert cli.run(["train", request.param, *TINY, "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out / f"00001-{request.param}-digits"


def test_train_without_a_terminal_prints_plain_lines() -> None:
    done = process("-m", "genimg", "train", "gan", *TINY)
    assert done.returncode == 0, done.stderr
    assert "1,797 images 1x16x16" in done.stdout
    assert "writing to runs/00001-gan-digits" in done.stdout
    lines = done.stderr.splitlines()
    assert [re.sub(r"-?\d\.\d+|\d+ images", "#", line) for line in lines] == [
        f"step {step}/2  loss_d #  loss_g #  d_real #  d_fake #  #/s" for step in (1, 2)
    ]
    assert "\r" not in done.stderr


def test_help_names_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    shown = capsys.readouterr().out
    for command in ("train", "sample", "interpolate", "demo"):
        assert f"  {command} " in shown
    assert cli.run(["--version"]) == 0
    assert genimg.__version__ in capsys.readouterr().out
    assert cli.run(["sample", "--help"]) == 0
    assert "MODEL_OR_RUN" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_help_tells_the_true_defaults(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", model, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    told = dict(re.findall(r"--([a-z0-9-]+) [A-Z](?:(?! --)[^\[])*\[([^\]]+)\]", shown))
    for name, value in Options(model).told().items():
        if name not in ("model", "data") and value is not None:
            assert float_or_text(told[name.replace("_", "-")]) == float_or_text(str(value))


def float_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def test_help_does_not_wait_for_what_it_does_not_need() -> None:
    program = (
        "import sys; from genimg import cli; cli.run(['train', 'gan', '--help'])\n"
        "print(*sorted({'sklearn', 'matplotlib', 'PIL', 'safetensors'} & set(sys.modules)))"
    )
    done = process("-c", program)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--foo", "No such option:? '?--foo"),
        ("--steps x", "Invalid value for '--steps'"),
        ("--steps 0", "--steps is a whole number from 1 on, not 0"),
        ("--epochs 1 --steps 5", "--steps and --epochs exclude each other"),
        ("--image-size 20", "--image-size is a multiple of 8, not 20"),
        ("--batch-size 1798", "a batch of 1798 is larger than the data, 1797 images"),
        ("--preset big", "--preset is one of article, dcgan, not big"),
        ("--device tpu", "--device is one of auto, cpu, cuda, not tpu"),
        ("--data missing", "there is no data folder .*missing"),
        ("--data empty", "the data folder .*empty has no file"),
        ("--data file", "file is a file, and --data takes"),
        ("--out file/runs", "cannot make the folder file/runs: Not a directory"),
        ("--resume missing", "there is no run folder missing"),
        ("--resume empty", "empty has no checkpoint to go on from"),
        ("--resume empty --out there", "--out and --resume exclude each other"),
        ("--width 1000000", "out of memory: take smaller"),
        ("--width 1000000000", "--width is a whole number from 1 to 1048576, not 1000000000"),
        ("--latent-dim 100000000000000000000", "--latent-dim is a whole number from 1 to"),
        ("--image-size 80000000000", "--image-size is a whole number from 1 to 4096, not 8"),
        ("--image-size 4096", "the digits, scans of 8x8 pixels, would take 28.1 GiB"),
        ("--lr 1e39", "--lr is above 0 and below"),
        (
            "--threads 20000",
            r"Invalid value for '--threads': 20000 is not in the range 1<=x<=\d{4}\.",
        ),
        ("--threads 0", "Invalid value for '--threads': 0 is not in the range"),
        ("--threads -1", "Invalid value for '--threads': -1 is not in the range"),
        ("--data=", "Invalid value for '--data': it is empty"),
        ("--out=", "Invalid value for '--out': an empty path"),
        ("--resume=", "Invalid value for '--resume': an empty path"),
        ("--out file/runs --dry-run", "cannot make the folder file/runs: Not a directory"),
        ("extra", "unexpected extra argument"),
    ],
)
def test_train_refuses_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("file").write_text("")
    line = fails(["train", "gan", *TINY, *arguments.split()], capsys)
    assert re.search(message, line), line
    assert sorted(os.listdir()) == ["empty", "file"]
    assert os.listdir("empty") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "finds no CUDA device" in fails(["train", "vae", "--device", "cuda"], capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", ["nonsense", "train", "train autoencoder", "sample"])
def test_incomplete_commands(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(arguments.split(), capsys)


def test_full_disk_ends_a_run_in_one_line() -> None:
    program = (
        "import resource, sys; from genimg import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"sys.exit(cli.run(['train', 'gan', *{TINY}]))"
    )
    done = process("-c", program)
    assert done.returncode == 2
    assert re.fullmatch(r"genimg: cannot write runs/\S+: File too large\n", done.stderr)


def test_resume_from_the_command_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained.name.split("-")[1]
    line = fails(["train", model, "--resume", str(trained)], capsys)
    assert "nothing is left to do" in line
    line = fails(["train", model, "--resume", str(trained), "--seed", "1"], capsys)
    assert "--seed was 0 when the run began" in line
    step = checkpoint.load_newest(trained, pytest.fail)[1]["step"]
    assert cli.run(["train", model, "--resume", str(trained), "--steps", str(step + 1)]) == 0
    assert checkpoint.load_newest(trained, pytest.fail)[1]["step"] == step + 1


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_checkpoints(
    damage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    for path in checkpoint.checkpoints(trained):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        (place / path.name).write_bytes(content if damage == "flip" else content[:-9])
    before = {path: path.read_bytes() for path in place.iterdir()}
    line = fails(["train", "gan", "--resume", str(place), "--steps", "99"], capsys)
    assert line.count("is damaged") == 2
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_sample(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sampled(name: str, *arguments: str) -> bytes:
        assert cli.run(["sample", str(trained), "--out", name, *arguments]) == 0
        return Path(name).read_bytes()

    first = sampled("new/a.png", "--n", "6", "--scale", "2")
    with Image.open("new/a.png") as picture:
        assert picture.size == (3 * 34 + 2, 2 * 34 + 2)
    assert "new/a.png: 6 images, 104x70" in capsys.readouterr().out
    model = str(trained / "model.safetensors")
    again = ["sample", model, "--out", "b.png", "--n", "6", "--scale", "2"]
    assert cli.run(again) == 0
    assert Path("b.png").read_bytes() == first
    assert cli.run([*again, "--seed", "1", "--force"]) == 0
    assert Path("b.png").read_bytes() != first


def test_interpolate(trained: Path) -> None:
    made = {}
    for way in ("spherical", "linear"):
        arguments = f"interpolate {trained} --out {way}.png --rows 2 --steps 5 --path {way}"
        assert cli.run(arguments.split()) == 0
        with Image.open(f"{way}.png") as picture:
            assert picture.size == (5 * 18 + 2, 2 * 18 + 2)
            made[way] = picture.copy()
    first, last = (0, 0, 20, 38), (74, 0, 92, 38)  # the ends of both ways are the same
    for box in (first, last):
        assert made["linear"].crop(box).tobytes() == made["spherical"].crop(box).tobytes()
    assert made["linear"].tobytes() != made["spherical"].tobytes()


def test_pictures_overwrite_only_when_told(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.png").write_text("mine")
    for command in ("sample", "interpolate"):
        line = fails([command, str(trained), "--out", "a.png"], capsys)
        assert line == "genimg: a.png exists: --force overwrites it"
        assert Path("a.png").read_text() == "mine"
    assert cli.run(["sample", str(trained), "--out", "a.png", "--force"]) == 0
    with Image.open("a.png") as picture:
        picture.load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("missing --out a.png", "there is no model file missing"),
        ("empty --out a.png", "there is no model file empty/model.safetensors"),
        ("text --out a.png", "text is damaged, or no safetensors file"),
        ("MODEL --out a.jpg", r"--out is a \.png file, not a\.jpg"),
        ("MODEL --out folder.png", r"--out is a file, and folder\.png is a folder"),
        ("MODEL --out text/a.png", "cannot make the folder text: "),
        ("MODEL --out a.png --n 0", "Invalid value for '--n'"),
        ("MODEL --out a.png --n 10000 --scale 16", "pixels is too large: less of --n or --scale"),
        ("pipe --out a.png", "pipe is not a regular file"),
        ("MODEL --out a.png --seed -1", "Invalid value for '--seed'"),
        ("MODEL", "Missing option '--out'"),
        ("missing", "there is no model file missing"),
        ("missing --out a.jpg", "there is no model file missing"),
        ("MODEL --out=", "Invalid value for '--out': an empty path"),
        ("EMPTY --out a.png", "Invalid value for 'MODEL_OR_RUN': an empty path"),
    ],
)
def test_sample_refuses_in_one_line(
    arguments: str, message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("folder.png").mkdir()
    Path("text").write_text("no model")
    os.mkfifo("pipe")
    given = arguments.replace("MODEL", str(trained)).split()
    given = ["" if word == "EMPTY" else word for word in given]
    assert re.search(message, fails(["sample", *given], capsys))
    assert sorted(os.listdir()) == ["empty", "folder.png", "pipe", "text"]


def test_demo_in_a_folder_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "cannot make the folder file/demo" in fails(["demo", "--out", "file/demo"], capsys)


def test_without_the_train_extra() -> None:
    program = (
        "import sys, types; sys.modules['click'] = None; sys.argv[0] = 'genimg'\n"
        "info = types.ModuleType('genimg.info'); info.main = lambda argv: print(argv) or 0\n"
        "import genimg; sys.modules['genimg.info'] = genimg.info = info\n"
        "from genimg.__main__ import main; sys.exit(main())"
    )
    done = process("-c", program, "info", "--json")
    assert (done.returncode, done.stdout) == (0, "['--json']\n"), done.stderr
    done = process("-c", program, "train", "gan")
    assert done.returncode == 2
    assert done.stderr == 'genimg: this needs more packages: pip install "genimg[train]"\n'


def test_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    line = fails(["train", "gan", *TINY], capsys)
    assert line == (
        'genimg: this needs sklearn.datasets, which is missing: pip install "genimg[train]"'
    )


def test_info_check_bench(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["info"]) == 0
    assert "genimg" in capfd.readouterr().out
    assert cli.run(["info", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["versions"]["genimg"]
    assert cli.run(["check", "--op", "leaky_relu", "--backend", "reference"]) == 0
    assert re.search(r"^\d+ passed, 0 failed$", capfd.readouterr().out, re.M)
    assert cli.run(["bench", "--op", "reparam_kl", "--forward", "--seconds", "0"]) == 0
    assert "vae_step" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check --op conv3d", "unknown op 'conv3d'; there are batch_norm_act"),
        ("check --backend gpu", "unknown backend 'gpu'; there are cuda"),
        ("bench --op conv3d", "unknown op 'conv3d'"),
        ("bench --seconds -1", "not in the range"),
        ("info --yaml", "No such option"),
    ],
)
def test_their_errors(capfd: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    assert cli.run(arguments.split()) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
