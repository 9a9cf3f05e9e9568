"""Times of reparam_kl: every case worth timing, genimg beside each mode of PyTorch."""

from harness import parametrize, time_provider


@parametrize("reparam_kl")
def bench_reparam_kl(benchmark, op, case, provider, mode):
    time_provider(benchmark, op, case, provider, mode)
