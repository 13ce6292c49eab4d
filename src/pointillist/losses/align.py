"""Alignment of hidden tokens with those of a frozen teacher.

REPA (Yu et al. 2410.06940): the tokens behind one block, through a projector, are to point where a
teacher's tokens of the clean picture point. iREPA (2512.10794): what helps is the spatial
structure of the teacher, so the projector is a convolution and the teacher's tokens lose (a share
of) what all of them have in common. Both come from the same fields:

    REPA     projector mlp,  normalise 0      iREPA    projector conv, normalise 1
"""

import math
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.frozen.remembered import Remembering
from pointillist.frozen.vision import Teacher, load_teacher, promise
from pointillist.losses.term import check_pictures, check_term
from pointillist.types import Count, InputError, Spec, config

Map = Float[Tensor, "b d gh gw"]


@config
class AlignConfig:
    """Defaults are iREPA's.

    `teacher`: alexnet, or a ViT of transformers by folder or hub id. `block`: behind which block of
    the model, counted from 1. `projector`: `conv` with an odd `kernel` (1: one linear layer), or
    `mlp` of three layers of width `hidden`. `normalise`: the share of the mean over a picture's
    tokens that is taken from each of the teacher's, before their deviation is made 1; 0 leaves the
    teacher as it is. `stop_after`: images after which the alignment ends, its cost included (0:
    never). `cache`: a folder in which the teacher's answers are kept, 2 d bytes a token, so that it
    sees every picture once; "": it is asked at every step.
    """

    weight: float = 0.0
    teacher: str = "alexnet"
    block: int = 4
    projector: Literal["conv", "mlp"] = "conv"
    kernel: int = 3
    hidden: int = 2048
    normalise: float = 1.0
    stop_after: Count = 0
    cache: str = ""

    def __post_init__(self) -> None:
        check_term(self, "loss.align")
        for name, low in (("block", 1), ("kernel", 1), ("hidden", 1), ("stop_after", 0)):
            if getattr(self, name) < low:
                raise InputError(
                    f"loss.align.{name} is {getattr(self, name)}; it must be {low} or more"
                )
        if self.kernel % 2 == 0:
            raise InputError(f"loss.align.kernel is {self.kernel}; it must be odd")
        if not 0 <= self.normalise <= 1:
            raise InputError(f"loss.align.normalise is {self.normalise}; it lies in [0, 1]")
        idle, default = ("hidden", 2048) if self.projector == "conv" else ("kernel", 3)
        if getattr(self, idle) != default:
            raise InputError(
                f"loss.align.{idle} is {getattr(self, idle)}, but loss.align.projector is "
                f"{self.projector}, which has none; leave it out"
            )

    def check(self, spec: Spec) -> None:
        check_pictures(self, "loss.align", spec, "a teacher")

    def due(self, images: int) -> bool:
        """Whether the step that begins at that count of images is aligned."""
        return self.weight > 0 and (not self.stop_after or images < self.stop_after)


