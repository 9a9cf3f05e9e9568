"""torch.compile(fullgraph=True) takes the Triton kernels, on machines without a GPU too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genimg.kernels.triton import runtime

# op -> case, launches of forward and backward
TRACED = {
    "batch_norm_act": ("channels_last", 6),
    "conv2d": ("k4s2p1_primes", 3),
    "conv_stack": ("generator", 17),
    "conv_transpose2d": ("k4s2p1_primes", 3),
    "leaky_relu": ("primes", 2),
    "reparam_kl": ("primes", 2),
}


@pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")
def test_one_graph_holds_every_launch():
    script = Path(__file__).with_name("trace_triton.py")
    cases = json.dumps({op: case for op, (case, _) in TRACED.items()})
    done = subprocess.run(
        [sys.executable, script, cases],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # With sizes that are numbers, and with symbolic ones (of convolutions: the batch).
    assert json.loads(done.stdout) == {op: [n, n] for op, (_, n) in TRACED.items()}
