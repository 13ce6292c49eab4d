"""Training: one loop that can be read from top to bottom."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pointillist.data.loader import batches
from pointillist.data.report import Refused
from pointillist.data.source import Source
from pointillist.describe import describe, refuse_too_large
from pointillist.draws import Draw, purpose_word
from pointillist.engine import checkpoint
from pointillist.engine.device import autocast, free_memory, is_out_of_memory, pick_device
from pointillist.engine.ema import EMA
from pointillist.engine.log import Log
from pointillist.engine.optim import adamw, learning_rate, load_optimizer_state, optimizer_state
from pointillist.engine.session import Interrupted, StopRequest, locked
from pointillist.evaluate import TIMES, held_out, velocity_loss
from pointillist.losses import criterion
from pointillist.models import Network
from pointillist.pictures import contact_sheet, flat, save_png
from pointillist.run import Run, to_dict
from pointillist.sample import Ask, Trained, read_spec
from pointillist.types import Batch, InputError, Spec

# What may differ when a run goes on: it changes where and how it computes, not what.
FREE_ON_RESUME = {
    "device", "train.workers", "train.save_every", "train.keep", "train.micro_batch",
}  # fmt: skip

Report = Callable[[dict[str, Any]], None]


def train(run: Run, out: str | Path, resume: bool = False, report: Report | None = None) -> Trained:
    """Train `run` into the folder `out` and return the network with its first EMA's weights.

    `report` sees every event that goes into the log. Raises InputError before anything is computed
    where run and data contradict each other, Interrupted after SIGINT or SIGTERM.
    """
    with locked(Path(out)), StopRequest() as stop:
        return _train(run, Path(out), resume, report or (lambda event: None), stop)


def _train(run: Run, out: Path, resume: bool, report: Report, stop: StopRequest) -> Trained:
    # Setup.
    device = pick_device(run.device)
    source, test = run.data.open("train"), run.data.open("test")
    facts = describe(run, source.spec)
    refuse_too_large(run, facts, free_memory(device), str(device))
    torch.manual_seed(run.seed)
    model = run.model.build(source.spec).to(device)
    network = Network(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = adamw(model, run.optim.lr, run.optim.betas, run.optim.weight_decay)
    ema = EMA(model, run.train.ema, run.train.ema_warmup)
    log, state = Log(out / "log.jsonl"), State()

    # Load.
    if resume:
        check_same(run, source.spec, out)
        load_checkpoint(out, state, model, optimizer, ema)
        log.rewind(state.images)
    else:
        begin(run, source.spec, out)
        for file in source.refused:
            emit(refusal(file, 0), log, report)
    report(
        {"event": "begin", "images": state.images, "device": str(device), "out": str(out), **facts}
    )
    grid = Grid(run, source.spec, out, device)
    validation = Validation(run, test)

    # Loop.
    model.train()
    begun, images_at_begin = time.perf_counter(), state.images
    for batch in batches(
        source, run.seed, state.images, run.train.images, run.train.batch, run.train.workers,
        lambda file, images: emit(refusal(file, images), log, report),
    ):  # fmt: skip
        size = batch.x.shape[0]
        for group in optimizer.param_groups:
            group["lr"] = scheduled_rate(run, state.images + size)
        try:
            terms = backward(run, network, batch, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(advice(run, network, batch, device)) from None
        norm = nn.utils.clip_grad_norm_(parameters, run.optim.clip or torch.inf)
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

        if not finite:
            event = {"event": "skipped", "images": state.images, "in_a_row": state.in_a_row}
            emit(event, log, report)
            if state.in_a_row >= run.train.patience:
                raise InputError(
                    f"loss or gradient was not finite in {state.in_a_row} steps in a row at "
                    f"{state.images} images; lower optim.lr ({run.optim.lr:g}) or resume from an "
                    f"earlier checkpoint"
                )
        last = state.images >= run.train.images or stop.asked
        if passed(before, state.images, run.train.log_every) or last:
            event = {"event": "step", "images": state.images, **state.means()}
            event["lr"] = optimizer.param_groups[0]["lr"]
            speed = (state.images - images_at_begin) / (time.perf_counter() - begun)
            event["images_per_second"] = round(speed, 2)
            emit(event, log, report)
        if passed(before, state.images, run.train.save_every) or last:
            pause = time.perf_counter()
            losses = validation(model, network, ema)
            if losses:
                emit({"event": "validation", "images": state.images, **losses}, log, report)
            save_checkpoint(out, run, state, model, optimizer, ema)
            grid(model, ema, state.images)
            begun += time.perf_counter() - pause  # speed is that of training alone
        if stop.asked and state.images < run.train.images:
            raise Interrupted(f"stopped at {state.images} images; saved, --resume continues")

    load_weights(model, ema.state(run.train.ema[0]))
    return Trained(run, source.spec, model, device)


# One step.


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of at most `size` samples."""
    for first in range(0, batch.x.shape[0], size):
        yield batch.part(slice(first, first + size))


