"""How well a network denoises data it was not trained on, at fixed times and noise."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointillist.data.loader import to_batch
from pointillist.data.report import Refused
from pointillist.data.source import Bucketed, Source
from pointillist.data.words import Shelf
from pointillist.draws import Draw
from pointillist.models import Network
from pointillist.objective import Interpolant
from pointillist.tasks import HeldOut, TaskBase, show
from pointillist.types import Batch, Estimate, Given, InputError, State

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def held_out(
    source: Source, count: int, refused: Callable[[Refused], None] | None = None, first: int = 0
) -> tuple[Tensor, Tensor | None]:
    """`count` samples from the `first` on in the network's units, and their labels.

    `refused` hears of every file that could not be read and gave way to another.
    """
    batch = held_out_batch(source, count, refused, first)
    return batch.x, batch.label


def held_out_batch(
    source: Source, count: int, refused: Callable[[Refused], None] | None = None, first: int = 0
) -> Batch:
    """The same with the places of their cells and the weight of these, where they have any.

    Pictures in buckets come at data.size, as if there were none.
    """
    source = source.nominal() if isinstance(source, Bucketed) else source
    rows = source.rows(range(first, min(first + count, len(source))))
    if refused is not None:
        for file in rows.refused:
            refused(file)
    return to_batch(rows, torch.arange(rows.x.shape[0]), source.spec)


def held_out_batches(
    source: Source, count: int, refused: Callable[[Refused], None] | None = None
) -> list[Batch]:
    """`count` samples as batches of one shape each, numbered by their rows.

    They are the first, and of a set in buckets spread evenly over all of it, each at the size of
    its bucket.
    """
    if not isinstance(source, Bucketed):
        return [held_out_batch(source, count, refused)]
    count, found = min(count, len(source)), []
    chosen = torch.arange(count) * len(source) // count
    for bucket in source.buckets:
        numbers = chosen[torch.isin(chosen, bucket.rows)]
        if not numbers.shape[0]:
            continue
        rows = source.rows(numbers.tolist())
        if refused is not None:
            for file in rows.refused:
                refused(file)
        found.append(to_batch(rows, numbers, source.spec))
    return found


def at_places(batch: Batch, task: TaskBase | None) -> HeldOut:
    """What is known of crops of a field where they lie, and the hidden places that are no gaps.

    Without a task nothing is shown.
    """
    assert batch.where is not None and batch.weight is not None
    known, given = batch.weight > 0, Given(where=batch.where)
    if task is None:
        return HeldOut(given, known)
    hidden = held_out_observed(task, batch.x, batch.index).hidden & known
    return HeldOut(show(given, batch.x, known & ~hidden, batch.where), hidden)


def validation_noise(
    objective: Interpolant,
    index: Int[Tensor, " b"],
    size: tuple[int, ...],
    where: Float[Tensor, "b k s"] | None = None,
) -> State:
    """Noise that belongs to the number of the held-out sample, the same in every run."""
    return objective.noise(Draw(0, index), size, "validation", where)


def held_out_observed(
    task: TaskBase, x: State, numbers: Int[Tensor, " b"] | None = None
) -> HeldOut:
    """What is known of held-out pictures by their numbers (None: from 0 on), the same in every run
    with that task.
    """
    found = task.held_out(x, torch.arange(x.shape[0]) if numbers is None else numbers)
    assert found is not None, "the task shows something"
    return found


class Text(NamedTuple):
    """What the captions of held-out pictures say, by their numbers."""

    shelf: Shelf
    captions: Sequence[str]

    def into(self, given: Given, index: Int[Tensor, " b"]) -> Given:
        """`given` with what those of `index` say."""
        return self.shelf([self.captions[i] for i in index.tolist()]).into(given)


class Errors(NamedTuple):
    """Squared errors of every picture summed over the places that count, at each time."""

    squares: Float[Tensor, "t b"]
    places: Int[Tensor, " b"]

    def losses(self) -> Float[Tensor, "t b"]:
        """Of each picture over the mean number of places, so that their mean is that of all."""
        if not self.places.any():
            raise InputError("every pixel of the held-out pictures is known; leave some hidden")
        return self.squares / self.places.double().mean()

    @classmethod
    def joined(cls, parts: Sequence["Errors"]) -> "Errors":
        """Of all pictures of several batches."""
        squares, places = zip(*parts, strict=True)
        return cls(torch.cat(squares, 1), torch.cat(places))


def velocity_loss(*asked: Any, **more: Any) -> list[float]:
    """The mean of `velocity_errors` over pictures and places, one number a time."""
    return velocity_errors(*asked, **more).losses().mean(1).tolist()


@torch.no_grad()
def velocity_errors(
    network: Network,
    objective: Interpolant,
    x: Tensor,
    label: Tensor | None,
    times: Sequence[float] = TIMES,
    batch: int = 256,
    observed: HeldOut | None = None,
    numbers: Int[Tensor, " b"] | None = None,
    text: Text | None = None,
) -> Errors:
    """Errors of the velocity, whose noise is fixed by the numbers of the pictures (None: from 0).

    The clamp of the loss is left out, so the figure compares with any other denoiser's. What is
    `observed` the network sees, and the error is that of the hidden places.
    """
    squares = torch.zeros(len(times), x.shape[0], dtype=torch.float64)
    places = torch.zeros(x.shape[0], dtype=torch.long)
    for index in torch.arange(x.shape[0]).split(batch):
        part = x[index].to(network.device)
        given = Given(label=None if label is None else label[index].to(part.device))
        hidden = torch.ones_like(part[:, :1], dtype=torch.bool)
        if observed is not None:
            hidden = observed.hidden[index].to(part.device)
            shown = (v[index].to(part.device) if isinstance(v, Tensor) else v
                     for v in observed.given)  # fmt: skip
            given = Given(*shown)._replace(label=given.label)
        if text is not None:
            given = text.into(given, index)
        shape, own = tuple(part.shape[1:]), index if numbers is None else numbers[index]
        eps = validation_noise(objective, own, shape, given.where).to(part.device)
        # Encoded once for all times.
        context = network.condition(given, tuple(part.shape[2:]))
        places[index] = hidden.flatten(1).sum(1).cpu()
        for i, time in enumerate(times):
            t = torch.full((part.shape[0],), time, device=part.device)
            xt = objective.mix(part, eps, t)
            answer = network(*objective.see(xt, t), given, context).value.float()
            found = objective.velocity(objective.read(answer, xt, t, clamp=0.0), t)
            error = found - objective.velocity(Estimate(part, eps), t)
            square = error.double().square().mean(1, keepdim=True) * hidden
            squares[i, index] = square.flatten(1).sum(1).cpu()
    return Errors(squares, places)
