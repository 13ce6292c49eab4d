"""From a network to a velocity field, and from field to field: guidance is a closure.

A guided field is made of a field, a reference to lead away from (the network without its label,
with another label, or a weaker network), a weight for every time, and a rule that combines the two
estimates. The rules compose: `rescaled(projected(...))` projects first and rescales the outcome.
They act on the predicted picture, whatever the network predicts, and the noise of the pair follows
(`moved`), so that state, picture and noise stay on one path.

Sources: Ho and Salimans 2207.12598 (classifier-free), Kynkaanniemi et al. 2404.07724 (interval),
Lin et al. 2305.08891 (rescale), Sadat et al. 2410.02416 (adaptive projection), Karras et al.
2406.02507 (autoguidance), Gao et al. 2303.14389 and Hatamizadeh et al. 2312.02139 (power-cosine).
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from pointillist.objective import Interpolant
from pointillist.resolution import coarsen
from pointillist.types import Estimate, Given, InputError, Prediction, State, by_kind, config


class Field(NamedTuple):
    """A velocity with the pair (x, eps) behind it; call it as any function of `(x, t)`."""

    estimate: Callable[[Tensor, Tensor], Estimate]
    path: Interpolant

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.path.velocity(self.estimate(x, t), t)


class Count:
    """Network evaluations so far, each one a forward of the whole batch: the NFE of a picture."""

    def __init__(self) -> None:
        self.nfe = 0


def network_field(
    network: Any,
    objective: Interpolant,
    given: Given,
    size: tuple[int, ...],
    count: Count | None = None,
) -> Field:
    """The field of a network for one condition, which is encoded here, once, for all steps.

    The network has its times in float32, its answer is read at t in float64: near the data 1 - t
    is less than what float32 tells from 1. One that renders sees the state near its training size.
    """
    scale = network.scale(size)
    sizes = (size,) if scale == 1 else (tuple(n // scale for n in size), size)
    context = network.condition(given, *sizes)

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        t = torch.tensor(float(t), dtype=torch.float64)
        asked = objective.asked(t)
        times = torch.full((x.shape[0],), float(asked), device=x.device)
        shown = objective.see(x, times)
        if scale == 1:
            prediction: Prediction = network(*shown, given, context)
        else:
            coarse = objective.see(*coarsen(objective, x, times, scale))
            prediction = network.render(*shown, *coarse, given, context)
        if count is not None:
            count.nfe += 1
        # In the state's own precision: in bfloat16 the difference of two answers would drown.
        answer = prediction.value.to(x.dtype)
        pair = objective.read(answer, x, asked, clamp=objective.sampling_clamp)
        if asked is t:
            return pair
        return Estimate(pair.x, (x - objective.alpha(t) * pair.x) / objective.sigma(t))

    return Field(estimate, objective)


# Weights over time.


@config
class ConstantSchedule:
    """The same weight at every time."""

    kind: Literal["constant"] = "constant"

    def share(self, t: float) -> float:
        return 1.0


@config
class LinearSchedule:
    """From `start` at the noise to `end` at the data, straight."""

    kind: Literal["linear"] = "linear"
    start: float = 0.0
    end: float = 1.0

    def share(self, t: float) -> float:
        return self.start + (self.end - self.start) * t


@config
class CosineSchedule:
    """From `start` at the noise to `end` at the data along half a cosine, level at both ends."""

    kind: Literal["cosine"] = "cosine"
    start: float = 0.0
    end: float = 1.0

    def share(self, t: float) -> float:
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * t)) / 2


@config
class PowerCosineSchedule:
    """(1 - cos(pi t^power)) / 2: near 0 for long, 1 at the data (MDT, DiffiT: power 4)."""

    kind: Literal["power_cosine"] = "power_cosine"
    power: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise InputError(f"guidance.schedule.power is {self.power:g}; it must be above 0")

    def share(self, t: float) -> float:
        return (1 - math.cos(math.pi * t**self.power)) / 2


@config
class ListSchedule:
    """Factors at evenly spaced times, the first at the noise, the last at the data, joined up."""

    kind: Literal["list"] = "list"
    factors: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.factors) < 2:
            raise InputError(
                f"guidance.schedule.factors is {list(self.factors)}; give two or more, the first "
                f"for t = 0 and the last for t = 1"
            )

    def share(self, t: float) -> float:
        last = len(self.factors) - 2
        place = t * (last + 1)
        i = min(max(int(place), 0), last)
        return self.factors[i] + (self.factors[i + 1] - self.factors[i]) * (place - i)


Schedule = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | PowerCosineSchedule | ListSchedule, by_kind
]


# What to do, as a configuration.


@config
class APGConfig:
    """Adaptive projected guidance; as it stands here it changes nothing.

    `eta` is the weight of the part of the guidance that is parallel to the picture, which saturates
    colours (the paper: 0). `momentum` is what each evaluation keeps of the sum of those before it;
    the paper takes it negative, -0.5 to -0.75. `threshold` bounds the root mean square of the
    guidance over all values of a picture, in the picture's own units, which means the same at any
    size and channel count; 0 is no bound. The paper bounds the norm instead: r there is
    r / sqrt(c h w) here.
    """

    eta: float = 1.0
    momentum: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta):
            raise InputError(f"guidance.apg.eta is {self.eta}; it must be a finite number")
        if not -1 < self.momentum < 1:
            raise InputError(f"guidance.apg.momentum is {self.momentum:g}; it lies in (-1, 1)")
        if not 0 <= self.threshold < math.inf:
            raise InputError(f"guidance.apg.threshold is {self.threshold:g}; it is 0 or more")


@config
class AutoConfig:
    """The weaker network of autoguidance: another run, another average of a run, or both.

    An empty `run` is the run itself; an empty `ema` is the run's first average.
    """

    run: str = ""
    ema: float | str = ""


@config
class GuidanceConfig:
    """away + w (toward - away), w = 1 + (scale - 1) share(t) in `interval` and 1 outside.

    At scale 1 there is no guidance and no reference is asked. The reference is the network with the
    label `negative` (-1: none), or with `auto` a weaker network with the same label. `rescale` is
    the share of the result whose standard deviation is brought back to that before guidance.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    schedule: Schedule = ConstantSchedule()
    rescale: float = 0.0
    apg: APGConfig = APGConfig()
    negative: int | str = -1
    auto: AutoConfig = AutoConfig()

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"guidance is {self.scale}; it must be a finite number")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise InputError(
                f"guidance.interval is [{low:g}, {high:g}]; it must rise and lie in [0, 1]"
            )
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance.rescale is {self.rescale:g}; it lies in [0, 1]")
        if self.automatic and self.negated:
            raise InputError(
                f"guidance.negative is {self.negative}, but guidance.auto names the reference too; "
                f"leave one of them out"
            )

    @property
    def automatic(self) -> bool:
        """Whether the reference is a weaker network."""
        return self.auto != AutoConfig()

    @property
    def negated(self) -> bool:
        """Whether the reference has a label."""
        return str(self.negative) != "-1"

    @property
    def idle(self) -> str | None:
        """The first field that is set and, at scale 1, would do nothing."""
        rest = GuidanceConfig(scale=self.scale, interval=self.interval)
        names = ("schedule", "rescale", "apg", "negative", "auto")
        changed = (name for name in names if getattr(self, name) != getattr(rest, name))
        return next(changed, None) if self.scale == 1 else None

    def weight(self, t: float) -> float:
        """w at time t; a low end of 0 takes the noise itself in (JiT)."""
        low, high = self.interval
        # A grid meets an end to within rounding: the fourth of ten steps begins 4e-17 after 0.3.
        if not (t < high - 1e-9 and (low == 0 or t > low + 1e-9)):
            return 1.0
        share = self.schedule.share(t)
        return self.scale if share == 1 else 1 + (self.scale - 1) * share


