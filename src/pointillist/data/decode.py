"""One picture file to 8-bit values of a fixed size, whatever it was stored as."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps

from pointillist.types import InputError

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
Fit = Literal["crop", "pad", "adm"]
LARGEST = 80_000_000  # pixels; a small file can ask for far more memory than the machine has


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of odd metadata and large files; the limit here is ours.

    Python's list of filters belongs to the process, so this goes around all threads, not into one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    try:
        return _decode(file, size, channels, fit, enlarge)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(file, Path):
            reason = reason.replace(str(file), file.name)
        elif "cannot identify image file" in reason:
            reason = "cannot identify image file"  # without the address of the buffer
        raise InputError(f"unreadable: {reason}") from None


def _decode(
    file: Path | bytes, size: tuple[int, int], channels: int, fit: Fit, enlarge: bool
) -> Decoded:
    if not (file.stat().st_size if isinstance(file, Path) else len(file)):
        raise InputError("unreadable: the file is empty")
    with Image.open(file if isinstance(file, Path) else io.BytesIO(file)) as opened:
        if opened.width * opened.height > LARGEST:
            raise InputError(
                f"unreadable: {opened.width}x{opened.height} pixels, more than {LARGEST:,} in all"
            )
        notes = []
        if opened.mode == "F":
            raise InputError("unreadable: floating-point values have no known black and white")
        depth, inverted = _stored(opened)
        if depth in (12, 16) or opened.mode == "I":
            notes.append("12-bit" if depth == 12 else "16-bit")
        if turned := _orientation(opened) in range(2, 9):
            notes.append("EXIF-rotated")
        image: Image.Image = ImageOps.exif_transpose(opened) if turned else opened.copy()
    h, w = size
    shape = (image.height, image.width)
    if (image.height < h or image.width < w) and not enlarge:
        raise InputError(
            f"too small: {image.height}x{image.width}, wanted {h}x{w}; data.enlarge=true takes it"
        )
    image = _eight_bit(_narrowed(image, depth, inverted), notes, channels)
    image = fitted(image, size, fit)
    x = np.asarray(image).reshape(h, w, channels).transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(x), shape, tuple(notes))


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


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata say nothing about the pixels
        return 1


def _stored(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """Bits of a value in the file, 0 where Pillow reads them as they are meant, and whether 0 is
    white though Pillow does not turn it.
    """
    raw = str(image.tile)
    # Of a colour, not of a value: 5, 6 and 5 bits.
    found = None if "BGR;" in raw else re.search(r"[A-Z];(\d+)", raw)
    tags = getattr(image, "tag_v2", {})  # TIFF's; Pillow itself writes 32-bit greys as signed
    bits, form, lowest = (int(np.max(tags.get(tag, 0))) for tag in (258, 339, 262))
    if form == 2 and bits <= 16:
        raise InputError("unreadable: signed values have no known black and white")
    inverted = 262 in tags and lowest == 0 and image.mode.startswith("I;16")
    return int(found[1]) if found else 0, inverted


def _narrowed(image: Image.Image, depth: int, inverted: bool) -> Image.Image:
    """Values in 8 bits, and the one that stands for "nothing here" with them."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        # Pillow opens some 16-bit greys as 32-bit integers; anything larger has no known white.
        if values.min() < 0 or values.max() > 65535:
            raise InputError("unreadable: values outside 0 to 65535 have no known black and white")
        light = values * (255 / (4095 if depth == 12 else 65535))
        narrow = Image.fromarray(np.round(255 - light if inverted else light).astype(np.uint8))
        if isinstance(key, int):
            narrow.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
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
