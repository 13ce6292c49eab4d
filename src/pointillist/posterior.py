"""What many draws of one unknown say together: mean, spread, quantiles, intervals."""

from typing import Any

import torch
from torch import Tensor

from pointillist.metrics.posterior import Values, coverage, crps, interval, levels_of
from pointillist.types import InputError


class RunningMoments:
    """Mean and variance of draws that come a few at a time and are not kept; float64 inside.

    Groups merge by Chan, Golub and LeVeque's update (1979; Welford's for groups of one), so a
    large mean does not eat a small variance as the sum of squares would.
    """

    def __init__(self) -> None:
        self.count, self.dtype = 0, torch.float64
        self.mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, draws: Tensor) -> "RunningMoments":
        """Take in draws, `k *shape`; any k, the same shape each time."""
        if self.count and self.mean.shape != draws.shape[1:]:
            raise InputError(f"draws of shape {tuple(draws.shape[1:])} do not go with earlier ones "
                             f"of {tuple(self.mean.shape)}; give one shape")  # fmt: skip
        k = draws.shape[0]
        if not k:
            return self
        values = draws.detach().cpu().double()
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        total, step = self.count + k, mean - self.mean
        self._squares = self._squares + squares + step.square() * (self.count * k / total)
        self.mean = self.mean + step * (k / total)
        self.count, self.dtype = total, draws.dtype
        return self

    def first(self) -> "RunningMoments":
        """Those of the first picture alone."""
        one = RunningMoments()
        one.count, one.dtype = self.count, self.dtype
        one.mean, one._squares = self.mean[0], self._squares[0]
        return one

    @property
    def variance(self) -> Tensor:
        """Over K - 1, hence unbiased; InputError for a single draw."""
        if self.count < 2:
            raise InputError(f"the spread of {self.count} draw is not known; take 2 draws or more")
        return self._squares / (self.count - 1)


class Posterior:
    """Draws of one unknown, `k *shape`, or their moments alone.

    Figures come back in the draws' precision, as tensors or, with `arrays`, as numpy arrays.
    `hidden`, which broadcasts to a draw, tells the places that were drawn from those that were
    known; only the former are judged. `nfe` is how many network evaluations a draw took, None where
    draws were at hand.
    """

    def __init__(
        self,
        moments: RunningMoments,
        draws: Tensor | None = None,
        hidden: Tensor | None = None,
        arrays: bool = False,
        nfe: int | None = None,
    ) -> None:
        if not moments.count:
            raise InputError("draws is 0; a posterior needs 1 or more")
        self.moments, self._draws, self._hidden = moments, draws, hidden
        self.arrays, self.nfe = arrays, nfe

    def in_arrays(self) -> "Posterior":
        """The same posterior, which answers in numpy arrays."""
        return Posterior(self.moments, self._draws, self._hidden, arrays=True, nfe=self.nfe)

    def _told(self, figure: Tensor) -> Any:
        return figure.numpy() if self.arrays else figure

    def first(self) -> "Posterior":
        """The posterior of the first picture alone, without the axis of pictures."""
        draws = None if self._draws is None else self._draws[:, 0]
        hidden = None if self._hidden is None else self._hidden[0]
        return Posterior(self.moments.first(), draws, hidden, self.arrays, self.nfe)

    @classmethod
    def of(cls, draws: Tensor, hidden: Tensor | None = None) -> "Posterior":
        """The posterior of draws at hand, members on axis 0."""
        return cls(RunningMoments().add(draws), draws, hidden)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.moments.mean.shape))
        return f"Posterior({self.count} draws of {shape}{', kept' * (self._draws is not None)})"

    @property
    def count(self) -> int:
        """K, the number of draws."""
        return self.moments.count

    @property
    def hidden(self) -> Any:
        """True at the places that were drawn; None where no single place was known."""
        return None if self._hidden is None else self._told(self._hidden)

    @property
    def mean(self) -> Any:
        """The mean of the draws: of all estimates the one with the least squared error."""
        return self._told(self.moments.mean.to(self.moments.dtype))

    @property
    def std(self) -> Any:
        """Standard deviation at every place, from the variance over K - 1."""
        return self._told(self.moments.variance.sqrt().to(self.moments.dtype))

    @property
    def draws(self) -> Any:
        """All draws, `k *shape`; InputError where only moments were kept."""
        return self._told(self._kept())

    def _kept(self) -> Tensor:
        if self._draws is None:
            raise InputError("the draws were not kept, only their mean and variance; ask for the "
                             "posterior with keep=True")  # fmt: skip
        return self._draws

    @property
    def levels(self) -> list[float]:
        """The levels at which these K draws have an interval, highest first."""
        return levels_of(self.count)

    def quantile(self, q: float) -> Any:
        """The k-th smallest draw at q = k/(K + 1), linear between (Hyndman and Fan's sixth).

        So `interval(0.8)` is from `quantile(0.1)` to `quantile(0.9)`. Outside of [1/(K + 1),
        K/(K + 1)] the draws say nothing: InputError.
        """
        draws = self._kept()
        ordered = draws.sort(0).values
        place = q * (self.count + 1)
        # As for levels: what messages print may be typed.
        if not 1 - 1e-5 <= place <= self.count + 1e-5:
            ends = (1 / (self.count + 1), self.count / (self.count + 1))
            raise InputError(f"quantile is {q:g}, but {self.count} draws reach from {ends[0]:.6g} "
                             f"to {ends[1]:.6g}; stay inside or take more draws")  # fmt: skip
        place = min(max(place, 1.0), float(self.count))
        below = min(int(place), self.count - 1) if self.count > 1 else 1
        above = min(below + 1, self.count)
        found = torch.lerp(ordered[below - 1], ordered[above - 1], place - below)
        # NaN sorts last, so at a place without domain a lower quantile could look like a number.
        return self._told(found.masked_fill(draws.isnan().any(0), torch.nan))

    def interval(self, level: float) -> tuple[Values, Values]:
        """[k-th smallest, k-th largest], which covers the level exactly; other levels are refused.

        0.8 needs 9 draws (or 19, ...), 0.9 needs 19, 0.95 needs 39.
        """
        return interval(self.draws, level)

    def crps(self, truth: Values, hidden: Values | None = None) -> float:
        """Fair CRPS against the truth, over `hidden` places (default: those of the posterior)."""
        return crps(self.draws, truth, self.hidden if hidden is None else hidden)

    def coverage(self, truth: Values, level: float, hidden: Values | None = None) -> float:
        """The share of `hidden` places whose truth lies in `interval(level)`."""
        return coverage(self.draws, truth, level, self.hidden if hidden is None else hidden)
