"""One picture file to 8-bit values of a fixed size, whatever it was stored as."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from pointillist.picture_files import Opened, open_picture, reading
from pointillist.types import InputError

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
Fit = Literal["crop", "pad", "adm"]


class Decoded(NamedTuple):
    """A picture, its shape in the file as seen upright, and what had to be converted."""

    x: UInt8[np.ndarray, "c h w"]
    shape: tuple[int, int]
    notes: tuple[str, ...]


def decode(
    file: Path | bytes, size: tuple[int, int], channels: int, fit: Fit, enlarge: bool
) -> Decoded:
    """The picture at `size` = (h, w), from a file or its content; InputError with the reason where
    it cannot be used.

    Transparent parts lie on white; 16-bit values are divided by 257, 12-bit ones by 4095/255; of
    several frames the first counts. `crop` keeps the largest centred part of the right shape, `pad`
    the whole on white, `adm` is `adm_crop`.
    """
    with reading(file):
        return decoded(open_picture(file), size, channels, fit, enlarge)


def decoded(
    found: Opened, size: tuple[int, int], channels: int, fit: Fit, enlarge: bool
) -> Decoded:
    """`decode` of a picture that is open already."""
    notes = []
    if found.depth in (12, 16) or found.image.mode == "I":
        notes.append("12-bit" if found.depth == 12 else "16-bit")
    if found.turned:
        notes.append("EXIF-rotated")
    image = found.image
    h, w = size
    shape = (image.height, image.width)
    if not enlarge:
        too_small(shape, size)
    image = _eight_bit(_narrowed(found), notes, channels)
    image = fitted(image, size, fit)
    x = np.asarray(image).reshape(h, w, channels).transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(x), shape, tuple(notes))


def too_small(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """InputError where a picture of that shape would have to be enlarged to `size`."""
    if shape[0] < size[0] or shape[1] < size[1]:
        raise InputError(
            f"too small: {shape[0]}x{shape[1]}, wanted {size[0]}x{size[1]}; data.enlarge=true "
            f"takes it"
        )


def adm_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre at `size` = (h, w), as published ImageNet scores prepare it (arXiv:2105.05233).

    Halved by box means while twice the target still fits, then one bicubic resize until the target
    just fits, then the centre is cut. For a square target "fits" means the shorter side.
    """
    h, w = size
    while image.width >= 2 * w and image.height >= 2 * h:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(w / image.width, h / image.height)
    # Rounding must never leave a side one pixel short of the cut.
    wide = (max(w, round(image.width * scale)), max(h, round(image.height * scale)))
    image = image.resize(wide, Image.Resampling.BICUBIC)
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return image.crop((left, top, left + w, top + h))


def fitted(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """The picture at `size` = (h, w); one that has it already is left as it is."""
    h, w = size
    if image.size == (w, h):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (w, h), Image.Resampling.LANCZOS)
    if fit == "adm":
        return adm_crop(image, size)
    return ImageOps.pad(image, (w, h), Image.Resampling.LANCZOS, color="white")


def _narrowed(found: Opened) -> Image.Image:
    """Values in 8 bits, and the one that stands for "nothing here" with them."""
    image, depth = found.image, found.depth
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        values, top = found.levels()
        values = values[:, :, 0]
        narrow = Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))
        if isinstance(key, int):
            nothing = values == (top - key if found.inverted else key)
            narrow.putalpha(Image.fromarray(np.where(nothing, 0, 255).astype(np.uint8)))
        return narrow
    if isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif isinstance(key, int) and image.mode == "L" and depth in (2, 4):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    return image


def _eight_bit(image: Image.Image, notes: list[str], channels: int) -> Image.Image:
    """The picture in mode L or RGB; what was done is added to `notes`."""
    if image.mode in ("P", "PA"):
        notes.append("palette")
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA"
                              else "RGB")  # fmt: skip
    if image.mode == "CMYK":
        notes.append("CMYK")
    if image.mode in ("1", "L", "LA") and channels == 3:
        notes.append("grey")
    if image.mode in ("LA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("transparent")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("L" if channels == 1 else "RGB")
