"""Published weights of PixelHDM under our names."""

import re
from typing import Any

import torch
from torch import Tensor

# Under some names published weights stand twice; the second is the one that is kept.
ALIASES = (
    (r"attention\.([qkv]_proj)\.", r"attention.qkv_proj.\1."),
    (r"attention\.gate_proj\.", "attention.gate.proj."),
    (r"attention\.out_proj\.", "attention.out_proj_layer.out_proj."),
)
PUBLISHED = (
    (r"^patch_embed\.proj_down\.", "reduce."),
    (r"^patch_embed\.proj_up\.", "patch."),
    (r"^pixel_embed\.proj\.", "pixel."),
    (r"^time_embed\.mlp\.0\.", "time.up."),
    (r"^time_embed\.mlp\.2\.", "time.out."),
    (r"^output_norm\.", "norm."),
    (r"^output_proj\.proj\.", "head."),
    (r"^patch_blocks\.", "blocks."),
    (r"\.pre_attn_norm\.", ".norm1."),
    (r"\.post_attn_norm\.", ".post1."),
    (r"\.pre_mlp_norm\.", ".norm2."),
    (r"\.post_mlp_norm\.", ".post2."),
    (r"\.compaction\.compress\.", ".compact."),
    (r"\.compaction\.norm\.", ".pre."),
    (r"\.compaction\.post_norm\.", ".post."),
    (r"\.compaction\.expand\.", ".spread."),
    (r"\.compaction\.attention\.", ".attention."),
    (r"\.adaln\.cond_expand\.", ".steering.expand."),
    (r"\.qkv_proj\.q_proj\.", ".q."),
    (r"\.gate\.proj\.", ".gate."),
    (r"\.out_proj_layer\.out_proj\.", ".out."),
    (r"\.down_proj\.", ".down."),
)


def without_aliases(state: dict[str, Any]) -> dict[str, Any]:
    """Published names with each weight once."""
    named = {}
    for name, value in state.items():
        kept = name
        for alias, other in ALIASES:
            kept = re.sub(alias, other, kept)
        if kept == name or kept not in state:
            named[kept] = value
    return named


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published PixelHDM under our names.

    Other there: a patch has its channels last, the time's features their sines first, keys and
    values as well as gate and up are two layers, a pixel block has one norm for both branches, and
    modulations are ordered (scale, shift, gate), of which a patch block's scale is gamma and not
    1 + gamma.
    """
    named: dict[str, Tensor] = {}
    for name, value in without_aliases(state).items():
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        named[name] = value
    for name in list(named):
        if name.endswith(("k_proj.weight", "gate_proj.weight")):
            first, second, both = (
                ("k_proj", "v_proj", "kv")
                if "k_proj" in name
                else ("gate_proj", "up_proj", "gate_up")
            )
            stem = name.removesuffix(f"{first}.weight").removesuffix("qkv_proj.")
            other = named.pop(name.replace(first, second))
            named[f"{stem}{both}.weight"] = torch.cat((named.pop(name), other))
        elif name.endswith(".adaln.norm.weight"):
            for ours in ("norm1", "norm2"):
                named[name.replace("adaln.norm", ours)] = named[name]
            del named[name]
        elif ".adaln." in name:
            parts = named.pop(name).unflatten(0, (6, -1))
            scale1, shift1, gate1, scale2, shift2, gate2 = parts.unbind(0)
            if name.startswith("blocks."):
                one = 1.0 if name.endswith("bias") else 0.0
                ordered = (shift1, scale1 - one, gate1, shift2, scale2 - one, gate2)
                named[name.replace("adaln.proj.1", "modulation")] = torch.cat(ordered)
                continue
            split: dict[str, tuple[Tensor, ...]] = {
                "enter": (shift1, scale1), "leave": (gate1, shift2, scale2, gate2)
            }  # fmt: skip
            for layer, rows in split.items():
                named[name.replace("adaln.param_gen.1", f"steering.{layer}")] = torch.cat(rows)
    if "time.up.weight" in named:
        named["time.up.weight"] = torch.cat(named["time.up.weight"].chunk(2, 1)[::-1], 1)
    if "reduce.weight" in named and "pixel.weight" in named:
        channels = named["pixel.weight"].shape[1]
        cells = named["reduce.weight"].unflatten(1, (-1, channels))
        named["reduce.weight"] = cells.transpose(1, 2).flatten(1)
    return named
