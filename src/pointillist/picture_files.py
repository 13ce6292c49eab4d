"""Picture files, opened in one way: upright, no larger than fits, and what is odd about them."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageFile, ImageOps

from pointillist.types import InputError

LARGEST = 80_000_000  # pixels; a small file can ask for far more memory than the machine has


class Opened(NamedTuple):
    """A picture in its file's own mode, upright.

    `depth` are the bits of a value in the file, 0 where Pillow reads it as it is meant; `inverted`:
    0 is white, though Pillow does not turn it; `turned`: by its EXIF note; `clear`: it has an alpha
    channel, or a colour that stands for "nothing here".
    """

    image: Image.Image
    depth: int
    inverted: bool
    turned: bool
    clear: bool

    def levels(self) -> tuple[Int[np.ndarray, "h w c"], int]:
        """Whole values at the depth of the file, c being 1 or 3, and which of them is white."""
        if self.image.mode == "1":
            return np.asarray(self.image).astype(np.int64)[:, :, None], 1
        if self.image.mode.startswith("I"):
            values, top = np.asarray(self.image).astype(np.int64), white_of(self.depth)
            # Pillow opens some 16-bit greys as 32-bit integers; anything larger has no known white.
            if values.min() < 0 or values.max() > 65535:
                raise InputError(
                    "unreadable: values outside 0 to 65535 have no known black and white"
                )
            return (top - values if self.inverted else values)[:, :, None], top
        if self.depth == 16:
            raise InputError(
                "unreadable: of colours of 16 bits only half is read; save it in grey or in 8 bits"
            )
        image = self.image if self.image.mode == "L" else self.image.convert("RGB")
        values = np.asarray(image).astype(np.int64)
        return values.reshape(*values.shape[:2], -1), 255


def white_of(depth: int) -> int:
    """The value that is white in a grey of more than 8 bits."""
    return 4095 if depth == 12 else 65535


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of odd metadata and large files; the limit here is ours.

    Python's list of filters belongs to the process, so this goes around all threads, not into one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def reading(file: Path | bytes) -> Iterator[None]:
    """InputError with the reason where a file cannot be read, whatever Pillow raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(file, Path):
            reason = getattr(error, "strerror", None) or reason.replace(str(file), file.name)
        elif "cannot identify image file" in reason:
            reason = "cannot identify image file"  # without the address of the buffer
        raise InputError(f"unreadable: {reason}") from None


def open_picture(file: Path | bytes) -> Opened:
    """A picture from a file or its content; of several frames the first. Call it in `reading`."""
    if not (file.stat().st_size if isinstance(file, Path) else len(file)):
        raise InputError("unreadable: the file is empty")
    with Image.open(file if isinstance(file, Path) else io.BytesIO(file)) as opened:
        if opened.width * opened.height > LARGEST:
            raise InputError(
                f"unreadable: {opened.width}x{opened.height} pixels, more than {LARGEST:,} in all"
            )
        if opened.mode == "F":
            raise InputError("unreadable: floating-point values have no known black and white")
        depth, inverted = _stored(opened)
        clear = not {"A", "a"}.isdisjoint(opened.getbands()) or "transparency" in opened.info
        turned = _orientation(opened) in range(2, 9)
        image: Image.Image = ImageOps.exif_transpose(opened) if turned else opened.copy()
    return Opened(image, depth, inverted, turned, clear)


def shape_of(file: Any) -> tuple[int, int]:
    """Height and width of a picture as seen upright, read from the head of the file: a path, or a
    file of bytes that is open.

    InputError where the head cannot be read; what comes behind it is not looked at.
    """
    name = file if isinstance(file, Path) else b""
    with reading(name), Image.open(file) as opened:
        if opened.width * opened.height > LARGEST:
            raise InputError(
                f"unreadable: {opened.width}x{opened.height} pixels, more than {LARGEST:,} in all"
            )
        h, w = opened.height, opened.width
        return (w, h) if _orientation(opened) in range(5, 9) else (h, w)


def open_named(path: Path) -> Opened:
    """A picture that a command or a configuration names; InputError too where parts are clear."""
    try:
        with quiet(), reading(path):
            found = open_picture(path)
    except InputError as error:
        reason = str(error).removeprefix("unreadable: ")
        raise InputError(f"{path} cannot be read as a picture: {reason}") from None
    if found.clear:
        raise InputError(
            f"{path} has an alpha channel or a transparent colour, under which no one sees what is "
            f"stored; flatten it first"
        )
    return found


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
