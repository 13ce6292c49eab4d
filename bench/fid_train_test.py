"""The distance of CIFAR-10's training pictures from its test pictures: what a perfect model gets.

    python bench/fid_train_test.py [EXTRACTOR] [COUNT] [DATA] [FOLDER]

The first COUNT of each split. Features are kept in FOLDER in pieces of 250 pictures, so that an
interrupted run goes on where it was; at the end FOLDER/train and FOLDER/test hold the statistics
and the features of all, in the form that `pointillist.metrics.reference` reads. Inception makes
about 5 pictures a second on one core, and there are 2 x COUNT of them.
"""

import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from record import record
from torch import Tensor

from pointillist.data.cifar10 import CIFAR10Config
from pointillist.engine import checkpoint
from pointillist.metrics import (
    Extractor,
    Moments,
    Score,
    frechet_score,
    kernel_score,
    open_extractor,
    precision_recall,
)
from pointillist.metrics.features import Features
from pointillist.metrics.reference import ReferenceFacts, check_same, load, save
from pointillist.types import InputError

PIECE, BATCH = 250, 50


def piece(folder: Path, extractor: Extractor, pictures: Tensor, facts: dict[str, Any]) -> Tensor:
    """Features of one piece, from the disk where they are there and of the same pictures."""
    if folder.exists():
        kept = checkpoint.facts_of(folder).get("piece")
        if kept != facts:
            raise InputError(f"{folder} holds features of {kept}, not of {facts}; delete it")
        return checkpoint.load(folder, "features")["rows"]
    rows = torch.cat([extractor(part) for part in pictures.split(BATCH)])
    checkpoint.save(folder, {"features": {"rows": rows}}, {"piece": facts})
    return rows


def features(
    folder: Path, extractor: Extractor, data: CIFAR10Config, split: Literal["train", "test"], n: int
) -> Features:
    source = data.open(split)
    if not 2 <= n <= len(source.x):
        raise InputError(f"COUNT {n} is not in 2 to {len(source.x)}, the pictures of {split}")
    facts = ReferenceFacts.of(extractor, source.spec.fingerprint, split, n)
    if (folder / split).exists():
        check_same(folder / split, facts)
        found = load(folder / split)
        if found.rows is not None:
            return found
    rows, made, seconds = [], 0, 0.0
    for first in range(0, n, PIECE):
        part = source.x[first : min(first + PIECE, n)]
        about = facts.as_dict() | {"first": first, "count": len(part)}
        place = folder / "pieces" / f"{split}-{first:06d}-{len(part)}"
        fresh, begun = not place.exists(), time.perf_counter()
        rows.append(piece(place, extractor, part, about))
        if fresh:  # what an earlier call made says nothing about the time left
            made, seconds = made + len(part), seconds + time.perf_counter() - begun
            done, speed = first + len(part), made / seconds
            left = (n - done) / speed / 60
            print(f"{split}: {done} of {n} pictures, {speed:.1f} img/s, {left:.0f} min left",
                  file=sys.stderr, flush=True)  # fmt: skip
    joined = torch.cat(rows)
    found = Features(Moments.of(joined), joined)
    save(folder / split, facts, found)
    return found


def main(
    name: str = "inception", count: str = "10000", path: str = "data/cifar10",
    folder: str = "out/fid-train-test",
) -> None:  # fmt: skip
    n, extractor, place = int(count), open_extractor(name), Path(folder) / f"{name}-{count}"
    data = CIFAR10Config(path=path)
    train = features(place, extractor, data, "train", n)
    test = features(place, extractor, data, "test", n)
    assert train.rows is not None and test.rows is not None
    scores: dict[str, Score | None] = {
        # Below that the covariances lack rank, and the distance is refused.
        "frechet_distance": frechet_score(train.rows, test.rows) if n > extractor.dim else None,
        "kernel_distance": kernel_score(train.rows, test.rows),
    }
    record(f"train-test-{name}-{n}", {
        "extractor": extractor.name, "digest": extractor.digest, "resize": extractor.resize,
        "pictures": n,
        "fingerprints": {split: data.open(split).spec.fingerprint for split in ("train", "test")},
        **{what: score and score._asdict() for what, score in scores.items()},
        "precision_recall": precision_recall(train.rows, test.rows)._asdict(),
    })  # fmt: skip


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"fid_train_test: {error}")
