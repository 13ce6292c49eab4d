"""The nouns every room shares, and the two small words that make a configuration.

Letters in shapes mean the same thing in the whole package:

    b batch        c channels          o output channels    *space one to three axes of a grid
    n tokens       d width             e width of one head  p patch size
    k points asked m points observed   s axes of space      l text tokens   a augmentation labels

The state is `b c *space`: `h w` for a picture, three axes for a volume, one axis `k` for a set of
points that lie at `where`. `None` in a noun is a fact of the whole run (this model has no labels);
what was dropped for one sample is a value: label -1, or a mask that is false everywhere.
"""

import dataclasses
import math
import re
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, dataclass_transform

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BeforeValidator, ConfigDict, Field
from torch import Tensor

T = TypeVar("T")

State = Float[Tensor, "b c *space"]
Coarse = Float[Tensor, "b c *coarse"]  # a state seen smaller
Time = Float[Tensor, " b"]


class InputError(ValueError):
    """A mistake of the caller's: one sentence with the field or file, the value and the remedy."""


class Batch(NamedTuple):
    """Clean samples, as data hands them over and augmentation and task leave them."""

    # The running sample number, which keys every random draw (and hides tuple.index).
    index: Int[Tensor, " b"]  # type: ignore[assignment]
    x: Float[Tensor, "b c *space"]
    where: Float[Tensor, "b k s"] | None = None
    weight: Float[Tensor, "b _ *space"] | None = None  # how much the answer counts, per place
    label: Int[Tensor, " b"] | None = None
    caption: tuple[tuple[str, ...], ...] | None = None
    augment: Float[Tensor, "b a"] | None = None
    row: Int[Tensor, " b"] | None = None  # which picture of the data each sample is
    # The samples turned round along their last axis, where turning `x` would not give them.
    mirrored: Float[Tensor, "b c *space"] | None = None
    counts: Float[Tensor, " b"] | None = None  # how much each counts; 0 fills up a batch; None: 1

    def part(self, which: slice) -> "Batch":
        """Some of the samples."""
        parts: Any = (None if value is None else value[which] for value in self)
        return Batch(*parts)

    def to(self, device: torch.device) -> "Batch":
        """The same samples on another device."""
        moved: Any = (v.to(device) if isinstance(v, Tensor) else v for v in self)
        return Batch(*moved)


class Given(NamedTuple):
    """What the network may see beside the noisy state: labels, text, observations, places.

    `text_mask` is true where a caption has a token (None: everywhere); `pooled` is one vector for
    the whole caption, as wide as its tokens.
    """

    label: Int[Tensor, " b"] | None = None
    text: Float[Tensor, "b l d"] | None = None
    text_mask: Bool[Tensor, "b l"] | None = None
    pooled: Float[Tensor, "b d"] | None = None
    seen: Float[Tensor, "b c *coarse"] | None = None
    mask: Bool[Tensor, "b _ *coarse"] | None = None
    at: Float[Tensor, "b m s"] | None = None
    value: Float[Tensor, "b c m"] | None = None
    valid: Bool[Tensor, "b _ m"] | None = None
    where: Float[Tensor, "b k s"] | None = None
    augment: Float[Tensor, "b a"] | None = None


class Prediction(NamedTuple):
    """A network's answer; `hidden` are the tokens behind each block that the caller taps.

    They lie on the grid of their places; tokens without a place, as of the class, are left out.
    `guess` is the picture that an encoder made of the observation alone and that is in the answer,
    one row for the whole batch where nothing is observed.
    """

    value: Float[Tensor, "b o *space"]
    hidden: tuple[Float[Tensor, "b d *grid"], ...] = ()
    guess: Float[Tensor, "_ c *space"] | None = None


class Estimate(NamedTuple):
    """The pair behind any prediction: clean sample and noise, both shaped like the state.

    `fraction`: where the variance of a step of DDPM lies, in logs, from the posterior's (0) to
    beta (1), each value for itself and past either end too; None where no network says so.
    """

    x: Float[Tensor, "b c *space"]
    eps: Float[Tensor, "b c *space"]
    fraction: Float[Tensor, "b c *space"] | None = None


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that refuses unknown keys, NaN and infinity."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)


by_kind: Any = Field(discriminator="kind")  # the tag that tells the members of a union apart


def parse_count(value: Any) -> Any:
    """`10k`, `2M`, `1e6` or a whole number."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kKM]?)\s*", value)
        if match:
            try:
                value = float(match[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6}[match[2]]
            except ValueError:
                return value
    if isinstance(value, float) and math.isfinite(value) and value == round(value):
        return round(value)
    return value


Count = Annotated[int, BeforeValidator(parse_count)]


def parse_size(text: str, name: str = "--size") -> tuple[int, ...]:
    """`64` or `48x64` as numbers of pixels, height first; InputError names `name`."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{name} is {text}; it is HxW, as 64x48")
    size = tuple(int(part) for part in parts)
    return size * 2 if len(size) == 1 else size


class Takes(NamedTuple):
    """What a model works on: how many axes, grids or sets of points, which form of observation.

    `taps`: the blocks 1, ..., taps whose tokens of width `config.width` its forward gives away.
    `renders`: whole factors between the state and what the model sees of it, as drawn in training;
    one that has any renders at any. `jitter`: in that share of the steps its cells are moved.
    `reach`: how far along every axis, in coordinates, an answer depends on anything; () is: on all.
    `text`: whether it reads captions, where the data come with their features (`Spec.words`).
    """

    axes: tuple[int, ...] = (2,)
    sets: bool = False  # True: the state is `b c k` at `where`; grids are flattened at the door
    observations: Literal["none", "gridded", "scattered", "any"] = "none"
    taps: int = 0
    renders: tuple[int, ...] = ()
    jitter: float = 0.0
    reach: tuple[float, ...] = ()
    text: bool = False


