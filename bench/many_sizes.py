"""One run, asked at many sizes from the same few points: pictures of 256 pixels, seen at 32.

    python bench/many_sizes.py RUN [--count 32] [--draws 9] [--sizes 32 48 64 96 128]

RUN was trained on a folder or zip file of pictures of 256 pixels, brought to 32. Of a test picture
a fifth of the 32 x 32 lattice is known, by the sparse protocol, and everything else is asked for at
every size; the truth is the picture of 256 pixels, averaged over the cells of that size. Beside the
mean of the draws: the thin-plate spline through the same points, and the run's own mean at 32,
enlarged bicubically. PSNR in dB over the whole picture, with its 95 % interval over pictures. The
grid of the patches is looked for as `superres.py` does: energy at its frequencies over the truth's.
A sheet a size, out/many-sizes-RUN-SIZE.png: known, spline, bicubic, a draw, the mean, the truth.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from record import record
from scipy.interpolate import RBFInterpolator
from superres import checkerboard
from torch import Tensor
from torch.nn import functional as F

import pointillist as pt
from pointillist.baselines import resize
from pointillist.known import protocol_mask
from pointillist.layers.observations import centres
from pointillist.measure import area
from pointillist.metrics.interval import bootstrap_mean
from pointillist.metrics.pixel import psnr
from pointillist.pictures import contact_sheet, save_png
from pointillist.resolution import base_scale
from pointillist.types import Given
from pointillist.validation import held_out

COARSE, FINEST, SHARE, PORTION = 32, 256, 0.2, 8
WALK: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 16}


def spline(seen: Tensor, mask: Tensor, size: int) -> Tensor:
    """Through the known cells' centres, at the centres of `size` cells a side."""
    known, asked = centres((COARSE, COARSE)).view(-1, 2), centres((size, size)).view(-1, 2)
    found = []
    for x, m in zip(seen, mask, strict=True):
        told = m.flatten()
        fit = RBFInterpolator(known[told].numpy(), x.flatten(1)[:, told].T.numpy(),
                              kernel="thin_plate_spline")  # fmt: skip
        found.append(torch.from_numpy(fit(asked.numpy())).float().T.view(-1, size, size))
    return torch.stack(found).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--draws", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 48, 64, 96, 128])
    parser.add_argument("--sheet", type=int, default=6, help="pictures on the sheets")
    asked = parser.parse_args()
    run, name = pt.load(asked.run), Path(asked.run).name
    whole, label = held_out(dataclasses.replace(run.run.data, size=FINEST).open("test"),
                            asked.count)  # fmt: skip
    seen = area((FINEST, FINEST), (COARSE, COARSE))(whole)
    mask = torch.stack([protocol_mask(i, (COARSE, COARSE), SHARE) for i in range(len(whole))])
    mask = mask[:, None]
    known = torch.where(mask, seen, 0)

    def draw(size: int) -> Tensor:
        parts = []
        for first in range(0, len(whole), PORTION):
            part = slice(first, first + PORTION)
            labels = None
            if label is not None and run.spec.classes:
                labels = tuple(label[part].tolist())
            post = run.posterior(Given(seen=known[part], mask=mask[part]), asked.draws, labels,
                                 first=first, size=(size, size), **WALK)  # fmt: skip
            parts.append(post.draws.clamp(-1, 1))
        return torch.cat(parts, 1)

    Path("out").mkdir(exist_ok=True)
    coarse = draw(COARSE)
    own, table = coarse.mean(0), {}
    patch = getattr(run.run.model, "patch_size", None)  # models of points have no grid of patches
    for size in asked.sizes:
        truth = area((FINEST, FINEST), (size, size))(whole)
        draws = coarse if size == COARSE else draw(size)
        smooth = spline(known, mask, size)
        larger = resize(own, (size, size), "bicubic").clamp(-1, 1) if size != COARSE else own
        rows = {"mean": draws.mean(0), "draw": draws[0], "thin plate": smooth,
                "bicubic of 32": larger}  # fmt: skip
        table[str(size)] = {
            "psnr": {row: [round(v, 2) for v in bootstrap_mean(psnr(x, truth, data_range=2.0))[:3]]
                     for row, x in rows.items()},
        }  # fmt: skip
        if patch is not None:
            scale = base_scale((size, size), tuple(run.spec.size), patch)
            grid = checkerboard(draws, {"truth": truth}, size // (patch * scale))
            table[str(size)]["grid"] = grid
        print(size, table[str(size)]["psnr"], flush=True)
        sheet = [F.interpolate(known, (size, size)), smooth, larger, draws[0], draws.mean(0), truth]
        first = torch.stack([x[: asked.sheet] for x in sheet], 1).flatten(0, 1)
        save_png(contact_sheet(first, len(sheet)), Path(f"out/many-sizes-{name}-{size}.png"))
    record(f"many-sizes-{name}", {
        "run": name, "pictures": len(whole), "draws": asked.draws, "share": SHARE,
        "sampler": WALK["sampler"], "evaluations": WALK["steps"], "sizes": table,
    })  # fmt: skip


if __name__ == "__main__":
    main()
