"""Inpainting: connected regions are asked for, drawn or read from mask files."""

import functools
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointillist.draws import Draw
from pointillist.layers.observations import centres
from pointillist.picture_files import open_named, reading
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

CORNERS = 4  # of a stroke


@config
class InpaintConfig(Masking):
    """A box or a stroke is hidden, as large as a share `area` of the picture, to the pixel.

    `masks` names a mask file, or a folder of them, that take the place of drawn shapes: white
    pixels are known, black ones asked for, each sample draws its own.
    """

    kind: Literal["inpaint"] = "inpaint"
    shapes: tuple[Literal["box", "stroke"], ...] = ("box", "stroke")
    area: Range = (0.1, 0.5)
    masks: str = ""

    def __post_init__(self) -> None:
        Masking.__post_init__(self)
        check_range("area", self.area, above=True)
        if ends(self.area)[1] == 1:
            raise InputError("task.area reaches 1, so nothing is ever known; set it below 1")
        rest = InpaintConfig.__dataclass_fields__
        for name in ("area", "shapes"):
            if self.masks and getattr(self, name) != rest[name].default:
                raise InputError(
                    f"task.masks is {self.masks}, which takes the place of task.{name}; leave one "
                    f"of them out"
                )
        if not self.shapes or len(set(self.shapes)) < len(self.shapes):
            raise InputError(
                f"task.shapes is {list(self.shapes)}; give box, stroke or both, each once"
            )

    def expected(self, size: tuple[int, ...]) -> int:
        if self.masks:
            return round(float(masks_of(self.masks, size).flatten(1).sum(1).float().mean()))
        return math.prod(size) - round(middle(self.area) * math.prod(size))

    def most(self, size: tuple[int, ...]) -> int:
        if self.masks:
            return int(masks_of(self.masks, size).flatten(1).sum(1).max())
        return math.prod(size) - round(ends(self.area)[0] * math.prod(size))

    def check_size(self, size: tuple[int, ...]) -> None:
        """InputError where a mask file does not fit pictures of `size`."""
        if self.masks:
            masks_of(self.masks, size)

    def reveal_of(
        self, draw: Draw, size: tuple[int, ...], row: Int[Tensor, " b"] | None = None
    ) -> Revealed:
        if self.masks:
            found = masks_of(self.masks, size).to(draw.index.device)
            return Revealed(found[draw.below("mask file", found.shape[0])])
        kinds = {"box": box_depth, "stroke": stroke_depth}
        which = draw.below("inpaint shape", len(self.shapes))
        depth = torch.stack([kinds[name](draw, size) for name in self.shapes])
        depth = depth[which, torch.arange(depth.shape[1], device=which.device)]
        count = (share_of(self.area, draw, "inpaint area") * math.prod(size)).round().long()
        order = torch.argsort(depth, dim=1, stable=True)
        return Revealed(~first_of(order, count.clamp(min=1), size))


def box_depth(draw: Draw, size: tuple[int, ...]) -> Float[Tensor, "b k"]:
    """How far outside of a box each cell lies: the smaller, the sooner it is hidden.

    The box has a centre anywhere and edges in a ratio of up to 2; cut off at the border it grows
    elsewhere, for its area is given.
    """
    places = centres(size).to(draw.index.device)
    centre = draw.uniform("box centre", (1, len(size))) * 2 - 1
    # In float64, rounded once: float32 powers depend on the place in a batch.
    stretch = torch.exp2(draw.uniform("box stretch", (1, len(size))).double() - 0.5).float()
    return ((places - centre).abs() * stretch).amax(-1)


def stroke_depth(draw: Draw, size: tuple[int, ...]) -> Float[Tensor, "b k"]:
    """The distance of each cell from a line through a few random corners."""
    places = centres(size).to(draw.index.device)[None, :, None]  # 1 k 1 s
    corners = draw.uniform("stroke", (CORNERS, len(size))) * 2 - 1
    start, along = corners[:, None, :-1], (corners[:, 1:] - corners[:, :-1])[:, None]
    reach = along.square().sum(-1).clamp(min=1e-12)
    at = (((places - start) * along).sum(-1) / reach).clamp(0, 1)
    return (places - start - at[..., None] * along).square().sum(-1).amin(-1)


@functools.lru_cache(8)
def masks_of(path: str, size: tuple[int, ...]) -> Bool[Tensor, "n 1 *space"]:
    """All masks of a file or folder: true where pixels are known."""
    place = Path(path)
    files = sorted(f for f in place.iterdir() if f.suffix.lower() == ".png") if place.is_dir() \
        else [place]  # fmt: skip
    if not files:
        raise InputError(f"task.masks is {path}, which holds no .png file; put masks there")
    return torch.stack([read_mask(file, size) for file in files])[:, None]


def read_mask(path: Path, size: tuple[int, ...]) -> Bool[Tensor, "h w"]:
    """A mask file of `size` = (h, w): white is known, black is asked for; nothing between.

    The values are those of the file, at its own depth: white is 65535 in 16 bits.
    """
    try:
        with reading(path):
            levels, top = open_named(path).levels()
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if levels.shape[:2] != tuple(size):
        raise InputError(
            f"{path} has {levels.shape[0]}x{levels.shape[1]} pixels, the picture "
            f"{'x'.join(map(str, size))}; give a mask of the same size"
        )
    known, asked = (levels == top).all(2), (levels == 0).all(2)
    if not (known | asked).all():
        y, x = np.argwhere(~(known | asked))[0]
        found = ", ".join(map(str, levels[y, x]))
        raise InputError(
            f"{path} is {found} at x {x}, y {y}; a mask is 0 (asked for) or {top} (known)"
        )
    if not known.any():
        raise InputError(f"{path} is black everywhere, so nothing is known; leave some white")
    if known.all():
        raise InputError(f"{path} is white everywhere, so nothing is asked for; leave some black")
    return torch.from_numpy(known)
