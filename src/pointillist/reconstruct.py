"""Pictures from files and back: what is known of them, what was drawn, how near it came."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.data.decode import decoded
from pointillist.data.known_pixels import read_pixels
from pointillist.engine.checkpoint import write_text
from pointillist.evaluation.judge import drawn_by
from pointillist.evaluation.restored import score_each
from pointillist.known import known_of, protocol_mask
from pointillist.layers.observations import regrid
from pointillist.layers.patch import patch_grid
from pointillist.metrics.pixel import WINDOW
from pointillist.metrics.posterior import order_for
from pointillist.picture_files import open_named, reading
from pointillist.pictures import contact_sheet, save_png
from pointillist.posterior import Posterior
from pointillist.request import ask_of, check_pixels
from pointillist.sample import Trained
from pointillist.tasks import read_mask
from pointillist.types import Given, InputError, Spec

SPREAD = 0.5  # the standard deviation that is drawn white


class Question(NamedTuple):
    """One picture to reconstruct: what is seen of it, and the picture itself where it is known."""

    name: str
    seen: Float[Tensor, "1 c h w"]
    mask: Bool[Tensor, "1 1 h w"]
    truth: Float[Tensor, "1 c h w"] | None = None
    size: tuple[int, ...] | None = None  # of the answer, where it is another one than that of seen
    repeated: int = 0  # lines of a table that told of a pixel again

    @property
    def grid(self) -> tuple[int, ...]:
        """The size of the answer."""
        return self.size or tuple(self.seen.shape[2:])

    @property
    def truth_there(self) -> Float[Tensor, "1 c h w"] | None:
        """The truth, where it has the size of the answer."""
        truth = self.truth
        return None if truth is None or tuple(truth.shape[2:]) != self.grid else truth


def read_picture(path: Path, spec: Spec) -> Float[Tensor, "1 c h w"]:
    """A picture at its own size, in [-1, 1]; InputError where the run cannot have such a one."""
    check_pixels(spec)
    if len(spec.size) != 2 or spec.channels not in (1, 3):
        raise InputError(f"{path}: the run has {spec.channels} channels on {len(spec.size)} axes, "
                         f"and pictures are grey or colour on two")  # fmt: skip
    opened = open_named(path)
    try:
        with reading(path):
            size = (opened.image.height, opened.image.width)
            found = decoded(opened, size, spec.channels, "crop", True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return torch.from_numpy(found.x)[None].float() / 127.5 - 1


def kept(path: Path, spec: Spec, share: float, index: int) -> Question:
    """A share of the picture's pixels is seen: those of the sparse protocol for its number."""
    if not 0 < share <= 1:
        raise InputError(f"--keep is {share:g}; it lies in (0, 1]")
    truth = read_picture(path, spec)
    size = tuple(truth.shape[2:])
    if not round(share * size[0] * size[1]):
        raise InputError(
            f"--keep is {share:g}, which of {size[0] * size[1]:,} pixels is none; raise it"
        )
    mask = protocol_mask(index, size, share)[None, None]
    return Question(path.stem, torch.where(mask, truth, 0), mask, truth)


def masked(path: Path, spec: Spec, mask_file: Path) -> Question:
    """The picture is seen where the mask is white."""
    truth = read_picture(path, spec)
    mask = read_mask(mask_file, tuple(truth.shape[2:]))[None, None]
    return Question(path.stem, torch.where(mask, truth, 0), mask, truth)


def pointed(table: Path, spec: Spec, size: tuple[int, ...], truth: Path | None) -> Question:
    """The pixels of a table are seen, on a picture of `size` or of the size of `truth`."""
    check_pixels(spec)
    whole = None if truth is None else read_picture(truth, spec)
    found = read_pixels(table, spec.channels, size if whole is None else tuple(whole.shape[2:]))
    assert found.given.seen is not None and found.given.mask is not None
    return Question(table.stem, found.given.seen, found.given.mask, whole, repeated=found.repeated)


def coarse(path: Path, spec: Spec) -> Question:
    """The whole picture is seen, on a grid that is coarser than the one asked for."""
    seen = read_picture(path, spec)
    return Question(path.stem, seen, torch.ones_like(seen[:, :1], dtype=torch.bool))


