"""Gated grouped-query attention against torch's own, around the same projections.

    python bench/gqa.py [--rounds 7] [--threads 1] [--tokens 1024] [--bfloat16]

Width 1,024, 16 heads to 4 keys, a gate a head: forward and backward of `GroupedAttention`, which
lays the queries of a group under one another, and of the same layer with
`scaled_dot_product_attention(enable_gqa=True)` in its place, in turns, with and without a mask of
keys. Milliseconds are medians.
"""

import argparse
from collections.abc import Callable

import torch
from record import alternate, record
from torch import Tensor
from torch.nn import functional as F

from pointillist.layers import grouped_attention
from pointillist.layers.mrope import mrope, mrope_dims

WIDTH, HEADS, GROUPS = 1024, 16, 4


def torchs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    seen = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)


FORMS = {"ours": grouped_attention.attend_grouped, "torch": torchs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--bfloat16", action="store_true", help="too: slow where it is emulated")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    layer = grouped_attention.GroupedAttention(WIDTH, HEADS, GROUPS)
    side = int(asked.tokens**0.5)
    turn = mrope((side, side), mrope_dims(WIDTH // HEADS, 2))
    x = torch.randn(1, side * side, WIDTH, requires_grad=True)
    hidden = (torch.arange(side * side) >= 8)[None]

    def step(form: str, dtype: torch.dtype, mask: Tensor | None) -> Callable[[], Tensor]:
        def call() -> Tensor:
            layer.zero_grad()
            x.grad = None
            grouped_attention.attend_grouped = FORMS[form]
            with torch.autocast("cpu", dtype, dtype != torch.float32):
                value = layer(x, turn, mask)
            value.float().square().mean().backward()
            assert x.grad is not None
            return x.grad

        return call

    rows = {}
    for dtype in (torch.float32, torch.bfloat16)[: 1 + asked.bfloat16]:
        for name, mask in (("no mask", None), ("mask of keys", hidden)):
            calls = {form: step(form, dtype, mask) for form in FORMS}
            gradients = [call().clone() for call in calls.values()]
            off = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
            seconds = alternate(calls, asked.rounds, warmup=1)
            rows[f"{str(dtype).removeprefix('torch.')}, {name}"] = {
                **{form: round(1e3 * value, 1) for form, value in seconds.items()},
                "ratio": round(seconds["ours"] / seconds["torch"], 3),
                "gradients_differ_by": off,
            }
    record("gqa", {"tokens": side * side, "width": WIDTH, "heads": HEADS, "kv_heads": GROUPS,
                   "rounds": asked.rounds, "milliseconds": rows})  # fmt: skip


if __name__ == "__main__":
    main()
