"""Cells of an ablation, each trained on the same number of pictures, several seeds.

    python bench/ablation.py cifar10-pixeldit OUT --images 32k --seeds 0,1 \
        --cell default --cell "patch-wise adaLN: model.modulation=patch" \
        --cell "s without time: model.condition_time=false"

Runs cell after cell, seed after seed, into OUT/CELL-SEED (a finished one is not trained again,
an interrupted one goes on), and then writes the velocity loss on the first 2,000 test pictures of
every run, of its first EMA.
"""

import argparse
import re
from pathlib import Path

import torch
from record import record

import pointillist as pt
from pointillist.engine.checkpoint import complete
from pointillist.types import parse_count
from pointillist.validation import TIMES, held_out, velocity_loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("preset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", default="32k")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--cell", action="append", required=True, metavar="NAME[: KEY=VALUE ...]")
    wanted = parser.parse_args()
    images = parse_count(wanted.images)
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in wanted.seeds.split(","):
        for cell in wanted.cell:
            name, _, changes = cell.partition(":")
            folder = wanted.out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"
            run = pt.Run.load(wanted.preset, f"train.images={images}", f"seed={seed}",
                              f"train.save_every={images}", *changes.split())  # fmt: skip
            saved = complete(folder / "checkpoints")
            if not saved or int(saved[-1].name) < images:
                pt.train(run, folder, resume=(folder / "run.yaml").is_file(),
                         report=lambda event, name=name: print(name, event, flush=True)
                         if event["event"] in ("step", "validation") else None)  # fmt: skip
            trained = pt.load(folder)
            x, label = held_out(run.data.open("test"), 2000)
            with torch.no_grad():
                loss = velocity_loss(trained.network, run.objective, x, label)
            rows.setdefault(name, {})[seed] = [round(value, 4) for value in loss]
            print(name, seed, rows[name][seed], flush=True)
    record(f"ablation-{wanted.preset}", {
        "preset": wanted.preset, "images": images, "times": list(TIMES),
        "cells": {cell.partition(":")[0]: cell.partition(":")[2].strip() for cell in wanted.cell},
        "velocity_loss": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
