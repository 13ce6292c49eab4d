"""Statistics of the pictures that others are measured against: made once, kept, and checked.

They are kept as a folder in the form of a checkpoint, safetensors and JSON with digests, complete
or absent, and are used again only where data, split, number, extractor and resizing are the same.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from pointillist.engine import checkpoint
from pointillist.metrics.features import Extractor, Features, extract
from pointillist.metrics.moments import Moments
from pointillist.types import InputError, config


@config
class ReferenceFacts:
    """What must be equal for kept statistics to be the ones that are asked for."""

    fingerprint: str  # of the data set
    split: str
    count: int
    extractor: str
    digest: str
    resize: str

    @classmethod
    def of(cls, extractor: Extractor, fingerprint: str, split: str, count: int) -> "ReferenceFacts":
        return cls(
            fingerprint=fingerprint, split=split, count=count, extractor=extractor.name,
            digest=extractor.digest, resize=extractor.resize,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def reference(
    folder: Path,
    extractor: Extractor,
    batches: Callable[[], Iterable[Tensor]],
    *,
    fingerprint: str,
    split: str,
    count: int,
    keep: bool = False,
) -> Features:
    """The statistics in `folder`, or those of `batches()` (uint8, `b c h w`), kept there.

    `folder` may lie beside the data or in a run. With `keep`, the features of every picture are
    kept too (4 d bytes each), as the kernel distance and precision and recall need them; statistics
    kept without them are made again. InputError where `folder` holds those of anything else.
    """
    facts = ReferenceFacts.of(extractor, fingerprint, split, count)
    if folder.exists():
        check_same(folder, facts)
        found = load(folder)
        if found.rows is not None or not keep:
            return found
    found = extract(extractor, batches(), keep)
    if found.moments.n != count:
        raise InputError(f"{count} pictures of {split} were asked for and {found.moments.n} came; "
                         f"ask for no more than there are")  # fmt: skip
    save(folder, facts, found)
    return found


def save(folder: Path, facts: ReferenceFacts, features: Features) -> None:
    """Write the folder, complete or not at all."""
    tensors = {"mean": features.moments.mean, "cov": features.moments.cov}
    if features.rows is not None:
        tensors["features"] = features.rows
    checkpoint.save(folder, {"statistics": tensors}, {"reference": facts.as_dict()})


def load(folder: Path) -> Features:
    """What `save` wrote; InputError names a file that is missing or damaged."""
    count = _facts(folder)["count"]
    try:
        tensors = checkpoint.load(folder, "statistics")
        moments = Moments(count, tensors["mean"], tensors["cov"])
    except (InputError, KeyError):
        raise InputError(f"the statistics in {folder} are damaged, or not whole; delete it, and "
                         f"they are made again") from None  # fmt: skip
    return Features(moments, tensors.get("features"))


def check_same(folder: Path, facts: ReferenceFacts) -> None:
    """InputError names the first fact in which the kept statistics are others."""
    kept = _facts(folder)
    for name, asked in facts.as_dict().items():
        if kept.get(name) != asked:
            raise InputError(
                f"{folder} holds reference statistics with {name} {kept.get(name)!r}, and "
                f"{asked!r} is asked for; delete it, or name another folder"
            )


def _facts(folder: Path) -> dict[str, Any]:
    if not (folder / "state.json").is_file():
        raise InputError(f"{folder} holds no reference statistics; delete it, or name another")
    try:
        kept = checkpoint.facts_of(folder).get("reference")
    except InputError:
        kept = None
    if not isinstance(kept, dict) or not isinstance(kept.get("count"), int):
        raise InputError(f"{folder / 'state.json'} is damaged; delete {folder}, and the "
                         f"statistics are made again")  # fmt: skip
    return kept
