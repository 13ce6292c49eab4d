"""A folder of pictures: class = sub-folder, caption = a .txt beside the picture or metadata."""

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pointillist.data.collection import Item, Listing, PicturesConfig, divide
from pointillist.data.decode import SUFFIXES, Decoded, decode
from pointillist.data.report import Refused
from pointillist.types import InputError, config

METADATA = ("metadata.jsonl", "metadata.csv")


@config
class FolderConfig(PicturesConfig):
    """A folder and all below it; the class of a picture is its sub-folder."""

    kind: Literal["folder"] = "folder"
    path: str = "data/pictures"

    def listing(self) -> Listing:
        return scan(self)

    def weigh(self, item: Item) -> int:
        return (self.root / item.file).stat().st_size

    def decode(self, item: Item) -> Decoded:
        return decode(self.root / item.file, self.grid, self.channels, self.fit, self.enlarge)


def scan(config: FolderConfig) -> Listing:
    """Every picture below the folder in the order of their names; nothing is decoded."""
    root = config.root
    if not root.is_dir():
        raise InputError(f"data.path {config.path} is not a folder; put pictures there or set it")
    files, refused, ignored = _pictures(root)
    if not files:
        raise InputError(
            f"data.path {config.path} holds no picture; known endings are "
            f"{', '.join(sorted(SUFFIXES))}"
            + (f" ({refused[0].file}: {refused[0].reason})" if refused else "")
        )
    captions, missing = _metadata(root, set(files))
    refused += missing
    split_of, given = divide(files, config.test_share, refused)
    files = list(split_of)
    # A folder that holds `train` alone is that split; beside others, "train" is a class.
    alone = {file.split("/")[0] for file in files if "/" in file} == {"train"}
    strip = 1 if given or alone else 0
    parents = {}
    for file in files:
        parts = file.split("/")[strip if "/" in file else 0 : -1]
        parents[file] = parts[0] if parts else None
    classes = tuple(sorted({name for name in parents.values() if name is not None}))
    if config.classes and len(classes) != config.classes:
        raise InputError(
            f"data.classes is {config.classes}, but data.path {config.path} has {len(classes)} "
            f"sub-folders of pictures; set data.classes=0 to take what is there"
        )
    number = {name: i for i, name in enumerate(classes)}
    items = []
    for file in files:
        parent = parents[file]
        label = -1 if parent is None else number[parent]
        try:
            own = captions.get(file) or _beside(root / file)
        except InputError as error:
            refused.append(Refused(Path(file).with_suffix(".txt").as_posix(), str(error)))
            own = ()
        items.append(Item(file, label, own, split_of[file]))
    return Listing(items, classes, refused, ignored)


def _pictures(root: Path) -> tuple[list[str], list[Refused], Counter[str]]:
    """Picture files in the order of their names; links are followed, each folder once."""
    found: list[str] = []
    refused: list[Refused] = []
    ignored: Counter[str] = Counter()
    walked: set[str] = set()

    def unreadable(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        refused.append(Refused(_shown(name), f"folder: {error.strerror}"))

    for folder, below, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if name[0] != "." and real not in walked)
        if real in walked:
            continue
        walked.add(real)
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            file = (Path(folder) / name).relative_to(root).as_posix()
            if name.startswith(".") or ending == ".txt" or name in METADATA:
                continue
            if ending not in SUFFIXES:
                ignored[ending or "none"] += 1
            elif _shown(file) != file:
                refused.append(Refused(_shown(file), "unreadable: its name is not UTF-8"))
            else:
                found.append(file)
    return sorted(found), refused, ignored


def _shown(name: str) -> str:
    """A file name in UTF-8, with what is not written as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _beside(path: Path) -> tuple[str, ...]:
    """Captions in the .txt of the same name, one a line."""
    try:
        text = path.with_suffix(".txt").read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError:
        raise InputError("caption: it is not UTF-8") from None
    except OSError as error:
        raise InputError(f"caption: {error.strerror}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _metadata(root: Path, files: set[str]) -> tuple[dict[str, tuple[str, ...]], list[Refused]]:
    """Captions by file from metadata.jsonl or metadata.csv, and named files that are not there."""
    captions: dict[str, tuple[str, ...]] = {}
    missing = []
    for path in (root / name for name in METADATA):
        if not path.is_file():
            continue
        for number, row in _table(path):
            file = row.get("file_name")
            if not isinstance(file, str):
                raise InputError(f"{path}, line {number} has no file_name; each row names a file")
            file = Path(file).as_posix()
            text = row.get("text") or row.get("caption") or ()
            several = (text,) if isinstance(text, str) else text
            if not isinstance(several, (list, tuple)):
                raise InputError(f"{path}, line {number}: text is {text!r}; give a string or list")
            captions[file] = tuple(str(one).strip() for one in several if str(one).strip())
            if file not in files:
                missing.append(Refused(file, f"missing: named by {path.name}, but not there"))
    return captions, missing


def _table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is not a JSON object; one a line is read")
        rows.append((number, row))
    return rows
