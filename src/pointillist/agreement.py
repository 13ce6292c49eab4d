"""What the parts of a configuration say of one another: contradictions, each in one sentence.

`Run.check` asks all of them before anything is computed.
"""

import dataclasses
from typing import Any

import torch

from pointillist.guidance import label_number
from pointillist.types import InputError, Spec, Takes, grid_axes


def check_augment(run: Any, spec: Spec) -> None:
    """What is done to pictures is told to the network, and can be done to them."""
    moves = {"augment.geometric": run.augment.geometric,
             "model.jitter": getattr(run.model, "jitter", 0)}  # fmt: skip
    for name, value in moves.items():
        if value and run.loss.align.cache:
            raise InputError(
                f"loss.align.cache is {run.loss.align.cache}, but {name} is {value}, after which "
                f'no picture comes twice; set {name}=0, or loss.align.cache=""'
            )
    told, taken = run.augment.labels, getattr(run.model, "augment_labels", None)
    if told and taken is None:
        raise InputError(
            f"augment.geometric is {run.augment.geometric}, but model {run.model.kind} takes "
            f"no labels of augmentation, so turned pictures would leak into what it draws; set "
            f"augment.geometric=0"
        )
    if told != (taken or 0):
        raise InputError(
            f"model.augment_labels is {taken}, but augment.geometric={run.augment.geometric} "
            f"tells {told}; set model.augment_labels={told}"
        )
    if told and len(spec.axes) != 2:
        raise InputError(
            f"augment.geometric is {run.augment.geometric}, but it turns pictures of two "
            f"axes, and the data have {len(spec.axes)}; set it to 0"
        )


def check_guidance(run: Any, spec: Spec) -> None:
    """A scale needs a reference, and what belongs to guidance a scale."""
    guidance = run.sample.guidance
    guidance.check_channels(spec.channels)
    if guidance.idle:
        raise InputError(
            f"sample.guidance.{guidance.idle} is set, but sample.guidance.scale is 1, which is "
            f"no guidance; set the scale too"
        )
    if guidance.automatic:
        for field, value in (("train.grid", run.train.grid),
                             ("evaluate.every", run.evaluate.every)):  # fmt: skip
            if value:
                raise InputError(
                    f"sample.guidance.auto is set, but what training draws has no weaker "
                    f"network; set {field}=0, or give sample.guidance.auto when sampling"
                )
        return
    if spec.words is not None:
        empty = not guidance.negated or guidance.negative == ""
        if guidance.scale != 1 and empty and run.task.caption_drop == 0:
            raise InputError(
                f"sample.guidance.scale is {guidance.scale}, but task.caption_drop is 0, so no "
                f"answer without a caption is ever learnt; set task.caption_drop=0.1 or the scale "
                f"to 1"
            )
        return
    if guidance.scale != 1 and not spec.classes:
        raise InputError(
            f"sample.guidance.scale is {guidance.scale}, but the data have no classes; set it to 1"
        )
    if guidance.negated:
        label_number(guidance.negative, spec.classes, "sample.guidance.negative")
    elif guidance.scale != 1 and run.task.label_drop == 0:
        raise InputError(
            f"sample.guidance.scale is {guidance.scale}, but task.label_drop is 0, so no "
            f"unlabelled answer is ever learnt; set task.label_drop=0.1 or the scale to 1"
        )


def check_some_places(run: Any) -> None:
    """What needs a whole grid cannot be had of some places."""
    if not run.task.places.some:
        return
    terms = ("lpips", "align", "frequency")
    whole = [f"loss.{n}.weight=0" for n in terms if getattr(run.loss, n).weight]
    if run.objective.noise_size is not None:
        whole.append("objective.noise_size=null")
    if whole:
        raise InputError(
            f"task.places.kind is {run.task.places.kind}, but {whole[0].partition('=')[0]} "
            f"is for whole grids; set {whole[0]} or task.places.kind=everywhere"
        )


