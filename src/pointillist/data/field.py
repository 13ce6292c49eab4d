"""Measured fields in one to three axes: crops of an array in a .npz file, with their coordinates.

The array `variable` has its coordinates beside it as `<variable>__<axis>`, one 1-D array an axis,
in the order of its axes. NaN is a gap: it is never observed and bears no loss.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pointillist.data.field_file import FieldFile, read_field
from pointillist.data.report import Refused, Report
from pointillist.data.source import Rows
from pointillist.types import Axis, InputError, Spec, config

Split = Literal["train", "test"]


@config
class FieldAxisConfig:
    """What the file does not tell of an axis: unit, transform, period (0: not periodic), bounds.

    `log` is log(1 + v/scale). Bounds are the outermost coordinates where they are None.
    """

    name: str
    unit: str = ""
    transform: Literal["linear", "log"] = "linear"
    scale: float = 1.0
    period: float = 0.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.scale < math.inf and 0 <= self.period < math.inf):
            raise InputError(
                f"data.axes {self.name} has scale {self.scale:g} and period {self.period:g}; a "
                f"scale is above 0, a period 0 or more, and both are finite"
            )
        if self.period and (self.transform == "log" or (self.low, self.high) != (None, None)):
            raise InputError(
                f"data.axes {self.name} has a period, which is linear and bounds itself; leave "
                f"transform, low and high out"
            )


@config
class HoldoutConfig:
    """The interval of one axis, ends included, that is never trained on and validates."""

    axis: str
    low: float
    high: float


@config
class FieldConfig:
    """Crops of `crop` cells, one corner every `stride` cells (none: half of the crop).

    Crops with less than a share `known` of values that are no gaps are withheld. Held-out crops lie
    inside of `holdout` and are as long there as the interval, if that is shorter.
    """

    kind: Literal["field"] = "field"
    path: str = "data/field.npz"
    variable: str = ""  # none: the only one of the file
    unit: str = ""
    axes: tuple[FieldAxisConfig, ...] = ()
    crop: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    holdout: HoldoutConfig | None = None
    known: float = 0.25

    def __post_init__(self) -> None:
        for name in ("crop", "stride"):
            if any(n < 1 for n in getattr(self, name)):
                raise InputError(f"data.{name} is {list(getattr(self, name))}; sizes are 1 or more")
        if not 0 < self.known <= 1:
            raise InputError(f"data.known is {self.known}; it lies in (0, 1]")
        names = [axis.name for axis in self.axes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"data.axes tells of {twice[0]} twice; name each axis once")

    def promise(self) -> Spec:
        return self.open("train").spec

    def open(self, split: Split) -> "Crops":
        """Crops outside of the hold-out, or inside of it."""
        field = read_field(Path(self.path).expanduser(), self.variable)
        return Crops(self, *self._told(field), split)

    def examine(self) -> Report:
        """Size, axes, gaps, and how many crops either split has."""
        parts = {"train": self.open("train"), "test": self.open("test")}
        train = parts["train"]
        spec, gaps = train.spec, float(np.isnan(train.x).mean())
        size = "x".join(map(str, train.x.shape))
        text = [
            f"field {train.name}: {size}, {gaps:.1%} missing, mean {spec.offset[0]:g} and standard "
            f"deviation {spec.scale[0]:g} {spec.unit} outside of the hold-out"
        ]
        for axis, n in zip(spec.axes, train.x.shape, strict=True):
            bent = f", log(1 + v/{axis.scale:g})" if axis.transform == "log" else ""
            round_ = ", periodic" if axis.periodic else ""
            text.append(f"  {axis.name}: {n} from {axis.low:g} to {axis.high:g} {axis.unit}"
                        f"{bent}{round_}")  # fmt: skip
        for name, part in parts.items():
            cells = "x".join(map(str, part.crop))
            text.append(f"{name}: {len(part)} crops of {cells} offered, {part.withheld} withheld "
                        f"with less than {self.known:.0%} known")  # fmt: skip
        used = {name: len(part) for name, part in parts.items()}
        return Report(self.kind, spec, 1, used, text=tuple(text))

    def _told(self, field: FieldFile) -> tuple[FieldFile, tuple[Axis, ...]]:
        """The field, without a meridian that is there twice, and its axes as configured."""
        names = tuple(field.ticks)
        known = {axis.name: axis for axis in self.axes}
        for name, what in [(name, "data.axes") for name in known] + [
            (one.axis, "data.holdout.axis") for one in [self.holdout] if one
        ]:
            if name not in names:
                raise InputError(f"{what} names {name}; the axes are {', '.join(names)}")
        if len(self.crop) != len(names) or len(self.stride) not in (0, len(names)):
            raise InputError(
                f"data.crop is {list(self.crop)} and data.stride {list(self.stride)}, but the "
                f"field has the axes {', '.join(names)}; give one size for each"
            )
        axes = []
        for number, (name, crop) in enumerate(zip(names, self.crop, strict=True)):
            told, ticks = known.get(name, FieldAxisConfig(name=name)), field.ticks[name]
            if told.period and math.isclose(np.ptp(ticks), told.period, rel_tol=1e-6):
                first, last = field.x.take(0, number), field.x.take(-1, number)
                if not np.allclose(first, last, atol=1e-5, equal_nan=True):
                    raise InputError(
                        f"{field.path}: {name} comes round after {told.period:g}, but its last "
                        f"cells are not the first again; leave the last ones out of the file"
                    )
                field = field.without_last(number)
                ticks = field.ticks[name]
            axes.append(_axis(told, ticks, crop))
            if crop > len(ticks):
                raise InputError(
                    f"data.crop is {crop} on {name}, which has {len(ticks)} cells; take fewer"
                )
        return field, tuple(axes)


def _axis(told: FieldAxisConfig, ticks: np.ndarray, crop: int) -> Axis:
    """One axis with its bounds; InputError where they leave cells out."""
    first, last = float(ticks[0]), float(ticks[-1])
    low = first if told.low is None else told.low
    high = last if told.high is None else told.high
    if told.period:
        if last - first > told.period:
            raise InputError(f"data.axes {told.name} has period {told.period:g}, but its cells "
                             f"span {last - first:g}; set a longer one")  # fmt: skip
        low = first - (told.period - (last - first)) / 2
        high = low + told.period
    if low > first or high < last or low == high:
        raise InputError(f"data.axes {told.name} is bounded by {low:g} and {high:g}, but its cells "
                         f"lie from {first:g} to {last:g}; let bounds enclose them")  # fmt: skip
    if told.transform == "log" and low <= -told.scale:
        raise InputError(f"data.axes {told.name} begins at {low:g}, where log(1 + v/"
                         f"{told.scale:g}) is not finite; set a larger scale")  # fmt: skip
    return Axis(name=told.name, size=crop, unit=told.unit, periodic=told.period > 0, low=low,
                high=high, transform=told.transform, scale=told.scale)  # fmt: skip


class Crops:
    """Crops of a field with the places of their cells, one split of it."""

    in_memory = True
    label = caption = None
    refused: tuple[Refused, ...] = ()

    def __init__(
        self, config: FieldConfig, field: FieldFile, axes: tuple[Axis, ...], split: Split
    ) -> None:
        if config.holdout is None:
            raise InputError("data.holdout is not set; name the axis, low and high of the interval "
                             "that validates")  # fmt: skip
        self.x, self.name, names = field.x, field.name, tuple(field.ticks)
        self.unit = [axis.to_unit(ticks).numpy().astype(np.float32)
                     for axis, ticks in zip(axes, field.ticks.values(), strict=True)]  # fmt: skip
        across = names.index(config.holdout.axis)
        held = _inside(config.holdout, axes[across], field.ticks[names[across]])
        shape = [-1 if i == across else 1 for i in range(len(axes))]
        learnt = self.x[np.isfinite(self.x) & ~held.reshape(shape)].astype(np.float64)
        if not learnt.size or not learnt.std():
            raise InputError(f"{field.path}: outside of data.holdout {self.name} has no two values "
                             f"that differ; hold less out")  # fmt: skip
        crop = list(config.crop)
        if split == "test":
            crop[across] = min(crop[across], int(held.sum()))
        self.crop = tuple(crop)
        starts = []
        for i, (axis, n, length) in enumerate(zip(axes, self.x.shape, crop, strict=True)):
            all_starts = np.arange(n if axis.periodic and length < n else n - length + 1)
            if i == across:
                wanted = held if split == "test" else ~held
                cells = (all_starts[:, None] + np.arange(length)) % n
                all_starts = all_starts[wanted[cells].all(1)]
            starts.append(_every(all_starts, (config.stride or [max(1, c // 2) for c in crop])[i]))
        corners = [corner for corner in itertools.product(*starts)
                   if np.isfinite(self.x[self._cells(corner)]).mean() >= config.known]  # fmt: skip
        if not corners:
            raise InputError(
                f"{field.path}: not one crop of {'x'.join(map(str, crop))} to {split} is "
                f"{config.known:.0%} known, beside data.holdout; take a smaller data.crop"
            )
        self.corners = np.array(corners)
        self.withheld = math.prod(map(len, starts)) - len(corners)
        told = hashlib.blake2b(self.x.tobytes(), digest_size=16)
        for value in (*self.unit, self.corners):
            told.update(value.tobytes())
        self.spec = Spec(
            channels=1, axes=axes, unit=config.unit, offset=(float(learnt.mean()),),
            scale=(float(learnt.std()),), samples=len(corners), fingerprint=told.hexdigest(),
            placed=True,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.corners)

    def rows(self, rows: Sequence[int]) -> Rows:
        values, places = [], []
        for number in rows:
            cells = self._cells(self.corners[number].tolist())
            values.append(self.x[cells])
            ticks = [unit[i.ravel()] for unit, i in zip(self.unit, cells, strict=True)]
            mesh = np.meshgrid(*ticks, indexing="ij")
            places.append(np.stack(mesh, -1).reshape(-1, len(ticks)))
        x = torch.from_numpy(np.stack(values))[:, None]
        return Rows(x, None, None, where=torch.from_numpy(np.stack(places)),
                    weight=x.isfinite().float())  # fmt: skip

    def _cells(self, corner: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Numbers of a crop's cells along every axis, open to each other."""
        every = zip(corner, self.crop, self.x.shape, strict=True)
        spans = [(first + np.arange(length)) % n for first, length, n in every]
        return np.ix_(*spans)


def _inside(holdout: HoldoutConfig, axis: Axis, ticks: np.ndarray) -> np.ndarray:
    """Which cells of the axis are held out; InputError where none or all are."""
    span, beyond = holdout.high - holdout.low, ticks - holdout.low
    if axis.periodic:
        beyond = beyond % (axis.high - axis.low)
    slack = 1e-6 * (axis.high - axis.low)  # coordinates may be stored in float32
    held = (beyond >= -slack) & (beyond <= span + slack)
    if axis.periodic:
        held |= beyond >= axis.high - axis.low - slack
    if not held.any() or held.all():
        raise InputError(
            f"data.holdout is {axis.name} from {holdout.low:g} to {holdout.high:g}, which holds "
            f"{'all' if held.all() else 'none'} of its cells; they lie from {ticks[0]:g} to "
            f"{ticks[-1]:g}"
        )
    return held


def _every(starts: np.ndarray, stride: int) -> list[int]:
    """Each `stride`-th start of every run without a hole, and the run's last."""
    runs = np.split(starts, np.flatnonzero(np.diff(starts) > 1) + 1)
    return [s for run in runs if len(run) for s in sorted({*run[::stride].tolist(), int(run[-1])})]
