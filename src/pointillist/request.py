"""What is asked of a trained network, and what comes back."""

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointillist.consistent import Consistency
from pointillist.engine.device import DTYPES
from pointillist.guidance import GuidanceConfig, label_number
from pointillist.types import Given, InputError, Spec, config


@config
class Ask:
    """One request: what differs from the run's own `sample` settings is not None."""

    count: int = 16
    label: int | str | tuple[int | str, ...] | None = None
    size: tuple[int, ...] | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance: float | GuidanceConfig | None = None  # a scale, or all there is to say
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    negative: int | str | None = None  # of a run that reads captions a prompt, else a class
    prompt: str | tuple[str, ...] | None = None  # one for all, or one for each picture
    seed: int = 0
    batch: int = 64
    dtype: str = "float32"
    consistency: Consistency | None = None
    tile: float | None = None  # edge of the boxes that a local model is asked in; of [-1, 1], 2
    noise: float = 0.0  # standard deviation of what is known, in the picture's units of [-1, 1]
    latents: bool = False  # of a run of latents: these, in the network's units, not pictures


def ask_of(fields: dict[str, Any]) -> Ask:
    """A request of what a caller gives, lists and arrays of whole numbers among it.

    InputError for what is of another kind, before it can be cut to a whole number or fail later.
    """
    kept = dict(fields)
    for name in ("count", "steps", "seed", "batch"):
        if name in kept and not (kept[name] is None and name == "steps"):
            kept[name] = _whole(name, kept[name])
    size = kept.get("size")
    if size is not None:
        if not isinstance(size, list | tuple):
            raise InputError(f"size is {size!r}; give one whole number an axis, as (32, 32)")
        kept["size"] = tuple(_whole("size", n) for n in size)
    for name in ("guidance", "rescale", "noise", "tile"):
        value = kept.get(name)
        if isinstance(value, bool) or not isinstance(value, Real | GuidanceConfig | None):
            raise InputError(f"{name} is {value!r}; it must be a number")
    kept["prompt"] = plain_prompt(kept.get("prompt"))
    negative = kept.get("negative")
    if not (negative is None or isinstance(negative, str)):
        if isinstance(negative, bool) or not hasattr(negative, "__index__"):
            raise InputError(f"negative is {negative!r}; give one text, or one class, for all")
        kept["negative"] = operator.index(negative)
    return Ask(**{**kept, "label": plain_label(kept.get("label"))})


def _whole(name: str, value: Any) -> int:
    """A whole number of any library's kind."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name} is {value!r}; it must be a whole number")
    return operator.index(value)


def finer(
    there: tuple[int, ...], size: tuple[int, ...] | None, scale: int | None
) -> tuple[int, ...]:
    """The grid that a picture on the grid `there` is enlarged to: `size`, or `scale` times `there`.

    InputError unless one of them is given, and the grid is finer.
    """
    if (size is None) == (scale is None):
        raise InputError("give either size or scale")
    if scale is not None and _whole("scale", scale) < 2:
        raise InputError(f"scale is {scale}; it is 2 or more")
    wanted = ask_of({"size": size or tuple(n * (scale or 1) for n in there)}).size
    assert wanted is not None
    asked, had = ("x".join(map(str, grid)) for grid in (wanted, there))
    if len(wanted) != len(there):
        raise InputError(f"size is {asked}, the picture has {had}; give as many axes")
    if wanted == there or any(n < m for n, m in zip(wanted, there, strict=True)):
        raise InputError(f"size is {asked}, the picture has {had}; ask for a finer grid")
    return wanted


def plain_label(label: Any) -> int | str | tuple[int | str, ...] | None:
    """A class, or one for each picture, of a number, a name, a list, or an array of whole numbers.

    InputError for what is none of them.
    """
    if hasattr(label, "tolist"):
        label = label.tolist()
    if isinstance(label, list | tuple):
        return tuple(_one_label(one) for one in label)
    return None if label is None else _one_label(label)


def _one_label(label: Any) -> int | str:
    if isinstance(label, str):
        return label
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise InputError(f"label is {label!r}; a label is a whole number or the name of a class")
    return operator.index(label)


def plain_prompt(prompt: Any) -> str | tuple[str, ...] | None:
    """A text, or one for each picture of a list of texts; InputError for what is none of them."""
    if prompt is None:
        return None
    for one in prompt if isinstance(prompt, list | tuple) else [prompt]:
        if not isinstance(one, str):
            raise InputError(f'prompt is {one!r}; a prompt is a text, "" for nothing said')
    return tuple(prompt) if isinstance(prompt, list | tuple) else prompt


def prompts_of(
    prompt: str | tuple[str, ...] | None, count: int, spec: Spec
) -> tuple[str, ...] | None:
    """A prompt for each picture; None where no captions are read.

    InputError where there is none but should be: of a run folder nobody knows the captions.
    """
    if spec.words is None:
        if prompt is not None:
            raise InputError(f"prompt is {_brief(prompt)}, but this run reads no captions; leave "
                             f"it out, or take a run with text.encoder")  # fmt: skip
        return None
    if prompt is None:
        raise InputError('prompt is missing, and this run draws what one says; give a text, or "" '
                         'for nothing said')  # fmt: skip
    each = prompt if isinstance(prompt, tuple) else (prompt,) * count
    if len(each) != count:
        raise InputError(f"{len(each)} prompts for {count} pictures; give one for each")
    return each


def _brief(prompt: str | tuple[str, ...]) -> str:
    text = repr(prompt if isinstance(prompt, str) else list(prompt))
    return text if len(text) <= 60 else text[:56] + " ..."


class Start(NamedTuple):
    """Where a walk begins that does not begin with noise: pictures, and the time that they have."""

    x: Float[Tensor, "b c *space"]
    t: float

    def rest(self, times: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """What of a walk's times is left from there on."""
        return torch.cat((times.new_tensor([self.t]), times[times > self.t + 1e-9]))


