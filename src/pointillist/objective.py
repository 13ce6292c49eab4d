"""What the network is asked and how its answer is read: only this file knows the noise end.

One convention for the whole package: `t = 0` is noise, `t = 1` is data. On the straight path

    x_t = t x + (1 - t) eps        velocity v = x - eps

Published code with the other convention is converted at the door. A path is `alpha`, `sigma` and
their derivatives; `see` and `read` enclose the network, `target` is the answer of a perfect one.

Sources: Lipman et al. 2210.02747 and Liu et al. 2209.03003 (straight path), Esser et al. 2403.03206
(logit-normal times, resolution shift), Li and He 2511.13720 (x-prediction, clamp, noise by size).
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import Estimate, InputError, State, Time, by_kind, config


@config
class Uniform:
    """Times drawn evenly from [0, 1)."""

    kind: Literal["uniform"] = "uniform"

    def times(self, draw: Draw) -> Time:
        return draw.uniform("time")


@config
class LogitNormal:
    """Times sigmoid(mean + std n): JiT uses (-0.8, 0.8), nearer the noise; PixelDiT (0, 1)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise InputError(f"objective.time.std is {self.std}; it must be above 0")

    def times(self, draw: Draw) -> Time:
        # In float64, rounded once: torch's vectorised float32 exp depends on the place in a batch.
        return torch.sigmoid(self.mean + self.std * draw.normal("time").double()).float()


Times = Annotated[Uniform | LogitNormal, by_kind]


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Resolution shift: t / (t + (1 - t) a); a > 1 spends more time near the noise (2403.03206)."""
    return t if shift == 1 else t / (t + (1 - t) * shift)


def _column(t: Tensor, like: Tensor) -> Tensor:
    """Times of the batch, shaped to multiply a state."""
    return t if t.dim() == 0 else t.view(-1, *[1] * (like.dim() - 1))


@config
class StraightConfig:
    """The straight path between noise and data, with any of the three predictions.

    `clamp` bounds 1 - t (or t, when noise is predicted) from below where the velocity is computed
    from the answer and, alike, in the target of the loss: JiT's 0.05. `sampling_clamp` is the same
    bound while sampling; 0 lets the last step land on the predicted picture itself, JiT's published
    sampler has 0.05 and stops a little short of it. Where noise is predicted, `clamp` holds while
    sampling too: at t = 0 the state is the noise, and an error of the answer would be divided by 0.
    `noise_size`: noise has standard deviation `noise_scale` on a picture of that edge and grows in
    proportion to the edge (JiT: 256); None: the same at every size.
    """

    kind: Literal["straight"] = "straight"
    predict: Literal["x", "velocity", "eps"] = "velocity"
    time: Times = LogitNormal()
    shift: float = 1.0
    noise_scale: float = 1.0
    noise_size: int | None = None
    clamp: float = 0.05
    sampling_clamp: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "noise_scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"objective.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("clamp", "sampling_clamp"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"objective.{name} is {getattr(self, name)}; it lies in [0, 1)")
        if self.noise_size is not None and self.noise_size < 1:
            raise InputError(f"objective.noise_size is {self.noise_size}; it must be 1 or more")

    # The path.

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def velocity(self, estimate: Estimate, t: Tensor) -> Tensor:
        """alpha' x + sigma' eps, which is x - eps here: there is no division at either end."""
        return estimate.x - estimate.eps

    # Training.

    def times(self, draw: Draw) -> Time:
        """One time a sample, shifted."""
        return shift_times(self.time.times(draw), self.shift)

    def noise(self, draw: Draw, shape: tuple[int, ...], purpose: str = "noise") -> State:
        """Noise of the right strength for `shape` = (c, *space)."""
        return draw.normal(purpose, shape) * self.noise_strength(shape[1:])

    def noise_strength(self, size: tuple[int, ...]) -> float:
        """Standard deviation of the noise at t = 0 on a grid of `size`."""
        if self.noise_size is None:
            return self.noise_scale
        edge = math.prod(size) ** (1 / len(size))
        return self.noise_scale * edge / self.noise_size

    def mix(self, x: State, eps: State, t: Time) -> State:
        """The state at time t."""
        t = _column(t, x)
        return self.alpha(t) * x + self.sigma(t) * eps

    # Around the network.

    def see(self, xt: State, t: Time) -> tuple[State, Time]:
        """What the network is shown."""
        return xt, t

    def read(self, answer: Tensor, xt: State, t: Tensor, clamp: float | None = None) -> Estimate:
        """The pair (x, eps) behind an answer; only the first channels count if it has more."""
        clamp = self.clamp if clamp is None else clamp
        t, answer = _column(t, xt), answer[:, : xt.shape[1]]
        if self.predict == "velocity":
            return Estimate(xt + (1 - t) * answer, xt - t * answer)
        if self.predict == "x":
            velocity = (answer - xt) / (1 - t).clamp(min=clamp)
            return Estimate(answer, answer - velocity)
        velocity = (xt - answer) / t.clamp(min=max(clamp, self.clamp, 1e-3))
        return Estimate(answer + velocity, answer)

    def target(self, x: State, eps: State, xt: State, t: Time) -> Estimate:
        """A perfect network's answer, read as the network's own is: the clamp acts on both."""
        perfect = {"x": x, "velocity": x - eps, "eps": eps}[self.predict]
        return self.read(perfect, xt, t)


Objective = StraightConfig  # a union by kind as soon as there is a second path
