"""The embedded set: 3,786 captioned Noto emoji (Google, Apache-2.0) on white, 32 or 64 pixels."""

import functools
import gzip
import hashlib
import io
import json
from importlib import resources
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pointillist.data.source import InMemory
from pointillist.types import Spec, config, grid_axes

EDGE, SHEETS = 64, 4
TEST_SHARE = 0.1


@config
class EmojiConfig:
    """Class = Unicode's category; the fixed split keeps all skin tones of an emoji together."""

    kind: Literal["emoji"] = "emoji"
    size: Literal[32, 64] = 32

    def promise(self) -> Spec:
        """What the set is, without decoding it."""
        names = tuple(sorted({row["category"] for row in rows()}))
        return Spec(channels=3, axes=grid_axes((self.size, self.size)), classes=names,
                    captions=True)  # fmt: skip

    def open(self, split: Literal["train", "test"]) -> InMemory:
        """The split as uint8; decoded once in a process."""
        return _open(self.size, split)


@functools.cache
def rows() -> list[dict[str, Any]]:
    """Caption, category, codepoints and base emoji of every picture, in order."""
    packed = (resources.files("pointillist.data") / "assets" / "emoji.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]


@functools.cache
def pictures() -> Tensor:
    """All pictures, uint8, n 3 64 64."""
    sheets = []
    for number in range(SHEETS):
        path = resources.files("pointillist.data") / "assets" / f"emoji_{number}.webp"
        sheet = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
        across = sheet.shape[1] // EDGE
        tiles = sheet.reshape(-1, EDGE, across, EDGE, 3).transpose(0, 2, 4, 1, 3)
        sheets.append(tiles.reshape(-1, 3, EDGE, EDGE))
    return torch.from_numpy(np.concatenate(sheets)[: len(rows())])


def is_test(base: str) -> bool:
    """A tenth of the base emoji, by a hash of their codepoints."""
    digest = hashlib.blake2b(base.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < TEST_SHARE * 2**64


def halve(x: Tensor) -> Tensor:
    """The 2 x 2 mean, rounded to nearest."""
    total = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).short().sum((-1, -3))
    return ((total + 2) // 4).byte()


@functools.cache
def _open(size: int, split: str) -> InMemory:
    chosen = [i for i, row in enumerate(rows()) if is_test(row["base"]) == (split == "test")]
    x = pictures()[chosen]
    x = halve(x) if size == 32 else x
    names = tuple(sorted({row["category"] for row in rows()}))
    label = torch.tensor([names.index(rows()[i]["category"]) for i in chosen])
    spec = Spec(
        channels=3, axes=grid_axes((size, size)), classes=names, captions=True, samples=len(chosen),
        fingerprint=hashlib.blake2b(x.numpy().tobytes(), digest_size=16).hexdigest(),
    )  # fmt: skip
    return InMemory(x, spec, label, [(rows()[i]["caption"],) for i in chosen])