def label_number(label: int | str, classes: tuple[str, ...], what: str = "label") -> int:
    """A class by name or number; -1 is "no label"."""
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    try:
        number = int(label)
    except ValueError:
        number = len(classes)
    if not -1 <= number < len(classes):
        shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        raise InputError(f"{what} is {label}; it is 0 to {len(classes) - 1}, or one of {shown}")
    return number


# Rules that combine two estimates: (toward, away, w, t) to one.

Combine = Callable[[Estimate, Estimate, float, Tensor], Estimate]


def plain(toward: Estimate, away: Estimate, w: float, t: Tensor) -> Estimate:
    """away + w (toward - away), for picture and noise alike."""
    return Estimate(away.x + w * (toward.x - away.x), away.eps + w * (toward.eps - away.eps))


def moved(pair: Estimate, by: State, t: Tensor, path: Interpolant) -> Estimate:
    """The pair of the same state with its picture moved: alpha dx + sigma deps = 0.

    At the data's end sigma is 0 and a state has but one picture; samplers never ask there.
    """
    return Estimate(pair.x + by, pair.eps - path.alpha(t) / path.sigma(t) * by)


def projected(path: Interpolant, apg: APGConfig) -> Combine:
    """Adaptive projected guidance on the predicted picture (2410.02416, Alg. 1).

    The rule remembers the sum that momentum adds to: make a new one for every walk.
    """
    running: list[Tensor] = []

    def combine(toward: Estimate, away: Estimate, w: float, t: Tensor) -> Estimate:
        difference = toward.x - away.x
        if apg.momentum:
            if running:
                difference = difference + apg.momentum * running.pop()
            running.append(difference.detach())  # a gradient is that of one evaluation
        if apg.threshold:
            size = _mean(difference * difference).sqrt()
            difference = difference * (apg.threshold / size).clamp(max=1)
        along = _mean(difference * toward.x) / _mean(toward.x * toward.x).clamp(min=1e-20)
        parallel = along * toward.x
        update = (difference - parallel) + apg.eta * parallel
        return moved(toward, (w - 1) * update, t, path)

    return combine