def backward(
    run: Run, network: Network, batch: Batch, device: torch.device, micro_batch: int = 0
) -> dict[str, Tensor]:
    """Gradients of the mean loss over the batch; returns the loss and its terms, on the device."""
    size = batch.x.shape[0]
    totals: dict[str, Tensor] = {}
    # Dropout alone uses torch's generator; keyed by the first sample number, it survives a resume.
    torch.manual_seed((run.seed ^ purpose_word("dropout")) + int(batch.index[0]))
    for part in micro_batches(batch, micro_batch or run.train.micro_batch or size):
        draw = Draw(run.seed, part.index)
        part, given = run.task(run.augment(part, draw), draw)
        t = run.objective.times(draw).to(device)
        eps = run.objective.noise(draw, tuple(part.x.shape[1:])).to(device)
        x = part.x.to(device)
        given = type(given)(*(v.to(device) if isinstance(v, Tensor) else v for v in given))
        xt = run.objective.mix(x, eps, t)
        with autocast(device, run.train.precision):
            answer = network(*run.objective.see(xt, t), given).value
        guess = run.objective.read(answer.float(), xt, t)
        truth = run.objective.target(x, eps, xt, t)
        weight = None if part.weight is None else part.weight.to(device)
        loss, terms = criterion(run.loss, guess, truth, weight)
        (loss.sum() / size).backward()
        for name, values in {"loss": loss, **terms}.items():
            totals[name] = totals.get(name, 0) + values.detach().sum() / size
    return totals


def scheduled_rate(run: Run, images: int) -> float:
    o = run.optim
    return learning_rate(images, o.lr, o.warmup, o.schedule, run.train.images, o.final)


