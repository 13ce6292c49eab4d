"""Any set as a zip file in EDM's form: PNG members, stored, and `dataset.json` (`archive.py`).

The same set gives the same bytes: members have a fixed date and come in the set's own order.
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from pointillist.data.archive import INDEX
from pointillist.data.collection import Listing, PicturesConfig
from pointillist.data.decode import Fit, fitted
from pointillist.data.reading import Item, decode_all
from pointillist.data.report import Refused
from pointillist.engine.checkpoint import write_atomically
from pointillist.types import InputError

Crop = Literal["adm", "centre", "none"]
FITS: dict[Crop, Fit] = {"adm": "adm", "centre": "crop"}
SPLITS = ("train", "test")
PORTION, A_FOLDER = 256, 1000


class Packed(NamedTuple):
    """What was written, by split, and what was left out."""

    out: Path
    size: tuple[int, int]
    written: dict[str, int]
    refused: list[Refused]


class Picture(NamedTuple):
    """One picture on its way: 8-bit values (h, w, c), class (-1: none) and captions."""

    x: np.ndarray
    label: int
    captions: tuple[str, ...]


def pack(
    config: Any,
    out: Path,
    size: tuple[int, int] | None = None,
    crop: Crop | None = None,
    split: Literal["both", "train", "test"] = "both",
    progress: Callable[[int], None] | None = None,
) -> Packed:
    """Write the set behind a data configuration into `out`.

    `crop` None: as the set's own configuration says; `none`: pictures of another size than `size`
    (None: that of the first picture) are left out by name. With both splits they lie in folders
    `train` and `test`. InputError where `out` is there already, or nothing could be packed.
    """
    check_out(out)
    if getattr(config, "buckets", None) is not None:
        raise InputError(
            "data.buckets is set, but a packed set has one size; set data.buckets=null, or train "
            "on the pictures where they lie"
        )
    splits = SPLITS if split == "both" else (split,)
    refused: list[Refused] = []
    if isinstance(config, PicturesConfig):
        listing = config.listing()
        if size is None:
            size = _first_shape(config, listing) if crop == "none" else config.grid
        spec = config.spec_of(listing)
        bare = [item.file for item in listing.items if item.label < 0]
        if spec.classes and bare:
            raise InputError(f"{bare[0]} has no class, but others have one; put all pictures into "
                             f"sub-folders, or none")  # fmt: skip
        refused += listing.refused
        config = dataclasses.replace(
            config, size=size, fit=FITS.get(crop, config.fit) if crop else config.fit,
            enlarge=config.enlarge or crop is not None,
        )  # fmt: skip

        def pictures(name: str) -> Iterator[Picture]:
            return _from_files(config, listing, name, crop == "none", refused)
    else:
        spec = config.promise()
        size = size or (spec.size[0], spec.size[1])

        def pictures(name: str) -> Iterator[Picture]:
            return _from_memory(config, name, size, crop, refused)

    written: dict[str, int] = {}

    def write(draft: Path) -> None:
        index: dict[str, Any] = {"labels": [] if spec.classes else None}
        captions: dict[str, list[str]] = {}
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            for name in splits:
                written[name] = 0
                for picture in pictures(name):
                    number = written[name]
                    file = f"{number // A_FOLDER:05d}/img{number:08d}.png"
                    file = f"{name}/{file}" if split == "both" else file
                    archive.writestr(_entry(file), _png(picture.x))
                    if spec.classes:
                        index["labels"].append([file, picture.label])
                    if picture.captions:
                        captions[file] = list(picture.captions)
                    written[name] += 1
                    if progress is not None:
                        progress(sum(written.values()))
            if not sum(written.values()):
                raise InputError(f"not one picture could be packed into {out}" + (
                    f"; the first is {refused[0].file}, {refused[0].reason}" if refused else ""
                ))  # fmt: skip
            if spec.classes:
                index["classes"] = list(spec.classes)
            if captions:
                index["captions"] = captions
            archive.writestr(_entry(INDEX), json.dumps(index))

    write_atomically(out, write)
    return Packed(out, size, written, refused)


def check_out(out: Path) -> None:
    """InputError where the archive could not be written there."""
    if out.exists():
        raise InputError(f"{out} is already there; choose another --out, or remove it")
    if out.suffix.lower() != ".zip":
        raise InputError(f"--out is {out}; it ends in .zip")


def count(config: Any, split: str) -> int:
    """How many pictures there are to pack."""
    if isinstance(config, PicturesConfig):
        return sum(split in ("both", item.split) for item in config.listing().items)
    return sum(len(config.open(name)) for name in SPLITS if split in ("both", name))


def _first_shape(config: PicturesConfig, listing: Listing) -> tuple[int, int]:
    """The size of the first picture that can be read."""
    any_size = dataclasses.replace(config, enlarge=True)
    for found in decode_all(any_size, listing.items):
        if not isinstance(found, InputError):
            return found.shape
    return config.grid


def _from_files(
    config: PicturesConfig, listing: Listing, split: str, exact: bool, refused: list[Refused]
) -> Iterator[Picture]:
    items: list[Item] = [item for item in listing.items if item.split == split]
    for item, found in zip(items, decode_all(config, items), strict=True):
        if isinstance(found, InputError):
            refused.append(Refused(item.file, str(found)))
        elif exact and found.shape != config.grid:
            refused.append(_other_size(item.file, found.shape, config.grid))
        else:
            yield Picture(found.x.transpose(1, 2, 0), item.label, item.captions)


def _from_memory(
    config: Any, split: str, size: tuple[int, int], crop: Crop | None, refused: list[Refused]
) -> Iterator[Picture]:
    """A set that is decoded already, portion by portion."""
    source = config.open(split)
    for first in range(0, len(source), PORTION):
        rows = source.rows(range(first, min(first + PORTION, len(source))))
        for i, x in enumerate(rows.x.permute(0, 2, 3, 1).numpy()):
            if x.shape[:2] != size:
                if crop == "none":
                    refused.append(_other_size(f"{split} {first + i}", x.shape[:2], size))
                    continue
                image = Image.fromarray(x[..., 0] if x.shape[2] == 1 else x)
                x = np.asarray(fitted(image, size, FITS.get(crop or "centre", "crop")))
            label = -1 if rows.label is None else int(rows.label[i])
            yield Picture(x, label, () if rows.caption is None else rows.caption[i])


def _other_size(name: str, found: tuple[int, ...], wanted: tuple[int, int]) -> Refused:
    return Refused(name, f"other size: {found[0]}x{found[1]}, wanted {wanted[0]}x{wanted[1]}; "
                         f"--crop centre takes it")  # fmt: skip


def _entry(name: str) -> zipfile.ZipInfo:
    """A member without today's date and this machine's rights."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    return entry


def _png(x: np.ndarray) -> bytes:
    image = Image.fromarray(x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