def rescaled(combine: Combine, path: Interpolant, phi: float) -> Combine:
    """Bring the standard deviation of each picture back to that of `toward`, by a share of phi.

    Lin et al. 2305.08891, Eq. 15 and 16, on the predicted picture: a velocity holds the noise too,
    and scaling it would leave a part of the noise in the picture.
    """

    def rule(toward: Estimate, away: Estimate, w: float, t: Tensor) -> Estimate:
        pair = combine(toward, away, w, t)
        before, after = _std(toward.x), _std(pair.x)
        ratio = torch.where(after > 0, before / after.clamp(min=1e-20), 1)
        return moved(pair, phi * (ratio - 1) * pair.x, t, path)

    return rule


def _mean(value: State) -> Tensor:
    """Mean over all but the batch, shaped to multiply a state; summed in float32 or better."""
    wide = value if value.dtype == torch.float64 else value.float()
    return wide.mean(tuple(range(1, value.dim())), keepdim=True)


def _std(value: State) -> Tensor:
    return _mean((value - _mean(value)).square()).sqrt()


# From fields to a field.


def combined(
    field: Field, reference: Field, weight: Callable[[float], float], combine: Combine = plain
) -> Field:
    """`field` led away from `reference`; neither is asked where its weight is zero.

    That is the reference at w = 1, and with the plain rule the field at w = 0.
    """

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        w = weight(float(t))
        if w == 1:
            return field.estimate(x, t)
        away = reference.estimate(x, t)
        if w == 0 and combine is plain:
            return away
        return combine(field.estimate(x, t), away, w, t)

    return Field(estimate, field.path)


def classifier_free(field: Field, reference: Field, guidance: GuidanceConfig) -> Field:
    """`field` guided away from any `reference` as the configuration says, for one walk.

    The reference decides what it is: no label (classifier-free guidance), another label (negative
    guidance), a weaker network (autoguidance).
    """
    combine: Combine = plain
    if guidance.apg != APGConfig():
        combine = projected(field.path, guidance.apg)
    if guidance.rescale:
        combine = rescaled(combine, field.path, guidance.rescale)
    return combined(field, reference, guidance.weight, combine)


def pinned(
    field: Field, seen: State, mask: Bool[Tensor, "b 1 *space"], eps: State | None = None
) -> Field:
    """Keep known places on their own path: the picture there is `seen`, whatever the network says.

    With `eps`, the noise that a deterministic walk began with, the network is shown alpha seen +
    sigma eps there at every time, as in training, and the pair is (seen, eps). The walk's own state
    may leave that on curved paths, by the error of the sampler's steps, and nothing looks at it.
    Without, as where noise is added on the way, the noise is what the state has beside `seen`.
    """

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        alpha, sigma, noise = field.path.alpha(t), field.path.sigma(t), eps
        if noise is None:
            noise = (x - alpha * seen) / sigma.clamp(min=1e-6)
        else:
            x = torch.where(mask, alpha * seen + sigma * noise, x)
        pair = field.estimate(x, t)
        return Estimate(torch.where(mask, seen, pair.x), torch.where(mask, noise, pair.eps))

    return Field(estimate, field.path)
