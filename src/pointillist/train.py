"""Training: one loop that can be read from top to bottom."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.data.loader import batches
from pointillist.data.report import Refused
from pointillist.describe import describe, refuse_too_large
from pointillist.draws import Draw, purpose_word
from pointillist.engine.device import autocast, free_memory, is_out_of_memory, pick_device
from pointillist.engine.ema import EMA
from pointillist.engine.log import Log
from pointillist.engine.optim import build_optimizer, clip_norm, learning_rate, moments
from pointillist.engine.session import Interrupted, StopRequest, locked
from pointillist.engine.track import Tracks
from pointillist.layers.fused import hidden_weights
from pointillist.losses import criterion
from pointillist.losses.align import Alignment, Taught, build_alignment
from pointillist.models import Network
from pointillist.monitor import Grid, Judging, Validation
from pointillist.resolution import coarsen, moved
from pointillist.run import Run, to_dict
from pointillist.runfolder import (
    State,
    begin,
    check_same,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    taught_by,
)
from pointillist.sample import Trained
from pointillist.snapshots import drop_later_snapshots, save_snapshot
from pointillist.types import Batch, Given, InputError, Prediction

Report = Callable[[dict[str, Any]], None]


def train(run: Run, out: str | Path, resume: bool = False, report: Report | None = None) -> Trained:
    """Train `run` into the folder `out` and return the network with its first EMA's weights.

    `report` sees every event that goes into the log. Raises InputError before anything is computed
    where run and data contradict each other, Interrupted after SIGINT or SIGTERM.
    """
    pick_device(run.device)  # a slip here leaves no folder behind
    tracks = Tracks(run.train.track, Path(out))  # nor does a tracker that is not installed

    def tell(event: dict[str, Any]) -> None:
        tracks(event)
        if report:
            report(event)

    with locked(Path(out)), StopRequest() as stop, tracks:
        return _train(run, Path(out), resume, tell, stop, tracks)


def _train(
    run: Run, out: Path, resume: bool, report: Report, stop: StopRequest, tracks: Tracks
) -> Trained:
    # Setup.
    device = pick_device(run.device)
    source, test = run.data.open("train"), run.data.open("test")
    run.check(source.spec)
    taught = taught_by(out) if resume else Taught()
    facts = describe(run, source.spec, taught)
    refuse_too_large(run, facts, free_memory(device), str(device))
    judging = Judging(run, source.spec, out, device)
    torch.manual_seed(run.seed)
    model = run.model.build(source.spec).to(device)
    network = Network(model)
    check_places(run, network)
    alignment = build_alignment(run.loss.align, model, device, taught)
    beside = [] if alignment is None else list(alignment.parameters())
    parameters = [*(p for p in model.parameters() if p.requires_grad), *beside]
    optimizer = build_optimizer(model, run.optim, hidden_weights(model), beside)
    ema = EMA(model, run.train.ema, run.train.ema_warmup, run.train.ema_power)
    log, state = Log(out / "log.jsonl"), State()

    # Load.
    if resume:
        # A teacher whose digest is the one the checkpoint tells may lie elsewhere.
        known = alignment is not None and alignment.teacher is not None and taught.digest
        check_same(run, source.spec, out, frozenset({"loss.align.teacher"} if known else ()))
        load_checkpoint(out, state, model, optimizer, ema, alignment)
        run.save(out / "run.yaml")  # what may differ, differs from here on
        log.rewind(state.images or -1)
        drop_later_snapshots(out, state.images)
    else:
        begin(run, source.spec, out)
    tracks.begin(state.images, to_dict(run))
    if not state.images:
        for file in dict.fromkeys((*source.refused, *test.refused)):
            emit(refusal(file, 0), log, report)
    report(
        {"event": "begin", "images": state.images, "device": str(device), "out": str(out), **facts}
    )
    grid = Grid(run, source.spec, test, out, device, tracks)
    # The log of a run that goes on already names what was refused.
    validation = Validation(
        run, test, None if state.images else lambda file: emit(refusal(file, 0), log, report)
    )

    if state.images and saves_at(run, state.images) and not grid.path(state.images).exists():
        grid(model, ema, state.images)  # the kill came between the checkpoint and its pictures

    # Loop.
    model.train()
    begun, images_at_begin = time.perf_counter(), state.images
    for batch in batches(
        source, run.seed, state.images, run.train.images, run.train.batch, run.train.workers,
        lambda file, images: emit(refusal(file, images), log, report),
    ):  # fmt: skip
        size = batch.x.shape[0]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.optim, state.images + size, run.train.images)
        terms = attempt(run, network, batch, device, alignment=alignment)
        if terms is None:
            raise InputError(advice(run, network, optimizer, batch, device, alignment))
        clip_field, clip = clip_norm(run.optim, state.images + size)
        norm = nn.utils.clip_grad_norm_(parameters, clip or torch.inf)
        # The one wait for the device in a step: whether it may be taken, and its figures.
        names = [*terms, "grad_norm"]
        figures = dict(zip(names, torch.stack([*terms.values(), norm]).tolist(), strict=True))
        finite = math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])
        if finite:
            optimizer.step()
            ema.update(model)
        optimizer.zero_grad(set_to_none=True)
        before, state.images = state.images, state.images + size
        state.count(figures, size, finite)
        if alignment is not None:
            alignment.let_go(state.images)

        if not finite:
            event = {"event": "skipped", "images": state.images, "in_a_row": state.in_a_row}
            emit(event, log, report)
            if state.in_a_row >= run.train.patience:
                raise InputError(
                    f"loss or gradient was not finite in {state.in_a_row} steps in a row at "
                    f"{state.images} images; begin again in another --out with a lower optim.lr "
                    f"(it is {run.optim.lr:g}) or {clip_field} (it is {clip:g}; 0 is none)"
                )
        stopping = stop.asked and state.images < run.train.images  # asked once: it may change
        last = stopping or state.images >= run.train.images
        if passed(before, state.images, run.train.log_every) or last:
            event = {"event": "step", "images": state.images, **state.means()}
            event["lr"] = optimizer.param_groups[0]["lr"]
            speed = (state.images - images_at_begin) / (time.perf_counter() - begun)
            event["images_per_second"] = round(speed, 2)
            emit(event, log, report)
        due = saves_at(run, state.images)
        if snapshot_at(run, state.images):
            pause = time.perf_counter()
            save_snapshot(out, state.images, ema)  # before the checkpoint that vouches for it
            begun += time.perf_counter() - pause
        every = run.evaluate.every
        if every and not stopping and (last or passed(before, state.images, every)):
            pause = time.perf_counter()
            event = {"event": "evaluation", "images": state.images}
            emit({**event, **judging(model, ema, state.images)}, log, report)
            begun += time.perf_counter() - pause
        if due or last:
            pause = time.perf_counter()
            # Who asks to stop may not wait long: only what would be lost is done.
            losses = validation(model, network, ema) if due else {}
            if losses:
                emit({"event": "validation", "images": state.images, **losses}, log, report)
            log.sync()
            tracks.flush()
            save_checkpoint(out, run, state, model, optimizer, ema, alignment)
            if not stopping:
                grid(model, ema, state.images)
            begun += time.perf_counter() - pause  # speed is that of training alone
        if stopping:
            raise Interrupted(f"stopped at {state.images} images; saved, --resume continues")

    load_weights(model, ema.state(run.train.ema[0]))
    return Trained(run, source.spec, model, device)


def check_places(run: Run, network: Network) -> None:
    """InputError where a model that answers on grids only would be asked at some places."""
    spec: Any = getattr(network.model, "spec", None)
    if spec is not None and spec.placed and not network.takes.sets:
        raise InputError(f"data.kind is {run.data.kind}, whose crops have places, but model "
                         f"{network.name} takes none; set model.kind=perceiver_io")  # fmt: skip
    if run.task.places.some and not network.takes.sets:
        raise InputError(
            f"task.places.kind is {run.task.places.kind}, but model {network.name} answers on "
            f"whole grids only; set task.places.kind=everywhere"
        )


# One step.


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of at most `size` samples."""
    for first in range(0, batch.x.shape[0], size):
        yield batch.part(slice(first, first + size))


