"""How models on sets grow with the places asked: time and memory of one forward.

    python bench/field_scaling.py [NAME...]

A fifth as many points are known as places are asked, in the unit square. `dense` is the same local
model with a neighbourhood of everything, which is attention of all to all, until it takes too long.
Every measurement is a process of its own; its memory is the peak of a first forward beyond what the
process holds before (Linux tells). Slopes are those from 2,048 places on, below which a call costs
what it costs for few. One result a model, as `field-scaling-NAME.json`.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import record

from pointillist.engine.device import keep_freed_memory
from pointillist.models import (
    HybridConfig,
    LocalConfig,
    MambaConfig,
    Network,
    PerceiverIOConfig,
)
from pointillist.types import Given, Spec, grid_axes

SIZES = [2**n for n in range(10, 19)]
SMALLEST = 2**11  # of which slopes are
LOCAL = {"width": 128, "depth": 4, "heads": 4, "mlp_ratio": 2.0, "neighbours": 16, "mixing": 16}
MAMBA = {"width": 128, "depth": 4, "form": "dual", "frequencies": 64}
LATENTS = {"width": 128, "latents": 64, "depth": 4, "heads": 4, "mlp_ratio": 2.0, "frequencies": 64}
BOTH = {**LOCAL, "depth": 2, "form": "dual"}
LONGEST = {"local": 2**18, "mamba": 2**17, "perceiver_io": 2**18, "hybrid": 2**16, "dense": 2**13}


def network(name: str, places: int) -> Network:
    """The model by its name; `dense` is `local` without a radius."""
    everything = {"radius": 10.0, "neighbours": places // 5, "mixing": places - 1}
    config: Any = {
        "local": LocalConfig(**LOCAL, radius=0.3),
        "mamba": MambaConfig(**MAMBA),
        "perceiver_io": PerceiverIOConfig(**LATENTS),
        "hybrid": HybridConfig(**BOTH, radius=0.3),
        "dense": LocalConfig(**{**LOCAL, **everything}),
    }[name]
    return Network(config.build(Spec(channels=3, axes=grid_axes((32, 32)))))


def memory(field: str) -> int:
    """KiB of this process: VmRSS now, VmHWM at the most since it was last cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def one(name: str, places: int) -> dict[str, float]:
    """Seconds (the best of three) of finding neighbours and of a forward, and MiB at the peak."""
    keep_freed_memory()  # as the command does
    torch.manual_seed(0)
    model = network(name, places)
    where, at = (torch.rand(1, n, 2) * 2 - 1 for n in (places, places // 5))
    given = Given(where=where, at=at, value=torch.randn(1, 3, at.shape[1]))
    state, t = torch.randn(1, 3, places), torch.tensor([0.5])
    small = Given(where=where[:, :512], at=at[:, :100], value=given.value[:, :, :100])
    with torch.no_grad():
        model(state[:, :, :512], t, small)  # threads and libraries
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        model(state, t, given, model.condition(given, (places,)))  # its pages are fresh: not timed
        peak = (memory("VmHWM") - before) / 1024
        found, asked = [], []
        for _ in range(3):
            begun = time.perf_counter()
            context = model.condition(given, (places,))
            met = time.perf_counter()
            model(state, t, given, context)
            found.append(met - begun)
            asked.append(time.perf_counter() - met)
    return {"condition": min(found), "forward": min(asked), "MiB": peak}


def slope(sizes: list[int], values: list[float]) -> float:
    """Of the line of least squares through the logarithms."""
    x, y = ([math.log(v) for v in row] for row in (sizes, values))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mx) ** 2 for a in x)


def measured(name: str) -> None:
    """The rows of one model, with their slopes, into results."""
    rows: dict[int, dict[str, float]] = {}
    for places in (n for n in SIZES if n <= LONGEST[name]):
        call = [sys.executable, __file__, "--one", name, str(places)]
        rows[places] = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
        print(name, places, rows[places], flush=True)
    large = {places: row for places, row in rows.items() if places >= SMALLEST}
    slopes = {
        kind: round(slope(list(large), [row[kind] for row in large.values()]), 3)
        for kind in ("condition", "forward", "MiB")
    }
    record(f"field-scaling-{name}", {"slopes": slopes, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(LONGEST))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "PLACES"), help="a single measurement")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one[0], int(asked.one[1]))))
        return
    for name in asked.names:
        measured(name)


if __name__ == "__main__":
    main()
