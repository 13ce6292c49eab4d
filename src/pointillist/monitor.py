"""What is looked at while a network trains: pictures, and how well it denoises held-out ones."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointillist.data.prompts import first_of, prompts_of, said_of
from pointillist.data.report import Refused
from pointillist.data.source import Source
from pointillist.data.words import Reader
from pointillist.engine.device import autocast
from pointillist.engine.ema import EMA
from pointillist.engine.track import Tracks
from pointillist.evaluation import check_run, enough, judge, open_split, plan_of
from pointillist.layers.observations import grid_of
from pointillist.metrics.features import open_extractor
from pointillist.metrics.names import GENERATED
from pointillist.models import Network
from pointillist.pictures import contact_sheet, flat, save_png
from pointillist.request import Ask
from pointillist.run import Run
from pointillist.runfolder import load_weights
from pointillist.sample import Trained
from pointillist.snapshots import Origin
from pointillist.tasks import HeldOut, TaskBase
from pointillist.types import Batch, InputError, Spec
from pointillist.validation import (
    TIMES,
    Errors,
    Text,
    at_places,
    held_out_batch,
    held_out_batches,
    held_out_observed,
    velocity_errors,
)


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
    """A sheet of pictures from fixed seeds, drawn anew at every save.

    Of a run that reads captions the first of the test split's are the prompts.
    A run with hints shows three parts: held-out pixels that are known (grey elsewhere), what the
    network makes of them, and the whole pictures that they come from.
    """

    def __init__(
        self, run: Run, spec: Spec, test: Source, out: Path, device: torch.device, tracks: Tracks,
        reader: Reader | None = None,
    ) -> None:  # fmt: skip
        self.run, self.spec, self.out, self.device = run, spec, out, device
        self.tracks, self.reader = tracks, reader
        self.truth = self.observed = self.label = self.prompt = None
        if reader is not None:
            self.prompt = prompts_of(said_of(test), range(run.train.grid))
        if run.train.grid and run.task.observes:
            batch = held_out_batch(test, run.train.grid)
            self.truth, self.label = batch.x, batch.label if spec.classes else None
            self.observed = held_out_observed(run.task, self.truth)
            if reader is not None:  # of these very pictures, with or without a caption
                self.prompt = first_of(batch.caption, batch.x.shape[0])

    def __call__(self, model: nn.Module, ema: EMA, images: int) -> None:
        if not self.run.train.grid:
            return
        with Borrowed(model, ema):
            trained = Trained(self.run, self.spec, model, self.device, self.reader)
            x = self.hinted(trained) if self.observed is not None else self.plain(trained)
        columns = 0 if self.truth is None else self.truth.shape[0]
        save_png(contact_sheet(flat(x), columns), self.path(images))
        self.tracks.picture(self.path(images), images)

    def plain(self, trained: Trained) -> Tensor:
        return trained.answer(self.ask(self.run.train.grid)).x

    def hinted(self, trained: Trained) -> Tensor:
        assert self.truth is not None and self.observed is not None
        label = None if self.label is None else tuple(self.label.tolist())
        known = self.observed.given
        found = trained.answer(self.ask(self.truth.shape[0], label), known=known).x
        on_grid = grid_of(known, self.spec.channels, tuple(self.truth.shape[2:]))
        assert on_grid is not None
        return torch.cat((on_grid[0], found, self.truth))

    def ask(self, count: int, label: tuple[int, ...] | None = None) -> Ask:
        wanted = self.run.train
        return Ask(count=count, label=label, dtype=wanted.precision, batch=min(64, wanted.at_once),
                   prompt=None if self.prompt is None else self.prompt[:count])  # fmt: skip

    def path(self, images: int) -> Path:
        return self.out / "samples" / f"{images:09d}.png"


class Validation:
    """Velocity loss of the first EMA on held-out samples at fixed times and noise; of pictures in
    buckets each at the size of its own.

    A run with hints is asked with them as well, and judged by the pixels that are hidden.
    """

    def __init__(
        self, run: Run, test: Source, refused: Callable[[Refused], None] | None,
        reader: Reader | None = None,
    ) -> None:  # fmt: skip
        self.run, self.reader = run, reader
        self.batches = (
            held_out_batches(test, run.train.validate, refused) if run.train.validate else []
        )
        self.asked: dict[str, list[HeldOut | None]] = {}
        if self.batches and not run.task.always:
            self.asked["velocity"] = [known(batch, None) for batch in self.batches]
        if self.batches and run.task.observes:
            self.asked["hinted"] = [known(batch, run.task) for batch in self.batches]

    def text_of(self, batch: Batch, device: torch.device) -> Text | None:
        """What the first captions of a batch say; None where nobody reads them."""
        if self.reader is None:
            return None
        captions = first_of(batch.caption, batch.x.shape[0])
        return Text(self.reader.take(captions, device), captions)

    def __call__(self, model: nn.Module, network: Network, ema: EMA) -> dict[str, float]:
        losses: dict[str, float] = {}
        texts = [self.text_of(batch, network.device) for batch in self.batches]
        with Borrowed(model, ema), autocast(network.device, self.run.train.precision):
            for name, asked in self.asked.items():
                # In portions that training has shown to fit into the memory.
                parts = [
                    velocity_errors(
                        network, self.run.objective, batch.x, batch.label,
                        batch=self.run.train.at_once, observed=observed, numbers=batch.index,
                        text=text,
                    )
                    for batch, observed, text in zip(self.batches, asked, texts, strict=True)
                ]  # fmt: skip
                found = Errors.joined(parts).losses().mean(1).tolist()
                losses |= {f"{name}@{t:g}": v for t, v in zip(TIMES, found, strict=True)}
        return losses


def known(batch: Batch, task: TaskBase | None) -> HeldOut | None:
    """What is shown of held-out samples; without a task nothing."""
    if batch.where is not None:
        return at_places(batch, task)
    return None if task is None else held_out_observed(task, batch.x, batch.index)


class Judging:
    """Metrics of the first EMA in training, as `evaluate` computes them on a finished run.

    InputError at once where they could not be: nobody wants to hear of it after the first day.
    """

    def __init__(
        self, run: Run, spec: Spec, out: Path, device: torch.device, reader: Reader | None = None
    ) -> None:
        self.run, self.spec, self.out, self.device = run, spec, out, device
        self.reader = reader
        self.plan = plan_of(run.evaluate, dtype=run.train.precision, batch=run.train.at_once)
        if not run.evaluate.every:
            return
        check_run(run, spec, self.plan)
        if self.plan.of(GENERATED):
            extractor = open_extractor(self.plan.extractor, device)
            enough(self.plan, extractor, len(open_split(run, self.plan)))

    def __call__(self, model: nn.Module, ema: EMA, images: int) -> dict[str, Any]:
        """Every score and the ends of its interval, by name.

        What cannot be judged now, such as a network that draws one picture only, is said in the
        place of scores: training goes on.
        """
        # What an interruption leaves is used on resume; what is finished is worth nothing more.
        work = self.out / "evaluating"
        with Borrowed(model, ema):
            trained = Trained(self.run, self.spec, model, self.device, self.reader)
            trained.origin = Origin(self.out, images, self.run.train.ema[0])
            try:
                found = judge(trained, self.plan, work, self.out.parent / "references").scores
            except InputError as error:
                return {"refused": str(error)}
        shutil.rmtree(work, ignore_errors=True)
        ends = {f"{name}_{end}": getattr(score, end) for name, score in found.items()
                for end in ("low", "high")}  # fmt: skip
        return {name: score.value for name, score in found.items()} | ends
