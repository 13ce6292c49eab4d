"""A zip file of pictures with `dataset.json`, the form of EDM's data sets (NVlabs/edm, edm2).

Members are read where they lie, nothing is unpacked. `dataset.json` holds `labels`, a list of pairs
of a file's name and its class, or null. Two keys of ours, which other readers pass over, say more:
`classes`, the names of the classes, and `captions`, texts by file name.
"""

import functools
import json
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pointillist.data.captions import cleaned
from pointillist.data.collection import Listing, PicturesConfig, divide
from pointillist.data.decode import SUFFIXES, Decoded, decode
from pointillist.data.reading import Item
from pointillist.data.report import CONTROL, Refused, shown
from pointillist.picture_files import shape_of
from pointillist.types import InputError, config

INDEX = "dataset.json"
LARGEST_INDEX = 512 << 20
LARGEST_MEMBER = 512 << 20  # a picture of that many bytes is a bomb, or no picture


@config
class ZipConfig(PicturesConfig):
    """A zip file; the class of a picture is what `dataset.json` says."""

    kind: Literal["zip"] = "zip"
    path: str = "data/pictures.zip"

    def listing(self) -> Listing:
        return _scan(self, *_stamp(self))

    def weigh(self, item: Item) -> int:
        """The checksum that the archive has of the member: what tells it from another best."""
        return _opened(str(self.root), *_stamp(self), os.getpid()).getinfo(item.file).CRC

    def shape(self, item: Item) -> tuple[int, int]:
        archive = _opened(str(self.root), *_stamp(self), os.getpid())
        try:
            with archive.open(item.file) as file:
                return shape_of(file)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"unreadable: {type(error).__name__}: {error}") from None

    def decode(self, item: Item) -> Decoded:
        archive = _opened(str(self.root), *_stamp(self), os.getpid())
        try:
            content = _content(archive, item.file)
        except Exception as error:  # damaged members raise almost anything
            raise InputError(f"unreadable: {type(error).__name__}: {error}") from None
        size = item.size or self.grid
        return decode(content, size, self.channels, self.fit, self.enlarge)


def _stamp(config: ZipConfig) -> tuple[int, int]:
    """Size and time of the file: what is kept of an archive is kept for these alone."""
    if not config.root.is_file():
        raise InputError(f"data.path {config.path} is not a zip file; name one, or set data.kind")
    stat = config.root.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(4)
