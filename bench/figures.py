"""The pictures of docs/results.md: samples of every class, and training curves.

    python bench/figures.py RUN... [--rows 3] [--guidance W] [--sheet samples.png]

One sheet in `docs/images` with rows of every run and a column for each class (seed 0,
the run's own sampler), and one curve `docs/images/NAME.svg` a run.
"""

import argparse
from pathlib import Path

import torch

import pointillist as pt
from pointillist.engine.log import read
from pointillist.figures import loss_figure
from pointillist.pictures import contact_sheet, flat, save_png
from pointillist.request import Ask

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SCALE = 2  # nearest neighbour, so that pixels stay pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sheet", default="samples.png")
    asked = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    rows = []
    for folder in asked.runs:
        run = pt.load(folder)
        count = asked.rows * len(run.spec.classes)
        rows.append(flat(run.answer(Ask(count=count, guidance=asked.guidance)).x))
        if curve := loss_figure(read(Path(folder) / "log.jsonl")):
            (IMAGES / f"{Path(folder).name}.svg").write_text(curve + "\n")
    sheet = contact_sheet(torch.cat(rows), columns=len(run.spec.classes), scale=SCALE)
    save_png(sheet, IMAGES / asked.sheet)


if __name__ == "__main__":
    main()
