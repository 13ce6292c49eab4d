"""Judging a run: pictures, features, scores, and a recipe that says how to repeat them."""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pointillist.data.collection import nominal
from pointillist.data.latent import decoder_of
from pointillist.data.prompts import first_of, said_of
from pointillist.engine.device import autocast
from pointillist.engine.session import locked
from pointillist.evaluation.check import check, enough, open_split
from pointillist.evaluation.generated import Generated, Progress, generate, real_features
from pointillist.evaluation.generated import scores as generated_scores
from pointillist.evaluation.plan import Plan, digest
from pointillist.evaluation.restored import Restored, restore
from pointillist.evaluation.restored import scores as restored_scores
from pointillist.metrics.features import open_extractor
from pointillist.metrics.interval import Score, bootstrap_mean
from pointillist.metrics.names import DENOISED, GENERATED, RESTORED, Metric, parse_metrics
from pointillist.request import Ask
from pointillist.run import to_dict
from pointillist.sample import Trained
from pointillist.validation import (
    TIMES,
    Errors,
    Text,
    held_out_batch,
    held_out_observed,
    velocity_errors,
)
from pointillist.version import made_by

PORTION = 1024  # held-out pictures in memory together


class Verdict(NamedTuple):
    """Scores by the names they were asked for, how to repeat them, and pictures to look at.

    `about` holds for every metric what has to be equal for figures of two runs to compare.
    """

    scores: dict[str, Score]
    about: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    speed: dict[str, float]
    generated: Generated | None = None
    restored: Restored | None = None

    def as_json(self) -> dict[str, Any]:
        """metric -> {value, low, high, n}, and the recipe beside them; of reconstructions also what
        each level of interval covers.
        """
        found: dict[str, Any] = {name: score._asdict() for name, score in self.scores.items()}
        if self.restored is not None:
            found["reliability"] = self.restored.reliability._asdict()
        return {**found, "recipe": {**self.recipe, "about": self.about}, "speed": self.speed}


def quiet(what: str, done: int, of: int) -> None:
    """No progress is shown."""


def judge(
    trained: Trained, plan: Plan, folder: Path, shared: Path, progress: Progress = quiet
) -> Verdict:
    """All metrics of the plan. Parts of the work stay in `folder`, those of real data in `shared`.

    Both are found again by what they were made of, so an interrupted or repeated call goes on.
    """
    check(trained, plan)
    begun, found = time.perf_counter(), Verdict({}, {}, recipe_of(trained, plan), {})
    with locked(folder, wait=True):  # another call may be making the same parts
        if plan.of(GENERATED):
            found = of_generated(found, trained, plan, folder, shared, progress)
        if plan.of(RESTORED):
            found = of_restored(found, trained, plan, folder, progress)
    for metric in plan.of(DENOISED):
        found = of_denoised(found, trained, plan, metric)
    speed = {**found.speed, "seconds": time.perf_counter() - begun}
    return found._replace(
        scores={name: found.scores[name] for name in order(plan, found.scores)},
        speed={name: round(value, 3) for name, value in speed.items()},
    )


def order(plan: Plan, made: dict[str, Score]) -> list[str]:
    """The scores as they were asked for; the velocity has one for every time."""
    return [name for metric in parse_metrics(plan.metrics) for name in made
            if name == metric.name or name.startswith(f"{metric.name}@")]  # fmt: skip


def of_generated(
    found: Verdict, trained: Trained, plan: Plan, folder: Path, shared: Path, progress: Progress
) -> Verdict:
    """The verdict with what generated pictures say."""
    extractor = open_extractor(plan.extractor, trained.device)
    source = open_split(trained.run, plan)
    enough(plan, extractor, len(source))
    features = {"extractor": extractor.name, "extractor_digest": extractor.digest,
                "resize": extractor.resize}  # fmt: skip
    where = folder / digest({**key_of(trained, plan), **features})
    drawn = generate(trained, plan, extractor, where, progress)
    scores = generated_scores(
        plan.of(GENERATED), plan, drawn,
        lambda full: real_features(source, plan, extractor, shared, progress, full),
    )  # fmt: skip
    same = {"split": plan.split, "data": source.spec.fingerprint, "size": found.recipe["size"]}
    about = {
        metric.name: {"real": plan.real(len(source), metric.full), **same, **features}
        for metric in plan.of(GENERATED)
    }
    return found._replace(
        scores=found.scores | scores, about=found.about | about, speed=found.speed | drawn.speed,
        recipe={**found.recipe, "nfe": drawn.nfe, **features}, generated=drawn,
    )  # fmt: skip


def of_restored(
    found: Verdict, trained: Trained, plan: Plan, folder: Path, progress: Progress
) -> Verdict:
    """The verdict with what held-out pictures from a few of their pixels say."""
    test = nominal(trained.run.data).open("test")
    protocol = {"draws": plan.draws, "share": plan.share, "data": test.spec.fingerprint}
    slow = sorted({metric.score for metric in plan.of(RESTORED)} & {"ssim", "lpips"})
    # Of which range SSIM is: it was of [-1, 1] once, which is another figure.
    ranges = {"ssim": "0 to 1"}
    of_slow = {name: ranges[name] for name in slow if name in ranges}
    where = folder / digest({**key_of(trained, plan), **protocol, "slow": slow, **of_slow})
    rebuilt = restore(trained, test, plan, where, progress)
    scores = restored_scores(plan.of(RESTORED), rebuilt.values)
    about = {name: {**protocol, "range": ranges[name]} if name in ranges else protocol
             for name in scores}  # fmt: skip
    return found._replace(
        scores=found.scores | scores, about=found.about | about,
        speed=rebuilt.speed | found.speed, restored=rebuilt,
    )  # fmt: skip


