"""The sparse protocol: held-out pictures from a few known pixels, judged where nothing was known.

Masks come from `numpy.random.default_rng(1000 + index)`, its `permutation(cells)[:k]` with
k = round(share cells) in row-major order; outputs are clipped to [-1, 1]; PSNR is taken over the
hidden pixels of each picture and then averaged.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.data.prompts import first_of
from pointillist.data.source import Source
from pointillist.engine.device import memory_in_use
from pointillist.evaluation.generated import Progress
from pointillist.evaluation.parts import Parts
from pointillist.evaluation.plan import Plan
from pointillist.known import protocol_mask
from pointillist.metrics.interval import Score, bootstrap, bootstrap_mean
from pointillist.metrics.names import RESTORED, Metric
from pointillist.metrics.pixel import lpips, psnr, ssim
from pointillist.metrics.posterior import (
    Reliability,
    covered_at,
    crps_at,
    levels_of,
    rank_histogram,
    reliability,
    spread_and_error_at,
)
from pointillist.sample import Trained
from pointillist.types import Given
from pointillist.validation import held_out_batch

PORTION = 25  # pictures to a part
SHOWN = 8


class Restored(NamedTuple):
    """One number a picture for every score, the first pictures, and how fast they were drawn."""

    values: dict[str, Float[Tensor, " n"]]
    shown: Float[Tensor, "k 4 c *space"]  # what was known, one draw, the mean, the truth
    ranks: list[float]  # of the truth among the draws, as `rank_histogram` counts them
    reliability: Reliability
    speed: dict[str, float]


def restore(
    trained: Trained, test: Source, plan: Plan, folder: Path, progress: Progress
) -> Restored:
    """`plan.draws` reconstructions of each of the first `plan.count` held-out pictures, judged."""
    count, size = min(plan.count, len(test)), tuple(trained.spec.size)
    slow = {metric.score for metric in plan.of(RESTORED)} & {"ssim", "lpips"}

    def make(first: int, number: int) -> dict[str, Tensor]:
        batch = held_out_batch(test, number, first=first)
        x, label = batch.x, batch.label
        words = trained.spec.words is not None
        some = range(first, first + number)
        mask = torch.stack([protocol_mask(i, size, plan.share) for i in some])[:, None]
        begun = time.perf_counter()
        draws = trained.posterior(
            Given(seen=x, mask=mask), plan.draws,
            tuple(label.tolist()) if label is not None and trained.spec.classes else None,
            first=first,
            prompt=first_of(batch.caption, number) if words else None, **plan.options,
        ).draws.clamp(-1, 1)  # fmt: skip
        cost = torch.tensor([[time.perf_counter() - begun, memory_in_use()]], dtype=torch.float64)
        seen = torch.where(mask, x, 0)
        shown = torch.stack((seen, draws[0], draws.mean(0), x), 1)[: max(SHOWN - first, 0)]
        found = {f"of.{name}": v for name, v in score_each(draws, x, ~mask, slow).items()}
        hidden = ~mask.expand_as(x)
        ranks = torch.tensor([rank_histogram(draws, x, hidden)])
        inside = reliability(draws, x, hidden)
        observed = torch.tensor([[inside.places, *inside.observed]], dtype=torch.float64)
        return {**found, "cost": cost, "shown": shown, "ranks": ranks, "observed": observed}

    parts = Parts(folder, PORTION)
    parts.fill(count, make, lambda n: progress("reconstructions", n, count))
    names = [name for name in next(parts.each(count)) if name.startswith("of.")]
    values = {name.removeprefix("of."): parts.all(name, count) for name in names}
    cost = parts.all("cost", count)
    pictures = torch.full((cost.shape[0],), PORTION, dtype=torch.float64)
    pictures[-1] = count - PORTION * (cost.shape[0] - 1)
    # The median part: what else the machine did meanwhile is not to count.
    seconds = float((cost[:, 0] / pictures).median())
    speed = {"drawn_per_second": plan.draws / seconds, "peak_memory_bytes": float(cost[0, 1])}
    places, *inside = parts.all("observed", count).T
    observed = [float((places * share).sum() / places.sum()) for share in inside]
    return Restored(
        values, parts.all("shown", count), parts.all("ranks", count).sum(0).tolist(),
        Reliability(levels_of(plan.draws)[::-1], observed, plan.draws, int(places.sum())),
        speed,
    )  # fmt: skip


def score_each(
    draws: Float[Tensor, "k b c *space"],
    truth: Float[Tensor, "b c *space"],
    hidden: Bool[Tensor, "b 1 *space"],
    slow: Collection[str] = (),
) -> dict[str, Float[Tensor, " b"]]:
    """Scores of each picture: the mean of the draws by its error, the draws by their spread.

    `coverage` is that of the widest interval K draws have, (K - 1)/(K + 1). Of SSIM and LPIPS only
    those in `slow` are computed.
    """
    mean, level = draws.mean(0), levels_of(draws.shape[0])[0]
    where = hidden.expand_as(truth)
    spread, error = spread_and_error_at(draws, truth, where)
    found = {
        "psnr": psnr(mean, truth, data_range=2.0, mask=hidden),
        "psnr_whole": psnr(mean, truth, data_range=2.0),
        "psnr_draw": psnr(draws[0], truth, data_range=2.0, mask=hidden),
        "crps": of_each(crps_at(draws, truth, where)),
        "coverage": of_each(covered_at(draws, truth, level, where)),
        "spread": of_each(spread),
        "error": of_each(error),
    }
    if "ssim" in slow:
        # Its luminance is a quotient of means, so 0 has to be black: [0, 1], as of bytes over 255.
        found["ssim"] = ssim((mean + 1) / 2, (truth + 1) / 2, data_range=1.0)
    if "lpips" in slow:
        found["lpips"] = lpips(mean, truth, data_range=2.0)
    return {name: value.double() for name, value in found.items()}


def of_each(places: Float[Tensor, "b c *space"]) -> Float[Tensor, " b"]:
    """The mean over the places of each picture that count."""
    return places.double().flatten(1).nanmean(1)


def scores(asked: tuple[Metric, ...], found: dict[str, Tensor]) -> dict[str, Score]:
    """Means over pictures with their bootstrap intervals; the ratio from its two sums."""
    made: dict[str, Score] = {}
    for metric in asked:
        if metric.score == "spread_error":
            spread, error = found["spread"], found["error"]

            def ratio(rows: Tensor, spread: Tensor = spread, error: Tensor = error) -> float:
                return float((spread[rows].sum() / error[rows].sum()).sqrt())

            made[metric.name] = bootstrap(ratio, spread.shape[0])
        else:
            made[metric.name] = bootstrap_mean(found[metric.score])
    return made
