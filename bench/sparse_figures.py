"""Figures of the sparse tables, from bench/results: `make results` writes them too.

    python bench/sparse_figures.py [--minutes 15]

PSNR (hidden pixels, mean of the draws) and CRPS of every system against the share of known pixels,
and against seconds a picture at 20 %; what its intervals cover there. Dashed: without learning.
"""

import argparse
from pathlib import Path
from typing import Any

from results_page import SHARES, kept, name_of, seconds_of

from pointillist.figures import Scale, Series, chart, reliability_figure
from pointillist.metrics.posterior import Reliability

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CLASSICAL = {"thin_plate": "thin plate", "gaussian": "Gaussian process"}


def systems(minutes: str) -> dict[str, dict[str, Any]]:
    """The trained rows of so many minutes that are presets as they are, by their names."""
    found = {name_of(stem)[0]: row for stem, row in kept(f"sparse-*-{minutes}min").items()}
    return {name: row for name, row in found.items()
            if row["preset"] == f"cifar10-{name}-small" and not row["untrained"]}  # fmt: skip


def by_share(metric: str, label: str, rows: dict[str, dict[str, Any]], minutes: str) -> str:
    """One line a system, and for PSNR those without learning."""
    shares = [100 * float(share) for share in SHARES]
    lines = [Series(trained(name, row), shares, [row["by share"][s][metric][0] for s in SHARES])
             for name, row in rows.items()]  # fmt: skip
    for row in kept(f"unet-regressor-{minutes}min").values():
        found = row["by share of known pixels"]
        of = {"psnr": "hidden"}.get(metric, metric)
        error = ", its absolute error" if metric == "crps" else ""
        lines.append(Series(f"U-Net regressor{error}", shares, [found[s][of] for s in SHARES]))
    if metric == "psnr":
        found = kept("baselines")["baselines"]["PSNR by share of known pixels"]
        lines += [Series(shown, shares, [found[name][s]["hidden"] for s in SHARES], style="guide")
                  for name, shown in CLASSICAL.items()]  # fmt: skip
    some = next(iter(rows.values()))
    draws = "the mean of" if metric == "psnr" else "of"
    return chart(lines, title=f"{label} after about {minutes} minutes of training",
                 note=f"hidden pixels of {some['pictures']} CIFAR-10 test pictures, {draws} "
                 f"{some['draws']} draws of {some['evaluations']} evaluations", width=640,
                 height=460, x=Scale("known pixels, %", log=True), y=Scale(label))  # fmt: skip


def trained(name: str, row: dict[str, Any]) -> str:
    return f"{name}, {row['minutes of training']:.0f} min"


def by_seconds(metric: str, label: str, rows: dict[str, dict[str, Any]], minutes: str) -> str:
    """One point a system at 20 %, and the regressor's."""
    points = []
    for name, row in rows.items():
        at = row["by share"]["0.2"]
        value, low, high = at[metric]
        points.append(Series(f"{name}, K = {row['draws']}", [seconds_of(row["by share"])], [value],
                             [low], [high], "points"))  # fmt: skip
    for row in kept(f"unet-regressor-{minutes}min").values():
        value = row["by share of known pixels"]["0.2"][{"psnr": "hidden"}.get(metric, metric)]
        points.append(Series("U-Net regressor", [row["seconds a picture"]], [value],
                             style="points"))  # fmt: skip
    some = next(iter(rows.values()))
    return chart(points, title=f"{label} and what it costs, a fifth known",
                 note=f"K draws of {some['evaluations']} evaluations, {some['where']['cores']} "
                 f"cores; 95 % intervals", width=640, height=460,
                 x=Scale("seconds a picture", log=True), y=Scale(label))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", default="15")
    asked = parser.parse_args()
    rows = systems(asked.minutes)
    if not rows:
        return
    figures = {}
    for metric, label in (("psnr", "PSNR, dB"), ("crps", "CRPS")):
        figures[f"{metric}-share"] = by_share(metric, label, rows, asked.minutes)
        figures[f"{metric}-seconds"] = by_seconds(metric, label, rows, asked.minutes)
    figures["reliability"] = reliability_figure({
        name: Reliability([float(level) for level in at["covered"]], [*at["covered"].values()],
                          row["draws"], at["places"])
        for name, row in rows.items() for at in (row["by share"]["0.2"],)
    })  # fmt: skip
    for name, figure in figures.items():
        path = IMAGES / f"sparse-{name}-{asked.minutes}min.svg"
        path.write_text(figure + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
