"""Pictures of a collection, decoded: all of them into memory, or row by row."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from pointillist.data.decode import Decoded, Fit
from pointillist.data.report import Refused
from pointillist.data.source import InMemory, Rows
from pointillist.picture_files import quiet
from pointillist.types import InputError, Spec

T = TypeVar("T")


class Item(NamedTuple):
    """One picture: its file inside the collection, class (-1: none), captions, split, and the size
    of its bucket (None: data.size).
    """

    file: str
    label: int
    captions: tuple[str, ...]
    split: str
    size: tuple[int, int] | None = None


@runtime_checkable
class Files(Protocol):
    """What is asked of a collection to read its pictures."""

    @property
    def path(self) -> str: ...

    @property
    def fit(self) -> Fit: ...

    @property
    def enlarge(self) -> bool: ...

    def weigh(self, item: Item) -> int: ...

    def shape(self, item: Item) -> tuple[int, int]: ...

    def decode(self, item: Item) -> Decoded: ...


def each(ask: Callable[[Item], T], items: Sequence[Item]) -> Iterator[T | InputError]:
    """What is asked of every picture in turn, or the reason against it; in threads, as decoders
    release Python's lock.

    No more than a few hundred wait to be taken, however large the set is.
    """

    def one(item: Item) -> T | InputError:
        try:
            return ask(item)
        except InputError as error:
            return error

    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(items), 256):
            yield from pool.map(one, items[first : first + 256])


def decode_all(files: Files, items: Sequence[Item]) -> Iterator[Decoded | InputError]:
    """Every picture in turn, or the reason against it."""
    return each(files.decode, items)


def load(files: Files, items: Sequence[Item], spec: Spec) -> tuple[InMemory | None, list[Item]]:
    """The readable pictures in memory, None where there is not one; and which they are."""
    found = list(decode_all(files, items))
    good = [(i, d) for i, d in zip(items, found, strict=True) if isinstance(d, Decoded)]
    refused = tuple(
        Refused(i.file, str(d))
        for i, d in zip(items, found, strict=True)
        if not isinstance(d, Decoded)
    )
    if not good:
        return None, []
    x = torch.from_numpy(np.stack([decoded.x for _, decoded in good]))
    digest = hashlib.blake2b(x.numpy().tobytes(), digest_size=16)
    digest.update(repr([(i.file, i.label, i.captions) for i, _ in good]).encode())
    spec = dataclasses.replace(spec, samples=len(good), fingerprint=digest.hexdigest())
    label = torch.tensor([item.label for item, _ in good]) if spec.classes else None
    caption = [item.captions for item, _ in good] if spec.captions else None
    return InMemory(x, spec, label, caption, refused), [item for item, _ in good]


def none_readable(files: Files, items: Sequence[Item]) -> InputError:
    """What is said where not one picture can be used."""
    why = next(decode_all(files, items[:1]))
    return InputError(
        f"none of the {len(items)} pictures in data.path {files.path} can be used; the first is "
        f"{items[0].file}, {why}"
    )


class Lazy:
    """A large set, decoded row by row; plain values only, so that workers can be spawned.

    A file that turns out to be unreadable is named in `Rows.refused`, and the next readable one
    takes its place, so that sample numbers keep their meaning.
    """

    in_memory = False

    def __init__(
        self,
        files: Files,
        items: Sequence[Item],
        spec: Spec,
        refused: Sequence[Refused] = (),
    ) -> None:
        self.files, self.items, lost = files, list[Item](), list(refused)
        # The files, and what is made of them: the same ones at another size are other data.
        made = f"{spec.channels} {spec.size} {files.fit} {files.enlarge}\n"
        digest = hashlib.blake2b(made.encode(), digest_size=16)
        for item in items:
            try:
                size = files.weigh(item)
            except OSError as error:
                lost.append(Refused(item.file, f"unreadable: {error.strerror}"))
                continue
            self.items.append(item)
            digest.update(f"{item.file} {size} {item.label} {item.captions!r}\n".encode())
        if not self.items:
            raise InputError(f"not one of the {len(items)} pictures in data.path {files.path} is "
                             f"there")  # fmt: skip
        self.refused = tuple(lost)
        self.spec = dataclasses.replace(
            spec, samples=len(self.items), fingerprint=digest.hexdigest()
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def caption(self) -> tuple[tuple[str, ...], ...] | None:
        """Every caption of every picture, without decoding one; None where none has any."""
        return tuple(item.captions for item in self.items) if self.spec.captions else None

    def rows(self, rows: Sequence[int]) -> Rows:
        refused: list[Refused] = []
        with quiet():
            found = [self._readable(row, refused) for row in rows]
        x = torch.from_numpy(np.stack([decoded.x for _, decoded in found]))
        label = torch.tensor([item.label for item, _ in found]) if self.spec.classes else None
        caption = tuple(item.captions for item, _ in found) if self.spec.captions else None
        return Rows(x, label, caption, tuple(refused))

    def _readable(self, row: int, refused: list[Refused]) -> tuple[Item, Decoded]:
        for step in range(len(self.items)):
            item = self.items[(row + step) % len(self.items)]
            try:
                return item, self.files.decode(item)
            except InputError as error:
                refused.append(Refused(item.file, str(error)))
        raise InputError(
            f"none of the {len(self.items)} pictures in data.path {self.files.path} can be used; "
            f"the first is {refused[0].file}, {refused[0].reason}"
        )
