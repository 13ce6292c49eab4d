"""What is asked of a trained network, and what comes back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from pointillist.guidance import GuidanceConfig, label_number
from pointillist.types import InputError, config


@config
class Ask:
    """One request: what differs from the run's own `sample` settings is not None."""

    count: int = 16
    label: int | str | tuple[int | str, ...] | None = None
    size: tuple[int, ...] | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance: float | GuidanceConfig | None = None  # a scale, or all there is to say
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    negative: int | str | None = None
    seed: int = 0
    batch: int = 64
    dtype: str = "float32"


class Samples(NamedTuple):
    """Pictures in [-1, 1], their labels (-1: none), and network evaluations spent on each."""

    x: Tensor
    label: Tensor | None
    nfe: int


def labels_of(
    label: Any, numbers: Int[Tensor, " b"], classes: tuple[str, ...]
) -> Int[Tensor, " b"] | None:
    """A class for each picture: the one asked for, or by its number all in turn; None without."""
    count = numbers.shape[0]
    if not classes:
        if label is not None:
            raise InputError(f"label is {label}, but this model has no labels; leave it out")
        return None
    if label is None:
        return numbers % len(classes)
    wanted: Sequence[Any] = label if isinstance(label, tuple) else (label,) * count
    if len(wanted) != count:
        raise InputError(f"{len(wanted)} labels for {count} pictures; give one for each")
    return torch.tensor([label_number(one, classes) for one in wanted])
