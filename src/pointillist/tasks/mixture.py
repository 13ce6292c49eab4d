"""Upscaling, and tasks mixed: batches whose samples differ in the form of what is seen."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointillist.draws import Draw
from pointillist.layers.observations import regrid
from pointillist.resolution import box_means
from pointillist.tasks.inpaint import InpaintConfig
from pointillist.tasks.scatter import HintsConfig, ScatterConfig
from pointillist.tasks.task import GenerateConfig, HeldOut, Masking, TaskBase, dropped
from pointillist.types import Batch, Given, InputError, by_kind, config


@config
class UpscaleConfig(TaskBase):
    """The picture on a coarser grid is seen whole: each of its pixels is the mean of a box.

    `factors` are the edges of that box, of which every sample draws one.
    """

    kind: Literal["upscale"] = "upscale"
    factors: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        TaskBase.__post_init__(self)
        if not self.factors or len(set(self.factors)) < len(self.factors):
            raise InputError(f"task.factors is {list(self.factors)}; give one or more, each once")
        if min(self.factors) < 2:
            raise InputError(f"task.factors is {list(self.factors)}; a factor is 2 or more")

    @property
    def observes(self) -> bool:
        return True

    @property
    def always(self) -> bool:
        return True

    @property
    def remedy(self) -> str:
        return "a task.kind=mixture that holds {kind: upscale} and {kind: generate}"

    def expected(self, size: tuple[int, ...]) -> int:
        coarse = [math.prod(size) // factor ** len(size) for factor in self.factors]
        return sum(coarse) // len(coarse)

    def check_size(self, size: tuple[int, ...]) -> None:
        """InputError where a factor does not divide the picture."""
        for factor in self.factors:
            if any(n % factor for n in size):
                raise InputError(
                    f"task.factors has {factor}, which does not divide pictures of "
                    f"{'x'.join(map(str, size))}; give factors that do"
                )

    def most(self, size: tuple[int, ...]) -> int:
        return math.prod(size) // min(self.factors) ** len(size)

    def coarse(
        self,
        x: Float[Tensor, "b c *space"],
        factor: int,
        weight: Float[Tensor, "b _ *space"] | None = None,
    ) -> Given:
        """What is seen: means of boxes, over what has a weight; a box without any is not known."""
        if weight is None:
            seen = box_means(x, factor)
            return Given(seen=seen, mask=torch.ones_like(seen[:, :1], dtype=torch.bool))
        size = tuple(n // factor for n in x.shape[2:])
        some = (weight > 0).all(1, keepdim=True).to(x.dtype)
        seen, density = regrid(x, some, size)
        return Given(seen=seen, mask=density > 0)

    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        given = self.coarse(batch.x, self.factors[0], batch.weight)
        return batch, given._replace(label=dropped(batch.label, self.label_drop, draw))

    def parts(self, batch: Batch, draw: Draw) -> Iterator[tuple[Batch, Given]]:
        which = draw.below("factor", len(self.factors))
        for i, factor in enumerate(self.factors):
            some = (which == i).nonzero().flatten()
            if some.numel():
                one = UpscaleConfig(label_drop=self.label_drop, factors=(factor,))
                yield one(rows(batch, some), draw._replace(index=draw.index[some]))

    def held_out(
        self, x: Float[Tensor, "b c *space"], numbers: Int[Tensor, " b"]
    ) -> HeldOut | None:
        return HeldOut(self.coarse(x, self.factors[0]), torch.ones_like(x[:, :1]).bool())


def rows(batch: Batch, some: Int[Tensor, " k"]) -> Batch:
    """Some samples of a batch, by their place in it."""
    parts: Any = [v[some] if isinstance(v, Tensor) else v for v in batch]
    taken = Batch(*parts)
    if batch.caption is None:
        return taken
    return taken._replace(caption=tuple(batch.caption[i] for i in some.tolist()))


Single = Annotated[
    GenerateConfig | HintsConfig | ScatterConfig | InpaintConfig | UpscaleConfig, by_kind
]


@config
class MixtureConfig(TaskBase):
    """Every sample draws one of several tasks; `weights` are their shares (none: all alike).

    `label_drop` and `caption_drop` are those of all of them. Held-out pictures are shown as the
    first task that shows anything does it.
    """

    kind: Literal["mixture"] = "mixture"
    tasks: tuple[Single, ...] = (GenerateConfig(), ScatterConfig())
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        TaskBase.__post_init__(self)
        if len(self.tasks) < 2:
            raise InputError(
                f"task.tasks holds {len(self.tasks)} task; a mixture takes two or more"
            )
        for i, task in enumerate(self.tasks):
            for name in ("label_drop", "caption_drop"):
                value = getattr(task, name)
                if value != getattr(GenerateConfig(), name):
                    raise InputError(
                        f"task.tasks.{i}.{name} is {value:g}; in a mixture set task.{name}, which "
                        f"is that of all tasks"
                    )
            if task.places.some:
                raise InputError(
                    f"task.tasks.{i}.places.kind is {task.places.kind}; in a mixture set "
                    f"task.places, which are those of all tasks"
                )
        if self.weights and len(self.weights) != len(self.tasks):
            raise InputError(
                f"task.weights has {len(self.weights)} numbers for {len(self.tasks)} tasks; give "
                f"one for each"
            )
        if not all(weight > 0 for weight in self.weights):
            raise InputError(f"task.weights is {list(self.weights)}; a weight is above 0")

    @property
    def observes(self) -> bool:
        return any(task.observes for task in self.tasks)

    @property
    def always(self) -> bool:
        return all(task.always for task in self.tasks)

    @property
    def remedy(self) -> str:
        drops = next((task.kind for task in self.tasks if isinstance(task, Masking)), None)
        absent = f"absent: 0.1 of the task {drops}, or " if drops else ""
        return f"{absent}{{kind: generate}} among task.tasks"

    @property
    def singles(self) -> tuple[TaskBase, ...]:
        return self.tasks

    def expected(self, size: tuple[int, ...]) -> int:
        return max(task.expected(size) for task in self.tasks)

    def most(self, size: tuple[int, ...]) -> int:
        return max(task.most(size) for task in self.tasks)

    def check_size(self, size: tuple[int, ...]) -> None:
        """InputError where one of the tasks does not fit pictures of `size`."""
        for task in self.tasks:
            task.check_size(size)

    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        raise InputError("a mixture gives a batch in parts; ask for those")

    def parts(self, batch: Batch, draw: Draw) -> Iterator[tuple[Batch, Given]]:
        weights = torch.tensor(self.weights or (1.0,) * len(self.tasks), dtype=torch.float64)
        bounds = (weights.cumsum(0) / weights.sum())[:-1].float().to(draw.index.device)
        which = torch.bucketize(draw.uniform("task"), bounds, right=True)
        for i, task in enumerate(self.tasks):
            some = (which == i).nonzero().flatten()
            if some.numel():
                task = dataclasses.replace(task, label_drop=self.label_drop)
                yield from task.parts(rows(batch, some), draw._replace(index=draw.index[some]))

    def held_out(
        self, x: Float[Tensor, "b c *space"], numbers: Int[Tensor, " b"]
    ) -> HeldOut | None:
        shows = next((task for task in self.tasks if task.observes), None)
        return None if shows is None else shows.held_out(x, numbers)