def start_of(given: Given, strength: Any, spec: Spec, ask: dict[str, Any]) -> Start:
    """A walk that changes pictures by `strength`; InputError where it cannot be had."""
    number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not number or not 1e-6 <= float(strength) <= 1:
        raise InputError(
            f"strength is {strength!r}; it lies in [1e-6, 1], 1 begins with noise alone"
        )
    if spec.code is not None or spec.placed:
        what = "latents" if spec.code is not None else "crops of a field"
        raise InputError(f"edit changes pictures, but the run has {what}; take a run of pixels")
    for name in ("size", "count"):
        if ask.get(name) is not None:
            raise InputError(f"{name} is given, but edit takes that of the pictures; leave it out")
    x = given.seen
    assert x is not None and given.mask is not None
    if not given.mask.all():
        raise InputError("the picture has NaN; edit takes whole ones, `reconstruct` fills gaps")
    if x.shape[1] != spec.channels:
        raise InputError(f"the picture has {x.shape[1]} channels, the run {spec.channels}; give as "
                         f"many")  # fmt: skip
    return Start(x, 1 - float(strength))


def places_of(where: Any, count: int, axes: int) -> Float[Tensor, "b k s"] | None:
    """Places that are asked for, `k s` for all pictures or `b k s`; InputError where none can be.

    Coordinates are the axes in array order, each from -1 to 1.
    """
    if where is None:
        return None
    try:
        where = torch.as_tensor(where).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"where is a {type(where).__name__}; give a tensor or an array") from None
    shape = "x".join(map(str, where.shape))
    if where.dim() not in (2, 3) or where.shape[-1] != axes or not where.shape[-2]:
        raise InputError(f"where has shape {shape}; give one row of {axes} coordinates a place")
    where = where[None] if where.dim() == 2 else where
    if where.shape[0] not in (1, count):
        raise InputError(f"where has {where.shape[0]} rows for {count} pictures; give one for all "
                         f"or one for each")  # fmt: skip
    outside = ~(where.abs() <= 1).all(-1)
    if outside.any():
        row, place = outside.nonzero()[0].tolist()
        told = ", ".join(f"{x:g}" for x in where[row, place].tolist())
        raise InputError(f"place {place} of where is ({told}); coordinates run from -1 to 1")
    return where.expand(count, -1, -1)


