"""CIFAR-10 in its published binary form (Krizhevsky 2009): a label byte, then 3 x 32 x 32 bytes."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from pointillist.data.source import InMemory
from pointillist.types import InputError, Spec, config, grid_axes

RECORDS, RECORD = 10_000, 1 + 3 * 32 * 32
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@config
class CIFAR10Config:
    """`path` holds the .bin files, or the folder `cifar-10-batches-bin` that holds them."""

    kind: Literal["cifar10"] = "cifar10"
    path: str = "data/cifar10"
    size: Literal[32] = 32

    def promise(self) -> Spec:
        """What the set will be, without reading it."""
        return Spec(channels=3, axes=grid_axes((32, 32)), classes=CLASSES)

    def open(self, split: Literal["train", "test"]) -> InMemory:
        """50,000 training or 10,000 test pictures as uint8."""
        raw = np.concatenate([_read(self.folder() / name) for name in FILES[split]])
        label, x = raw[:, 0].astype(np.int64), raw[:, 1:].reshape(-1, 3, 32, 32)
        digest = hashlib.blake2b(raw.tobytes(), digest_size=16).hexdigest()
        spec = Spec(channels=3, axes=grid_axes((32, 32)), classes=CLASSES, samples=len(x),
                    fingerprint=digest)  # fmt: skip
        return InMemory(x, spec, label)

    def folder(self) -> Path:
        root = Path(self.path)
        for folder in (root, root / "cifar-10-batches-bin"):
            if (folder / "test_batch.bin").is_file():
                return folder
        raise InputError(
            f"data.path {self.path} holds no test_batch.bin; unpack the CIFAR-10 binary version "
            f"(https://www.cs.toronto.edu/~kriz/cifar.html) there, or set data.path"
        )


def _read(path: Path) -> np.ndarray:
    """The records of one batch file, each 3,073 bytes."""
    if not path.is_file():
        raise InputError(f"{path} is missing; unpack the CIFAR-10 binary version once more")
    raw = np.fromfile(path, np.uint8)
    if raw.size != RECORDS * RECORD:
        raise InputError(
            f"{path} has {raw.size} bytes instead of {RECORDS * RECORD}; unpack it once more"
        )
    raw = raw.reshape(-1, RECORD)
    if raw[:, 0].max() > 9:
        raise InputError(f"{path} has label {raw[:, 0].max()}, out of 0 to 9; unpack it once more")
    return raw