def shown(run: Run, batch: Batch, size: int, home: torch.device) -> Iterator[tuple[Batch, Given]]:
    """The batch in portions of at most `size`, augmented, with what the task shows of each."""
    for part in micro_batches(batch, size):
        part = part.to(home)
        draw = Draw(run.seed, part.index)
        for some, given in run.task.parts(run.augment(part, draw), draw):
            some = run.task.places.ask(some, Draw(run.seed, some.index))
            yield some, given._replace(where=some.where)


def backward(
    run: Run,
    network: Network,
    batch: Batch,
    device: torch.device,
    micro_batch: int = 0,
    alignment: Alignment | None = None,
) -> dict[str, Tensor]:
    """Gradients of the mean loss over the batch; returns the loss and its terms, on the device."""
    size = batch.x.shape[0]
    totals: dict[str, Tensor] = {}
    first = int(batch.index[0])
    if alignment is not None and not alignment.config.due(first):
        alignment = None
    # Draws are made where the network is; MPS lacks the float64 that they need.
    home = torch.device("cpu") if device.type == "mps" else device
    # Dropout alone uses torch's generator; keyed by the first sample number, it survives a resume.
    torch.manual_seed((run.seed ^ purpose_word("dropout")) + first)
    asked = rendering(run, network, first)
    for part, given in shown(run, batch, micro_batch or run.train.micro_batch or size, home):
        draw = Draw(run.seed, part.index)
        t = run.objective.times(draw).to(device)
        eps = run.objective.noise(draw, tuple(part.x.shape[1:]), where=part.where).to(device)
        x = part.x.to(device)
        if asked.offsets is not None:
            x = moved(x, asked.offsets.to(device))
        given = type(given)(*(v.to(device) if isinstance(v, Tensor) else v for v in given))
        xt = run.objective.mix(x, eps, t)
        with autocast(device, run.train.precision):
            taps = () if alignment is None else alignment.taps
            answer = respond(run, network, xt, t, given, taps, asked)
            aligned = None if alignment is None else alignment(answer.hidden[0], x)
        guess = run.objective.read(answer.value.float(), xt, t)
        truth = run.objective.target(x, eps, xt, t)
        weight = None if part.weight is None else part.weight.to(device)
        velocity = functools.partial(run.objective.velocity, t=t)
        loss, terms = criterion(run.loss, guess, truth, weight, velocity, t=t, aligned=aligned)
        (loss.sum() / size).backward()
        for name, values in {"loss": loss, **terms}.items():
            totals[name] = totals.get(name, 0) + values.detach().sum() / size
    return totals


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
    jitter = None
    if asked.offsets is not None:
        mesh = torch.meshgrid(*asked.offsets.to(xt.device), indexing="ij")
        jitter = torch.stack(mesh, -1).flatten(0, -2)
    return network.render(*shown, *coarse, given, None, jitter, taps)


