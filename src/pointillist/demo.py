"""The tour: train a small network on the emoji, draw with it, judge it against known answers."""

import base64
import html
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pointillist.console import Watch
from pointillist.data.loader import to_batch
from pointillist.engine.checkpoint import complete, write_text
from pointillist.engine.log import read
from pointillist.engine.session import locked
from pointillist.metrics.linear import LinearDenoisers
from pointillist.pictures import contact_sheet, png
from pointillist.run import Run
from pointillist.sample import Ask, Trained
from pointillist.train import train
from pointillist.validation import TIMES, held_out, validation_noise, velocity_loss

PRESET = "emoji-demo"
MARK = ".tour"
JUDGED = 256  # held-out pictures behind each figure


def run_demo(out: Path, overrides: Sequence[str] = ()) -> bool:
    """Write `out/index.html`; True when the network beats the best per-pixel linear denoiser."""
    begun = time.perf_counter()
    run = Run.load(PRESET, *overrides)
    folder = out / "run"
    begin_anew(folder)
    print(
        f"training on {run.train.images} embedded emoji of {run.data.size} pixels, seed {run.seed}"
    )
    with Watch(run.train.images) as watch:
        trained = train(run, folder, report=watch)
    spent = time.perf_counter() - begun

    print("drawing")
    steps: list[Tensor] = []
    trained.sample(
        6, seed=1, guidance=1.0, steps=20, sampler="dpmpp_2m",
        watch=lambda i, t, x, pair: steps.append(pair.x if pair is not None else x),
    )  # fmt: skip
    drawn = trained.answer(Ask(count=48, seed=2))

    print("judging against the best linear denoisers")
    rows = judge(run, trained)
    passed = all(row["network"] < row["pixel"] for row in rows)
    strip = torch.stack([steps[i] for i in range(0, len(steps), 4)] + [steps[-1]], 1)
    page = Page(run, folder, rows, passed, spent)
    text = page.text(
        strip=contact_sheet(strip.flatten(0, 1), columns=strip.shape[1], scale=2),
        drawn=contact_sheet(drawn.x, columns=12, scale=2),
    )
    write_text(out / "index.html", text)
    for row in rows:
        print(
            f"t = {row['t']:.1f}: velocity loss {row['network']:.3f}, "
            f"per-pixel linear {row['pixel']:.3f}, Wiener {row['wiener']:.3f}"
        )
    print(f"{'better' if passed else 'NOT better'} than the best per-pixel linear denoiser; "
          f"{time.perf_counter() - begun:.0f} s; {out / 'index.html'}")  # fmt: skip
    return passed


def judge(run: Run, trained: Trained) -> list[dict[str, float]]:
    """Velocity losses of the network and of both linear denoisers on the same held-out noise."""
    source = run.data.open("train")
    pictures = to_batch(source.rows(range(len(source))), torch.arange(len(source)), source.spec).x
    if run.augment.flip:
        pictures = torch.cat((pictures, pictures.flip(-1)))
    linear = LinearDenoisers(pictures)
    x, label = held_out(run.data.open("test"), JUDGED)
    eps = validation_noise(run.objective, torch.arange(x.shape[0]), tuple(x.shape[1:]))
    network = velocity_loss(trained.network, run.objective, x, label)
    noise = run.objective.noise_strength(tuple(x.shape[2:]))
    return [
        {
            "t": t,
            "network": loss,
            "pixel": linear.velocity_loss(x, eps, t, noise, full=False),
            "wiener": linear.velocity_loss(x, eps, t, noise, full=True),
        }
        for t, loss in zip(TIMES, network, strict=True)
    ]


def begin_anew(folder: Path) -> None:
    """Remove an earlier tour's run, known by its mark; another's is left for `train` to refuse."""
    mark = folder / MARK
    with locked(folder):
        if mark.exists():
            for name in ("run.yaml", "spec.json", "log.jsonl"):
                (folder / name).unlink(missing_ok=True)
            for name in ("checkpoints", "samples"):
                shutil.rmtree(folder / name, ignore_errors=True)
        if not (folder / "run.yaml").exists() and not complete(folder / "checkpoints"):
            mark.touch()


def _image(image: Image.Image, text: str) -> str:
    data = base64.b64encode(png(image)).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


