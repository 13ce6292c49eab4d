"""What encoders that are asked by patches share: where patches lie, what share of each is seen."""

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.encoders.encoder import Site
from pointillist.layers.coordinates import Convention, unaliased_bands
from pointillist.layers.observations import centres, grid_of
from pointillist.layers.patch import patchify
from pointillist.types import Given, InputError


def patch_places(
    grid: tuple[int, ...], convention: Convention, device: torch.device
) -> Float[Tensor, "1 n s"]:
    """Centres of the patches; in [0, 1] by the `unit` convention.

    Published patches keep the centres of cells where the published points have `corner`
    coordinates, which are up to 1/(n - 1) beside them.
    """
    at = centres(grid).to(device)[None]
    return (at + 1) / 2 if convention == "unit" else at


def observed_share(
    given: Given, site: Site, size: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b n 1"]:
    """The share of each patch that is observed; one row of zeros where nothing is given."""
    found = grid_of(given, site.channels, size)
    density = torch.zeros(1, 1, *size, device=device) if found is None else found[1]
    return patchify(density, site.patch_size).mean(-1, keepdim=True)


def bands_of(bands: int | None, site: Site) -> tuple[int, ...]:
    """Bands of a coordinates' code on each axis; None: as many as the training grid tells apart."""
    return unaliased_bands(site.size) if bands is None else (bands,) * len(site.size)


def heads_of(heads: int, site: Site, field: str = "heads") -> int:
    """Heads of an encoder's attention, 0 being the backbone's; InputError where they do not fit."""
    heads = heads or site.heads
    if site.width % heads:
        raise InputError(
            f"model.encoder.{field} is {heads}, which does not divide model.width {site.width}; "
            f"choose a divisor of it"
        )
    return heads


def check_at_least(config: object, least: int, *names: str) -> None:
    """InputError for the first field below `least`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"model.encoder.{name} is {value}; it must be {least} or more")
