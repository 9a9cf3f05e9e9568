"""Options of a run: those that must not change when the run is resumed."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from genimg.train.errors import OptionError
from genimg.train.losses import GAN_LOSSES, RECONSTRUCTIONS
from genimg.train.threads import MOST_THREADS

MODELS = ("gan", "vae")
PRESETS = ("article", "dcgan")
_MOST_PIXELS = 4096  # height and width: a single image of it takes 200 MB as float32
_MOST_VALUES = 2**20  # far more than memory has room for, and no product of them overflows
_MOST_RATE = 1e38  # of float32
CHANGEABLE = (
    "data",
    "steps",
    "lr",
    "threads",
    "snapshot_every",
    "checkpoint_every",
    "stats_every",
)
"""The options that ``--resume`` takes. ``data`` may have moved, but not changed. With another
``lr`` or number of threads the weights are no longer those of the unbroken run."""


@dataclass(frozen=True)
class Options:
    """The options of a run; the names are those of the command line.

    ``width`` and ``latent_dim`` None leave the choice to the preset; ``channels`` None leaves it
    to the data, and ``threads`` None to torch. ``loss`` is the GAN's; ``recon`` and ``beta`` are
    the VAE's.

    Raises:
        OptionError: for a value that has no meaning.
    """

    model: str
    data: str = "digits"
    image_size: int = 32
    channels: int | None = None
    preset: str = "article"
    width: int | None = None
    latent_dim: int | None = None
    batch_size: int = 64
    steps: int = 2000
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    loss: str = "nonsaturating"
    recon: str = "mse"
    beta: float = 1.0
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    snapshot_every: int = 200
    checkpoint_every: int = 500
    stats_every: int = 10

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, wanted: str) -> None:
            if not ok:
                value = getattr(self, name)
                raise OptionError(f"--{name.replace('_', '-')} is {wanted}, not {value}")

        def among(name: str, values: tuple[Any, ...]) -> None:
            need(getattr(self, name) in values, name, f"one of {', '.join(map(str, values))}")

        def whole(name: str, least: int = 1, most: float = math.inf) -> None:
            value = getattr(self, name)
            to = "on" if most == math.inf else f"to {most}"
            ok = isinstance(value, int) and least <= value <= most
            need(ok, name, f"a whole number from {least} {to}")

        among("model", MODELS)
        among("preset", PRESETS)
        among("loss", GAN_LOSSES)
        among("recon", RECONSTRUCTIONS)
        among("device", ("auto", "cpu", "cuda"))
        if self.channels is not None:
            among("channels", (1, 3))
        need(self.data != "", "data", "'digits' or a folder")
        for name, most in (
            ("width", _MOST_VALUES),
            ("latent_dim", _MOST_VALUES),
            ("threads", MOST_THREADS),
        ):
            if getattr(self, name) is not None:
                whole(name, most=most)
        whole("image_size", most=_MOST_PIXELS)
        for name in ("steps", "snapshot_every", "checkpoint_every", "stats_every"):
            whole(name)
        need(self.image_size % 8 == 0, "image_size", "a multiple of 8")
        # Batch norm over a single value would have no variance.
        whole("batch_size", least=2)
        whole("seed", least=0)
        need(self.seed < 2**63, "seed", "below 2**63")
        need(0 < self.lr < _MOST_RATE, "lr", f"above 0 and below {_MOST_RATE:g}")
        need(0 <= self.beta1 < 1, "beta1", "from 0 to below 1")
        need(0 <= self.beta2 < 1, "beta2", "from 0 to below 1")
        need(math.isfinite(self.beta) and self.beta >= 0, "beta", "0 or more")

    def resolved(self) -> Options:
        """With what ``auto`` and None mean on this machine, so that a resumed run has the same.

        Raises:
            OptionError: if the device is not there.
        """
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise OptionError("--device cuda: torch finds no CUDA device here")
        data = self.data if self.data == "digits" else os.path.abspath(self.data)
        threads = self.threads or min(torch.get_num_threads(), MOST_THREADS)
        return dataclasses.replace(self, device=device, data=data, threads=threads)

    def told(self) -> dict[str, Any]:
        """As JSON for a person: without the other model's options."""
        other = ("recon", "beta") if self.model == "gan" else ("loss",)
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in other}

    def changed(self, changes: dict[str, Any]) -> Options:
        """For going on with a run.

        Raises:
            OptionError: if a run cannot go on with that option changed.
        """
        for name, value in changes.items():
            if name not in CHANGEABLE and getattr(self, name) != value:
                raise OptionError(
                    f"--{name.replace('_', '-')} was {getattr(self, name)} when the run began, "
                    "and cannot change"
                )
        return dataclasses.replace(self, **changes)
