"""Cases of upsample_conv2d."""

from __future__ import annotations

from functools import partial

from genimg.cases.conv2d import ALL, call, call_in_pixels, make, with_values
from genimg.testing import Case, integers

CASES = (
    Case(
        "one_pixel",
        "every output is a sum of taps of one pixel",
        make((2, 3, 1, 1), (4, 3, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "k3_integers",
        "every folded weight and partial sum is exact: equal to float64 to the bit",
        make((2, 16, 6, 6), (8, 16, 3, 3), partial(integers, limit=2)),
        call(),
        ALL,
        exact=True,
    ),
    Case(
        "k3_primes",
        "channels and sizes that divide nothing",
        make((3, 5, 7, 11), (7, 5, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "channels_last",
        "NHWC memory in and out",
        make((2, 16, 6, 5), (24, 16, 3, 3)),
        call(),
        ALL,
        layout="channels_last",
    ),
    Case(
        "k5",
        "a transposed kernel of 6, phases of three taps",
        make((2, 6, 5, 6), (9, 6, 5, 5)),
        call(),
        ALL,
    ),
    Case(
        "even_kernel",
        "padded on all sides: one output less",
        make((2, 6, 5, 6), (9, 6, 4, 4)),
        call(padding=1),
        ALL,
    ),
    Case(
        "three_times",
        "stride 3: phases of two taps and of one",
        make((2, 6, 5, 4), (9, 6, 3, 3)),
        call(scale_factor=3.0, mode="nearest-exact"),
        ALL,
    ),
    Case(
        "anisotropic",
        "kernel, factor and padding differ by axis",
        make((2, 4, 5, 6), (6, 4, 3, 5)),
        call(scale_factor=(2, 3), padding=(1, 0)),
        ALL,
    ),
    Case(
        "unpadded",
        "outputs smaller than the upsampled image",
        make((2, 4, 5, 6), (6, 4, 3, 3)),
        call(padding=0),
        ALL,
    ),
    Case(
        "to_a_size",
        "height and width given instead of factors",
        make((2, 4, 5, 6), (6, 4, 3, 3)),
        call(size=(10, 18)),
        ALL,
    ),
    Case(
        "not_whole",
        "no box has a factor of 1.5: PyTorch's two ops run",
        make((2, 4, 6, 4), (6, 4, 3, 3)),
        call(scale_factor=1.5),
        ALL,
    ),
    Case(
        "padding_above_the_kernel",
        "no transposed convolution has such outputs: PyTorch's two ops run",
        make((2, 4, 5, 6), (6, 4, 2, 2)),
        call(padding=3),
        ALL,
    ),
    Case(
        "few_channels",
        "the last layer of a generator",
        make((2, 20, 6, 6), (3, 20, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "nan",
        "a NaN reaches the outputs that its pixel's copies reach",
        with_values(make((2, 5, 6, 6), (7, 5, 3, 3)), (0, 1, 2, 3, float("nan"))),
        call(),
        ALL,
    ),
    Case(
        "sliced",
        "NaN between the channels",
        make((2, 4, 5, 6), (6, 4, 3, 3)),
        call(),
        ALL,
        layout="sliced",
    ),
    Case(
        "weight_channels_last",
        "whose format the output takes",
        make((2, 4, 5, 6), (6, 4, 3, 3)),
        call_in_pixels(),
        ALL,
    ),
    Case(
        "empty_batch",
        "no image",
        make((0, 4, 5, 6), (6, 4, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "no_bias",
        "without a bias, one image for the whole batch",
        make((3, 5, 6, 6), (7, 5, 3, 3)),
        lambda op, t: op(t["x"], t["weight"]),
        ("x", "weight"),
        layout="expanded",
    ),
    Case(
        "generator_layer",
        "128 -> 64 at 16x16, to 32x32",
        make((32, 128, 16, 16), (64, 128, 3, 3)),
        call(),
        ALL,
        speed=True,
    ),
    Case(
        "decoder_layer",
        "256 -> 128 at 16x16, to 32x32, in NHWC memory",
        make((16, 256, 16, 16), (128, 256, 3, 3)),
        call(),
        ALL,
        layout="channels_last",
        speed=True,
    ),
)
