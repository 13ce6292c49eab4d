"""The curve encoder's tokens of a batch against a loop over its samples, forward and backward.

On one thread of a CPU both are bound by arithmetic: at width 256 the loop multiplies about twelve
times as much, which bounds what can be gained there.

    python bench/curve_tokens.py [--published DIR] [--threads 1]

DIR is a checkout of github.com/colpark/kevinhelp1, whose tokenizer then takes its turns too, as it
is published: 16 bands, a Python loop over the samples.
"""

import argparse
import sys
from pathlib import Path

import torch
from record import alternate, record
from torch import Tensor

from pointillist.encoders.curve_tokens import CurveTokenizer
from pointillist.layers.coordinates import place
from pointillist.layers.curve import curve_order, curve_rank
from pointillist.layers.observations import centres
from pointillist.types import Given

BATCH, SIZE, SHARE, GROUP, ROUNDS = 256, (32, 32), 0.2, 8, 20


def one_by_one(tokenizer: CurveTokenizer, seen: Tensor, mask: Tensor) -> list[Tensor]:
    """Each sample's observed pixels picked, coded, grouped and projected by itself."""
    cells = mask[0].numel()
    order = curve_order(SIZE, tokenizer.curve)
    position = curve_rank(SIZE, tokenizer.curve) / (cells - 1)
    places = place(centres(SIZE), SIZE, tokenizer.coordinates)
    assert tokenizer.code is not None
    tokens = []
    for picture, known in zip(seen.flatten(2), mask.flatten(1), strict=True):
        here = order[known[order]]
        point = torch.cat(
            (
                picture[:, here].T,
                torch.ones(len(here), 1),
                tokenizer.code(places[here]),
                position[here, None],
            ),
            1,
        )
        empty = point.new_zeros(-len(here) % tokenizer.group, point.shape[1])
        groups = torch.cat((point, empty)).view(-1, tokenizer.group * point.shape[1])
        tokens.append(tokenizer.norm(tokenizer.project(groups)))
    return tokens


def times(width: int, published: Path | None) -> dict[str, float]:
    torch.manual_seed(0)
    tokenizer = CurveTokenizer(3, width, (4, 4), GROUP, "hilbert")
    seen = torch.rand(BATCH, 3, *SIZE) * 2 - 1
    mask = torch.rand(BATCH, 1, *SIZE) < SHARE
    given = Given(seen=seen, mask=mask)

    ours, loop = tokenizer(given, SIZE), one_by_one(tokenizer, seen, mask[:, 0])
    for i, tokens in enumerate(loop):
        torch.testing.assert_close(ours.value[i][ours.mask[i]], tokens, rtol=1e-4, atol=1e-5)

    def forward_ours() -> None:
        with torch.no_grad():
            tokenizer(given, SIZE)

    def forward_loop() -> None:
        with torch.no_grad():
            one_by_one(tokenizer, seen, mask[:, 0])

    def both_ours() -> None:
        tokenizer(given, SIZE).value.square().sum().backward()

    def both_loop() -> None:
        torch.cat(one_by_one(tokenizer, seen, mask[:, 0])).square().sum().backward()

    calls = {
        "batch": forward_ours,
        "loop": forward_loop,
        "batch, with gradients": both_ours,
        "loop, with gradients": both_loop,
    }
    if published is not None:
        theirs = tokenizer_of(published, width)

        def forward_published() -> None:
            with torch.no_grad():
                theirs(seen, mask.float())

        calls["published"] = forward_published
    found = alternate(calls, ROUNDS)
    ratios = {
        "times faster": found["loop"] / found["batch"],
        "times faster, with gradients": found["loop, with gradients"]
        / found["batch, with gradients"],
    }
    if "published" in found:
        ratios["times faster than published"] = found["published"] / found["batch"]
    return found | {name: round(ratio, 1) for name, ratio in ratios.items()}


def tokenizer_of(folder: Path, width: int) -> torch.nn.Module:
    sys.path.insert(0, str(folder))
    from src.models.layers.sfc_encoder import SFCTokenizer

    return SFCTokenizer(3, width, curve="hilbert", group_size=GROUP)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--published", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    facts = {f"width {width}": times(width, asked.published) for width in (64, 256)}
    record("curve-tokens", {"batch": BATCH, "size": SIZE, "share": SHARE, **facts})


if __name__ == "__main__":
    main()
