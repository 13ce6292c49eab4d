"""Whether the kernel distance of real pictures rises with blur and with noise.

    python bench/damage.py [EXTRACTOR] [COUNT] [DATA]

CIFAR-10 test pictures: the first COUNT are the reference, the next COUNT are damaged (Gaussian blur
of sigma .5, 1, 2 pixels; white noise of .05, .1, .2 of the range), rounded to 8 bits again.
"""

import sys
import time

import torch
from record import record
from torch import Tensor

from pointillist.data.cifar10 import CIFAR10Config
from pointillist.draws import Draw
from pointillist.metrics import extract, kernel_score, open_extractor

BLURS, NOISES, BATCH = (0.5, 1.0, 2.0), (0.05, 0.1, 0.2), 50


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `b c h w`, edges mirrored."""
    reach = min(int(4 * sigma + 0.5), x.shape[-1] - 1)
    places = torch.arange(-reach, reach + 1).float()
    weight = torch.exp(-(places / sigma).square() / 2)
    weight = (weight / weight.sum()).view(1, 1, 1, -1)
    for _ in range(2):
        padded = torch.nn.functional.pad(x, (reach, reach, 0, 0), mode="reflect")
        x = torch.nn.functional.conv2d(padded.flatten(0, 1)[:, None], weight).view(x.shape)
        x = x.transpose(2, 3)
    return x


def noisy(x: Tensor, strength: float) -> Tensor:
    """White noise of a share of the range of 8-bit values."""
    draw = Draw(0, torch.arange(x.shape[0]))
    return x + 255 * strength * draw.normal("damage", tuple(x.shape[1:]))


def main(name: str = "inception", count: str = "500", path: str = "data/cifar10") -> None:
    n, extractor = int(count), open_extractor(name)
    x = CIFAR10Config(path=path).open("test").x[: 2 * n]

    def rows(pictures: Tensor) -> Tensor:
        batches = pictures.round().clamp(0, 255).byte().split(BATCH)
        found = extract(extractor, batches).rows
        assert found is not None
        return found

    begun = time.perf_counter()
    real, clean = rows(x[:n].float()), x[n:].float()
    damaged = {"none": clean}
    damaged |= {f"blur {s}": blurred(clean, s) for s in BLURS}
    damaged |= {f"noise {s}": noisy(clean, s) for s in NOISES}
    scores = {
        how: kernel_score(rows(pictures), real)._asdict() for how, pictures in damaged.items()
    }
    seconds = time.perf_counter() - begun
    value = {how: score["value"] for how, score in scores.items()}
    record(f"damage-{name}", {
        "extractor": extractor.name, "digest": extractor.digest, "resize": extractor.resize,
        "pictures": n, "kernel_distance": scores,
        "monotone": all(
            value["none"] < value[f"{kind} {a}"] < value[f"{kind} {b}"] < value[f"{kind} {c}"]
            for kind, (a, b, c) in (("blur", BLURS), ("noise", NOISES))
        ),
        "pictures_per_second": round(8 * n / seconds, 2),
    })  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
