"""A folder of pictures: class = sub-folder, caption = a .txt beside the picture or metadata."""

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from pointillist.data.collection import Item, Listing, examine, held_out, open_split
from pointillist.data.decode import SUFFIXES, Decoded, Fit, decode
from pointillist.data.report import Refused, Report
from pointillist.data.source import Source
from pointillist.types import InputError, Spec, config, grid_axes

METADATA = ("metadata.jsonl", "metadata.csv")
SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation", "dev")}


def parse_size(value: Any) -> Any:
    """`64`, `"48x64"` (height x width) or a pair."""
    if isinstance(value, str):
        parts = value.lower().split("x")
        if len(parts) <= 2 and all(part.isdigit() for part in parts):
            return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
    return value


@config
class FolderConfig:
    """`size` is an edge or HxW; `fit` crops the centre, pads with white or crops as ADM does;
    `enlarge` takes files that are smaller than that.

    Sub-folders `train` and `test` (or `val`, `valid`, `validation`, `dev`) are the splits where
    both exist; otherwise a share `test_share` of the files, by a hash of their names, is held out.
    `classes` is the number of sub-folders expected, 0 takes what is found.
    """

    kind: Literal["folder"] = "folder"
    path: str = "data/pictures"
    size: Annotated[int | tuple[int, int], BeforeValidator(parse_size)] = 64
    fit: Fit = "crop"
    enlarge: bool = False
    channels: Literal[1, 3] = 3
    classes: int = 0
    test_share: float = 0.05

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise InputError(f"data.size is {self.size}; it must be 1 or more")
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

    def promise(self) -> Spec:
        """What the set will be: its classes where it is at hand, else as many as expected."""
        if self.root.is_dir():
            listing = scan(self)
            return self._spec(listing.classes, any(item.captions for item in listing.items))
        return self._spec(tuple(str(i) for i in range(self.classes)), False)

    def _spec(self, classes: tuple[str, ...], captions: bool, **more: Any) -> Spec:
        offset = (127.5,) * self.channels
        return Spec(channels=self.channels, axes=grid_axes(self.grid), classes=classes,
                    captions=captions, offset=offset, scale=offset, **more)  # fmt: skip

    def weigh(self, item: Item) -> int:
        """Bytes of the file, OSError where it is gone."""
        return (self.root / item.file).stat().st_size

    def decode(self, item: Item) -> Decoded:
        return decode(self.root / item.file, self.grid, self.channels, self.fit, self.enlarge)

    def open(self, split: Literal["train", "test"]) -> Source:
        """The split: in memory where it fits, else decoded in workers as it is needed."""
        listing = scan(self)
        captions = any(item.captions for item in listing.items)
        return open_split(self, listing, self._spec(listing.classes, captions), split)

    def examine(self) -> Report:
        """Decode everything once and count."""
        listing = scan(self)
        spec = self._spec(listing.classes, any(item.captions for item in listing.items))
        return examine(self, listing, spec)


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
    tops = {file.split("/")[0] for file in files if "/" in file}
    folders = {split: [n for n in names if n in tops] for split, names in SPLITS.items()}
    given = bool(folders["train"]) and bool(folders["test"])
    if given:
        inside = tuple(f"{name}/" for names in folders.values() for name in names)
        outside = [file for file in files if not file.startswith(inside)]
        refused += [Refused(file, "outside: neither in train nor in test") for file in outside]
        files = [file for file in files if file.startswith(inside)]
    # A folder that holds `train` alone is that split; beside others, "train" is a class.
    strip = 1 if given or tops == {"train"} else 0
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
    held = set() if given else held_out(files, config.test_share)
    number = {name: i for i, name in enumerate(classes)}
    items = []
    for file in files:
        if given:
            split = "test" if file.split("/")[0] in folders["test"] else "train"
        else:
            split = "test" if file in held else "train"
        parent = parents[file]
        label = -1 if parent is None else number[parent]
        try:
            own = captions.get(file) or _beside(root / file)
        except InputError as error:
            refused.append(Refused(Path(file).with_suffix(".txt").as_posix(), str(error)))
            own = ()
        items.append(Item(file, label, own, split))
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
