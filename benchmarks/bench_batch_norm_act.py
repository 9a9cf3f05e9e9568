"""Times of batch_norm_act: every case worth timing, genimg beside each mode of PyTorch."""

from harness import parametrize, time_provider


@parametrize("batch_norm_act")
def bench_batch_norm_act(benchmark, op, case, provider, mode):
    time_provider(benchmark, op, case, provider, mode)
