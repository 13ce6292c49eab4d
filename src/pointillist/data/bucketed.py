"""A collection in buckets: every picture at the size of the bucket of the nearest aspect ratio.

Each bucket is a plain source of pictures of one size; rows are numbered from bucket to bucket.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from pointillist.data.buckets import Bucket, Shape, bucket_of, nearest, numbered
from pointillist.data.decode import too_small
from pointillist.data.reading import Files, Item, Lazy, each, load
from pointillist.data.report import Refused
from pointillist.data.source import InMemory, Rows, Source
from pointillist.types import InputError, Spec


def sort_out(config: Any, items: Sequence[Item]) -> tuple[Any, list[Item], list[Refused]]:
    """The configuration that decodes pictures in buckets, the pictures with the sizes of these, and
    those that fit into none, are too small for theirs or have no readable head.
    """
    shapes = config.buckets.shapes(config.grid)

    def size_of(item: Item) -> Shape:
        shape = config.shape(item)
        size = bucket_of(shape, shapes)
        if not config.enlarge:
            too_small(shape, size)
        return size

    found, refused = [], []
    for item, size in zip(items, each(size_of, items), strict=True):
        if isinstance(size, InputError):
            refused.append(Refused(item.file, str(size)))
        else:
            found.append(item._replace(size=size))
    # What is too small was told above; what a merger then moves into another bucket is enlarged.
    return dataclasses.replace(config, enlarge=True), found, refused


def open_buckets(
    config: Any,
    choices: Sequence[Sequence[Item]],
    spec: Spec,
    refused: Sequence[Refused],
    in_memory: bool,
) -> "Buckets":
    """The first of several lists of pictures of which one can be used, in buckets."""
    lost: list[Refused] = []
    for items in choices:
        files, found, lost = sort_out(config, items)
        parts: dict[Shape, Part] = {}
        for size in sorted({item.size for item in found if item.size}):
            some = [item for item in found if item.size == size]
            part = Part.of(files, some, spec, in_memory)
            if isinstance(part, Part):
                parts[size] = part
            else:
                lost += part
        if parts:
            return Buckets(config, files, parts, spec, (*refused, *lost))
    raise InputError(
        f"none of the {len(choices[-1])} pictures in data.path {config.path} can be used; the "
        f"first is {lost[0].file}, {lost[0].reason}"
    )


@dataclasses.dataclass
class Part:
    """One bucket: its pictures, and the source that has them, row by row."""

    source: InMemory | Lazy
    items: list[Item]

    @classmethod
    def of(
        cls, files: Files, items: Sequence[Item], spec: Spec, in_memory: bool
    ) -> "Part | list[Refused]":
        """Of pictures of one size; where none of them can be read, why."""
        if in_memory:
            source, good = load(files, items, spec)
            if source is None:
                reasons = zip(items, each(files.decode, items), strict=True)
                return [Refused(item.file, str(why)) for item, why in reasons]
            return cls(source, good)
        lazy = Lazy(files, items, spec)
        return cls(lazy, lazy.items)


class Buckets:
    """The set: rows of a call are of one bucket, and come at its size."""

    def __init__(
        self,
        config: Any,
        files: Files,
        parts: dict[Shape, Part],
        spec: Spec,
        refused: Sequence[Refused],
        buckets: Sequence[Bucket] | None = None,
    ) -> None:
        self.config, self.files, self.parts = config, files, parts
        sizes = {size: len(part.items) for size, part in parts.items()}
        self.buckets = numbered(sizes) if buckets is None else tuple(buckets)
        self.policy = config.buckets.policy
        self.in_memory = all(part.source.in_memory for part in parts.values())
        self.refused = (
            *refused, *(one for part in parts.values() for one in part.source.refused)
        )  # fmt: skip
        n = sum(sizes.values())
        self.home = torch.empty(n, 2, dtype=torch.long)  # bucket, and place in it
        for number, bucket in enumerate(self.buckets):
            self.home[bucket.rows, 0] = number
            self.home[bucket.rows, 1] = torch.arange(bucket.rows.shape[0])
        digest = hashlib.blake2b(digest_size=16)
        for size in sorted(parts):
            digest.update(f"{size} {parts[size].source.spec.fingerprint}\n".encode())
        self.spec = dataclasses.replace(
            spec, samples=n, fingerprint=digest.hexdigest(), buckets=tuple(sorted(parts))
        )

    def __len__(self) -> int:
        return self.home.shape[0]

    @property
    def caption(self) -> tuple[tuple[str, ...], ...] | None:
        """Every caption of every picture, without decoding one; None where none has any."""
        rows = range(len(self))
        return tuple(self.item(row).captions for row in rows) if self.spec.captions else None

    def rows(self, rows: Sequence[int]) -> Rows:
        homes = self.home[torch.as_tensor(rows, dtype=torch.long)]
        number = int(homes[0, 0])
        assert (homes[:, 0] == number).all(), "rows of several buckets have several sizes"
        size, places = self.buckets[number].size, homes[:, 1].tolist()
        source = self.parts[size].source
        try:
            return source.rows(places)
        except InputError as error:
            if source.in_memory or len(self.parts) == 1:
                raise
            lost = tuple(Refused(item.file, str(error)) for item in self.parts[size].items)
        # Not one of the bucket can be read: those of the nearest give way, at this one's size.
        other = nearest(size, self.parts.keys() - {size})
        items = [item._replace(size=size) for item in self.parts[other].items]
        found = Lazy(self.files, items, self.spec).rows([place % len(items) for place in places])
        return found._replace(refused=(*lost, *found.refused))

    def at(self, buckets: Sequence[Bucket]) -> "Buckets":
        """The same rows in these buckets: pictures that have moved are decoded anew."""
        own = {bucket.size: bucket.rows.tolist() for bucket in self.buckets}
        parts = {}
        for size, rows in buckets:
            if rows.tolist() == own.get(size):
                parts[size] = self.parts[size]
                continue
            moved = [self.item(row)._replace(size=size) for row in rows.tolist()]
            part = Part.of(self.files, moved, self.spec, self.in_memory)
            if not isinstance(part, Part) or len(part.items) < len(moved):
                lost = part if not isinstance(part, Part) else part.source.refused
                raise InputError(
                    f"{lost[0].file} in data.path {self.config.path} could be read before and now "
                    f"cannot: {lost[0].reason}; bring it back"
                )
            parts[size] = part
        if all(parts[size] is self.parts.get(size) for size in parts):
            return self
        made = Buckets(self.config, self.files, parts, self.spec, (), buckets)
        made.spec, made.refused = self.spec, self.refused
        return made

    def nominal(self) -> Source:
        """The same pictures as if there were no buckets: all of data.size, decoded one by one.

        Such as are too small for that give way to others, as unreadable ones do.
        """
        plain = dataclasses.replace(self.config, buckets=None)
        items = [self.item(row)._replace(size=None) for row in range(len(self))]
        return Lazy(plain, items, dataclasses.replace(self.spec, buckets=()))

    def item(self, row: int) -> Item:
        number, place = self.home[row].tolist()
        return self.parts[self.buckets[number].size].items[place]