class MLP(nn.Sequential):
    """REPA's projector, at every place alike."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, out),
        )  # fmt: skip

    def forward(self, x: Map) -> Float[Tensor, "b e gh gw"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def build_projector(config: AlignConfig, width: int, out: int) -> nn.Module:
    """From the model's width to the teacher's; Xavier for every layer, as in the models."""
    projector: nn.Module
    if config.projector == "mlp":
        projector = MLP(width, config.hidden, out)
    else:
        projector = nn.Conv2d(width, out, config.kernel, padding=config.kernel // 2)
    for module in projector.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return projector


def normalised(tokens: Map, share: float) -> Map:
    """(y - share * mean) / (std + 1e-6), of every channel over the places of one picture."""
    if not share:
        return tokens
    deviation, mean = torch.std_mean(tokens, (2, 3), keepdim=True)
    return (tokens - share * mean) / (deviation + 1e-6)


def misalignment(ours: Map, theirs: Float[Tensor, "b d gh2 gw2"]) -> Float[Tensor, " b"]:
    """1 - cosine, averaged over the places, in float32.

    Where a teacher answers on a grid of its own, ours is averaged or enlarged to it (PixelDiT).
    """
    grid = (theirs.shape[2], theirs.shape[3])
    if math.prod(grid) < math.prod(ours.shape[2:]):
        ours = F.adaptive_avg_pool2d(ours, grid)
    elif tuple(ours.shape[2:]) != grid:
        ours = F.interpolate(ours, grid, mode="bilinear", align_corners=False)
    return 1 - F.cosine_similarity(ours.float(), theirs.float(), dim=1).flatten(1).mean(1)


class Taught(NamedTuple):
    """What a run that goes on has of its alignment: the images seen, and the teacher's width and
    digest as its checkpoint has them (0 and "" where it tells neither).
    """

    images: int = 0
    width: int = 0
    digest: str = ""


class Alignment(nn.Module):
    """A projector, which is trained and saved with the run, and the teacher it looks up to.

    The teacher is no part of the module, whatever it is made of: none of its weights is trained or
    saved, and no gradient reaches it. None: it has ended, or is on the meta device.
    """

    teacher: Teacher | None

    def __init__(self, config: AlignConfig, width: int, out: int, digest: str = "") -> None:
        super().__init__()
        self.config, self.taps = config, (config.block,)
        self.width, self.digest = out, digest
        self.projector = build_projector(config, width, out)
        self.__dict__["teacher"] = None

    def look_up_to(self, teacher: Teacher) -> "Alignment":
        self.__dict__["teacher"] = teacher  # past nn.Module, which would make it a part
        self.digest = teacher.digest
        return self

    def let_go(self, images: int) -> None:
        """Forget the teacher once no further step asks it."""
        if not self.config.due(images):
            self.keep()
            self.__dict__["teacher"] = None

    def keep(self) -> None:
        """Write what the teacher answered and the disk does not hold yet."""
        if isinstance(self.teacher, Remembering):
            self.teacher.flush()

    def forward(self, hidden: Map, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """How far every sample's hidden tokens are from what the teacher sees in the clean x."""
        assert self.teacher is not None
        with torch.no_grad():
            taught = self.teacher(x, (hidden.shape[2], hidden.shape[3])).float()
        return misalignment(self.projector(hidden), normalised(taught, self.config.normalise))


def build_alignment(
    config: AlignConfig, model: nn.Module, device: torch.device, taught: Taught | None = None
) -> Alignment | None:
    """What aligns `model`, None where its weight is 0.

    On the meta device it has no teacher, nor where the run has `taught` it to its end: then nothing
    is asked of where the teacher was. Else the teacher is the one it was taught by, or refused.
    """
    if not config.weight:
        return None
    takes, kind = model.takes, model.config.kind  # type: ignore[union-attr]
    if config.block > takes.taps:  # type: ignore[operator, union-attr]
        raise InputError(
            f"loss.align.block is {config.block}, but model {kind} has {takes.taps} "  # type: ignore[union-attr]
            f"blocks to align; set loss.align.block lower, or loss.align={{}} to have none"
        )
    if config.normalise and math.prod(getattr(model, "trained", (2,))) == 1:
        raise InputError(
            f"loss.align.normalise is {config.normalise}, but the model makes one token of a "
            f"picture, which has no deviation; set it to 0"
        )
    width: int = model.config.width  # type: ignore[union-attr, assignment]
    taught = taught or Taught()
    due = config.due(taught.images)
    out = taught.width if taught.width and not due else promise(config.teacher).width
    made = Alignment(config, width, out, taught.digest).to(device)
    if device.type == "meta" or not due:
        return made
    teacher = load_teacher(config.teacher, device)
    if config.cache:
        teacher = Remembering(teacher, Path(config.cache).expanduser())
    made.look_up_to(teacher)
    if taught.digest and made.digest != taught.digest:
        raise InputError(
            f"loss.align.teacher {config.teacher} is not the teacher that the run was begun with: "
            f"its weights or its normalisation differ; bring that one back or choose another --out"
        )
    return made
