"""Training steps of the models on sets at the neural-field notebooks' size.

python bench/field_training.py [--published DIR]

Batch 8, 204 points in and 204 places asked of a picture of 32 by 32, forward, backward and AdamW.
DIR is a checkout of colpark/NFDiffusion: the networks of its two notebooks then take turns with
ours, in float32. Bfloat16 is timed where the processor has it.
"""

import argparse
import ast
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from record import alternate, record

from pointillist.engine.device import autocast, keep_freed_memory
from pointillist.layers.observations import centres
from pointillist.models import Backbone, LocalConfig, MambaConfig, Network
from pointillist.types import Given, Spec, grid_axes

BATCH, POINTS = 8, 204
# Notebook and class of the published network that each of ours is held against.
PUBLISHED = {
    "local": ("local_implicit_diffusion", "LocalImplicitDiffusion"),
    "mamba": ("mamba_diffusion", "MAMBADiffusion"),
}
MODELS: dict[str, Backbone] = {
    "local": LocalConfig(),
    "mamba, selective": MambaConfig(),
    "mamba, dual": MambaConfig(form="dual"),
}


def step_of(config: Backbone, dtype: str):  # type: ignore[no-untyped-def]
    """A training step, and the number of parameters."""
    torch.manual_seed(0)
    model = config.build(Spec(channels=3, axes=grid_axes((32, 32))))
    network, optimizer = Network(model), torch.optim.AdamW(model.parameters(), 1e-4)
    every = centres((32, 32))
    rows = [torch.randperm(1024) for _ in range(BATCH)]
    where = torch.stack([every[row[:POINTS]] for row in rows])
    at = torch.stack([every[row[POINTS : 2 * POINTS]] for row in rows])
    given = Given(where=where, at=at, value=torch.randn(BATCH, 3, POINTS))
    state, t = torch.randn(BATCH, 3, POINTS), torch.rand(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(torch.device("cpu"), dtype):
            answer = network(state, t, given).value
        answer.float().square().mean().backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def published_step(folder: Path, name: str):  # type: ignore[no-untyped-def]
    """The same step of a notebook's network: its classes are all that is run."""
    notebook, kind = PUBLISHED[name]
    sys.path.insert(0, str(folder))
    from core.neural_fields.perceiver import FourierFeatures  # type: ignore[import-not-found]

    names: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional,
                             "math": math, "FourierFeatures": FourierFeatures}  # fmt: skip
    cells = json.loads((folder / "ASF" / f"{notebook}.ipynb").read_text())["cells"]
    for text in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        if "nn.Module" in text:
            kept = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
            exec(compile(ast.Module(kept, []), notebook, "exec"), names)
    torch.manual_seed(0)
    model = names[kind]()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    where, at = torch.rand(2, BATCH, POINTS, 2)
    value, state = torch.randn(2, BATCH, POINTS, 3)
    t = torch.rand(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        model(state, where, t, at, value).square().mean().backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--published", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    keep_freed_memory()  # as the command does
    dtypes = ["float32"]
    with open("/proc/cpuinfo") as file:
        if "avx512_bf16" in file.read():
            dtypes.append("bfloat16")
    facts = {}
    for dtype in dtypes:
        made = {name: step_of(config, dtype) for name, config in MODELS.items()}
        if asked.published:
            made |= {
                f"published {name}": published_step(asked.published, name) for name in PUBLISHED
            }
        seconds = alternate({name: step for name, (step, _) in made.items()}, asked.rounds)
        for name, (_, parameters) in made.items():
            row = {"parameters": parameters, "pictures/s": round(BATCH / seconds[name], 2)}
            rival = f"published {name.split(',')[0]}"
            if rival in seconds:
                row["times the published"] = round(seconds[rival] / seconds[name], 2)
            facts[f"{name}, {dtype}"] = row
    record("field_training", facts)


if __name__ == "__main__":
    main()
