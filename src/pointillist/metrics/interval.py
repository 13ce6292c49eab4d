"""How sure a score is: percentile bootstrap over samples, Student's t over seeds."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import InputError

CHUNK = 1 << 21  # draws made at once: 16 MB of them, a few times that on the way


class Score(NamedTuple):
    """A number, the ends of its interval, and from how many samples (or seeds) it comes."""

    value: float
    low: float
    high: float
    n: int


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level {level} is not between 0 and 1; 0.95 is the usual one")


def resamples(n: int, replicates: int, seed: int = 0) -> Iterator[Int[Tensor, "r n"]]:
    """For every replicate, n numbers out of 0 to n - 1, drawn with replacement; in chunks."""
    if n < 2 or replicates < 1:
        raise InputError(f"a bootstrap of {n} samples and {replicates} replicates draws nothing; "
                         f"it needs 2 samples and 1 replicate or more")  # fmt: skip
    at_once = max(CHUNK // n, 1)
    for first in range(0, replicates, at_once):
        number = torch.arange(first, min(first + at_once, replicates))
        yield Draw(seed, number).below("bootstrap", n, (n,))


def counts(n: int, replicates: int, seed: int = 0) -> Float[Tensor, "r n"]:
    """How often each of n samples is drawn in every replicate; rows add up to n."""
    rows = []
    for chosen in resamples(n, replicates, seed):
        ones = torch.ones(chosen.shape, dtype=torch.float64)
        rows.append(torch.zeros_like(ones).scatter_add_(1, chosen, ones))
    return torch.cat(rows)


def percentiles(values: Sequence[float] | Float[Tensor, " r"], level: float) -> tuple[float, float]:
    """The central interval that holds `level` of the values."""
    check_level(level)
    found = torch.as_tensor(values, dtype=torch.float64)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(found, ends).tolist()
    return low, high


def bootstrap_mean(
    values: Sequence[float] | Float[Tensor, " n"],
    *, level: float = 0.95, replicates: int = 1000, seed: int = 0,
) -> Score:  # fmt: skip
    """The mean of one number a sample (PSNR, CRPS, ...) and its percentile interval.

    Efron, Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    found = torch.as_tensor(values).detach().cpu().double().flatten()
    if not bool(found.isfinite().all()):
        first = int((~found.isfinite()).nonzero()[0])
        raise InputError(f"the score of sample {first} is {float(found[first])}, so a mean says "
                         f"nothing; leave it out (equal pictures have infinite PSNR)")  # fmt: skip
    n = found.shape[0]
    means = torch.cat([found[chosen].mean(1) for chosen in resamples(n, replicates, seed)])
    return Score(float(found.mean()), *percentiles(means, level), n)


def bootstrap(
    statistic: Callable[[Int[Tensor, " n"]], float],
    n: int,
    *, level: float = 0.95, replicates: int = 200, seed: int = 0,
) -> Score:  # fmt: skip
    """Any statistic of chosen samples, made again for every replicate.

    The value is that of all samples in order. A statistic that is biased at n is biased once more
    by resampling, so the interval of such a one need not hold its own value.
    """
    value = statistic(torch.arange(n))
    again = [statistic(row) for chosen in resamples(n, replicates, seed) for row in chosen]
    return Score(value, *percentiles(again, level), n)


def share_score(value: float, n: int, *, level: float = 0.95) -> Score:
    """A share of n samples that each are or are not, and Wilson's interval (JASA 22, 1927).

    Unlike the bootstrap's it does not shrink to nothing at 0 and 1.
    """
    check_level(level)
    if n < 1 or not 0 <= value <= 1:
        raise InputError(f"{value} is no share of {n} samples; it lies in [0, 1], of 1 or more")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    return Score(value, max(middle - half, 0.0), min(middle + half, 1.0), n)


def over_seeds(values: Sequence[float], *, level: float = 0.95) -> Score:
    """The mean over runs that differ in their seed alone, and its t interval."""
    check_level(level)
    n = len(values)
    if n < 2:
        raise InputError(f"{n} seed gives no interval; run 2 or more, or bootstrap over samples")
    found = torch.as_tensor(values, dtype=torch.float64)
    if not bool(found.isfinite().all()):
        raise InputError(f"the scores over seeds are {list(values)}; leave out none that is not "
                         f"finite, but find why")  # fmt: skip
    mean = float(found.mean())
    half = t_quantile((1 + level) / 2, n - 1) * float(found.std()) / math.sqrt(n)
    return Score(mean, mean - half, mean + half, n)


def t_quantile(p: float, freedom: int) -> float:
    """Where Student's distribution reaches p (above one half), by bisection of its integral."""
    low, high = 0.0, 1.0
    while t_below(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_below(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def t_below(t: float, freedom: int) -> float:
    """The probability below t > 0, in closed form: Abramowitz, Stegun 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(freedom))
    cos2 = math.cos(theta) ** 2
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range((freedom - odd) // 2):
        total += term
        term *= cos2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    within = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return 0.5 + within / 2
