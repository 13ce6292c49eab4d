"""A folder of pictures: class = sub-folder, caption = a .txt beside the picture or metadata."""

import os
from collections import Counter
from pathlib import Path
from typing import Literal

from pointillist.data.captions import METADATA, beside, metadata
from pointillist.data.collection import Listing, PicturesConfig, divide
from pointillist.data.decode import SUFFIXES, Decoded, decode
from pointillist.data.reading import Item
from pointillist.data.report import Refused
from pointillist.picture_files import shape_of
from pointillist.types import InputError, config


@config
class FolderConfig(PicturesConfig):
    """A folder and all below it; the class of a picture is its sub-folder."""

    kind: Literal["folder"] = "folder"
    path: str = "data/pictures"

    def listing(self) -> Listing:
        return scan(self)

    def weigh(self, item: Item) -> int:
        return (self.root / item.file).stat().st_size

    def shape(self, item: Item) -> tuple[int, int]:
        return shape_of(self.root / item.file)

    def decode(self, item: Item) -> Decoded:
        size = item.size or self.grid
        return decode(self.root / item.file, size, self.channels, self.fit, self.enlarge)


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
    captions, untold = metadata(root, files)
    refused += untold
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
            own = captions.get(file) or beside(root / file)
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
