"""Activation checkpointing: time and memory of a training step, with and without.

python bench/recompute.py

Forward and backward in a process of its own each; memory is the peak beyond what the process holds
before, and beside it what `pointillist show` promises.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from record import record

from pointillist.data.loader import batches
from pointillist.describe import describe
from pointillist.gradient import backward
from pointillist.models import Network
from pointillist.run import Run

PRESETS = {"cifar10-jit": 64, "cifar10-diffit-small": 32}


def one(preset: str, batch: int, recomputed: bool) -> dict[str, float]:
    from pointillist.engine.recompute import recompute_blocks

    run = Run.load(preset, f"train.batch={batch}", f"train.gradient_checkpointing={recomputed}",
                   "train.precision=float32")  # fmt: skip
    source = run.data.open("train")
    torch.manual_seed(0)
    model = run.model.build(source.spec)
    if recomputed:
        recompute_blocks(model)
    network, seconds = Network(model), []
    data = iter(batches(source, 0, 0, 100 * batch, batch))
    part = next(data)
    backward(run, network, part.part(slice(2)), torch.device("cpu"))  # gradients and libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):
        begun = time.perf_counter()
        backward(run, network, part, torch.device("cpu"))
        seconds.append(time.perf_counter() - begun)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    promised = describe(run, source.spec)["activation_bytes"] * batch / 2**20
    return {"seconds": round(statistics.median(seconds), 3), "MiB": round(peak, 1),
            "promised MiB": round(promised, 1)}  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "true")))
        return
    facts = {}
    for preset, batch in PRESETS.items():
        rows = {}
        for way in ("false", "true"):
            out = subprocess.run(
                [sys.executable, __file__, preset, str(batch), way], check=True, capture_output=True
            )
            rows["recomputed" if way == "true" else "kept"] = json.loads(out.stdout)
        rows["ratio"] = {
            name: round(rows["recomputed"][name] / rows["kept"][name], 3)
            for name in ("seconds", "MiB")
        }
        facts[f"{preset}, batch {batch}"] = rows
        print(preset, rows, flush=True)
    record("recompute", facts)


if __name__ == "__main__":
    main()
