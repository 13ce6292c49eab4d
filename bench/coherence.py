"""Do draws hold together as the truth does? Neighbouring hidden pixels of one draw, by run.

    python bench/coherence.py RUN... [--share 0.05] [--draws 9] [--count 100]

Draws of held-out pictures by the sparse protocol, clipped to [-1, 1]. Were the K draws of the exact
posterior, the truth would be one more of them, so each column has a value that it must come near:

- `r` and `e`: the correlation of horizontal neighbours, both hidden, in r = draw - mean and in
  e = truth - mean; that of r must be that of e. 0 would be noise on the mean. A mean that holds the
  draw itself is too near to it, so r of draw j is taken from the mean of the other K - 1, which is
  (draw - mean) K / (K - 1), and e is taken from the same K means, in turn.
- `gradient`: mean squared difference of horizontal and of vertical neighbours in draws, over that
  in the truth; must be 1. Below, draws are too smooth.
- `gap`: PSNR of the mean of all K less the mean PSNR of the draws, hidden pixels; must be about
  10 log10(2K / (K + 1)), which is printed. Below, draws are too much alike.

Intervals are percentiles of a bootstrap over pictures at 95 %.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from record import record
from torch import Tensor

import pointillist as pt
from pointillist.known import protocol_mask
from pointillist.metrics.interval import counts, percentiles
from pointillist.metrics.pixel import psnr
from pointillist.sample import Trained
from pointillist.types import Given
from pointillist.validation import held_out

PORTION, REPLICATES = 25, 1000


def neighbours(x: Tensor, hidden: Tensor) -> Tensor:
    """Of each picture the sums of x y, x^2 and y^2 over hidden neighbours x, y: `b 3`.

    x: `k b c h w`; hidden: `b 1 h w`.
    """
    both = (hidden[..., 1:] & hidden[..., :-1]).double()
    left, right = x[..., :-1] * both, x[..., 1:] * both
    found = (left * right, left.square(), right.square())
    return torch.stack([part.sum((0, 2, 3, 4)) for part in found], 1)


def gradient(x: Tensor) -> Tensor:
    """Mean squared difference of neighbours in each picture, over draws: `k b c h w` to `b`."""
    along = (x.diff(dim=-1).square().mean((0, 2, 3, 4)), x.diff(dim=-2).square().mean((0, 2, 3, 4)))
    return along[0] + along[1]


def figures(draws: Tensor, truth: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """What is summed up over pictures; a row for each."""
    k = draws.shape[0]
    draws, truth = draws.double(), truth.double()
    mean = draws.mean(0)
    others = mean + (mean - draws) / (k - 1)
    of_mean = psnr(mean, truth, data_range=2.0, mask=hidden)
    of_draws = torch.stack([psnr(draw, truth, data_range=2.0, mask=hidden) for draw in draws])
    return {
        "r": neighbours(draws - others, hidden),
        "e": neighbours(truth - others, hidden),
        "gradient": torch.stack((gradient(draws), gradient(truth[None])), 1),
        "psnr": torch.stack((of_mean, of_draws.mean(0)), 1).double(),
    }


def said(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns of weighted sums over pictures, `* 3` or `* 2` each."""
    correlation = {
        name: sums[name][..., 0] / (sums[name][..., 1] * sums[name][..., 2]).sqrt()
        for name in ("r", "e")
    }
    return {
        **correlation,
        "gradient": sums["gradient"][..., 0] / sums["gradient"][..., 1],
        "psnr_mean": sums["psnr"][..., 0],
        "psnr_draw": sums["psnr"][..., 1],
        "gap": sums["psnr"][..., 0] - sums["psnr"][..., 1],
    }


def judge(run: Trained, asked: argparse.Namespace) -> dict[str, Any]:
    test = run.run.data.open("test")
    size, rows = tuple(run.spec.size), []
    total = min(asked.count, len(test))
    ask = {} if asked.steps is None else {"steps": asked.steps}
    for first in range(0, total, PORTION):
        x, label = held_out(test, min(PORTION, total - first), first=first)
        some = range(first, first + len(x))
        mask = torch.stack([protocol_mask(i, size, asked.share) for i in some])[:, None]
        post = run.posterior(
            Given(seen=x, mask=mask), asked.draws,
            None if label is None else tuple(label.tolist()), first=first, **ask,
        )  # fmt: skip
        rows.append(figures(post.draws.clamp(-1, 1), x, ~mask))
    found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    n = len(found["r"])
    values = said({name: part.mean(0) for name, part in found.items()})
    picked = counts(n, REPLICATES) / n
    spread = said({name: picked @ part for name, part in found.items()})
    return {"pictures": n} | {
        name: {
            "value": round(float(value), 4),
            "interval": [round(end, 4) for end in percentiles(spread[name], 0.95)],
        }
        for name, value in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--draws", type=int, default=9)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, help="of the sampler; the run's own by default")
    parser.add_argument("--name", default="coherence", help="of the file in results")
    asked = parser.parse_args()
    if asked.draws < 3 or asked.count < 2:
        parser.error("it takes 3 draws and 2 pictures or more")
    table = {Path(folder).name: judge(pt.load(folder), asked) for folder in asked.runs}
    exact = 10 * math.log10(2 * asked.draws / (asked.draws + 1))
    columns = ("r", "e", "gradient", "psnr_mean", "psnr_draw", "gap")
    width = max(map(len, table))
    print(" " * width, *(f"{name:>10}" for name in columns))
    for name, row in table.items():
        print(f"{name:{width}}", *(f"{row[column]['value']:10.3f}" for column in columns))
    print(f"the exact posterior: r as e, gradient 1, gap about {exact:.2f} dB")
    record(
        asked.name,
        {"share": asked.share, "draws": asked.draws, "exact_gap": round(exact, 3), "runs": table},
    )


if __name__ == "__main__":
    main()
