"""States as pictures: 8-bit values, contact sheets, PNG files."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pointillist.engine.checkpoint import write_atomically
from pointillist.types import InputError


def to_bytes(x: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """[-1, 1] to 0..255, rounded to nearest and clipped."""
    levels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def flat(x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c h w"]:
    """A view of any state as pictures: a line becomes one row, a volume its middle slice."""
    if x.dim() == 3:
        return x[:, :, None]
    return x if x.dim() == 4 else x[:, :, x.shape[2] // 2]


def levels(x: Float[Tensor, "b c *space"]) -> UInt8[Tensor, "b c h w"]:
    """States as the 8-bit pictures that a file would hold; metrics see nothing finer."""
    return torch.from_numpy(to_bytes(flat(x))).permute(0, 3, 1, 2)


def contact_sheet(
    x: Float[Tensor, "b c h w"], columns: int = 0, gap: int = 2, scale: int = 1
) -> Image.Image:
    """All pictures row by row on one sheet, `columns` across (0: about square)."""
    pictures = to_bytes(x)
    count, h, w, c = pictures.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = picture
    image = Image.fromarray(sheet[..., 0] if c == 1 else sheet[..., :3])
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path) -> None:
    """A PNG file, complete or absent; InputError where the place cannot be written."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a .png file in it")
    data = png(image)
    write_atomically(path, lambda draft: _write(draft, data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
