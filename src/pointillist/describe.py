"""What a configuration costs, found on the meta device: nothing is allocated or trained."""

import functools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pointillist.agreement import check_reads
from pointillist.engine.optim import build_optimizer, moments
from pointillist.engine.recompute import blocks_of
from pointillist.frozen.vision import promise
from pointillist.layers.fused import hidden_weights
from pointillist.layers.gain import gains
from pointillist.losses import criterion
from pointillist.losses.align import Alignment, Taught, build_alignment, misalignment
from pointillist.losses.bound import bound_of
from pointillist.models import Network
from pointillist.run import Run
from pointillist.types import Given, InputError, Spec

# Under autocast the residual stream, the norms and the pixels' modulation stay in float32. Measured
# on a CPU: 0.76 of the bytes are left in pixeldit-b at 256 pixels, 0.68 in dit-b, 0.61 in jit-b.
BFLOAT16_KEEPS = 0.75


def describe(run: Run, spec: Spec, taught: Taught | None = None) -> dict[str, Any]:
    """Parameters, multiply-accumulates and memory of one forward of one picture.

    As much of it is observed as the run's task shows on average, in memory as much as it shows at
    most: a batch goes by its fullest sample.

    `taught`: what a run that goes on has of its alignment; of one that has ended the projector
    alone is left.
    """
    with torch.device("meta"):
        model = run.model.build(spec)
        check_reads(run, spec, model.takes)
        x, t = torch.zeros(1, spec.channels, *spec.size), torch.zeros(1)
        given = told(spec)
        given = observed(given, run.task.expected(spec.size), spec)
        alignment = build_alignment(run.loss.align, model, torch.device("meta"), taught)
    network = Network(model.train())
    # The plain form of attention is written in matrix products, which the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.no_grad(), frozen(model):
            network(x, t, given)
    flops = counter.get_total_flops()
    due = alignment is not None and alignment.config.due(taught.images if taught else 0)
    beside = [] if alignment is None else list(alignment.parameters())
    # A sample alone would hide what is copied only where there are several, and tables of places
    # are there once, for however many.
    two, three = (kept_for_backward(run, network, spec, alignment if due else None, n)
                  for n in (2, 3))  # fmt: skip
    activation = three - two
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    micro = run.train.at_once
    projector = sum(p.numel() for p in beside)
    teacher = promise(run.loss.align.teacher).parameters if due else 0
    optimizer = build_optimizer(model, run.optim, hidden_weights(model), beside)
    kept = sum(p.numel() * dtype.itemsize for p, dtype in moments(optimizer))
    averages = 1 + len(run.train.ema) + len(run.train.ema_power)
    # Weights and every EMA, and gradients: float32 each; the optimizer's moments may be smaller. A
    # projector has no average, a teacher neither gradients nor moments.
    states = 4 * (parameters * averages + trainable + 2 * projector + teacher) + kept
    return {
        "parameters": parameters,
        "trainable": trainable,
        **({"projector_parameters": projector, "teacher_parameters": teacher} if beside else {}),
        "macs": flops // 2,
        "flops": flops,
        "activation_bytes": activation,
        "training_bytes": states + two - 2 * activation + micro * activation,
        "tokens": math.prod(getattr(model, "trained", spec.size)),
    }


def kept_for_backward(
    run: Run, network: Network, spec: Spec, alignment: Alignment | None, batch: int
) -> int:
    """Bytes that a forward of so many pictures, all as full as can be, and the loss leave there."""
    model = network.model
    # A batch of the largest bucket needs the most memory.
    largest = max((spec.size, *spec.buckets), key=math.prod)
    with torch.device("meta"):
        x, t = torch.zeros(batch, spec.channels, *largest), torch.zeros(batch)
        given = observed(told(spec, batch), run.task.most(largest), spec, batch)
    weights = [*model.parameters(), *(() if alignment is None else alignment.parameters())]
    scales = run.loss.gain.wanted()
    with _saved(weights) as held, _blockwise(model, held) as within, gains(scales):
        answer = network(x, t, given, taps=() if alignment is None else alignment.taps)
    run.loss.gain.check_model(scales, model)
    with _saved(weights) as beside:
        projected = None if alignment is None else alignment.projector(answer.hidden[0])
    # The terms, in float32 at any precision: LPIPS's features weigh most.
    with _saved(weights) as of_terms:
        aligned = None if projected is None else misalignment(projected, torch.ones_like(projected))
        guess = run.objective.read(answer.value.float(), x, t)
        velocity = functools.partial(run.objective.velocity, t=t)
        truth = run.objective.target(x, x, x, t)
        bound = bound_of(run.objective, guess, truth, x, t, spec)
        criterion(
            run.loss, guess, truth, None, velocity, t=t, aligned=aligned, bound=bound,
            gains=None if scales is None else scales.sum(),
            lacking=None if answer.guess is None else x - answer.guess.float(),
        )  # fmt: skip
    keeps = BFLOAT16_KEEPS if run.train.precision == "bfloat16" else 1
    whole = held[0] + beside[0]
    if not run.train.gradient_checkpointing:
        return int(whole * keeps) + of_terms[0]
    # What comes into blocks is the residual stream, float32 at any precision.
    whole += within.inputs - sum(within.each)
    return whole + int(max(within.each, default=0) * keeps) + of_terms[0]


