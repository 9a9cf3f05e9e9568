"""The reparameterisation of a Gaussian latent, and its KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genimg import _native, priors, reference
from genimg.backends import (
    CPU_DTYPES,
    GPU_DTYPES,
    REFERENCE,
    Impl,
    Op,
    choose,
    dtype_name,
)
from genimg.cases.reparam_kl import CASES
from genimg.kernels.triton import runtime as triton_runtime
from genimg.memory_format import elementwise_format
from genimg.ops.autograd import needs_reference, recompute_grads
from genimg.ops.checks import check_together, goes_to_torch
from genimg.reference.reparam_kl import draw_seed, reparam_kl_of_seed
from genimg.work import FORWARD, Work, passes


def reparam_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Sample ``z ~ N(mu, exp(logvar))`` and take the KL divergence from N(0, 1), per sample.

    .. math:: z = \mu + e^{l/2}\,\varepsilon, \qquad
              \mathrm{KL}_n = \tfrac12 \sum_i \left(\mu_{ni}^2 + (e^{l_{ni}} - 1) - l_{ni}\right)

    with ``l = logvar`` clamped to [-30, 20] and ``exp(l) - 1`` taken by ``expm1``: ``1 + l -
    exp(l)`` is 5 % off at ``l = 1e-3`` in float32. Outside the clamp logvar's gradient is zero.
    Gradients: ``dmu = dz + g mu``, ``dl = dz eps exp(l/2) / 2 + g expm1(l) / 2``.

    The noise is Philox 4x32-10 with the element's index as counter
    (:func:`genimg.reference.reparam_kl.philox_normal`), under a key drawn from torch's generator:
    ``torch.manual_seed`` reproduces it, and every backend draws the same.

    Args:
        mu, logvar: ``[N, ...]``, of one shape, device and dtype.
        generator: of the tensors' device; None takes torch's default one.
        sample: False gives ``z = mu`` (a copy) and draws nothing.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        ``z`` like ``mu``, and KL ``[N]`` in float32 (float64 for float64 input), so that it neither
        overflows nor cancels in a half dtype.

    Kept for backward: ``mu``, ``logvar`` and the key, from which the noise is drawn again (the
    reference keeps what autograd does).

    Raises:
        RuntimeError: shapes, devices or dtypes differ; no batch dimension; not a floating dtype.
        BackendError: the named backend does not support the call.

    Source: Kingma, Welling, "Auto-encoding variational Bayes", 2014, section 2.4 and appendix B.
    """
    for name, given in (("mu", mu), ("logvar", logvar)):
        if not isinstance(given, Tensor):
            raise TypeError(
                f"reparam_kl: expected {name} to be a Tensor, but got {type(given).__name__}"
            )
    if goes_to_torch((mu, logvar)):
        return reference.reparam_kl(mu, logvar, generator=generator, sample=sample)
    check_together("reparam_kl", mu=mu, logvar=logvar)
    if mu.shape != logvar.shape:
        raise RuntimeError(
            f"reparam_kl: expected logvar to have the shape of mu, {tuple(mu.shape)}, but got "
            f"{tuple(logvar.shape)}"
        )
    if mu.dim() < 2:
        raise RuntimeError(f"reparam_kl: expected mu of shape [N, ...], but got {tuple(mu.shape)}")
    if not (mu.is_floating_point() and logvar.is_floating_point()):
        raise RuntimeError(f"reparam_kl: expected a floating dtype, but got {mu.dtype}")
    name = choose(REPARAM_KL, backend, mu, logvar, generator, sample)
    if name == REFERENCE:
        return reference.reparam_kl(mu, logvar, generator=generator, sample=sample)
    seed = draw_seed(mu.device, generator)
    if torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad):
        return _ReparamKL.apply(mu, logvar, seed, name)
    return REPARAM_KL.by_backend[name].fwd(mu, logvar, seed)


class _ReparamKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, logvar: Tensor, seed: Tensor, backend: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mu, logvar, seed)
        ctx.backend = backend
        return REPARAM_KL.by_backend[backend].fwd(mu, logvar, seed)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        mu, logvar, seed = ctx.saved_tensors
        if needs_reference(grad_z, grad_kl):
            needs_grad = (*ctx.needs_input_grad[:2], False)
            grads = recompute_grads(
                reparam_kl_of_seed, (mu, logvar, seed), (grad_z, grad_kl), needs_grad
            )
            return *grads, None
        grads = REPARAM_KL.by_backend[ctx.backend].bwd(grad_z, grad_kl, mu, logvar, seed)
        return *grads, None, None


def _cpp_fwd(mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.genimg.reparam_kl_fwd(mu, logvar, seed)


def _cpp_bwd(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.ops.genimg.reparam_kl_bwd(grad_z, grad_kl, mu, logvar, seed)


if _native.available():

    @torch.library.register_fake("genimg::reparam_kl_fwd")
    def _(mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.empty_like(mu, memory_format=elementwise_format(mu))
        return z, mu.new_empty(mu.shape[:1], dtype=torch.float32)

    @torch.library.register_fake("genimg::reparam_kl_bwd")
    def _(
        grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        grads = [torch.empty_like(x, memory_format=elementwise_format(x)) for x in (mu, logvar)]
        return grads[0], grads[1]


def _refuse(
    mu: Tensor, logvar: Tensor, generator: torch.Generator | None, sample: bool
) -> str | None:
    if logvar.dtype != mu.dtype:
        return f"mu is {dtype_name(mu.dtype)} and logvar {dtype_name(logvar.dtype)}"
    return None if sample else "sample=False: there is no noise to fuse"


def _triton_fwd(*args: Any) -> tuple[Tensor, Tensor]:
    from genimg.kernels.triton import reparam_kl as kernel

    return kernel.reparam_kl_fwd(*args)


def _triton_bwd(*args: Any) -> tuple[Tensor, Tensor]:
    from genimg.kernels.triton import reparam_kl as kernel

    return kernel.reparam_kl_bwd(*args)


def _work(mode: str, grad: Sequence[str], mu: Tensor, logvar: Tensor, **_: Any) -> list[Work]:
    """Does not count the noise, which is integer arithmetic for the most part."""
    per_sample = 4.0 * mu.shape[0]
    kernels = [passes(mu, 40, 3, per_sample)]
    return kernels if mode == FORWARD else [*kernels, passes(mu, 40, 5, per_sample)]


def _parts(
    mu: Tensor, logvar: Tensor, generator: torch.Generator | None, sample: bool
) -> Sequence[Any]:
    """``logvar`` has the batch of ``mu``, too: only the facts in which it may differ."""
    alike = logvar.stride() == mu.stride() and logvar.dtype == mu.dtype
    trains = torch.is_grad_enabled() and logvar.requires_grad
    return mu, alike, trains, generator is None, sample


_CPP = (_cpp_fwd, _cpp_bwd, _refuse)
_TRITON = (_triton_fwd, _triton_bwd, _refuse)

REPARAM_KL = Op(
    "reparam_kl",
    reparam_kl,
    reference.reparam_kl,
    CASES,
    impls=(
        Impl("cuda", ("cuda",), *_CPP, priors.of_gpu, dtypes=GPU_DTYPES),
        Impl("cpu", ("cpu",), *_CPP, dtypes=CPU_DTYPES),
        Impl("triton", triton_runtime.DEVICES, *_TRITON, priors.of_gpu, dtypes=GPU_DTYPES),
    ),
    work=_work,
    parts=_parts,
)
