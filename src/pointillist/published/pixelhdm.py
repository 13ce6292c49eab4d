"""PixelHDM: the network of captions and pictures, its text encoder not among its weights."""

import math
from pathlib import Path
from typing import Any

from pointillist.foreign import Weights
from pointillist.models import pixelhdm_weights
from pointillist.published.family import Family, Seen, both, depth, heads, ratio, shape
from pointillist.types import InputError, Words

ATTENTION = ("qkv_proj.q_proj", "qkv_proj.k_proj", "qkv_proj.v_proj", "out_proj_layer.out_proj",
             "q_norm", "k_norm")  # fmt: skip
SWIGLU = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))

# How it was trained and is sampled: times of .05 + .9 sigmoid(N(0, 1)), of which ours have no ends.
RECIPE: dict[str, dict[str, Any]] = {
    "objective": {"kind": "straight", "predict": "velocity",
                  "time": {"kind": "logit_normal", "mean": 0.0, "std": 1.0}},
    "sample": {"sampler": "heun", "steps": 50},
}  # fmt: skip


def read_pixelhdm(weights: Weights, path: Path) -> Seen:
    width, bottleneck = shape(weights, "patch_embed.proj_up.weight", 2, path)
    cells = shape(weights, "patch_embed.proj_down.weight", 2, path)[1]
    pixel_width, channels = shape(weights, "pixel_embed.proj.weight", 2, path)
    p = math.isqrt(cells // channels)
    if channels * p**2 != cells:
        raise InputError(f"{path}: patch_embed.proj_down.weight takes {cells} numbers, which are "
                         f"no square patch of {channels} channels; name another file")  # fmt: skip
    stem = "patch_blocks.0.attention"
    head = shape(weights, f"{stem}.q_norm.weight", 1, path)[0]
    count = heads(weights, f"{stem}.q_norm.weight", width, path)
    rows = 0
    if f"{stem}.gate.proj.weight" in weights:
        rows = shape(weights, f"{stem}.gate.proj.weight", 2, path)[0]
    if rows not in (0, count, width):
        raise InputError(f"{path}: {stem}.gate.proj.weight has {rows} rows, which are neither one "
                         f"a head nor one an entry; name another file")  # fmt: skip
    hidden = shape(weights, "patch_blocks.0.mlp.down_proj.weight", 2, path)[1]
    model = {
        "width": width, "depth": depth(weights, "patch_blocks."), "patch_size": p, "heads": count,
        "kv_heads": shape(weights, f"{stem}.qkv_proj.k_proj.weight", 2, path)[0] // head,
        "bottleneck": bottleneck, "bottleneck_silu": True, "pixel_width": pixel_width,
        "pixel_depth": depth(weights, "pixel_blocks."),
        "mlp_ratio": ratio(width, hidden, lambda r: int(width * r)),
        "gate": {0: "none", count: "headwise"}.get(rows, "elementwise"),
        "gate_bias": f"{stem}.gate.proj.bias" in weights, "modulation": "factorised",
        "pixel_place": False, "text_projection": False, "encoder": {"kind": "none"},
        "time_features": shape(weights, "time_embed.mlp.0.weight", 2, path)[1],
    }  # fmt: skip
    return Seen(model, {}, channels, 0, None, RECIPE, Words(width=width, length=511))


PIXELHDM = Family(
    names=(
        *(f"patch_embed.proj_{name}.weight" for name in ("down", "up")),
        *both("pixel_embed.proj", "time_embed.mlp.0", "time_embed.mlp.2", "output_proj.proj"),
        "output_norm.weight",
        *(f"patch_blocks.*.{name}.weight" for name in (
            "pre_attn_norm", "post_attn_norm", "pre_mlp_norm", "post_mlp_norm", *SWIGLU)),
        *(f"patch_blocks.*.attention.{name}.weight" for name in ATTENTION),
        *both("patch_blocks.*.adaln.proj.1"),
        *(f"pixel_blocks.*.{name}.weight" for name in (
            "adaln.cond_expand", "adaln.norm", "compaction.compress", "compaction.norm",
            "compaction.post_norm", "compaction.expand", *SWIGLU)),
        *(f"pixel_blocks.*.compaction.attention.{name}.weight" for name in ATTENTION),
        *both("pixel_blocks.*.adaln.param_gen.1"),
    ),
    optional=both("patch_blocks.*.attention.gate.proj",
                  "pixel_blocks.*.compaction.attention.gate.proj"),
    read=read_pixelhdm,
    rename=pixelhdm_weights.from_published,
    preset="imagenet256-pixeldit-b",
    part=pixelhdm_weights.without_aliases,
)  # fmt: skip
