"""Does a class-conditional run draw what it is asked for? A small classifier trained on CIFAR-10.

    python bench/classifier.py RUN... [--data DIR] [--count 500] [--guidance W]
        [--dtype DTYPE] [--record NAME]

The classifier sees real pictures only. Its accuracy on the real test set is printed beside the
share of samples in which it recognises the class that was asked for; chance is 0.1.
"""

import argparse
from pathlib import Path

import torch
from record import record
from torch import nn
from torch.nn import functional as F

import pointillist as pt
from pointillist.data import CIFAR10Config
from pointillist.request import Ask

EPOCHS, BATCH = 8, 256


def block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
        nn.MaxPool2d(2),
    )  # fmt: skip


def classifier() -> nn.Module:
    layers = [block(3, 32), block(32, 64), block(64, 128)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return model.to(memory_format=torch.channels_last)


def units(x: torch.Tensor) -> torch.Tensor:
    return x.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def fit(model: nn.Module, x: torch.Tensor, label: torch.Tensor) -> None:
    """SGD with a one-cycle rate, flips and shifts by up to four pixels."""
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4,
                                nesterov=True)  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    padded = F.pad(x, (4, 4, 4, 4))
    model.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for i in range(0, len(x) - BATCH + 1, BATCH):
            at = order[i : i + BATCH]
            top, left = torch.randint(9, (2,), generator=generator).tolist()
            part = units(padded[at, :, top : top + 32, left : left + 32])
            if torch.rand(1, generator=generator) < 0.5:
                part = part.flip(-1)
            loss = F.cross_entropy(model(part), label[at], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def recognise(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(units(part)).argmax(1) for part in x.split(500)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--record", default="classifier", help="name of the result")
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = classifier()
    train, test = (CIFAR10Config(path=asked.data).open(split) for split in ("train", "test"))
    fit(model, train.x, train.label)
    real = float((recognise(model, test.x) == test.label).float().mean())
    facts: dict[str, object] = {"accuracy on real test pictures": round(real, 4), "chance": 0.1,
                                "samples": asked.count}  # fmt: skip
    for folder in asked.runs:
        run = pt.load(folder)
        found = run.answer(Ask(count=asked.count, guidance=asked.guidance, dtype=asked.dtype))
        pixels = ((found.x.clamp(-1, 1) + 1) * 127.5).round()
        hits = recognise(model, pixels) == found.label
        by_class = [round(float(hits[found.label == i].float().mean()), 2) for i in range(10)]
        facts[Path(folder).name] = {"recognised": round(float(hits.float().mean()), 4),
                                    "by class": by_class, "nfe": found.nfe}  # fmt: skip
    record(asked.record, facts)


if __name__ == "__main__":
    main()
