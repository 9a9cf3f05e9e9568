"""Launches by kept kernels reach the GPU as the binder's do, and no call gets another's kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genimg.kernels.triton import runtime

pytestmark = pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")


def test_a_kept_kernel_is_the_binders(tmp_path):
    """Also where address, dtype, kind of number, device, stream or Triton's hooks change."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("launch_triton.py")],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) > 25
    assert [check for check, held in found.items() if not held] == []
