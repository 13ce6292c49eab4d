"""Scores of generated pictures: features once, every score from features."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pointillist.data.source import Source
from pointillist.draws import permutation
from pointillist.evaluation.neighbours import real_pictures
from pointillist.evaluation.parts import Parts, remembered
from pointillist.evaluation.plan import Plan, digest
from pointillist.metrics.features import Extractor, Features
from pointillist.metrics.frechet import frechet_score
from pointillist.metrics.interval import Score, share_score
from pointillist.metrics.kernel import kernel_score
from pointillist.metrics.names import Metric
from pointillist.metrics.neighbours import precision_recall
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
    drawn_per_second: float
    features_per_second: float

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
    """Features of pictures 0 to n - 1 of the plan, in parts that stay where they were made."""

    def make(first: int, number: int) -> dict[str, Tensor]:
        begun = time.perf_counter()
        found = trained.answer(plan.ask(number), numbers=torch.arange(first, first + number))
        pictures, middle = levels(found.x), time.perf_counter()
        features = torch.cat([extractor(some) for some in pictures.split(plan.batch)])
        seconds = torch.tensor([[middle - begun, time.perf_counter() - middle]])
        shown = {"pictures": pictures[: SHOWN - first]} if first < SHOWN else {}
        nfe = torch.tensor([found.nfe])
        return {"features": features, "seconds": seconds, "nfe": nfe, **shown}

    parts, count = Parts(folder), plan.pictures
    parts.fill(count, make, lambda n: progress("pictures", n, count))
    # Kept with the parts, so that speeds are told of pictures that lay ready, too.
    drawing, seeing = parts.all("seconds", count).sum(0).tolist()
    pictures, nfe = parts.all("pictures", count), int(parts.all("nfe", count)[0])
    return Generated(parts, count, pictures, nfe, count / drawing, count / seeing)


def real_features(
    source: Source, plan: Plan, extractor: Extractor, folder: Path, progress: Progress,
    full: bool, keep: bool,
) -> Features:  # fmt: skip
    """Statistics of real pictures, kept under `folder` by data and extractor for every later time.

    They come in a random order that belongs to the set, so that fewer of them are a fair sample.
    """
    n = len(source) if full or not plan.reference else min(plan.reference, len(source))
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
    found = reference(
        folder / name, remembered(extractor, unfinished), batches,
        fingerprint=fingerprint, split=plan.split, count=n, keep=keep,
    )  # fmt: skip
    shutil.rmtree(unfinished, ignore_errors=True)
    return found


def scores(
    asked: tuple[Metric, ...],
    plan: Plan,
    fake: Generated,
    real: Callable[[bool, bool], Features],
) -> dict[str, Score]:
    """Every metric of generated pictures that the plan names, with its 95 % interval.

    `real(full, keep)` gives the statistics of real pictures, with their features where `keep`.
    """
    found: dict[str, Score] = {}
    for metric in asked:
        n = metric.pictures or plan.count
        if metric.score == "fid":
            # With the features if another metric needs them: they are not to be made twice.
            keep = any(one.score != "fid" and one.full == metric.full for one in asked)
            against = real(metric.full, keep).moments
            found[metric.name] = frechet_score(partial(fake.portions, n), against)
            continue
        ours, theirs = fake.features(n), real(metric.full, True).rows
        assert theirs is not None
        if metric.score == "kid":
            found[metric.name] = kernel_score(ours, theirs)
        else:
            shares = precision_recall(ours, theirs[:n])
            found[metric.name] = share_score(getattr(shares, metric.score), min(n, len(theirs)))
    return found