def told(spec: Spec, batch: int = 1) -> Given:
    """What is said of so many pictures: a label, and the longest caption there can be."""
    given = Given(label=torch.zeros(batch, dtype=torch.long) if spec.classes else None)
    if spec.words is None:
        return given
    length, width = spec.words.length, spec.words.width
    return given._replace(
        text=torch.zeros(batch, length, width), pooled=torch.zeros(batch, width),
        text_mask=torch.ones(batch, length, dtype=torch.bool),
    )  # fmt: skip


def observed(given: Given, count: int, spec: Spec, batch: int = 1) -> Given:
    """`given` with so many points of unknown place; none where nothing is ever shown."""
    if not count:
        return given
    return given._replace(
        at=torch.zeros(batch, count, len(spec.size)),
        value=torch.zeros(batch, spec.channels, count),
        valid=torch.ones(batch, 1, count, dtype=torch.bool),
    )


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: views of one do even where gradients are off, which the
    counter cannot take.
    """
    learnt = [p for p in model.parameters() if p.requires_grad]
    for p in learnt:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learnt:
            p.requires_grad_(True)


@contextmanager
def _saved(weights: Iterable[Tensor]) -> Iterator[list[int]]:
    """Bytes kept for the backward pass; each storage once, those of `weights` and views not."""
    total, seen = [0], {value.untyped_storage()._cdata for value in weights}

    def pack(value: Tensor) -> Tensor:
        # Meta tensors have no addresses: an object's storage stands for itself while it lives.
        storage = value.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(storage)
            total[0] += storage.nbytes()
        return value

    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield total


class _Within:
    """Bytes kept by each block, and of what comes into all of them."""

    def __init__(self) -> None:
        self.each: list[int] = []
        self.inputs = 0


@contextmanager
def _blockwise(model: torch.nn.Module, held: list[int]) -> Iterator[_Within]:
    """Reads `held` before and behind every block that activation checkpointing computes again."""
    within, before, seen = _Within(), [0], set()
    kept: list[Any] = []

    def enter(block: Any, args: Any, more: Any) -> None:
        before[0] = held[0]
        for value in tree_leaves((args, more)):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in seen:
                kept.append(value.untyped_storage())
                seen.add(kept[-1]._cdata)
                within.inputs += kept[-1].nbytes()

    def leave(block: Any, args: Any, answer: Any) -> None:
        within.each.append(held[0] - before[0])

    handles = []
    for block in blocks_of(model):
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave))
    yield within
    for handle in handles:
        handle.remove()


def refuse_too_large(run: Run, facts: dict[str, Any], free: int, device: str) -> None:
    """InputError with a batch that fits, where training cannot fit into `free` bytes."""
    if facts["training_bytes"] <= free:
        return
    micro = run.train.at_once
    states = facts["training_bytes"] - micro * facts["activation_bytes"]
    fits = int((free - states) * 0.8) // facts["activation_bytes"]
    name = f"train.batch={micro}" if micro == run.train.batch else f"{micro} samples at once"
    what = (
        f"{name} of this model needs about {facts['training_bytes'] / 1e9:.1f} GB, "
        f"{device} has {free / 1e9:.1f} GB free"
    )
    if fits < 1:
        raise InputError(f"{what}, and a single sample does not fit; choose a smaller model")
    raise InputError(f"{what}; train.micro_batch={min(fits, micro)} fits, with the same result")
