"""A run: from its options, or from where it stopped, to its last step."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg.models import gan, vae
from genimg.train import checkpoint, choice, folder
from genimg.train.data import Images, Order, open_images
from genimg.train.errors import (
    CheckpointError,
    DataError,
    InterruptedRunError,
    NonFiniteError,
    OptionError,
)
from genimg.train.files import check_folder, held, printable, reason, remove_stale
from genimg.train.gan import GANTrainer
from genimg.train.images import GENERATED, grid, write_png
from genimg.train.interrupt import Interrupt
from genimg.train.options import Options
from genimg.train.progress import Progress
from genimg.train.sampling import latents, seed_for
from genimg.train.threads import start_threads
from genimg.train.vae import VAETrainer

Say = Callable[[str], None]
_SHOWN = 64  # images in a grid
_NAMED = 10  # skipped files named on the terminal; options.json names all


def start(
    options: Options,
    out: Path,
    *,
    epochs: int | None = None,
    dry_run: bool = False,
    say: Say = print,
) -> Path | None:
    """Trains in a new numbered folder.

    Args:
        options: of the run.
        out: where the folder is made.
        epochs: overrides ``options.steps``: as many whole epochs.
        dry_run: only say what would be done.
        say: is told what a person wants to know.

    Returns:
        The folder; None for a dry run.

    Raises:
        TrainError: one of `genimg.train.errors`.
    """
    check_folder(out)
    run = Run(options, say=say)
    if epochs is not None:
        steps = epochs * run.order.batches
        run.options = dataclasses.replace(run.options, steps=steps)
    run.describe(say)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{options.model}-{run.images.name}")
    if dry_run:
        say(f"dry run: would train in {printable(out / folder.next_name(out, name))}")
        return None
    place = folder.create(out, name)
    with held(place), Interrupt() as interrupt:
        with interrupt.writing():
            say(f"writing to {printable(place)}")
            if choice.measures():
                say("before the first step: measuring the kernels that are new to this machine")
        run.write_options(place)
        with choice.decided(trial_step(run.options, run.images), run.options.device) as decisions:
            choice.record(place, decisions, run.options.device)
            run.train(place, interrupt)
    return place


def resume(
    place: Path,
    changes: dict[str, Any],
    *,
    model: str,
    epochs: int | None = None,
    dry_run: bool = False,
    say: Say = print,
) -> Path | None:
    """Goes on with the run in a folder, from its newest good checkpoint.

    Args:
        place: the run's folder.
        changes: options that get other values; `genimg.train.options.CHANGEABLE` can.
        model: what the caller takes the run for.
        epochs: overrides the number of steps.
        dry_run: only say what would be done.
        say: is told what a person wants to know.

    Returns:
        The folder; None for a dry run.

    Raises:
        TrainError: one of `genimg.train.errors`.
    """
    if not place.is_dir():
        raise CheckpointError(f"there is no run folder {printable(place)}")
    lock: AbstractContextManager[None] = nullcontext() if dry_run else held(place)
    with lock:
        if not dry_run:
            remove_stale(place)
        path, state = checkpoint.load_newest(place, say)
        try:
            options = Options(**state["options"])
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{printable(path)} is of another version of genimg") from error
        if options.model != model:
            raise OptionError(f"{printable(place)} is a run of a {options.model}, not of a {model}")
        run = Run(options.changed(changes), say=say)
        if epochs is not None:
            steps = epochs * run.order.batches
            run.options = dataclasses.replace(run.options, steps=steps)
        run.restore(path, state)
        if run.step >= run.options.steps:
            raise OptionError(
                f"{printable(place)} is at step {run.step} of {run.options.steps}: "
                "nothing is left to do, unless --steps asks for more"
            )
        run.describe(say)
        if dry_run:
            say(f"dry run: would go on in {printable(place)}")
            return None
        with Interrupt() as interrupt:
            run.write_options(place)
            with choice.holding(choice.recorded(place), run.options.device):
                run.train(place, interrupt)
    return place


def build_trainer(options: Options) -> GANTrainer | VAETrainer:
    """Fresh networks on the options' device, with the trainer around them.

    The global random state is left at where the weights' initialisation left it.

    Raises:
        OptionError: if there is no such model.
    """
    shape: dict[str, Any] = {
        "image_size": options.image_size,
        "channels": options.channels,
        "width": options.width,
    }
    how: dict[str, Any] = {
        "lr": options.lr,
        "betas": (options.beta1, options.beta2),
        "seed": seed_for(options.seed, "noise"),
    }
    torch.manual_seed(seed_for(options.seed, "weights"))
    try:
        if options.model == "gan":
            generator = gan.Generator(options.preset, latent_dim=options.latent_dim, **shape)
            discriminator = gan.Discriminator(options.preset, **shape)
            generator, discriminator = (
                generator.to(options.device),
                discriminator.to(options.device),
            )
            return GANTrainer(generator, discriminator, loss=options.loss, **how)
        model = vae.VAE(options.preset, latent_dim=options.latent_dim, **shape).to(options.device)
        return VAETrainer(model, recon=options.recon, beta=options.beta, **how)
    except ValueError as error:
        raise OptionError(str(error)) from error


def trial_step(options: Options, images: Images) -> Callable[[], Any]:
    """A training step of other networks of the same shapes, on images of noise."""
    shape = (options.batch_size, images.channels, images.size, images.size)
    made: list[GANTrainer | VAETrainer] = []

    def step() -> Any:
        if not made:
            made.append(build_trainer(options))
        return made[0].step(torch.rand(shape, device=options.device) * 2 - 1)

    return step


class Means:
    """Means of what the steps reported, over the steps since the last line."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: dict[str, float]) -> None:
        """Takes in a step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means; what follows begins anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Run:
    """Data, networks and where the run stands.

    Args:
        options: as they were asked for.
        say: is told which files were skipped.
    """

    def __init__(self, options: Options, *, say: Say = print) -> None:
        options = options.resolved()
        start_threads(options.threads or 1)
        self.images = open_images(options.data, size=options.image_size, channels=options.channels)
        _tell_skipped(self.images, say)
        order_seed = seed_for(options.seed, "order")
        self.order = Order(len(self.images), options.batch_size, order_seed)
        self.options = dataclasses.replace(options, channels=self.images.channels)
        self.trainer = build_trainer(self.options)
        self.step = 0
        self._means = Means()
        self._pending: list[dict[str, Tensor]] = []
        self._latest: dict[str, float] = {}
        self._saved: Path | None = None
        # Reading a loss from a GPU waits for it: there, only when something is due.
        self._read_every_step = options.device == "cpu"

    def describe(self, say: Say) -> None:
        """Says what is about to be trained, and on what."""
        options, images = self.options, self.images
        weights = sum(p.numel() for p in self.trainer.model.parameters())
        held_in = "in memory" if images.in_memory else "read when needed"
        say(
            f"{options.model} ({options.preset}, {weights:,} weights in the saved model), "
            f"{len(images):,} images {images.channels}x{images.size}x{images.size} {held_in}, "
            f"batches of {options.batch_size}, steps {self.step} to {options.steps}, "
            f"{options.device}, threads {options.threads}, seed {options.seed}"
        )

    def write_options(self, place: Path) -> None:
        """Writes ``options.json``."""
        data = {
            "images": len(self.images),
            "sha256": self.images.fingerprint,
            "skipped": [dataclasses.asdict(s) for s in self.images.skipped],
        }
        about = {
            "options": self.options.told(),
            "config": self.trainer.model.config,
            "data": data,
            "torch": torch.__version__,
        }
        folder.write_json(place / folder.OPTIONS_FILE, about)

    def state_dict(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "options": dataclasses.asdict(self.options),
            "data": self.images.fingerprint,
            "trainer": self.trainer.state_dict(),
            "order": self.order.state_dict(),
            "means": {"sums": self._means.sums, "count": self._means.count},
            # Noise and order have generators of their own; a layer such as dropout uses these.
            "rng": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if self.options.device == "cuda" else None,
            },
        }

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Goes to where the run stood that wrote the checkpoint.

        Raises:
            DataError: if the data are not what they were.
            CheckpointError: if it is one of other networks.
        """
        if state["data"] != self.images.fingerprint:
            raise DataError(
                f"the images in {printable(self.options.data)} are not those that the run began "
                "with: it cannot go on"
            )
        try:
            self.trainer.load_state_dict(state["trainer"])
            self.order.load_state_dict(state["order"])
            self._means.sums = dict(state["means"]["sums"])
            self._means.count = state["means"]["count"]
            torch.set_rng_state(state["rng"]["torch"])
            if self.options.device == "cuda":
                torch.cuda.set_rng_state(state["rng"]["cuda"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            text = f"{printable(path)} is of another version of genimg: {reason(error)}"
            raise CheckpointError(text) from error
        self.trainer.set_lr(self.options.lr)
        self.step = state["step"]
        self._saved = path

    def train(self, place: Path, interrupt: Interrupt) -> None:
        """Takes the steps that are left, and leaves in ``place`` what there is to keep.

        Args:
            place: the run's folder.
            interrupt: says after which step to stop.

        Raises:
            InterruptedRunError: after a signal, or where nobody reads the output any more; a
                checkpoint of the last step is there.
            NonFiniteError: for a loss or weight that is not finite.
            FileError: if something cannot be written.
        """
        options = self.options
        z = latents(_SHOWN, self.trainer.model, options.seed)
        reals = self.images.batch(torch.arange(min(len(self.images), _SHOWN)))
        progress = Progress(options.steps, initial=self.step, batch_size=options.batch_size)
        log = folder.StatsLog(place / "stats.jsonl", step=self.step)
        with log, progress:
            if self.step == 0:
                write_png(place / "reals.png", grid(reals))
                self._snapshot(place, z, reals)
                self._save(place, log)
            since, then = self.step, time.monotonic()
            while self.step < options.steps:
                x = self.images.batch(self.order.next()).to(options.device)
                self._pending.append(self.trainer.step(x))
                self.step += 1
                stopped = interrupt.signal  # read once: it may come at any time
                last = self.step == options.steps or stopped is not None
                line = self.step % options.stats_every == 0 or self.step == options.steps
                show = self.step % options.snapshot_every == 0 or last
                save = self.step % options.checkpoint_every == 0 or last
                if self._read_every_step or line or show or save:
                    self._read_losses()
                    with interrupt.writing():
                        progress.update(self.step, self._latest)
                if line:
                    now = time.monotonic()
                    rate = (self.step - since) * options.batch_size / max(now - then, 1e-9)
                    means = self._means.take()
                    at = {"step": self.step, "epoch": self.order.epoch}
                    log.write({**at, **means, "images_per_s": round(rate, 1), "time": time.time()})
                    since, then = self.step, now
                if show:
                    self._snapshot(place, z, reals)
                if save:
                    self._save(place, log)
                if stopped is not None and self.step < options.steps:
                    raise InterruptedRunError(
                        f"interrupted at step {self.step}, which is saved; go on with: genimg "
                        f"train {options.model} --resume {shlex.quote(printable(place))}",
                        stopped,
                    )

    def _read_losses(self) -> None:
        """Brings the losses of the last steps from the device, and stops at one that is no number.

        Raises:
            NonFiniteError: with the step, the loss, and the last good checkpoint.
        """
        if not self._pending:
            return
        names = list(self._pending[0])
        rows = torch.stack([torch.stack(list(p.values())) for p in self._pending]).tolist()
        first = self.step - len(rows) + 1
        self._pending.clear()
        for step, row in enumerate(rows, first):
            values = dict(zip(names, row, strict=True))
            for name, value in values.items():
                if not math.isfinite(value):
                    self._stop(f"{name} is {value} at step {step}")
            self._means.add(values)
            self._latest = values

    def _stop(self, what: str) -> None:
        kept = (
            f"last good checkpoint: {printable(self._saved)}"
            if self._saved
            else "no checkpoint yet"
        )
        raise NonFiniteError(f"{what}: the run stops; {kept}; a smaller --lr may help")

    def _snapshot(self, place: Path, z: Tensor, reals: Tensor) -> None:
        for name, images in self.trainer.pictures(z, reals).items():
            write_png(place / f"{name}{self.step:05d}.png", grid(images), source=GENERATED)

    def _save(self, place: Path, log: folder.StatsLog) -> None:
        """Writes a checkpoint, unless its weights would be no use.

        A last step may overflow the weights while its loss was still finite.
        """
        for network, tensors in self.trainer.networks().items():
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    self._stop(f"{network}.{name} is not finite after step {self.step}")
        log.sync()
        self._saved = checkpoint.save(place, self.step, self.state_dict())
        checkpoint.save_model(place / checkpoint.MODEL_FILE, self.trainer.model)


def _tell_skipped(images: Images, say: Say) -> None:
    if not images.skipped:
        return
    files = len(images.skipped) + len(images)
    say(f"skipped {len(images.skipped)} of {files} files, which are no usable images:")
    for skipped in images.skipped[:_NAMED]:
        say(f"  {skipped.file}: {skipped.reason}")
    if len(images.skipped) > _NAMED:
        say(f"  and {len(images.skipped) - _NAMED} more, all of them in options.json")
