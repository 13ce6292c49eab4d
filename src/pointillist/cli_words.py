"""Arguments that several commands share."""

from typing import Annotated

import typer

from pointillist.types import InputError

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to set, as a.b=value.")
]
# Named here, as --help should not have to import torch; a test holds them against the samplers.
SAMPLERS = "euler, heun, ab2, ab2_even, dpmpp_2m"
AsJson = Annotated[bool, typer.Option("--json", help="The same facts for machines.")]


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """`64` or `48x64` as numbers of pixels, height first."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--size is {text}; it is HxW, as 64x48")
    size = tuple(int(part) for part in parts)
    return size * 2 if len(size) == 1 else size
