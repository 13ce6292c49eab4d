"""Losses: the guess against the truth, one number a sample, each term named in the log."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from pointillist.types import Estimate, InputError, config

Term = Callable[[Estimate, Estimate], Tensor]

LOSSES: dict[str, Term] = {
    "velocity": lambda guess, truth: (guess.x - guess.eps) - (truth.x - truth.eps),
    "x": lambda guess, truth: guess.x - truth.x,
    "eps": lambda guess, truth: guess.eps - truth.eps,
}


@config
class LossConfig:
    """Weights of the squared errors in velocity, image and noise space.

    On the straight path |dv|^2 = |dx|^2/(1-t)^2 = |deps|^2/t^2 up to the objective's clamp, so the
    choice of a space is a choice of how times are weighted.
    """

    velocity: float = 1.0
    x: float = 0.0
    eps: float = 0.0

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in LOSSES}
        for name, weight in weights.items():
            if weight < 0:
                raise InputError(f"loss.{name} is {weight}; a weight is 0 or more")
        if not any(weights.values()):
            raise InputError(
                "loss.velocity, loss.x and loss.eps are all 0; nothing would be learnt"
            )


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
) -> tuple[Float[Tensor, " b"], dict[str, Float[Tensor, " b"]]]:
    """The weighted sum for every sample, and its terms (unweighted) by name."""
    terms = {
        name: mean_square(error(guess, truth), weight)
        for name, error in LOSSES.items()
        if getattr(config, name)
    }
    total = sum(getattr(config, name) * term for name, term in terms.items())
    assert isinstance(total, Tensor)
    return total, terms
