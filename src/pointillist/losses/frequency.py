"""The error of the velocity by spatial frequency, weighed as JPEG does (DeCo, arXiv 2511.19365).

JPEG keeps what is seen and drops what is not: its quantisation tables say, for every frequency of
an 8 x 8 block, how coarse is fine enough. The inverse of a table is a weight of the error, largest
at the low frequencies and smaller for colour than for brightness.
"""

import functools
import math
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pointillist.losses.term import check_pictures, check_term
from pointillist.types import InputError, Spec, config

EDGE = 8
# ITU-T T.81, tables K.1 and K.2: brightness and colour at quality 50.
BRIGHTNESS = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
COLOUR = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)  # fmt: skip
# ITU-R BT.601, without the offset, which a difference does not have.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@config
class FrequencyConfig:
    """`quality` of the JPEG tables, 1 to 100 (published: DeCo 85, PixelHDM 90): the higher, the
    flatter. `colour` none takes the channels as they are, all by the table of brightness.
    """

    weight: float = 0.0
    quality: int = 85
    colour: Literal["ycbcr", "none"] = "ycbcr"

    def __post_init__(self) -> None:
        check_term(self, "loss.frequency")
        if not 1 <= self.quality <= 100:
            raise InputError(f"loss.frequency.quality is {self.quality}; it lies in [1, 100]")

    def check(self, spec: Spec) -> None:
        channels = 3 if self.colour == "ycbcr" else None
        check_pictures(self, "loss.frequency", spec, f"colour {self.colour}", channels)
        if self.weight and any(-n % EDGE >= n for n in spec.size):
            shown = "x".join(map(str, spec.size))
            raise InputError(
                f"loss.frequency.weight is {self.weight}, but pictures of {shown} are too small "
                f"to be mirrored to blocks of {EDGE}; set loss.frequency={{}} or data.size to 5 or "
                f"more"
            )


def dct_matrix() -> Float[Tensor, "8 8"]:
    """The orthonormal DCT-II: row k is the cosine of k half waves over the block, in float64."""
    # On the CPU whatever the default device, as all that is kept below.
    steps = torch.arange(EDGE, dtype=torch.float64, device="cpu")
    k, n = steps[:, None], steps + 0.5
    rows = torch.cos(k * n * math.pi / EDGE) * (2 / EDGE) ** 0.5
    rows[0] /= 2**0.5
    return rows


def block_dct(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Coefficients of every 8 x 8 block, each in the place of its block.

    Other sizes are mirrored at their far edges and the coefficients cut off again, as published: a
    block of n rows keeps its n lowest frequencies, but the sum of squares is no longer kept.
    """
    h, w = x.shape[2:]
    x = F.pad(x, (0, -w % EDGE, 0, -h % EDGE), mode="reflect")
    blocks = rearrange(x, "b c (h p) (w q) -> b c h w p q", p=EDGE, q=EDGE)
    matrix = _matrix_on(x.device, x.dtype)
    found = einsum(matrix, blocks, matrix, "k p, b c h w p q, l q -> b c h w k l")
    return rearrange(found, "b c h w k l -> b c (h k) (w l)")[:, :, :h, :w]


@functools.cache
def jpeg_weights(quality: int) -> tuple[Float[Tensor, "8 8"], Float[Tensor, "8 8"]]:
    """Weights of brightness and colour, each of mean 1: the inverse of the table at `quality`."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    made = []
    for table in (BRIGHTNESS, COLOUR):
        steps = (
            ((torch.tensor(table, device="cpu") * scale + 50) / 100).floor().clamp(1, 255).double()
        )
        made.append((1 / steps / (1 / steps).mean()).float())
    return made[0], made[1]


def to_ycbcr(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Brightness and two differences of colour; the matrix is not orthonormal, colour shrinks."""
    return einsum(_ycbcr_on(x.device, x.dtype), x, "o c, b c h w -> b o h w")


# What every call needs: made and copied once for each device, precision and size.


@functools.cache
def _matrix_on(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "8 8"]:
    return dct_matrix().to(device, dtype)


@functools.cache
def _ycbcr_on(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "3 3"]:
    return torch.tensor(YCBCR, device="cpu").to(device, dtype)


@functools.lru_cache(maxsize=16)
def _weights_on(
    config: FrequencyConfig, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "c h w"]:
    """The weight of every coefficient of a picture of c channels, h x w."""
    brightness, colour = jpeg_weights(config.quality)
    channels, h, w = shape
    rest = colour if config.colour == "ycbcr" else brightness
    repeats = (1, -(-h // EDGE), -(-w // EDGE))
    by_place = torch.stack([brightness] + [rest] * (channels - 1)).repeat(repeats)
    return by_place[:, :h, :w].to(device, dtype)


def frequency(
    config: FrequencyConfig,
    error: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "b _ h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Weighted mean square of the coefficients of an error (all of it is linear until then).

    `weight` says how much a place counts, as in `mean_square`: with flat frequencies the two agree.
    """
    error = error.float()
    if weight is not None:
        error = error * weight.sqrt()
    if config.colour == "ycbcr":
        error = to_ycbcr(error)
    _, channels, h, w = error.shape
    by_place = _weights_on(config, (channels, h, w), error.device, error.dtype)
    return (block_dct(error).square() * by_place).flatten(1).mean(1)
