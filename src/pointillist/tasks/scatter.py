"""Tasks with scattered pixels: each known by chance, or exactly so many of them."""

import math
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from pointillist.draws import Draw
from pointillist.tasks.task import (
    Masking,
    Range,
    Revealed,
    check_range,
    ends,
    first_of,
    middle,
    share_of,
)
from pointillist.types import InputError, config


@config
class HintsConfig(Masking):
    """A share of the pixels is known, each by a draw of its own (jitmask).

    `share` may be a range, from which every sample draws its own. Published: share 0.25, weight
    0.1, absent 0.
    """

    kind: Literal["hints"] = "hints"
    share: Range = 0.25
    absent: float = 0.1
    weight: float = 0.1

    def __post_init__(self) -> None:
        Masking.__post_init__(self)
        check_range("share", self.share)
        low, high = ends(self.share)
        if not high:
            raise InputError("task.share is 0, so nothing is ever known; use task.kind=generate")
        if low == 1:
            raise InputError("task.share is 1, so nothing is ever hidden; set it below 1")
        if not self.weight and high == 1:
            raise InputError(
                "task.weight is 0, so where all is known nothing would be learnt; keep task.share "
                "below 1"
            )

    def expected(self, size: tuple[int, ...]) -> int:
        return round(middle(self.share) * math.prod(size))

    def most(self, size: tuple[int, ...]) -> int:
        return round(ends(self.share)[1] * math.prod(size))

    def reveal_of(
        self, draw: Draw, size: tuple[int, ...], row: Int[Tensor, " b"] | None = None
    ) -> Revealed:
        share = share_of(self.share, draw, "hint share").view(-1, *[1] * (len(size) + 1))
        return Revealed(draw.uniform("hints", (1, *size)) < share)


@config
class ScatterConfig(Masking):
    """A share `sparsity` of the pixels is kept, a share `cond_fraction` of those is shown.

    Counts are exact (rounded, and at least one); either share may be a range from which every
    sample draws its own. `reveal: all`: the clean picture is known to training everywhere, and all
    hidden pixels count. `reveal: kept`: it has only the kept pixels, as of a sensor that never saw
    the others: those are seen in no form, clean or noised, and do not count. `fixed`: a picture's
    pixels are the same in every epoch.
    """

    kind: Literal["scatter"] = "scatter"
    sparsity: Range = 0.4
    cond_fraction: Range = 0.5
    reveal: Literal["all", "kept"] = "all"
    fixed: bool = False

    def __post_init__(self) -> None:
        Masking.__post_init__(self)
        for name in ("sparsity", "cond_fraction"):
            check_range(name, getattr(self, name), above=True)
        most = ends(self.cond_fraction)[1]
        if self.reveal == "kept" and most == 1:
            raise InputError(
                "task.cond_fraction is 1 and task.reveal kept, so nothing is left to ask; set "
                "cond_fraction below 1"
            )
        if most == 1 and ends(self.sparsity)[1] == 1 and not self.weight:
            raise InputError(
                "task.sparsity and task.cond_fraction reach 1, so nothing is left to ask; set one "
                "of them below 1"
            )

    def expected(self, size: tuple[int, ...]) -> int:
        share = middle(self.sparsity) * middle(self.cond_fraction)
        return max(1, round(share * math.prod(size)))

    def most(self, size: tuple[int, ...]) -> int:
        share = ends(self.sparsity)[1] * ends(self.cond_fraction)[1]
        return max(1, round(share * math.prod(size)))

    def check_size(self, size: tuple[int, ...]) -> None:
        """InputError where a share of so few pixels is none of them, or leaves none to ask."""
        cells = math.prod(size)
        kept = round(ends(self.sparsity)[0] * cells)
        if not kept or not round(ends(self.cond_fraction)[0] * kept):
            raise InputError(
                f"task.sparsity {ends(self.sparsity)[0]:g} and task.cond_fraction "
                f"{ends(self.cond_fraction)[0]:g} of {cells:,} pixels are none; raise them"
            )
        most = round(ends(self.sparsity)[1] * cells)
        total = most if self.reveal == "kept" else cells
        if round(ends(self.cond_fraction)[1] * most) >= total and not self.weight:
            raise InputError(
                f"task.cond_fraction {ends(self.cond_fraction)[1]:g} of {most:,} kept pixels "
                f"leaves none to ask; set it lower"
            )

    def reveal_of(
        self, draw: Draw, size: tuple[int, ...], row: Int[Tensor, " b"] | None = None
    ) -> Revealed:
        if self.fixed:
            if row is None:
                raise InputError("task.fixed is true, but the data do not number their pictures")
            draw = draw._replace(index=row)
        cells = math.prod(size)
        kept = (share_of(self.sparsity, draw, "sparsity") * cells).round().long().clamp(min=1)
        shown = share_of(self.cond_fraction, draw, "cond fraction") * kept
        shown = shown.round().long().clamp(min=1)
        if self.reveal == "kept":  # of very few, one is left to ask
            shown = torch.minimum(shown, kept - 1)
        # Sorted by 32 random bits: where two cells have the same, the first is taken.
        order = torch.argsort(draw.bits("scatter", (cells,)), dim=1, stable=True)
        seen = first_of(order, shown, size)
        return Revealed(seen, first_of(order, kept, size) if self.reveal == "kept" else None)
