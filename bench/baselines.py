"""Classical interpolation of CIFAR-10 pictures from a few known pixels, by the sparse protocol.

    python bench/baselines.py [--data data/cifar10] [--count 200] [--shares 0.05 0.1 0.2 0.4]

PSNR in dB over the hidden pixels and over the whole of each picture, then averaged; seconds are
those of a picture. `splat` is what the encoder of that name starts from.
"""

import argparse
import time

import torch
from record import record

from pointillist.baselines import BASELINES
from pointillist.data import CIFAR10Config
from pointillist.known import protocol_mask
from pointillist.layers.splat import splat
from pointillist.metrics.pixel import psnr
from pointillist.validation import held_out


def splat_fill(seen: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return splat(seen, mask.float()).filled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4])
    asked = parser.parse_args()
    x, _ = held_out(CIFAR10Config(path=asked.data).open("test"), asked.count)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, fill in {**BASELINES, "splat": splat_fill}.items():
        table[name] = {}
        for share in asked.shares:
            masks = [protocol_mask(i, tuple(x.shape[2:]), share) for i in range(len(x))]
            mask = torch.stack(masks)[:, None]
            seen = torch.where(mask, x, 0)
            fill(seen[:1], mask[:1])  # tables and first imports are not the picture's
            begun = time.perf_counter()
            full = fill(seen, mask)
            seconds = time.perf_counter() - begun
            full = full.clamp(-1, 1)
            table[name][f"{share:g}"] = {
                "hidden": round(float(psnr(full, x, data_range=2.0, mask=~mask).mean()), 2),
                "whole": round(float(psnr(full, x, data_range=2.0).mean()), 2),
                "seconds": round(seconds / len(x), 5),
            }
    width = max(map(len, table))
    print(" " * width, *(f"{share:>16.0%}" for share in asked.shares))
    for name, row in table.items():
        cells = (f"{of['hidden']:6.2f} {of['whole']:6.2f} dB" for of in row.values())
        print(f"{name:{width}}", *cells)
    record("baselines", {"pictures": len(x), "PSNR by share of known pixels": table})


if __name__ == "__main__":
    main()
