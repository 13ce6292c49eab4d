"""Runs side by side: quality, pictures a second, memory, parameters; one table and one figure."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pointillist.describe import describe
from pointillist.engine.checkpoint import write_text
from pointillist.evaluation.report import spelled
from pointillist.figures import Point, compare_figure
from pointillist.metrics.interval import Score
from pointillist.page import figure, page, repeat, section, table
from pointillist.run import Run
from pointillist.runfolder import read_spec
from pointillist.types import InputError


class Row(NamedTuple):
    """One run, as its report and its configuration tell of it."""

    name: str
    metrics: dict[str, Score]
    about: dict[str, dict[str, Any]]  # for each metric what must be equal for figures to compare
    recipe: dict[str, Any]
    device: str
    drawn_per_second: float | None  # None: no picture was drawn for these metrics
    peak_memory_bytes: float | None
    parameters: int
    macs: int

    def as_json(self) -> dict[str, Any]:
        metrics = {name: score._asdict() for name, score in self.metrics.items()}
        return {**self._asdict(), "metrics": metrics}


def read_row(folder: Path) -> Row:
    """What `evaluate` left in a run folder; InputError where it was not called yet."""
    report = folder / "report.json"
    if not (folder / "run.yaml").is_file():
        raise InputError(f"{folder} is not a run folder; `pointillist train` makes one")
    if not report.is_file():
        raise InputError(f"{report} is missing; call `pointillist evaluate {folder}` first")
    facts = describe(Run.load(folder), read_spec(folder))
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        recipe, speed = dict(found.pop("recipe")), dict(found.pop("speed"))
        found.pop("reliability", None)
        metrics = {
            name: Score(float(one["value"]), float(one["low"]), float(one["high"]), int(one["n"]))
            for name, one in found.items()
        }
        about = {name: dict(recipe["about"][name]) for name in metrics}
        drawn = {name: float(speed[name]) for name in speed}
        device = str(recipe["device"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{report} is damaged ({error!r}); evaluate {folder} again") from None
    return Row(
        folder.resolve().name, metrics, about, recipe, device, drawn.get("drawn_per_second"),
        drawn.get("peak_memory_bytes"), facts["parameters"], facts["macs"],
    )  # fmt: skip


def comparable(rows: list[Row]) -> list[str]:
    """The metrics that all have; InputError where they were computed in different ways."""
    first = rows[0]
    names = [row.name for row in rows]
    if len(set(names)) < len(rows):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two runs are named {twice}; name each run once, or rename a folder")
    shared = [name for name in first.metrics if all(name in row.metrics for row in rows)]
    if not shared:
        raise InputError("the runs have no metric in common; evaluate them with the same --metrics")
    for row in rows[1:]:
        for name in shared:
            ours, theirs = ({**one.about[name], "n": one.metrics[name].n} for one in (first, row))
            for key in ours.keys() | theirs.keys():
                if ours.get(key) != theirs.get(key):
                    raise InputError(
                        f"{name} of {row.name} was computed with {key} {theirs.get(key)}, that of "
                        f"{first.name} with {ours.get(key)}; evaluate them alike"
                    )
    return shared


def compare(folders: list[Path], out: Path) -> list[Row]:
    """Read every run's report; write OUT/compare.json and OUT/compare.html."""
    if len(folders) < 2:
        raise InputError(f"{len(folders)} run is given; a comparison takes two or more")
    rows = [read_row(folder) for folder in folders]
    names = comparable(rows)
    write_text(out / "compare.json", json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    quality: list[list[Any]] = [
        [name, *(f"{row.metrics[name].value:.4g} ({spelled(row.metrics[name])})" for row in rows)]
        for name in names
    ]
    cost: list[list[Any]] = [
        ["pictures drawn a second", *(row.drawn_per_second for row in rows)],
        [
            "peak memory in drawing, MB",
            *(row.peak_memory_bytes and row.peak_memory_bytes / 1e6 for row in rows),
        ],
        ["on", *(row.device for row in rows)],
        ["parameters, M", *(row.parameters / 1e6 for row in rows)],
        ["GMAC an evaluation and picture", *(row.macs / 1e9 for row in rows)],
    ]
    header = ["value (95 % interval)", *(row.name for row in rows)]
    sections = [section("Table", table([*quality, *cost], header)), *drawn(rows, names[0])]
    sections.append(section("To repeat this", repeat({row.name: row.recipe for row in rows})))
    write_text(out / "compare.html", page("Comparison", sections))
    return rows


def drawn(rows: list[Row], name: str) -> list[str]:
    """The first metric over pictures a second, where all were drawn on one kind of device."""
    points = {
        row.name: Point(row.drawn_per_second, score.value, score.low, score.high)
        for row in rows
        for score in (row.metrics[name],)
        if row.drawn_per_second and row.device == rows[0].device
    }
    if len(points) < len(rows):
        return ["No figure: not every run drew pictures for these metrics on the same device, so "
                "there is no speed to show them over."]  # fmt: skip
    return [
        section("Figure", figure(compare_figure(points, metric=name, n=rows[0].metrics[name].n)))
    ]
