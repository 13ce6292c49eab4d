"""Known pixels from a table: x, y and the colour of one pixel a line."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.types import Given, InputError

COLOURS = {1: ("v",), 3: ("r", "g", "b")}
UNIT = "_unit"


class Pixels(NamedTuple):
    """Known pixels of one picture, and how many lines told of a pixel again."""

    given: Given
    repeated: int = 0


def read_pixels(path: Path, channels: int, size: tuple[int, ...]) -> Pixels:
    """(seen, mask) of one picture of `size` = (h, w) from a CSV file.

    Columns x and y count pixels from the top left, r, g, b (grey: v) run from 0 to 255; a name that
    ends in `_unit` runs from 0 to 1. Of lines that tell of one pixel the mean is taken. InputError
    names the line and what is wrong with it.
    """
    if len(size) != 2 or channels not in COLOURS:
        raise InputError(f"{path}: known pixels are read for grey or colour pictures only")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"{path} cannot be read: {reason}") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in rows.fieldnames or []]
    except csv.Error as error:
        raise InputError(f"{path}, line 1 is not CSV: {error}") from None
    rows.fieldnames = header
    names = {}
    for wanted in ("x", "y", *COLOURS[channels]):
        there = [name for name in (wanted, wanted + UNIT) if name in header]
        if len(there) != 1 or header.count(there[0]) > 1:
            raise InputError(
                f"{path} has columns {', '.join(header) or 'none'}; it needs x, y, "
                f"{', '.join(COLOURS[channels])}, each once, with {UNIT} behind it for 0 to 1"
            )
        names[wanted] = there[0]
    if unknown := [name for name in header if name not in names.values()]:
        raise InputError(
            f"{path} has a column {unknown[0]!r} that is not known; leave it out, there are "
            f"{', '.join(names.values())}"
        )
    h, w = size
    places: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row:
                raise InputError(
                    f"{where} has more cells than the first line; a number has a point"
                )
            column = _cell(row, names["x"], w, where)
            line = _cell(row, names["y"], h, where)
            colours = tuple(_level(row, names[colour], where) for colour in COLOURS[channels])
            places.setdefault((line, column), []).append(colours)
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num} is not CSV: {error}") from None
    if not places:
        raise InputError(f"{path} holds no pixel; each line after the first gives one")
    means: Float[Tensor, "k c"] = torch.stack([torch.tensor(v).mean(0) for v in places.values()])
    _check_scale(path, means, [names[colour] for colour in COLOURS[channels]])
    line_of, column_of = torch.tensor(list(places)).T
    seen, mask = torch.zeros(1, channels, h, w), torch.zeros(1, 1, h, w, dtype=torch.bool)
    seen[0, :, line_of, column_of] = means.T
    mask[0, 0, line_of, column_of] = True
    return Pixels(Given(seen=seen, mask=mask), sum(map(len, places.values())) - len(places))


def _check_scale(path: Path, means: Float[Tensor, "k c"], names: list[str]) -> None:
    """InputError where no colour of 0 to 255 exceeds 1, as if 1 were white; black alone is black.

    Columns of 0 to 1 say nothing about the others. All others count together: a picture that is
    green alone may have 1 as its highest red.
    """
    byte = [i for i, name in enumerate(names) if not name.endswith(UNIT)]
    levels = (means[:, byte] + 1) * 127.5
    if byte and 1e-3 < levels.max() < 1 + 1e-3:
        near = [names[i] for i in byte]
        raise InputError(
            f"{path} has colours between 0 and 1 in columns {', '.join(near)}, which run from 0 "
            f"to 255; name them {', '.join(name + UNIT for name in near)}, and divide by 255 if "
            f"they are that dark"
        )


def _number(row: dict[str, str | None], name: str, where: str) -> float:
    text = row.get(name)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if value != value or abs(value) == float("inf"):
        raise InputError(f"{where}: {name} is {text!r}; it must be a number")
    return value


def _cell(row: dict[str, str | None], name: str, n: int, where: str) -> int:
    """The number of a pixel along an axis of n."""
    value = _number(row, name, where)
    if name.endswith(UNIT):
        if not 0 <= value <= 1:
            raise InputError(f"{where}: {name} is {value:g}, outside of the picture; it lies in "
                             f"[0, 1]")  # fmt: skip
        return min(int(value * n), n - 1)
    if not 0 <= value <= n - 1:
        raise InputError(f"{where}: {name} is {value:g}, outside of the picture; it lies in 0 to "
                         f"{n - 1}")  # fmt: skip
    if value != int(value):
        raise InputError(f"{where}: {name} is {value:g}; it is the whole number of a pixel")
    return int(value)


def _level(row: dict[str, str | None], name: str, where: str) -> float:
    """A colour in [-1, 1]."""
    value, top = _number(row, name, where), 1 if name.endswith(UNIT) else 255
    if not 0 <= value <= top:
        raise InputError(f"{where}: {name} is {value:g}; it lies in 0 to {top}")
    return value / top * 2 - 1
