"""What the cells of an ablation say: over seeds, and of each field beside the others."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pointillist.ablate.grid import Factor, spelled
from pointillist.metrics.interval import t_quantile

LEVEL = 0.95


class Range(NamedTuple):
    """The mean over n seeds, and the lowest and highest of them."""

    mean: float
    low: float
    high: float
    n: int


def range_of(values: Sequence[float]) -> Range:
    """Of one value a seed."""
    return Range(sum(values) / len(values), min(values), max(values), len(values))


class Effect(NamedTuple):
    """One field's effect on one figure.

    `means` holds for each value the mean over `cells_with` it. `difference` is that of the
    second value from the first, of more than two the highest mean less the lowest. Differences up
    to `by_chance` seeds alone make (None: there are no repetitions that would tell).
    """

    key: str
    means: dict[str, float]
    difference: float
    by_chance: float | None

    @property
    def exceeds(self) -> bool | None:
        """Whether the difference is more than the seeds make; None where nothing tells."""
        return None if self.by_chance is None else abs(self.difference) > self.by_chance


def is_grid(factors: Sequence[Factor], settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the cells are every combination, and not one field varied at a time."""
    return len(settings) == math.prod(len(factor.values) for factor in factors)


def cells_with(
    key: str, value: Any, factors: Sequence[Factor], settings: Sequence[Mapping[str, Any]]
) -> list[bool]:
    """The cells that tell of a field's value: of a grid all that have it.

    Where one field is varied at a time, the one in which the others have their first values.
    """
    others = [] if is_grid(factors, settings) else [one for one in factors if one.key != key]
    return [
        spelled(setting[key]) == spelled(value)
        and all(spelled(setting[one.key]) == spelled(one.values[0]) for one in others)
        for setting in settings
    ]


def effects_of(
    factors: Sequence[Factor],
    settings: Sequence[Mapping[str, Any]],
    values: Sequence[Sequence[float]],
) -> list[Effect]:
    """The effect of every field on one figure, of which `values` holds a row of seeds a cell.

    The means of a field's values are over the same settings of the other fields. What chance makes
    is Fisher's least significant difference (Montgomery, "Design and Analysis of Experiments",
    chapter 3): t sqrt(2 s^2 / n), with s^2 the variance within cells, pooled over all of them, n
    the runs behind a mean, and of the level Bonferroni's share for each pair.
    """
    rows = torch.tensor(values, dtype=torch.float64)
    cells, seeds = rows.shape
    within = float(rows.var(1).mean()) if seeds > 1 else math.nan
    found = []
    for factor in factors:
        means = {}
        for value in factor.values:
            has = torch.tensor(cells_with(factor.key, value, factors, settings))
            means[spelled(value)] = float(rows[has].mean())
        first, *others = means.values()
        difference = others[0] - first
        if len(others) > 1:
            difference = max(means.values()) - min(means.values())
        by_chance = None
        if seeds > 1:
            pairs = math.comb(len(means), 2)
            t = t_quantile(1 - (1 - LEVEL) / (2 * pairs), cells * (seeds - 1))
            by_chance = t * math.sqrt(2 * within / (int(has.sum()) * seeds))
        found.append(Effect(factor.key, means, difference, by_chance))
    return found


def departure(effects: Sequence[Effect], settings: Sequence[Mapping[str, Any]],
              values: Sequence[Sequence[float]]) -> float:  # fmt: skip
    """How far a cell of a grid lies, at most, from the sum of the fields' effects.

    That is what they do together.
    """
    cells = [sum(row) / len(row) for row in values]
    grand = sum(cells) / len(cells)
    sums = [
        grand + sum(one.means[spelled(setting[one.key])] - grand for one in effects)
        for setting in settings
    ]
    return max(abs(cell - total) for cell, total in zip(cells, sums, strict=True))