def attempt(
    run: Run,
    network: Network,
    batch: Batch,
    device: torch.device,
    micro_batch: int = 0,
    alignment: Alignment | None = None,
) -> dict[str, Tensor] | None:
    """`backward`, or None where the memory does not suffice; what the failure held is let go."""
    try:
        return backward(run, network, batch, device, micro_batch, alignment)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def advice(
    run: Run,
    network: Network,
    optimizer: Any,
    batch: Batch,
    device: torch.device,
    alignment: Alignment | None = None,
) -> str:
    """What to do about too little memory: the largest half, quarter, ... that was seen to work."""
    size = run.train.micro_batch or batch.x.shape[0]
    fits = size // 2
    while fits:
        network.model.zero_grad(set_to_none=True)
        part = batch.part(slice(fits))
        if attempt(run, network, part, device, fits, alignment) is not None:
            if room_for_moments(optimizer):
                break
        fits //= 2
    what = f"{size} samples at once do not fit into the memory of {device}"
    if not fits:
        return f"{what}, nor does one; choose a smaller model or data.size"
    return f"{what}; train.micro_batch={fits} does, with the same result"


def room_for_moments(optimizer: Any) -> bool:
    """Whether the optimizer's moments, which the first step makes, still find a place."""
    try:
        _ = [torch.empty_like(p) for p in moments(optimizer) if not optimizer.state]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]."""
    return now // every > before // every


def saves_at(run: Run, images: int) -> bool:
    """Whether a run saves, validates and draws at that count, if nobody stops it."""
    return images >= run.train.images or passed(
        images - run.train.batch, images, run.train.save_every
    )


def snapshot_at(run: Run, images: int) -> bool:
    """Whether a snapshot of the power-function averages is due at that count."""
    every = run.train.ema_snapshot or run.train.save_every
    ends = images >= run.train.images
    return bool(run.train.ema_power) and (ends or passed(images - run.train.batch, images, every))


def refusal(file: Refused, images: int) -> dict[str, Any]:
    return {"event": "refused", "images": images, "file": file.file, "reason": file.reason}


def emit(event: dict[str, Any], log: Log, report: Report) -> None:
    log.write(event)
    report(event)
