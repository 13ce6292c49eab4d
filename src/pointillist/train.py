"""Training: one loop that can be read from top to bottom."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pointillist.data.latent import LatentConfig, show
from pointillist.data.loader import batches, plan_of
from pointillist.data.report import Refused
from pointillist.data.words import Reader, read_all, worded
from pointillist.data.words import show as show_captions
from pointillist.describe import describe, refuse_too_large
from pointillist.engine.device import free_memory, pick_device
from pointillist.engine.ema import EMA
from pointillist.engine.log import Log
from pointillist.engine.optim import (
    build_optimizer,
    check_moments,
    clip_gradients,
    clip_norm,
    learning_rate,
)
from pointillist.engine.ranks import Ranks, joined
from pointillist.engine.recompute import recompute_blocks
from pointillist.engine.session import Interrupted, StopRequest, locked
from pointillist.engine.track import Tracks
from pointillist.gradient import Step, fitted
from pointillist.layers.fused import hidden_weights
from pointillist.losses.align import build_alignment
from pointillist.models import Network
from pointillist.monitor import Grid, Judging, Validation
from pointillist.run import Run, to_dict
from pointillist.runfolder import (
    State,
    begin,
    check_same,
    leaves,
    load_checkpoint,
    load_weights,
    newest,
    portion_of,
    save_checkpoint,
    taught_by,
)
from pointillist.sample import Trained
from pointillist.snapshots import drop_later_snapshots, save_snapshot
from pointillist.types import InputError, Spec

Report = Callable[[dict[str, Any]], None]
# What may differ between machines: where data and autoencoder lie.
PLACES = {
    "data.path", "data.of.path", "data.cache", "data.autoencoder", "data.device", "fingerprint",
    "text.encoder", "text.cache", "text.device", "loss.align.cache",
}  # fmt: skip


def train(run: Run, out: str | Path, resume: bool = False, report: Report | None = None) -> Trained:
    """Train `run` into the folder `out` and return the network with its first EMA's weights.

    `report` sees every event that goes into the log. Raises InputError before anything is computed
    where run and data contradict each other, Interrupted after SIGINT or SIGTERM. The processes
    that torchrun starts train as one: each takes its share of every batch, rank 0 writes.
    """
    with joined() as ranks:
        check_moments(run.optim, pick_device(run.device))  # a slip here leaves no folder behind
        share_of(run.train.batch, ranks)
        # Nor does a tracker that is not installed.
        tracks = Tracks(run.train.track if ranks.leads else (), Path(out))

        def tell(event: dict[str, Any]) -> None:
            if not ranks.leads:
                return
            tracks(event)
            if report:
                report(event)

        lock = locked(Path(out)) if ranks.leads else nullcontext()
        with lock, StopRequest() as stop, tracks:
            return _train(run, Path(out), resume, tell, stop, tracks, ranks)


def _train(
    run: Run, out: Path, resume: bool, report: Report, stop: StopRequest, tracks: Tracks,
    ranks: Ranks,
) -> Trained:  # fmt: skip
    # Setup.
    device = ranks.place(pick_device(run.device))
    if run.data.kind == "latent":
        run.check(run.promise())  # before every picture is encoded
    source, test = opened(run, stop, ranks)
    spec = worded(run.text, source.spec)
    plan = plan_of(source, run.seed, run.train.batch)
    run.check(spec)
    check_alike(run, spec, ranks)
    last_saved = to_resume(out, ranks) if resume else None
    taught = taught_by(last_saved)
    # What is in the memory together is a rank's share at most.
    asked = min(run.train.at_once, share_of(run.train.batch, ranks))
    portion = portion_of(last_saved, asked)
    here = run if portion == run.train.at_once else in_portions(run, portion)
    facts = describe(here, spec, taught)
    refuse_too_large(here, facts, ranks.part_of(free_memory(device), device), str(device))
    reader = None if spec.words is None else run.text.open(device, keep=True)
    spec = replace(spec, words=reader.words if reader else None)
    judging = Judging(here, spec, out, device, reader)
    torch.manual_seed(run.seed)
    model = run.model.build(spec).to(device)
    if run.train.gradient_checkpointing:
        recompute_blocks(model)
    network = Network(model)
    check_places(run, network)
    alignment = build_alignment(run.loss.align, model, device, taught)
    beside = [] if alignment is None else list(alignment.parameters())
    parameters = [*(p for p in model.parameters() if p.requires_grad), *beside]
    ranks.broadcast([*model.parameters(), *beside])
    optimizer = build_optimizer(model, run.optim, hidden_weights(model), beside)
    ema = EMA(model, run.train.ema, run.train.ema_warmup, run.train.ema_power)
    log, state = Log(out / "log.jsonl"), State()

    def emit(event: dict[str, Any]) -> None:
        if ranks.leads:
            log.write(event)
            report(event)

    # Load.
    if resume and ranks.leads:
        # A teacher whose digest is the one the checkpoint tells may lie elsewhere.
        known = alignment is not None and alignment.teacher is not None and taught.digest
        check_same(run, spec, out, frozenset({"loss.align.teacher"} if known else ()))
    load_checkpoint(last_saved, state, model, optimizer, ema, alignment)
    if resume and ranks.leads:
        run.save(out / "run.yaml")  # what may differ, differs from here on
        log.rewind(state.images or -1)
        drop_later_snapshots(out, state.images)
    elif ranks.leads:
        begin(run, spec, out)
    tracks.begin(state.images, to_dict(run))
    if not state.images:
        for file in dict.fromkeys((*source.refused, *test.refused)):
            emit(refusal(file, 0))
        if plan.used < plan.rows:
            emit({"event": "left out", "images": 0, "pictures": plan.rows - plan.used,
                  "of": plan.rows})  # fmt: skip
    if reader is not None:
        negative = run.sample.guidance
        more = [str(negative.negative)] if negative.negated else []
        told_of = encoded(reader, (source, test), stop, ranks, more)
        if not state.images:
            emit({"event": "captions", "images": 0, **told_of})
    report(
        {"event": "begin", "images": state.images, "device": str(device), "ranks": ranks.count,
         "out": str(out), **facts}
    )  # fmt: skip
    grid = Grid(here, spec, test, out, device, tracks, reader)
    # The log of a run that goes on already names what was refused.
    validation = Validation(
        here, test, None if state.images else lambda file: emit(refusal(file, 0)), reader
    )

    due = ranks.leads and state.images and saves_at(
        run, plan.before(state.images), state.images
    )  # fmt: skip
    if due and not grid.path(state.images).exists():
        grid(model, ema, state.images)  # the kill came between the checkpoint and its pictures

    # Loop.
    model.train()
    begun, images_at_begin = time.perf_counter(), state.images
    news = list[dict[str, Any]]()
    slots = plan.slots(state.images, run.train.images)
    for (_, size, *_), batch in zip(slots, batches(
        source, run.seed, state.images, run.train.images, run.train.batch, run.train.workers,
        lambda file, images: news.append(refusal(file, images)), (ranks.rank, ranks.count),
    ), strict=True):  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.optim, state.images + size, run.train.images)
        step = Step(state.images, size)
        terms, fits = fitted(
            run, network, optimizer, batch, device, portion, alignment, step, reader
        )
        if fits < portion:
            news.append({"event": "memory", "images": state.images + size, "rank": ranks.rank,
                         "from": portion, "to": fits})  # fmt: skip
            portion, state.portion = fits, [asked, fits]
            grid.run = validation.run = in_portions(run, portion)
        told = ranks.meet(stop=stop.asked, news=news)  # all take the step, or none
        ranks.sum_gradients(parameters)
        sums = ranks.sum([*terms.values()])
        for event in chain(*told["news"]):
            emit(event)
        news.clear()
        clip_field, clip = clip_norm(run.optim, state.images + size)
        norm = clip_gradients(parameters, clip, run.optim, state.norms)
        # The one wait for the device in a step: whether it may be taken, and its figures.
        found = torch.cat((sums, norm[None])).tolist()
        figures = dict(zip([*terms, "grad_norm"], found, strict=True))
        finite = math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])
        if finite:
            optimizer.step()
            ema.update(model)
        optimizer.zero_grad(set_to_none=True)
        before, state.images = state.images, state.images + size
        if run.optim.zscore.threshold:
            figures["spikes"] = float(figures["grad_norm"] > state.norms.edge(run.optim.zscore))
        state.count(figures, size, finite)
        if finite:
            state.norms = state.norms.after(run.optim.zscore, figures["grad_norm"])
        if alignment is not None:
            alignment.let_go(state.images)

        if not finite:
            event = {"event": "skipped", "images": state.images, "in_a_row": state.in_a_row}
            emit(event)
            if state.in_a_row >= run.train.patience:
                raise InputError(
                    f"loss or gradient was not finite in {state.in_a_row} steps in a row at "
                    f"{state.images} images; begin again in another --out with a lower optim.lr "
                    f"(it is {run.optim.lr:g}) or {clip_field} (it is {clip:g}; 0 is none)"
                )
        stopping = bool(told["stop"]) and state.images < run.train.images
        last = stopping or state.images >= run.train.images
        if passed(before, state.images, run.train.log_every) or last:
            event = {"event": "step", "images": state.images, **state.means()}
            event["lr"] = optimizer.param_groups[0]["lr"]
            speed = (state.images - images_at_begin) / (time.perf_counter() - begun)
            event["images_per_second"] = round(speed, 2)
            emit(event)
        due = saves_at(run, before, state.images)
        if ranks.leads and snapshot_at(run, before, state.images):
            pause = time.perf_counter()
            save_snapshot(out, state.images, ema)  # before the checkpoint that vouches for it
            begun += time.perf_counter() - pause
        every = run.evaluate.every
        judges = every and not stopping and (last or passed(before, state.images, every))
        if ranks.leads and judges:
            pause = time.perf_counter()
            event = {"event": "evaluation", "images": state.images}
            emit({**event, **judging(model, ema, state.images)})
            begun += time.perf_counter() - pause
        if ranks.leads and (due or last):
            pause = time.perf_counter()
            # Who asks to stop may not wait long: only what would be lost is done.
            losses = validation(model, network, ema) if due else {}
            if losses:
                emit({"event": "validation", "images": state.images, **losses})
            log.sync()
            tracks.flush()
            save_checkpoint(out, run, state, model, optimizer, ema, alignment)
            if not stopping:
                grid(model, ema, state.images)
            begun += time.perf_counter() - pause  # speed is that of training alone
        if alignment is not None and (due or last):
            pause = time.perf_counter()
            alignment.keep()  # behind the checkpoint, which cannot be made again
            begun += time.perf_counter() - pause
        if stopping:
            raise Interrupted(f"stopped at {state.images} images; saved, --resume continues")

    load_weights(model, ema.state(run.train.ema[0]))
    return Trained(run, spec, model, device, reader)


def share_of(batch: int, ranks: Ranks) -> int:
    """How much of every batch each rank takes; InputError where they cannot take the same."""
    if batch % ranks.count:
        raise InputError(
            f"train.batch is {batch}, which {ranks.count} processes cannot share evenly; make it a "
            f"multiple of {ranks.count}"
        )
    return batch // ranks.count


def in_portions(run: Run, size: int) -> Run:
    """The run with so many samples in the memory together."""
    return replace(run, train=replace(run.train, micro_batch=size))


def opened(run: Run, stop: StopRequest, ranks: Ranks) -> tuple[Any, Any]:
    """The training and the test split; one process of a machine is first, as it may encode them."""

    def watch(done: int, total: int) -> None:
        if stop.asked:
            raise Interrupted(
                f"stopped at {done} of {total} pictures to encode, of which nothing is kept"
            )
        if ranks.leads:
            show(done, total)

    def both() -> tuple[Any, Any]:
        if isinstance(run.data, LatentConfig):
            return run.data.open("train", watch), run.data.open("test", watch)
        return run.data.open("train"), run.data.open("test")

    found = both() if ranks.local == 0 else None
    ranks.meet()
    return found or both()


def encoded(
    reader: Reader, sources: tuple[Any, ...], stop: StopRequest, ranks: Ranks, more: list[str]
) -> dict[str, int]:
    """What `read_all` tells; one process of a machine is first, the others find all encoded."""

    def watch(done: int, total: int) -> None:
        if stop.asked:
            raise Interrupted(f"stopped at {done} of {total} captions to encode")
        if ranks.leads:
            show_captions(done, total)

    found = read_all(reader, sources, watch, more) if ranks.local == 0 else None
    if len(set(ranks.meet(digest=reader.words.digest)["digest"])) > 1:
        raise InputError(
            f"text.encoder {reader.text.encoder} has other weights on some ranks than on rank 0; "
            f"give all machines the same"
        )
    return found or read_all(reader, sources, watch, more)


def check_alike(run: Run, spec: Spec, ranks: Ranks) -> None:
    """InputError where the ranks were told of different runs, or have different data."""
    if ranks.count == 1:
        return
    known = {**leaves(to_dict(run)), "fingerprint": spec.fingerprint}
    first, *others = ranks.meet(known=known)["known"]
    for rank, other in enumerate(others, 1):
        for name in sorted((first.keys() | other.keys()) - PLACES):
            if first.get(name) != other.get(name):
                raise InputError(
                    f"{name} is {other.get(name)} on rank {rank} and {first.get(name)} on rank 0; "
                    f"start all with the same words"
                )
        if first["fingerprint"] != other["fingerprint"]:
            field = "data.of.path" if run.data.kind == "latent" else "data.path"
            raise InputError(
                f"{field} holds other data on rank {rank} than on rank 0; give all machines the "
                f"same"
            )


def to_resume(out: Path, ranks: Ranks) -> Path | None:
    """The checkpoint that rank 0 finds the newest; InputError where another does not see it."""
    found = newest(out) if ranks.leads else None
    told = ranks.meet(last=found.name if found else "")["last"]
    last = out / "checkpoints" / told[0] if told else None
    if last is not None and not last.is_dir():
        raise InputError(
            f"{last} is not there on rank {ranks.rank}; choose an --out on a disk that all "
            f"machines share"
        )
    return last


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


def saves_at(run: Run, before: int, images: int) -> bool:
    """Whether a run saves, validates and draws behind a step that ends at `images`, if nobody
    stops it.
    """
    return images >= run.train.images or passed(before, images, run.train.save_every)


def snapshot_at(run: Run, before: int, images: int) -> bool:
    """Whether a snapshot of the power-function averages is due behind such a step."""
    every = run.train.ema_snapshot or run.train.save_every
    ends = images >= run.train.images
    return bool(run.train.ema_power) and (ends or passed(before, images, every))


def refusal(file: Refused, images: int) -> dict[str, Any]:
    return {"event": "refused", "images": images, "file": file.file, "reason": file.reason}
