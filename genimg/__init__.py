"""genimg: fused kernels for image-generation models (GANs and VAEs) in PyTorch.

``genimg.convert(model)`` speeds up a model that you have; ``genimg.nn`` and ``genimg.ops`` are its
layers and functions; ``genimg.explain(op, *tensors)`` says which backend a call uses, and why.
"""

from pathlib import Path

from genimg import nn, ops, reference
from genimg.backends import BackendError, use_backend
from genimg.explanation import explain
from genimg.model_tuning import TuneReport, tune
from genimg.nn import convert, restore
from genimg.tuning import autotune

__version__ = (Path(__file__).parent / "VERSION").read_text(encoding="utf-8").strip()

__all__ = [
    "BackendError",
    "TuneReport",
    "autotune",
    "convert",
    "explain",
    "nn",
    "ops",
    "reference",
    "restore",
    "tune",
    "use_backend",
    "__version__",
]
