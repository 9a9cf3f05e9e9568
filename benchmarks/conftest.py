"""Benchmarks that fail stand in the results with their reason, and cost no other its time."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from genimg.check import reason

_failures = pytest.StashKey[list[dict[str, str]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes why a benchmark failed."""
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if report.failed and benchmark is not None and call.excinfo is not None:
        error = call.excinfo.value
        ours = isinstance(error, pytest.fail.Exception)  # it says what is wrong, and no more
        failure = {
            "group": benchmark.group or item.name,
            "provider": benchmark.extra_info.get("provider", ""),
            "backend": benchmark.extra_info.get("backend", ""),
            "reason": str(error) if ours else reason(error),
        }
        item.config.stash.setdefault(_failures, []).append(failure)
    return report


@pytest.hookimpl(optionalhook=True)  # of pytest-benchmark
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Adds them to the file that report.py reads."""
    output_json["failures"] = config.stash.get(_failures, [])
