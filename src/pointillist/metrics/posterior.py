"""Judging draws from a posterior: CRPS, coverage, spread, ranks, right for any number of draws.

Everywhere `draws` has its K members on axis 0 and `truth` lacks that axis; both are numpy arrays or
tensors, computed with in float64. A place counts where `hidden` is true (default: everywhere; it
broadcasts, so one mask may serve all channels) and `truth` is not NaN, which means "no domain".
What is compared must not be known: pass `hidden=~mask` where draws were made from known pixels.

If truth and draws come from one distribution, and no two values are equal, then the K + 1 of them
are exchangeable: the truth is as likely in each of the K + 1 gaps, whatever the distribution. So
[k-th smallest, k-th largest] holds it with probability (K + 1 - 2k)/(K + 1), and an interval for
any other level would need draws that are not there.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointillist.types import InputError

Values = np.ndarray | Tensor
LEVEL_DIGITS = 6  # levels are equal when they agree as far as messages print them
SHOWN = 12  # levels that a message lists


class Reliability(NamedTuple):
    """Nominal against observed coverage, lowest level first; `places` of `draws` were judged."""

    levels: list[float]
    observed: list[float]
    draws: int
    places: int


def levels_of(draws: int) -> list[float]:
    """The levels that K draws can express, (K + 1 - 2k)/(K + 1) for k = 1, 2, ...; highest first.

    9 draws: 0.8, 0.6, 0.4, 0.2. One draw expresses none.
    """
    return [(draws + 1 - 2 * k) / (draws + 1) for k in range(1, draws // 2 + 1)]


def order_for(level: float, draws: int) -> int:
    """The k of [k-th smallest, k-th largest]; InputError for a level that K cannot express."""
    levels = levels_of(draws)
    for k, known in enumerate(levels, 1):
        if abs(known - level) < 10.0**-LEVEL_DIGITS:
            return k
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it lies between 0 and 1, such as 0.8 from 9 draws")
    needed = draws_for(level)
    remedy = f"; take {needed} draws for it" if needed else ""
    shown = ", ".join(f"{one:.{LEVEL_DIGITS}g}" for one in levels[:SHOWN])
    more = f" and {len(levels) - SHOWN} lower ones" if len(levels) > SHOWN else ""
    can = f"{draws} draws can express {shown}{more} only" if levels else "1 draw can express none"
    raise InputError(f"level is {level:g}, but {can}{remedy}")


def draws_for(level: float) -> int | None:
    """The fewest draws that express a level: 9 for 0.8, 19 for 0.9; None where 999 do not."""
    tail = (1 - Fraction(level).limit_denominator(1000)) / 2
    found = tail.denominator - 1
    exact = abs(float(1 - 2 * tail) - level) < 10.0**-LEVEL_DIGITS
    return found if exact and 0 < found < 1000 else None


def interval(draws: Values, level: float) -> tuple[Values, Values]:
    """[k-th smallest, k-th largest] at every place, of the draws' kind and precision; NaN stays.

    80 % needs 9 draws (or 19, 29, ...), 90 % 19, 95 % 39.
    """
    values = _tensor(draws)
    if not values.is_floating_point():
        values = values.double()
    k = order_for(level, values.shape[0])
    ordered = values.sort(0).values
    # NaN sorts last, so at a place without domain the lower end could look like a number.
    gap = values.isnan().any(0)
    low, high = (ordered[at].masked_fill(gap, math.nan) for at in (k - 1, -k))
    return (low.numpy(), high.numpy()) if isinstance(draws, np.ndarray) else (low, high)


def crps(draws: Values, truth: Values, hidden: Values | None = None) -> float:
    """Fair continuous ranked probability score in the units of the truth; lower is better.

    Mean over places of `mean_i |x_i - y| - sum_{i,j} |x_i - x_j| / (2 K (K - 1))` (Ferro 2014,
    "Fair scores for ensemble forecasts"): its expectation is that of infinitely many draws, so
    figures of different K compare. One place, or a poor posterior, may score below 0.
    """
    return _mean(crps_at(draws, truth, hidden))


def coverage(draws: Values, truth: Values, level: float, hidden: Values | None = None) -> float:
    """The share of places whose truth lies in `interval(draws, level)`, ends included."""
    return _mean(covered_at(draws, truth, level, hidden))


def spread_error_ratio(draws: Values, truth: Values, hidden: Values | None = None) -> float:
    """`sqrt((K + 1)/K mean(s^2)) / sqrt(mean((m - y)^2))`; below 1 the draws are too sure.

    m is the mean of the draws and s^2 their variance over K - 1. Even where draws and truth share
    a distribution m errs by its own 1/K of the variance, hence (K + 1)/K (Fortin et al. 2014, "Why
    should ensemble spread match the RMSE of the ensemble mean?").
    """
    spread, error = spread_and_error_at(draws, truth, hidden)
    if not _mean(error):
        raise InputError(
            "the mean of the draws equals the truth everywhere, so spread over error has no "
            "meaning; judge draws of places that are not known"
        )
    return math.sqrt(_mean(spread) / _mean(error))


def rank_histogram(draws: Values, truth: Values, hidden: Values | None = None) -> list[float]:
    """How often the truth has each rank 0 ... K among the draws: K + 1 counts, flat when reliable.

    A truth that equals some draws counts in equal fractions for every rank it could have, so
    counts need not be whole; their sum is the number of places.
    """
    values, target, counted = judged(draws, truth, hidden)
    below, upto = _ranks(values, target)
    share = 1.0 / (upto - below + 1)[counted].double()
    # Each place adds its share to the ranks below ... upto: a rise here, a fall past the end.
    steps = torch.zeros(values.shape[0] + 2, dtype=torch.float64)
    steps.index_add_(0, below[counted], share).index_add_(0, upto[counted] + 1, -share)
    return steps.cumsum(0)[:-1].clamp(min=0).tolist()


def reliability(draws: Values, truth: Values, hidden: Values | None = None) -> Reliability:
    """Observed coverage at every level that K draws can express; on the diagonal when reliable."""
    values, target, counted = judged(draws, truth, hidden)
    number = values.shape[0]
    levels = levels_of(number)
    if not levels:
        raise InputError("1 draw can express no level; reliability needs 2 draws or more")
    below, upto = _ranks(values, target)
    # The truth lies in the k-th interval when at least k draws lie on either side of it, or on it.
    depth = torch.minimum(upto, number - below)[counted]
    observed = [float((depth >= k).double().mean()) for k in range(1, len(levels) + 1)]
    return Reliability(levels[::-1], observed[::-1], number, int(counted.sum()))


def crps_at(draws: Values, truth: Values, hidden: Values | None = None) -> Float[Tensor, "*shape"]:
    """The fair CRPS of every place, NaN where it does not count."""
    values, target, counted = judged(draws, truth, hidden)
    number = _at_least_two("crps, fair over the pairs of draws,", values)
    # The score does not change when all move together: near the truth nothing cancels.
    off = values - target
    # sum_{i<j} |x_i - x_j| of sorted x is sum_j (2j - K - 1) x_j: K log K and no pairs.
    weight = torch.arange(1 - number, number, 2, dtype=torch.float64)
    pairs = torch.tensordot(weight, off.sort(0).values, 1)
    return (off.abs().mean(0) - pairs / (number * (number - 1))).where(counted, math.nan)


def covered_at(
    draws: Values, truth: Values, level: float, hidden: Values | None = None
) -> Float[Tensor, "*shape"]:
    """1 where the truth lies in the interval, 0 where not, NaN where it does not count."""
    values, target, counted = judged(draws, truth, hidden)
    low, high = (_tensor(end) for end in interval(values, level))
    return ((low <= target) & (target <= high)).double().where(counted, math.nan)


def spread_and_error_at(
    draws: Values, truth: Values, hidden: Values | None = None
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """(K + 1)/K times the variance of the draws, and the squared error of their mean."""
    values, target, counted = judged(draws, truth, hidden)
    number = _at_least_two("the spread", values)
    spread = values.var(0) * (number + 1) / number
    error = (values.mean(0) - target).square()
    return spread.where(counted, math.nan), error.where(counted, math.nan)


def judged(draws: Values, truth: Values, hidden: Values | None) -> tuple[Tensor, Tensor, Tensor]:
    """Draws and truth in float64 and which places count; 0 stands where they do not.

    InputError where shapes do not fit, nothing counts, or a place that counts has a draw or truth
    that is not finite.
    """
    values, target = (_tensor(one).cpu().double() for one in (draws, truth))
    if values.dim() < 1 or not values.shape[0] or values.shape[1:] != target.shape:
        raise InputError(
            f"draws have shape {tuple(values.shape)} and truth {tuple(target.shape)}; draws need "
            f"their members on axis 0 and the truth's shape behind it"
        )
    counted = ~target.isnan()
    if hidden is not None:
        mask = _tensor(hidden).cpu()
        if mask.dtype != torch.bool:
            raise InputError(f"hidden is of {mask.dtype}; give booleans, true where it counts")
        try:
            counted = counted & mask.expand(target.shape)
        except RuntimeError:
            raise InputError(
                f"hidden has shape {tuple(mask.shape)}, which does not broadcast to the truth's "
                f"{tuple(target.shape)}; give it that shape"
            ) from None
    if not counted.any():
        raise InputError("no place is left to judge: hidden is false, or truth NaN, everywhere; "
                         "give some")  # fmt: skip
    wrong = ~(values.isfinite().all(0) & target.isfinite()) & counted
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise InputError(f"a draw or the truth is not finite at {place}; mark places without "
                         f"domain by NaN in the truth")  # fmt: skip
    return values.where(counted, 0), target.where(counted, 0), counted


def _ranks(values: Tensor, target: Tensor) -> tuple[Int[Tensor, "*s"], Int[Tensor, "*s"]]:
    """How many draws lie below the truth, and how many below or on it."""
    return (values < target).sum(0), (values <= target).sum(0)


def _at_least_two(what: str, values: Tensor) -> int:
    if values.shape[0] < 2:
        raise InputError(f"{what} needs 2 draws or more, 1 was given; ask for more draws")
    return values.shape[0]


def _tensor(values: Values) -> Tensor:
    """Also of arrays in another byte order or walked backwards, which torch does not take."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))


def _mean(at: Tensor) -> float:
    return float(at.nanmean())
