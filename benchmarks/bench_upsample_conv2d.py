"""Times of upsample_conv2d: every case worth timing, genimg beside each mode of PyTorch."""

from harness import parametrize, time_provider


@parametrize("upsample_conv2d")
def bench_upsample_conv2d(benchmark, op, case, provider, mode):
    time_provider(benchmark, op, case, provider, mode)
