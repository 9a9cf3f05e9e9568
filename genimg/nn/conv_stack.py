"""Sequentials that run their convolution blocks and batch norms fused."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from genimg import ops
from genimg.nn.batch_norm import BatchNorm2d, apply_norm
from genimg.nn.blocks import Block, arguments_of, slope_of
from genimg.nn.conv import Conv2d, ConvTranspose2d, output_padding_of
from genimg.nn.drop_in import as_scriptable, computes, has_torchs_methods, is_called_plainly
from genimg.nn.leaky_relu import LeakyReLU
from genimg.nn.resampling import POOLS, UPSAMPLES, find_folds, refuse_pool, refuse_upsample
from genimg.nn.weights import class_of, has_only_weight_hooks, is_parametrized_class, set_weights

_DOWN = (torch.nn.Conv2d, Conv2d)
_UP = (torch.nn.ConvTranspose2d, ConvTranspose2d)
_NORM = (torch.nn.BatchNorm2d, BatchNorm2d)
_LEAKY = (torch.nn.LeakyReLU, LeakyReLU)
_SUPPORTED: tuple[tuple[type[torch.nn.Module], ...], ...] = (
    _DOWN,
    _UP,
    _NORM,
    _LEAKY,
    (torch.nn.ReLU,),
    (torch.nn.Tanh,),
    (torch.nn.Sigmoid,),
    *((kind,) for kind in (*UPSAMPLES, *POOLS)),
)
_PASSING = (torch.nn.Identity, torch.nn.Dropout, torch.nn.Dropout2d)
# The torch class of each, and its forward as it was when genimg was imported.
_FORWARDS: dict[type, tuple[type[torch.nn.Module], Any]] = {
    kind: (kinds[0], kind.forward) for kinds in _SUPPORTED for kind in kinds
}


class FusedSequential(torch.nn.Sequential):
    """A :class:`torch.nn.Sequential` whose convolution blocks run fused.

    Every run of {Conv2d or ConvTranspose2d, BatchNorm2d or none, activation or none} among its
    children becomes one call of :func:`genimg.ops.conv_stack`, every other BatchNorm2d with its
    activation one of :func:`genimg.ops.batch_norm_act`; any other child is called as it is. The
    children of nested Sequentials count as its own, those of subclasses with a Sequential's forward
    among them. Identities, and Dropouts that change nothing (in eval, or with p=0), are left out.
    Children, ``state_dict`` keys and indexing are a Sequential's.

    A nearest Upsample by a whole factor before a Conv2d of stride 1, and an AvgPool2d of whole
    windows behind one, are folded into the convolution's weight
    (:func:`genimg.ops.upsample_conv2d`, :func:`genimg.ops.conv2d_avg_pool`), in every forward anew,
    unless the images are so small that this costs more. The result differs by rounding.
    ``genimg.convert(model, fold=False)`` leaves them alone.

    Activations: LeakyReLU, ReLU, Tanh, Sigmoid. Every call inspects the children, so that hooks,
    modes and replaced children take effect: a child with hooks, of a subclass, or with a method of
    its own is called by itself, and all hooks run. ``torch.jit.trace``, ``torch.jit.script`` and
    ``torch.fx`` see a plain Sequential.
    """

    __prepare_scriptable__ = as_scriptable

    def forward(self, input: Tensor) -> Tensor:
        """Run all children on ``[N, C, H, W]``, or whatever the first child takes."""
        if not computes(self, torch.nn.Sequential, input):
            return super().forward(input)
        return _run(plan(self), input, self.training)

    def __getitem__(self, index: Any) -> Any:
        """A child; a slice is a stack like this one."""
        part = super().__getitem__(index)
        if isinstance(part, torch.nn.Module) and isinstance(index, slice):
            set_folding(part, folds(self))
        return part


class BatchNormAct2d(FusedSequential):
    """Batch norm and LeakyReLU as one layer, run by one call of :func:`genimg.ops.batch_norm_act`.

    ``z = weight (x - mean) rstd + bias``, ``y = z if z > 0 else negative_slope z``, for ``x``
    ``[N, C, H, W]``.

    It is a Sequential of a :class:`genimg.nn.BatchNorm2d`, ``layer[0]``, and an activation,
    ``layer[1]``, with a Sequential's ``state_dict`` keys; ``load_state_dict`` takes those of a lone
    BatchNorm2d as well. It is no BatchNorm2d by ``isinstance``: tools that look for batch norms
    find the one inside, and the activation stays.
    ``SyncBatchNorm.convert_sync_batchnorm`` puts a SyncBatchNorm before the activation,
    ``swa_utils.update_bn`` and code that freezes batch norms reach its statistics, and
    ``fuse_conv_bn_eval`` takes ``layer[0]`` and raises AttributeError for ``layer``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as torch's.
        negative_slope: 0 is ReLU, 1 is no activation.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        negative_slope: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        norm = BatchNorm2d(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        super().__init__(norm, LeakyReLU(negative_slope) if negative_slope else torch.nn.ReLU())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Accept the entries of a lone BatchNorm2d too, which the layer may have replaced."""
        for name in (*self[0]._parameters, *self[0]._buffers):
            if prefix + name in state_dict:
                state_dict[f"{prefix}0.{name}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def weight(self) -> Tensor | None:
        """The batch norm's weight, for code that finds layers by name and initialises them."""
        return self[0].weight

    @property
    def bias(self) -> Tensor | None:
        """The batch norm's bias."""
        return self[0].bias

    def __getitem__(self, index: Any) -> Any:
        """A child; a slice is a :class:`FusedSequential`."""
        if isinstance(index, slice):
            return FusedSequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


_UNFOLDED = "_genimg_unfolded"  # in a stack's __dict__, where no child's name can be


def set_folding(stack: torch.nn.Module, enabled: bool) -> None:
    """Let a stack fold upsampling and pooling into its convolutions, or not."""
    stack.__dict__.pop(_UNFOLDED, None)
    if not enabled:
        stack.__dict__[_UNFOLDED] = True


def folds(stack: torch.nn.Module) -> bool:
    """Whether a stack folds upsampling and pooling into its convolutions."""
    return _UNFOLDED not in stack.__dict__


def has_folds(stack: torch.nn.Sequential) -> bool:
    """Whether some upsampling or pooling of a stack is folded into a convolution."""
    blocks = [block for step in plan(stack) if isinstance(step, list) for block in step]
    return any(block.upsample is not None or block.pool is not None for block in blocks)


_Step = torch.nn.Module | list[Block]


def _run(steps: list[_Step], x: Tensor, training: bool) -> Tensor:
    for step in steps:
        if isinstance(step, torch.nn.Module):
            x = step(x)
        elif step[0].convolution is None:
            assert step[0].norm is not None
            x = apply_norm(step[0].norm, x, slope_of(step[0].activation))
        else:
            x = _run_blocks(step, x, training)
    return x


def _run_blocks(blocks: list[Block], x: Tensor, training: bool) -> Tensor:
    layers = [(block.upsample, block.convolution, block.pool) for block in blocks]
    found = find_folds(x, layers)  # type: ignore[arg-type]
    if found is None:
        members = [module for block in blocks for module in block.modules()]
        return _run(_plan(members, [True] * len(members), fold=False), x, training)
    if len(blocks) == 1 and blocks[0].op() != "conv_stack":
        conv, (fold,) = blocks[0].convolution, found
        _set_weights(blocks[0])
        assert isinstance(conv, torch.nn.Conv2d)
        assert fold is not None
        if fold.transposed:
            return ops.upsample_conv2d(
                x, conv.weight, conv.bias, scale_factor=fold.stride, padding=conv.padding
            )
        return ops.conv2d_avg_pool(
            x, conv.weight, conv.bias, kernel_size=fold.stride, padding=conv.padding
        )
    for block in blocks:
        _set_weights(block)
    arguments = [arguments_of(block, fold, x) for block, fold in zip(blocks, found, strict=True)]
    return ops.conv_stack(x, arguments, training=training)


def _set_weights(block: Block) -> None:
    for module in block.modules():
        if module._forward_pre_hooks:
            set_weights(module)


def run_blocks(
    blocks: Sequence[Sequence[torch.nn.Module | None]],
    x: Tensor,
    training: bool,
    output_size: list[int] | None = None,
) -> Tensor:
    """Run blocks of convolution, norm and activation, any of them None, as one op.

    The first layer has been called, so that its weight is computed; ``output_size`` is that of its
    call.
    """
    first, *others = (Block(*block) for block in blocks)  # type: ignore[arg-type]
    if first.convolution is None:
        return _run([[first]], x, training)
    for block in others:
        _set_weights(block)
    arguments = [arguments_of(block, None, x) for block in (first, *others)]
    if output_size is not None:
        assert isinstance(first.convolution, torch.nn.ConvTranspose2d)
        output_padding = output_padding_of(first.convolution, x, output_size)
        arguments[0] = replace(arguments[0], output_padding=output_padding)
    return ops.conv_stack(x, arguments, training=training)


def plan(
    stack: torch.nn.Sequential, fold: bool | None = None, *, in_eval: bool = False
) -> list[_Step]:
    """List the steps of a stack's forward: modules to call, and runs of blocks to fuse.

    ``fold``: whether upsampling and pooling may be folded into convolutions; None asks the stack.
    ``in_eval`` plans as if every Dropout were in eval mode.
    """
    modules = [module for module in _leaves(stack) if not _does_nothing(module, in_eval)]
    fold = folds(stack) if fold is None else fold
    return _plan(modules, [can_fuse(module) for module in modules], fold)


def _plan(modules: list[torch.nn.Module], fusable: list[bool], fold: bool) -> list[_Step]:
    steps: list[_Step] = []
    run: list[Block] = []
    upsample: torch.nn.Module | None = None  # of the next module, a convolution
    for i, module in enumerate(modules):
        kind = class_of(module)
        last = run[-1] if run else None
        if not fusable[i]:
            steps.append(module)
            run = []
        elif kind in UPSAMPLES or kind in POOLS:
            if fold and all(fusable[i : i + 2]) and _folds_into(module, modules[i + 1 : i + 2]):
                upsample = module
            elif fold and last is not None and _takes_pool(last, module):
                last.pool = module
            else:
                steps.append(module)
                run = []
        elif kind in _DOWN or kind in _UP:
            block = Block(module, upsample=upsample)
            if last is not None and _goes_on(last) and _is_dense(module):
                run.append(block)
            else:
                run = [block]
                steps.append(run)
            upsample = None
        elif kind in _NORM:
            assert isinstance(module, torch.nn.BatchNorm2d)
            if last is not None and last.norm is None and last.activation is None:
                last.norm = module
            else:
                run = [Block(None, module)]
                steps.append(run)
        elif last is not None and last.activation is None and _fits(last, module):
            last.activation = module
        else:
            steps.append(module)
            run = []
    # A run of one layer is called as that layer: fusion has nothing to gain.
    return [_alone(step) if isinstance(step, list) else step for step in steps]


def _folds_into(upsample: torch.nn.Module, following: list[torch.nn.Module]) -> bool:
    """Whether an upsampling folds into the convolution that follows, if it is one."""
    return (
        type(upsample) in UPSAMPLES
        and any(type(conv) in _DOWN for conv in following)
        and refuse_upsample(upsample, *following) is None
    )


def _takes_pool(block: Block, pool: torch.nn.Module) -> bool:
    """Whether a pooling folds into the block's convolution."""
    conv = block.convolution
    return (
        type(pool) in POOLS
        and type(conv) in _DOWN
        and len(block.modules()) == 1
        and refuse_pool(conv, pool) is None  # type: ignore[arg-type]
    )


def why_unfolded(first: torch.nn.Module, second: torch.nn.Module) -> str | None:
    """Why an Upsample and a Conv2d, or a Conv2d and an AvgPool2d, run one after the other."""
    for module in (first, second):
        if is_parametrized_class(type(module)):
            return f"the {type(module).__name__} computes its weight whenever it is read"
        if not can_fuse(module):
            what = type(module).__name__
            return f"the {what} has hooks, methods or options with which no layer is fused"
    if isinstance(first, torch.nn.Upsample):
        return refuse_upsample(first, second)
    return refuse_pool(first, second)


def neighbours(
    stack: torch.nn.Sequential,
) -> Iterator[tuple[torch.nn.Module, torch.nn.Module]]:
    """Neighbouring layers of a stack that a fold is about, whether there is one or not."""
    for first, second in pairwise(_leaves(stack)):
        pairs = ((torch.nn.Upsample, torch.nn.Conv2d), (torch.nn.Conv2d, torch.nn.AvgPool2d))
        if any(isinstance(first, a) and isinstance(second, b) for a, b in pairs):
            yield first, second


def _goes_on(block: Block) -> bool:
    """Whether another block may follow in its run: only LeakyReLUs and ReLUs are fused inside."""
    inner = type(block.activation) in (type(None), *_LEAKY, torch.nn.ReLU)
    return inner and block.convolution is not None and _is_dense(block.convolution)


def _is_dense(convolution: torch.nn.Module) -> bool:
    """Whether it has no groups and no dilation, with which no kernel would support its run."""
    assert isinstance(convolution, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
    return convolution.groups == 1 and convolution.dilation == (1, 1)


def _fits(block: Block, activation: torch.nn.Module) -> bool:
    """Whether the block may end in it: batch_norm_act supports only LeakyReLU and ReLU."""
    return block.convolution is not None or type(activation) in (*_LEAKY, torch.nn.ReLU)


def _alone(run: list[Block]) -> torch.nn.Module | list[Block]:
    modules = run[0].modules()
    return modules[0] if len(run) == 1 and len(modules) == 1 else run


def _leaves(stack: torch.nn.Sequential) -> Iterator[torch.nn.Module]:
    for child in stack:
        if _is_open(child):
            yield from _leaves(child)  # type: ignore[arg-type]
        else:
            yield child


def inner_stacks(stack: torch.nn.Sequential) -> Iterator[torch.nn.Module]:
    """The Sequentials whose children count as those of ``stack``."""
    for child in stack:
        if _is_open(child):
            yield child
            yield from inner_stacks(child)  # type: ignore[arg-type]


def _is_open(module: torch.nn.Module) -> bool:
    """Whether the module does no more than call its children one after the other."""
    return (
        isinstance(module, torch.nn.Sequential)
        and type(module).forward in (torch.nn.Sequential.forward, FusedSequential.forward)
        and _is_plain(module)
        and has_torchs_methods(module, torch.nn.Sequential)
    )


def _does_nothing(module: torch.nn.Module, in_eval: bool) -> bool:
    """Whether the module returns its input as it is."""
    kind = type(module)
    if kind not in _PASSING or not can_run_inside(module, kind):
        return False
    if not isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
        return True
    return module.p == 0 or (0 < module.p <= 1 and (in_eval or not module.training))


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether calling ``module`` does no more than its class's forward, but for its weights."""
    return not (
        module._forward_hooks
        or (module._forward_pre_hooks and not has_only_weight_hooks(module))
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._has_any_global_hook()
    ) and is_called_plainly(module)


def can_fuse(module: torch.nn.Module) -> bool:
    """Whether ``module`` may run as part of a block."""
    kind = class_of(module)
    if kind not in _FORWARDS:
        return False
    base, forward = _FORWARDS[kind]
    return kind.forward is forward and can_run_inside(module, base)


def can_run_inside(module: torch.nn.Module, base: type[torch.nn.Module]) -> bool:
    """Whether a layer of the torch class ``base`` may run without being called.

    With hooks it may not, but for those that compute a convolution's weight.
    """
    if base in (torch.nn.Conv2d, torch.nn.ConvTranspose2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return False
    return has_torchs_methods(module, base) and _is_plain(module)
