"""``genimg tune``: the shipped models and a user's own, decided from the shell."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genimg import tuning
from genimg.model_tuning import TuneReport, tune
from genimg.nn import convert
from genimg.train.errors import OptionError
from genimg.train.gan import GANTrainer
from genimg.train.options import MODELS, Options
from genimg.train.run import build_trainer
from genimg.train.sampling import latents
from genimg.train.threads import start_threads


def targets(
    name: str, options: Options, shape: Sequence[int] | None, training: bool
) -> Iterator[tuple[str, torch.nn.Module, Tensor]]:
    """Name, model and input of each model that is to be tuned.

    Args:
        name: ``gan``, ``vae``, or ``MODULE:FACTORY``, a function that returns a model.
        options: of a shipped model; of the others, batch size and device.
        shape: of the input of a model of one's own.
        training: with the gradients of all parameters.

    Raises:
        OptionError: there is no such model, or no shape.
    """
    if name in MODELS:
        if shape is not None:
            raise OptionError("--input belongs to MODULE:FACTORY; the shipped models have options")
        yield from _shipped(replace(options, model=name), training)
        return
    if ":" not in name:
        known = ", ".join((*MODELS, "MODULE:FACTORY"))
        raise OptionError(f"there is no model {name}; there are {known}")
    if shape is None:
        raise OptionError(f"{name} needs --input, such as --input 64,3,32,32")
    model = _made(name).to(options.device).train(training)
    convert(model)
    yield name, model, torch.randn(*shape, device=options.device)


def _shipped(options: Options, training: bool) -> Iterator[tuple[str, torch.nn.Module, Tensor]]:
    trainer = build_trainer(options)
    side = options.image_size
    x = torch.rand(options.batch_size, options.channels or 1, side, side, device=options.device)
    x = x * 2 - 1
    if training:  # in a step an image may want a gradient, or a network's weights none
        tuning.decide(lambda: trainer.step(x))
    if not isinstance(trainer, GANTrainer):
        yield "VAE", trainer.vae.train(training), x
        return
    z = latents(options.batch_size, trainer.generator, options.seed)
    yield "generator", trainer.generator.train(training), z.to(options.device)
    yield "discriminator", trainer.discriminator.train(training), x


def _made(name: str) -> torch.nn.Module:
    module_name, _, factory_name = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"{name}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    model = factory()
    if not isinstance(model, torch.nn.Module):
        raise OptionError(f"{name} returns a {type(model).__name__}, not a torch.nn.Module")
    return model


def report(
    names: Sequence[str],
    options: Options,
    say: Callable[[str], None],
    *,
    shape: Sequence[int] | None = None,
    training: bool = True,
) -> list[TuneReport]:
    """Tune models one by one and say what was found.

    Raises:
        OptionError: an option has no meaning, or nothing can be measured here.
    """
    if not tuning.current().measures:
        raise OptionError("GENIMG_AUTOTUNE=0: nothing is measured; unset it for genimg tune")
    options = options.resolved()
    start_threads(options.threads or 1)
    options = replace(options, channels=options.channels or 1)
    made = []
    for name in names:
        for title, model, x in targets(name, options, shape, training):
            say(f"{title}, input {'x'.join(map(str, x.shape))}, {options.device}")
            try:
                made.append(tune(model, x))
            except (ValueError, RuntimeError) as error:
                raise OptionError(f"{title}: {error}") from error
            say(str(made[-1]))
            say("")
    path = tuning.current().store.path(torch.device(options.device))
    say(f"decisions: {path or 'not kept'}")
    return made
