"""A page of prompts: one row each, one column a seed.

    python bench/prompt_sheet.py RUN [--columns 6] [--guidance W] [--sheet prompts.png] [PROMPT...]

Without prompts of one's own: what the training set has pictures of, then what it has none of
(captions of held-out emoji, and things put together). Whether a prompt is a caption of the training
split, of the held-out one, or of neither is printed beside its row.
"""

import argparse
from pathlib import Path

import torch

import pointillist as pt
from pointillist.data.emoji import is_test, rows
from pointillist.pictures import contact_sheet, flat, save_png

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SCALE = 2
PROMPTS = (
    "red heart", "slice of pizza", "sleeping cat", "flag: Japan", "smiling face with sunglasses",
    "green apple", "blue heart with a star", "red cat", "sad sun", "yellow car", "purple apple",
    "pizza with a face",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sheet", default="prompts.png")
    asked = parser.parse_args()
    run = pt.load(asked.run)
    split = {row["caption"].lower(): is_test(row["base"]) for row in rows()}
    # One seed draws all prompts of a column from noises of their own.
    columns = [
        run.sample(len(asked.prompts), prompt=tuple(asked.prompts), seed=seed,
                   guidance=asked.guidance)
        for seed in range(asked.columns)
    ]  # fmt: skip
    x = torch.stack(columns, 1).flatten(0, 1)
    IMAGES.mkdir(parents=True, exist_ok=True)
    save_png(contact_sheet(flat(x), columns=asked.columns, scale=SCALE), IMAGES / asked.sheet)
    for number, prompt in enumerate(asked.prompts, 1):
        where = split.get(prompt.lower())
        kind = "neither" if where is None else ("held out" if where else "training")
        print(f"{number:3}  {prompt}  ({kind})")


if __name__ == "__main__":
    main()
