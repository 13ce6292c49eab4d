"""What every encoder of observations is: two halves, of which only the second sees the state.

A backbone embeds the noisy patches and hands them over; what comes back are the tokens with which
its blocks begin. The observation alone is encoded in `condition`, once for a whole reconstruction.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.types import Given, Prediction, config


class Site(NamedTuple):
    """The place in a backbone that an encoder is built for."""

    channels: int
    size: tuple[int, ...]  # cells of the training grid, one to three axes
    patch_size: int
    width: int
    heads: int


class Encoder(nn.Module, ABC):
    """Observations and noisy patches to the tokens with which a backbone's blocks begin."""

    takes: Literal["none", "any"] = "any"
    guesses = False  # whether `guess` makes a picture

    def initialise(self) -> None:
        """Set what differs from the backbone's own initialisation; it calls this last."""

    @abstractmethod
    def condition(
        self,
        given: Given,
        size: tuple[int, ...],
        grid: tuple[int, ...],
        asked: tuple[int, ...] | None = None,
    ) -> Any:
        """All that needs neither state nor time.

        `size` are the cells of the state that the backbone sees, `grid` its patches; `asked` are
        the cells of the answer, where they are finer. Where nothing is given at all there is one
        row, for the whole batch.
        """

    @abstractmethod
    def forward(
        self, patches: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], context: Any
    ) -> Float[Tensor, "b n d"]:
        """The tokens; `patches` are those of the state, row-major, c = SiLU(time + label)."""

    def guess(self, context: Any) -> Float[Tensor, "b c *space"] | None:
        """A picture that the backbone adds to its answer, on the grid that is asked; none here."""
        return None

    def with_guess(
        self, xt: Float[Tensor, "b c *space"], guess: Float[Tensor, "_ c *space"] | None
    ) -> Float[Tensor, "b i *space"]:
        """The state with the guess beside it, for pixels that are decoded one by one.

        What is left to say is the picture less the guess: near the data that is the state less the
        guess, which a pixel whose token alone knows of the guess could only tell roughly.
        """
        if not self.guesses or guess is None:
            return xt
        return torch.cat((xt, guess.to(xt.dtype).expand_as(xt)), 1)


def answered(
    value: Float[Tensor, "b o *space"], guess: Float[Tensor, "_ c *space"] | None,
    hidden: Iterable[Float[Tensor, "b d *grid"]],
) -> Prediction:  # fmt: skip
    """The answer with the encoder's guess on its first c channels, and beside it."""
    if guess is not None:
        c = guess.shape[1]
        value = torch.cat((value[:, :c] + guess, value[:, c:]), 1)
    return Prediction(value, tuple(hidden), guess)


@config
class NoEncoderConfig:
    """Nothing is ever observed: the noisy patches are the tokens."""

    kind: Literal["none"] = "none"

    def build(self, site: Site) -> "NoEncoder":
        return NoEncoder()


class NoEncoder(Encoder):
    """The noisy patches as they are."""

    takes = "none"

    def condition(
        self,
        given: Given,
        size: tuple[int, ...],
        grid: tuple[int, ...],
        asked: tuple[int, ...] | None = None,
    ) -> None:
        return None

    def forward(
        self, patches: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], context: None
    ) -> Float[Tensor, "b n d"]:
        return patches
