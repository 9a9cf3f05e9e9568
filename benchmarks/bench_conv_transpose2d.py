"""Times of conv_transpose2d: every case worth timing, genimg beside each mode of PyTorch."""

from harness import parametrize, time_provider


@parametrize("conv_transpose2d")
def bench_conv_transpose2d(benchmark, op, case, provider, mode):
    time_provider(benchmark, op, case, provider, mode)