def state_size(ask: Ask, spec: Spec, places: Float[Tensor, "b k s"] | None) -> tuple[int, ...]:
    """The state's axes of space: those of a grid, or one of all places that are asked for.

    A size that is asked for is that of pictures, whatever they are made of.
    """
    trained = spec.size
    if places is not None:
        if spec.code is not None:
            raise InputError("where is given, but the run has latents, which are decoded as whole "
                             "pictures; ask for a size")  # fmt: skip
        if ask.size is not None:
            raise InputError("size and where are both given; ask for a grid or for places")
        return (places.shape[1],)
    if spec.placed:
        raise InputError(
            "where is not given, and the run is of a field with coordinates of its own; give the "
            "places that are asked, in these mapped to [-1, 1] (`spec.to_unit`)"
        )
    size = tuple(ask.size or trained)
    if len(size) != len(trained):
        shown = "x".join(map(str, size))
        raise InputError(f"size {shown} has {len(size)} axes; the run has {len(trained)}")
    if spec.code is None or not ask.size:
        return size
    factor = spec.code.factor
    if any(n % factor for n in size):
        shown, near = ("x".join(map(str, grid)) for grid in
                       (size, (max(n // factor, 1) * factor for n in size)))  # fmt: skip
        raise InputError(f"size {shown} is no multiple of {factor}, the factor of the run's "
                         f"autoencoder; {near} would do")  # fmt: skip
    return tuple(n // factor for n in size)


def check_pixels(spec: Spec) -> None:
    """InputError where known pixels say nothing of what the network draws."""
    if spec.code is not None:
        raise InputError("known pixels are given, but the run has latents, of which they tell "
                         "nothing; take a run of pixels")  # fmt: skip


def check_numbers(ask: Ask, spec: Spec) -> None:
    """InputError for a number that no request may have, and for latents of a run of pixels."""
    if ask.count < 1 or ask.batch < 1:
        raise InputError(f"count is {ask.count} and batch {ask.batch}; both are 1 or more")
    if ask.seed < 0:
        raise InputError(f"seed is {ask.seed}; it must be 0 or more")
    if not 0 <= ask.noise < math.inf:
        raise InputError(f"noise is {ask.noise}; that of known values is 0 or more, and finite")
    if ask.dtype not in DTYPES:
        raise InputError(f"dtype is {ask.dtype}; it is one of {', '.join(DTYPES)}")
    if ask.latents and spec.code is None:
        raise InputError("latents is true, but the run has pixels; leave it out")


def too_many(
    count: int, size: tuple[int, ...], spec: Spec, device: torch.device, begun: bool = False
) -> InputError:
    """What is said where so many pictures do not fit into the memory at once; `begun`: the walk
    began with pictures, whose size is the answer's.
    """
    factor = 1 if spec.code is None else spec.code.factor
    shown, fits = "x".join(str(n * factor) for n in size), count // 2
    smaller = "make the picture smaller" if begun else "ask for a smaller --size"
    remedy = f"try --batch {fits}" if fits and not begun else smaller
    return InputError(f"{count} of {shown} pixels at once do not fit into the memory of {device}; "
                      f"{remedy}")  # fmt: skip


class Prepared(NamedTuple):
    """A request with everything decided: size, sampler, times, guidance and its network if any."""

    size: tuple[int, ...]
    sampler: str
    times: Tensor
    guidance: GuidanceConfig
    guide: Any  # a `Trained`


class Samples(NamedTuple):
    """Pictures in [-1, 1], or latents where these are asked for, their labels (-1: none), and
    network evaluations spent on each.
    """

    x: Tensor
    label: Tensor | None
    nfe: int


def labels_of(
    label: Any, numbers: Int[Tensor, " b"], classes: tuple[str, ...]
) -> Int[Tensor, " b"] | None:
    """A class for each picture: the one asked for, or by its number all in turn; None without."""
    count = numbers.shape[0]
    if not classes:
        if label is not None:
            raise InputError(f"label is {label}, but this model has no labels; leave it out")
        return None
    if label is None:
        return numbers % len(classes)
    wanted: Sequence[Any] = label if isinstance(label, tuple) else (label,) * count
    if len(wanted) != count:
        raise InputError(f"{len(wanted)} labels for {count} pictures; give one for each")
    return torch.tensor([label_number(one, classes) for one in wanted])
