"""What is known beforehand, checked once and put onto the grid that is asked for."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from pointillist.layers.observations import whole_pixels
from pointillist.measure import Chain, Mask, Measure, area
from pointillist.models.door import gather_on_grid
from pointillist.tasks import show
from pointillist.types import Given, InputError

OBSERVATIONS = ("seen", "mask", "at", "value", "valid")


def on_grid(
    known: object, count: int, channels: int, size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """(seen, mask), `count c *space` and `count 1 *space` on the CPU, of what a `Given` holds.

    Gridded (`seen`, `mask`), scattered (`at`, `value`, `valid`) or both; where both tell of a cell
    the grid's value counts. NaN means "not known", without mask or valid all that is finite is
    known. One row is taken for all pictures. InputError where anything does not fit.
    """
    if not isinstance(known, Given):
        raise InputError(f"known is a {type(known).__name__}; give pointillist.Given(seen=, mask=)")
    other = [name for name in Given._fields if name not in OBSERVATIONS]
    if extra := [name for name in other if getattr(known, name) is not None]:
        raise InputError(f"known holds {extra[0]}; it takes {', '.join(OBSERVATIONS)} only")
    known = Given(*(_tensor(name, part) for name, part in zip(Given._fields, known, strict=True)))
    known = _scattered(_gridded(known, channels, size), channels, len(size))
    if known.seen is None and known.at is None:
        raise InputError("nothing is known; give seen (with mask), or at and value, or both")
    for part in (known.seen, known.at):
        rows = count if part is None else part.shape[0]
        if rows not in (1, count):
            raise InputError(
                f"hints are given for {rows} pictures, {count} are asked for; give one row for "
                f"all, or one for each"
            )
    # Rows of one form may meet one row of the other.
    known = Given(*(part if part is None or part.shape[0] == count else
                    part.expand(count, *part.shape[1:]) for part in known))  # fmt: skip
    if known.at is not None:
        known = gather_on_grid(known, size)
    assert known.seen is not None and known.mask is not None
    mask = whole_pixels(known.mask.expand_as(known.seen))
    if not mask.any():
        raise InputError(
            "nothing is known: no value is finite and true in its mask; leave known out"
        )
    return torch.where(mask, known.seen, 0), mask


def plain_points(
    known: Given, count: int, channels: int, axes: int, largest: float = 1.0
) -> Given | None:
    """The scattered part for each of `count` pictures, `valid` of whole points; None if no part.

    InputError where it does not fit, as in `on_grid`.
    """
    known = Given(*(_tensor(name, part) for name, part in zip(Given._fields, known, strict=True)))
    known = _scattered(known, channels, axes, largest)
    if known.at is None or known.value is None or known.valid is None:
        return None
    if known.at.shape[0] not in (1, count):
        raise InputError(
            f"hints are given for {known.at.shape[0]} pictures, {count} are asked for; give one "
            f"row for all, or one for each"
        )
    valid = whole_pixels(known.valid.expand_as(known.value))
    parts = (known.at, known.value.masked_fill(~valid, 0), valid)
    at, value, valid = (part.expand(count, *part.shape[1:]) for part in parts)
    return Given(at=at, value=value, valid=valid)


class Known(NamedTuple):
    """What is known of every picture of a request, checked, on the CPU.

    `seen` and `mask` are what a network is shown, on the grid of the picture or another one of its
    aspect ratio, or at the places that are asked; None where only the measurement is known. A model
    on sets is shown `points` in their place, wherever they lie.
    """

    measure: Measure
    y: Tensor
    seen: Tensor | None = None
    mask: Tensor | None = None
    points: Given | None = None

    def rows(self, which: Tensor, device: torch.device | None = None) -> "Known":
        """Those of some pictures, on the device of a walk."""
        seen, mask = (None if v is None else v[which].to(device) for v in (self.seen, self.mask))
        points = self.points
        if points is not None:
            points = Given(*(None if v is None else v[which].to(device) for v in points))
        return Known(self.measure.rows(which), self.y[which].to(device), seen, mask, points)

    def shown(self, given: Given) -> Given:
        """`given` with all that a network may see."""
        if self.points is not None:
            at, value, valid = self.points.at, self.points.value, self.points.valid
            return given._replace(at=at, value=value, valid=valid)
        return given if self.seen is None else show(given, self.seen, self.mask)  # type: ignore[arg-type]

    @property
    def told(self) -> Bool[Tensor, " b"]:
        """Of which pictures a network is shown anything."""
        parts = [self.mask, None if self.points is None else self.points.valid]
        some = [part.flatten(1).any(1) for part in parts if part is not None]
        return torch.stack([*some, torch.zeros(self.y.shape[0], dtype=torch.bool)]).any(0)

    def begin(self, like: Tensor) -> Tensor:
        """What a walk begins with beside its noise: what is known of single places, else grey."""
        if self.seen is None or self.mask is None or self.seen.shape[2:] != like.shape[2:]:
            return torch.zeros_like(like)
        return torch.where(self.mask, self.seen, 0)

    def within(self, size: tuple[int, ...]) -> bool:
        """Whether single places of a picture of `size` are known."""
        return self.seen is not None and tuple(self.seen.shape[2:]) == size


Observed = Given | Known | tuple[Measure, Tensor]


def known_of(known: object, count: int, channels: int, size: tuple[int, ...]) -> Known:
    """What is known of `count` pictures of `size`: a `Given`, or a pair (measure, y).

    Gridded values on a coarser grid are means over its cells. InputError where anything does not
    fit.
    """
    if isinstance(known, Known):
        return known
    if isinstance(known, tuple) and not isinstance(known, Given):
        return _measured(known, count, channels, size)
    seen = known.seen if isinstance(known, Given) else None
    seen = None if seen is None else _tensor("seen", seen)
    there = size if seen is None else tuple(seen.shape[2:])
    if not isinstance(known, Given) or len(there) != len(size) or there == size:
        seen, mask = on_grid(known, count, channels, size)
        return Known(Mask(mask), seen, seen, mask)
    if known.at is not None:
        raise InputError(
            f"seen lies on {_times(there)} cells, the pictures have {_times(size)}, and points are "
            f"given too; give the grid's values or the points"
        )
    skew = any(n * size[0] != there[0] * m for n, m in zip(there, size, strict=True))
    if skew or there[0] > size[0]:
        raise InputError(
            f"seen lies on {_times(there)} cells, the pictures have {_times(size)}; give it on the "
            f"same grid or a coarser one of the same aspect ratio, or ask for another size"
        )
    seen, mask = on_grid(known, count, channels, there)
    measure = area(size, there)
    return Known(measure if mask.all() else Chain(measure, Mask(mask)), seen, seen, mask)


def _measured(known: tuple[Any, ...], count: int, channels: int, size: tuple[int, ...]) -> Known:
    """A measurement and its outcome, one row a picture or one for all."""
    measure, y = known if len(known) == 2 else (None, None)
    y = _tensor("y", y)
    if not isinstance(measure, Measure) or y is None:
        raise InputError("known is a tuple; give pointillist.Given(seen=, mask=), or a pair of a "
                         "measure of pointillist.measure and its outcome")  # fmt: skip
    if y.dim() < 2 or y.shape[0] not in (1, count) or not y.isfinite().all():
        raise InputError(
            f"y has shape {_times(y.shape)} for {count} pictures; give finite values, one row for "
            f"each picture or one for all"
        )
    y = y.float().expand(count, *y.shape[1:])
    made = measure.rows(torch.arange(1))(torch.zeros(1, channels, *size))
    if made.shape[1:] != y.shape[1:]:
        raise InputError(
            f"y has {_times(y.shape[1:])} values a picture, its measure makes "
            f"{_times(made.shape[1:])} of pictures of {_times(size)}; give what it makes"
        )
    return Known(measure, y)


def check_known(known: Known | None, noise: float, remedy: str) -> None:
    """InputError where a network would be asked without hints that always had some in training.

    Of such a network `remedy` says what to train with instead; of others it is empty.

    `noise` is what is stated of the known values; with it they are not shown as the truth.
    """
    if noise and known is None:
        raise InputError(f"noise is {noise:g}, but nothing is known that it could lie on")
    if not remedy:
        return
    never = (
        f"the run (or its guide) never learnt to answer without hints; give some, or train with "
        f"{remedy}"
    )
    if known is None or (known.mask is None and known.points is None):
        raise InputError(never)
    if noise:
        raise InputError(
            f"noise is {noise:g}, but the run knows exact hints only and was never without; "
            f"leave noise out, or train with {remedy}"
        )
    if not known.told.all():
        raise InputError(f"a picture has no hint, but {never}")


def given_of(values: Any, mask: Any = None, at: Any = None, axes: int = 2) -> tuple[Given, bool]:
    """Arrays of numbers as what is known, and whether they tell of one picture without a batch.

    `values` are `c *space` or `b c *space` with a mask of as many axes or of the grid alone, or
    `c m` or `b c m` with `at`, `m s` or `b m s`. 8-bit levels become [-1, 1]. Without a mask NaN is
    "not known"; where a mask says that it is known, InputError.
    """
    values = _tensor("values", values)
    if values is None:
        raise InputError("values is None; give the known values, `c h w` or with pictures first")
    if values.dtype == torch.uint8:
        values = values.float() / 127.5 - 1
    inner = 2 if at is not None else axes + 1
    one = values.dim() == inner
    if values.dim() not in (inner, inner + 1):
        raise InputError(
            f"values has shape {_times(values.shape)}; give {inner} axes for one picture, channels "
            f"first, or {inner + 1} for several"
        )
    values = values[None] if one else values
    if at is not None:
        if mask is not None:
            raise InputError("mask is given with at; leave one of them out, NaN is not known")
        at = _tensor("at", at)
        return Given(at=at[None] if at.dim() == 2 else at, value=values), one
    mask = _tensor("mask", mask)
    if mask is None:
        return Given(seen=values, mask=~values.isnan().any(1, keepdim=True)), one
    if mask.dtype != torch.bool:
        if not ((mask == 0) | (mask == 1)).all():
            wrong = mask[(mask != 0) & (mask != 1)].flatten()[0]
            raise InputError(f"mask holds {float(wrong):g}; it is 0 or 1, 1 where known")
        mask = mask.bool()
    if mask.dim() == axes:
        mask = mask[None, None]
    elif mask.dim() == axes + 1:
        mask = mask[None] if one else mask[:, None]
    if mask.dim() == values.dim() and mask.shape[2:] == values.shape[2:]:
        wrong = (values.isnan().any(1, keepdim=True) & mask.any(1, keepdim=True)).nonzero()
        if wrong.numel():
            row, _, *place = wrong[0].tolist()
            raise InputError(
                f"values of picture {row} are NaN at {tuple(place)}, where the mask says that they "
                f"are known; make the mask false there"
            )
    return Given(seen=values, mask=mask), one


def protocol_mask(index: int, size: tuple[int, ...], share: float) -> Bool[Tensor, "*space"]:
    """Which pixels of held-out picture `index` are known, by the sparse protocol.

    numpy's generator of seed 1000 + `index` orders all of them, and the first `share` of that order
    are known: a rule that is stated in `docs/evaluation.md`, so anyone can have the same masks.
    """
    cells = int(np.prod(size))
    mask = np.zeros(cells, dtype=bool)
    order = np.random.default_rng(1000 + index).permutation(cells)
    mask[order[: round(share * cells)]] = True
    return torch.from_numpy(mask).view(size)


def rows_of(known: object) -> int:
    """How many pictures are told of; what is wrong with them, `known_of` says."""
    if isinstance(known, Known):
        return known.y.shape[0]
    if isinstance(known, tuple) and not isinstance(known, Given):
        part = _tensor("y", known[-1]) if len(known) == 2 else None
        return 1 if part is None or part.dim() == 0 else part.shape[0]
    if not isinstance(known, Given):
        return 1
    rows = known.seen if known.seen is not None else known.at
    part = None if rows is None else _tensor("seen" if rows is known.seen else "at", rows)
    return 1 if part is None or part.dim() == 0 else part.shape[0]


def _gridded(known: Given, channels: int, size: tuple[int, ...]) -> Given:
    """The gridded part, checked; its mask is false where the value is NaN."""
    seen, mask = known.seen, known.mask
    if seen is None:
        if mask is not None:
            raise InputError("mask is given without seen; give the values that it is the mask of")
        return known
    seen = _values("seen", seen, len(size) + 2)
    if seen.shape[1] != channels:
        raise InputError(f"hints have {seen.shape[1]} channels, the pictures {channels}")
    mask = torch.ones_like(seen[:, :1], dtype=torch.bool) if mask is None \
        else _mask("mask", mask, seen.dim())  # fmt: skip
    for name, part in (("seen", seen), ("mask", mask)):
        if tuple(part.shape[2:]) != size:
            raise InputError(
                f"{name} lies on {_times(part.shape[2:])} cells, the pictures have {_times(size)}; "
                f"give it on the same grid, or ask for that size"
            )
    _fits("mask", mask, seen)
    return known._replace(seen=seen, mask=_in_range("seen", seen, mask))


def _scattered(known: Given, channels: int, axes: int, largest: float = 1.0) -> Given:
    """The scattered part, checked; `valid` is false where the value is NaN."""
    at, value, valid = known.at, known.value, known.valid
    if at is None or value is None:
        if at is not None or value is not None or valid is not None:
            raise InputError("points need both at and value; one of them is missing")
        return known
    at, value = _values("at", at, 3), _values("value", value, 3)
    if at.shape[2] != axes:
        raise InputError(f"at has {at.shape[2]} coordinates a point, the pictures {axes} axes")
    if value.shape[1] != channels:
        raise InputError(f"hints have {value.shape[1]} channels, the pictures {channels}")
    if at.shape[1] != value.shape[2]:
        raise InputError(f"at has {at.shape[1]} points, value {value.shape[2]}; give one for each")
    if at.shape[0] != value.shape[0]:
        raise InputError(f"at has {at.shape[0]} rows, value {value.shape[0]}; give as many")
    valid = torch.ones_like(value[:, :1], dtype=torch.bool) if valid is None \
        else _mask("valid", valid, 3)  # fmt: skip
    if valid.shape[2] != at.shape[1]:
        raise InputError(f"valid has shape {_times(valid.shape)}, value {_times(value.shape)}; "
                         f"give one truth value a point")  # fmt: skip
    _fits("valid", valid, value)
    valid = _in_range("value", value, valid, largest)
    # A point that counts for nothing may lie anywhere, but has to lie in some cell.
    outside = (at < -1) | (at > 1) | at.isnan()
    if (wrong := outside.any(-1) & valid.any(1)).any():
        row, point = wrong.nonzero()[0].tolist()
        where = ", ".join(f"{x:g}" for x in at[row, point].tolist())
        raise InputError(
            f"hint {point} of row {row} lies at ({where}), outside of the picture; coordinates run "
            f"from -1 to 1"
        )
    return known._replace(at=at.masked_fill(outside, 0), value=value, valid=valid)


def _tensor(name: str, part: Any) -> Tensor | None:
    """Tensors and arrays, on the CPU."""
    if part is None:
        return None
    try:
        return torch.as_tensor(part).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is a {type(part).__name__}; give a tensor or an array") from None


def _values(name: str, part: Tensor, axes: int) -> Tensor:
    """Numbers in float32, with as many dimensions as they need."""
    if part.dtype == torch.bool or part.is_complex():
        raise InputError(f"{name} holds {part.dtype}; it holds real numbers")
    if part.dim() != axes:
        raise InputError(f"{name} has shape {_times(part.shape)}; it needs {axes} dimensions, the "
                         f"first of them for pictures")  # fmt: skip
    return part.float()


def _mask(name: str, part: Tensor, axes: int) -> Tensor:
    """Truth values, with as many dimensions as the values have."""
    if part.dim() != axes:
        raise InputError(f"{name} has shape {_times(part.shape)}; it needs {axes} dimensions, as "
                         f"the values have")  # fmt: skip
    if part.dtype != torch.bool:
        raise InputError(f"{name} holds {part.dtype}; it holds true and false (torch.bool)")
    return part


def _fits(name: str, part: Tensor, values: Tensor) -> None:
    """Rows and channels of a mask: those of the values, or one for all."""
    for axis, what in ((0, "rows"), (1, "channels")):
        if part.shape[axis] not in (1, values.shape[axis]):
            raise InputError(f"{name} has {part.shape[axis]} {what}, the values "
                             f"{values.shape[axis]}; give as many, or one for all")  # fmt: skip


def _in_range(name: str, values: Tensor, mask: Tensor, largest: float = 1.0) -> Tensor:
    """The mask without what is NaN; InputError where a known value exceeds `largest`."""
    mask = mask.expand_as(values) & ~values.isnan()
    wrong = values[mask & (values.abs() > largest * (1 + 1e-4))]
    if wrong.numel():
        told = "run from -1 to 1" if largest == 1 else "are finite"
        raise InputError(f"{name} holds {float(wrong[0]):g}; known values {told}")
    return mask


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
