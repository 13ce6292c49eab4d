"""Arguments that several commands share."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pointillist.types import InputError

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to set, as a.b=value.")
]
# Named here, as --help should not have to import torch; a test holds them against what there is.
SAMPLERS = (
    "euler, heun, heun_edm, ab2, ab2_even, lms, dpmpp_2m, dpmpp_2s, unipc, ddim, "
    "euler_maruyama, stochastic_heun, ddpm, ddpm_large, euler_ancestral, dpmpp_2s_ancestral, "
    "dpmpp_2m_sde, heun_churn, langevin"
)
METRICS = (
    "fid, kid, precision, recall, psnr, psnr_whole, psnr_draw, ssim, lpips, crps, coverage, "
    "spread_error, velocity, hinted"
)
SWEPT = "ema, guidance, interval, sampler, steps, seed, at, size"
AsJson = Annotated[bool, typer.Option("--json", help="The same facts for machines.")]


def check_sample_words(words: Sequence[str], elsewhere: str = "") -> None:
    """InputError for a word that sets anything but a field of `sample`.

    `elsewhere` says where others may be set.
    """
    for text in words:
        if not text.startswith("sample."):
            raise InputError(
                f"{text}: a run folder describes itself; only sample.* may be set there{elsewhere}"
            )


def check_sheet(out: Path) -> None:
    """InputError for a picture's name of another kind than .png, which would become a folder."""
    from pointillist.data.decode import SUFFIXES

    if out.suffix.lower() in SUFFIXES - {".png"} and not out.is_dir():
        raise InputError(f"--out is {out}; name a .png for one picture, or a folder for more")


def tell_cut(trained: Any, prompts: Any) -> int:
    """How many prompts were longer than the run reads; a line says so, whatever else is printed."""
    if trained.spec.words is None or prompts is None:
        return 0
    each = (prompts,) if isinstance(prompts, str) else prompts
    cut = trained.reader.cut(each)
    if cut:
        what = "the prompt was" if len(each) == 1 else f"{cut} of {len(each)} prompts were"
        print(f"{what} cut at {trained.run.text.length} tokens, which is text.length of the run",
              file=sys.stderr)  # fmt: skip
    return cut


def set_words(trained: Any, words: Sequence[str]) -> None:
    """Set fields of the run of a loaded network, as `sample.steps=10`."""
    from pointillist.run import from_dict, to_dict

    if words:
        trained.run = from_dict(to_dict(trained.run), tuple(words))


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """`0.1,1` as two numbers."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--interval is {text}; it is LO,HI, as 0.1,1") from None
    return low, high
