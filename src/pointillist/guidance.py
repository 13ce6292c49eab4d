"""From a network to a velocity field, and from field to field: guidance is a closure."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pointillist.types import Estimate, Given, InputError, Prediction, State, config


class Path(Protocol):
    """What a field needs of an objective."""

    def see(self, xt: State, t: Tensor) -> tuple[State, Tensor]: ...
    def velocity(self, estimate: Estimate, t: Tensor) -> Tensor: ...


class Field(NamedTuple):
    """A velocity with the pair (x, eps) behind it; call it as any function of `(x, t)`."""

    estimate: Callable[[Tensor, Tensor], Estimate]
    path: Path

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.path.velocity(self.estimate(x, t), t)


class Count:
    """Network evaluations so far, each one a forward of the whole batch: the NFE of a picture."""

    def __init__(self) -> None:
        self.nfe = 0


def network_field(
    network: Any, objective: Any, given: Given, size: tuple[int, ...], count: Count | None = None
) -> Field:
    """The field of a network for one condition, which is encoded here, once, for all steps."""
    context = network.condition(given, size)

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        times = torch.full((x.shape[0],), float(t), device=x.device)
        prediction: Prediction = network(*objective.see(x, times), given, context)
        if count is not None:
            count.nfe += 1
        return objective.read(prediction.value, x, times, clamp=objective.sampling_clamp)

    return Field(estimate, objective)


@config
class GuidanceConfig:
    """Classifier-free guidance v_u + w (v_c - v_u) while t lies in `interval`, w = 1 outside."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"guidance is {self.scale}; it must be a finite number")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise InputError(
                f"guidance.interval is [{low:g}, {high:g}]; it must rise and lie in [0, 1]"
            )

    def weight(self, t: float) -> float:
        """The scale inside (low, high), 1 outside; a low of 0 takes the noise end in (JiT)."""
        low, high = self.interval
        return self.scale if t < high and (low == 0 or t > low) else 1.0


def classifier_free(field: Field, reference: Field, guidance: GuidanceConfig) -> Field:
    """Guide `field` away from `reference` (Ho and Salimans 2207.12598; interval 2404.07724).

    Neither pass is run where its weight is zero: the reference at w = 1, the field at w = 0.
    """

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        w = guidance.weight(float(t))
        if w == 1:
            return field.estimate(x, t)
        away = reference.estimate(x, t)
        if w == 0:
            return away
        toward = field.estimate(x, t)
        return Estimate(away.x + w * (toward.x - away.x), away.eps + w * (toward.eps - away.eps))

    return Field(estimate, field.path)