def answers(
    trained: Trained,
    questions: Sequence[Question],
    draws: int,
    progress: Callable[[int], None] | None = None,
    **ask: Any,
) -> Iterator[Posterior]:
    """The posterior of each question in turn; fields of `Ask` by name.

    All of them are checked before the first is drawn. Draw j of question i is a function of (seed,
    i, j).
    """
    if draws < 1:
        raise InputError(f"draws is {draws}; it is 1 or more")
    every = []
    for question in questions:
        trained.prepare(ask_of({**ask, "size": question.grid}))
        patch_grid(question.grid, getattr(trained.run.model, "patch_size", 1))
        given = Given(seen=question.seen, mask=question.mask)
        every.append(known_of(given, 1, trained.spec.channels, question.grid))
    for number, (question, known) in enumerate(zip(questions, every, strict=True)):
        yield trained.posterior(
            known, draws, first=number, size=question.grid,
            progress=progress and functools.partial(_of_all, progress, number * draws),
            **ask,
        )  # fmt: skip


def reconstruct(
    trained: Trained,
    questions: Sequence[Question],
    draws: int,
    out: Path,
    level: float | None = None,
    progress: Callable[[int], None] | None = None,
    **ask: Any,
) -> list[dict[str, Any]]:
    """Draw from the posterior of each question and write what came of it; facts, one a question.

    `OUT/` (or `OUT/NAME/` of several) gets observed.png, mean.png, std.png (white at 0.5 of the
    range [-1, 1]), draw_00.png and so on, triptych.png (observed, mean, truth or a draw), with
    `level` the ends of that interval as low.png and high.png, and facts.json with PSNR over hidden
    pixels, SSIM and CRPS where the truth is known, evaluations a draw, and how to repeat it.
    """
    names = [question.name for question in questions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two inputs are named {twice}; rename one, their results would mix")
    if level is not None and draws > 0:
        try:
            order_for(level, draws)
        except InputError as error:
            raise InputError(f"interval: {error}") from None
    made = []
    recipe = recipe_of(trained, ask)
    every = answers(trained, questions, draws, progress, **ask)
    for number, (question, post) in enumerate(zip(questions, every, strict=True)):
        folder = out if len(questions) == 1 else out / question.name
        facts: dict[str, Any] = {
            "input": question.name, "observed": int(question.mask.sum()),
            "of": question.mask.numel(), "repeated": question.repeated,
            "size": list(question.grid), "draws": draws, "out": str(folder),
        }  # fmt: skip
        facts |= judged(post, question)
        facts |= {"nfe": post.nfe, "recipe": {**recipe, "picture": number, "size": facts["size"]}}
        for name, picture in shown(post, question, level).items():
            save_png(contact_sheet(picture, columns=picture.shape[0]), folder / f"{name}.png")
        write_text(folder / "facts.json", json.dumps(facts, indent=1) + "\n")
        made.append(facts)
    return made


def recipe_of(trained: Trained, ask: dict[str, Any]) -> dict[str, Any]:
    """How to draw the same again; with the known values themselves that is all there is to it."""
    request = ask_of(ask)
    consistency = request.consistency or trained.run.sample.consistency
    return {
        **drawn_by(trained, request),
        "consistency": dataclasses.asdict(consistency),
        "noise": request.noise,
        "label": request.label,
    }


def _of_all(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def judged(post: Posterior, question: Question) -> dict[str, float]:
    """PSNR over hidden pixels, SSIM and fair CRPS against the truth, where it has that size."""
    truth = question.truth_there
    if truth is None or question.mask.all():
        return {}
    slow = ("ssim",) if min(question.grid) >= WINDOW else ()
    draws = post.draws.clamp(-1, 1)
    names = ("psnr", "psnr_whole", *slow, "crps")
    if draws.shape[0] < 2:  # one draw has no spread; its error stands for the mean's
        draws, names = draws.repeat(2, *[1] * (draws.dim() - 1)), names[:-1]
    found = score_each(draws, truth, ~question.mask, slow)
    return {name: float(found[name]) for name in names}


def shown(
    post: Posterior, question: Question, level: float | None = None
) -> dict[str, Float[Tensor, "b c h w"]]:
    """The pictures of one posterior by name; the triptych has three, the others are one each."""
    seen, density = regrid(question.seen, question.mask.float(), question.grid)
    grey = torch.where(density > 0, seen, 0)
    pictures = {"observed": grey, "mean": post.mean}
    if post.count > 1:
        pictures["std"] = post.std.mean(1, keepdim=True) / SPREAD * 2 - 1
    if level is not None:
        low, high = post.interval(level)
        pictures |= {"low": torch.as_tensor(low), "high": torch.as_tensor(high)}
    pictures |= {f"draw_{i:02d}": draw for i, draw in enumerate(post.draws)}
    last = question.truth_there
    last = post.draws[0] if last is None else last
    return pictures | {"triptych": torch.cat((grey, post.mean, last))}
