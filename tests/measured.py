"""A clock that the tests set, an op of two candidates, and processes that begin on one disk."""

from contextlib import contextmanager

import torch

from genimg import tuning
from genimg.backends import Impl, Op, choose
from genimg.budget import Budget
from genimg.decisions import DecisionStore


class Clock:
    """Stands still, but for what the tests add to it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Probe:
    """An op of two candidates: ``seconds`` of each are what the clock advances by."""

    def __init__(self, clock):
        self.ran = []
        self.seconds = {"cpu": 0.001, "reference": 0.002, "cuda": 0.0005}
        self.clock = clock

        def function(x, option=1, *, backend=None):
            name = choose(self.op, backend, x, option)
            self.ran.append(name)
            self.clock.now += self.seconds[name]
            return x.clone()

        self.op = Op("probe", function, function, (), (self.impl("cpu"),), work=lambda *_: [])

    def impl(self, backend):
        def unused(*args):
            raise AssertionError

        return Impl(
            backend,
            ("cpu",),
            unused,
            unused,
            why_slower=lambda *_: "the prior",
            dtypes=(torch.float32, torch.float64),
            missing=lambda _: None,
        )

    def __call__(self, *args, **kwargs):
        """The candidates that ran, the last for the call itself."""
        self.ran.clear()
        self.op.function(*args, **kwargs)
        return list(self.ran)


@contextmanager
def processes(folder, clock):
    """A function that begins as another process would, with what is on disk."""
    before = tuning.current()
    torch.use_deterministic_algorithms(False)

    def begin(measures=True):
        tuner = tuning.Tuner(DecisionStore(folder), Budget(clock), measures=measures)
        tuning.install(tuner)
        return tuner

    yield begin
    tuning.install(before)
