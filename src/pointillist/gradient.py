"""The gradient of one batch: what the network sees of it, what it answers, how far that is off."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.data.words import Reader
from pointillist.draws import Draw
from pointillist.engine.device import autocast, is_out_of_memory
from pointillist.engine.optim import moments
from pointillist.layers.dropout import dropping
from pointillist.layers.gain import gains
from pointillist.layers.offset import moved
from pointillist.losses import criterion
from pointillist.losses.align import Alignment
from pointillist.losses.bound import bound_of
from pointillist.models import Network
from pointillist.resolution import coarsen
from pointillist.run import Run
from pointillist.tasks import said
from pointillist.types import Batch, Given, InputError, Prediction


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of at most `size` samples."""
    for first in range(0, batch.x.shape[0], size):
        # What fills up a bucket's last batch counts for nothing. The first part is always taken,
        # so that every process has the same terms.
        if first and batch.counts is not None and not batch.counts[first : first + size].any():
            continue
        yield batch.part(slice(first, first + size))


def shown(
    run: Run, batch: Batch, size: int, home: torch.device, reader: Reader | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[Batch, Given]]:  # fmt: skip
    """The batch in portions of at most `size`, augmented, with what the task shows of each.

    With a `reader` also what one caption of each says, on `device`, where all are sent at once.
    """
    shelf = None
    if reader is not None:
        told = said(batch.caption, run.task.caption_drop, Draw(run.seed, batch.index))
        batch = batch._replace(caption=tuple((caption,) for caption in told))
        shelf = reader.take(told, device or home)
    for part in micro_batches(batch, size):
        part = part.to(home)
        draw = Draw(run.seed, part.index)
        for some, given in run.task.parts(run.augment(part, draw), draw):
            some = run.task.places.ask(some, Draw(run.seed, some.index))
            given = given._replace(where=some.where, augment=some.augment)
            if shelf is not None and some.caption is not None:
                given = shelf([caption for (caption,) in some.caption]).into(given)
            yield some, given


class Step(NamedTuple):
    """What a batch is a part of: the number of the step's first sample, and how many count in it,
    over all ranks.
    """

    first: int
    size: int


def backward(
    run: Run,
    network: Network,
    batch: Batch,
    device: torch.device,
    micro_batch: int = 0,
    alignment: Alignment | None = None,
    step: Step | None = None,
    reader: Reader | None = None,
) -> dict[str, Tensor]:
    """What the batch adds to the gradients of the step's mean loss, and to that and its terms.

    The terms stay on the device. Without a `step` the batch is all of it.
    """
    first, size = step or Step(int(batch.index[0]), counted(batch))
    spec = cast(Any, network.model).spec
    totals: dict[str, Tensor] = {}
    if alignment is not None and not alignment.config.due(first):
        alignment = None
    # Draws are made where the network is; MPS lacks the float64 that they need.
    home = torch.device("cpu") if device.type == "mps" else device
    asked = rendering(run, network, first)
    for part, given in shown(
        run, batch, micro_batch or run.train.micro_batch or batch.x.shape[0], home, reader, device
    ):
        draw = Draw(run.seed, part.index)
        t = run.objective.times(draw).to(device)
        eps = run.objective.noise(draw, tuple(part.x.shape[1:]), where=part.where).to(device)
        x = part.x.to(device)
        if asked.offsets is not None:
            x = moved(x, asked.offsets.to(device))
        given = type(given)(*(v.to(device) if isinstance(v, Tensor) else v for v in given))
        xt = run.objective.mix(x, eps, t)
        scales = run.loss.gain.wanted()
        with dropping(draw), gains(scales):
            with autocast(device, run.train.precision):
                taps = () if alignment is None else alignment.taps
                answer = respond(run, network, xt, t, given, taps, asked)
                aligned = None if alignment is None else alignment(answer.hidden[0], x)
            guess = run.objective.read(answer.value.float(), xt, t)
            truth = run.objective.target(x, eps, xt, t)
            weight = None if part.weight is None else part.weight.to(device)
            velocity = functools.partial(run.objective.velocity, t=t)
            bound = bound_of(run.objective, guess, truth, x, t, spec, weight)
            loss, terms = criterion(
                run.loss, guess, truth, weight, velocity, t=t, aligned=aligned, bound=bound,
                gains=None if scales is None else scales.sum(),
                lacking=None if answer.guess is None else x - answer.guess.float(),
            )  # fmt: skip
            (counting(loss, part).sum() / size).backward()
        for name, values in {"loss": loss, **terms}.items():
            totals[name] = totals.get(name, 0) + counting(values.detach(), part).sum() / size
    return totals


