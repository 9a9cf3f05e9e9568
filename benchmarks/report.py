"""pytest-benchmark's JSON to a table and a plot.

python benchmarks/report.py RESULTS.json [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BASELINES = (
    "eager",
    "eager_channels_last",
    "compile",
    "compile_channels_last",
    "compile_freezing",
)
GENIMG = ("genimg", "genimg_channels_last")


def load(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> provider -> {median in ms, p20, p80, extra}, or {reason} of one that failed.

    Raises:
        ValueError: not a pytest-benchmark file of these benchmarks, or an empty one.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        benchmarks = results["benchmarks"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a pytest-benchmark JSON file: {error}") from error
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in benchmarks:
        stats = entry["stats"]
        groups.setdefault(entry["group"], {})[entry["extra_info"]["provider"]] = {
            "ms": stats["median"] * 1e3,
            "iqr": stats["iqr"] * 1e3,
            **entry["extra_info"],
        }
    for failure in results.get("failures", ()):
        groups.setdefault(failure["group"], {})[failure["provider"]] = {
            "backend": failure["backend"],
            "reason": failure["reason"],
        }
    if not groups:
        raise ValueError(f"{path} holds no benchmark")
    return groups


def fastest(rows: dict[str, dict[str, Any]], names: tuple[str, ...]) -> str | None:
    """The one of these providers with the smallest time."""
    present = [name for name in names if "ms" in rows.get(name, {})]
    return min(present, key=lambda name: rows[name]["ms"]) if present else None


def ratios(groups: dict[str, dict[str, dict[str, Any]]]) -> dict[str, tuple[float, str, str]]:
    """Group -> (best PyTorch's time / best genimg's, which PyTorch, which genimg).

    A group in which genimg failed, in either memory format, has none.
    """
    found = {}
    for group, rows in groups.items():
        if any("reason" in rows.get(name, {}) for name in GENIMG):
            continue
        best, own = fastest(rows, BASELINES), fastest(rows, GENIMG)
        if best is not None and own is not None:
            found[group] = (rows[best]["ms"] / rows[own]["ms"], best, own)
    return found


def failures(groups: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A line for each that has no time because it failed."""
    return [
        f"{group}, {provider}: {row['reason']}"
        for group, rows in groups.items()
        for provider, row in rows.items()
        if "reason" in row
    ]


def _verdict(row: dict[str, Any]) -> str:
    return "WRONG" if row["reason"].startswith("WRONG:") else "FAILED"


def _rate(row: dict[str, Any]) -> str:
    """GFLOP/s of the direct convolution, where its FLOP are known."""
    return f"{row['flop'] / row['ms'] / 1e6:.0f}" if "flop" in row and "ms" in row else ""


def _share(row: dict[str, Any]) -> str:
    """How much of the machine's bound a time reaches, where it is known."""
    return f"{row['bound_ms'] / row['ms']:.0%}" if "bound_ms" in row and "ms" in row else ""


def table(groups: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: medians in milliseconds, genimg's share of the bound, and the best of both.

    A kernel has a column of its own where it ran, such as Triton's on a GPU, and there its share of
    the bound behind each time.
    """
    present = {name for rows in groups.values() for name in rows}
    baselines = [name for name in BASELINES if name in present]
    kernels = sorted(present - {*GENIMG, *BASELINES})
    columns = [*(name for name in GENIMG if name in present), *baselines, *kernels]
    lines = [
        f"| op, case, pass | selected | {' | '.join(columns)} | GFLOP/s | of the bound "
        "| best PyTorch / genimg |",
        "|---|---|" + "---:|" * (len(columns) + 3),
    ]
    best = ratios(groups)
    for group, rows in groups.items():
        cells = []
        for name in columns:
            row = rows.get(name)
            if row and "reason" in row:
                cells.append(_verdict(row))
                continue
            share = f" ({_share(row)})" if row and name in kernels and _share(row) else ""
            cells.append(f"{row['ms']:.3f}{share}" if row else "")
        own = rows[best[group][2]] if group in best else next(iter(rows.values()))
        bad = [_verdict(rows[name]) for name in GENIMG if "reason" in rows.get(name, {})]
        ratio = ", ".join(dict.fromkeys(bad))
        if group in best:
            ratio = f"{best[group][0]:.2f} ({best[group][1]})"
        lines.append(
            f"| {group} | {own['backend']} | {' | '.join(cells)} | {_rate(own)} | {_share(own)} "
            f"| {ratio} |"
        )
    return "\n".join(lines)


def plot(groups: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """A bar for each group: how many times faster than the best of PyTorch's modes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best = ratios(groups)
    names = list(best)
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(names) + 1.2), layout="constrained")
    axes.barh(names, [best[name][0] for name in names], color="#4477aa")
    axes.axvline(1, color="#bb5566", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("best PyTorch time / genimg time (above 1 is faster)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Write ``report.md`` and ``report.png`` and print the table.

    Returns:
        The exit code: 1 if a benchmark failed, 2 if there is no report.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="default: beside the results")
    args = parser.parse_args(argv)
    try:
        groups = load(args.results)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    out = args.out or args.results.parent
    out.mkdir(parents=True, exist_ok=True)
    text, failed = table(groups), failures(groups)
    if failed:
        text = "\n".join([text, "", "Failed:", "", *(f"- {line}" for line in failed)])
    (out / "report.md").write_text(text + "\n", encoding="utf-8")
    plot(groups, out / "report.png")
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
