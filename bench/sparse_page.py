"""Reconstructions to look at: what is seen, what the draws say, and the truth, a sheet a system.

    python bench/sparse_page.py RUN... [--pictures 6] [--share 0.2] [--draws 9]

For the first test pictures of the sparse protocol a row each: known pixels (grey elsewhere), mean
of the draws, their deviation (white: 0.5 of [-1, 1]), two draws, the truth. Sheets go to
docs/images/sparse-RUN.png.
"""

import argparse
from pathlib import Path

import torch

import pointillist as pt
from pointillist.data.collection import nominal
from pointillist.known import protocol_mask
from pointillist.pictures import contact_sheet, save_png
from pointillist.types import Given
from pointillist.validation import held_out

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SCALE = 2
WHITE = 0.5  # of the deviation, in units of [-1, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--draws", type=int, default=9)
    asked = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for folder in asked.runs:
        run = pt.load(folder)
        size = tuple(run.spec.size)
        truth, label = held_out(nominal(run.run.data).open("test"), asked.pictures)
        mask = torch.stack([protocol_mask(i, size, asked.share) for i in range(len(truth))])
        mask = mask[:, None]
        labels = None
        if label is not None and run.spec.classes:
            labels = tuple(label.tolist())
        post = run.posterior(Given(seen=truth, mask=mask), asked.draws, labels,
                             sampler="dpmpp_2m", steps=16)  # fmt: skip
        draws = post.draws.clamp(-1, 1)
        spread = draws.std(0).mean(1, keepdim=True).expand_as(truth) / WHITE * 2 - 1
        row = [torch.where(mask, truth, 0), draws.mean(0), spread.clamp(-1, 1), *draws[:2], truth]
        sheet = torch.stack(row, 1).flatten(0, 1)
        save_png(contact_sheet(sheet, columns=len(row), scale=SCALE),
                 IMAGES / f"sparse-{Path(folder).name}.png")  # fmt: skip


if __name__ == "__main__":
    main()
