"""Arguments that several commands share."""

from typing import Annotated

import typer

from pointillist.types import InputError

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to set, as a.b=value.")
]
# Named here, as --help should not have to import torch; a test holds them against what there is.
SAMPLERS = (
    "euler, heun, ab2, ab2_even, lms, dpmpp_2m, dpmpp_2s, unipc, euler_maruyama, stochastic_heun"
)
METRICS = (
    "fid, kid, precision, recall, psnr, psnr_whole, psnr_draw, ssim, lpips, crps, coverage, "
    "spread_error, velocity, hinted"
)
SWEPT = "ema, guidance, interval, sampler, steps, seed, at, size"
AsJson = Annotated[bool, typer.Option("--json", help="The same facts for machines.")]


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """`0.1,1` as two numbers."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--interval is {text}; it is LO,HI, as 0.1,1") from None
    return low, high
