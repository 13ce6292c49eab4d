"""The table of an ablation: as JSON, as one page, and as lines of text."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pointillist.ablate.effects import (
    Effect,
    Range,
    cells_with,
    departure,
    effects_of,
    is_grid,
    range_of,
)
from pointillist.ablate.grid import Factor, spelled
from pointillist.engine.checkpoint import write_text
from pointillist.engine.log import read
from pointillist.figures import Scale, Series, chart
from pointillist.page import Html, figure, page, repeat, section, table
from pointillist.run import Run, to_dict
from pointillist.runfolder import read_spec
from pointillist.types import InputError

MOST_LINES = 16  # of a figure, which is a tangle above
ANSWERS = {True: "yes", False: "no", None: "one seed: nothing tells"}


class Measured(NamedTuple):
    """A figure of one run; the interval where one was computed, and of how many pictures."""

    value: float
    low: float | None
    high: float | None
    n: int


class Result(NamedTuple):
    """What one run came to; `about` holds for every score what must be equal to compare it."""

    name: str
    seed: int
    images: int
    images_per_second: float
    losses: dict[str, float]
    scores: dict[str, Measured]
    about: dict[str, dict[str, Any]]


def result_of(
    folder: Path, run: Run, scores: dict[str, Measured], about: dict[str, dict[str, Any]]
) -> Result:
    """With what the log says of the end; without scores, those of the last validation."""
    events = read(folder / "log.jsonl")
    steps = [event for event in events if event["event"] == "step"]
    held = [event for event in events if event["event"] == "validation"]
    if not steps or not (scores or held):
        raise InputError(f"{folder / 'log.jsonl'} lacks the end of the run; bring it back, or "
                         f"delete {folder} to train it again")  # fmt: skip
    losses = {"loss": steps[-1]["loss"]} if "loss" in steps[-1] else {}
    at_end = {name: value for name, value in (held or [{}])[-1].items() if "@" in name}
    if not scores:
        spec, objective = read_spec(folder), run.objective
        same = {"data": spec.fingerprint, "path": objective.kind,
                "noise": objective.noise_strength(tuple(spec.size))}  # fmt: skip
        hinted = {**same, "task": to_dict(run)["task"]}
        n = run.train.validate
        scores = {name: Measured(value, None, None, n) for name, value in at_end.items()}
        about = {name: hinted if name.startswith("hinted") else same for name in scores}
    return Result(
        folder.name, run.seed, steps[-1]["images"], steps[-1]["images_per_second"],
        losses | at_end, scores, about,
    )  # fmt: skip


def spelled_scores(result: Result) -> str:
    """All scores in a line."""
    return "  ".join(f"{name} {one.value:.4g}" for name, one in result.scores.items())


class Row(NamedTuple):
    """One cell of the table, with a result for every seed."""

    name: str
    setting: dict[str, Any]
    parameters: int
    macs: int
    results: tuple[Result, ...]

    def values(self, score: str) -> list[float]:
        """One a seed."""
        return [result.scores[score].value for result in self.results]

    def ends(self, score: str) -> tuple[float, float, float] | None:
        """Mean, and the range over seeds; of one seed, value and interval, or None without."""
        one = self.results[0].scores[score]
        if len(self.results) > 1:
            return range_of(self.values(score))[:3]
        return None if one.low is None or one.high is None else (one.value, one.low, one.high)

    def spelled(self, score: str) -> str:
        ends = self.ends(score)
        if ends is None:
            return f"{self.values(score)[0]:.4g}"
        return f"{ends[0]:.4g} ({ends[1]:.4g} to {ends[2]:.4g})"

    @property
    def speed(self) -> float:
        return sum(result.images_per_second for result in self.results) / len(self.results)

    def as_json(self) -> dict[str, Any]:
        losses = self.results[0].losses
        over: dict[str, Range] = {}
        if len(self.results) > 1:
            over = {name: range_of(self.values(name)) for name in self.results[0].scores}
        runs = [
            {**result._asdict(), "scores": {k: v._asdict() for k, v in result.scores.items()}}
            for result in self.results
        ]
        return {
            "name": self.name, "setting": self.setting, "parameters": self.parameters,
            "macs": self.macs, "images_per_second": self.speed, "losses": {
                name: sum(result.losses[name] for result in self.results) / len(self.results)
                for name in losses
            },
            "over_seeds": {name: one._asdict() for name, one in over.items()}, "runs": runs,
        }  # fmt: skip


class Ablation(NamedTuple):
    """All cells, in the order of `grid.choices`."""

    title: str
    factors: tuple[Factor, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    recipe: dict[str, Any]

    @property
    def scores(self) -> list[str]:
        """The figures that all runs have."""
        results = [result for row in self.rows for result in row.results]
        return [k for k in results[0].scores if all(k in result.scores for result in results)]

    def differs(self, score: str) -> str:
        """What keeps a figure from being compared across cells; empty where nothing does."""
        first, *others = [result for row in self.rows for result in row.results]
        if not all(math.isfinite(one.scores[score].value) for one in (first, *others)):
            return "a value is not finite"
        ours = {**first.about[score], "n": first.scores[score].n}
        for other in others:
            theirs = {**other.about[score], "n": other.scores[score].n}
            for key in sorted(ours.keys() | theirs.keys()):
                if ours.get(key) != theirs.get(key):
                    return f"{key} differs"
        return ""

    @property
    def compared(self) -> list[str]:
        return [score for score in self.scores if not self.differs(score)]

    def effects(self, score: str) -> list[Effect]:
        settings = [row.setting for row in self.rows]
        return effects_of(self.factors, settings, [row.values(score) for row in self.rows])

    @property
    def grid(self) -> bool:
        """Whether the cells are every combination."""
        return is_grid(self.factors, [row.setting for row in self.rows])

    def departure(self, score: str) -> float:
        """Of a grid; see `effects.departure`."""
        settings = [row.setting for row in self.rows]
        return departure(
            self.effects(score), settings, [row.values(score) for row in self.rows]
        )  # fmt: skip

    def rows_with(self, factor: Factor, value: Any) -> list[Row]:
        """The cells that tell of a field's value; see `effects.cells_with`."""
        has = cells_with(factor.key, value, self.factors, [row.setting for row in self.rows])
        return [row for row, there in zip(self.rows, has, strict=True) if there]

    def as_json(self) -> dict[str, Any]:
        """What ablation.json holds; what is not finite is null there."""
        facts: dict[str, Any] = {
            "factors": {factor.key: list(factor.values) for factor in self.factors},
            "seeds": list(self.seeds),
            "cells": [row.as_json() for row in self.rows],
            "effects": {
                score: {
                    **{one.key: {**one._asdict(), "exceeds": one.exceeds}
                       for one in self.effects(score)},
                    **({"departure": self.departure(score)} if self.grid else {}),
                }
                for score in self.compared
            },
            "not_compared": {k: self.differs(k) for k in self.scores if self.differs(k)},
            "recipe": self.recipe,
        }  # fmt: skip
        return _finite(facts)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Tables, as rows of text.


