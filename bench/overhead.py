"""How much of a training step is neither forward, backward nor optimizer.

    python bench/overhead.py [PRESET] [STEPS]

Runs the real training loop with clocks around the network's forward, `Tensor.backward` and the
optimizer's step; batches, draws, mixing, loss, clipping, averages and the log are the rest. The
pictures are the embedded emoji where the preset's own data are not at hand.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import record

import pointillist as pt
from pointillist.engine.ema import EMA
from pointillist.models import Network

SPENT: dict[str, float] = {}


def clocked(owner: Any, name: str, what: str) -> None:
    """Add the time of every call of `owner.name` to SPENT[what]."""
    call: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            SPENT[what] = SPENT.get(what, 0.0) + time.perf_counter() - begun

    setattr(owner, name, timed)


def main(preset: str = "cifar10-jit", steps: str = "40") -> None:
    run = pt.Run.load(preset)
    if not Path(getattr(run.data, "path", "")).exists():
        run = pt.Run.load(preset, "data.kind=emoji")
    images = (int(steps) + 5) * run.train.batch
    run = pt.Run.load(preset, f"data.kind={run.data.kind}", f"train.images={images}",
                      f"train.log_every={run.train.batch}", "train.grid=0",
                      "train.validate=0", "train.save_every=1000M")  # fmt: skip
    clocked(Network, "__call__", "forward")
    clocked(torch.Tensor, "backward", "backward")
    clocked(torch.optim.AdamW, "step", "optimizer")
    clocked(EMA, "update", "averages")
    clocked(torch.nn.utils, "clip_grad_norm_", "clip")
    rows: list[dict[str, float]] = []
    last = [time.perf_counter()]

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            now = time.perf_counter()
            rows.append({"step": now - last[0], **SPENT})
            SPENT.clear()
            last[0] = now

    with tempfile.TemporaryDirectory() as folder:
        pt.train(run, Path(folder) / "run", report=report)
    rows = rows[5:-1]  # the first warm up, the last one also saves
    inside = ("forward", "backward", "optimizer")
    share = [1 - sum(row[name] for name in inside) / row["step"] for row in rows]
    record(f"overhead-{preset}", {
        "preset": preset,
        "steps": len(rows),
        "seconds_a_step": {name: round(statistics.median(row[name] for row in rows), 4)
                           for name in rows[0]},
        "share_outside_forward_backward_optimizer": round(statistics.median(share), 4),
    })  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
