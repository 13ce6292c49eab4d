"""What scaling every branch by 1/sqrt(2 L) does to training at depths 8, 16 and 32.

    python bench/depth_scaling.py [--steps 300] [--threads 1]

A tiny PixelHDM (width 32, 16 patches) learns the velocity of smooth pictures, from a start at which
every gate is 1, as published: there the depth tells. The loss is the mean of the last 50 steps, on
the same pictures, times and noise at every depth; `spread`: the largest over the smallest, less 1.
"""

import argparse
import statistics

import torch
from record import record
from torch.nn import functional as F

from pointillist.models import Network, PixelHDMConfig
from pointillist.types import Given, Spec, grid_axes

DEPTHS, SIZE = (8, 16, 32), (16, 16)


def loss_of(depth: int, k: float, steps: int) -> float:
    torch.manual_seed(0)
    config = PixelHDMConfig(
        width=32, depth=depth, heads=2, kv_heads=1, patch_size=4, bottleneck=16, pixel_width=8,
        pixel_depth=2, depth_scale=k, gate_start=1.0, modulation_gain=0.1, output_gain=1.0,
        recompute=False,
    )  # fmt: skip
    model = config.build(Spec(channels=3, axes=grid_axes(SIZE))).train()
    network = Network(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    draw = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        coarse = torch.randn(8, 3, 3, 3, generator=draw)
        x = F.interpolate(coarse, SIZE, mode="bilinear", align_corners=True)
        eps, t = torch.randn(8, 3, *SIZE, generator=draw), torch.rand(8, generator=draw)
        at = t[:, None, None, None]
        value = network(at * x + (1 - at) * eps, t, Given()).value
        loss = (value - (x - eps)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return statistics.mean(losses[-50:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = {}
    for name, k in (("1/sqrt(2 L)", 2.0), ("none", 0.0)):
        losses = {str(depth): round(loss_of(depth, k, asked.steps), 4) for depth in DEPTHS}
        spread = max(losses.values()) / min(losses.values()) - 1
        rows[name] = {"loss_by_depth": losses, "spread": round(spread, 4)}
        print(name, rows[name], flush=True)
    record("depth-scaling", {"steps": asked.steps, "size": SIZE, "scaling": rows})


if __name__ == "__main__":
    main()
