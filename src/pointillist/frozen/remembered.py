"""A teacher whose answers are kept on the disk: each picture is asked about once.

A picture is known by its content, so whatever makes it (a flip, a bucket's crop) needs no name, and
a picture that never comes again (random scaling) is never found again. The teacher is asked in
float32 whatever the run's precision, its answers are kept as float16, off by at most 2^-11 of each
number, and answered so from the first time on: what was kept before changes a run by no more than
the rounding of other batches.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.engine.checkpoint import write_atomically
from pointillist.engine.session import locked
from pointillist.frozen.vision import Grid, Teacher
from pointillist.types import InputError

FORMAT = 1
PART = 64 << 20  # bytes of answers to a part: what an interruption loses at most


class Remembering:
    """A `Teacher` that keeps below `folder` what `teacher` answers, one folder for each grid."""

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.width, self.patch, self.digest = teacher.width, teacher.patch, teacher.digest
        self.shelves: dict[Grid, Shelf] = {}

    def shelf(self, grid: Grid) -> "Shelf":
        if grid not in self.shelves:
            name = f"v{FORMAT}-{self.digest[:16]}-{grid[0]}x{grid[1]}"
            self.shelves[grid] = Shelf(self.folder / name, (self.width, *grid))
        return self.shelves[grid]

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b d gh gw"]:
        shelf, names = self.shelf(grid), names_of(x)
        new = {name: i for i, name in enumerate(names) if name not in shelf.at}
        if new:
            with torch.autocast(x.device.type, enabled=False):
                answers = self.teacher(x[list(new.values())].float(), grid)
            answers = answers.to("cpu", torch.float16)
            if not answers.isfinite().all():
                raise InputError(
                    "loss.align.cache keeps float16, which cannot hold what loss.align.teacher "
                    "answers; leave loss.align.cache empty"
                )
            shelf.add(list(new), answers.numpy())
        return torch.from_numpy(shelf.take(names)).to(x.device).float()

    def flush(self) -> None:
        """Write what is in memory alone."""
        for shelf in self.shelves.values():
            shelf.flush()


def names_of(x: Float[Tensor, "b c h w"]) -> list[bytes]:
    """What pictures are kept by: sixteen bytes of their size and all their values."""
    shape = np.array(x.shape[1:], np.int64).tobytes()
    rows = x.detach().float().cpu().contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), key=shape, digest_size=16).digest() for row in rows]


class Shelf:
    """Arrays of one shape by name, in parts of a folder, each complete or absent."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape
        self.parts: list[np.ndarray | list[np.ndarray]] = []
        self.at: dict[bytes, tuple[int, int]] = {}  # the part and the row
        for path in sorted(folder.glob("part-*")):
            self._read(path)
        self._begin()

    def _begin(self) -> None:
        self.new: list[np.ndarray] = []
        self.names: list[bytes] = []
        self.parts.append(self.new)

    def add(self, names: Sequence[bytes], answers: np.ndarray) -> None:
        for name, answer in zip(names, answers, strict=True):
            self.at[name] = len(self.parts) - 1, len(self.new)
            self.new.append(answer)
            self.names.append(name)
        if len(self.new) * answers[0].nbytes >= PART:
            self.flush()

    def take(self, names: Sequence[bytes]) -> np.ndarray:
        found = np.empty((len(names), *self.shape), np.float16)
        for row, name in enumerate(names):
            part, place = self.at[name]
            found[row] = self.parts[part][place]
        return found

    def flush(self) -> None:
        if not self.new:
            return
        keys = np.frombuffer(b"".join(self.names), np.uint8).reshape(-1, 16)
        answers = np.stack(self.new)

        def write(draft: Path) -> None:
            draft.mkdir()
            np.save(draft / "keys.npy", keys)
            np.save(draft / "answers.npy", answers)
            (draft / "facts.json").write_text(json.dumps(self._facts(len(keys))), encoding="utf-8")

        path = self.folder / f"part-{hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()}"
        with locked(self.folder, wait=True):  # runs side by side may come to the same part
            if not path.exists():
                write_atomically(path, write)
        # From here on the disk holds them, not the memory.
        self.parts.pop()
        self._read(path)
        self._begin()

    def _facts(self, count: int) -> dict[str, Any]:
        return {"format": FORMAT, "shape": list(self.shape), "pictures": count}

    def _read(self, path: Path) -> None:
        try:
            facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
            keys = np.load(path / "keys.npy")
            answers = np.load(path / "answers.npy", mmap_mode="r")
            n = len(keys)
            whole = (
                facts == self._facts(n)
                and (keys.shape, keys.dtype) == ((n, 16), np.uint8)
                and (answers.shape, answers.dtype) == ((n, *self.shape), np.float16)
            )
        except (OSError, ValueError, EOFError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise InputError(f"{path} is damaged; delete it, and it is made again")
        self.at.update({key.tobytes(): (len(self.parts), row) for row, key in enumerate(keys)})
        self.parts.append(answers)
