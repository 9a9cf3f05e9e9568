"""Times of conv2d_avg_pool: every case worth timing, genimg beside each mode of PyTorch."""

from harness import parametrize, time_provider


@parametrize("conv2d_avg_pool")
def bench_conv2d_avg_pool(benchmark, op, case, provider, mode):
    time_provider(benchmark, op, case, provider, mode)
