"""What every task is: it decides what the network may see, and where its answer counts."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointillist.draws import Draw
from pointillist.layers.observations import to_points
from pointillist.layers.splat import splat
from pointillist.tasks.places import EverywhereConfig, Places
from pointillist.types import Batch, Given, InputError, config


class HeldOut(NamedTuple):
    """What is shown of held-out pictures, and the places where the answer is judged."""

    given: Given
    hidden: Bool[Tensor, "b 1 *space"]


@config
class TaskBase(ABC):
    """The label is dropped (-1) in a share `label_drop` of the samples, and the caption ("") in a
    share `caption_drop`.

    Drops are what makes classifier-free guidance possible (Ho and Salimans 2207.12598). `places`
    are those at which training asks a model on sets.
    """

    label_drop: float = 0.1
    caption_drop: float = 0.1
    places: Places = EverywhereConfig()

    def __post_init__(self) -> None:
        in_unit("label_drop", self.label_drop)
        in_unit("caption_drop", self.caption_drop)

    @abstractmethod
    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        """The batch with the weight of its places, and what is given."""

    def parts(self, batch: Batch, draw: Draw) -> Iterator[tuple[Batch, Given]]:
        """The batch in parts whose observations have one form; most tasks need but one."""
        yield self(batch, draw)

    @property
    def observes(self) -> bool:
        """Whether anything but labels is ever shown."""
        return False

    @property
    def always(self) -> bool:
        """Whether something is shown in every sample, so that nothing is learnt of none."""
        return False

    @property
    def remedy(self) -> str:
        """What to train with instead, so that drawing from nothing is learnt too; of `always`."""
        return ""

    @property
    def singles(self) -> tuple["TaskBase", ...]:
        """The tasks that samples are given: itself, or the parts of a mixture."""
        return (self,)

    def expected(self, size: tuple[int, ...]) -> int:
        """How many places are shown on average, in those samples that are shown any."""
        return 0

    def most(self, size: tuple[int, ...]) -> int:
        """How many places are shown at most, which is what the memory of a batch goes by."""
        return self.expected(size)

    def check_size(self, size: tuple[int, ...]) -> None:
        """InputError where the task does not fit pictures of `size`; this one fits all."""
        return None

    def held_out(
        self, x: Float[Tensor, "b c *space"], numbers: Int[Tensor, " b"]
    ) -> HeldOut | None:
        """What is shown of held-out pictures by their numbers, the same in every run; or None."""
        return None


@config
class GenerateConfig(TaskBase):
    """Nothing is seen but the label."""

    kind: Literal["generate"] = "generate"

    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        return batch, Given(label=dropped(batch.label, self.label_drop, draw), where=batch.where)


class Revealed(NamedTuple):
    """Which places are shown, and which may be learnt from (None: all)."""

    shown: Bool[Tensor, "b 1 *space"]
    kept: Bool[Tensor, "b 1 *space"] | None = None


@config
class Masking(TaskBase):
    """Some places of a grid are shown with their clean values, the others are asked for.

    In a share `absent` of the samples nothing is shown, so that generating from nothing is learnt
    as well; an empty mask is what the sampler shows then. `weight` is how much shown places count
    in the loss: there the answer is given. The loss is the mean over all places, so each that does
    not count makes it smaller.
    """

    absent: float = 0.0
    weight: float = 0.0

    def __post_init__(self) -> None:
        TaskBase.__post_init__(self)
        in_unit("absent", self.absent)
        if self.absent == 1:
            raise InputError("task.absent is 1, so nothing is ever known; use task.kind=generate")
        if self.weight < 0:
            raise InputError(f"task.weight is {self.weight}; it must be 0 or more")

    @property
    def observes(self) -> bool:
        return True

    @property
    def always(self) -> bool:
        return not self.absent

    @property
    def remedy(self) -> str:
        return "task.absent=0.1"

    @abstractmethod
    def reveal_of(
        self, draw: Draw, size: tuple[int, ...], row: Int[Tensor, " b"] | None = None
    ) -> Revealed:
        """What is shown where nothing is left out; `row` numbers the pictures of the data."""

    def revealed(
        self, draw: Draw, size: tuple[int, ...], row: Int[Tensor, " b"] | None = None
    ) -> Revealed:
        """The same with nothing shown in a share `absent` of the samples."""
        shown, kept = self.reveal_of(draw, size, row)
        if self.absent:
            stays = draw.uniform("hint drop") >= self.absent
            shown = shown & stays.view(-1, *[1] * (1 + len(size)))
        return Revealed(shown, kept)

    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        size = tuple(batch.x.shape[2:])
        shown, kept = self.revealed(draw, size, batch.row)
        if batch.weight is not None:  # gaps and padding are no knowledge
            shown = shown & (batch.weight > 0).all(1, keepdim=True)
        weight = torch.where(shown, self.weight, 1.0)
        if kept is not None:
            weight = weight * kept
            batch = batch._replace(x=stand_in(batch.x, kept, shown))
        weight = weight if batch.weight is None else weight * batch.weight
        label = dropped(batch.label, self.label_drop, draw)
        given = show(Given(label=label), batch.x, shown, batch.where)
        return batch._replace(weight=weight), given

    def held_out(
        self, x: Float[Tensor, "b c *space"], numbers: Int[Tensor, " b"]
    ) -> HeldOut | None:
        shown = self.reveal_of(Draw(0, numbers), tuple(x.shape[2:]), numbers).shown
        return HeldOut(show(Given(), x, shown), ~shown)


def show(
    given: Given,
    values: Tensor,
    mask: Tensor,
    where: Float[Tensor, "b k s"] | None = None,
) -> Given:
    """`given` with the values seen where the mask is true; what lies elsewhere is left out.

    Cells that have places of their own, `where`, are shown as points there.

    Training and sampling both come through here, so they cannot show it differently.
    """
    if where is not None:
        at, value, valid = to_points(values, mask, where)
        return given._replace(at=at, value=value, valid=valid[:, :1])
    return given._replace(seen=torch.where(mask, values, 0), mask=mask)


def stand_in(
    x: Float[Tensor, "b c *space"],
    kept: Bool[Tensor, "b 1 *space"],
    shown: Bool[Tensor, "b 1 *space"],
) -> Float[Tensor, "b c *space"]:
    """A picture of the kept places alone; elsewhere what is shown, by normalised convolution.

    What is not kept may be seen in no form, not even as noise on its value. The network is shown
    noise on this instead, and its answer there does not count. Of the places that are asked for
    nothing may enter: noised again beside them, they would be told twice.
    """
    fill = splat(torch.where(shown, x, 0), shown.to(x.dtype)).filled
    return torch.where(kept, x, fill)


def dropped(label: Tensor | None, share: float, draw: Draw) -> Tensor | None:
    """Labels, -1 in a share of the samples."""
    if label is None or not share:
        return label
    return torch.where(draw.uniform("label drop") < share, -1, label)


def said(captions: tuple[tuple[str, ...], ...] | None, share: float, draw: Draw) -> tuple[str, ...]:
    """One caption of each sample's own, drawn evenly; "" in a share, and where it has none."""
    count = draw.index.shape[0]
    drops = (draw.uniform("caption drop") < share).tolist()
    number = torch.tensor([len(some) for some in captions or ((),) * count])
    which = ((draw.bits("caption").cpu() * number) >> 32).tolist()
    return tuple(
        "" if drop or not some else some[i]
        for some, drop, i in zip(captions or ((),) * count, drops, which, strict=True)
    )


