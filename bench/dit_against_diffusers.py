"""Training steps of our DiT against diffusers' DiTTransformer2DModel of the same size.

    python bench/dit_against_diffusers.py [ROUNDS]

Width 384, depth 12, 6 heads, 64 tokens (32 x 32 pixels, patch 4), batch 32, AdamW, float32 and bf16
autocast; both in one process, taking turns.
"""

import sys

import torch
from diffusers import DiTTransformer2DModel
from record import alternate, record
from torch.nn import functional as F

from pointillist.engine.device import autocast
from pointillist.models import DiTConfig
from pointillist.types import Given, Spec, grid_axes

BATCH, CLASSES = 32, 1000


def main(rounds: str = "10") -> None:
    torch.manual_seed(0)
    spec = Spec(channels=3, axes=grid_axes((32, 32)), classes=tuple(map(str, range(CLASSES))))
    ours = DiTConfig(width=384, depth=12, heads=6, patch_size=4).build(spec)
    theirs = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=3, out_channels=3, num_layers=12,
        sample_size=32, patch_size=4, num_embeds_ada_norm=CLASSES, norm_type="ada_norm_zero",
    )  # fmt: skip
    x, target = torch.randn(2, BATCH, 3, 32, 32)
    t, label = torch.rand(BATCH), torch.randint(CLASSES, (BATCH,))
    cpu = torch.device("cpu")

    def step(model: torch.nn.Module, forward, precision: str):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def call() -> None:
            with autocast(cpu, precision):
                answer = forward()
            F.mse_loss(answer.float(), target).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return call

    facts = {}
    for precision in ("float32", "bfloat16"):
        seconds = alternate(
            {
                "pointillist": step(ours, lambda: ours(x, t, Given(label=label)).value, precision),
                "diffusers": step(
                    theirs,
                    lambda: theirs(x, timestep=t * 1000, class_labels=label).sample,
                    precision,
                ),
            },
            int(rounds),
        )
        facts[precision] = {
            **{f"{name} images/s": round(BATCH / value, 2) for name, value in seconds.items()},
            "ratio": round(seconds["diffusers"] / seconds["pointillist"], 3),
        }
    parameters = {
        "pointillist": sum(p.numel() for p in ours.parameters()),
        "diffusers": sum(p.numel() for p in theirs.parameters()),
    }
    record("dit-against-diffusers", {"training": facts, "parameters": parameters})


if __name__ == "__main__":
    main(*sys.argv[1:])
