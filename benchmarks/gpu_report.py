"""Tables of gpu_bench.py's results: medians, shares of the bound, ratios to the best PyTorch.

What failed, or was wrong, has its reason in the report. With matplotlib there is a picture, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib import util
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Group = dict[str, Row]
OURS = ("cuda", "cuda_sm90", "triton", "cpu")


def _rate(rows: Iterable[Row], what: str) -> float:
    return next((r["rate"] for r in rows if (r["section"], r["what"]) == ("ceilings", what)), 0.0)


def groups(rows: Iterable[Row]) -> dict[str, Group]:
    """Groups the rows that were timed beside each other, by provider."""
    found: dict[str, Group] = {}
    for row in rows:
        if "provider" in row:
            name = f"{row['what']}, {row['batch']} images, {row['mode']}"
            found.setdefault(name, {})[row["provider"]] = row
    return found


def ratio(group: Group) -> float | None:
    """The best PyTorch's median over the best of genimg's that leaves nothing to PyTorch."""
    times = {name: row["p50"] for name, row in group.items() if "p50" in row and "note" not in row}
    ours = [us for name, us in times.items() if name in OURS]
    others = [us for name, us in times.items() if name not in OURS]
    return min(others) / min(ours) if ours and others else None


def _compared(found: dict[str, Group]) -> list[str]:
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
        return "WRONG" if row["failed"].startswith("WRONG") else "none"
    share = f" ({row['bound'] / row['p50']:.0%})" if "bound" in row else ""
    return f"{row['p50']:.1f}{share}{' +' if 'note' in row else ''}{'' if row['graph'] else ' *'}"


def _vendor(rows: Iterable[Row]) -> list[str]:
    lines = [
        "| layer, images, pass | µs (p20 to p80) | TFLOP/s | kernels |",
        "|---|---:|---:|---|",
    ]
    for row in rows:
        if row.get("provider") == "cudnn" and "p50" in row:
            speed = f"{row['flop'] / row['p50'] / 1e6:.1f}" if "flop" in row else ""
            names = ", ".join(dict.fromkeys(name[:64] for name in row.get("kernels") or []))
            lines.append(
                f"| {row['what']}, {row['batch']}, {row['mode']} | {row['p50']:.1f} "
                f"({row['p20']:.1f} to {row['p80']:.1f}) | {speed} | {names} |"
            )
    return lines


def _failures(rows: Iterable[Row]) -> list[str]:
    return [
        f"- {row['what']}, {row.get('batch', '')} images, {row.get('mode', '')}, "
        f"{row.get('provider', '')}: {row.get('failed') or row['note']}"
        for row in rows
        if "failed" in row or "note" in row
    ]


def report(results: dict[str, Any]) -> str:
    """All tables as Markdown."""
    rows, facts = results["rows"], results["facts"]
    gpu = ", ".join(device["name"] for device in facts["gpus"]["devices"]) or "no GPU: a rehearsal"
    clocks = {row["what"]: row["clocks"] for row in rows if row["section"] == "clocks"}
    versions = facts["versions"]
    lines = [
        f"# {gpu}",
        "",
        f"torch {versions['torch']}, Triton {versions['triton']}, "
        f"driver {facts['gpus']['driver']}, commit {facts['commit'][:12] or 'unknown'}. "
        f"Clocks: {'; '.join(f'{what} {state}' for what, state in clocks.items() if state)}.",
        f"Matrix product {_rate(rows, 'matmul') / 1e12:.4g} TFLOP/s, copy "
        f"{_rate(rows, 'copy') / 1e12:.3g} TB/s. Medians of graph replays with a cold cache "
        "(* without a graph, + partly PyTorch's), and the bound's share of them.",
        "",
        *_compared(groups(rows)),
        "",
        *_vendor(rows),
        "",
        *_failures(rows),
    ]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> bool:
    """A bar of each ratio; False where there is nothing to draw, or nothing to draw it with."""
    ratios = {what: ratio(group) for what, group in groups(results["rows"]).items()}
    bars = {what: gained for what, gained in ratios.items() if gained}
    if not bars or util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1 + 0.22 * len(bars)), layout="constrained")
    axes.barh(list(bars), list(bars.values()), color="tab:blue")
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("best PyTorch / genimg: right of 1 genimg is faster")
    axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=120)
    return True


def main() -> int:
    """Print the report of the file that is named, and draw its picture beside it."""
    path = Path(sys.argv[1])
    results = json.loads(path.read_text(encoding="utf-8"))
    print(report(results))
    plot(results, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
