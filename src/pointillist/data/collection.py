"""What any collection of picture files shares, wherever they lie: splits, decoding, examination.

A collection is a configuration that derives from `PicturesConfig` and says three things: what there
is (`listing`), how many bytes a file has (`weigh`) and what it shows (`decode`).
"""

import dataclasses
import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator

from pointillist.data.decode import Decoded, Fit
from pointillist.data.report import Refused, Report
from pointillist.data.source import InMemory, Rows, Source
from pointillist.picture_files import LARGEST, quiet
from pointillist.types import InputError, Spec, config, grid_axes

IN_MEMORY = 512 << 20  # bytes of decoded pictures; larger sets are decoded as they are needed


class Item(NamedTuple):
    """One picture: its file inside the collection, class (-1: none), captions and split."""

    file: str
    label: int
    captions: tuple[str, ...]
    split: str


class Listing(NamedTuple):
    """What a collection holds: pictures to be decoded, and what is refused without looking."""

    items: list[Item]
    classes: tuple[str, ...]
    refused: list[Refused]
    ignored: Counter[str]  # files with other endings


SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation", "dev")}


def parse_size(value: Any) -> Any:
    """`64`, `"48x64"` (height x width) or a pair."""
    if isinstance(value, str):
        parts = value.lower().split("x")
        if len(parts) <= 2 and all(part.isdigit() for part in parts):
            return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
    return value


