"""What a configuration costs, found on the meta device: nothing is allocated or trained."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pointillist.engine.optim import build_optimizer, moments
from pointillist.frozen.vision import promise
from pointillist.layers.fused import hidden_weights
from pointillist.losses.align import build_alignment
from pointillist.models import Network
from pointillist.run import Run
from pointillist.types import Given, InputError, Spec

# Under autocast the residual stream, the norms and the pixels' modulation stay in float32. Measured
# on a CPU: 0.76 of the bytes are left in pixeldit-b at 256 pixels, 0.68 in dit-b, 0.61 in jit-b.
BFLOAT16_KEEPS = 0.75


def describe(run: Run, spec: Spec) -> dict[str, Any]:
    """Parameters, multiply-accumulates and memory of one forward of one picture."""
    with torch.device("meta"):
        model = run.model.build(spec)
        x = torch.zeros(1, spec.channels, *spec.size)
        given = Given(label=torch.zeros(1, dtype=torch.long) if spec.classes else None)
        t = torch.zeros(1)
        alignment = build_alignment(run.loss.align, model, torch.device("meta"))
    network = Network(model.train())
    taps = () if alignment is None else alignment.taps
    # The plain form of attention is written in matrix products, which the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            network(x, t, given)
    flops = counter.get_total_flops()
    with _saved() as held:
        answer = network(x, t, given, taps=taps)
        if alignment is not None:
            alignment.projector(answer.hidden[0])
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    activation = int(held[0] * (BFLOAT16_KEEPS if run.train.precision == "bfloat16" else 1))
    micro = run.train.at_once
    beside = [] if alignment is None else list(alignment.parameters())
    projector = sum(p.numel() for p in beside)
    teacher = promise(run.loss.align.teacher).parameters if alignment is not None else 0
    optimizer = build_optimizer(model, run.optim, hidden_weights(model), beside)
    kept = sum(p.numel() for p in moments(optimizer))
    averages = 1 + len(run.train.ema) + len(run.train.ema_power)
    # Weights and every EMA, gradients, and the optimizer's moments: float32 each. A projector has
    # no average, a teacher neither gradients nor moments.
    states = 4 * (parameters * averages + trainable + kept + 2 * projector + teacher)
    return {
        "parameters": parameters,
        "trainable": trainable,
        **({"projector_parameters": projector, "teacher_parameters": teacher} if beside else {}),
        "macs": flops // 2,
        "flops": flops,
        "activation_bytes": activation,
        "training_bytes": states + micro * activation,
        "tokens": math.prod(getattr(model, "trained", spec.size)),
    }


@contextmanager
def _saved() -> Iterator[list[int]]:
    """Bytes kept for the backward pass, weights not counted; each storage once."""
    total, seen = [0], set()

    def pack(value: Tensor) -> Tensor:
        # Meta tensors have no addresses: an object's storage stands for itself while it lives.
        storage = value.untyped_storage()
        if not isinstance(value, torch.nn.Parameter) and storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(storage)
            total[0] += storage.nbytes()
        return value

    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield total


def refuse_too_large(run: Run, facts: dict[str, Any], free: int, device: str) -> None:
    """InputError with a batch that fits, where training cannot fit into `free` bytes."""
    if facts["training_bytes"] <= free:
        return
    micro = run.train.at_once
    states = facts["training_bytes"] - micro * facts["activation_bytes"]
    fits = int((free - states) * 0.8) // facts["activation_bytes"]
    what = (
        f"train.batch={micro} of this model needs about {facts['training_bytes'] / 1e9:.1f} GB, "
        f"{device} has {free / 1e9:.1f} GB free"
    )
    if fits < 1:
        raise InputError(f"{what}, and a single sample does not fit; choose a smaller model")
    raise InputError(f"{what}; train.micro_batch={min(fits, micro)} fits, with the same result")
