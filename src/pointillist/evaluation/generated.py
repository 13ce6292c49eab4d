"""Scores of generated pictures: features once, every score from features."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pointillist.data.prompts import prompts_of, said_of
from pointillist.data.source import Source
from pointillist.draws import permutation
from pointillist.engine.device import memory_in_use
from pointillist.engine.session import locked
from pointillist.evaluation.neighbours import real_pictures
from pointillist.evaluation.parts import Parts, remembered
from pointillist.evaluation.plan import KEPT, Plan, digest
from pointillist.metrics.features import Extractor, Features
from pointillist.metrics.frechet import frechet_score
from pointillist.metrics.interval import Score, share_score
from pointillist.metrics.kernel import kernel_score
from pointillist.metrics.names import Metric
from pointillist.metrics.neighbours import PrecisionRecall, precision_recall
from pointillist.metrics.reference import ReferenceFacts, reference
from pointillist.pictures import levels
from pointillist.sample import Trained

SHOWN = 64  # pictures that are kept for the page
Progress = Callable[[str, int, int], None]


class Generated(NamedTuple):
    """Features of the plan's pictures on disk, the first pictures, and how fast both were made."""

    parts: Parts
    total: int
    pictures: UInt8[Tensor, "k c h w"]
    nfe: int
    speed: dict[str, float]

    def portions(self, n: int) -> Iterator[Float[Tensor, "b d"]]:
        """Features of the first n pictures, a part at a time."""
        for part in self.parts.each(self.total):
            yield part["features"][:n]
            n -= part["features"].shape[0]
            if n <= 0:
                return

    def features(self, n: int) -> Float[Tensor, "n d"]:
        """All of them at once: 4 d bytes for each picture."""
        return torch.cat(list(self.portions(n)))


def generate(
    trained: Trained, plan: Plan, extractor: Extractor, folder: Path, progress: Progress
) -> Generated:
    """Features of pictures 0 to n - 1 of the plan, in parts that stay where they were made.

    Of a run that reads captions those of the test split are the prompts, in turn.
    """
    said = None if trained.spec.words is None else said_of(trained.run.data.open("test"))

    def make(first: int, number: int) -> dict[str, Tensor]:
        begun = time.perf_counter()
        ask, numbers = plan.ask(number), range(first, first + number)
        if said is not None:
            ask = dataclasses.replace(ask, prompt=prompts_of(said, numbers))
        found = trained.answer(ask, numbers=torch.tensor(numbers))
        pictures, middle = levels(found.x), time.perf_counter()
        held = memory_in_use()
        features = torch.cat([extractor(some) for some in pictures.split(plan.batch)])
        seconds = [middle - begun, time.perf_counter() - middle, held]
        shown = {"pictures": pictures[: SHOWN - first]} if first < SHOWN else {}
        cost = {
            "cost": torch.tensor([seconds], dtype=torch.float64),
            "nfe": torch.tensor([found.nfe]),
        }
        return {"features": features, **cost, **shown}

    parts, count = Parts(folder), plan.pictures
    parts.fill(count, make, lambda n: progress("pictures", n, count))
    # Kept with the parts, so that the cost is told of pictures that lay ready, too.
    cost = parts.all("cost", count)
    speed = {
        "drawn_per_second": count / float(cost[:, 0].sum()),
        "features_per_second": count / float(cost[:, 1].sum()),
        "peak_memory_bytes": float(cost[0, 2]),
    }
    nfe = int(parts.all("nfe", count)[0])
    return Generated(parts, count, parts.all("pictures", count), nfe, speed)


def real_features(
    source: Source, plan: Plan, extractor: Extractor, folder: Path, progress: Progress, full: bool
) -> Features:
    """Statistics of real pictures, kept under `folder` by data and extractor for every later time.

    They come in a random order that belongs to the set, so that fewer of them are a fair sample.
    The features of each are kept too, up to KEPT of them.
    """
    n = plan.real(len(source), full)
    order = permutation(0, 0, "reference pictures", len(source)).tolist()

    def batches() -> Iterable[Tensor]:
        for first in range(0, n, plan.batch):
            some = order[first : min(first + plan.batch, n)]
            yield real_pictures(source, some)
            progress("real pictures", first + len(some), n)

    fingerprint = source.spec.fingerprint
    facts = ReferenceFacts.of(extractor, fingerprint, plan.split, n)
    name = f"{extractor.name}-{plan.split}-{n}-{digest(facts.as_dict())}"
    unfinished = folder / f"{name}.unfinished"
    with locked(unfinished, wait=True):  # who comes second finds it finished
        found = reference(
            folder / name, remembered(extractor, unfinished), batches,
            fingerprint=fingerprint, split=plan.split, count=n, keep=n <= KEPT,
        )  # fmt: skip
        shutil.rmtree(unfinished, ignore_errors=True)
    return found


def scores(
    asked: tuple[Metric, ...], plan: Plan, fake: Generated, real: Callable[[bool], Features]
) -> dict[str, Score]:
    """Every metric of generated pictures that the plan names, with its 95 % interval.

    `real(full)` gives the statistics of real pictures.
    """
    found: dict[str, Score] = {}
    shares: dict[int, PrecisionRecall] = {}
    for metric in asked:
        n, theirs = metric.pictures or plan.count, real(metric.full)
        if metric.score == "fid":
            # Without their features the real pictures stay as they are in the interval.
            against = theirs.moments if theirs.rows is None else partial(_portions, theirs.rows)
            found[metric.name] = frechet_score(partial(fake.portions, n), against)
            continue
        assert theirs.rows is not None  # `enough` refuses more pictures than are kept
        if metric.score == "kid":
            found[metric.name] = kernel_score(fake.features(n), theirs.rows)
            continue
        n = min(n, theirs.moments.n)  # as many of each: both shares depend on both numbers
        if n not in shares:
            shares[n] = precision_recall(fake.features(n), theirs.rows[:n])
        found[metric.name] = share_score(getattr(shares[n], metric.score), n)
    return found


def _portions(rows: Float[Tensor, "n d"]) -> Iterable[Float[Tensor, "b d"]]:
    return rows.split(1024)
