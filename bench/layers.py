"""Our own forms of three layers against torch's, forward and backward, at cifar10-jit's shapes.

python bench/layers.py
"""

import torch
from record import alternate, record
from torch.nn import functional as F

from pointillist.layers.attend import attend
from pointillist.layers.norm import RMSNorm
from pointillist.layers.rope import rope, rotate

B, HEADS, TOKENS, HEAD, WIDTH = 64, 4, 68, 64, 256


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def both(function, *inputs):
    """A call that runs `function` forward and backward."""

    def call() -> None:
        function(*inputs).float().sum().backward()

    return call


def sine_rotation(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs turned in real arithmetic, as most code does it."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def main() -> None:
    torch.manual_seed(0)
    x, norm = leaf(B, TOKENS, WIDTH), RMSNorm(WIDTH)
    table = rope((8, 8), (8, 8), HEAD, fixed=4)
    heads = leaf(B, HEADS, TOKENS, HEAD)
    facts = {
        "rms_norm": alternate(
            {
                "ours": both(norm, x),
                "torch": both(lambda x: F.rms_norm(x, (WIDTH,), norm.weight, 1e-6), x),
            },
            60,
        ),
        "rotation": alternate(
            {
                "ours": both(lambda x: rotate(x, table), heads),
                "real arithmetic": both(lambda x: sine_rotation(x, table.real, table.imag), heads),
            },
            60,
        ),
    }
    for tokens in (68, 256, 512):
        q, k, v = (leaf(B, HEADS, tokens, HEAD, dtype=torch.bfloat16) for _ in range(3))
        facts[f"bfloat16 attention, {tokens} tokens"] = alternate(
            {
                "ours": both(attend, q, k, v),
                "torch": both(F.scaled_dot_product_attention, q, k, v),
            },
            20,
        )
    q, k, v = (leaf(B, HEADS, tokens, 32, dtype=torch.bfloat16) for tokens in (64, 538, 538))
    there = torch.rand(B, 1, 1, 538) < 0.7
    facts["bfloat16 attention, 64 to 538 tokens, a mask"] = alternate(
        {
            "ours": both(lambda q, k, v: attend(q, k, v, there), q, k, v),
            "torch": both(
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=there), q, k, v
            ),
        },
        20,
    )
    for times in facts.values():
        rival = next(value for name, value in times.items() if name != "ours")
        times["ratio"] = round(rival / times["ours"], 2)
    record("layers", {"seconds, forward and backward": facts})


if __name__ == "__main__":
    main()
