"""Losses: the guess against the truth, one number a sample, each term named in the log."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from pointillist.losses.align import AlignConfig
from pointillist.losses.bound import WEIGHT
from pointillist.losses.frequency import FrequencyConfig, frequency
from pointillist.losses.gain import GainConfig
from pointillist.losses.perceptual import LPIPSConfig, perceptual
from pointillist.types import Estimate, InputError, Spec, Time, config

Velocity = Callable[[Estimate], Tensor]
Term = Callable[[Estimate, Estimate, Velocity], Tensor]

LOSSES: dict[str, Term] = {
    "velocity": lambda guess, truth, velocity: velocity(guess) - velocity(truth),
    "x": lambda guess, truth, velocity: guess.x - truth.x,
    "eps": lambda guess, truth, velocity: guess.eps - truth.eps,
}


@config
class LossConfig:
    """Weights of the squared errors in velocity, image and noise space, and of further terms.

    On the straight path |dv|^2 = |dx|^2/(1-t)^2 = |deps|^2/t^2 up to the objective's clamp, so the
    choice of a space is a choice of how times are weighted.

    `regression` weighs the squared error of the picture that an encoder makes of the observation
    alone (`model.encoder.kind=unet`), whose best answer is the posterior's mean.

    `vlb` weighs the bound that trains the variance of a model that learns it (`bound.py`), which
    others have not. Its term is one step's, so 1 is the paper's 0.001 L_vlb for 1,000 steps.
    """

    velocity: float = 1.0
    x: float = 0.0
    eps: float = 0.0
    frequency: FrequencyConfig = FrequencyConfig()
    lpips: LPIPSConfig = LPIPSConfig()
    align: AlignConfig = AlignConfig()
    gain: GainConfig = GainConfig()
    regression: float = 0.0
    vlb: float = WEIGHT

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in LOSSES}
        beside = {"regression": self.regression, "vlb": self.vlb}
        for name, weight in {**weights, **beside}.items():
            if weight < 0:
                raise InputError(f"loss.{name} is {weight}; a weight is 0 or more")
        if not any(weights.values()) and not self.frequency.weight:
            others = [name for name in ("lpips", "align", "gain") if getattr(self, name).weight]
            others += ["regression"] if self.regression else []
            why = "so nothing would be learnt"
            if others:
                why = f"and loss.{' and loss.'.join(others)} alone cannot tell pixels what to be"
            raise InputError(
                f"loss.velocity, loss.x, loss.eps and loss.frequency.weight are all 0, {why}; set "
                f"one of them above 0"
            )

    def check(self, spec: Spec) -> None:
        """Terms that the data have no room for."""
        for term in (self.frequency, self.lpips, self.align):
            term.check(spec)


def mean_square(
    error: Float[Tensor, "b c *space"], weight: Float[Tensor, "b _ *space"] | None
) -> Float[Tensor, " b"]:
    """Mean over channels and places of the weighted square, in float32.

    It is divided by the number of places, not by the sum of the weights: a sample in which little
    counts has a small loss, rather than the same loss from a few places.
    """
    square = error.float().square()
    return (square if weight is None else square * weight).flatten(1).mean(1)


def criterion(
    config: LossConfig,
    guess: Estimate,
    truth: Estimate,
    weight: Float[Tensor, "b _ *space"] | None = None,
    velocity: Velocity = lambda pair: pair.x - pair.eps,
    *,
    t: Time | None = None,
    aligned: Float[Tensor, " b"] | None = None,
    bound: Float[Tensor, " b"] | None = None,
    gains: Float[Tensor, " b"] | None = None,
    lacking: Float[Tensor, "b c *space"] | None = None,
) -> tuple[Float[Tensor, " b"], dict[str, Float[Tensor, " b"]]]:
    """The weighted sum for every sample, and its terms (unweighted) by name.

    `velocity` is the objective's at the times of the samples; by default that of the straight path.
    LPIPS compares with the truth's picture, on which the objective's clamp acts as on the guess's,
    at the times `t`; `aligned` is the answer of an `Alignment`, None where there is none or it has
    ended; `bound` that of `variational_bound`, None where no variance is learnt; `gains` are the
    squares of the modulations' scales, None where nobody asked for them; `lacking` is the clean
    sample less the picture that the encoder made of the observation, None where it makes none.
    """
    terms = {
        name: mean_square(error(guess, truth, velocity), weight)
        for name, error in LOSSES.items()
        if getattr(config, name)
    }
    weights = {name: getattr(config, name) for name in terms}
    if config.frequency.weight:
        error = LOSSES["velocity"](guess, truth, velocity)
        terms["frequency"] = frequency(config.frequency, error, weight)
        weights["frequency"] = config.frequency.weight
    if config.lpips.weight:
        assert t is not None
        terms["lpips"] = perceptual(config.lpips, guess.x, truth.x, t, weight)
        weights["lpips"] = config.lpips.weight
    if aligned is not None:
        terms["align"], weights["align"] = aligned, config.align.weight
    if bound is not None:
        terms["vlb"], weights["vlb"] = bound, config.vlb
    if gains is not None:
        terms["gain"], weights["gain"] = gains, config.gain.weight
    if config.regression:
        assert lacking is not None
        terms["regression"] = mean_square(lacking, weight)
        weights["regression"] = config.regression
    total = sum(weights[name] * term for name, term in terms.items())
    assert isinstance(total, Tensor)
    return total, terms
