"""Training: one loop that can be read from top to bottom."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pointillist.data.loader import batches
from pointillist.data.report import Refused
from pointillist.describe import describe, refuse_too_large
from pointillist.engine.device import free_memory, pick_device
from pointillist.engine.ema import EMA
from pointillist.engine.log import Log
from pointillist.engine.optim import build_optimizer, clip_norm, learning_rate
from pointillist.engine.recompute import recompute_blocks
from pointillist.engine.session import Interrupted, StopRequest, locked
from pointillist.engine.track import Tracks
from pointillist.gradient import advice, attempt
from pointillist.layers.fused import hidden_weights
from pointillist.losses.align import Taught, build_alignment
from pointillist.models import Network
from pointillist.monitor import Grid, Judging, Validation
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
from pointillist.types import InputError

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
    if run.train.gradient_checkpointing:
        recompute_blocks(model)
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
