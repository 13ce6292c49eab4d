"""What every data set offers, whatever it is made from."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pointillist.data.buckets import Bucket, Policy
from pointillist.data.report import Refused
from pointillist.types import Spec


class Rows(NamedTuple):
    """Raw rows of a data set. `x` is uint8 or float32, `b c *space`, in stored values."""

    x: Tensor
    label: Tensor | None  # int64, " b"; -1 where a sample has none
    caption: tuple[tuple[str, ...], ...] | None  # every caption of every sample; () where none
    refused: tuple[Refused, ...] = ()  # files that were to be read, and another took their place
    row: Tensor | None = None  # the numbers that were asked for, where the reader adds them
    where: Tensor | None = None  # "b k s" in [-1, 1], of samples that lie somewhere in a field
    weight: Tensor | None = None  # "b 1 *space", 0 where `x` is missing and may be NaN
    spread: Tensor | None = None  # as `x`: a sample is drawn from a normal about it, this deviation
    mirrored: Tensor | None = None  # as `x`: the samples turned round, where turning `x` is not it
    mirrored_spread: Tensor | None = None


@runtime_checkable
class Source(Protocol):
    """A finite, ordered set of samples. Objects are picklable, so that workers can be spawned."""

    spec: Spec
    in_memory: bool  # True: `rows` costs nothing and needs no worker
    refused: tuple[Refused, ...]  # files found unusable when the set was opened

    def __len__(self) -> int: ...

    def rows(self, rows: Sequence[int]) -> Rows:
        """The rows asked for, in the order asked; raises IndexError past the end."""
        ...


@runtime_checkable
class Bucketed(Source, Protocol):
    """A set whose pictures have the sizes of their buckets; `rows` are of one bucket at a time."""

    buckets: tuple[Bucket, ...]  # every row is in one of them
    policy: Policy

    def at(self, buckets: Sequence[Bucket]) -> "Bucketed":
        """The same rows in these buckets, whose sizes are some of its own."""
        ...

    def nominal(self) -> Source:
        """The same pictures as if there were no buckets: all of data.size."""
        ...


class InMemory:
    """A small set held whole, as uint8 (or float32) tensors."""

    in_memory = True

    def __init__(
        self,
        x: Tensor | np.ndarray,
        spec: Spec,
        label: Tensor | np.ndarray | None = None,
        caption: Sequence[tuple[str, ...]] | None = None,
        refused: tuple[Refused, ...] = (),
    ) -> None:
        self.x = torch.as_tensor(x)
        self.spec, self.refused = spec, refused
        self.label = None if label is None else torch.as_tensor(label).long()
        self.caption = None if caption is None else tuple(caption)

    def __len__(self) -> int:
        return self.x.shape[0]

    def rows(self, rows: Sequence[int]) -> Rows:
        at = torch.as_tensor(rows, dtype=torch.long)
        label = None if self.label is None else self.label[at]
        caption = None if self.caption is None else tuple(self.caption[i] for i in at.tolist())
        return Rows(self.x[at], label, caption)