@config
class Axis:
    """One axis of space: its size on the training grid, unit and bounds in the user's terms.

    Coordinates of the network are linear in v, or in log(1 + v/scale), and run from -1 at `low` to
    1 at `high`; those of a periodic axis come round again beyond.
    """

    name: str
    size: int
    unit: str = "cell"
    periodic: bool = False
    low: float = -1.0
    high: float = 1.0
    transform: Literal["linear", "log"] = "linear"
    scale: float = 1.0

    def to_unit(self, value: Any) -> Float[Tensor, "*b"]:
        """Coordinates in the axis' unit as the network's, float64; InputError outside of bounds."""
        told = v = torch.as_tensor(value, dtype=torch.float64)
        if self.periodic:
            v = self.low + (v - self.low).remainder(self.high - self.low)
        slack = 1e-9 * (self.high - self.low)
        outside = ~((v >= self.low - slack) & (v <= self.high + slack))
        if outside.any():
            raise InputError(
                f"{self.name} is {float(told[outside].flatten()[0]):g} "
                f"{self.unit}; it lies in [{self.low:g}, {self.high:g}]"
            )
        low, high = self._bent(torch.tensor([self.low, self.high], dtype=torch.float64))
        return ((self._bent(v) - low) / (high - low) * 2 - 1).clamp(-1, 1)

    def from_unit(self, unit: Any) -> Float[Tensor, "*b"]:
        """The network's coordinates in the axis' own unit, float64."""
        low, high = self._bent(torch.tensor([self.low, self.high], dtype=torch.float64))
        bent = low + (torch.as_tensor(unit, dtype=torch.float64) + 1) / 2 * (high - low)
        return bent if self.transform == "linear" else bent.expm1() * self.scale

    def _bent(self, v: Tensor) -> Tensor:
        return v if self.transform == "linear" else (v / self.scale).log1p()


@config
class Code:
    """What latents are made of: pictures of `channels`, `factor` pixels to a cell on each axis.

    `digest` is of all that the autoencoder's answers come from; "": nobody has opened its weights.
    """

    factor: int
    channels: int = 3
    digest: str = ""


@config
class Words:
    """What captions become: at most `length` tokens of `width`, by a frozen encoder.

    `digest` is of all that the encoder's answers come from; "": nobody has opened its weights.
    """

    width: int
    length: int
    digest: str = ""


@config
class Spec:
    """What a data set promises; kept with the run, and all that a model is built from.

    A stored value `v` of channel `i` means `v * scale[i] + offset[i]` in the data's own unit, so
    8-bit pictures have offset and scale 127.5.
    """

    channels: int
    axes: tuple[Axis, ...]
    classes: tuple[str, ...] = ()
    captions: bool = False
    unit: str = "8-bit level"
    offset: tuple[float, ...] = (127.5,)
    scale: tuple[float, ...] = (127.5,)
    samples: int = 0
    fingerprint: str = ""
    placed: bool = False  # samples lie somewhere in the bounds and say where, as crops of a field
    bounded: bool = True  # samples lie in [-1, 1] in the network's units, as levels do
    code: Code | None = None  # samples are latents of an autoencoder; None: they are what is shown
    words: Words | None = None  # captions are read by an encoder of text; None: nobody reads them
    buckets: tuple[tuple[int, int], ...] = ()  # sizes of pictures that are not all of `size`

    AXIS_NAMES: ClassVar[tuple[str, ...]] = ("depth", "height", "width")

    @property
    def size(self) -> tuple[int, ...]:
        """Cells on each axis of the training grid, in array order."""
        return tuple(axis.size for axis in self.axes)

    @property
    def cells(self) -> int:
        return math.prod(self.size)

    @property
    def largest(self) -> float:
        """What no known value exceeds in the network's units: levels end, standardised ones not."""
        return 1e30 if self.placed or not self.bounded else 1.0

    @property
    def shown(self) -> tuple[int, tuple[int, ...]]:
        """Channels and size of what is looked at: of latents the decoded picture's."""
        if self.code is None:
            return self.channels, self.size
        return self.code.channels, tuple(n * self.code.factor for n in self.size)

    def to_unit(self, points: Any) -> Float[Tensor, "*b s"]:
        """Points in the axes' own units, one column an axis, as the network's coordinates."""
        points = torch.as_tensor(points, dtype=torch.float64)
        if points.dim() == 0 or points.shape[-1] != len(self.axes):
            raise InputError(
                f"points have shape {tuple(points.shape)}; give one column for each of "
                f"{', '.join(axis.name for axis in self.axes)}"
            )
        columns = zip(self.axes, points.unbind(-1), strict=True)
        return torch.stack([axis.to_unit(v) for axis, v in columns], -1).float()


def grid_axes(size: tuple[int, ...]) -> tuple[Axis, ...]:
    """Axes of a plain picture or volume: the last is the width, coordinates run over [-1, 1]."""
    names = Spec.AXIS_NAMES[-len(size) :]
    return tuple(Axis(name=name, size=n) for name, n in zip(names, size, strict=True))