def _opened(path: str, size: int, changed: int, process: int) -> zipfile.ZipFile:
    """One handle a process (a fork would share its place in the file); reading locks by itself."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path} is not a whole zip file: {error}; fetch or pack it again"
        ) from None


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's bytes, no more than it says there are: reading all would unfold it first."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


@functools.lru_cache(4)
def _scan(config: ZipConfig, size: int, changed: int) -> Listing:
    """Every picture of the archive in the order of the names; nothing is decoded."""
    archive = _opened(str(config.root), size, changed, os.getpid())
    files, ignored = _members(archive, config.path)
    if not files:
        raise InputError(f"{config.path} holds no picture; known endings are "
                         f"{', '.join(sorted(SUFFIXES))}")  # fmt: skip
    index = _index(archive, config.path)
    labels, classes = _labels(index, set(files), config)
    captions = _captions(index, set(files), config.path)
    refused: list[Refused] = []
    split_of, _ = divide(files, config.test_share, refused)
    items = [Item(file, labels.get(file, -1), captions.get(file, ()), split)
             for file, split in split_of.items()]  # fmt: skip
    return Listing(items, classes, refused, ignored)


def _members(archive: zipfile.ZipFile, name: str) -> tuple[list[str], Counter[str]]:
    """Names of the pictures, sorted; InputError for a name or a size that no honest tool writes."""
    found: set[str] = set()
    pictures: list[str] = []
    ignored: Counter[str] = Counter()
    for member in archive.infolist():
        file = member.filename
        parts = file.split("/")
        if CONTROL.search(file):
            raise InputError(f"{name}: the name of member {file!r} has control characters; pack it "
                             f"again")  # fmt: skip
        # zipfile cuts a name at a NUL and turns the system's own separator; neither is ours to do.
        if ".." in parts or not parts[0] or "\\" in member.orig_filename or "\0" in (
            member.orig_filename
        ):  # fmt: skip
            raise InputError(f"{name}: member {member.orig_filename!r} points out of the archive; "
                             f"pack it again")  # fmt: skip
        if "." in parts:
            raise InputError(f"{name}: member {file!r} is no plain path; pack it again")
        if file in found:
            raise InputError(f"{name}: member {file} is there twice; pack it again")
        found.add(file)
        ending = os.path.splitext(file)[1].lower()
        # zipfile unfolds the others in one piece, whatever they say.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{name}: member {file} is packed by a method of its own; pack it "
                             f"again, stored or deflated")  # fmt: skip
        # Hidden files, among them what macOS puts beside pictures, are passed over as in folders.
        if member.is_dir() or file == INDEX or any(part.startswith(".") for part in parts):
            continue
        if ending not in SUFFIXES:
            ignored[ending or "none"] += 1
            continue
        if member.flag_bits & 1:
            raise InputError(f"{name}: member {file} is encrypted; pack it again without")
        if member.file_size > LARGEST_MEMBER:
            raise InputError(f"{name}: member {file} unfolds to {member.file_size / 1e9:.1f} GB; "
                             f"no picture has that")  # fmt: skip
        pictures.append(file)
    return sorted(pictures), ignored


def _index(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """What dataset.json says; nothing where there is none."""
    where = f"{name}: {INDEX}"
    if INDEX not in archive.namelist():
        return {}
    if archive.getinfo(INDEX).file_size > LARGEST_INDEX:
        raise InputError(f"{where} unfolds to {archive.getinfo(INDEX).file_size / 1e9:.1f} GB; "
                         f"pack it again")  # fmt: skip
    try:
        index = json.loads(_content(archive, INDEX))
    except Exception as error:  # a damaged member, or no JSON
        raise InputError(f"{where} cannot be read: {type(error).__name__}: {error}; pack it "
                         f"again") from None  # fmt: skip
    if not isinstance(index, dict):
        raise InputError(f"{where} holds a {type(index).__name__}; it is an object with labels")
    return index


def _labels(
    index: dict[str, Any], files: set[str], config: ZipConfig
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class of every picture by its file, and the names of all classes."""
    where = f"{config.path}: {INDEX}"
    pairs = index.get("labels")
    names = index.get("classes")
    labels: dict[str, int] = {}
    if pairs is not None and not isinstance(pairs, list):
        raise InputError(f"{where}: labels is a {type(pairs).__name__}; it is a list or null")
    for pair in pairs or []:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError(
                f"{where}: label {shown(str(pair)[:80])} is no pair of a file and a class"
            )
        file, label = pair
        if isinstance(label, list):
            raise InputError(f"{where}: the label of {shown(file[:80])} is a vector; only whole "
                             f"numbers are read")  # fmt: skip
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise InputError(f"{where}: the label of {shown(file[:80])} is "
                             f"{shown(str(label)[:80])}; it is a whole number from 0")  # fmt: skip
        if file in labels:
            raise InputError(f"{where} labels {shown(file[:80])} twice; keep one")
        if file not in files:
            raise InputError(f"{where} labels {shown(file[:80])}, which is not a picture in the "
                             f"archive; pack it again")  # fmt: skip
        labels[file] = label
    bare = next((file for file in sorted(files) if labels and file not in labels), None)
    if bare is not None:
        raise InputError(f"{where} gives {bare} no label, but others have one; label all or none")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(one, str) for one in names)
    ):
        raise InputError(f"{where}: classes is {shown(str(names)[:80])}; it is a list of names")
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"{where}: classes names one class twice; keep one")
    odd = next((one for one in names or () if CONTROL.search(one)), None)
    if odd is not None:
        raise InputError(f"{where}: class {odd[:80]!r} has control characters; name it otherwise")
    if names and not labels:
        raise InputError(f"{where} names classes, but gives no picture a label; label all, or "
                         f"leave classes out")  # fmt: skip
    most = max(labels.values(), default=-1) + 1
    if names is not None and most > len(names):
        raise InputError(f"{where} has label {most - 1}, but only {len(names)} classes; name all")
    if names is None and most > len(files) + 1_000_000:
        raise InputError(f"{where} has label {most - 1}, far beyond its {len(files)} pictures")
    classes = tuple(str(i) for i in range(most)) if names is None else tuple(names)
    if config.classes and len(classes) != config.classes:
        raise InputError(
            f"data.classes is {config.classes}, but data.path {config.path} has {len(classes)}; "
            f"set data.classes=0 to take what is there"
        )
    return labels, classes


def _captions(index: dict[str, Any], files: set[str], name: str) -> dict[str, tuple[str, ...]]:
    captions = index.get("captions") or {}
    if not isinstance(captions, dict):
        raise InputError(f"{name}: {INDEX}: captions is a {type(captions).__name__}; it is an "
                         f"object of texts by file")  # fmt: skip
    for file, texts in captions.items():
        if file not in files:
            raise InputError(f"{name}: {INDEX} captions {shown(file[:80])}, which is not a picture "
                             f"in the archive; pack it again")  # fmt: skip
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise InputError(f"{name}: {INDEX}: the captions of {file} are no list of texts")
    return {file: cleaned(texts) for file, texts in captions.items()}


def is_archive(path: str) -> bool:
    return Path(path).suffix.lower() == ".zip" and Path(path).is_file()
