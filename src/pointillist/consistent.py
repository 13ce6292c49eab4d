"""Pictures that agree with a measurement y = A x + noise: closures from field to field, and a walk.

A network that was never shown y gives x0 = E[x | x_t]; a draw that agrees with y needs
E[x | x_t, y]. With C = Cov[x | x_t] and noise of standard deviation `noise` in every value of y,
that is, where x given x_t is Gaussian,

    x0 + C A^T (A C A^T + noise^2)^-1 (y - A x0)

and the methods differ in what they take for C. By Tweedie's formula of second order
C = (sigma s)^2 / alpha J with J = d x0/d x_t, s being the strength of the path's noise; J is
symmetric, so that C v is one backward pass through the network. `variance` is what C would be for
pictures of independent values of standard deviation `spread`.

Sources: Wang et al. 2212.00490 (DDNM), Song et al. 2023 (Pseudoinverse-guided diffusion models,
ICLR), Chung et al. 2209.14687 (DPS), Lugmayr et al. 2201.09865 (RePaint), Rozet et al. 2405.13712
(C by Tweedie's formula in all of it). `docs/consistency.md` derives all of them on our paths and
measures each on a Gaussian whose answer is known.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.guidance import Field, moved
from pointillist.measure import Measure, Measured
from pointillist.objective import Interpolant
from pointillist.samplers import Noise, Sampler, Times, Watch
from pointillist.types import Estimate, InputError, State, by_kind, config

Pull = Callable[[State], State]


def variance(path: Interpolant, t: Tensor, strength: float, spread: float = 1.0) -> Tensor:
    """Of a value x of standard deviation `spread`, given alpha x + sigma eps: PiGDM's r_t^2."""
    signal, noise = path.alpha(t) * spread, path.sigma(t) * strength
    return (spread * noise).square() / (signal.square() + noise.square())


def _strength(path: Interpolant, x: State) -> float:
    return path.noise_strength(tuple(x.shape[2:]))


def _whole(x: State) -> torch.autocast:
    """No autocast: a network may round to bfloat16, a pseudo-inverse that does has no bound."""
    return torch.autocast(x.device.type, enabled=False)


def corrected(
    field: Field, measure: Measure, y: Measured, noise: float = 0.0, spread: float = 1.0
) -> Field:
    """The predicted picture is moved to what y says of it (DDNM); no gradient, no pass more.

    Without noise that is x0 + A+ (y - A x0): what A does not see stays the network's. With noise C
    is taken as r_t^2 I, so the correction fades where the state tells more than y (r_t < noise).
    """

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        pair = field.estimate(x, t)
        ridge = 0.0
        if noise:
            ridge = float(noise**2 / variance(field.path, t, _strength(field.path, x), spread))
        with _whole(x):
            by = measure.pseudo_inverse(y - measure(pair.x), ridge)
        return moved(pair, by, t, field.path)

    return Field(estimate, field.path)


def _by_gradient(field: Field, correction: Callable[[State, Pull, Tensor], State]) -> Field:
    """A field whose picture is moved by `correction(x0, pull, t)`, pull(v) being C v.

    Where alpha is below the path's `faintest` the field is asked at the time where it is not, as
    networks that predict the noise are: C is J over alpha, and both are 0 at t = 0.
    """
    path = field.path

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        faint = bool(path.alpha(t) < path.faintest)
        at = path.at(torch.full_like(t, path.faintest)) if faint else t
        scale = (path.sigma(at) * _strength(path, x)).square() / path.alpha(at)
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            pair = field.estimate(state, at)
            picture = pair.x

        def pull(v: State) -> State:
            if not picture.requires_grad:
                return torch.zeros_like(v)
            (back,) = torch.autograd.grad(picture, state, v, retain_graph=True)
            return scale * back

        found = picture.detach()
        with _whole(x):
            found = found + correction(found, pull, at)
        eps = (x - path.alpha(t) * found) / path.sigma(t)
        return Estimate(found, eps, None if pair.fraction is None else pair.fraction.detach())

    return Field(estimate, path)


def pseudo_inverse_guided(
    field: Field, measure: Measure, y: Measured, noise: float = 0.0, spread: float = 1.0
) -> Field:
    """PiGDM: x0 + C A^T (r_t^2 A A^T + noise^2)^-1 (y - A x0); one backward pass more.

    C is the network's own outside of the bracket, and r_t^2 I inside, where it can be inverted.
    """

    def correction(picture: State, pull: Pull, t: Tensor) -> State:
        r2 = float(variance(field.path, t, _strength(field.path, picture), spread))
        return pull(measure.pseudo_inverse(y - measure(picture), noise**2 / r2)) / r2

    return _by_gradient(field, correction)