def cell_table(found: Ablation) -> tuple[list[str], list[list[str]]]:
    """A row for each cell: every figure, and what it costs."""
    header = ["cell", *found.scores, "images/s", "parameters", "GMAC"]
    rows = [
        [row.name, *map(row.spelled, found.scores), f"{row.speed:.1f}",
         f"{row.parameters / 1e6:.2f} M", f"{row.macs / 1e9:.3g}"]
        for row in found.rows
    ]  # fmt: skip
    return header, rows


def effect_table(found: Ablation) -> tuple[list[str], list[list[str]]]:
    """A row for each field and figure: means of its values, and whether seeds explain it."""
    means_of = "mean over the others" if found.grid else "the others at their first"
    header = ["field", "figure", means_of, "difference", "by chance up to",
              "more than seeds make"]  # fmt: skip
    rows = []
    by_score = {score: {one.key: one for one in found.effects(score)} for score in found.compared}
    for factor in found.factors:
        for score, effects in by_score.items():
            one = effects[factor.key]
            means = ", ".join(f"{value}: {mean:.4g}" for value, mean in one.means.items())
            chance = "–" if one.by_chance is None else f"{one.by_chance:.2g}"
            rows.append([factor.key, score, means, f"{one.difference:+.2g}", chance,
                         ANSWERS[one.exceeds]])  # fmt: skip
    return header, rows


def notes(found: Ablation) -> list[str]:
    """How the tables are to be read."""
    said = []
    if found.seeds:
        said.append(f"Brackets: the lowest and highest of {len(found.seeds)} seeds.")
    else:
        if any(row.ends(score) for row in found.rows for score in found.scores):
            said.append("Brackets: 95 % intervals over pictures, which know nothing of another "
                        "training.")  # fmt: skip
        said.append("Whether a difference is more than chance, repetitions tell: --seeds 0,1.")
    if not found.grid:
        said.append("One field at a time: what fields do together, these cells do not tell.")
    elif found.compared and len(found.factors) > 1:
        apart = ", ".join(f"{found.departure(score):.2g} ({score})" for score in found.compared)
        said.append(f"Cells lie up to {apart} from the sum of the fields' effects, which is what "
                    f"fields do together.")  # fmt: skip
    for score in found.scores:
        if found.differs(score):
            said.append(f"{score} does not compare between these cells, as {found.differs(score)}; "
                        f"no effect is computed of it.")  # fmt: skip
    return said


