"""Charts are well-formed, say what they show, and put every value where it belongs."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.figures import (
    COLOURS,
    GREY,
    Point,
    Scale,
    Series,
    _even_ticks,
    chart,
    compare_figure,
    loss_figure,
    rank_figure,
    reliability_figure,
    sweep_figure,
)
from pointillist.metrics.posterior import Reliability
from pointillist.types import InputError

SVG = "{http://www.w3.org/2000/svg}"
X, Y = Scale("guidance"), Scale("KID")


def parsed(svg):
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img" and root[0].tag == f"{SVG}title"
    assert root[0].text == root.get("aria-label") and root[1].tag == f"{SVG}desc"
    assert not re.search(r"nan|inf\b|(src|href)=", svg)
    return root


def texts(root):
    return [text.text for text in root.iter(f"{SVG}text")]


def points(root):
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()]
            for line in root.iter(f"{SVG}polyline")]  # fmt: skip


def contrast(one, other):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117", "#000000"])
def test_colours_can_be_told_from_light_and_dark_grounds(ground):
    assert min(contrast(colour, ground) for colour in COLOURS) >= 3
    assert contrast(GREY, ground) >= 4


def test_the_loss_figure_holds_every_logged_point():
    events = [
        {"event": "step", "images": 10 * i, "loss": 1 / i, "lr": 1e-3} for i in range(1, 6)
    ] + [{"event": "validation", "images": 50, "velocity@0.5": 0.3}]
    events += [{"event": "step", "images": 55, "loss": math.inf},
               {"event": "step", "images": 60, "skipped": 3}]  # fmt: skip
    root = parsed(loss_figure(events))
    lines = points(root)
    assert [len(line) for line in lines] == [5, 1]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(lines[0], lines[0][1:], strict=False))
    assert {"training loss", "validation, t = 0.5", "images seen", "loss"} <= set(texts(root))
    assert "n = 50 images seen, 5 logged" in texts(root)
    assert loss_figure([]) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_ticks_are_few_round_and_inside(low, width):
    if low + width - low < width / 2:
        return  # the axis is narrower than its numbers are exact
    ticks = _even_ticks(low, low + width)
    slack = 1e-6 * (width + abs(low))
    assert 2 <= len(ticks) <= 6 and low - slack <= min(ticks) and max(ticks) <= low + width + slack
    assert len({f"{step:.3g}" for step in (b - a for a, b in zip(ticks, ticks[1:], strict=False))
                } if abs(low) < 1e3 * width else {1}) == 1  # fmt: skip


def test_places_follow_the_axis_linear_or_logarithmic():
    line = Series("a", (1, 10, 100), (5, 6, 7))
    for log in (False, True):
        root = parsed(chart([line], title="t", note="n = 3", x=Scale("x", log=log), y=Y))
        first, middle, last = (x for x, _ in points(root)[0])
        share = (middle - first) / (last - first)
        assert share == pytest.approx(0.5 if log else 9 / 99, abs=1e-3)
        assert {"1", "10", "100"} <= set(texts(root)) if log else "100" in texts(root)


def test_an_interval_is_drawn_from_end_to_end():
    flat = Series("flat", (1, 2, 3), (0.0, 0.5, 1.0), style="guide")
    shown = Series("shown", (1, 2), (0.2, 0.6), (0.0, 0.5), (0.5, 1.0))
    root = parsed(chart([flat, shown], title="t", note="n = 2", x=X, y=Y))
    height = dict(zip((0.0, 0.5, 1.0), (y for _, y in points(root)[0]), strict=True))
    whiskers = [path.get("d") for path in root.iter(f"{SVG}path") if "V" in path.get("d")]
    found = [tuple(map(float, re.match(r"M\S+ (\S+)V([\d.]+)", d).groups())) for d in whiskers]
    assert found == [(height[0.0], height[0.5]), (height[0.5], height[1.0])]
    titles = [t.text for t in root.iter(f"{SVG}title")]
    assert "shown: 1, 0.2 (0 to 0.5)" in titles


def test_bars_stand_on_zero_in_proportion():
    root = parsed(rank_figure([10.0, 20.0, 30.0]))
    bars = [rect for rect in root.iter(f"{SVG}rect") if rect.get("height") != "10"]
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[2] == pytest.approx(3 * heights[0], abs=0.2)
    assert len({round(float(b.get("y")) + float(b.get("height")), 1) for b in bars}) == 1
    flat = points(root)[0]
    assert flat[0][1] == flat[1][1] == pytest.approx(float(bars[1].get("y")), abs=0.2)
    assert any("K = 2 draws, n = 60 places" in text for text in texts(root))


def test_every_figure_names_its_draws_or_samples():
    found = {"a": Reliability([0.5], [0.4], 3, 7), "b": Reliability([0.2, 0.8], [0.1, 1], 9, 7)}
    root = parsed(reliability_figure(found))
    assert {"a, K = 3", "b, K = 9", "reliable"} <= set(texts(root))
    assert any("K = 3 and 9 draws, n = 7 places" in text for text in texts(root))
    diagonal = points(root)[-1]
    assert diagonal[0][0] < diagonal[1][0] and diagonal[0][1] > diagonal[1][1]
    rows = [Point(2.0, 0.03, 0.02, 0.04), Point(1.0, 0.05, 0.04, 0.06)]
    swept = parsed(sweep_figure({"ema 0.99": rows, "ema 0.999": rows[:1]}, metric="KID",
                                over="guidance", n=500))  # fmt: skip
    assert "n = 500 samples; bars: intervals" in texts(swept)
    assert [x for x, _ in points(swept)[0]] == sorted(x for x, _ in points(swept)[0])
    compared = parsed(compare_figure({"one": rows[0], "two": rows[1]}, metric="FID", n=1000))
    assert {"one", "two", "FID against speed", "n = 1,000 samples; bars: intervals"} <= set(
        texts(compared)
    )
    assert not points(compared)


def test_names_are_text_and_long_ones_are_cut():
    name = '<script>alert("x")</script> & a name that does not end'
    root = parsed(chart([Series(name, (1,), (1,))], title=name, note="n < 1", x=X, y=Y))
    assert root.find(f"{SVG}script") is None and root[0].text == name
    assert name[:33] + "…" in texts(root) and "n < 1" in texts(root)


@given(st.lists(st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)), min_size=1, max_size=9),
       st.booleans(), st.booleans())  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_positive_values_make_a_chart_inside_its_frame(pairs, log_x, log_y):
    xs, ys = zip(*pairs, strict=True)
    root = parsed(chart([Series("s", xs, ys)], title="t", note="n", x=Scale("x", log_x),
                        y=Scale("y", log_y)))  # fmt: skip
    assert all(60 <= x <= 600 and 60 <= y <= 320 for x, y in points(root)[0])


@pytest.mark.parametrize(
    ("series", "scale", "message"),
    [(Series("run", (1, 2), (1, math.nan)), Y, "run has KID nan, which is not finite"),
     (Series("run", (1,), (0,)), Scale("KID", log=True), "above 0 on a logarithmic axis"),
     (Series("run", (1,), (1,), (0.5,), (math.inf,)), Y, "run has KID inf"),
     (Series("run", (1, 2), (1,)), Y, "different lengths"),
     (Series("run", (), ()), Y, "a note on its sample and one point or more")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_sentence(series, scale, message):
    with pytest.raises(InputError, match=message):
        chart([series], title="t", note="n = 1", x=X, y=scale)
    with pytest.raises(InputError, match="needs a note"):
        chart([Series("a", (1,), (1,))], title="t", note="", x=X, y=Y)
