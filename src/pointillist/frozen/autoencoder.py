"""Autoencoders of latent diffusion (Rombach et al., arXiv 2112.10752), frozen: pictures to latents
and back.

An autoencoder is an `AutoencoderKL` of `diffusers`, by folder or hub id. Its answer to a picture is
a normal distribution for every cell, of which `encode` gives mean and deviation; the network's
units are (z - offset)/scale, where 1/scale is its `scaling_factor` and offset its `shift_factor`
(or `latents_mean` and `latents_std`, one number a channel). Only safetensors are opened.

A large picture is done in tiles that overlap by a quarter of their edge and are blended over it.
Normalisation and attention of the network reach over a whole tile, so tiles are near to, and not
the same as, the answer of the whole; one tile is.
"""

import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.frozen.pretrained import digest, expanded, may_be_hub_id, told, version
from pointillist.types import InputError

INSTALL = "pip install 'pointillist[latent]'"
PIXELS = 1 << 19  # that many of pictures are in the memory together: 8 of 256 x 256
OVERLAP = 4  # tiles share this part of their edge
STABLE_DIFFUSION = ("stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-mse")


class Coding(NamedTuple):
    """What an autoencoder makes of pictures, told without opening its weights."""

    channels: int  # of pictures
    latents: int  # channels of latents
    factor: int  # pixels to a cell, on each axis
    offset: tuple[float, ...]
    scale: tuple[float, ...]