def counting(values: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
    """One number a sample, times how much the sample counts."""
    return values if batch.counts is None else values * batch.counts.to(values.device)


def counted(batch: Batch) -> int:
    """How many of its samples count."""
    return batch.x.shape[0] if batch.counts is None else round(float(batch.counts.sum()))


class Rendering(NamedTuple):
    """How a network that renders is asked in a step: the state `scale` times larger than what its
    patches see, the rows and columns of a patch's cells moved by `offsets`, in cells.
    """

    scale: int = 1
    offsets: Float[Tensor, "s e"] | None = None


def rendering(run: Run, network: Network, first: int) -> Rendering:
    """A function of the number of the step's first sample, hence the same in all micro-batches."""
    takes = network.takes
    if not takes.renders:
        return Rendering()
    draw, axes = Draw(run.seed, torch.tensor([first])), len(network.model.spec.size)  # type: ignore[arg-type]
    scale = takes.renders[int(draw.below("render scale", len(takes.renders)))]
    if draw.uniform("render moves") >= takes.jitter:
        return Rendering(scale)
    model: Any = network.model
    edge = scale * model.config.patch_size
    return Rendering(scale, draw.uniform("render jitter", (axes, edge))[0] - 0.5)


def respond(
    run: Run,
    network: Network,
    xt: Tensor,
    t: Tensor,
    given: Given,
    taps: tuple[int, ...],
    asked: Rendering,
) -> Prediction:
    """The network's answer; one that renders sees the state smaller by the scale that is asked."""
    shown = run.objective.see(xt, t)
    if not network.takes.renders:
        return network(*shown, given, taps=taps)
    coarse = shown
    if asked.scale > 1:
        coarse = run.objective.see(*coarsen(run.objective, xt, t, asked.scale))
    offsets = None if asked.offsets is None else asked.offsets.to(xt.device)
    return network.render(*shown, *coarse, given, None, offsets, taps)


def attempt(
    run: Run,
    network: Network,
    batch: Batch,
    device: torch.device,
    micro_batch: int = 0,
    alignment: Alignment | None = None,
    step: Step | None = None,
    reader: Reader | None = None,
) -> dict[str, Tensor] | None:
    """`backward`, or None where the memory does not suffice; what the failure held is let go."""
    try:
        return backward(run, network, batch, device, micro_batch, alignment, step, reader)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def fitted(
    run: Run,
    network: Network,
    optimizer: Any,
    batch: Batch,
    device: torch.device,
    portion: int,
    alignment: Alignment | None = None,
    step: Step | None = None,
    reader: Reader | None = None,
) -> tuple[dict[str, Tensor], int]:
    """`backward` in portions of at most `portion` samples, and how large those may be.

    Where that does not suffice, for the optimizer's moments too, which its first step makes, what
    there is of the gradients is dropped and all is done again in portions of half the size. Draws
    belong to the samples, so the answer is that of the first try up to the order of summation.
    InputError where not even one sample fits.
    """
    size, most = portion, min(portion, batch.x.shape[0])
    while True:
        terms = attempt(run, network, batch, device, size, alignment, step, reader)
        if terms is not None and room_for_moments(optimizer):
            return terms, size
        optimizer.zero_grad(set_to_none=True)
        if min(size, most) == 1:
            break
        size = min(size, most) // 2
        torch.cuda.empty_cache()  # it is in pieces of the larger portion; elsewhere nothing
    told = "1 sample does not fit into the memory of {0}"
    if most > 1:
        told = "{1} samples at once do not fit into the memory of {0}, nor does one"
    raise InputError(f"{told.format(device, most)}; choose a smaller model or data.size")


def room_for_moments(optimizer: Any) -> bool:
    """Whether the optimizer's moments, which the first step makes, still find a place."""
    if optimizer.state:
        return True
    try:
        _ = [torch.empty_like(p, dtype=dtype) for p, dtype in moments(optimizer)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
