"""Judging a run: pictures, features, scores, and a recipe that says how to repeat them."""

import dataclasses
import hashlib
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pointillist.data.source import Source
from pointillist.engine.device import autocast
from pointillist.evaluation.generated import Generated, Progress, generate, real_features
from pointillist.evaluation.generated import scores as generated_scores
from pointillist.evaluation.plan import Plan, digest
from pointillist.evaluation.restored import Restored, restore
from pointillist.evaluation.restored import scores as restored_scores
from pointillist.metrics.features import Extractor, Features, open_extractor
from pointillist.metrics.interval import Score, bootstrap_mean
from pointillist.metrics.names import DENOISED, GENERATED, RESTORED, Metric, parse_metrics
from pointillist.run import Run
from pointillist.sample import Trained
from pointillist.tasks import HintsConfig
from pointillist.types import InputError, Spec
from pointillist.validation import TIMES, held_out, held_out_hints, velocity_losses
from pointillist.version import __version__, made_by


class Verdict(NamedTuple):
    """Scores by the names they were asked for, how to repeat them, and pictures to look at."""

    scores: dict[str, Score]
    recipe: dict[str, Any]
    speed: dict[str, float]
    generated: Generated | None = None
    restored: Restored | None = None

    def as_json(self) -> dict[str, Any]:
        """metric -> {value, low, high, n}, and the recipe beside them."""
        scores = {name: score._asdict() for name, score in self.scores.items()}
        return {**scores, "recipe": self.recipe, "speed": self.speed}


def quiet(what: str, done: int, of: int) -> None:
    """No progress is shown."""


def judge(
    trained: Trained, plan: Plan, folder: Path, shared: Path, progress: Progress = quiet
) -> Verdict:
    """All metrics of the plan. Parts of the work stay in `folder`, those of real data in `shared`.

    Both are found again by what they were made of, so an interrupted or repeated call goes on.
    """
    asked = parse_metrics(plan.metrics)
    check(trained.run, trained.spec, plan)
    recipe, begun = recipe_of(trained, plan), time.perf_counter()
    made: dict[str, Score] = {}
    speed: dict[str, float] = {}
    drawn = rebuilt = None
    if of_generated := tuple(metric for metric in asked if metric.score in GENERATED):
        extractor = open_extractor(plan.extractor, trained.device)
        source = open_split(trained.run, plan)
        enough(plan, extractor, len(source))
        of_features = {
            "extractor": extractor.name, "extractor_digest": extractor.digest,
            "resize": extractor.resize,
        }  # fmt: skip
        where = folder / digest({"version": __version__, **recipe, **of_features})
        drawn = generate(trained, plan, extractor, where, progress)

        def real(full: bool, keep: bool) -> Features:
            return real_features(source, plan, extractor, shared, progress, full, keep)

        made |= generated_scores(of_generated, plan, drawn, real)
        recipe |= {"nfe": drawn.nfe, "count": plan.count, "reference": plan.reference,
                   "split": plan.split, "data": source.spec.fingerprint, **of_features}  # fmt: skip
        speed |= {"drawn_per_second": drawn.drawn_per_second,
                  "features_per_second": drawn.features_per_second}  # fmt: skip
    if of_restored := tuple(metric for metric in asked if metric.score in RESTORED):
        test = trained.run.data.open("test")
        protocol = {"draws": plan.draws, "share": plan.share, "held_out": test.spec.fingerprint}
        where = folder / digest({"version": __version__, **recipe_of(trained, plan), **protocol})
        rebuilt = restore(trained, test, plan, where, progress)
        made |= restored_scores(of_restored, rebuilt.values)
        recipe |= {"count": plan.count, **protocol}
        speed.setdefault("drawn_per_second", rebuilt.drawn_per_second)
    for metric in asked:
        if metric.score in DENOISED:
            made |= denoised(trained, plan, metric)
            recipe["count"] = plan.count
    speed |= {"seconds": time.perf_counter() - begun, "peak_memory_bytes": peak(trained.device)}
    return Verdict(
        {name: made[name] for name in order(asked, made)},
        {"metrics": [metric.name for metric in asked], **recipe, "made_by": made_by()},
        {name: round(value, 3) for name, value in speed.items()}, drawn, rebuilt,
    )  # fmt: skip


