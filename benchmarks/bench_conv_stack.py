"""Times of conv_stack: every case worth timing, genimg beside each mode of PyTorch."""

from harness import parametrize, time_provider


@parametrize("conv_stack")
def bench_conv_stack(benchmark, op, case, provider, mode):
    time_provider(benchmark, op, case, provider, mode)
