"""Tiny sets of pictures in many shapes, as tests of buckets want them."""

from pathlib import Path

import numpy as np
from PIL import Image

from pointillist.data import FolderConfig
from pointillist.data.buckets import BucketsConfig

# Of about 256 cells, edges 8 to 32 in steps of 4: nine shapes.
SHAPES = BucketsConfig(smallest=8, largest=32, step=4)


def picture(path: Path, h: int, w: int, number: int = 0) -> Path:
    """A picture whose colour tells its number, in a gradient so that sizes can be told too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.empty((h, w, 3), np.uint8)
    x[..., 0], x[..., 1] = number % 251, number // 251
    x[..., 2] = np.linspace(0, 255, w, dtype=np.uint8)
    Image.fromarray(x).save(path)
    return path


def many(root: Path, count: int = 200) -> Path:
    """`count` pictures, spread unevenly over the shapes, to train; three of each to test."""
    shapes = SHAPES.shapes((16, 16))
    assert len(shapes) == 9
    rng = np.random.default_rng(0)
    share = np.array([1, 2, 9, 17, 60, 40, 40, 20, 11], float)
    which = rng.choice(9, count, p=share / share.sum())
    which[:9] = range(9)  # each at least once
    for i, k in enumerate(which):
        picture(root / "train" / f"{i:03d}.png", *shapes[k], number=i)
    for k, shape in enumerate(shapes):
        for i in range(3):
            picture(root / "val" / f"{k}{i}.png", *shape, number=3 * k + i)
    return root


def folder(root: Path, policy: str = "repeat", **more: object) -> FolderConfig:
    buckets = BucketsConfig(smallest=8, largest=32, step=4, policy=policy)  # type: ignore[arg-type]
    return FolderConfig(path=str(root), size=16, buckets=buckets, **more)  # type: ignore[arg-type]