def order(asked: tuple[Metric, ...], made: dict[str, Score]) -> list[str]:
    """The scores as they were asked for; the velocity has one for every time."""
    return [name for metric in asked for name in made
            if name == metric.name or name.startswith(f"{metric.name}@")]  # fmt: skip


def check(run: Run, spec: Spec, plan: Plan) -> None:
    """InputError before anything is computed where run and metrics do not belong together."""
    task = run.task
    hints = isinstance(task, HintsConfig)
    for metric in parse_metrics(plan.metrics):
        if metric.score in (*RESTORED, "hinted") and not hints:
            raise InputError(
                f"metric {metric.name} judges what is made of known pixels, and this run takes "
                f"none (task.kind is {task.kind}); ask for {', '.join(GENERATED)} or velocity"
            )
        if metric.score in (*GENERATED, "velocity") and isinstance(task, HintsConfig) \
                and task.always:  # fmt: skip
            raise InputError(
                f"metric {metric.name} judges what is made of nothing, and this run had "
                f"task.absent 0 and never learnt that; ask for {', '.join(RESTORED)} or hinted"
            )
        if metric.score in GENERATED and len(spec.size) != 2:
            raise InputError(f"metric {metric.name} is of pictures, and the run has "
                             f"{len(spec.size)} axes; ask for others")  # fmt: skip
        if metric.score not in GENERATED and plan.size not in (None, spec.size):
            raise InputError(
                f"size is {'x'.join(map(str, plan.size or ()))}, but {metric.name} compares with "
                f"held-out pictures of {'x'.join(map(str, spec.size))}; leave it out"
            )


def open_split(run: Run, plan: Plan) -> Source:
    """The real pictures that generated ones are held against."""
    return run.data.open("train" if plan.split == "train" else "test")


def enough(plan: Plan, extractor: Extractor, available: int) -> None:
    """InputError where pictures would be drawn for a distance that they are too few for."""
    for metric in parse_metrics(plan.metrics):
        real = available if metric.full else min(plan.reference or available, available)
        for n, what in ((metric.pictures or plan.count, "generated"), (real, "real")):
            if metric.score == "fid" and n <= extractor.dim:
                raise InputError(
                    f"metric {metric.name} of {n:,} {what} pictures on {extractor.dim:,} features "
                    f"means nothing; it takes {extractor.dim + 1:,} or more, so ask for kid or set "
                    f"{'count' if what == 'generated' else 'reference'}"
                )


def denoised(trained: Trained, plan: Plan, metric: Metric) -> dict[str, Score]:
    """Velocity loss at every time, with the interval over held-out pictures."""
    x, label = held_out(trained.run.data.open("test"), plan.count)
    known, task = None, trained.run.task
    if metric.score == "hinted":
        assert isinstance(task, HintsConfig)
        known = held_out_hints(task, x)
    with autocast(trained.device, plan.dtype):
        rows = velocity_losses(
            trained.network, trained.run.objective, x, label, batch=plan.batch, known=known
        )
    return {f"{metric.name}@{t:g}": bootstrap_mean(row) for t, row in zip(TIMES, rows, strict=True)}


def recipe_of(trained: Trained, plan: Plan) -> dict[str, Any]:
    """What makes the pictures of a plan what they are."""
    run, origin = trained.run, trained.origin
    asked: dict[str, Any] = {"scale": plan.guidance, "interval": plan.interval}
    guidance = dataclasses.replace(
        run.sample.guidance, **{k: v for k, v in asked.items() if v is not None}
    )
    return {
        "run": origin.folder.name if origin else None,
        "images": origin.images if origin else None,
        "ema": origin.ema if origin else None,
        "weights": weights_digest(trained),
        "guidance": dataclasses.asdict(guidance),
        "sampler": plan.sampler or run.sample.sampler,
        "steps": plan.steps or run.sample.steps,
        "shift": run.sample.shift,
        "size": list(plan.size or trained.spec.size),
        "seed": plan.seed,
        "dtype": plan.dtype,
    }


def weights_digest(trained: Trained) -> str:
    """A hash of names and values of all weights, as they are used."""
    found = hashlib.sha256()
    for name, p in sorted(trained.model.named_parameters()):
        found.update(name.encode())
        found.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def peak(device: torch.device) -> float:
    """The most memory that was held: of the device, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(held * (1 if sys.platform == "darwin" else 1024))
