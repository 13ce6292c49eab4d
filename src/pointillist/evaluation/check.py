"""What is refused before anything is computed: metrics that run or pictures cannot have."""

import math

import torch

from pointillist.data.collection import nominal
from pointillist.data.latent import pictures_of
from pointillist.data.source import Source
from pointillist.evaluation.plan import KEPT, Plan
from pointillist.frozen.alexnet import SMALLEST
from pointillist.metrics.features import Extractor
from pointillist.metrics.kernel import LEAST
from pointillist.metrics.names import GENERATED, RESTORED
from pointillist.metrics.pixel import WINDOW
from pointillist.run import Run
from pointillist.sample import Trained
from pointillist.types import Given, InputError, Spec


def open_split(run: Run, plan: Plan) -> Source:
    """The real pictures that generated ones are held against."""
    return nominal(pictures_of(run.data)).open("train" if plan.split == "train" else "test")


def check(trained: Trained, plan: Plan) -> None:
    """InputError where the run, as it is asked to sample, cannot be judged so."""
    check_run(trained.run, trained.spec, plan)
    if plan.of((*GENERATED, *RESTORED)):
        asked = trained.prepare(plan.ask(1))
        label = torch.zeros(1, dtype=torch.long, device=trained.device)
        given = Given(label=label if trained.spec.classes else None)
        if trained.spec.words is not None:
            given = trained.reads([""]).into(given)
        if not trained.run.task.observes:
            with torch.no_grad():
                trained.network.condition(given, asked.size)  # refuses sizes that it cannot have


def check_run(run: Run, spec: Spec, plan: Plan) -> None:
    """InputError where run and metrics do not belong together, whatever the weights."""
    task = run.task
    if spec.placed:
        raise InputError(
            "the run has learnt crops of a field, and the metrics are of pictures; hold answers of "
            "`reconstruct` against your own measurements"
        )
    for metric in plan.of((*RESTORED, "hinted")):
        if not task.observes:
            raise InputError(
                f"metric {metric.name} judges what is made of known pixels, and this run takes "
                f"none (task.kind is {task.kind}); ask for {', '.join(GENERATED)} or velocity"
            )
    for metric in plan.of((*GENERATED, "velocity")):
        if task.always:
            raise InputError(
                f"metric {metric.name} judges what is made of nothing, and this run never "
                f"learnt that; ask for {', '.join(RESTORED)} or hinted, or train with "
                f"{task.remedy}"
            )
    channels, shown = spec.shown
    size = "x".join(map(str, shown))
    for metric in plan.of(GENERATED):
        if len(spec.size) != 2 or channels not in (1, 3):
            raise InputError(
                f"metric {metric.name} is of grey or colour pictures, and the run has {channels} "
                f"channels on {size}; ask for others"
            )
    for metric in plan.of((*RESTORED, "velocity", "hinted")):
        if plan.size not in (None, shown):
            raise InputError(
                f"size is {'x'.join(map(str, plan.size or ()))}, but {metric.name} compares with "
                f"held-out pictures of {size}; leave it out"
            )
    least = {"ssim": WINDOW, "lpips": SMALLEST}
    for metric in plan.of(tuple(least)):
        edge = least[metric.score]
        if len(spec.size) != 2 or min(spec.size) < edge \
                or (metric.score == "lpips" and spec.channels != 3):  # fmt: skip
            what = "colour pictures" if metric.score == "lpips" else "pictures"
            raise InputError(
                f"metric {metric.name} is of {what} of {edge}x{edge} or more, and the run has "
                f"{spec.channels} channels on {size}; ask for others"
            )
    cells = math.prod(spec.size)
    if plan.of(RESTORED) and not 0 < round(plan.share * cells) < cells:
        raise InputError(
            f"share is {plan.share:g}, which of {cells:,} pixels leaves none "
            f"{'known' if plan.share < 0.5 else 'hidden'}; take one further from "
            f"{0 if plan.share < 0.5 else 1}"
        )


def enough(plan: Plan, extractor: Extractor, available: int) -> None:
    """InputError where pictures would be drawn for a distance that they are too few for."""
    for metric in plan.of(GENERATED):
        least, on = LEAST, ""
        if metric.score == "fid":
            least, on = extractor.dim + 1, f" on {extractor.dim:,} features"
        asked = metric.pictures or plan.count
        if metric.score != "fid" and plan.real(available, metric.full) > KEPT:
            raise InputError(
                f"metric {metric.name} compares with the features of every real picture, of which "
                f"{KEPT:,} are kept and {plan.real(available, metric.full):,} asked for; set "
                f"reference to {KEPT:,} or fewer, or ask for fid"
            )
        real = plan.real(available, metric.full)
        for n, what, field in ((asked, "generated", "count"), (real, "real", "reference")):
            if n >= least:
                continue
            named = metric.pictures if what == "generated" else metric.full
            remedy = "name another number in the metric" if named else f"set {field} to that"
            raise InputError(
                f"metric {metric.name} of {n:,} {what} pictures{on} means nothing; it takes "
                f"{least:,} or more, so {remedy}" + (", or ask for kid" if on else "")
            )