def lines(found: Ablation) -> list[str]:
    """Both tables in columns of text, and how they are to be read."""
    said = []
    for header, rows in (cell_table(found), effect_table(found)):
        if rows:
            widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
            for row in (header, *rows):
                padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
                said.append("  ".join(padded).rstrip())
            said.append("")
    return [*said, *notes(found)]


# Files.


def write(out: Path, found: Ablation) -> None:
    """OUT/ablation.json and OUT/ablation.html."""
    text = json.dumps(found.as_json(), indent=1, default=str, allow_nan=False) + "\n"
    write_text(out / "ablation.json", text)
    header, rows = cell_table(found)
    sections = [section("Cells", table(rows, header), *figures(found))]
    header, rows = effect_table(found)
    sections.append(section("Effects", *([table(rows, header)] if rows else []), *notes(found)))
    sections.append(section("To repeat this", repeat(found.recipe)))
    write_text(out / "ablation.html", page(f"Ablation of {found.title}", sections))


def figures(found: Ablation) -> list[Html]:
    """Losses over time for all cells, and every other figure over the values of a field.

    Of a grid that is the last field, with a line for every setting of the others.
    """
    over_time: dict[str, list[str]] = {}
    single: list[str] = []
    for score in found.compared:
        metric, at, _ = score.partition("@")
        (over_time.setdefault(metric, []) if at else single).append(score)
    drawn = [time_figure(found, metric, names) for metric, names in over_time.items()
             if len(found.rows) <= MOST_LINES]  # fmt: skip
    for factor in found.factors[-1:] if found.grid else found.factors:
        drawn += [one for score in single if (one := value_figure(found, score, factor))]
    return [figure(one) for one in drawn]


def time_figure(found: Ablation, metric: str, names: Sequence[str]) -> str:
    """Losses over time, each over the mean of all cells: they differ by little beside that."""
    times = [float(name.partition("@")[2]) for name in names]
    means = [[range_of(row.values(name)).mean for name in names] for row in found.rows]
    ground = [sum(column) / len(column) for column in zip(*means, strict=True)]
    lines = [
        Series(row.name, times, [100 * (a / b - 1) for a, b in zip(mean, ground, strict=True)])
        for row, mean in zip(found.rows, means, strict=True)
    ]
    n = found.rows[0].results[0].scores[names[0]].n
    return chart(
        lines, title=f"{metric}: each cell and the mean of all",
        note=f"n = {n:,} held-out pictures, seeds: {len(found.seeds) or 1}; lower is better",
        x=Scale("t (0 noise, 1 data)", low=0.0, high=1.0), y=Scale("% above the mean"),
    )  # fmt: skip


def value_figure(found: Ablation, score: str, factor: Factor) -> str:
    """A figure over the values of a field, a line for every setting of the others.

    Empty where there would be too many lines.
    """
    columns = [found.rows_with(factor, value) for value in factor.values]
    if len(columns[0]) > MOST_LINES:
        return ""
    values = [spelled(value) for value in factor.values]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in factor.values)
    places = (
        [float(v) for v in factor.values] if numbers else [float(i) for i in range(len(values))]
    )
    order = sorted(range(len(values)), key=places.__getitem__)
    label = factor.key
    if not numbers:
        label += f" ({', '.join(f'{i}: {value}' for i, value in enumerate(values))})"
    lines = []
    for along in zip(*columns, strict=True):
        rows = [along[i] for i in order]
        ends = [row.ends(score) for row in rows]
        whole = [one for one in ends if one is not None]
        known = len(whole) == len(rows)
        others = ", ".join(
            f"{key.rpartition('.')[2]} {spelled(value)}"
            for key, value in rows[0].setting.items()
            if key != factor.key
        )
        lines.append(Series(
            others or score, [places[i] for i in order],
            [range_of(row.values(score)).mean for row in rows],
            [one[1] for one in whole] if known else None,
            [one[2] for one in whole] if known else None,
        ))  # fmt: skip
    n = found.rows[0].results[0].scores[score].n
    bars = f"range of {len(found.seeds)} seeds" if found.seeds else "95 % intervals"
    return chart(
        lines, title=f"{score} over {factor.key}", note=f"n = {n:,} samples; bars: {bars}",
        x=Scale(label), y=Scale(score),
    )  # fmt: skip
