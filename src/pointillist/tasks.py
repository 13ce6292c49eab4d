"""Tasks: what the network may see, and where its answer counts."""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import Batch, Given, InputError, by_kind, config


@config
class GenerateConfig:
    """Nothing is seen but the label, which is dropped (-1) in a share of the samples.

    The drop is what makes classifier-free guidance possible (Ho and Salimans 2207.12598).
    """

    kind: Literal["generate"] = "generate"
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        in_unit("label_drop", self.label_drop)

    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        return batch, Given(label=dropped(batch.label, self.label_drop, draw), where=batch.where)


@config
class HintsConfig:
    """A share of the pixels is known: their clean values are seen, beside the noisy state.

    `share` may be a range, from which every sample draws its own. In a share `absent` of the
    samples nothing is known, so that generating from nothing is learnt as well; an empty mask is
    what the sampler shows then. `weight` is how much known pixels count in the loss: little, for
    there the answer is given (jitmask: share 0.25, weight 0.1, absent 0). The loss is the mean over
    all pixels, so a known one with weight 0.1 adds a tenth of what a hidden one adds.
    """

    kind: Literal["hints"] = "hints"
    share: float | tuple[float, float] = 0.25
    absent: float = 0.1
    weight: float = 0.1
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.range
        if not 0 <= low <= high <= 1:
            raise InputError(f"task.share is {self.share}; it lies in [0, 1], a range rises")
        if not high:
            raise InputError("task.share is 0, so nothing is ever known; use task.kind=generate")
        if low == 1:
            raise InputError("task.share is 1, so nothing is ever hidden; set it below 1")
        for name in ("absent", "label_drop"):
            in_unit(name, getattr(self, name))
        if self.absent == 1:
            raise InputError("task.absent is 1, so nothing is ever known; use task.kind=generate")
        if self.weight < 0:
            raise InputError(f"task.weight is {self.weight}; it must be 0 or more")
        if not self.weight and high == 1:
            raise InputError(
                "task.weight is 0, so where all is known nothing would be learnt; keep task.share "
                "below 1"
            )

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest share."""
        return self.share if isinstance(self.share, tuple) else (self.share, self.share)

    @property
    def always(self) -> bool:
        """Whether no sample is without hints but by chance (which a share near 0 brings)."""
        return not self.absent

    def mask(
        self, draw: Draw, size: tuple[int, ...], absent: bool = True
    ) -> Bool[Tensor, "b 1 *space"]:
        """Which places are known, every one by a draw of its own; `absent` lets some have none."""
        low, high = self.range
        share = low + (high - low) * draw.uniform("hint share")
        if absent:
            share = torch.where(draw.uniform("hint drop") < self.absent, 0, share)
        return draw.uniform("hints", (1, *size)) < share.view(-1, *[1] * (len(size) + 1))

    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        if batch.where is not None:
            raise InputError("task.kind is hints, but the data are scattered; hints lie on grids")
        mask = self.mask(draw, tuple(batch.x.shape[2:]))
        if batch.weight is not None:  # gaps and padding are no knowledge
            mask = mask & (batch.weight > 0).all(1, keepdim=True)
        weight = torch.where(mask, self.weight, 1.0)
        weight = weight if batch.weight is None else weight * batch.weight
        label = dropped(batch.label, self.label_drop, draw)
        return batch._replace(weight=weight), show(Given(label=label), batch.x, mask)


def show(given: Given, values: Tensor, mask: Tensor) -> Given:
    """`given` with the values seen where the mask is true; what lies elsewhere is left out.

    Training and sampling both come through here, so they cannot show it differently.
    """
    return given._replace(seen=torch.where(mask, values, 0), mask=mask)


def dropped(label: Tensor | None, share: float, draw: Draw) -> Tensor | None:
    """Labels, -1 in a share of the samples."""
    if label is None or not share:
        return label
    return torch.where(draw.uniform("label drop") < share, -1, label)


def in_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"task.{name} is {value}; it lies in [0, 1]")


Task = Annotated[GenerateConfig | HintsConfig, by_kind]
