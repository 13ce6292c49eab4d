"""The tour: train a small network on the emoji, draw with it, judge it against known answers."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pointillist.console import Watch
from pointillist.data.loader import to_batch
from pointillist.engine.checkpoint import complete, write_text
from pointillist.engine.log import read
from pointillist.engine.session import locked
from pointillist.figures import loss_figure
from pointillist.metrics.linear import LinearDenoisers
from pointillist.page import Html, figure, page, picture, section, table
from pointillist.request import Ask
from pointillist.run import Run
from pointillist.sample import Trained
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
    write_text(out / "index.html", tour_page(run, folder, rows, passed, spent, strip, drawn.x))
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


def tour_page(
    run: Run,
    folder: Path,
    rows: list[dict[str, float]],
    passed: bool,
    spent: float,
    strip: Tensor,
    drawn: Tensor,
) -> str:
    """The page, one file without anything outside it; `strip` is pictures by steps."""
    model = run.model
    curve = loss_figure(read(folder / "log.jsonl"))
    stages = [
        picture(Image.open(path), path.stem, f"{int(path.stem):,} images", scale=2)
        for path in sorted((folder / "samples").glob("*.png"))
    ]
    verdict = "better" if passed else "not better"
    return page("A tour of Pointillist", [
        f"A {model.kind} of width {model.width} and depth {model.depth} saw "
        f"{run.train.images:,} emoji of {run.data.size} pixels in {spent:.0f} seconds. It works on "
        f"the pixels themselves and learnt to turn noise into pictures.",
        section("Loss", figure(curve) if curve else "No step was logged."),
        section("From noise to pictures, as training went on", "Each sheet has the same seeds.",
                *stages),
        section("One walk from noise", "The network's estimate of the clean picture, from the "
                "first step (left) to the last.",
                picture(strip.flatten(0, 1), "denoising strip", columns=strip.shape[1], scale=2)),
        section("Drawn by the trained network", picture(drawn, "samples", columns=12, scale=2)),
        section(
            "Is it any good?",
            Html(f"<p>Mean squared error of the velocity on {JUDGED} held-out pictures, beside two "
                 f"answers known from the training set's mean and covariance: the best linear "
                 f"denoiser, and the best that looks at each pixel alone. The network is "
                 f"<b>{verdict}</b> than the latter.</p>"),
            table(([f"{row['t']:.1f}", *(f"{row[name]:.3f}" for name in ("network", "wiener",
                   "pixel"))] for row in rows),
                  ("t", "network", "best linear (Wiener)", "per-pixel linear")),
        ),
    ])  # fmt: skip
