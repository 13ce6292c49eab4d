"""Emoji on finer grids than the trained one: distance from the truth, and the grid of the patches.

    python bench/superres.py RUN [--count 64] [--draws 9] [--sheet 6]

The model, trained at 32 x 32, sees the area means at 32 of test emoji of 64 and draws 48, 64 and
96. The truth is the picture at 64, at 48 its area means (of partly covered cells their share). At
96 there is none: there everything is brought to 64 by area means and compared with that picture.

PSNR in dB, over all pixels, of the mean of K draws, of one draw (the mean over draws), and of
bicubic and Lanczos interpolation of the means at 32.

The grid: patches of p pixels, seen r times smaller, could show with a period of p r pixels, that is
at the frequencies (u, v) g, u and v whole, of a picture of g x g patches. `over_truth` is the
energy there, mean over pictures, draws and channels, summed, over that of the truth.
`over_neighbours` is the same energy over what the frequencies one step beside let expect (the
geometric mean of the neighbours along both axes, for a frequency of 0 along the other alone), for
draws, interpolations and the truth, at 96 that of 64, which has the same frequencies.
The first harmonic outweighs the rest, and a faint grid shows in the others: `by_harmonic` is
`over_neighbours` of draws divided by that of the truth, by max(u, v). The bar: within 10 % of the
truth, at 48 and 64 by energy, at 96, where energies do not compare, by neighbours; and, harder, for
every harmonic.

One sheet a size in out/: input, bicubic, a draw, the mean, and the truth where there is one.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from record import record
from torch import Tensor
from torch.nn import functional as F

import pointillist as pt
from pointillist.baselines import resize
from pointillist.data import EmojiConfig
from pointillist.measure import area
from pointillist.metrics.pixel import psnr
from pointillist.pictures import contact_sheet, save_png
from pointillist.resolution import base_scale
from pointillist.sample import Trained
from pointillist.types import Given
from pointillist.validation import held_out

COARSE, FINE, SIZES = 32, 64, (48, 64, 96)
BAR, PORTION = 0.1, 16


def brought(x: Tensor, size: int) -> Tensor:
    """Area means on a coarser square grid; the picture itself on its own."""
    here = x.shape[-1]
    return x if here == size else area((here, here), (size, size))(x)


def energy(x: Tensor) -> Tensor:
    """Mean energy at each frequency, `* h w` to `h w`."""
    found = torch.fft.fft2(x.double()).abs().square()
    return found.flatten(0, -3).mean(0)


def on_grid(power: Tensor, patches: int) -> tuple[Tensor, Tensor, Tensor]:
    """At the frequencies of so many patches across: energy, the expected one, and the harmonic."""
    period = power.shape[0] // patches
    log = power.clamp(min=1e-12).log()
    down = (log.roll(1, 0) + log.roll(-1, 0)) / 2
    along = (log.roll(1, 1) + log.roll(-1, 1)) / 2
    expected = (down + along) / 2
    expected[0], expected[:, 0] = along[0], down[:, 0]
    number = torch.fft.fftfreq(period, 1 / period).abs()
    harmonic = torch.maximum(number[:, None], number)
    chosen = harmonic > 0
    every = slice(None, None, patches)
    return power[every, every][chosen], expected.exp()[every, every][chosen], harmonic[chosen]


def checkerboard(draws: Tensor, others: dict[str, Tensor], patches: int) -> dict[str, Any]:
    """The grid's energy in draws and in others, one of which is the truth."""
    size = draws.shape[-1]
    at = {
        name: on_grid(energy(x), patches) for name, x in {"draws": draws, **others}.items()
    }  # fmt: skip
    beside = {
        name: float(power.sum() / expected.sum()) for name, (power, expected, _) in at.items()
    }
    comparable = others["truth"].shape[-1] == size
    found: dict[str, Any] = {"period": size // patches}
    found["over_neighbours"] = {name: round(value, 4) for name, value in beside.items()}
    over = beside["draws"] / beside["truth"]
    if comparable:
        over = float(at["draws"][0].sum() / at["truth"][0].sum())
        found["over_truth"] = round(over, 4)
    found["by_harmonic"] = contrast = {}
    for k in at["truth"][2].unique():
        shares = [
            float(power[harmonic == k].sum() / expected[harmonic == k].sum())
            for power, expected, harmonic in (at["draws"], at["truth"])
        ]
        contrast[int(k)] = round(shares[0] / shares[1], 4)
    found["within_bar"] = abs(over - 1) <= BAR
    found["every_harmonic_within_bar"] = all(abs(v - 1) <= BAR for v in contrast.values())
    return found


def draw(
    run: Trained, coarse: Tensor, label: Tensor | None, size: int, asked: argparse.Namespace
) -> Tensor:
    """Draws in [-1, 1], `k b c h w`."""
    found = []
    ask = {} if asked.steps is None else {"steps": asked.steps}
    labelled = label is not None and bool(run.spec.classes)
    for first in range(0, len(coarse), PORTION):
        part = slice(first, first + PORTION)
        seen = coarse[part]
        post = run.posterior(
            Given(seen=seen, mask=torch.ones_like(seen[:, :1], dtype=torch.bool)), asked.draws,
            tuple(label[part].tolist()) if labelled and label is not None else None,
            first=first, size=(size, size), **ask,
        )  # fmt: skip
        found.append(post.draws.clamp(-1, 1))
    return torch.cat(found, 1)


def judge(
    run: Trained, truth: Tensor, label: Tensor | None, size: int, asked: argparse.Namespace
) -> dict[str, Any]:
    coarse = brought(truth, COARSE)
    draws = draw(run, coarse, label, size, asked)
    made = {
        kind: resize(coarse, (size, size), kind).clamp(-1, 1) for kind in ("bicubic", "lanczos")
    }
    compared = min(size, FINE)
    there = brought(truth, compared)

    def distance(x: Tensor) -> float:
        return float(psnr(brought(x, compared), there, data_range=2.0).mean())

    found = {
        "mean": distance(draws.mean(0)),
        "draw": sum(map(distance, draws)) / len(draws),
        **{kind: distance(x) for kind, x in made.items()},
    }
    patch = run.run.model.patch_size
    scale = base_scale((size, size), tuple(run.spec.size), patch)
    others = {"truth": there, **made}
    row = [F.interpolate(coarse, (size, size)), made["bicubic"], draws[0], draws.mean(0)]
    row += [there] if size <= FINE else []
    sheet = torch.stack([part[: asked.sheet] for part in row], 1).flatten(0, 1)
    save_png(contact_sheet(sheet, len(row), scale=2), Path(f"out/superres-{size}.png"))
    return {
        "psnr_against": compared,
        "psnr": {name: round(value, 2) for name, value in found.items()},
        "scale": scale,
        "grid": checkerboard(draws, others, size // (patch * scale)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--draws", type=int, default=9)
    parser.add_argument("--sheet", type=int, default=6, help="pictures on the sheets")
    parser.add_argument("--steps", type=int, help="of the sampler; the run's own by default")
    parser.add_argument("--name", default="superres", help="of the file in results")
    asked = parser.parse_args()
    run = pt.load(asked.run)
    truth, label = held_out(EmojiConfig(size=64).open("test"), asked.count)
    Path("out").mkdir(exist_ok=True)
    table = {size: judge(run, truth, label, size, asked) for size in SIZES}
    print("size  truth   mean   draw  bicubic  lanczos  grid: over truth, neighbours (truth's)")
    for size, row in table.items():
        cells, grid = row["psnr"], row["grid"]
        beside = grid["over_neighbours"]
        over = grid.get("over_truth", "-")
        print(f"{size:4} {row['psnr_against']:6} {cells['mean']:6.2f} {cells['draw']:6.2f} "
              f"{cells['bicubic']:8.2f} {cells['lanczos']:8.2f} {over:>17} "
              f"{beside['draws']:11} ({beside['truth']})")  # fmt: skip
    facts = {"run": Path(asked.run).name, "pictures": len(truth), "draws": asked.draws}
    record(asked.name, {**facts, "sizes": {str(size): row for size, row in table.items()}})


if __name__ == "__main__":
    main()
