"""What all paths have in common: training times, noise, and what encloses the network.

`see` and `read` enclose the network, `target` is the answer of a perfect one. Velocities are
computed here alone.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.draws import Draw
from pointillist.objective.noise import smooth_noise
from pointillist.objective.times import LogitNormal, Times, Uniform, shift_times
from pointillist.types import Estimate, InputError, State, Time, config


def widened(t: Tensor) -> Tensor:
    """In float64 where there is one: float32 exp and sin depend on the place in a batch."""
    return t if t.device.type == "mps" else t.double()


def column(t: Tensor, like: Tensor) -> Tensor:
    """Times of the batch, shaped to multiply a state."""
    return t if t.dim() == 0 else t.view(-1, *[1] * (like.dim() - 1))


# Where noise is predicted, the picture is what is left of the state over alpha. At alpha below this
# it is not asked for: an error of .03 in the answer is one of 3 in the picture there.
FAINTEST = 0.01


@config
class Interpolant(ABC):
    """A path between noise and data, with any of the three predictions.

    `clamp` bounds sigma (or alpha, when noise is predicted) from below where the other half of the
    pair is computed from the answer and, alike, in the target of the loss: JiT's 0.05, on 1 - t.
    `sampling_clamp` is the same bound while sampling; 0 lets the last step land on the predicted
    picture itself, JiT's published sampler has 0.05 and stops a little short of it. Where noise is
    predicted alpha is `faintest`, 0.01, or more (`asked`).
    `shift` = a divides the signal to noise of every drawn time by a; where `time` is uniform it
    moves the path's own t as `sample.shift` does, which is the same on the straight path.
    `noise_size`: noise has standard deviation `noise_scale` on a picture of that edge and grows in
    proportion to the edge (JiT: 256); None: the same at every size.
    `noise_length`: noise is a smooth function of the coordinates, with that length (`noise.py`);
    finer content of the data is neither noised nor generated; 0: white noise, cell by cell.
    """

    kind: str
    predict: Literal["x", "velocity", "eps"] = "velocity"
    time: Times = LogitNormal()
    shift: float = 1.0
    noise_scale: float = 1.0
    noise_size: int | None = None
    noise_length: float = 0.0
    clamp: float = 0.05
    sampling_clamp: float = 0.0

    faintest: ClassVar[float] = FAINTEST

    def __post_init__(self) -> None:
        for name in ("shift", "noise_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"objective.{name} is {getattr(self, name)}; it must be above 0, and finite"
                )
        for name in ("clamp", "sampling_clamp"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"objective.{name} is {getattr(self, name)}; it lies in [0, 1)")
        if self.noise_size is not None and self.noise_size < 1:
            raise InputError(f"objective.noise_size is {self.noise_size}; it must be 1 or more")
        if not 0 <= self.noise_length < math.inf:
            raise InputError(
                f"objective.noise_length is {self.noise_length}; it must be 0, for white noise, or "
                f"more, and finite"
            )
        if self.noise_length and self.noise_size is not None:
            raise InputError(
                f"objective.noise_length is {self.noise_length} and noise_size {self.noise_size}: "
                f"one function has one strength at every size; leave noise_size out"
            )

    # The path: a number for every time, of any shape.

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """What x is multiplied by."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """What eps is multiplied by."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """d alpha/dt."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """d sigma/dt."""

    @abstractmethod
    def at(self, share: Tensor) -> Tensor:
        """The time, in [0, 1], whose alpha/(alpha + sigma) is `share`; the nearest if none has."""

    def share(self, t: Tensor) -> Tensor:
        """alpha/(alpha + sigma), which is t on the straight path: the same signal to noise."""
        alpha, sigma = self.alpha(widened(t)), self.sigma(widened(t))
        return (alpha / (alpha + sigma)).to(t.dtype)

    def velocity(self, pair: Estimate, t: Tensor) -> Tensor:
        """alpha' x + sigma' eps."""
        t = column(t, pair.x)
        return self.alpha_rate(t) * pair.x + self.sigma_rate(t) * pair.eps

    # Training.

    def times(self, draw: Draw) -> Time:
        """One time a sample, shifted."""
        drawn = shift_times(self.time.times(draw), self.shift)
        # The ends of VP and VE lie inside of (0, 1) by share: evenly drawn times, shifted there,
        # would pile up on an end.
        return drawn if isinstance(self.time, Uniform) else self.at(drawn)

    def noise(
        self,
        draw: Draw,
        shape: tuple[int, ...],
        purpose: str = "noise",
        where: Float[Tensor, "b k s"] | None = None,
    ) -> State:
        """Noise of the right strength for `shape` = (c, *space): on a grid's cells, or `where`."""
        strength = self.noise_strength(shape[1:])
        if not self.noise_length:
            return draw.normal(purpose, shape) * strength
        return smooth_noise(draw, shape, self.noise_length, purpose, where) * strength

    def noise_strength(self, size: tuple[int, ...]) -> float:
        """Standard deviation of `eps` on a grid of `size`."""
        if self.noise_size is None:
            return self.noise_scale
        edge = math.prod(size) ** (1 / len(size))
        return self.noise_scale * edge / self.noise_size

    def mix(self, x: State, eps: State, t: Time) -> State:
        """The state at time t."""
        t = column(t, x)
        return self.alpha(t) * x + self.sigma(t) * eps

    # Around the network.

    def see(self, xt: State, t: Time) -> tuple[State, Time]:
        """What the network is shown."""
        return xt, t

    def asked(self, t: Tensor) -> Tensor:
        """The time, of no dimension, at which a walk asks for the state of time t: t itself.

        Where noise is predicted and alpha is below `faintest`, it is the first time at which it is
        not: at t = 0 the noise is the state and tells nothing of the picture. The state is taken
        for one of that time, from which it differs by about as little. A perfect network is walked
        as well as one that predicts the picture: with 64 steps of Heun the variance of a Gaussian
        is off by 0.1 % on the straight and the GVP path, where a bound on alpha alone leaves 1.5
        and 2.3 %.
        """
        faint = self.predict == "eps" and bool(self.alpha(t) < self.faintest)
        return self.at(torch.full_like(t, self.faintest)) if faint else t

    def progress(self, t: float) -> float:
        """How much of the way from the noise is done at time t, as schedules of guidance count."""
        return t

    def pair(self, velocity: Tensor, xt: Tensor, t: Tensor) -> Estimate:
        """The pair (x, eps) of a state and its velocity, of any shape: two equations, solved."""
        t = column(t, xt)
        alpha, sigma = self.alpha(t), self.sigma(t)
        rise, fall = self.alpha_rate(t), self.sigma_rate(t)
        det = alpha * fall - rise * sigma
        return Estimate(
            fall / det * xt - sigma / det * velocity, alpha / det * velocity - rise / det * xt
        )

    def read(self, answer: Tensor, xt: State, t: Tensor, clamp: float | None = None) -> Estimate:
        """The pair (x, eps) behind an answer; only the first channels count if it has more.

        With s = alpha + sigma, x - eps is (s x - x_t)/sigma and (x_t - s eps)/alpha alike. On the
        straight path s is 1 to the last bit. `clamp`: another than that of training; alpha is
        bounded by `faintest` too.
        """
        clamp = self.clamp if clamp is None else clamp
        answer = answer[:, : xt.shape[1]]
        if self.predict == "velocity":
            return self.pair(answer, xt, t)
        alpha, sigma = self.alpha(column(t, xt)), self.sigma(column(t, xt))
        if self.predict == "x":
            apart = ((alpha + sigma) * answer - xt) / sigma.clamp(min=clamp)
            return Estimate(answer, answer - apart)
        apart = (xt - (alpha + sigma) * answer) / alpha.clamp(min=max(clamp, self.faintest))
        return Estimate(answer + apart, answer)

    def answer(self, pair: Estimate, t: Tensor) -> Tensor:
        """What a network would have to say to mean this pair."""
        return self.velocity(pair, t) if self.predict == "velocity" else getattr(pair, self.predict)

    def target(self, x: State, eps: State, xt: State, t: Time) -> Estimate:
        """A perfect network's answer, read as the network's own is: the clamp acts on both."""
        return self.read(self.answer(Estimate(x, eps), t), xt, t)