def advice(run: Run, network: Network, batch: Batch, device: torch.device) -> str:
    """What to do about too little memory: the largest half, quarter, ... that was seen to work."""
    size = run.train.micro_batch or batch.x.shape[0]
    fits = size // 2
    while fits:
        network.model.zero_grad(set_to_none=True)
        try:
            backward(run, network, batch.part(slice(fits)), device, fits)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits //= 2
    what = f"{size} samples at once do not fit into the memory of {device}"
    if not fits:
        return f"{what}, nor does one; choose a smaller model or data.size"
    return f"{what}; train.micro_batch={fits} does, with the same result"


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]."""
    return now // every > before // every


def refusal(file: Refused, images: int) -> dict[str, Any]:
    return {"event": "refused", "images": images, "file": file.file, "reason": file.reason}


def emit(event: dict[str, Any], log: Log, report: Report) -> None:
    log.write(event)
    report(event)


class State:
    """The counters of a run, and the sums behind the next line of the log."""

    def __init__(self) -> None:
        self.images = self.skipped = self.in_a_row = self.counted = 0
        self.sums: dict[str, float] = {}

    def count(self, figures: dict[str, float], size: int, finite: bool) -> None:
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite
        if finite:
            for name, value in figures.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * size
            self.counted += size

    def means(self) -> dict[str, Any]:
        """Means since the last call."""
        found = {name: total / self.counted for name, total in self.sums.items()}
        self.sums, self.counted = {}, 0
        return {**found, "skipped": self.skipped}


# Run folder and checkpoints.


def begin(run: Run, spec: Spec, out: Path) -> None:
    if (out / "run.yaml").exists():
        raise InputError(f"{out} already holds a run; --resume continues it, or choose another "
                         f"--out")  # fmt: skip
    run.save(out / "run.yaml")
    text = json.dumps(TypeAdapter(Spec).dump_python(spec, mode="json"), indent=1)
    checkpoint.write_text(out / "spec.json", text)
    checkpoint.write_text(out / "log.jsonl", "")


def check_same(run: Run, spec: Spec, out: Path) -> None:
    """A resumed run is the same run: InputError names the first field that differs."""
    if not (out / "run.yaml").is_file():
        raise InputError(f"{out / 'run.yaml'} is missing; there is no run to resume in {out}")
    before, now = _leaves(to_dict(Run.load(out))), _leaves(to_dict(run))
    free = FREE_ON_RESUME | ({"train.images"} if run.optim.schedule == "constant" else set())
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field) and field not in free:
            raise InputError(
                f"{field} is {now.get(field)}, but the run in {out} has {before.get(field)}; "
                f"resume with the same value or choose another --out"
            )
    if read_spec(out).fingerprint != spec.fingerprint:
        raise InputError(
            f"data.path holds other data than the run in {out} was begun with; bring them back or "
            f"choose another --out"
        )


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _leaves(branch, f"{path}.{name}" if path else name).items()
    }


def save_checkpoint(
    out: Path, run: Run, state: State, model: nn.Module, optimizer: Any, ema: EMA
) -> None:
    groups: checkpoint.Groups = {
        "model": dict(model.named_parameters()),
        "optimizer": optimizer_state(model, optimizer),
        **{f"ema-{decay:g}": ema.state(decay) for decay in run.train.ema},
    }
    facts = {**vars(state), "ema_updates": ema.updates}
    checkpoint.save(out / "checkpoints" / f"{state.images:09d}", groups, facts)
    checkpoint.prune(out / "checkpoints", run.train.keep)


def load_checkpoint(out: Path, state: State, model: nn.Module, optimizer: Any, ema: EMA) -> None:
    """The newest complete checkpoint; a run killed before its first one begins again."""
    found = checkpoint.complete(out / "checkpoints")
    if not found:
        return
    facts = checkpoint.facts_of(found[-1])
    load_weights(model, checkpoint.load(found[-1], "model"))
    load_optimizer_state(model, optimizer, checkpoint.load(found[-1], "optimizer"))
    for decay in ema.averages:
        ema.load(decay, checkpoint.load(found[-1], f"ema-{decay:g}"))
    ema.updates = facts["ema_updates"]
    for name in vars(state):
        setattr(state, name, facts[name])


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.copy_(weights[name])


class Borrowed:
    """The model with its first EMA's weights for a while, in eval mode."""

    def __init__(self, model: nn.Module, ema: EMA) -> None:
        self.model, self.ema = model, ema

    def __enter__(self) -> None:
        self.own = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        load_weights(self.model, self.ema.state(next(iter(self.ema.averages))))
        self.model.eval()

    def __exit__(self, *exception: object) -> None:
        load_weights(self.model, self.own)
        self.model.train()


class Grid:
    """A sheet of pictures from fixed seeds, drawn anew at every save."""

    def __init__(self, run: Run, spec: Spec, out: Path, device: torch.device) -> None:
        self.run, self.spec, self.out, self.device = run, spec, out, device

    def __call__(self, model: nn.Module, ema: EMA, images: int) -> None:
        if not self.run.train.grid:
            return
        with Borrowed(model, ema):
            trained = Trained(self.run, self.spec, model, self.device)
            found = trained.answer(Ask(count=self.run.train.grid, dtype=self.run.train.precision))
        save_png(contact_sheet(flat(found.x)), self.out / "samples" / f"{images:09d}.png")


class Validation:
    """Velocity loss of the first EMA on held-out samples at fixed times and noise."""

    def __init__(self, run: Run, test: Source) -> None:
        self.run, self.count = run, run.train.validate
        if self.count:
            self.x, self.label = held_out(test, self.count)

    def __call__(self, model: nn.Module, network: Network, ema: EMA) -> dict[str, float]:
        if not self.count:
            return {}
        with Borrowed(model, ema), autocast(network.device, self.run.train.precision):
            losses = velocity_loss(network, self.run.objective, self.x, self.label)
        return {f"velocity@{t:g}": value for t, value in zip(TIMES, losses, strict=True)}
