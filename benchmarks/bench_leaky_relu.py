"""Times of leaky_relu: every case worth timing, genimg beside each mode of PyTorch."""

from harness import parametrize, time_provider


@parametrize("leaky_relu")
def bench_leaky_relu(benchmark, op, case, provider, mode):
    time_provider(benchmark, op, case, provider, mode)