def in_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"task.{name} is {value}; it lies in [0, 1]")


Range = float | tuple[float, float]


def ends(value: Range) -> tuple[float, float]:
    """The smallest and the largest of a range, or one number twice."""
    return value if isinstance(value, tuple) else (value, value)


def middle(value: Range) -> float:
    """The mean of a number drawn from the range."""
    return sum(ends(value)) / 2


def share_of(value: Range, draw: Draw, purpose: str) -> Float[Tensor, " b"]:
    """The number, or one drawn evenly from the range for every sample."""
    low, high = ends(value)
    return low + (high - low) * draw.uniform(purpose)


def check_range(name: str, value: Range, above: bool = False) -> None:
    """InputError unless the range rises and lies in [0, 1]; `above`: in (0, 1]."""
    low, high = ends(value)
    if not 0 <= low <= high <= 1 or (above and not low):
        shown = low if low == high else list(ends(value))
        bracket = "(" if above else "["
        raise InputError(f"task.{name} is {shown}; it lies in {bracket}0, 1], a range rises")


def first_of(
    order: Int[Tensor, "b k"], count: Int[Tensor, " b"], size: tuple[int, ...]
) -> Bool[Tensor, "b 1 *space"]:
    """The first `count` cells of every sample's own order, as a mask of the grid."""
    rank = torch.argsort(order, 1)
    return (rank < count[:, None]).view(-1, 1, *size)
