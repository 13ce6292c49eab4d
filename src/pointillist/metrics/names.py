"""Metrics by name, as they are asked for: `kid`, `fid`, `fid10k_full`, `psnr`, ..."""

import re
from typing import NamedTuple

from pointillist.types import InputError, parse_count

GENERATED = ("fid", "kid", "precision", "recall")  # of generated pictures, from features
RESTORED = (  # of held-out pictures from some of their pixels
    "psnr", "psnr_whole", "psnr_draw", "ssim", "lpips", "crps", "coverage", "spread_error",
)  # fmt: skip
DENOISED = ("velocity", "hinted")  # of the network itself on held-out pictures; with hints
NAMES = (*GENERATED, *RESTORED, *DENOISED)


class Metric(NamedTuple):
    """One metric as asked for: `fid10k_full` is the score fid, of 10,000 pictures, against all."""

    name: str
    score: str
    pictures: int | None = None  # None: as many as the evaluation makes
    full: bool = False  # against every picture of the split, not a part of it


def parse_metric(name: str) -> Metric:
    """InputError where there is no such metric."""
    match = re.fullmatch(r"([a-z_]*?[a-z])([0-9]+[kM]?)?(_full)?", name)
    if not match or match[1] not in NAMES or ((match[2] or match[3]) and match[1] not in GENERATED):
        raise InputError(
            f"metric {name} is not known; there are {', '.join(NAMES)}, and of the first "
            f"{len(GENERATED)} forms as fid10k_full"
        )
    if match[3] and match[1] in ("precision", "recall"):
        raise InputError(
            f"metric {name} is not known: {match[1]} takes as many real pictures as generated; "
            f"ask for {match[1]}{match[2] or ''}"
        )
    count = parse_count(match[2]) if match[2] else None
    if count is not None and count < 2:
        raise InputError(f"metric {name} asks for {count} pictures; it needs 2 or more")
    return Metric(name, match[1], count, bool(match[3]))


def parse_metrics(names: tuple[str, ...]) -> tuple[Metric, ...]:
    """All of them, each once."""
    if not names:
        raise InputError(f"no metric is asked for; there are {', '.join(NAMES)}")
    if len(set(names)) < len(names):
        raise InputError(f"metrics are {', '.join(names)}; one stands there twice")
    return tuple(parse_metric(name) for name in names)