class Autoencoder:
    """A frozen AutoencoderKL on a device, with a digest of all that its answers come from."""

    def __init__(self, model: Any, coding: Coding, device: torch.device) -> None:
        self.coding = coding
        self.digest = _digest(model, coding)
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b c h w"], tile: int = 0) -> Float[Tensor, "b z hz wz"]:
        """Mean and deviation of the latents, one after the other in the channels, of pictures in
        [-1, 1]; `tile` is the edge of a tile in pixels (0: none).
        """

        def work(part: Tensor) -> Tensor:
            found = self.model.encode(part).latent_dist
            return torch.cat((found.mean, found.std), 1)

        factor = self.coding.factor
        return self._each(x, lambda some: tiled(work, some, tile // factor, factor, 1), 1)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b c h w"], tile: int = 0) -> Float[Tensor, "b cx hx wx"]:
        """Pictures, clipped to [-1, 1], of latents z in the autoencoder's own units."""

        def work(part: Tensor) -> Tensor:
            return self.model.decode(part).sample

        factor = self.coding.factor
        decoded = self._each(z, lambda some: tiled(work, some, tile // factor, 1, factor), factor)
        return decoded.clamp(-1, 1)

    def _each(self, x: Tensor, work: Callable[[Tensor], Tensor], larger: int) -> Tensor:
        """Portions of a batch in turn; the answers come back to where `x` is."""
        portion = max(1, PIXELS // (x.shape[2] * x.shape[3] * larger**2))
        parts = [work(part.to(self.device).float()).to(x.device) for part in x.split(portion)]
        return torch.cat(parts)


# Tiles.


def starts(cells: int, tile: int) -> list[int]:
    """Where tiles begin along an axis: evenly, the last ends where the axis does."""
    if not tile or cells <= tile:
        return [0]
    count = math.ceil((cells - tile // OVERLAP) / (tile - tile // OVERLAP))
    return [round(i * (cells - tile) / (count - 1)) for i in range(count)]


def tiled(
    work: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b c h w"],
    tile: int,
    before: int,
    after: int,
) -> Float[Tensor, "b d h2 w2"]:
    """`work(x)` in tiles of `tile` cells an edge (0: none); a cell is `before` places of `x` and
    `after` of the answer along each axis. One tile is `work(x)` itself.
    """
    size = [n // before for n in x.shape[2:]]
    corners = [(top, left) for top in starts(size[0], tile) for left in starts(size[1], tile)]
    if len(corners) == 1:
        return work(x)
    total, weight = None, torch.zeros(1)
    for top, left in corners:
        part = x[..., top * before : (top + tile) * before, left * before : (left + tile) * before]
        found = work(part).float()
        h, w = found.shape[2:]
        ramps = _ramp(h, tile * after, found), _ramp(w, tile * after, found)
        share = ramps[0][:, None] * ramps[1]
        if total is None:
            grid = [n * after for n in size]
            total, weight = found.new_zeros(*found.shape[:2], *grid), found.new_zeros(grid)
        rows, columns = slice(top * after, top * after + h), slice(left * after, left * after + w)
        total[..., rows, columns] += found * share
        weight[rows, columns] += share
    assert total is not None
    return total / weight


def _ramp(length: int, tile: int, like: Tensor) -> Float[Tensor, " n"]:
    """How much each place of a tile counts: all but the overlap at both ends alike."""
    place = torch.arange(length, device=like.device, dtype=torch.float32) + 0.5
    return torch.minimum(place, length - place).div(max(1, tile // OVERLAP)).clamp(max=1)


# Opening.


def open_autoencoder(name: str, device: torch.device) -> Autoencoder:
    """The autoencoder of that folder or hub id, loaded once; InputError where there is none."""
    name = _named(name)
    return _open(name, version(name), str(device))


def promise(name: str) -> Coding:
    """What it will make of pictures; InputError where there is no such autoencoder.

    Those of Stable Diffusion are known, so that a run on them can be described anywhere.
    """
    if name in STABLE_DIFFUSION:
        return Coding(3, 4, 8, (0.0,) * 4, (1 / 0.18215,) * 4)
    name = _named(name)
    return _promise(name, version(name))[1]


# As many as a process may need: one, and the one before it while it is replaced.
@functools.lru_cache(2)
def _open(name: str, files: tuple[tuple[str, int], ...], device: str) -> Autoencoder:
    _, coding = _promise(name, files)
    with _told(name):
        model, found = _diffusers().AutoencoderKL.from_pretrained(
            name, use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False,
            output_loading_info=True,
        )  # fmt: skip
    for key in sorted(found["missing_keys"]):
        raise InputError(
            f"data.autoencoder {name} lacks the weight {key}, which would be filled with random "
            f"numbers; give the whole autoencoder as save_pretrained wrote it"
        )
    return Autoencoder(model, coding, torch.device(device))


@functools.lru_cache(2)
def _promise(name: str, files: tuple[tuple[str, int], ...]) -> tuple[Any, Coding]:
    library = _diffusers()
    with _told(name):
        facts = library.AutoencoderKL.load_config(name)
    made = facts.get("_class_name", "AutoencoderKL")
    if made != "AutoencoderKL":
        raise InputError(f"data.autoencoder {name} is of class {made}; give an AutoencoderKL")
    with _told(name), torch.device("meta"):
        config = library.AutoencoderKL.from_config(facts).config
    return config, _coding(name, config)


def _coding(name: str, config: Any) -> Coding:
    n, scaling = config.latent_channels, config.scaling_factor
    shift = getattr(config, "shift_factor", None) or 0.0
    mean = getattr(config, "latents_mean", None) or [shift] * n
    deviation = getattr(config, "latents_std", None) or [1.0] * n
    if not (len(mean) == len(deviation) == n and scaling > 0 and min(deviation) > 0):
        raise InputError(
            f"data.autoencoder {name} has scaling_factor {scaling} and {n} latent channels, with "
            f"{len(mean)} means and {len(deviation)} deviations; these are one a channel, and all "
            f"but means above 0: mend its config.json"
        )
    offset, scale = tuple(map(float, mean)), tuple(float(v) / scaling for v in deviation)
    if config.out_channels != config.in_channels:
        raise InputError(
            f"data.autoencoder {name} takes pictures of {config.in_channels} channels and gives "
            f"{config.out_channels}; give one that gives back what it takes"
        )
    factor = 2 ** (len(config.block_out_channels) - 1)
    return Coding(config.in_channels, n, factor, offset, scale)


def _digest(model: Any, coding: Coding) -> str:
    """Of every weight, of the scale of the latents, and of how the network is put together."""
    aside = ("_name_or_path", "_class_name", "_diffusers_version", "sample_size", "force_upcast")
    made = {key: str(value) for key, value in model.config.items() if key not in aside}
    text = repr(coding) + repr(sorted(made.items()))
    return digest(text, sorted(model.state_dict().items()))


def _named(name: str) -> str:
    if not name:
        raise InputError(
            "data.autoencoder is not set; give the folder of an AutoencoderKL, its hub id, or "
            "identity for none"
        )
    name = expanded(name)
    if not may_be_hub_id(name) and not Path(name).is_dir():
        raise InputError(
            f"data.autoencoder {name} is not there; bring it back, or set data.autoencoder (for a "
            f"run that is trained: in its run.yaml) to where it lies"
        )
    return name


def _diffusers() -> Any:
    try:
        library = importlib.import_module("diffusers")
    except ImportError:
        raise InputError(
            f"data.autoencoder other than identity needs diffusers, which is not installed; "
            f"{INSTALL} installs it"
        ) from None
    library.utils.logging.disable_progress_bar()
    return library


def _told(name: str) -> told:
    return told(
        f"data.autoencoder {name}",
        "give the folder of an AutoencoderKL with .safetensors as save_pretrained wrote it, or a "
        "hub id that can be reached",
    )
