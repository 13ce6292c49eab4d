"""The embedded emoji with the captions of others: what a model learns that is told nothing true.

    python bench/shuffled_captions.py FOLDER [--size 32]
    pointillist train emoji-t2i data="{kind: folder, path: FOLDER, size: 32}"

Writes the training split as PNG files and `metadata.jsonl`, in which every picture has the caption
of another, in an order that is always the same. A run of it, put before prompt_judge.py, is the
control of its figures: pictures and words are all there, what ties them is not.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from pointillist.data.emoji import EmojiConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, choices=(32, 64), default=32)
    asked = parser.parse_args()
    source = EmojiConfig(size=asked.size).open("train")
    pictures = source.rows(range(len(source)))
    # A random cycle through all: nobody keeps his own.
    cycle = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    other = torch.empty_like(cycle)
    other[cycle] = cycle.roll(1)
    asked.folder.mkdir(parents=True)
    lines = []
    for i in range(len(source)):
        name = f"{i:05d}.png"
        Image.fromarray(pictures.x[i].permute(1, 2, 0).numpy()).save(asked.folder / name)
        caption = pictures.caption[int(other[i])][0]
        lines.append(json.dumps({"file_name": name, "text": caption}, ensure_ascii=False))
    (asked.folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(source)} pictures, each with the caption of another, in {asked.folder}")


if __name__ == "__main__":
    main()
