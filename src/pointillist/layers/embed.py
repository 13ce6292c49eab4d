"""Embeddings of time, label and place."""

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.types import Given, InputError, Time

# Tables of places are made on the CPU, in float64, once for each grid and device.
CPU, TABLES = torch.device("cpu"), 64


def sinusoid(t: Time, width: int, max_period: float) -> Float[Tensor, "b d"]:
    """[cos, sin] of t at width/2 frequencies from 1 down to 1/max_period, in float32."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)[None]
    return torch.cat((angle.cos(), angle.sin()), -1)


class TimeEmbedding(nn.Module):
    """Sinusoid of `scale * t`, then Linear, SiLU, Linear.

    Raw t in [0, 1] with period 1e4 (JiT) leaves all but a few features almost constant; scale 1000
    spreads them. Time stays in float32 whatever the autocast, for t = 0.9985 is 1 in bfloat16.
    """

    def __init__(
        self, width: int, scale: float = 1.0, max_period: float = 1e4, features: int = 256
    ) -> None:
        super().__init__()
        self.scale, self.max_period, self.features = scale, max_period, features
        self.up = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Time) -> Float[Tensor, "b d"]:
        wave = sinusoid(self.scale * t, self.features, self.max_period)
        # The meta device, on which costs are counted, knows no autocast.
        with torch.autocast("cpu" if t.is_meta else t.device.type, enabled=False):
            return self.out(F.silu(self.up(wave)))


class LabelEmbedding(nn.Module):
    """A row for every class and a last one for "no label", which a label of -1 takes."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, label: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.table(torch.where(label < 0, self.table.num_embeddings - 1, label))


class AugmentEmbedding(nn.Module):
    """How a sample was augmented, by numbers that are 0 where it was not, without a bias: what was
    left as it is adds nothing (Karras et al. 2206.00364, App. F.2).
    """

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, labels).normal_(std=0.02))

    @classmethod
    def of(cls, labels: int, width: int) -> "AugmentEmbedding | None":
        """None where nothing is told."""
        return cls(labels, width) if labels > 0 else None

    def forward(self, augment: Float[Tensor, "b a"]) -> Float[Tensor, "b d"]:
        if augment.shape[1] != self.weight.shape[1]:
            raise InputError(
                f"model.augment_labels is {self.weight.shape[1]}, but augmentation tells "
                f"{augment.shape[1]} numbers a sample; set model.augment_labels={augment.shape[1]}"
            )
        return F.linear(augment.float(), self.weight.float())


def embed_given(
    label: LabelEmbedding | None, augment: AugmentEmbedding | None, given: Given
) -> Float[Tensor, "b d"] | None:
    """What is added to the time's embedding; None where nothing is. No `augment` is all zeros."""
    found = None
    if label is not None:
        assert given.label is not None, "a model with classes is always given labels, -1 for none"
        found = label(given.label)
    if augment is not None and given.augment is not None:
        turned = augment(given.augment)
        found = turned if found is None else found + turned
    return found


def positions(grid: tuple[int, ...], trained: tuple[int, ...]) -> list[Float[Tensor, " _"]]:
    """Token positions along each axis, in steps of the trained grid.

    On the trained grid these are 0, 1, 2, ...; another grid covers the same span with its own cell
    centres, so that a larger output is the same scene seen finer.
    """
    return [
        (torch.arange(n, dtype=torch.float64, device=CPU) + 0.5) * (m / n) - 0.5
        for n, m in zip(grid, trained, strict=True)
    ]


@functools.lru_cache(TABLES)
def sincos(
    grid: tuple[int, ...],
    trained: tuple[int, ...],
    width: int,
    device: torch.device = CPU,
) -> Float[Tensor, "n d"]:
    """Fixed sine-cosine code of every token's place: an equal share of the width for each axis.

    The last axis comes first, as in MAE and DiT; what does not divide by two per axis stays 0.
    The table is kept and shared: do not write into it.
    """
    axes = len(grid)
    half = width // (2 * axes)
    frequency = 1e4 ** -(torch.arange(half, dtype=torch.float64, device=CPU) / half)
    mesh = torch.meshgrid(*positions(grid, trained), indexing="ij")
    code = torch.zeros(math.prod(grid), width, dtype=torch.float64, device=CPU)
    for i, place in enumerate(reversed(mesh)):
        angle = place.flatten()[:, None] * frequency
        code[:, 2 * half * i : 2 * half * (i + 1)] = torch.cat((angle.sin(), angle.cos()), -1)
    return code.float().to(device)
