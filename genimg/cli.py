"""The command line. Each command imports its modules when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from genimg import __version__, terminal
from genimg.terminal import say
from genimg.train.threads import MOST_THREADS

_MOST_PIXELS = 10**8  # what viewers open, and Pillow without a warning

BUG = (
    "genimg: this is a mistake in genimg; please report it with the traceback below, the command, "
    "and what `genimg info --json` prints"
)

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """GANs and VAEs on genimg's kernels."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs ``genimg`` with these arguments, by default those of the process.

    Returns:
        The exit code: 0; 2 with one line on stderr for an error that the caller can correct; 1 for
        a run without a result, or a wrong result; 128 plus the signal's number for an interrupted
        run, SIGPIPE's if the reader of the output has gone.

    Raises:
        Exception: an internal error of genimg, after a line that says how to report it.
    """
    terminal.escape_what_does_not_fit()
    try:
        result = cli.main(arguments, prog_name="genimg", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except click.ClickException as error:
        return _fail(error.format_message())
    # The reader of our output has gone, as `head` does; of that click makes a SystemExit.
    except (BrokenPipeError, SystemExit):
        return terminal.READER_GONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        code = _report(error)
        if code is None:
            terminal.complain(BUG)
            raise
        return code
    finally:
        terminal.finish()


def _fail(message: str, code: int = 2) -> int:
    text = " ".join(message.split())
    terminal.complain(f"genimg: {text}")
    return code


def _report(error: Exception) -> int | None:
    """Prints an error that the caller can correct; None for an internal error."""
    from torch import OutOfMemoryError

    from genimg.backends import BackendError
    from genimg.train.errors import TrainError

    if isinstance(error, ImportError) and (error.name or "genimg").split(".")[0] != "genimg":
        if isinstance(error, ModuleNotFoundError):
            return _fail(f'this needs {error.name}, which is missing: pip install "genimg[train]"')
        return _fail(f"{error.name} cannot be imported: {error}")
    if isinstance(error, TrainError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, BackendError):
        return _fail(str(error))
    # torch has no class of its own for memory of the CPU.
    memory = isinstance(error, (OutOfMemoryError, MemoryError))
    if memory or "can't allocate memory" in str(error):
        return _fail(f"out of memory: take smaller batches, images or widths ({error})")
    if "can't start new thread" in str(error):
        return _fail("this system does not let genimg start a thread; ulimit -u may say how many")
    return None


def _check_environment() -> None:
    """Refuses variables that would end the command in its middle: they are read at an op's call."""
    from genimg import _native
    from genimg.backends import use_backend

    try:
        with use_backend(os.environ.get("GENIMG_BACKEND") or "auto"):
            pass
    except ValueError as error:
        raise click.UsageError(f"GENIMG_BACKEND: {error}") from error
    build = _native.build_info()
    if "isa" in build and build["isa"] not in build["isas"]:
        raise click.UsageError(build["isa"])  # the complaint about GENIMG_CPU_ISA


class _Named(click.ParamType):
    """A path. An empty one is a variable of a script that is not set, not the current folder."""

    name = "path"

    def convert(self, value: Any, param: Any, context: Any) -> Path:
        if value == "":
            self.fail("an empty path", param, context)
        return Path(value)


class _Data(click.ParamType):
    """``digits``, or a folder."""

    name = "text"

    def convert(self, value: Any, param: Any, context: Any) -> str:
        if value == "":
            self.fail("it is empty; 'digits' or a folder is needed", param, context)
        return str(value)


@cli.group()
def train() -> None:
    """Train a GAN or a VAE."""


def _train_options(command: Command) -> Command:
    """The options that both models share. None stands for a default of `Options`."""
    shared = [
        click.option("--data", type=_Data(), help="'digits' (the default), or a folder of images."),
        click.option("--image-size", type=int, help="Height and width, a multiple of 8.  [32]"),
        click.option("--channels", type=int, help="1 or 3.  [1 for digits, 3 for a folder]"),
        click.option("--preset", help="Topology: article or dcgan.  [article]"),
        click.option("--width", type=int, help="Channels next to the image.  [preset's]"),
        click.option("--latent-dim", type=int, help="Length of a latent vector.  [preset's]"),
        click.option("--batch-size", type=int, help="Images in a step.  [64]"),
        click.option("--steps", type=int, help="How many steps in all.  [2000]"),
        click.option("--epochs", type=click.IntRange(min=1), help="Instead of --steps."),
        click.option("--lr", type=float, help="Adam's learning rate.  [0.0002]"),
        click.option("--beta1", type=float, help="Adam's first beta.  [0.5]"),
        click.option("--beta2", type=float, help="Adam's second beta.  [0.999]"),
        click.option("--seed", type=int, help="The same seed gives the same run.  [0]"),
        click.option("--device", help="auto, cpu or cuda.  [auto]"),
        click.option("--threads", type=click.IntRange(1, MOST_THREADS),
                     help="Of the CPU.  [as many as torch takes]"),
        click.option("--snapshot-every", type=int, help="Steps between sample grids.  [200]"),
        click.option("--checkpoint-every", type=int, help="Steps between checkpoints.  [500]"),
        click.option("--stats-every", type=int, help="Steps between lines of statistics.  [10]"),
        click.option("--out", type=_Named(), default=Path("runs"), show_default=True,
                     help="Where the numbered run folder is made."),
        click.option("--resume", type=_Named(), metavar="RUN",
                     help="Go on with this run, to the weights of an unbroken one."),
        click.option("--dry-run", is_flag=True, help="Check everything and write nothing."),
    ]  # fmt: skip
    for option in reversed(shared):
        command = option(command)
    return command


