"""Augmentation: the same picture, seen otherwise, drawn by the sample's own number.

`geometric` follows Karras et al. 2206.00364 (App. F.2, Table 6): what was done to a picture is told
to the network as labels, which are 0 when it samples, so that no turned picture leaks into what it
draws. In one point the labels are not the paper's: the direction of stretching is told by twice its
angle, for by the angle itself stretching and shrinking have one label.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pointillist.draws import Draw
from pointillist.types import Batch, InputError, config

LABELS = 9  # flips 2, scale 1, turn 2, stretch 2, shift 2
SCALE = 0.2 * math.log(2)  # of log scale and log stretch, a standard deviation
SHIFT = 1 / 8  # of the picture's edge, a standard deviation


@config
class AugmentConfig:
    """`flip`: the last axis is turned round in half of the samples.

    `geometric`: the probability of each of scaling, turning, stretching, shifting (and, for half of
    those, of turning upside down): 0.12 for CIFAR-10 and 0.15 for FFHQ in EDM. The network takes
    the labels: model.augment_labels=9.
    """

    flip: bool = True
    geometric: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.geometric <= 1:
            raise InputError(f"augment.geometric is {self.geometric}; a probability is in [0, 1]")

    @property
    def labels(self) -> int:
        """How many numbers tell the network what was done."""
        return LABELS if self.geometric else 0

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        for name in ("flip", "geometric"):
            if getattr(self, name) and batch.where is not None:
                raise InputError(
                    f"augment.{name} is {str(getattr(self, name)).lower()}, but the data are "
                    f"scattered; set it to {'false' if name == 'flip' else 0}"
                )
        turn = draw.bits("flip") & 1 if self.flip else torch.zeros_like(draw.index)
        if self.flip:
            mirrored, x = batch.mirrored, batch.x
            batch = _each(batch, lambda v: _flipped(v, turn.bool(), -1))
            if mirrored is not None:  # latents are not turned: the picture was, and then encoded
                batch = batch._replace(x=torch.where(_column(turn.bool(), x), mirrored, x))
        if not self.geometric:
            return batch
        labels, back = self._drawn(draw, turn.float(), _edges(batch.x))
        batch = _each(batch, lambda v: _flipped(v, labels[:, 1].bool(), -2))
        moved = (labels[:, 2:] != 0).any(1)
        return _each(batch, lambda v: _moved(v, back, moved))._replace(augment=labels)

    def _drawn(
        self, draw: Draw, flip: Float[Tensor, " b"], edges: Float[Tensor, "2"]
    ) -> tuple[Float[Tensor, "b a"], Float[Tensor, "b 2 3"]]:
        """The labels, and where each place comes from, in halves of the picture's shorter edge."""
        done = draw.uniform("augment", (5,)) < self.geometric
        upside, scale, angle, along, stretch, right, down = (
            values * done[:, i]
            for values, i in (
                ((draw.bits("augment upside down") & 1).float(), 0),
                (draw.normal("augment scale", ()), 1),
                ((draw.uniform("augment turn") * 2 - 1) * math.pi, 2),
                ((draw.uniform("augment stretch along") * 2 - 1) * math.pi, 3),
                (draw.normal("augment stretch", ()), 3),
                *((draw.normal("augment shift", (2,))[:, k], 4) for k in range(2)),
            )
        )
        labels = torch.stack(
            (flip, upside, scale, angle.cos() - 1, angle.sin(), stretch * (2 * along).cos(),
             stretch * (2 * along).sin(), right, down), 1,
        )  # fmt: skip
        # A picture is scaled, then turned, stretched along a direction, shifted; then undone.
        turned, aside = _rotation(angle), _rotation(along)
        grow = (SCALE * scale).exp()[:, None, None]
        length = torch.stack((SCALE * stretch, -SCALE * stretch), 1).exp()
        forth = aside @ torch.diag_embed(length) @ aside.mT @ turned * grow
        shift = torch.stack((right, down), 1)[..., None] * (2 * SHIFT * edges[:, None])
        undone = torch.linalg.inv(forth.double()).float()
        return labels, torch.cat((undone, -undone @ shift), 2)


def _rotation(angle: Float[Tensor, " b"]) -> Float[Tensor, "b 2 2"]:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)


def _edges(values: Float[Tensor, "b c h w"]) -> Float[Tensor, "2"]:
    """Width and height over the shorter of them, in which turning keeps angles."""
    h, w = values.shape[2:]
    return torch.tensor([w, h], device=values.device) / min(h, w)


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with `change` made to the picture and to the weights that belong to it."""
    weight = None if batch.weight is None else change(batch.weight)
    return batch._replace(x=change(batch.x), weight=weight)


def _flipped(
    values: Float[Tensor, "b c *space"], turn: Bool[Tensor, " b"], axis: int
) -> Float[Tensor, "b c *space"]:
    return torch.where(_column(turn, values), values.flip(axis), values)


def _column(turn: Bool[Tensor, " b"], like: Tensor) -> Bool[Tensor, "b ..."]:
    return turn.view(-1, *[1] * (like.dim() - 1))


def _moved(
    values: Float[Tensor, "b c h w"], back: Float[Tensor, "b 2 3"], moved: Bool[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Values from where they lay, by bicubic interpolation, mirrored at the edges."""
    (h, w), edges = values.shape[2:], _edges(values)
    grid = F.affine_grid(torch.eye(2, 3, device=values.device)[None], [1, 1, h, w], False)
    places = (grid * edges).view(1, -1, 2) @ back[:, :, :2].mT + back[:, None, :, 2]
    places = (places / edges).view(-1, h, w, 2)
    found = F.grid_sample(values, places, "bicubic", "reflection", align_corners=False)
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    return torch.where(moved[:, None, None, None], found.clamp(low, high), values)
