"""pytest-benchmark's JSON to a table and a plot.

python benchmarks/report.py RESULTS.json [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BASELINES = ("eager", "eager_channels_last", "compile", "compile_channels_last")


def load(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> provider -> {median in ms, p20, p80, extra}.

    Raises:
        ValueError: not a pytest-benchmark file of these benchmarks, or an empty one.
    """
    try:
        benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
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
    if not groups:
        raise ValueError(f"{path} holds no benchmark")
    return groups


def ratios(groups: dict[str, dict[str, dict[str, Any]]]) -> dict[str, tuple[float, str]]:
    """Group -> (best PyTorch's time / genimg's, which PyTorch that was)."""
    found = {}
    for group, rows in groups.items():
        baselines = {name: rows[name]["ms"] for name in BASELINES if name in rows}
        if "genimg" in rows and baselines:
            best = min(baselines, key=lambda name: baselines[name])
            found[group] = (baselines[best] / rows["genimg"]["ms"], best)
    return found


def table(groups: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: medians in milliseconds, and the ratio to the best of PyTorch's modes."""
    kernels = sorted({name for rows in groups.values() for name in rows} - {"genimg", *BASELINES})
    columns = [*BASELINES, *kernels]
    lines = [
        f"| op, case, pass | taken | genimg ms | {' | '.join(columns)} | best PyTorch / genimg |",
        "|---|---|" + "---:|" * (len(columns) + 2),
    ]
    best = ratios(groups)
    for group, rows in groups.items():
        cells = [f"{rows[name]['ms']:.3f}" if name in rows else "" for name in columns]
        own = rows.get("genimg")
        ratio = f"{best[group][0]:.2f} ({best[group][1]})" if group in best else ""
        lines.append(
            f"| {group} | {own['backend'] if own else ''} | {own['ms']:.3f} | "
            f"{' | '.join(cells)} | {ratio} |"
            if own
            else f"| {group} | | | {' | '.join(cells)} | |"
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
    """Write ``report.md`` and ``report.png`` and print the table."""
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
    text = table(groups)
    (out / "report.md").write_text(text + "\n", encoding="utf-8")
    plot(groups, out / "report.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
