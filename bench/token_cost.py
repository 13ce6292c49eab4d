"""What a training step costs by the share of pixels observed: PixNerd with the curve encoder.

    python bench/token_cost.py [--rounds 7] [--threads 1] [--batch 8]

Pictures of 64 x 64, patches of 8, width 256, 8 blocks; a step is forward, backward and AdamW. The
token path alone is `encoder.condition` and the encoder's cross blocks, forward and backward, the
patches being zeros. Milliseconds a picture: of processor time by all threads, so with one thread
what an idle machine would take, as the median over turns in which the shares alternate. Peak
megabytes a picture: the most that a step holds at any time beyond what was held before it, over the
batch; these are activations and the gradients of the weights, the latter the same at every share.

The figure is docs/images/token-cost.svg.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import record
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pointillist.encoders import CurveConfig
from pointillist.engine.optim import OptimConfig, adamw
from pointillist.figures import Scale, Series, chart
from pointillist.losses import mean_square
from pointillist.models import Network
from pointillist.models.pixnerd import PixNerd, PixNerdConfig
from pointillist.types import Given, Spec, grid_axes

SIZE, SHARES, PATCH, WIDTH = (64, 64), (0.05, 0.1, 0.2, 0.4), 8, 256
GRID = (SIZE[0] // PATCH, SIZE[1] // PATCH)
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "token-cost.svg"
PARTS = ("whole step", "token path alone")


def observed(share: float, batch: int) -> Given:
    generator = torch.Generator().manual_seed(0)
    cells = SIZE[0] * SIZE[1]
    order = torch.rand(batch, cells, generator=generator).argsort(1)
    mask = (order.argsort(1) < round(share * cells)).view(batch, 1, *SIZE)
    seen = torch.rand(batch, 3, *SIZE, generator=generator) * 2 - 1
    return Given(seen=torch.where(mask, seen, 0), mask=mask)


def steps(model: PixNerd, batch: int) -> dict[tuple[str, float], Callable[[], None]]:
    """Every part at every share."""
    network = Network(model)
    optimizer = adamw([*model.parameters()], OptimConfig(lr=1e-4))
    x, target = torch.randn(batch, 3, *SIZE), torch.randn(batch, 3, *SIZE)
    t = torch.rand(batch)
    patches = torch.zeros(batch, GRID[0] * GRID[1], WIDTH)
    c = torch.randn(batch, WIDTH)

    def whole(given: Given) -> None:
        mean_square(network(x, t, given).value - target, None).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def tokens(given: Given) -> None:
        made: Tensor = model.encoder(patches, c, model.encoder.condition(given, SIZE, GRID))
        made.square().mean().backward()
        optimizer.zero_grad(set_to_none=True)

    return {
        (name, share): functools.partial(call, observed(share, batch))
        for name, call in zip(PARTS, (whole, tokens), strict=True)
        for share in SHARES
    }


def peak(call: Callable[[], None]) -> int:
    """The most bytes that a call has taken and not given back at any time of it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    held = most = 0
    for event in found.profiler.kineto_results.events():  # in order of time
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def draw(table: dict[str, dict[str, dict[str, float]]], note: str) -> str:
    lines = [
        Series(name, [100 * share for share in SHARES], [
            table[name][f"{share:g}"]["milliseconds"] for share in SHARES
        ])
        for name in PARTS
    ]  # fmt: skip
    return chart(
        lines, title="Cost of a training step, 64 x 64 pixels", note=note,
        x=Scale("pixels observed, %", low=0.0), y=Scale("ms a picture", low=0.0),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    config = PixNerdConfig(
        width=WIDTH, depth=8, heads=4, patch_size=PATCH, encoder=CurveConfig(group_size=8)
    )
    model = config.build(Spec(channels=3, axes=grid_axes(SIZE), classes=())).train()
    calls = steps(model, asked.batch)
    seconds: dict[tuple[str, float], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    memory = {key: peak(call) for key, call in calls.items()}
    for _ in range(asked.rounds):
        for key, call in calls.items():
            begun = time.process_time()
            call()
            seconds[key].append(time.process_time() - begun)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in PARTS}
    print(f"{'':18} {'observed':>8} {'tokens':>6} {'ms':>8} {'MB':>8}  a picture")
    for (name, share), found in seconds.items():
        tokens = -(-round(share * SIZE[0] * SIZE[1]) // 8)
        row = {
            "tokens": tokens,
            "milliseconds": round(1e3 * statistics.median(found) / asked.batch, 2),
            "peak_megabytes": round(memory[name, share] / asked.batch / 1e6, 2),
        }
        table[name][f"{share:g}"] = row
        print(f"{name:18} {share:8.0%} {tokens:6} {row['milliseconds']:8.2f} "
              f"{row['peak_megabytes']:8.2f}")  # fmt: skip
    note = f"median of {asked.rounds} steps of {asked.batch}, float32, {asked.threads} thread(s)"
    IMAGE.write_text(draw(table, note) + "\n")
    record(
        "token-cost",
        {
            "batch": asked.batch, "size": SIZE, "rounds": asked.rounds, "width": WIDTH,
            "weights_megabytes": round(weights / 1e6, 1), "by_share": table,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
