"""Cases of conv2d_avg_pool."""

from __future__ import annotations

from functools import partial

from genimg.cases.conv2d import ALL, call, call_in_pixels, make, with_values
from genimg.testing import Case, integers

CASES = (
    Case(
        "one_window",
        "the whole image is one window",
        make((2, 3, 2, 2), (4, 3, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "k3_integers",
        "quarters of integers are exact: equal to float64 to the bit",
        make((2, 16, 8, 8), (8, 16, 3, 3), partial(integers, limit=2)),
        call(),
        ALL,
        exact=True,
    ),
    Case(
        "k3_primes",
        "odd sizes: a last row and column that fill no window",
        make((3, 5, 13, 11), (7, 5, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "channels_last",
        "NHWC memory in and out",
        make((2, 16, 6, 8), (24, 16, 3, 3)),
        call(),
        ALL,
        layout="channels_last",
    ),
    Case(
        "k1",
        "a shortcut's 1x1 convolution: the pooling alone widens the kernel",
        make((2, 6, 8, 6), (9, 6, 1, 1)),
        call(),
        ALL,
    ),
    Case(
        "k5",
        "a kernel of 6",
        make((2, 6, 10, 8), (9, 6, 5, 5)),
        call(),
        ALL,
    ),
    Case(
        "three_by_three",
        "windows of 3, and a ninth that no float has",
        make((2, 6, 9, 12), (9, 6, 3, 3)),
        call(kernel_size=3),
        ALL,
    ),
    Case(
        "anisotropic",
        "kernel, window and padding differ by axis",
        make((2, 4, 9, 12), (6, 4, 3, 5)),
        call(kernel_size=(2, 3), padding=(1, 0)),
        ALL,
    ),
    Case(
        "unpadded",
        "without padding",
        make((2, 4, 9, 8), (6, 4, 3, 3)),
        call(padding=0),
        ALL,
    ),
    Case(
        "few_channels",
        "the first layer of a discriminator",
        make((2, 3, 12, 12), (20, 3, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "nan",
        "a NaN reaches the windows that its pixel reaches",
        with_values(make((2, 5, 8, 8), (7, 5, 3, 3)), (0, 1, 2, 3, float("nan"))),
        call(),
        ALL,
    ),
    Case(
        "even_kernel",
        "padded on all sides: one output less before the pooling",
        make((2, 6, 9, 9), (9, 6, 4, 4)),
        call(padding=1),
        ALL,
    ),
    Case(
        "nine_by_nine",
        "windows above the largest fold: PyTorch's two ops run",
        make((2, 6, 9, 18), (9, 6, 3, 3)),
        call(kernel_size=9),
        ALL,
    ),
    Case(
        "padding_above_the_kernel",
        "windows that lie in the padding alone",
        make((2, 4, 5, 6), (6, 4, 2, 2)),
        call(padding=3),
        ALL,
    ),
    Case(
        "sliced",
        "NaN between the channels",
        make((2, 4, 6, 8), (6, 4, 3, 3)),
        call(),
        ALL,
        layout="sliced",
    ),
    Case(
        "weight_channels_last",
        "whose format the output takes",
        make((2, 4, 6, 8), (6, 4, 3, 3)),
        call_in_pixels(),
        ALL,
    ),
    Case(
        "empty_batch",
        "no image",
        make((0, 4, 6, 8), (6, 4, 3, 3)),
        call(),
        ALL,
    ),
    Case(
        "no_bias",
        "without a bias, one image for the whole batch",
        make((3, 5, 8, 8), (7, 5, 3, 3)),
        lambda op, t: op(t["x"], t["weight"]),
        ("x", "weight"),
        layout="expanded",
    ),
    Case(
        "discriminator_layer",
        "128 -> 128 at 32x32, to 16x16",
        make((32, 128, 32, 32), (128, 128, 3, 3)),
        call(),
        ALL,
        speed=True,
    ),
)
