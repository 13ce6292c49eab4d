"""report.json and report.html: what was found, to look at, and how to repeat it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointillist.data.source import Source
from pointillist.engine.checkpoint import write_text
from pointillist.evaluation.judge import Verdict
from pointillist.evaluation.neighbours import nearest
from pointillist.figures import Scale, Series, chart, rank_figure, reliability_figure
from pointillist.metrics.interval import Score
from pointillist.page import Html, figure, page, picture, repeat, section, table

COMPARED = 8  # generated pictures that are shown beside their neighbours


def write_report(out: Path, verdict: Verdict, source: Source | None) -> None:
    """`out` as JSON, and the same beside it as one page; `source` has the training pictures."""
    write_text(out, json.dumps(verdict.as_json(), indent=1) + "\n")
    recipe = verdict.recipe
    sections = [section("Figures", score_table(verdict.scores), *velocity_charts(verdict.scores))]
    if verdict.generated is not None:
        pictures = verdict.generated.pictures
        text = (f"The first pictures of seed {recipe['seed']}, classes in turn, "
                f"{recipe['nfe']} network evaluations each.")  # fmt: skip
        sections.append(section("Drawn", text, sheet(centred(pictures), text, 10)))
        if source is not None:
            sections.append(beside_neighbours(pictures[:COMPARED], source))
    if verdict.restored is not None:
        shown = verdict.restored.shown
        text = (f"Known pixels ({recipe['share']:.0%}, grey elsewhere), one draw, the mean of "
                f"{recipe['draws']} draws, the picture itself.")  # fmt: skip
        sections.append(
            section("Restored", text, sheet(shown.flatten(0, 1), text, 2 * shown.shape[1]))
        )
        sections.append(section(
            "How sure the draws are",
            figure(reliability_figure({"hidden pixels": verdict.restored.reliability})),
            figure(rank_figure(verdict.restored.ranks)),
        ))  # fmt: skip
    facts = {**recipe, "speed": verdict.speed}
    sections.append(section("To repeat this", repeat(facts)))
    name = recipe["run"] or "untrained weights"
    write_text(out.with_suffix(".html"), page(f"Evaluation of {name}", sections))


def sheet(x: Tensor, text: str, columns: int) -> Html:
    """States as pictures that are large enough to be looked at."""
    return picture(x, text, columns=columns, scale=max(1, 64 // x.shape[-1]))


def centred(pictures: Tensor) -> Tensor:
    """8-bit pictures as states in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def score_table(scores: Mapping[str, Score]) -> Html:
    rows = [[name, s.value, spelled(s), s.n] for name, s in scores.items()]
    return table(rows, ["metric", "value", "95 % interval", "n"])


def spelled(score: Score) -> str:
    return f"{score.low:.4g} to {score.high:.4g}"


def velocity_charts(scores: Mapping[str, Score]) -> list[Html]:
    """The denoising error over time, where it was asked for."""
    lines: dict[str, list[tuple[float, Score]]] = {}
    for name, score in scores.items():
        metric, at, time = name.partition("@")
        if at:
            lines.setdefault(metric, []).append((float(time), score))
    if not lines:
        return []
    series = [
        Series(name, [t for t, _ in line], [s.value for _, s in line], [s.low for _, s in line],
               [s.high for _, s in line])
        for name, line in lines.items()
    ]  # fmt: skip
    n = next(iter(lines.values()))[0][1].n
    return [figure(chart(
        series, title="Velocity loss", note=f"n = {n:,} held-out pictures; bars: 95 % intervals",
        x=Scale("t (0 noise, 1 data)", low=0.0, high=1.0), y=Scale("mean squared error"),
    ))]  # fmt: skip


def beside_neighbours(pictures: Tensor, source: Source) -> Html:
    """Each picture, then the training pictures nearest to it."""
    found = nearest(pictures, source)
    rows = torch.cat((pictures[:, None], found.pictures), 1)
    away = ", ".join(f"{d:.1f}" for d in found.distance[:, 0].tolist())
    text = (
        f"Left a generated picture, then the three of {found.searched:,} training pictures that "
        f"are nearest to it by the root of the mean square of their 8-bit levels (a mirror image "
        f"counts as the same). Distances of the nearest: {away}."
    )
    shown = sheet(centred(rows.flatten(0, 1)), text, 2 * rows.shape[1])
    return section("Nearest training pictures", text, shown)