class Page:
    """The page, one file without anything outside it."""

    def __init__(
        self, run: Run, folder: Path, rows: list[dict[str, float]], passed: bool, spent: float
    ) -> None:
        self.run, self.folder, self.rows = run, folder, rows
        self.passed, self.spent = passed, spent

    def text(self, strip: Image.Image, drawn: Image.Image) -> str:
        stages = sorted((self.folder / "samples").glob("*.png"))
        figures = "".join(
            f"<figure>{_image(_larger(Image.open(path)), path.stem)}"
            f"<figcaption>{int(path.stem):,} images</figcaption></figure>"
            for path in stages
        )
        verdict = "better" if self.passed else "not better"
        rows = "".join(
            f"<tr><td>{row['t']:.1f}</td><td>{row['network']:.3f}</td><td>{row['wiener']:.3f}</td>"
            f"<td>{row['pixel']:.3f}</td></tr>"
            for row in self.rows
        )
        model = self.run.model
        return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pointillist: a tour</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem;
  padding: 0 1rem; color: #222; background: #fff }}
h2 {{ margin-top: 2.5rem }} figure {{ display: inline-block; margin: 0 1rem 1rem 0 }}
figcaption {{ color: #555; font-size: .85rem }} img, svg {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem 1rem; text-align: right;
  border-bottom: 1px solid #ddd }}
</style>
<h1>A tour of Pointillist</h1>
<p>A {html.escape(model.kind)} of width {model.width} and depth {model.depth} saw
{self.run.train.images:,} emoji of {self.run.data.size} pixels in {self.spent:.0f} seconds. It
works on the pixels themselves and learnt to turn noise into pictures.</p>
<h2>Loss</h2>{loss_curve(read(self.folder / "log.jsonl"))}
<h2>From noise to pictures, as training went on</h2><p>Each sheet has the same seeds.</p>{figures}
<h2>One walk from noise</h2><p>The network's estimate of the clean picture, from the first step
(left) to the last.</p>{_image(strip, "denoising strip")}
<h2>Drawn by the trained network</h2>{_image(drawn, "samples")}
<h2>Is it any good?</h2><p>Mean squared error of the velocity on {JUDGED} held-out pictures, beside
two answers known from the training set's mean and covariance: the best linear denoiser, and the
best that looks at each pixel alone. The network is <b>{verdict}</b> than the latter.</p>
<table><tr><th>t</th><th>network</th><th>best linear (Wiener)</th><th>per-pixel linear</th></tr>
{rows}</table></html>
"""


def _larger(image: Image.Image, scale: int = 2) -> Image.Image:
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)


def loss_curve(events: list[dict[str, Any]], width: int = 720, height: int = 280) -> str:
    """Training loss over images, and validation at t = 0.5, on a logarithmic axis, as SVG."""
    lines = {
        "training loss": [
            (e["images"], e["loss"]) for e in events if e["event"] == "step" and "loss" in e
        ],
        "validation, t = 0.5": [
            (e["images"], e["velocity@0.5"]) for e in events if e["event"] == "validation"
        ],
    }
    every = [point for line in lines.values() for point in line]
    if not every:
        return "<p>No step was logged.</p>"
    right = max(x for x, _ in every)
    low = math.log10(min(y for _, y in every)) - 0.05
    high = math.log10(max(y for _, y in every)) + 0.05
    left, bottom, margin = 60, height - 40, 30

    def at(x: float, y: float) -> tuple[float, float]:
        up = (math.log10(y) - low) / (high - low)
        return left + x / right * (width - left - margin), bottom - up * (bottom - 10)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss curve" '
             f'font-family="system-ui" font-size="12">']  # fmt: skip
    for tick in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0):
        if low <= math.log10(tick) <= high:
            y = at(0.0, tick)[1]
            parts.append(f'<line x1="{left}" x2="{width - margin}" y1="{y:.1f}" y2="{y:.1f}" '
                         f'stroke="#ddd"/><text x="{left - 8}" y="{y + 4:.1f}" '
                         f'text-anchor="end">{tick:g}</text>')  # fmt: skip
    for i in range(5):
        x = at(right * i / 4, 10**low)[0]
        parts.append(f'<text x="{x:.1f}" y="{height - 20}" text-anchor="middle">'
                     f"{round(right * i / 4):,}</text>")  # fmt: skip
    parts.append(f'<text x="{(width + left) / 2}" y="{height - 4}" text-anchor="middle">'
                 f"images seen</text>")  # fmt: skip
    for number, ((name, line), colour) in enumerate(
        zip(lines.items(), ("#1f77b4", "#d62728"), strict=True)
    ):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(float(a), b) for a, b in line))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
                     f'<text x="{width - 14}" y="{24 + 16 * number}" text-anchor="end" '
                     f'fill="{colour}">{name}</text>')  # fmt: skip
    return "".join([*parts, "</svg>"])
