"""Figures as SVG text: one chart writer, and the figures that reports are made of.

A chart stands alone: no font, script or style from elsewhere. Its colours keep a contrast of 3 and
more on white and on GitHub's dark ground alike, series differ in mark and dash as well, every mark
tells its value on hovering, and the text takes the colour of the page it stands in.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

from pointillist.metrics.posterior import Reliability
from pointillist.types import InputError

COLOURS = ("#2f7ed8", "#d1495b", "#2a9d6f", "#b0722a", "#8e63ce", "#0f8fa3", "#c04f9a", "#7a7f2a")
GREY = "#767676"  # where no page says otherwise
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKED = 60  # longer lines have no marks
TOP, LEFT, BOTTOM, GAP = 66.0, 70.0, 52.0, 18.0
GLYPH = 6.7  # mean width of a letter at 12 px


class Series(NamedTuple):
    """Points with optional intervals; a guide is a dashed line to compare with, without marks."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: Literal["line", "points", "bars", "guide"] = "line"


class Scale(NamedTuple):
    """An axis: its label, whether it is logarithmic, and its ends where the data do not say."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


class Point(NamedTuple):
    """A figure with its interval, at some place of an axis."""

    x: float
    value: float
    low: float
    high: float


def chart(
    series: Sequence[Series],
    *,
    title: str,
    note: str,
    x: Scale,
    y: Scale,
    width: int = 600,
    height: int = 360,
) -> str:
    """One chart as SVG; `width` is without the legend, which stands outside to the right.

    `note` stands below the title and says how many draws or samples are behind the figure.
    """
    series = [_checked(one, x, y) for one in series]
    if not note or not any(len(one.x) for one in series):
        raise InputError("a chart needs a note on its sample and one point or more; give both")
    across, up = _Ruler(x, _values(series, 0)), _Ruler(y, _values(series, 1))
    named = [(number, one) for number, one in enumerate(series) if one.name]
    legend = 52 + GLYPH * min(34, max(len(one.name) for _, one in named)) if named else 0
    plot = _Plot(across, up, LEFT, TOP, width - GAP, height - BOTTOM)
    total = round(width + legend)
    return "".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{total}" height="{height}" '
        f'viewBox="0 0 {total} {height}" role="img" aria-label="{escape(title)}" color="{GREY}" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>'
        f"<desc>{escape('; '.join([note, *map(_in_words, series)]))}</desc>",
        _text(LEFT, 24.0, title, size=15, weight="600"), _text(LEFT, 44.0, note),
        *plot.axes(x.label, y.label),
        *(part for number, one in enumerate(series) for part in plot.series(one, number, series)),
        *(_key(one, number, float(width), TOP + 8 + 20 * row)
          for row, (number, one) in enumerate(named)),
        "</svg>",
    ])  # fmt: skip


class _Ruler:
    """Where values lie between the ends of an axis, and the ticks to print."""

    def __init__(self, scale: Scale, values: list[float]) -> None:
        self.log = scale.log
        low, high = (math.log10(end) if scale.log else end for end in (min(values), max(values)))
        spare = 0.04 * (high - low) or (0.1 if scale.log else 0.1 * abs(high) or 0.5)
        self.low, self.high = low - (spare if low else 0), high + spare  # zero stays the ground
        if scale.low is not None:
            self.low = math.log10(scale.low) if scale.log else scale.low
        if scale.high is not None:
            self.high = math.log10(scale.high) if scale.log else scale.high
        self.ticks = [v for v in self._ticks() if -1e-9 <= self.at(v) <= 1 + 1e-9]

    def at(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return (place - self.low) / (self.high - self.low)

    def _ticks(self) -> list[float]:
        if not self.log:
            return _even_ticks(self.low, self.high)
        first, last = math.floor(self.low), math.ceil(self.high)
        if self.high - self.low < 0.5:
            return _even_ticks(10**self.low, 10**self.high)
        every = max(1, math.ceil((last - first) / 8))
        steps = (1, 2, 5) if last - first <= 3 else (1,)
        return [step * 10.0**power for power in range(first, last + 1, every) for step in steps]


def _even_ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    return [
        n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


class _Plot:
    """The rectangle between the axes."""

    def __init__(
        self, across: _Ruler, up: _Ruler, left: float, top: float, right: float, bottom: float
    ) -> None:
        self.across, self.up = across, up
        self.left, self.top, self.right, self.bottom = left, top, right, bottom

    def x(self, value: float) -> float:
        return self.left + self.across.at(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - self.up.at(value) * (self.bottom - self.top)

    def axes(self, x_label: str, y_label: str) -> Iterable[str]:
        for tick in self.up.ticks:
            at = self.y(tick)
            yield _line(self.left, at, self.right, at, 'opacity="0.25"')
            yield _text(self.left - 8, at + 4, _number(tick), anchor="end")
        yield _line(self.left, self.bottom, self.right, self.bottom)
        for tick in self.across.ticks:
            at = self.x(tick)
            yield _line(at, self.bottom, at, self.bottom + 5)
            yield _text(at, self.bottom + 20, _number(tick), anchor="middle")
        yield _text((self.left + self.right) / 2, self.bottom + 42, x_label, anchor="middle")
        middle = (self.top + self.bottom) / 2
        yield _text(16.0, middle, y_label, anchor="middle", turn=f"rotate(-90 16 {middle:g})")

    def series(self, one: Series, number: int, every: Sequence[Series]) -> Iterable[str]:
        colour = _colour(one, number)
        if one.style == "bars":
            yield from self.bars(one, colour)
            return
        # Whiskers of several lines at the same x stand side by side.
        whiskered = [other for other in every if other.low is not None and other.style == "line"]
        turn = [other is one for other in whiskered]
        aside = 4 * (turn.index(True) - (len(turn) - 1) / 2) if any(turn) else 0.0
        places = [(self.x(a) + aside, self.y(b)) for a, b in zip(one.x, one.y, strict=True)]
        if one.style != "points":
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            yield f'<polyline fill="none" points="{points}" {_stroke(one, number)}/>'
        if one.low is not None and one.high is not None:
            for (a, _), low, high in zip(places, one.low, one.high, strict=True):
                ends = [self.y(low), self.y(high)]
                bars = "".join(f"M{a - 4:.1f} {end:.1f}h8" for end in ends)
                yield (f'<path d="M{a:.1f} {ends[0]:.1f}V{ends[1]:.1f}{bars}" fill="none" '
                       f'stroke="{colour}" stroke-width="1.5"/>')  # fmt: skip
        if one.style == "points" or (one.style == "line" and len(places) <= MARKED):
            for at, place in enumerate(places):
                yield _mark(number, *place, colour, _says(one, at))

    def bars(self, one: Series, colour: str) -> Iterable[str]:
        steps = [b - a for a, b in zip(one.x, one.x[1:], strict=False)]
        half = 0.45 * min(steps, default=1.0)
        floor = self.y(self.up.low if self.up.log else 0.0)
        for at, (a, b) in enumerate(zip(one.x, one.y, strict=True)):
            left, right, top = self.x(a - half), self.x(a + half), self.y(b)
            yield (f'<rect x="{left:.1f}" y="{min(top, floor):.1f}" width="{right - left:.1f}" '
                   f'height="{abs(floor - top):.1f}" fill="{colour}">'
                   f"<title>{escape(_says(one, at))}</title></rect>")  # fmt: skip


def _colour(one: Series, number: int) -> str:
    return "currentColor" if one.style == "guide" else COLOURS[number % len(COLOURS)]


def _stroke(one: Series, number: int) -> str:
    dash = "4 4" if one.style == "guide" else DASHES[number // len(COLOURS) % len(DASHES)]
    thick = 1 if one.style == "guide" else 2
    return f'stroke="{_colour(one, number)}" stroke-width="{thick}"' + (
        f' stroke-dasharray="{dash}"' if dash else ""
    )


def _mark(number: int, a: float, b: float, colour: str, says: str = "") -> str:
    """A circle, square, triangle or diamond by the number of the series."""
    shapes = (
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4"',
        f'<rect x="{a - 3.6:.1f}" y="{b - 3.6:.1f}" width="7.2" height="7.2"',
        f'<path d="M{a:.1f} {b - 5:.1f}l4.6 8.4h-9.2z"',
        f'<path d="M{a:.1f} {b - 5.2:.1f}l5.2 5.2l-5.2 5.2l-5.2 -5.2z"',
    )
    shape = shapes[number % len(shapes)]
    title = f"<title>{escape(says)}</title>" if says else ""
    return f'{shape} fill="{colour}">{title}</{shape[1:].split()[0]}>'


def _key(one: Series, number: int, left: float, at: float) -> str:
    """One row of the legend."""
    if one.style == "bars":
        sign = f'<rect x="{left + 4}" y="{at - 5}" width="20" height="10" ' \
               f'fill="{_colour(one, number)}"/>'  # fmt: skip
    else:
        sign = "" if one.style == "points" else (
            f'<path d="M{left} {at}h28" fill="none" {_stroke(one, number)}/>'
        )  # fmt: skip
        if one.style != "guide" and (one.style == "points" or len(one.x) <= MARKED):
            sign += _mark(number, left + 14, at, _colour(one, number))
    short = one.name if len(one.name) <= 34 else one.name[:33] + "…"
    return sign + _text(left + 36, at + 4, short)


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 0, weight: str = "",
    turn: str = "",
) -> str:  # fmt: skip
    more = "".join(
        f' {name}="{value}"'
        for name, value in (("font-size", size), ("font-weight", weight), ("transform", turn))
        if value
    )
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{more}>'
            f"{escape(text)}</text>")  # fmt: skip


def _line(x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="currentColor" {more}/>')  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 12) + 0.0:.6g}"


def _says(one: Series, at: int) -> str:
    """What a mark tells on hovering."""
    text = f"{one.name + ': ' if one.name else ''}{_number(one.x[at])}, {one.y[at]:.4g}"
    if one.low is not None and one.high is not None:
        text += f" ({one.low[at]:.4g} to {one.high[at]:.4g})"
    return text


def _in_words(one: Series) -> str:
    if not len(one.x):
        return f"{one.name}: no point"
    return f"{one.name or 'values'}: {min(one.y):.4g} to {max(one.y):.4g} at {len(one.x)} places"


def _values(series: Sequence[Series], axis: int) -> list[float]:
    """All that an axis must hold: points, ends of intervals, bars with their ground and width."""
    found: list[float] = []
    for one in series:
        found.extend(one.y if axis else one.x)
        if axis:
            found.extend([*(one.low or ()), *(one.high or ())])
        if one.style == "bars" and len(one.x):
            found.extend([0.0] if axis else [min(one.x) - 0.5, max(one.x) + 0.5])
    return found


def _checked(one: Series, x: Scale, y: Scale) -> Series:
    """The series in plain numbers that its axes can place; InputError for others."""
    columns = one.x, one.y, one.low, one.high
    if len({len(column) for column in columns if column is not None}) > 1:
        raise InputError(f"{one.name or 'a series'} has x, y and interval of different lengths; "
                         f"give one of each for a point")  # fmt: skip
    for scale, column in zip((x, y, y, y), columns, strict=True):
        for value in column or ():
            if not math.isfinite(value) or (scale.log and value <= 0):
                wants = "above 0 on a logarithmic axis" if scale.log else "finite"
                raise InputError(f"{one.name or 'a series'} has {scale.label} {value:g}, which is "
                                 f"not {wants}; leave that point out")  # fmt: skip
    first, second, low, high = (None if c is None else [float(v) for v in c] for c in columns)
    return Series(one.name, first or [], second or [], low, high, one.style)


def loss_figure(events: Sequence[Mapping[str, Any]]) -> str | None:
    """Training loss over images, and validation at t = 0.5; None where no step was logged."""

    def logged(event: str, name: str) -> list[tuple[int, float]]:
        found = [(e["images"], e[name]) for e in events if e["event"] == event and name in e]
        return [(at, loss) for at, loss in found if 0 < loss < math.inf]

    steps, held = logged("step", "loss"), logged("validation", "velocity@0.5")
    lines = {"training loss": steps, "validation, t = 0.5": held}
    drawn = [
        Series(name, [at for at, _ in line], [loss for _, loss in line])
        for name, line in lines.items()
        if line
    ]
    if not drawn:
        return None
    seen = max(at for line in lines.values() for at, _ in line)
    return chart(
        drawn, title="Loss in training", note=f"n = {seen:,} images seen, {len(steps)} logged",
        x=Scale("images seen", low=0.0, high=float(seen)), y=Scale("loss", log=True),
    )  # fmt: skip


def reliability_figure(found: Mapping[str, Reliability]) -> str:
    """Observed against nominal coverage, one line a posterior; on the diagonal when reliable."""
    diagonal = Series("reliable", (0.0, 1.0), (0.0, 1.0), style="guide")
    lines = [Series(f"{name}, K = {one.draws}", one.levels, one.observed)
             for name, one in found.items()]  # fmt: skip
    draws = _listed(one.draws for one in found.values())
    places = _listed(one.places for one in found.values())
    return chart(
        [*lines, diagonal], title="Reliability of intervals",
        note=f"K = {draws} draws, n = {places} places; below the line: too sure",
        x=Scale("level of the interval", low=0.0, high=1.0),
        y=Scale("share of truths inside", low=0.0, high=1.0), width=480, height=460,
    )  # fmt: skip


def rank_figure(counts: Sequence[float]) -> str:
    """The rank histogram over its flat expectation, from `rank_histogram`."""
    draws, places = len(counts) - 1, sum(counts)
    bars = Series("", range(draws + 1), [c * (draws + 1) / places for c in counts], style="bars")
    flat = Series("", (-0.5, draws + 0.5), (1.0, 1.0), style="guide")
    return chart(
        [bars, flat], title="Rank of the truth among the draws",
        note=f"K = {draws} draws, n = {round(places):,} places; flat when reliable",
        x=Scale("draws below the truth", low=-0.6, high=draws + 0.6),
        y=Scale("frequency over expectation", low=0.0),
    )  # fmt: skip


def sweep_figure(
    lines: Mapping[str, Sequence[Point]], *, metric: str, over: str, n: int, title: str = ""
) -> str:
    """A metric against a setting such as guidance, with intervals; one line for each EMA, say."""
    drawn = [_pointed(name, sorted(points)) for name, points in lines.items()]
    return chart(
        drawn, title=title or f"{metric} over {over}", note=f"n = {n:,} samples; bars: intervals",
        x=Scale(over), y=Scale(metric),
    )  # fmt: skip


def compare_figure(runs: Mapping[str, Point], *, metric: str, n: int) -> str:
    """Quality against speed, one mark a run: `x` of a point is images a second."""
    drawn = [_pointed(name, [point])._replace(style="points") for name, point in runs.items()]
    return chart(
        drawn, title=f"{metric} against speed", note=f"n = {n:,} samples; bars: intervals",
        x=Scale("images/s", log=True), y=Scale(metric),
    )  # fmt: skip


def _pointed(name: str, points: Sequence[Point]) -> Series:
    return Series(
        name, [p.x for p in points], [p.value for p in points],
        [p.low for p in points], [p.high for p in points],
    )  # fmt: skip


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(f"{number:,}" for number in sorted(set(numbers)))
