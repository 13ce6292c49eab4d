"""Buckets of aspect ratio: shapes of about one area, which picture goes where, an epoch's batches.

A batch holds pictures of one bucket, so that none is stretched and few are cropped by much. The
plan of an epoch is a list of such batches, a function of the seed, the epoch and the buckets alone.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from pointillist.draws import permutation
from pointillist.types import InputError, config

Shape = tuple[int, int]  # height and width
Policy = Literal["repeat", "small", "merge", "drop"]

BEYOND = 1.5  # how much longer than the longest bucket a picture may be: two thirds of it stay


@config
class BucketsConfig:
    """Shapes have edges from `smallest` to `largest` in steps of `step`, and the area of data.size,
    as nearly as the step lets them.

    `policy` is what becomes of the pictures of a bucket that fill no batch: `repeat` fills the
    batch up with repeats that do not count, `small` leaves it smaller, `drop` leaves other pictures
    out in every epoch. `merge` first moves the pictures of a bucket that holds less than one batch
    into the nearest other bucket, then repeats.
    """

    smallest: int = 256
    largest: int = 1024
    step: int = 64
    policy: Policy = "repeat"

    def __post_init__(self) -> None:
        if self.step < 1:
            raise InputError(f"data.buckets.step is {self.step}; it must be 1 or more")
        for name in ("smallest", "largest"):
            edge = getattr(self, name)
            if edge < 1 or edge % self.step:
                raise InputError(
                    f"data.buckets.{name} is {edge}; it is a multiple of data.buckets.step, "
                    f"{self.step}"
                )
        if self.smallest > self.largest:
            raise InputError(
                f"data.buckets.smallest is {self.smallest}, above data.buckets.largest, "
                f"{self.largest}; swap them"
            )

    def check(self, size: Shape) -> None:
        """InputError where pictures of data.size fall into no bucket."""
        if any(n % self.step or not self.smallest <= n <= self.largest for n in size):
            raise InputError(
                f"data.size is {_times(size)}, but edges of data.buckets are multiples of "
                f"{self.step} from {self.smallest} to {self.largest}; set data.size, or "
                f"data.buckets.smallest, largest and step, so that they agree"
            )

    def shapes(self, size: Shape) -> tuple[Shape, ...]:
        """All shapes of about the area of `size`, which is one of them, from tall to wide."""
        found = {size}
        for edge in range(self.smallest, self.largest + 1, self.step):
            other = self.step * round(size[0] * size[1] / edge / self.step)
            if self.smallest <= other <= self.largest:
                found |= {(edge, other), (other, edge)}
        return tuple(sorted(found, key=lambda shape: (shape[1] / shape[0], shape)))


def stretch(a: Shape, b: Shape) -> float:
    """How many times longer one is than the other, 1 or more: the exponential of |log a - log b| of
    their aspect ratios, exactly equal where these are equally far apart.
    """
    p, q = a[1] * b[0], a[0] * b[1]
    return max(p, q) / min(p, q)


def nearest(shape: Shape, shapes: Iterable[Shape]) -> Shape:
    """The one of the nearest aspect ratio; of two the taller."""
    return min(shapes, key=lambda one: (stretch(shape, one), one[1] / one[0]))


@functools.lru_cache(65_536)
def bucket_of(shape: Shape, shapes: tuple[Shape, ...]) -> Shape:
    """The bucket of a picture of that shape; InputError where it is far longer than all of them."""
    found = nearest(shape, shapes)
    (h, w), tall, wide = shape, shapes[0], shapes[-1]
    if (found == tall and w * tall[0] < h * tall[1]) or (
        found == wide and w * wide[0] > h * wide[1]
    ):
        if stretch(shape, found) > BEYOND:
            raise InputError(
                f"aspect ratio: {h}x{w} is outside of data.buckets, which go from {_times(tall)} "
                f"to {_times(wide)}; cut it, or set smallest and largest further apart"
            )
    return found


class Bucket(NamedTuple):
    """Pictures that are shown at one size: their row numbers in the set, rising."""

    size: Shape
    rows: Int[Tensor, " n"]


def merged(buckets: Sequence[Bucket], least: int) -> tuple[Bucket, ...]:
    """The buckets with no fewer than `least` pictures in each: the smallest goes into the nearest,
    until all have as many, or one is left.
    """
    found = {bucket.size: bucket.rows for bucket in buckets}
    while len(found) > 1:
        size = min(found, key=lambda one: (found[one].shape[0], one))
        if found[size].shape[0] >= least:
            break
        rows = found.pop(size)
        into = nearest(size, found)
        found[into] = torch.cat((found[into], rows)).sort().values
    return tuple(Bucket(size, found[size]) for size in sorted(found))


class Slot(NamedTuple):
    """A batch, or a rank's part of it: which rows it holds, and as which samples.

    Of the whole batch the samples `first` to `first + size - 1` count. `counts` has 0 for those
    that fill it up: repeats of others of the batch, number and all. None: all count.
    """

    first: int
    size: int
    numbers: tuple[int, ...]
    rows: tuple[int, ...]
    counts: tuple[float, ...] | None = None


class Plan:
    """The batches of every epoch of a set in buckets.

    Within a bucket rows come in the order that the epoch has for the whole set; batches are then
    shuffled. Sample number n is place n mod `used` of epoch n div `used`.
    """

    def __init__(self, buckets: Sequence[Bucket], seed: int, batch: int, policy: Policy) -> None:
        self.buckets = merged(buckets, batch) if policy == "merge" else tuple(buckets)
        self.seed, self.batch, self.policy = seed, batch, policy
        counts = [bucket.rows.shape[0] for bucket in self.buckets]
        self.rows = sum(counts)
        self.used = sum(n - n % batch for n in counts) if policy == "drop" else self.rows
        if not self.used:
            raise InputError(
                f"data.buckets.policy is drop, but no bucket holds a batch of {batch}; set it to "
                f"repeat, or train.batch to {max(counts)} or less"
            )
        self.home = torch.empty(self.rows, dtype=torch.long)
        for number, bucket in enumerate(self.buckets):
            self.home[bucket.rows] = number
        self._kept: tuple[int, list[Int[Tensor, " n"]]] = (-1, [])

    def epoch(self, number: int) -> list[Int[Tensor, " n"]]:
        """The rows of every batch, in the order of the batches; none stands there twice."""
        if self._kept[0] != number:
            found = self._split(number)
            if self.policy == "drop":
                found = [rows for rows in found if rows.shape[0] == self.batch]
            order = permutation(self.seed, number, "order of batches", len(found))
            self._kept = number, [found[i] for i in order.tolist()]
        return self._kept[1]

    def left_out(self, number: int) -> list[int]:
        """The rows that an epoch does not use."""
        if self.policy != "drop":
            return []
        short = [rows for rows in self._split(number) if rows.shape[0] < self.batch]
        return sorted(row for rows in short for row in rows.tolist())

    def _split(self, number: int) -> list[Int[Tensor, " n"]]:
        order = permutation(self.seed, number, "order", self.rows)
        home = self.home[order]
        every = (order[home == i].split(self.batch) for i in range(len(self.buckets)))
        return [rows for batches in every for rows in batches]

    def slots(self, start: int, stop: int, part: tuple[int, int] = (0, 1)) -> Iterator[Slot]:
        """Batches from sample `start` on until `stop` is reached or passed; of each the i-th of n
        parts of one length, for `part` = (i, n). InputError where none begins at `start`.
        """
        epoch = start // self.used
        first = epoch * self.used
        while first < stop:
            for rows in self.epoch(epoch):
                if start < first + rows.shape[0]:
                    if first < start:
                        raise InputError(
                            f"{start} images are not the end of a batch of data.buckets with "
                            f"train.batch {self.batch}; resume with the same, or begin anew"
                        )
                    yield self._slot(first, rows.tolist(), *part)
                first += rows.shape[0]
                if first >= stop:
                    return
            epoch += 1

    def _slot(self, first: int, rows: list[int], place: int, parts: int) -> Slot:
        size = len(rows)
        full = -(-size // parts) * parts if self.policy == "small" else self.batch
        share = full // parts
        places = range(place * share, (place + 1) * share)
        counts = tuple(float(i < size) for i in places)
        return Slot(
            first, size, tuple(first + i % size for i in places),
            tuple(rows[i % size] for i in places), None if all(counts) else counts,
        )  # fmt: skip

    def before(self, images: int) -> int:
        """The first sample of the batch that ends with sample `images` - 1."""
        start = (images - 1) // self.used * self.used
        for rows in self.epoch(start // self.used):
            if start + rows.shape[0] >= images:
                break
            start += rows.shape[0]
        return start


class Epoch(NamedTuple):
    """What one epoch makes of a set in buckets: numbers, and the names of what it leaves out."""

    batch: int
    policy: Policy
    counts: dict[Shape, int]  # of every bucket, after merging
    batches: int
    used: int
    repeats: int  # places of batches that are filled up and do not count
    left_out: tuple[str, ...]

    @property
    def short(self) -> dict[Shape, int]:
        """Buckets that hold less than a batch."""
        return {size: n for size, n in self.counts.items() if n < self.batch}


def first_epoch(
    files: Mapping[Shape, Sequence[str]], policy: Policy, batch: int, seed: int
) -> Epoch:
    """What the first epoch makes of these files, given by bucket."""
    names = [name for size in sorted(files) for name in files[size]]
    plan = Plan(numbered({size: len(some) for size, some in files.items()}), seed, batch, policy)
    slots = list(plan.slots(0, plan.used))
    filled = sum(1 for slot in slots for counts in slot.counts or () if not counts)
    return Epoch(
        batch, policy, {bucket.size: bucket.rows.shape[0] for bucket in plan.buckets},
        len(slots), plan.used, filled, tuple(names[row] for row in plan.left_out(0)),
    )  # fmt: skip


def numbered(counts: Mapping[Shape, int]) -> tuple[Bucket, ...]:
    """Buckets of so many pictures, whose rows follow one another from bucket to bucket."""
    found, first = [], 0
    for size in sorted(counts):
        found.append(Bucket(size, torch.arange(first, first + counts[size])))
        first += counts[size]
    return tuple(found)


def _times(size: Shape) -> str:
    return f"{size[0]}x{size[1]}"