@train.command("gan")
@click.option("--loss", help="The generator's: nonsaturating or minimax.  [nonsaturating]")
@_train_options
def train_gan(**given: Any) -> None:
    """Train a GAN: per batch a discriminator step, then a generator step."""
    _train("gan", given)


@train.command("vae")
@click.option("--recon", help="Reconstruction loss: mse or bce.  [mse]")
@click.option("--beta", type=float, help="Weight of the KL term.  [1]")
@_train_options
def train_vae(**given: Any) -> None:
    """Train a VAE by its negative ELBO."""
    _train("vae", given)


def _train(model: str, given: dict[str, Any]) -> None:
    from genimg.train import run as runs
    from genimg.train.options import Options

    out, place = given.pop("out"), given.pop("resume")
    _check_environment()
    how = {"epochs": given.pop("epochs"), "dry_run": given.pop("dry_run"), "say": say}
    asked = {name: value for name, value in given.items() if value is not None}
    if how["epochs"] is not None and "steps" in asked:
        raise click.UsageError("--steps and --epochs exclude each other")
    if place is None:
        runs.start(Options(model, **asked), out, **how)
        return
    if click.get_current_context().get_parameter_source("out") is not ParameterSource.DEFAULT:
        raise click.UsageError("--out and --resume exclude each other: a run stays in its folder")
    runs.resume(place, asked, model=model, **how)


def _picture_options(command: Command) -> Command:
    """The options of commands that write a picture of a model's images."""
    shared = [
        click.argument("model", metavar="MODEL_OR_RUN", type=_Named()),
        # Not required=True: click would miss it before anybody has looked for the model.
        click.option("--out", type=_Named(), help="The PNG file to write.  [required]"),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option("--scale", type=click.IntRange(1, 16), default=1, show_default=True,
                     help="How many pixels high and wide each pixel becomes."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                     show_default=True),
        click.option("--force", is_flag=True, help="Overwrite the file."),
    ]  # fmt: skip
    for option in reversed(shared):
        command = option(command)
    return command


@cli.command()
@click.option(
    "--n", type=click.IntRange(1, 10_000), default=64, show_default=True, help="How many images."
)
@_picture_options
def sample(
    model: Path, out: Path | None, n: int, seed: int, scale: int, device: str, force: bool
) -> None:
    """Draw images from a model file or the model of a run folder."""
    from genimg.train import sampling

    out, network = _open(model, out, device, force)
    _check_size(n, network, scale, "--n")
    _write(out, sampling.draw(network, sampling.latents(n, network, seed)), scale, force)


@cli.command()
@click.option(
    "--rows", type=click.IntRange(1, 100), default=8, show_default=True, help="How many ways."
)
@click.option(
    "--steps", type=click.IntRange(2, 100), default=10, show_default=True, help="Images in a way."
)
@click.option(
    "--path",
    "way",
    type=click.Choice(["spherical", "linear"]),
    default="spherical",
    show_default=True,
    help="Along a sphere, or straight.",
)
@_picture_options
def interpolate(
    model: Path,
    out: Path | None,
    rows: int,
    steps: int,
    way: str,
    seed: int,
    scale: int,
    device: str,
    force: bool,
) -> None:
    """Draw rows of images on the way from one latent vector to another."""
    from genimg.train import sampling

    out, network = _open(model, out, device, force)
    _check_size(rows * steps, network, scale, "--rows, --steps")
    a, b = sampling.latents(2 * rows, network, seed).chunk(2)
    z = sampling.interpolate(a, b, steps, spherical=way == "spherical")
    _write(out, sampling.draw(network, z.flatten(0, 1)), scale, force, columns=steps)


def _open(model: Path, out: Path | None, device: str, force: bool) -> tuple[Path, Any]:
    """Returns the path to write and the model; raises every reason not to write before any work."""
    from genimg.train import checkpoint, files
    from genimg.train.options import Options

    _check_environment()
    found = checkpoint.find_model(model)
    if out is None:
        raise click.UsageError("Missing option '--out', the PNG file to write.")
    if out.suffix.lower() != ".png":
        raise click.UsageError(f"--out is a .png file, not {files.printable(out)}")
    if out.is_dir():
        raise click.UsageError(f"--out is a file, and {files.printable(out)} is a folder")
    if not force:
        files.refuse_existing(out)
    files.check_folder(out.parent)
    on = Options("gan", device=device).resolved().device
    return out, checkpoint.load_model(found, on)