@config
class PicturesConfig(ABC):
    """`size` is an edge or HxW; `fit` crops the centre, pads with white or crops as ADM does;
    `enlarge` takes files that are smaller than that.

    Top folders `train` and `test` (or `val`, `valid`, `validation`, `dev`) are the splits where
    both exist; otherwise a share `test_share` of the files, by a hash of their names, is held out.
    `classes` is the number expected, 0 takes what is found.
    """

    kind: str
    path: str
    size: Annotated[int | tuple[int, int], BeforeValidator(parse_size)] = 64
    fit: Fit = "crop"
    enlarge: bool = False
    channels: Literal[1, 3] = 3
    classes: int = 0
    test_share: float = 0.05

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise InputError(f"data.size is {self.size}; it must be 1 or more")
        if self.grid[0] * self.grid[1] > LARGEST:
            raise InputError(f"data.size is {self.size}; a picture has at most {LARGEST:,} pixels")
        if self.classes < 0:
            raise InputError(f"data.classes is {self.classes}; it must be 0 or more")
        if not 0 < self.test_share < 1:
            raise InputError(f"data.test_share is {self.test_share}; it lies in (0, 1)")

    @property
    def root(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def grid(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @abstractmethod
    def listing(self) -> Listing:
        """What there is, in the order of the names; nothing is decoded."""

    @abstractmethod
    def weigh(self, item: Item) -> int:
        """A number that tells the file from another of its name; OSError where it is gone."""

    @abstractmethod
    def decode(self, item: Item) -> Decoded:
        """The picture, InputError with the reason where it cannot be used."""

    def promise(self) -> Spec:
        """What the set will be: its classes where it is at hand, else as many as expected."""
        if self.root.exists():
            return self.spec_of(self.listing())
        return self._spec(tuple(str(i) for i in range(self.classes)), False)

    def spec_of(self, listing: Listing) -> Spec:
        return self._spec(listing.classes, any(item.captions for item in listing.items))

    def _spec(self, classes: tuple[str, ...], captions: bool) -> Spec:
        offset = (127.5,) * self.channels
        return Spec(channels=self.channels, axes=grid_axes(self.grid), classes=classes,
                    captions=captions, offset=offset, scale=offset)  # fmt: skip

    def open(self, split: Literal["train", "test"]) -> Source:
        """The split: in memory where it fits, else decoded in workers as it is needed."""
        listing = self.listing()
        return open_split(self, listing, self.spec_of(listing), split)

    def examine(self) -> Report:
        """Decode everything once and count."""
        listing = self.listing()
        return examine(self, listing, self.spec_of(listing))


def divide(files: list[str], share: float, refused: list[Refused]) -> tuple[dict[str, str], bool]:
    """The split of every file, and whether top folders say it; files in neither are refused."""
    tops = {file.split("/")[0] for file in files if "/" in file}
    folders = {split: [n for n in names if n in tops] for split, names in SPLITS.items()}
    if not (folders["train"] and folders["test"]):
        held = held_out(files, share)
        return {file: "test" if file in held else "train" for file in files}, False
    named = {name: split for split, names in folders.items() for name in names}
    outside = [file for file in files if "/" not in file or file.split("/")[0] not in named]
    refused += [Refused(file, "outside: neither in train nor in test") for file in outside]
    aside = set(outside)
    return {file: named[file.split("/")[0]] for file in files if file not in aside}, True


def open_split(
    config: PicturesConfig, listing: Listing, spec: Spec, split: Literal["train", "test"]
) -> Source:
    """The split: in memory where it fits, else decoded in workers as it is needed."""
    items = [item for item in listing.items if item.split == split]
    if len(items) * spec.channels * spec.cells > IN_MEMORY:
        return Lazy(config, items, spec, listing.refused)
    # A split without one readable picture (of a handful of files) takes the other's too.
    source = _load(config, items, spec) or _load_any(config, listing.items, spec)
    source.refused += tuple(listing.refused)
    return source


def examine(config: PicturesConfig, listing: Listing, spec: Spec) -> Report:
    """Decode everything once and count."""
    aside = sum(one.kind in ("outside", "unreadable") for one in listing.refused)
    report = Report(config.path, spec, len(listing.items) + aside, {"train": 0, "test": 0})
    report.refused, report.ignored = list(listing.refused), listing.ignored
    for item, found in zip(listing.items, decode_all(config, listing.items), strict=True):
        if isinstance(found, InputError):
            report.refused.append(Refused(item.file, str(found)))
            continue
        report.used[item.split] += 1
        report.shapes[found.shape] += 1
        report.notes.update(found.notes)
        if item.label >= 0:
            report.classes[listing.classes[item.label]] += 1
        elif listing.classes:
            report.unlabelled.append(item.file)
        if spec.captions and not item.captions:
            report.uncaptioned.append(item.file)
    # As `open` does: a split without one usable picture takes the other's.
    for split, other in (("train", "test"), ("test", "train")):
        if not report.used[split] and report.used[other]:
            report.used[split], report.borrowed = report.used[other], split
    return report


def held_out(files: list[str], share: float) -> set[str]:
    """Files whose hash falls into the share, so that new files move no old one; at least one."""

    def place(file: str) -> float:
        digest = hashlib.blake2b(file.encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64

    held = {file for file in files if place(file) < share}
    return held if 0 < len(held) < len(files) else {min(files, key=place)}


def decode_all(config: PicturesConfig, items: Sequence[Item]) -> Iterator[Decoded | InputError]:
    """Every picture in turn, or the reason against it; decoders release Python's lock, so threads.

    No more than a few hundred wait to be taken, however large the set is.
    """

    def one(item: Item) -> Decoded | InputError:
        try:
            return config.decode(item)
        except InputError as error:
            return error

    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(items), 256):
            yield from pool.map(one, items[first : first + 256])


def _load_any(config: PicturesConfig, items: list[Item], spec: Spec) -> InMemory:
    found = _load(config, items, spec)
    if found is None:
        first = items[0]
        why = next(decode_all(config, items[:1]))
        raise InputError(
            f"none of the {len(items)} pictures in data.path {config.path} can be used; the first "
            f"is {first.file}, {why}"
        )
    return found


def _load(config: PicturesConfig, items: list[Item], spec: Spec) -> InMemory | None:
    """The readable pictures in memory, None where there is not one."""
    found = list(decode_all(config, items))
    good = [(i, d) for i, d in zip(items, found, strict=True) if isinstance(d, Decoded)]
    refused = tuple(
        Refused(i.file, str(d))
        for i, d in zip(items, found, strict=True)
        if not isinstance(d, Decoded)
    )
    if not good:
        return None
    x = torch.from_numpy(np.stack([decoded.x for _, decoded in good]))
    digest = hashlib.blake2b(x.numpy().tobytes(), digest_size=16)
    digest.update(repr([(i.file, i.label, i.captions) for i, _ in good]).encode())
    spec = dataclasses.replace(spec, samples=len(good), fingerprint=digest.hexdigest())
    label = torch.tensor([item.label for item, _ in good]) if spec.classes else None
    caption = [item.captions for item, _ in good] if spec.captions else None
    return InMemory(x, spec, label, caption, refused)


class Lazy:
    """A large set, decoded row by row; plain values only, so that workers can be spawned.

    A file that turns out to be unreadable is named in `Rows.refused`, and the next readable one
    takes its place, so that sample numbers keep their meaning.
    """

    in_memory = False

    def __init__(
        self, config: PicturesConfig, items: list[Item], spec: Spec, refused: Sequence[Refused] = ()
    ) -> None:
        self.config, self.items, lost = config, [], list(refused)
        # The files, and what is made of them: the same ones at another size are other data.
        made = f"{spec.channels} {spec.size} {config.fit} {config.enlarge}\n"
        digest = hashlib.blake2b(made.encode(), digest_size=16)
        for item in items:
            try:
                size = config.weigh(item)
            except OSError as error:
                lost.append(Refused(item.file, f"unreadable: {error.strerror}"))
                continue
            self.items.append(item)
            digest.update(f"{item.file} {size} {item.label} {item.captions!r}\n".encode())
        if not self.items:
            raise InputError(f"not one of the {len(items)} pictures in data.path {config.path} is "
                             f"there")  # fmt: skip
        self.refused = tuple(lost)
        self.spec = dataclasses.replace(
            spec, samples=len(self.items), fingerprint=digest.hexdigest()
        )

    def __len__(self) -> int:
        return len(self.items)

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
                return item, self.config.decode(item)
            except InputError as error:
                refused.append(Refused(item.file, str(error)))
        raise InputError(
            f"none of the {len(self.items)} pictures in data.path {self.config.path} can be used; "
            f"the first is {refused[0].file}, {refused[0].reason}"
        )
