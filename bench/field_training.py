"""Training steps of the models on sets at the neural-field notebooks' size.

python bench/field_training.py

Batch 8, 204 points in and 204 places asked of a picture of 32 by 32, forward, backward and AdamW.
On two cores of a like machine, in float32, the notebooks do 0.75 pictures/s (local, 16.3 M
parameters) and 2.1 (a state space, 28.6 M). Bfloat16 is timed where the processor has it.
"""

import torch
from record import alternate, record

from pointillist.engine.device import autocast, keep_freed_memory
from pointillist.layers.observations import centres
from pointillist.models import Backbone, LocalConfig, MambaConfig, Network
from pointillist.types import Given, Spec, grid_axes

BATCH, POINTS = 8, 204
PUBLISHED = {"local": 0.75, "mamba": 2.1}
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


def main() -> None:
    keep_freed_memory()  # as the command does
    dtypes = ["float32"]
    with open("/proc/cpuinfo") as file:
        if "avx512_bf16" in file.read():
            dtypes.append("bfloat16")
    facts = {}
    for dtype in dtypes:
        made = {name: step_of(config, dtype) for name, config in MODELS.items()}
        seconds = alternate({name: step for name, (step, _) in made.items()}, 5)
        for name, (_, parameters) in made.items():
            rate = BATCH / seconds[name]
            facts[f"{name}, {dtype}"] = {
                "parameters": parameters,
                "pictures/s": round(rate, 2),
                "times the notebook's": round(rate / PUBLISHED[name.split(",")[0]], 2),
            }
    record("field_training", facts)


if __name__ == "__main__":
    main()