def posterior_guided(field: Field, measure: Measure, y: Measured, step: float = 1.0) -> Field:
    """DPS: x0 + step C A^T (y - A x0) / rms(y - A x0); one backward pass more.

    The likelihood is exp(-step ||y - A x0|| sqrt(m)) of the m values of y, whatever their noise.
    `step` is one over a standard deviation in the values of y.
    """

    def correction(picture: State, pull: Pull, t: Tensor) -> State:
        residual = y - measure(picture)
        squares = residual.flatten(1).square().sum(1) / measure.count(y).clamp(min=1)
        size = squares.sqrt().view(-1, *[1] * (residual.dim() - 1))
        return step * pull(measure.transpose(residual / size.clamp(min=1e-12)))

    return _by_gradient(field, correction)


def moment_matched(
    field: Field, measure: Measure, y: Measured, noise: float = 0.0, iterations: int = 5
) -> Field:
    """x0 + C A^T (A C A^T + noise^2)^-1 (y - A x0) with the network's own C throughout.

    The bracket is solved in at most `iterations` steps, one backward pass each, every one of which
    makes the residual smaller: generalised conjugate residuals, as the C of a trained network need
    be neither symmetric nor positive. It is the posterior itself where the pictures are Gaussian
    and the steps suffice.
    """

    def correction(picture: State, pull: Pull, t: Tensor) -> State:
        residual, by = y - measure(picture), torch.zeros_like(picture)
        enough = 1e-12 * _inner(residual, residual)
        walked: list[tuple[Tensor, Tensor]] = []
        for _ in range(iterations):
            going = _inner(residual, residual) > enough
            step = pull(measure.transpose(residual))  # C A^T of it; the correction is made of these
            ahead = measure(step) + noise**2 * residual
            for earlier, image in walked:
                share = _ratio(_inner(ahead, image), _inner(image, image))
                step, ahead = step - _times(share, earlier), ahead - _times(share, image)
            length = _ratio(_inner(residual, ahead), _inner(ahead, ahead)) * going
            by, residual = by + _times(length, step), residual - _times(length, ahead)
            walked.append((step, ahead))
        return by

    return _by_gradient(field, correction)


def _times(factor: Float[Tensor, " b"], value: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (value.dim() - 1)) * value


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 0)


def _inner(a: Tensor, b: Tensor) -> Float[Tensor, " b"]:
    return (a * b).flatten(1).sum(1)


def back(path: Interpolant, x: State, t: Tensor, to: Tensor, eps: State) -> State:
    """A state of time t as one of an earlier time `to`, by new noise as strong as the path's.

    x_to = (alpha_to/alpha_t) x_t + sqrt(sigma_to^2 - (alpha_to/alpha_t)^2 sigma_t^2) eps: signal
    and noise are then those of `to`. At alpha_to = 0 nothing but the noise is left.
    """
    if not bool(path.alpha(t) > 0):
        raise InputError(f"t is {float(t):g}, where the state holds no signal; go back from later")
    ratio = path.alpha(to) / path.alpha(t)
    added = path.sigma(to).square() - (ratio * path.sigma(t)).square()
    return ratio * x + added.clamp(min=0).sqrt() * eps


def repaint(
    sampler: Sampler,
    field: Field,
    x: State,
    times: Times,
    *,
    noise: Noise,
    resamples: int = 10,
    jump: int = 8,
    watch: Watch | None = None,
) -> State:
    """A walk that goes each stretch of `jump` steps `resamples` times, back by new noise between.

    So the part that is free comes to agree with the part that is measured. A stretch of one step is
    of first order with every sampler, and what it loses of the spread adds up. `field` is one that
    knows of the measurement (`corrected`, or `guidance.pinned` without eps). `noise(i)` is asked
    for i = 0, 1, 2, ... in turn, for the ways back and for a sampler that adds noise itself;
    `watch` sees the number of the step on the grid.
    """
    if resamples < 1 or jump < 1:
        raise InputError(f"resamples is {resamples} and jump {jump}; both are 1 or more")
    if noise is None:
        raise InputError("repaint adds noise; give noise=, a function of the draw's number")
    grid = torch.as_tensor(times).detach().cpu().double()
    drawn = itertools.count()

    def fresh(i: int) -> Tensor:
        return noise(next(drawn))

    for first in range(0, len(grid) - 1, jump):
        stretch = grid[first : first + jump + 1]

        def seen(
            i: int, t: float, state: Tensor, pair: Estimate | None, first: int = first
        ) -> None:
            if watch is not None:
                watch(first + i, t, state, pair)

        for again in range(resamples):
            if again:
                x = back(field.path, x, stretch[-1], stretch[0], fresh(0))
            x = sampler(field, x, stretch, noise=fresh, watch=seen)
    return x


# What to do, as a configuration.


