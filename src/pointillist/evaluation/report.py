"""report.json and report.html: what was found, to look at, and how to repeat it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pointillist.data.source import Source
from pointillist.engine.checkpoint import write_text
from pointillist.evaluation.judge import Verdict
from pointillist.evaluation.neighbours import nearest
from pointillist.figures import Scale, Series, chart, rank_figure, reliability_figure
from pointillist.metrics.interval import Score
from pointillist.metrics.names import parse_metric
from pointillist.metrics.posterior import levels_of
from pointillist.page import Html, figure, page, picture, repeat, section, table

WIDE = 1280  # pixels across a sheet
MEANINGS = {
    "fid": "lower is better; falls as n grows",
    "kid": "lower is better; 0 for equal distributions",
    "precision": "share of generated pictures among real ones; higher is better",
    "recall": "share of real pictures among generated ones; higher is better",
    "psnr": "dB over hidden pixels, mean of {k} draws; higher is better",
    "psnr_whole": "dB over all pixels, mean of {k} draws; higher is better",
    "psnr_draw": "dB over hidden pixels, one draw; higher is better",
    "ssim": "at most 1, mean of {k} draws; higher is better",
    "lpips": "mean of {k} draws; lower is better, 0 for equal pictures",
    "crps": "on [-1, 1], {k} draws, fair; lower is better",
    "coverage": "of the {level:.0%} interval of {k} draws; right at {level:.2f}",
    "spread_error": "spread over error of {k} draws; right at 1, too sure below",
    "velocity": "mean squared error; lower is better",
    "hinted": "mean squared error of hidden pixels; lower is better",
}
COMPARED = 8  # generated pictures that are shown beside their neighbours


def write_report(out: Path, verdict: Verdict, source: Source | None) -> None:
    """`out` as JSON, and the same beside it as one page; `source` has the training pictures."""
    write_text(out, json.dumps(verdict.as_json(), indent=1, allow_nan=False) + "\n")
    recipe = verdict.recipe
    scores = table_of(verdict.scores, recipe["draws"])
    sections = [section("Figures", scores, *velocity_charts(verdict.scores))]
    if verdict.generated is not None:
        pictures = verdict.generated.pictures
        text = (f"The first pictures of seed {recipe['seed']}, classes in turn, "
                f"{recipe['nfe']} network evaluations each.")  # fmt: skip
        sections.append(section("Drawn", text, sheet(centred(pictures), "pictures", 10)))
        if source is not None:
            sections.append(beside_neighbours(pictures[:COMPARED], source))
    if verdict.restored is not None:
        shown = verdict.restored.shown
        text = (f"Known pixels ({recipe['share']:.0%}, grey elsewhere), one draw, the mean of "
                f"{recipe['draws']} draws, the picture itself.")  # fmt: skip
        sections.append(
            section(
                "Restored", text, sheet(shown.flatten(0, 1), "rows of four", 2 * shown.shape[1])
            )
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
    """States as pictures large enough to be looked at, and not larger than a page is wide."""
    most = WIDE // columns
    if x.shape[-1] > most:
        x = F.interpolate(x, (max(1, x.shape[-2] * most // x.shape[-1]), most), mode="area")
    return picture(x, text, columns=columns, scale=max(1, 64 // x.shape[-1]))


def centred(pictures: Tensor) -> Tensor:
    """8-bit pictures as states in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def table_of(scores: Mapping[str, Score], draws: int) -> Html:
    """Every score with its interval, and how it is to be read."""
    rows = [[name, s.value, spelled(s), s.n, meaning(name, draws)] for name, s in scores.items()]
    return table(rows, ["metric", "value", "95 % interval", "n", "how to read it"])


def meaning(name: str, draws: int) -> str:
    """Unit and direction of a metric."""
    score = parse_metric(name.partition("@")[0]).score
    return MEANINGS[score].format(k=draws, level=levels_of(draws)[0])


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
    shown = sheet(centred(rows.flatten(0, 1)), "a picture and three beside it", 2 * rows.shape[1])
    return section("Nearest training pictures", text, shown)
