"""What any collection of picture files shares, wherever they lie: splits, decoding, examination.

A collection is a configuration that derives from `PicturesConfig` and says three things: what there
is (`listing`), how many bytes a file has (`weigh`) and what it shows (`decode`).
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator

from pointillist.data.bucketed import open_buckets, sort_out
from pointillist.data.buckets import BucketsConfig
from pointillist.data.decode import Decoded, Fit
from pointillist.data.reading import Item, Lazy, decode_all, load, none_readable
from pointillist.data.report import Refused, Report
from pointillist.data.source import Source
from pointillist.picture_files import LARGEST
from pointillist.types import InputError, Spec, config, grid_axes

IN_MEMORY = 512 << 20  # bytes of decoded pictures; larger sets are decoded as they are needed


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
    `classes` is the number expected, 0 takes what is found. With `buckets` pictures have the shape
    of about that area that is nearest to their own.
    """

    kind: str
    path: str
    size: Annotated[int | tuple[int, int], BeforeValidator(parse_size)] = 64
    buckets: BucketsConfig | None = None
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
        if self.buckets is not None:
            self.buckets.check(self.grid)
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
    def shape(self, item: Item) -> tuple[int, int]:
        """Height and width of the picture as seen upright, of the head of its file alone;
        InputError where that is unreadable.
        """

    @abstractmethod
    def decode(self, item: Item) -> Decoded:
        """The picture at its bucket's size or data.size; InputError where it cannot be used."""

    def promise(self) -> Spec:
        """What the set will be: its classes where it is at hand, else as many as expected."""
        if self.root.exists():
            return self.spec_of(self.listing())
        return self._spec(tuple(str(i) for i in range(self.classes)), False)

    def spec_of(self, listing: Listing) -> Spec:
        return self._spec(listing.classes, any(item.captions for item in listing.items))

    def _spec(self, classes: tuple[str, ...], captions: bool) -> Spec:
        offset = (127.5,) * self.channels
        buckets = () if self.buckets is None else self.buckets.shapes(self.grid)
        return Spec(channels=self.channels, axes=grid_axes(self.grid), classes=classes,
                    captions=captions, offset=offset, scale=offset, buckets=buckets)  # fmt: skip

    def open(self, split: Literal["train", "test"]) -> Source:
        """The split: in memory where it fits, else decoded in workers as it is needed."""
        listing = self.listing()
        return open_split(self, listing, self.spec_of(listing), split)

    def examine(self) -> Report:
        """Decode everything once and count."""
        listing = self.listing()
        return examine(self, listing, self.spec_of(listing))


def nominal(config: Any) -> Any:
    """The same set as if there were no buckets: every picture at data.size, as scores want it."""
    if getattr(config, "buckets", None) is None:
        return config
    return dataclasses.replace(config, buckets=None)


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
    in_memory = len(items) * spec.channels * spec.cells <= IN_MEMORY
    # A split without one readable picture (of a handful of files) takes the other's too.
    if config.buckets is not None:
        return open_buckets(config, (items, listing.items), spec, listing.refused, in_memory)
    if not in_memory:
        return Lazy(config, items, spec, listing.refused)
    source = load(config, items, spec)[0] or load(config, listing.items, spec)[0]
    if source is None:
        raise none_readable(config, listing.items)
    source.refused += tuple(listing.refused)
    return source


def examine(config: PicturesConfig, listing: Listing, spec: Spec) -> Report:
    """Decode everything once and count."""
    aside = sum(one.kind in ("outside", "unreadable") for one in listing.refused)
    report = Report(config.path, spec, len(listing.items) + aside, {"train": 0, "test": 0})
    report.refused, report.ignored = list(listing.refused), listing.ignored
    files, items = config, listing.items
    if config.buckets is not None:
        files, items, refused = sort_out(config, items)
        report.refused += refused
        report.policy = config.buckets.policy
    for item, found in zip(items, decode_all(files, items), strict=True):
        if isinstance(found, InputError):
            report.refused.append(Refused(item.file, str(found)))
            continue
        report.used[item.split] += 1
        report.shapes[found.shape] += 1
        report.notes.update(found.notes)
        if item.size is not None:
            of_split = report.buckets.setdefault(item.split, {})
            of_split.setdefault(item.size, []).append(item.file)
        if item.label >= 0:
            report.classes[listing.classes[item.label]] += 1
        elif listing.classes:
            report.unlabelled.append(item.file)
        report.texts.update(map(len, item.captions))
        if spec.captions and not item.captions:
            report.uncaptioned.append(item.file)
    # As `open` does: a split without one usable picture takes the other's.
    for split, other in (("train", "test"), ("test", "train")):
        if not report.used[split] and report.used[other]:
            report.used[split], report.borrowed = report.used[other], split
            if other in report.buckets:
                report.buckets[split] = report.buckets[other]
    return report


def held_out(files: list[str], share: float) -> set[str]:
    """Files whose hash falls into the share, so that new files move no old one; at least one."""

    def place(file: str) -> float:
        digest = hashlib.blake2b(file.encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64

    held = {file for file in files if place(file) < share}
    return held if 0 < len(held) < len(files) else {min(files, key=place)}
