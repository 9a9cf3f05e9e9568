"""Running a call aside from the program that makes it, so that nothing of that one changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from genimg import versions
from genimg.transforms import refuse_transforms

_dispatch_modes = versions.private("_len_torch_dispatch_stack", lambda: 1)
_function_modes = versions.private("_len_torch_function_stack", lambda: 1)
_function_mode = versions.private("_get_function_stack_at", lambda i: None)
_saved_tensor_hooks = versions.private(
    "_autograd._top_saved_tensors_default_hooks", lambda ignore_is_tracing: True
)
_profiler_enabled = versions.private("_autograd._profiler_enabled", lambda: True)

_HARMLESS = "DeviceContext"  # the function mode of torch.device and set_default_device


def why_not(args: Sequence[Any]) -> str | None:
    """Why a call cannot be run aside, or not so that its time tells anything."""
    if torch.are_deterministic_algorithms_enabled():
        return "torch.use_deterministic_algorithms is on"
    if not is_plain(args):
        return "a mode, a transform or a subclass of tensors is at work"
    if is_capturing(args[0]):
        return "a CUDA graph is being captured"
    if _saved_tensor_hooks(False) is not None:
        return "hooks on saved tensors, such as checkpointing's, would see it"
    if torch.is_anomaly_enabled() or _profiler_enabled():
        return "a profiler or the detection of anomalies would see it"
    return None


def is_plain(args: Sequence[Any]) -> bool:
    """Whether a call computes here and now, so that timing it tells its time."""
    if torch.jit.is_tracing() or _dispatch_modes() > 0:
        return False
    if any(type(_function_mode(i)).__name__ != _HARMLESS for i in range(_function_modes())):
        return False
    if refuse_transforms(args) is not None:
        return False
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in tensors(args)):
        return False
    return bool(args[0].device.type != "meta" and args[0].numel())


def is_capturing(x: Tensor) -> bool:
    """Whether the capture of a CUDA graph records what is computed on ``x``."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Give back the random state at the end; ``device`` is the current one inside."""
    on_gpu = device.type == "cuda"
    where = torch.cuda.device(device) if on_gpu else nullcontext()
    with torch.random.fork_rng([device] if on_gpu else []), where:
        yield


def synchronize(device: torch.device) -> None:
    """Wait for the device, where it works by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, and in what it holds."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def copy(value: Any) -> Any:
    """A copy that may be written to, of the same strides, outside any graph."""
    if isinstance(value, Tensor):
        made = value.detach()
        if 0 not in value.stride():  # an expanded one is never written to
            made = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            ).copy_(made)
        return made.requires_grad_(value.requires_grad)
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, (list, tuple)):
        return type(value)(map(copy, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: copy(getattr(value, f.name)) for f in fields})
    return value
