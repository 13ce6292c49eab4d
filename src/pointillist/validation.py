"""How well a network denoises data it was not trained on, at fixed times and noise."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointillist.data.loader import to_batch
from pointillist.data.report import Refused
from pointillist.data.source import Source
from pointillist.draws import Draw
from pointillist.models import Network
from pointillist.objective import Interpolant
from pointillist.tasks import HintsConfig, show
from pointillist.types import Estimate, Given, InputError, State

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def held_out(
    source: Source, count: int, refused: Callable[[Refused], None] | None = None
) -> tuple[Tensor, Tensor | None]:
    """The first `count` samples in the network's units, and their labels.

    `refused` hears of every file that could not be read and gave way to another.
    """
    rows = source.rows(range(min(count, len(source))))
    if refused is not None:
        for file in rows.refused:
            refused(file)
    batch = to_batch(rows, torch.arange(rows.x.shape[0]), source.spec)
    return batch.x, batch.label


def validation_noise(
    objective: Interpolant, index: Int[Tensor, " b"], size: tuple[int, ...]
) -> State:
    """Noise that belongs to the number of the held-out sample, the same in every run."""
    return objective.noise(Draw(0, index), size, "validation")


def held_out_hints(task: HintsConfig, x: State) -> Bool[Tensor, "b 1 *space"]:
    """Which pixels of held-out pictures are known, the same in every run with that task."""
    return task.mask(Draw(0, torch.arange(x.shape[0])), tuple(x.shape[2:]), absent=False)


def velocity_loss(*asked: Any, **more: Any) -> list[float]:
    """The mean over pictures of `velocity_losses`, one number a time."""
    return velocity_losses(*asked, **more).mean(1).tolist()


@torch.no_grad()
def velocity_losses(
    network: Network,
    objective: Interpolant,
    x: Tensor,
    label: Tensor | None,
    times: Sequence[float] = TIMES,
    batch: int = 256,
    known: Bool[Tensor, "b 1 *space"] | None = None,
) -> Float[Tensor, "t b"]:
    """Squared error of the velocity at each time and of each picture, whose noise is fixed.

    The clamp of the loss is left out, so the figure compares with any other denoiser's. Where
    pixels are `known` the network sees them, and the error is that of the others: of each picture
    over the mean number of them, so that the mean of all pictures is that of all hidden places.
    """
    total, places = torch.zeros(len(times), x.shape[0], dtype=torch.float64), 0
    for first in range(0, x.shape[0], batch):
        part = x[first : first + batch].to(network.device)
        index = torch.arange(first, first + part.shape[0])
        eps = validation_noise(objective, index, tuple(part.shape[1:])).to(part.device)
        given = Given(label=None if label is None else label[index].to(part.device))
        hidden = torch.ones_like(part[:, :1], dtype=torch.bool)
        if known is not None:
            hidden = ~known[index].to(part.device)
            given = show(given, part, ~hidden)
        places += int(hidden.sum())
        for i, time in enumerate(times):
            t = torch.full((part.shape[0],), time, device=part.device)
            xt = objective.mix(part, eps, t)
            answer = network(*objective.see(xt, t), given).value.float()
            found = objective.velocity(objective.read(answer, xt, t, clamp=0.0), t)
            error = found - objective.velocity(Estimate(part, eps), t)
            square = error.double().square().mean(1, keepdim=True) * hidden
            total[i, index] = square.flatten(1).sum(1).cpu()
    if not places:
        raise InputError("every pixel of the held-out pictures is known; leave some hidden")
    return total / (places / x.shape[0])
