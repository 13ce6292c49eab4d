"""From a network to a velocity field, and from fields to a field."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from pointillist.guidance.configuration import APGConfig, GuidanceConfig
from pointillist.guidance.rules import Combine, first_channels, plain, projected, rescaled
from pointillist.objective import Interpolant
from pointillist.resolution import coarsen
from pointillist.types import Estimate, Given, Prediction, State


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
        return pair._replace(eps=(x - objective.alpha(t) * pair.x) / objective.sigma(t))

    return Field(estimate, objective)


def combined(
    field: Field, reference: Field, weight: Callable[[float], float], combine: Combine = plain
) -> Field:
    """`field` led away from `reference`; neither is asked where its weight is zero.

    That is the reference at w = 1, and with the plain rule the field at w = 0. What a network says
    of the variance is left as the one says that was asked, the field if both were.
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
    if guidance.channels is not None:
        combine = first_channels(combine, guidance.channels)

    def weight(t: float) -> float:
        return guidance.weight(t, field.path.progress(t))

    return combined(field, reference, weight, combine)


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
        picture = torch.where(mask, seen, pair.x)
        return pair._replace(x=picture, eps=torch.where(mask, noise, pair.eps))

    return Field(estimate, field.path)