def check_placed(run: Any, spec: Spec) -> None:
    """What is for pictures that fill their own grid cannot be had of crops of a field."""
    if not spec.placed:
        return
    wrong = {
        "augment.flip=false": run.augment.flip,
        "augment.geometric=0": bool(run.augment.geometric),
        "train.grid=0": run.train.grid,
        "evaluate.every=0": run.evaluate.every,
        "objective.noise_size=null": run.objective.noise_size is not None,
        "task.kind=scatter": any(task.kind == "upscale" for task in run.task.singles),
    }
    for remedy, is_set in wrong.items():
        if is_set:
            raise InputError(
                f"{remedy.partition('=')[0]} is for pictures, but the data are crops of a "
                f"field; set {remedy}"
            )


def check_buckets(run: Any, spec: Spec) -> None:
    """Model, task and losses can have pictures of every bucket's size."""
    if getattr(run.data, "buckets", None) is None:
        return
    for size in spec.buckets:
        shown, at = f"{size[0]}x{size[1]}", dataclasses.replace(spec, axes=grid_axes(size))
        try:
            with torch.device("meta"):
                run.model.build(at)
        except InputError as error:
            raise InputError(
                f"data.buckets.step is {run.data.buckets.step}, which makes a bucket of {shown}, "
                f"and model {run.model.kind} cannot have that: {str(error).partition(';')[0]}; set "
                f"data.buckets.step and data.size to multiples of what it can"
            ) from None
        try:
            run.task.check_size(size)
            run.task.places.check_size(size)
            run.loss.check(at)
        except InputError as error:
            raise InputError(f"data.buckets has pictures of {shown}, and {error}") from None


def check_code(run: Any, spec: Spec) -> None:
    """What is told of pixels cannot be had of latents."""
    if spec.code is None:
        return
    if run.task.observes:
        raise InputError(
            f"task.kind is {run.task.kind}, but the data are latents, and a known pixel is no "
            f"known latent; set task.kind=generate"
        )
    if run.augment.flip and not getattr(run.data, "flip", False):
        raise InputError(
            "augment.flip is true, but the latent of a picture turned round is not its latent "
            "turned round; set data.flip=true to encode both, or augment.flip=false"
        )
    if getattr(run.data, "flip", False) and not run.augment.flip:
        raise InputError(
            "data.flip is true, but augment.flip is false, so that what is encoded of pictures "
            "turned round is never seen; set augment.flip=true, or data.flip=false"
        )
    if run.augment.geometric:
        raise InputError(
            f"augment.geometric is {run.augment.geometric}, but the latent of a picture turned is "
            f"not its latent turned; set it to 0"
        )


def check_text(run: Any, spec: Spec) -> None:
    """Captions are there to be read, and can be."""
    if spec.words is None:
        return
    if not spec.captions and spec.fingerprint:  # without one nobody has looked
        raise InputError(
            f"text.encoder is {run.text.encoder}, but the data have no captions; put a .txt beside "
            f"each picture, or set text.encoder=none"
        )


def check_reads(run: Any, spec: Spec, takes: Takes) -> None:
    """A model that reads captions needs an encoder, and the other way round."""
    name, encoder = run.model.kind, run.text.encoder
    if spec.words is not None and not takes.text:
        raise InputError(
            f"text.encoder is {encoder}, but model {name} reads no captions; set "
            f"text.encoder=none, or another model.kind"
        )
    if spec.words is None and takes.text:
        raise InputError(
            f"text.encoder is none, but model {name} reads captions; set text.encoder=minilm, or "
            f"another model.kind"
        )


def check_tasks(run: Any) -> None:
    """What one of the tasks says, against the rest of the configuration."""
    for task in run.task.singles:
        turns = {"flip": "false", "geometric": "0"}
        for name in (name for name in turns if getattr(run.augment, name)):
            if getattr(task, "fixed", False):
                raise InputError(
                    f"task.fixed is true, but augment.{name} turns pictures under their masks, "
                    f"so that other pixels are seen; set augment.{name}={turns[name]}"
                )
        if getattr(task, "reveal", "all") == "kept" and getattr(run.model, "jitter", 0):
            raise InputError(
                "task.reveal is kept, but model.jitter takes the picture beside its cells, "
                "some of which training does not have; set model.jitter=0"
            )
        whole = [name for name in ("lpips", "align") if getattr(run.loss, name).weight]
        if getattr(task, "reveal", "all") == "kept" and whole:
            raise InputError(
                f"task.reveal is kept, but loss.{whole[0]} looks at whole pictures, of which "
                f"training has some pixels only; set loss.{whole[0]}.weight=0"
            )
