"""Work on many pictures in parts on disk: an interrupted evaluation goes on where it stopped."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pointillist.engine.checkpoint import write_atomically
from pointillist.metrics.features import Extractor
from pointillist.types import InputError


class Parts:
    """Parts of `size` pictures in a folder, each a safetensors file that is complete or absent."""

    def __init__(self, folder: Path, size: int = 256) -> None:
        self.folder, self.size = folder, size

    def fill(
        self,
        count: int,
        make: Callable[[int, int], dict[str, Tensor]],
        progress: Callable[[int], None],
    ) -> None:
        """Make every part of the first `count` pictures that is not there, by (first, number)."""
        for first in range(0, count, self.size):
            number = min(self.size, count - first)
            path = self._path(first, number)
            if not path.exists():
                _save(make(first, number), path)
            progress(first + number)

    def each(self, count: int) -> Iterator[dict[str, Tensor]]:
        """The parts in order, one at a time in memory."""
        for first in range(0, count, self.size):
            yield _load(self._path(first, min(self.size, count - first)))

    def all(self, name: str, count: int) -> Tensor:
        """One tensor of all parts that have it."""
        return torch.cat([part[name] for part in self.each(count) if name in part])

    def _path(self, first: int, number: int) -> Path:
        # The last part's name has its length: an evaluation of more pictures makes it anew.
        return self.folder / f"{first:08d}-{number:04d}.safetensors"


def remembered(extractor: Extractor, folder: Path) -> Extractor:
    """The same extractor, which finds features of a batch it has seen before in `folder`."""

    def compute(pictures: Tensor) -> Tensor:
        key = hashlib.sha256(extractor.digest.encode() + pictures.numpy().tobytes()).hexdigest()
        path = folder / f"{key[:32]}.safetensors"
        if not path.exists():
            _save({"features": extractor(pictures)}, path)
        return _load(path)["features"]

    return dataclasses.replace(extractor, compute=compute)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    whole = {name: v.contiguous() for name, v in tensors.items()}
    write_atomically(path, lambda draft: save_file(whole, draft))


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and evaluate again") from None