def of_denoised(found: Verdict, trained: Trained, plan: Plan, metric: Metric) -> Verdict:
    """The verdict with the velocity loss at every time, its interval over held-out pictures."""
    test, objective = nominal(trained.run.data).open("test"), trained.run.objective
    task = trained.run.task if metric.score == "hinted" else None
    count, parts = min(plan.count, len(test)), []
    for first in range(0, count, PORTION):
        batch = held_out_batch(test, min(PORTION, count - first), first=first)
        x, label, text = batch.x, batch.label, None
        if trained.spec.words is not None:
            captions = first_of(batch.caption, x.shape[0])
            text = Text(trained.reader.take(captions, trained.device), captions)
        numbers = torch.arange(first, first + x.shape[0])
        observed = None if task is None else held_out_observed(task, x, numbers)
        with autocast(trained.device, plan.dtype):
            parts.append(velocity_errors(
                trained.network, objective, x, label, batch=plan.batch, observed=observed,
                numbers=numbers, text=text,
            ))  # fmt: skip
    rows = Errors.joined(parts).losses()
    scores = {
        f"{metric.name}@{t:g}": bootstrap_mean(row) for t, row in zip(TIMES, rows, strict=True)
    }
    same = {"data": test.spec.fingerprint, "path": objective.kind,
            "noise": objective.noise_strength(tuple(trained.spec.size)),
            **({} if task is None else {"task": to_dict(trained.run)["task"]})}  # fmt: skip
    return found._replace(
        scores=found.scores | scores, about=found.about | dict.fromkeys(scores, same)
    )


def recipe_of(trained: Trained, plan: Plan) -> dict[str, Any]:
    """Everything needed to repeat the figures."""
    return {
        "metrics": list(plan.metrics),
        **drawn_by(trained, plan.ask(1)),
        "count": plan.count,
        "reference": plan.reference,
        "split": plan.split,
        "extractor": plan.extractor,
        "draws": plan.draws,
        "share": plan.share,
        "device": str(trained.device),
        **({} if trained.spec.words is None else {"prompts": "captions of the test split"}),
        "made_by": made_by(),
    }


def drawn_by(trained: Trained, ask: Ask) -> dict[str, Any]:
    """Whose pictures a request draws, and how."""
    origin, asked = trained.origin, trained.prepare(ask)
    # At 1 nothing else of guidance acts.
    guidance: dict[str, Any] = {"scale": 1.0}
    if asked.guidance.scale != 1:
        guidance = dataclasses.asdict(asked.guidance)
    if asked.guide is not None:
        guidance["guide"] = weights_digest(asked.guide)
    return {
        "run": origin.folder.resolve().name if origin else None,
        "images": origin.images if origin else None,
        "ema": origin.ema if origin else None,
        "weights": weights_digest(trained),
        "guidance": guidance,
        "sampler": asked.sampler,
        "steps": len(asked.times) - 1,
        "times": asked.times.tolist(),
        "size": list(ask.size or trained.spec.shown[1]),
        "seed": ask.seed,
        "dtype": ask.dtype,
        **decoded_by(trained),
    }


def decoded_by(trained: Trained) -> dict[str, Any]:
    """What makes pictures of latents; nothing where the network draws pixels."""
    if trained.spec.code is None:
        return {}
    digest = decoder_of(trained.run.data, trained.spec, trained.device).digest
    return {"autoencoder": {"digest": digest, "tile": getattr(trained.run.data, "tile", 0)}}


def key_of(trained: Trained, plan: Plan) -> dict[str, Any]:
    """What makes pictures what they are: two calls with the same key may share them."""
    recipe, run = recipe_of(trained, plan), to_dict(trained.run)
    guide = trained.prepare(plan.ask(1)).guide
    drawn = ("weights", "guidance", "sampler", "times", "size", "seed", "dtype", "device",
             "made_by")  # fmt: skip
    return {
        **{name: recipe[name] for name in drawn},
        **decoded_by(trained),
        "objective": run["objective"], "model": run["model"], "classes": trained.spec.classes,
        "guide": guide and {k: to_dict(guide.run)[k] for k in ("objective", "model")},
        **said_by(trained),
    }  # fmt: skip


def said_by(trained: Trained) -> dict[str, Any]:
    """What prompts are and become; nothing where no captions are read."""
    if trained.spec.words is None:
        return {}
    prompts = repr(said_of(nominal(trained.run.data).open("test")))
    return {"words": dataclasses.asdict(trained.reader.words),
            "prompts": hashlib.blake2b(prompts.encode(), digest_size=16).hexdigest()}  # fmt: skip


def weights_digest(trained: Trained) -> str:
    """A hash of names and values of all weights, as they are used."""
    found = hashlib.sha256()
    for name, p in sorted(trained.model.named_parameters()):
        found.update(name.encode())
        found.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