def _check_size(count: int, network: Any, scale: int, options: str) -> None:
    pixels = count * (network.config["image_size"] * scale) ** 2
    if pixels > _MOST_PIXELS:
        raise click.UsageError(
            f"a picture of {pixels:,} pixels is too large: less of {options} or --scale"
        )


def _write(out: Path, made: Any, scale: int, force: bool, columns: int | None = None) -> None:
    from genimg.train import files, images

    files.make_folder(out.parent)
    picture = images.grid(made, columns=columns, scale=scale)
    images.write_png(out, picture, source=images.GENERATED, overwrite=force)
    say(f"{files.printable(out)}: {len(made)} images, {picture.width}x{picture.height}")


@cli.command()
@click.option(
    "--out",
    type=_Named(),
    default=Path("out/demo"),
    show_default=True,
    help="The folder to write to.",
)
def demo(out: Path) -> int:
    """Train a VAE and a GAN on digits, and show every op beside PyTorch's."""
    from genimg import bench as timing
    from genimg.check import devices
    from genimg.train import demo as demonstration
    from genimg.train.errors import NonFiniteError

    _check_environment()
    failed = 0
    try:
        demonstration.run(out, say=say)
    except NonFiniteError as error:  # the ops can be shown all the same
        failed = _fail(str(error), error.exit_code)
    say()
    rows = timing.report(timing.timed_cases(), say, device=devices()[0], seconds=0.5)
    return 1 if failed or rows else 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For programs, and for reports of issues.")
def info(as_json: bool) -> int:
    """Show what was built, what is usable here, and why something is not."""
    from genimg import info as information

    return information.main(["--json"] if as_json else [])


class _Shape(click.ParamType):
    """Sizes, separated by commas."""

    name = "shape"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[int, ...]:
        if not isinstance(value, str):
            return tuple(value)
        sizes = value.split(",")
        if not all(size.strip().isdecimal() and int(size) for size in sizes):
            self.fail(f"{value} is no shape such as 64,3,32,32", param, context)
        return tuple(map(int, sizes))


@cli.command()
@click.argument("models", nargs=-1, metavar="[gan|vae|MODULE:FACTORY]...")
@click.option("--input", "shape", type=_Shape(), help="Its shape, for MODULE:FACTORY.")
@click.option("--eval", "evaluates", is_flag=True, help="The forward pass alone, in eval mode.")
@click.option("--preset", help="Topology: article or dcgan.  [article]")
@click.option("--image-size", type=int, help="Height and width, a multiple of 8.  [32]")
@click.option("--channels", type=int, help="1 or 3.  [1]")
@click.option("--width", type=int, help="Channels next to the image.  [preset's]")
@click.option("--latent-dim", type=int, help="Length of a latent vector.  [preset's]")
@click.option("--batch-size", type=int, help="Images in a step.  [64]")
@click.option("--device", help="auto, cpu or cuda.  [auto]")
@click.option("--threads", type=click.IntRange(1, MOST_THREADS),
              help="Of the CPU.  [as many as torch takes]")  # fmt: skip
def tune(
    models: tuple[str, ...], shape: tuple[int, ...] | None, evaluates: bool, **given: Any
) -> None:
    """Measure on this machine which kernels models run best with; both shipped ones by default.

    What is decided is kept, and later programs follow it. MODULE:FACTORY is a function that returns
    a model, which is converted first.
    """
    from genimg.train import tune as tuning
    from genimg.train.options import Options

    _check_environment()
    asked = {name: value for name, value in given.items() if value is not None}
    options = Options("gan", **asked)
    tuning.report(models or ("gan", "vae"), options, say, shape=shape, training=not evaluates)


def _several(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(name, multiple=True, help=f"{text}; may be given several times.  [all]")


@cli.command()
@_several("--op", "An op to check")
@_several("--backend", "A backend to check")
@click.option("--slow", is_flag=True, help="Also the cases that take gigabytes.")
def check(op: tuple[str, ...], backend: tuple[str, ...], slow: bool) -> int:
    """Run every case of every op on every backend, and print its error beside PyTorch's."""
    from genimg import check as checking

    _check_environment()
    try:
        rows = checking.check(op or None, backend or None, slow=slow)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return 1 if checking.report(rows, say) else 0


@cli.command()
@_several("--op", "An op to time")
@click.option("--forward", is_flag=True, help="The forward pass alone.")
@click.option("--compile", "compiled", is_flag=True, help="Beside torch.compile, too (slow).")
@click.option("--seconds", type=click.FloatRange(0, 3600), default=1.0, show_default=True,
              help="For each case.")  # fmt: skip
def bench(op: tuple[str, ...], forward: bool, compiled: bool, seconds: float) -> int:
    """Time every op beside the best mode of PyTorch, after checking its result."""
    from genimg import bench as timing
    from genimg.check import devices

    _check_environment()
    try:
        cases = timing.timed_cases(op or None)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    providers = [name for name in timing.PROVIDERS if compiled or not name.startswith("compile")]
    failed = timing.report(
        cases,
        say,
        providers=providers,
        device=devices()[0],
        backward=not forward,
        seconds=seconds,
    )
    return 1 if failed else 0
