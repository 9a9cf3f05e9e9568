"""Judges a converted model as an op is judged: outputs, buffers and gradients against float64."""

import torch
from torch.func import functional_call

import genimg
from genimg.testing import CONVOLUTION_ERROR_FACTOR, Case, compare


def errors_of(plain, model, x, backend, training=True, layout="contiguous"):
    """The errors of a converted model's results, beside the plain model's own.

    Args:
        plain: the model before the conversion.
        model: a converted copy.
        x: an input, in float64.
        backend: what the converted model runs on.
        training: the mode of both.
        layout: the memory format of the input, and of weights.
    """
    plain.train(training)
    model.train(training)
    weights = {name: p.detach().double() for name, p in plain.named_parameters()}
    buffers = {n: b.double() for n, b in plain.named_buffers() if b.is_floating_point()}

    def call(function, given):
        state = {name: value for name, value in given.items() if name != "x"}
        if layout == "channels_last":
            state = {
                name: value.contiguous(memory_format=torch.channels_last)
                if value.dim() == 4
                else value
                for name, value in state.items()
            }
        return function(state, given["x"])

    case = Case(
        "model",
        "a model's own layers, in its own order",
        lambda generator: {"x": x, **weights, **{n: b.clone() for n, b in buffers.items()}},
        call,
        grad=("x", *weights),
        state=tuple(buffers),
        layout=layout if x.dim() == 4 else "contiguous",
    )

    def converted(state, x, backend):
        with genimg.use_backend(backend):
            return functional_call(model, state, (x,))

    def reference(state, x):
        return functional_call(plain, state, (x,))

    return compare(case, converted, reference, backend, factor=CONVOLUTION_ERROR_FACTOR)
