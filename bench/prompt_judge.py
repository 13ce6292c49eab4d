"""Do pictures show what their prompts say? A judge of its own, on captions nobody was trained on.

    python bench/prompt_judge.py [RUN...] [--draws 4] [--guidance W] [--dtype DTYPE]
        [--record NAME]

The judge is a small convolutional network from a picture to its caption's MiniLM vector, trained on
the training split of the embedded emoji. Of 100 held-out captions, each of another base emoji, a
picture's own is to be among the ten that lie nearest to what the judge says of it: chance is 0.1.
Real held-out pictures come first, then what every run draws for the 100 captions, `--draws` each.
Beside each stand the same pictures with other captions: in random orders, where chance is to be
found, and with another caption of the same category (faces, flags, food, ...), which is what those
score that follow the category alone. Intervals are of captions, by bootstrap.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from record import record
from torch import Tensor, nn
from torch.nn import functional as F

import pointillist as pt
from pointillist.data.emoji import EmojiConfig, is_test, rows
from pointillist.frozen.text import TextEncoder

ASKED, TOP, STEPS, BATCH, EDGE = 100, 10, 1500, 128, 32


def block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
        nn.MaxPool2d(2),
    )  # fmt: skip


def judge(width: int) -> nn.Module:
    layers = [block(3, 32), block(32, 64), block(64, 128)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, width)]
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)


def fit(model: nn.Module, x: Tensor, words: Tensor) -> None:
    """Each picture is told from its batch's captions; shifts, turned sides and a little noise."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    padded = F.pad(x, (3, 3, 3, 3), value=1.0)
    model.train()
    for step in range(STEPS):
        at = torch.randperm(len(x), generator=generator)[:BATCH]
        top, left = torch.randint(7, (2,), generator=generator).tolist()
        part = padded[at, :, top : top + EDGE, left : left + EDGE]
        if torch.rand(1, generator=generator) < 0.5:
            part = part.flip(-1)
        part = part + 0.05 * torch.randn(part.shape, generator=generator)
        said = F.normalize(model(part.contiguous(memory_format=torch.channels_last)), dim=1)
        # Captions that say the same, as of one emoji in two skin tones, are no mistake.
        near = (words[at] @ words[at].T / 0.1).softmax(1)
        loss = -(near * (said @ words[at].T / 0.1).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            print(f"judge, step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def hits(model: nn.Module, x: Tensor, words: Tensor, order: Tensor) -> Tensor:
    """Whether caption number order[i] is among the nearest to picture i."""
    score = F.normalize(model(x), dim=1) @ words.T
    own = score.gather(1, order.clamp(min=0)[:, None])
    return ((score > own).sum(1) < TOP).double()


def orders(categories: list[str]) -> dict[str, list[Tensor]]:
    """Which caption each picture is asked for: its own; in 20 random orders none its own; the next
    of its category.
    """
    n, generator = len(categories), torch.Generator().manual_seed(0)
    mixed: list[Tensor] = []
    while len(mixed) < 20:
        # A random cycle through all: nobody keeps his own.
        cycle = torch.randperm(n, generator=generator)
        order = torch.empty(n, dtype=torch.long)
        order[cycle] = cycle.roll(1)
        mixed.append(order)
    near = torch.full((n,), -1)
    for category in set(categories):
        some = torch.tensor([i for i, name in enumerate(categories) if name == category])
        if len(some) > 1:  # who is alone has no other
            near[some] = some.roll(1)
    return {"": [torch.arange(n)], ", captions in other orders": mixed,
            ", another caption of the category": [near]}  # fmt: skip


def told(rate: Tensor) -> dict[str, float]:
    """Mean of captions' rates, with the 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(0, len(rate), (10_000, len(rate)))
    low, high = np.quantile(rate.numpy()[draws].mean(1), [0.025, 0.975])
    return {"rate": round(float(rate.mean()), 4), "low": round(float(low), 4),
            "high": round(float(high), 4)}  # fmt: skip


def candidates() -> tuple[list[int], list[str]]:
    """Held-out pictures by their place in the split, the first of each base emoji, a fixed 100; and
    their categories.
    """
    test = [row for row in rows() if is_test(row["base"])]
    first = list({row["base"]: i for i, row in reversed(list(enumerate(test)))}.values())
    order = np.random.default_rng(0).permutation(sorted(first))
    chosen = sorted(int(i) for i in order[:ASKED])
    return chosen, [test[i]["category"] for i in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--record", default="prompt-judge", help="name of the result")
    asked = parser.parse_args()
    torch.manual_seed(0)
    train, test = (EmojiConfig(size=EDGE).open(split) for split in ("train", "test"))
    encoder = TextEncoder("minilm", 64, torch.device("cpu"))

    def read(source: pt.data.source.InMemory) -> tuple[Tensor, Tensor, list[str]]:
        found = source.rows(range(len(source)))
        captions = [several[0] for several in found.caption]
        pooled = torch.cat([encoder(captions[i : i + 256]).pooled for i in
                            range(0, len(captions), 256)])  # fmt: skip
        return found.x.float() / 127.5 - 1, F.normalize(pooled, dim=1), captions

    x, words, _ = read(train)
    model = judge(words.shape[1])
    fit(model, x, words)
    x, words, captions = read(test)
    at, categories = candidates()
    x, words, prompts = x[at], words[at], tuple(captions[i] for i in at)
    facts: dict[str, object] = {"captions": ASKED, "top": TOP, "chance": TOP / ASKED}

    def score(name: str, drawn: list[Tensor]) -> None:
        for what, some in orders(categories).items():
            rates = [hits(model, x, words, order) for x in drawn for order in some]
            facts[name + what] = told(torch.stack(rates).mean(0)[some[0] >= 0])
        print(facts, flush=True)

    score("real", [x])
    for folder in asked.runs:
        run = pt.load(folder)
        score(Path(folder).name, [
            run.sample(count=ASKED, prompt=prompts, seed=seed, guidance=asked.guidance,
                       dtype=asked.dtype, size=(EDGE, EDGE)).clamp(-1, 1)
            for seed in range(asked.draws)
        ])  # fmt: skip
    record(asked.record, facts)


if __name__ == "__main__":
    main()
