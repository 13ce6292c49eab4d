"""The tour: train a small network on the emoji, draw and reconstruct with it, judge it against
known answers."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pointillist.baselines import linear, nearest
from pointillist.console import Watch
from pointillist.data.loader import to_batch
from pointillist.engine.checkpoint import complete, write_text
from pointillist.engine.log import read
from pointillist.engine.session import locked
from pointillist.figures import loss_figure
from pointillist.known import protocol_mask
from pointillist.metrics.linear import LinearDenoisers
from pointillist.metrics.pixel import psnr
from pointillist.page import Html, figure, page, picture, section, table
from pointillist.reconstruct import Question, answers, judged, shown
from pointillist.request import Ask
from pointillist.run import Run
from pointillist.sample import Trained
from pointillist.train import train
from pointillist.validation import TIMES, held_out, validation_noise, velocity_loss

PRESET = "emoji-demo"
MARK = ".tour"
JUDGED = 256  # held-out pictures behind each figure
RESTORED, SHARE, DRAWS = 8, 0.2, 9  # held-out pictures, how much of each is seen, draws of each


def run_demo(out: Path, overrides: Sequence[str] = ()) -> bool:
    """Write `out/index.html`; True when the network beats the best per-pixel linear denoiser."""
    begun = time.perf_counter()
    run = Run.load(PRESET, *overrides)
    folder = out / "run"
    begin_anew(folder)
    print(
        f"training on {run.train.images} embedded emoji of {run.data.promise().size[0]} pixels, "
        f"seed {run.seed}"
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

    print(f"reconstructing {RESTORED} held-out emoji from {SHARE:.0%} of their pixels")
    restored = restore(run, trained)

    print("judging against the best linear denoisers")
    rows = judge(run, trained)
    passed = all(row["network"] < row["pixel"] for row in rows)
    strip = torch.stack([steps[i] for i in range(0, len(steps), 4)] + [steps[-1]], 1)
    write_text(
        out / "index.html", tour_page(run, folder, rows, passed, spent, strip, drawn.x, restored)
    )
    for row in rows:
        print(
            f"t = {row['t']:.1f}: velocity loss {row['network']:.3f}, "
            f"per-pixel linear {row['pixel']:.3f}, Wiener {row['wiener']:.3f}"
        )
    print(f"{'better' if passed else 'NOT better'} than the best per-pixel linear denoiser; "
          f"{time.perf_counter() - begun:.0f} s; {out / 'index.html'}")  # fmt: skip
    return passed


class Restored(NamedTuple):
    """Held-out pictures from some of their pixels: one row of pictures each, and PSNR by name."""

    sheet: Float[Tensor, "r k c h w"]
    psnr: list[dict[str, float]]


def restore(run: Run, trained: Trained) -> Restored:
    """`DRAWS` draws of each picture with no label, beside classical interpolation of the same."""
    x, _ = held_out(run.data.open("test"), RESTORED)
    size = tuple(x.shape[2:])
    masks = torch.stack([protocol_mask(i, size, SHARE) for i in range(x.shape[0])])[:, None]
    seen = torch.where(masks, x, 0)
    each = zip(*(part.split(1) for part in (seen, masks, x)), strict=True)
    questions = [Question(str(i), *parts) for i, parts in enumerate(each)]
    classical = {"nearest": nearest(seen, masks), "linear": linear(seen, masks)}
    error = {name: psnr(found.clamp(-1, 1), x, data_range=2.0, mask=~masks)
             for name, found in classical.items()}  # fmt: skip
    rows, scores = [], []
    every = answers(trained, questions, DRAWS, guidance=1.0, steps=10)
    for i, (question, post) in enumerate(zip(questions, every, strict=True)):
        made = shown(post, question)
        names = ("observed", "mean", "std", "draw_00", "draw_01", "draw_02")
        row = [made[name].expand(-1, x.shape[1], -1, -1) for name in names]
        row += [x[i : i + 1], *(found[i : i + 1] for found in classical.values())]
        rows.append(torch.cat(row))
        scores.append({"network": judged(post, question)["psnr"],
                       **{name: float(found[i]) for name, found in error.items()}})  # fmt: skip
    return Restored(torch.stack(rows), scores)


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
    restored: Restored,
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
        f"{run.train.images:,} emoji of {run.data.promise().size[0]} pixels in "
        f"{spent:.0f} seconds. It works on the pixels themselves and learnt to turn noise "
        f"into pictures, also such that agree with some known pixels.",
        section("Loss", figure(curve) if curve else "No step was logged."),
        section("From some pixels to pictures, as training went on",
                "Each sheet has the same seeds: known pixels of held-out emoji on top, what the "
                "network makes of them, and the emoji themselves.", *stages),
        section("One walk from noise", "The network's estimate of the clean picture, from the "
                "first step (left) to the last.",
                picture(strip.flatten(0, 1), "denoising strip", columns=strip.shape[1], scale=2)),
        section("Drawn by the trained network", picture(drawn, "samples", columns=12, scale=2)),
        restored_section(restored),
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


def restored_section(restored: Restored) -> Html:
    """The reconstructions, and how near they and classical interpolation come to the truth."""
    names = ("network", "nearest", "linear")
    mean = {name: sum(row[name] for row in restored.psnr) / len(restored.psnr) for name in names}
    lines = [(f"emoji {i + 1}", row) for i, row in enumerate(restored.psnr)]
    return section(
        f"From {SHARE:.0%} of the pixels",
        f"Held-out emoji, one a row, of which {SHARE:.0%} of the pixels are seen. From left to "
        f"right: what is seen; the mean of {DRAWS} draws; their spread (white where they differ "
        f"most); three of the draws; the truth; nearest and linear interpolation.",
        picture(restored.sheet.flatten(0, 1), "reconstructions",
                columns=restored.sheet.shape[1], scale=2),
        f"PSNR in dB over the hidden pixels, which is higher the nearer a picture is to the "
        f"truth; the network's is that of the mean. Mean of {len(lines)} emoji in the last row.",
        table(((at, *(f"{row[name]:.1f}" for name in names)) for at, row in
               [*lines, ("mean", mean)]), ("", *names)),
    )  # fmt: skip
