"""Tables of gpu_bench.py's results: medians, the share of the ceilings, ratios to the best PyTorch.

What failed, or was wrong, has its reason in the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Group = dict[str, Row]


def _ceilings(rows: Iterable[Row]) -> tuple[float, float]:
    """Operations and bytes a microsecond; 0 where they were not measured."""
    by_name = {row["what"]: row for row in rows if row["section"] == "ceiling" and "p50" in row}
    product, copy = by_name.get("matmul"), by_name.get("copy")
    return (
        product["flop"] / product["p50"] if product else 0.0,
        copy["bytes"] / copy["p50"] if copy else 0.0,
    )


def _vendor(rows: Iterable[Row], rate: float) -> list[str]:
    lines = [
        "| layer, images | pass | µs (p20 to p80) | TFLOP/s | of the matrix rate | kernels |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        if row["section"] != "cudnn":
            continue
        where = f"| {row['what']}, {row['batch']} | {row['mode']} |"
        if "failed" in row:
            lines.append(f"{where} {row['failed']} | | | |")
            continue
        speed = row["flop"] / row["p50"]
        share = f"{speed / rate:.0%}" if rate else ""
        names = ", ".join(dict.fromkeys(name[:48] for name in row["kernels"] or []))
        lines.append(
            f"{where} {row['p50']:.1f} ({row['p20']:.1f} to {row['p80']:.1f}) "
            f"| {speed / 1e6:.1f} | {share} | {names} |"
        )
    return lines


def groups(rows: Iterable[Row]) -> dict[str, Group]:
    """What was timed beside each other, by provider."""
    found: dict[str, Group] = {}
    for row in rows:
        if "provider" in row:
            batch = f", {row['batch']} images" if "batch" in row else ""
            name = f"{row['what']}{batch}, {row.get('mode', 'step')}"
            found.setdefault(name, {})[row["provider"]] = row
    return found


def is_ours(provider: str) -> bool:
    """Whether it is one of genimg's."""
    return provider in ("cuda", "triton") or provider.startswith("genimg")


def ratio(group: Group) -> float | None:
    """The best PyTorch's median over the best of genimg's."""
    times = {name: row["p50"] for name, row in group.items() if "p50" in row}
    ours = [ms for name, ms in times.items() if is_ours(name)]
    others = [ms for name, ms in times.items() if not is_ours(name)]
    return min(others) / min(ours) if ours and others else None


def _compared(rows: Iterable[Row]) -> list[str]:
    found = groups(rows)
    providers = list(dict.fromkeys(name for group in found.values() for name in group))
    lines = [
        f"| what | {' | '.join(f'{name}, µs' for name in providers)} | best PyTorch / genimg |",
        "|---|" + "---:|" * (len(providers) + 1),
    ]
    for what, group in found.items():
        cells = [_cell(group.get(name)) for name in providers]
        gained = ratio(group)
        lines.append(f"| {what} | {' | '.join(cells)} | {f'{gained:.2f}' if gained else ''} |")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return "WRONG" if row["failed"].startswith("WRONG") else "refused"
    return f"{row['p50']:.1f}" + ("" if row["graph"] else " *")


def _refusals(rows: Iterable[Row]) -> list[str]:
    return [
        f"- {row['what']}, {row.get('mode', '')}, {row.get('provider', '')}: {row['failed']}"
        for row in rows
        if "failed" in row
    ]


def report(results: dict[str, Any]) -> str:
    """All tables as Markdown."""
    rows, facts = results["rows"], results["facts"]
    rate, copied = _ceilings(rows)
    gpu = ", ".join(device["name"] for device in facts["gpus"]["devices"]) or "no GPU: a rehearsal"
    versions = facts["versions"]
    lines = [
        f"# {gpu}",
        "",
        f"torch {versions['torch']}, Triton {versions['triton']}, "
        f"driver {facts['gpus']['driver']}, commit {facts['commit'][:12]}, "
        f"clocks {results['clocks'] or 'unknown'}.",
        f"Matrix product {rate / 1e6:.0f} TFLOP/s, copy {copied / 1e6:.2f} TB/s. Medians of graph "
        "replays with a cold cache; * without a graph.",
        "",
        *_compared(rows),
        "",
        *_vendor(rows, rate),
        "",
        *_refusals(rows),
    ]
    return "\n".join(lines)


def main() -> int:
    """Print the report of the file that is named."""
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
