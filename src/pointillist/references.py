"""What a guided walk is led away from: whether a request for it makes sense, before it begins."""

import dataclasses
from typing import Any

import torch

from pointillist.guidance import AutoConfig, GuidanceConfig, label_number
from pointillist.losses.bound import check_sigma
from pointillist.request import Ask
from pointillist.run import Run
from pointillist.types import InputError, Spec


def asked_guidance(ask: Ask, own: GuidanceConfig, guided: bool) -> GuidanceConfig:
    """The run's `own` guidance with what a request says; `guided`: a weaker network is at hand.

    InputError where something is said of guidance and the scale is 1, which asks no reference.
    """
    whole = isinstance(ask.guidance, GuidanceConfig)
    base: Any = ask.guidance if whole else own
    asked: dict[str, Any] = {
        "scale": None if whole else ask.guidance, "interval": ask.interval,
        "rescale": ask.rescale, "negative": ask.negative,
        "auto": AutoConfig() if guided else None,  # the one in hand takes its place
    }  # fmt: skip
    found = dataclasses.replace(base, **{k: v for k, v in asked.items() if v is not None})
    if found.scale == 1:
        # Whoever asks for 1 may do so of a run that says more; what is asked beside it may not.
        alone = GuidanceConfig(rescale=ask.rescale or 0.0,
                               negative=-1 if ask.negative is None else ask.negative)  # fmt: skip
        idle = alone.idle if ask.guidance is not None and not whole else found.idle
        idle = "guide" if guided else idle
        if idle:
            raise InputError(
                f"{idle} is given, but guidance is 1, which asks no reference; give another "
                f"guidance or leave {idle} out"
            )
    return found


def check_reference(found: GuidanceConfig, run: Run, spec: Spec, guided: bool) -> None:
    """InputError unless there is something to lead away from: a guide, a label, or none."""
    found.check_channels(spec.channels)
    if guided:
        if found.negated:
            raise InputError(
                f"negative is {found.negative}, but a guide is given as the reference; leave "
                f"one of them out"
            )
    elif spec.words is not None:
        empty = not found.negated or found.negative == ""
        if empty and not run.task.caption_drop:
            raise InputError(
                f"guidance is {found.scale:g}, but the run had task.caption_drop 0 and never "
                f"learnt the empty caption; give a negative prompt, or leave it at 1"
            )
    elif not spec.classes:
        raise InputError(
            f"guidance is {found.scale:g}, but this model has no labels; leave it at 1"
        )
    elif found.negated:
        label_number(found.negative, spec.classes, "negative")
    elif not run.task.label_drop:
        raise InputError(
            f"guidance is {found.scale:g}, but the run had task.label_drop 0 and never "
            f"learnt an unlabelled answer; leave it at 1"
        )


def check_guide(ours: tuple[Run, Spec], theirs: tuple[Run, Spec], size: tuple[int, ...]) -> None:
    """InputError unless the guide answers the same question: same data, same path and noise."""
    (run, spec), (guide, guide_spec) = ours, theirs
    if (spec.channels, len(spec.size)) != (guide_spec.channels, len(guide_spec.size)):
        raise InputError(
            f"the guide has {guide_spec.channels} channels on {len(guide_spec.size)} axes, the run "
            f"{spec.channels} on {len(spec.size)}; take a guide of the same data"
        )
    if (spec.code, spec.scale, spec.offset) != (
        guide_spec.code, guide_spec.scale, guide_spec.offset
    ):  # fmt: skip
        raise InputError(
            "the guide's data are in other units than the run's, or its latents of another "
            "autoencoder; take a guide of the same data"
        )
    if guide_spec.classes and spec.classes != guide_spec.classes:
        raise InputError(
            f"the guide has {len(guide_spec.classes)} classes that are not the run's "
            f"{len(spec.classes)}; take a guide of the same data, or one without labels"
        )
    if guide_spec.words is not None and guide_spec.words != spec.words:
        raise InputError(
            "the guide reads captions by another encoder than the run; take a guide with the same, "
            "or one that reads none"
        )
    check_sigma(guide.model, guide.objective)
    if _walk(run, size) != _walk(guide, size):
        raise InputError(
            "the guide's objective has another path or noise than the run's; take one that was "
            "trained with the same"
        )


def _walk(run: Run, size: tuple[int, ...]) -> tuple[float, ...]:
    """The path at a few times, and how strong its noise is: what two networks must agree on."""
    times = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    path = torch.cat((run.objective.alpha(times), run.objective.sigma(times)))
    return (*path.tolist(), run.objective.noise_strength(size))
