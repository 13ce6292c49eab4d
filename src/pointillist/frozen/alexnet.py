"""AlexNet's features and the perceptual distance on them, LPIPS (Zhang et al. 1801.03924).

The weights that lie beside this file are those of the packages `torchvision` (AlexNet on ImageNet)
and `lpips` 0.1.4 (version 0.1, one non-negative weight a channel), rounded to float16: 4.9 MB. On
20 pairs whose distances lie between 0.01 and 0.75 the rounding moves them by 1.2e-4 at most.
"""

import functools
import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.types import InputError

SHIPPED = Path(__file__).parent / "assets" / "lpips_alex.safetensors"
SHIPPED_SHA256 = "aeb13c365a5ef97508756f8eb3690db1a65a57dfdf3679259d347b037615914a"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, on [-1, 1]
# Channels in and out, edge of the kernel, stride, padding.
CONVOLUTIONS = (
    (3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1),
    (256, 256, 3, 1, 1),
)  # fmt: skip
WIDTHS = tuple(out for _, out, *_ in CONVOLUTIONS)
SMALLEST = 31  # the smallest edge that both poolings leave a cell of


class AlexNetFeatures(nn.Module):
    """The five convolutions, each answer taken after its ReLU; pooled before the second and third.

    `path`: a safetensors file with weights of any precision; without one, those of the package.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, kernel, stride, padding)
            for i, o, kernel, stride, padding in CONVOLUTIONS
        )
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        names = {f"convolutions.{i}": f"AlexNet_0.Conv_{i}" for i in range(5)}
        _fill(self, names, SHIPPED if path is None else path)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Features of pictures in [-1, 1]: 64, 192, 384, 256 and 256 channels."""
        if min(x.shape[2:]) < SMALLEST:
            raise InputError(
                f"AlexNet looks at pictures of {SMALLEST}x{SMALLEST} or more, these have "
                f"{x.shape[2]}x{x.shape[3]}; enlarge them"
            )
        found = []
        x = (x - self.shift) / self.scale
        for i, convolution in enumerate(self.convolutions):
            if i in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(convolution(x))
            found.append(x)
        return tuple(found)


class LPIPS(nn.Module):
    """Squared differences of unit features, weighed by channel, summed over the five layers."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.features = AlexNetFeatures(path)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in WIDTHS)
        names = {f"heads.{i}": f"NetLinLayer_{i}.Conv_0" for i in range(5)}
        _fill(self, names, SHIPPED if path is None else path)

    def maps(
        self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]
    ) -> list[Float[Tensor, "b 1 _ _"]]:
        """Every layer's distance at every place."""
        pairs = zip(self.heads, self.features(a), self.features(b), strict=True)
        return [head((_unit(one) - _unit(other)).square()) for head, one, other in pairs]

    def forward(
        self,
        a: Float[Tensor, "b 3 h w"],
        b: Float[Tensor, "b 3 h w"],
        weight: Float[Tensor, "b _ h w"] | None = None,
    ) -> Float[Tensor, " b"]:
        """The distance of every pair; `weight` says how much each place counts."""
        total = torch.zeros(a.shape[0], device=a.device)
        weight = None if weight is None else weight.mean(1, keepdim=True)
        for found in self.maps(a, b):
            if weight is not None:
                found = found * F.adaptive_avg_pool2d(weight, (found.shape[2], found.shape[3]))
            total = total + found.mean((1, 2, 3))
        return total


def _unit(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    # Unlike the root of a sum of squares the norm has a gradient where nothing answers.
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def shipped(device: torch.device) -> LPIPS:
    """The network with the weights of the package, one on each device."""
    # A tensor tells which one plain "cuda" is.
    return _shipped_on(torch.empty(0, device=device).device)


@functools.cache
def _shipped_on(device: torch.device) -> LPIPS:
    return LPIPS().to(device).eval()


def lpips_distance(
    a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"], network: LPIPS | None = None
) -> Float[Tensor, " b"]:
    """LPIPS (AlexNet, version 0.1) of pairs of pictures in [-1, 1]; 0 for equal ones."""
    network = shipped(a.device) if network is None else network
    return network(a.float(), b.float())


def _fill(module: nn.Module, names: dict[str, str], path: Path) -> None:
    """Weights out of the file, frozen; `names` are a layer's here and there."""
    if path == SHIPPED:
        _check_shipped()
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as LPIPS weights in safetensors ({error}); give the path of a "
            f"whole file, or none for the package's own"
        ) from None
    with torch.no_grad():
        for ours, theirs in names.items():
            for name, p in module.get_submodule(ours).named_parameters():
                value = stored.get(f"{theirs}.{name}")
                if value is None or value.shape != p.shape:
                    shape = None if value is None else tuple(value.shape)
                    raise InputError(
                        f"{path}: weight {theirs}.{name} has shape {shape}, AlexNet's LPIPS has "
                        f"{tuple(p.shape)}; give the file of that network"
                    )
                p.copy_(value)
                p.requires_grad_(False)


def _check_shipped() -> None:
    try:
        with SHIPPED.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == SHIPPED_SHA256
    except OSError:
        whole = False
    if not whole:
        raise InputError(
            f"{SHIPPED} is missing or damaged, it is not the file that comes with the package; "
            f"reinstall pointillist"
        )
