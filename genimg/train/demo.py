"""Demonstrates genimg in three minutes on two CPU cores: a VAE and a GAN learn to draw digits.

Training runs for a number of steps, not seconds, on one thread, so that the same seed gives the
same pictures on any number of cores. Layers this small gain little from a second thread, and become
ten times slower where another program uses its core: the threads synchronise after every layer.
"""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from genimg.train import checkpoint, choice
from genimg.train.data import Images, Order, open_images
from genimg.train.errors import NonFiniteError
from genimg.train.files import held, make_folder, printable, remove_stale, write_whole
from genimg.train.gan import GANTrainer
from genimg.train.images import COMPOSITE, SOFTWARE, Block, sheet, write_png
from genimg.train.options import Options
from genimg.train.progress import Progress
from genimg.train.run import build_trainer, trial_step
from genimg.train.sampling import draw, interpolate, latents, seed_for
from genimg.train.vae import VAETrainer

# Half the presets' width, small batches and a larger learning rate than the article's 2e-4 make the
# most of a minute. With beta 4 the samples come closer to the digits, and the reconstructions move
# a little away from theirs.
VAE = Options(
    "vae", width=32, latent_dim=16, batch_size=32, steps=1300, lr=1e-3, beta=4.0, threads=1
)
GAN = Options("gan", width=32, latent_dim=64, batch_size=32, steps=1500, lr=5e-4, threads=1)

_COLUMNS = 16
_ROWS = 6
_SMOOTH = 25  # steps in a running mean of the plot


@dataclass
class _Trained:
    trainer: GANTrainer | VAETrainer
    history: dict[str, list[float]] = field(default_factory=dict)


def run(
    out: Path, *, vae: Options = VAE, gan: Options = GAN, say: Callable[[str], None] = print
) -> list[Path]:
    """Trains both models on the digits and writes pictures of them.

    Args:
        out: the folder to write to; files of an earlier demo in it are replaced, no others.
        vae: how to train the VAE.
        gan: how to train the GAN.
        say: is told what happens.

    Returns:
        The files written.

    Raises:
        TrainError: one of `genimg.train.errors`.
    """
    make_folder(out)
    threads = torch.get_num_threads()
    try:
        with held(out):
            remove_stale(out)
            return _run(out, vae, gan, say)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, vae: Options, gan: Options, say: Callable[[str], None]) -> list[Path]:
    began = time.monotonic()
    files = {name: out / name for name in ("vae.png", "gan.png", "losses.png")}
    models = {name: out / f"{name}.safetensors" for name in ("vae", "gan")}
    images = open_images("digits", size=vae.image_size)
    digits = f"{len(images):,} scanned digits of scikit-learn at {images.size}x{images.size}"

    say(f"VAE: {_recipe(vae)}, beta {vae.beta:g}; {digits}")
    learned = _train(vae, images)
    checkpoint.save_model(models["vae"], learned.trainer.model)
    _draw_vae(files["vae.png"], learned.trainer, images)

    say(f"GAN: {_recipe(gan)}; the same digits")
    played = _train(gan, images)
    checkpoint.save_model(models["gan"], played.trainer.model)
    _draw_gan(files["gan.png"], played.trainer, images)

    _plot(files["losses.png"], learned.history, played.history)
    written = [*files.values(), *models.values()]
    seconds = time.monotonic() - began
    say(f"{seconds:.0f} s; wrote {', '.join(map(printable, written))}")
    say(
        f"more digits: genimg sample {printable(models['gan'])} --out {printable(out / 'more.png')}"
    )
    return written


def _recipe(options: Options) -> str:
    return (
        f"preset {options.preset}, width {options.width}, {options.steps} steps of "
        f"{options.batch_size} images, lr {options.lr:g}"
    )


def _train(options: Options, images: Images) -> _Trained:
    options = dataclasses.replace(options.resolved(), channels=images.channels)
    torch.set_num_threads(options.threads or 1)
    order = Order(len(images), options.batch_size, seed_for(options.seed, "order"))
    result = _Trained(build_trainer(options))
    with choice.decided(trial_step(options, images), options.device):
        return _steps(options, images, order, result)


def _steps(options: Options, images: Images, order: Order, result: _Trained) -> _Trained:
    with Progress(options.steps, batch_size=options.batch_size, label=options.model) as progress:
        for step in range(1, options.steps + 1):
            x = images.batch(order.next()).to(options.device)
            values = {name: float(v) for name, v in result.trainer.step(x).items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise NonFiniteError(f"{options.model}: {name} is {value} at step {step}")
                result.history.setdefault(name, []).append(value)
            progress.update(step, values)
    return result


def _draw_vae(path: Path, trainer: GANTrainer | VAETrainer, images: Images) -> None:
    x = images.batch(torch.arange(2 * _COLUMNS))
    z = latents(3 * _COLUMNS, trainer.model, 0)
    made = trainer.pictures(z, x)
    picture = sheet(
        [
            Block("inputs", x, _COLUMNS),
            Block("reconstructions", made["recons"], _COLUMNS),
            Block("samples from N(0, 1)", made["fakes"], _COLUMNS),
        ]
    )
    write_png(path, picture, source=COMPOSITE)


def _draw_gan(path: Path, trainer: GANTrainer | VAETrainer, images: Images) -> None:
    z = latents(_ROWS * _COLUMNS, trainer.model, 0)
    a, b = latents(4, trainer.model, 1).chunk(2)
    ways = interpolate(a, b, _COLUMNS).flatten(0, 1)
    picture = sheet(
        [
            Block("digits of the data", images.batch(torch.arange(_COLUMNS)), _COLUMNS),
            Block("samples of the generator", draw(trainer.model, z), _COLUMNS),
            Block("interpolations", draw(trainer.model, ways), _COLUMNS),
        ]
    )
    write_png(path, picture, source=COMPOSITE)


def _plot(path: Path, vae: dict[str, list[float]], gan: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    played = {k: v for k, v in gan.items() if k.startswith("loss")}
    chances = {k: v for k, v in gan.items() if not k.startswith("loss")}
    titles = "VAE: negative ELBO, per image", "GAN: losses", "GAN: mean D of images and fakes"
    for panel, title, curves in zip(panels, titles, (vae, played, chances), strict=True):
        for name, values in curves.items():
            window = min(_SMOOTH, len(values))
            smooth = torch.tensor(values).unfold(0, window, 1).mean(1)
            (line,) = panel.plot(range(window, len(values) + 1), smooth, label=name)
            panel.plot(range(1, len(values) + 1), values, color=line.get_color(), alpha=0.15)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        panel.legend(fontsize=8)
    panels[0].set_yscale("log")
    panels[2].set_ylim(0, 1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": SOFTWARE})
    write_whole(path, buffer.getvalue())