class _Method(ABC):
    """How a walk is made to agree with a measurement; `apply` takes the walk itself."""

    kind: str
    binds: ClassVar[bool] = True

    @abstractmethod
    def field(self, field: Field, measure: Measure, y: Measured, level: float) -> Field:
        """The field that knows of the measurement."""

    def walk(
        self, sampler: Sampler, field: Field, x: State, times: Times, noise: Noise,
        watch: Watch | None,
    ) -> State:  # fmt: skip
        return sampler(field, x, times, noise=noise, watch=watch)

    def apply(
        self,
        sampler: Sampler,
        field: Field,
        x: State,
        times: Times,
        measure: Measure,
        y: Measured,
        level: float = 0.0,
        *,
        noise: Noise = None,
        watch: Watch | None = None,
    ) -> State:
        """Walk from x along `times` so that the end agrees with y, whose noise has std `level`.

        At level 0 the end is the picture nearest to the walk's whose measurement is y. `noise` and
        `watch` are the sampler's; InputError where y is not what `measure` makes of such pictures.
        """
        if not 0 <= level < math.inf:
            raise InputError(f"noise is {level}; a measurement's is 0 or more, and finite")
        with _whole(x):
            measured = tuple(measure(x).shape)
        if tuple(y.shape) != measured:
            raise InputError(
                f"y has shape {'x'.join(map(str, y.shape))}, the measurement of these pictures "
                f"{'x'.join(map(str, measured))}; give one row a picture"
            )
        x = self.walk(sampler, self.field(field, measure, y, level), x, times, noise, watch)
        with _whole(x):
            return measure.project(x, y) if self.binds and not level else x


def _check_spread(spread: float) -> None:
    if not 0 < spread < math.inf:
        raise InputError(f"consistency.spread is {spread}; it must be above 0, and finite")


@config
class ProjectionConfig(_Method):
    """`corrected`: the picture is moved to the measurement; the cheapest, and biased.

    `spread`, the standard deviation of the data, counts where the measurement has noise.
    """

    kind: Literal["projection"] = "projection"
    spread: float = 1.0

    def __post_init__(self) -> None:
        _check_spread(self.spread)

    def field(self, field: Field, measure: Measure, y: Measured, level: float) -> Field:
        return corrected(field, measure, y, level, self.spread)


@config
class PseudoInverseConfig(_Method):
    """`pseudo_inverse_guided`: by a gradient through the network, one backward pass more."""

    kind: Literal["pseudo_inverse"] = "pseudo_inverse"
    spread: float = 1.0

    def __post_init__(self) -> None:
        _check_spread(self.spread)

    def field(self, field: Field, measure: Measure, y: Measured, level: float) -> Field:
        return pseudo_inverse_guided(field, measure, y, level, self.spread)


@config
class DPSConfig(_Method):
    """`posterior_guided`: by a gradient through the network and A, of a length by `step`."""

    kind: Literal["dps"] = "dps"
    step: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.step < math.inf:
            raise InputError(f"consistency.step is {self.step}; it must be above 0, and finite")

    def field(self, field: Field, measure: Measure, y: Measured, level: float) -> Field:
        return posterior_guided(field, measure, y, self.step)


@config
class MomentsConfig(_Method):
    """`moment_matched`: by up to `iterations` backward passes more, nearest to the truth."""

    kind: Literal["moments"] = "moments"
    iterations: int = 5

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"consistency.iterations is {self.iterations}; it must be 1 or more")

    def field(self, field: Field, measure: Measure, y: Measured, level: float) -> Field:
        return moment_matched(field, measure, y, level, self.iterations)


@config
class RepaintConfig(_Method):
    """`corrected` on `repaint`'s walk, at `resamples` times the cost."""

    kind: Literal["repaint"] = "repaint"
    resamples: int = 10
    jump: int = 8
    spread: float = 1.0

    def __post_init__(self) -> None:
        _check_spread(self.spread)
        for name in ("resamples", "jump"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"consistency.{name} is {getattr(self, name)}; it must be 1 or more"
                )

    def field(self, field: Field, measure: Measure, y: Measured, level: float) -> Field:
        return corrected(field, measure, y, level, self.spread)

    def walk(
        self, sampler: Sampler, field: Field, x: State, times: Times, noise: Noise,
        watch: Watch | None,
    ) -> State:  # fmt: skip
        return repaint(
            sampler, field, x, times,
            noise=noise, resamples=self.resamples, jump=self.jump, watch=watch,
        )  # fmt: skip


@config
class NoConsistency(_Method):
    """The walk as it is: the measurement, if any, was shown to the network or is not used."""

    kind: Literal["none"] = "none"
    binds: ClassVar[bool] = False

    def field(self, field: Field, measure: Measure, y: Measured, level: float) -> Field:
        return field


Consistency = Annotated[
    ProjectionConfig | PseudoInverseConfig | DPSConfig | MomentsConfig | RepaintConfig
    | NoConsistency,
    by_kind,
]  # fmt: skip
