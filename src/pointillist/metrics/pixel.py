"""Two pictures against each other: PSNR and SSIM place by place, LPIPS by features; one number."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.frozen.alexnet import lpips_distance
from pointillist.types import InputError

WINDOW = 11  # places of SSIM's own, the least that an edge of a picture may have


def psnr(
    a: Any,
    b: Any,
    *,
    data_range: float | None = None,
    mask: Bool[Tensor, "b _ *space"] | None = None,
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / mean square); infinite where equal.

    `a` and `b` are `b c *space`, tensors or arrays. `data_range` is the distance from the lowest
    to the highest value there could be: 2 for [-1, 1]; 8-bit pictures have theirs, 255. With a
    `mask`, only places where it is true count, for each picture its own.
    """
    x, y, data_range = aligned(a, b, data_range)
    square = (x - y).square()
    if mask is None:
        mean = square.flatten(1).mean(1)
    else:
        try:
            chosen = mask.cpu().expand_as(square).flatten(1)
        except RuntimeError:
            raise InputError(
                f"mask has shape {tuple(mask.shape)}, the pictures {tuple(square.shape)}; give one "
                f"place a pixel"
            ) from None
        if not bool(chosen.any(1).all()):
            raise InputError(f"picture {int((~chosen.any(1)).nonzero()[0])} has no place where "
                             f"mask is true; leave it out")  # fmt: skip
        mean = torch.where(chosen, square.flatten(1), 0).sum(1) / chosen.sum(1)
    return 10 * torch.log10(data_range**2 / mean)


def ssim(
    a: Any,
    b: Any,
    *,
    data_range: float | None = None,
    window: Literal["gaussian", "uniform"] = "gaussian",
    width: int | None = None,
    sample_covariance: bool = False,
) -> Float[Tensor, " b"]:
    """Structural similarity, at most 1: the mean over channels and all windows inside the picture.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004),
    Eq. 13, with k1 = .01, k2 = .03. The paper's window is Gaussian, sigma 1.5 on 11 places;
    `uniform` is a box of 7. `width` sets another number of places; `sample_covariance` divides by
    one less than the window has, as scikit-image does unless told otherwise. The lowest value is
    taken to be 0: of pictures in [-1, 1] give (x + 1) / 2, with data_range 1.
    """
    x, y, data_range = aligned(a, b, data_range)
    if window not in ("gaussian", "uniform"):
        raise InputError(f"window {window!r} is not known; take gaussian or uniform")
    width = width or {"gaussian": WINDOW, "uniform": 7}[window]
    if width < 3 or width % 2 == 0:
        raise InputError(f"width {width} of the window is not an odd number from 3 on; give one")
    if min(x.shape[2:]) < width:
        raise InputError(
            f"pictures of {'x'.join(map(str, x.shape[2:]))} have no room for a window of {width}; "
            f"give a smaller width, or larger pictures"
        )
    places = torch.arange(width, dtype=x.dtype) - width // 2
    weight = torch.exp(-(places / 1.5).square() / 2) if window == "gaussian" \
        else torch.ones_like(places)  # fmt: skip
    weight = weight / weight.sum()
    total = width ** (x.dim() - 2)
    norm = total / (total - 1) if sample_covariance else 1.0

    mean_x, mean_y = smooth(x, weight), smooth(y, weight)
    var_x = norm * (smooth(x * x, weight) - mean_x * mean_x)
    var_y = norm * (smooth(y * y, weight) - mean_y * mean_y)
    cov = norm * (smooth(x * y, weight) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    below = (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    return (above / below).flatten(1).mean(1)


def lpips(a: Any, b: Any, *, data_range: float | None = None) -> Float[Tensor, " b"]:
    """LPIPS distance on AlexNet, version 0.1 (Zhang et al., 1801.03924); 0 for equal pictures.

    `a` and `b` are `b 3 h w`; values are taken to be centred on 0, those of 8-bit pictures on
    127.5. Pictures of fewer than 31 pixels an edge are refused.
    """
    x, y, data_range = aligned(a, b, data_range)
    if x.dim() != 4 or x.shape[1] != 3:
        raise InputError(f"LPIPS got pictures of shape {tuple(x.shape)}; give (b, 3, height, "
                         f"width)")  # fmt: skip
    centre = 127.5 if torch.as_tensor(a).dtype == torch.uint8 else 0.0
    x, y = ((one - centre) * (2 / data_range) for one in (x, y))
    if max(float(x.abs().max()), float(y.abs().max())) > 1.5:
        raise InputError(f"LPIPS got values beyond {data_range / 2:g} on either side of 0; shift "
                         f"them so that their range is centred on 0")  # fmt: skip
    with torch.no_grad():
        return lpips_distance(x.float(), y.float())


def smooth(x: Float[Tensor, "b c *space"], weight: Float[Tensor, " w"]) -> Tensor:
    """A weighted mean along every axis of space, where the window lies wholly inside."""
    for axis in range(2, x.dim()):
        length = x.shape[axis] - weight.shape[0] + 1
        total = torch.zeros_like(x.narrow(axis, 0, length))
        for start, share in enumerate(weight.tolist()):
            total += share * x.narrow(axis, start, length)
        x = total
    return x


def aligned(a: Any, b: Any, data_range: float | None) -> tuple[Tensor, Tensor, float]:
    """Both in float64 on the CPU, and the range; InputError where they do not belong together."""
    x, y = torch.as_tensor(a).detach().cpu(), torch.as_tensor(b).detach().cpu()
    if x.shape != y.shape:
        raise InputError(f"the pictures have shapes {tuple(x.shape)} and {tuple(y.shape)}; give as "
                         f"many of the same size on both sides")  # fmt: skip
    if x.dim() < 3 or x.numel() == 0:
        raise InputError(
            f"pictures have shape {tuple(x.shape)}; give one or more as (b, c, height, width)"
        )
    if data_range is None:
        if x.dtype != torch.uint8 or y.dtype != torch.uint8:
            raise InputError("data_range is not stated; give the distance from the lowest to the "
                             "highest value there could be, 2 for [-1, 1]")  # fmt: skip
        data_range = 255.0
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range {data_range} is not above 0; 2 is that of [-1, 1]")
    if (x.dtype == torch.uint8) != (y.dtype == torch.uint8):
        raise InputError("one side has 8-bit levels and the other has not; bring both to the same "
                         "values")  # fmt: skip
    x, y = x.double(), y.double()
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise InputError("a picture holds NaN or infinity; give values everywhere, or a mask and "
                         "any number where it is false")  # fmt: skip
    spread = max(float(side.max() - side.min()) for side in (x, y))
    if spread > 10 * data_range:  # what a network overshoots by is no other unit
        raise InputError(f"data_range is {data_range:g}, but values of one picture set are "
                         f"{spread:g} apart; state the range that they have")  # fmt: skip
    return x, y, float(data_range)
