"""The perceptual distance of the predicted picture from the true one (PixelGen, 2602.02493)."""

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.frozen.alexnet import SMALLEST, shipped
from pointillist.losses.term import check_pictures, check_term
from pointillist.types import InputError, Spec, Time, config


@config
class LPIPSConfig:
    """It counts at times t >= `after` alone (PixelGen: 0.3): nearer the noise the best guess is a
    blur, and a distance that punishes blur pulls the guess off the mean.
    """

    weight: float = 0.0
    after: float = 0.0

    def __post_init__(self) -> None:
        check_term(self, "loss.lpips")
        if not 0 <= self.after < 1:
            raise InputError(f"loss.lpips.after is {self.after}; it lies in [0, 1)")

    def check(self, spec: Spec) -> None:
        check_pictures(self, "loss.lpips", spec, "LPIPS")
        if self.weight and min(spec.size) < SMALLEST:
            shown = "x".join(map(str, spec.size))
            raise InputError(
                f"loss.lpips.weight is {self.weight}, but LPIPS looks at pictures of {SMALLEST}x"
                f"{SMALLEST} or more and these have {shown}; set loss.lpips={{}} or raise data.size"
            )


def perceptual(
    config: LPIPSConfig,
    guess: Float[Tensor, "b 3 h w"],
    truth: Float[Tensor, "b 3 h w"],
    t: Time,
    weight: Float[Tensor, "b _ h w"] | None = None,
) -> Float[Tensor, " b"]:
    """LPIPS of every pair in float32; 0 before the gate, whatever the guess, and its gradient."""
    due, truth = t >= config.after, truth.float()
    # Chosen before and after: 0 times a gradient that is not finite would not be 0.
    looked_at = torch.where(due.view(-1, 1, 1, 1), guess.float(), truth)
    distance = shipped(truth.device)(looked_at, truth, weight)
    return torch.where(due, distance, torch.zeros_like(distance))
