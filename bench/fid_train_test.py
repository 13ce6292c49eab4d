"""The distance of CIFAR-10's training pictures from its test pictures: what a perfect model gets.

    python bench/fid_train_test.py [EXTRACTOR] [COUNT] [DATA] [FOLDER]

COUNT of each split in an order that belongs to it. Statistics and features stay in FOLDER, where
`evaluate` finds them for runs beside it; an interrupted call goes on where it was.
"""

import sys
from pathlib import Path

from record import record

from pointillist.data.cifar10 import CIFAR10Config
from pointillist.evaluation import Plan
from pointillist.evaluation.generated import real_features
from pointillist.metrics import (
    frechet_score,
    kernel_score,
    open_extractor,
    precision_recall,
)
from pointillist.types import InputError


def show(what: str, done: int, of: int) -> None:
    if done % 1024 < 64:
        print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)


def main(
    name: str = "inception", count: str = "10000", path: str = "data/cifar10",
    folder: str = "runs/references",
) -> None:  # fmt: skip
    extractor, data = open_extractor(name), CIFAR10Config(path=path)
    sets = {split: data.open(split) for split in ("train", "test")}
    rows = {}
    for split, source in sets.items():
        plan = Plan(split=split, reference=int(count))
        found = real_features(source, plan, extractor, Path(folder), show, full=False, keep=True)
        rows[split] = found.rows
    n = len(rows["test"])
    # Below that the covariances lack rank, and the distance is refused.
    frechet = frechet_score(rows["train"], rows["test"])._asdict() if n > extractor.dim else None
    record(f"train-test-{name}-{n}", {
        "extractor": extractor.name, "digest": extractor.digest, "resize": extractor.resize,
        "pictures": n,
        "fingerprints": {split: source.spec.fingerprint for split, source in sets.items()},
        "frechet_distance": frechet,
        "kernel_distance": kernel_score(rows["train"], rows["test"])._asdict(),
        "precision_recall": precision_recall(rows["train"], rows["test"])._asdict(),
    })  # fmt: skip


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"fid_train_test: {error}")
