"""A sweep: one evaluation for every combination, each resumable, in one table and one figure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pointillist.engine.checkpoint import write_text
from pointillist.evaluation.check import check
from pointillist.evaluation.generated import Progress
from pointillist.evaluation.judge import Verdict, judge
from pointillist.evaluation.plan import Plan, cells
from pointillist.evaluation.report import spelled
from pointillist.figures import Point, sweep_figure
from pointillist.page import Html, figure, page, repeat, section, table
from pointillist.sample import Trained


class Cell(NamedTuple):
    """One combination and what was found."""

    setting: dict[str, Any]
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        return {"setting": self.setting, **self.verdict.as_json()}


def sweep(
    open_run: Callable[[Plan], Trained],
    plan: Plan,
    sweeps: dict[str, list[Any]],
    folder: Path,
    shared: Path,
    progress: Progress,
    found: Callable[[Cell], None],
) -> list[Cell]:
    """Evaluate every combination; what an earlier call made is found in `folder`."""
    made: list[Cell] = []
    trained, opened = None, None
    asked = cells(plan, sweeps)
    # Only another average or checkpoint is another network. All cells are checked before any is
    # judged: nobody wants to hear of the last one's mistake after hours.
    for _, one in sorted(asked, key=lambda cell: str((cell[1].ema, cell[1].at))):
        if trained is None or opened != (one.ema, one.at):
            trained, opened = open_run(one), (one.ema, one.at)
        check(trained, one)
    for setting, one in asked:
        if trained is None or opened != (one.ema, one.at):
            trained, opened = open_run(one), (one.ema, one.at)
        cell = Cell(setting, judge(trained, one, folder, shared, progress))
        found(cell)
        made.append(cell)
    return made


def write_sweep(out: Path, title: str, made: list[Cell]) -> None:
    """The rows as JSON, and as one page with a figure for every metric."""
    write_text(
        out,
        json.dumps({"sweep": [cell.as_json() for cell in made]}, indent=1, allow_nan=False) + "\n",
    )
    keys = list(made[0].setting)
    sections = []
    for name in made[0].verdict.scores:
        rows = [
            [*(str(cell.setting[key]) for key in keys), score.value, spelled(score), score.n]
            for cell in made
            for score in (cell.verdict.scores[name],)
        ]
        rows_table = table(rows, [*keys, name, "95 % interval", "n"])
        sections.append(section(name, *drawn(name, made), rows_table))
    facts = [{**cell.setting, **cell.verdict.recipe} for cell in made]
    sections.append(section("To repeat this", repeat({"cells": facts})))
    write_text(out.with_suffix(".html"), page(title, sections))


def drawn(name: str, made: list[Cell]) -> list[Html]:
    """The metric over the last key whose values are numbers, a line for every other combination."""
    numbers = [
        key
        for key in made[0].setting
        if all(isinstance(cell.setting[key], int | float) for cell in made)
        and len({cell.setting[key] for cell in made}) > 1
    ]
    if not numbers:
        return []
    along, lines = numbers[-1], dict[str, list[Point]]()
    for cell in made:
        others = ", ".join(f"{key} {value}" for key, value in cell.setting.items() if key != along)
        score = cell.verdict.scores[name]
        point = Point(float(cell.setting[along]), score.value, score.low, score.high)
        lines.setdefault(others or name, []).append(point)
    n = made[0].verdict.scores[name].n
    return [figure(sweep_figure(lines, metric=name, over=along, n=n))]
