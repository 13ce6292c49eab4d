"""What published checkpoints of each family are called and shaped like, and what that says.

A family is one record in `FAMILIES`: the names its weights have, how a configuration is read off
their shapes, and how they are renamed. What weights do not say is in `unsaid`, with the sentence
that asks for it.
"""

import math
from pathlib import Path
from typing import Any

from pointillist.foreign import Weights
from pointillist.models import diffit_flat, dit, jit, pixeldit, pixnerd
from pointillist.published.family import (
    Family,
    Seen,
    bare,
    both,
    check_names,
    count_classes,
    depth,
    edge,
    expand,
    heads,
    ratio,
    shape,
    square,
    trunk,
)
from pointillist.published.pixelhdm import PIXELHDM
from pointillist.types import InputError

__all__ = ["FAMILIES", "Family", "Seen", "bare", "check_names", "expand"]


# JiT.


def read_jit(weights: Weights, path: Path) -> Seen:
    bottleneck, channels, *patch = shape(weights, "x_embedder.proj1.weight", 4, path)
    p = square(tuple(patch), "x_embedder.proj1.weight", path)
    width = shape(weights, "x_embedder.proj2.weight", 4, path)[0]
    hidden = shape(weights, "blocks.0.mlp.w3.weight", 2, path)[1]
    tokens = 0
    if "in_context_posemb" in weights:
        tokens = shape(weights, "in_context_posemb", 3, path)[1]
    model = {
        "width": width, "depth": depth(weights), "patch_size": p, "bottleneck": bottleneck,
        "heads": heads(weights, "blocks.0.attn.q_norm.weight", width, path),
        "context_tokens": tokens, "encoder": {"kind": "none"},
        "mlp_ratio": ratio(width, hidden, lambda r: int(int(width * r) * 2 / 3)),
    }  # fmt: skip
    start = "the block at which the class tokens join: JiT-B 4, L 8, H and G 10"
    return Seen(model, {"context_start": start} if tokens else {}, channels,
                count_classes(weights, path), edge(weights, p, path))  # fmt: skip


def jit_objective(arguments: dict[str, Any], size: Any) -> dict[str, Any]:
    """Noise, clamp and times that a training was started with, where its file kept them.

    The noise has that strength at the size of the training and, as published, grows with it.
    """
    said = {name: arguments[name] for name in ("noise_scale", "t_eps", "P_mean", "P_std")
            if type(arguments.get(name)) in (int, float)}  # fmt: skip
    fields: dict[str, Any] = {}
    if "noise_scale" in said and isinstance(size, int):
        fields |= {"noise_scale": said["noise_scale"], "noise_size": size}
    if "t_eps" in said:
        fields |= {"clamp": said["t_eps"], "sampling_clamp": said["t_eps"]}
    if "P_mean" in said and "P_std" in said:
        mean, std = said["P_mean"], said["P_std"]
        fields["time"] = {"kind": "logit_normal", "mean": mean, "std": std}
    return fields


JIT = Family(
    names=(
        "x_embedder.proj1.weight",
        *both("x_embedder.proj2", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        "blocks.*.norm1.weight", "blocks.*.norm2.weight",
        "blocks.*.attn.q_norm.weight", "blocks.*.attn.k_norm.weight",
        *both("blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.w12", "blocks.*.mlp.w3"),
        *both("blocks.*.adaLN_modulation.1"),
        "final_layer.norm_final.weight",
        *both("final_layer.adaLN_modulation.1", "final_layer.linear"),
    ),
    optional=("pos_embed", "in_context_posemb", "y_embedder.embedding_table.weight"),
    read=read_jit,
    rename=jit.from_published,
    preset="imagenet256-jit-b",
    prefix="net.",
    objective=jit_objective,
)  # fmt: skip


# DiT.

# The diffusion in which weights with a sigma were trained, and how they are sampled.
ADM: dict[str, dict[str, Any]] = {
    "objective": {"kind": "ddpm"}, "loss": {"velocity": 0.0, "eps": 1.0},
    "sample": {"sampler": "ddpm", "steps": 250, "grid": "respaced"},
}  # fmt: skip

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # S, B, L, XL


def read_dit(weights: Weights, path: Path) -> Seen:
    width, channels, *patch = shape(weights, "x_embedder.proj.weight", 4, path)
    p = square(tuple(patch), "x_embedder.proj.weight", path)
    hidden = shape(weights, "blocks.0.mlp.fc1.weight", 2, path)[0]
    outputs = shape(weights, "final_layer.linear.weight", 2, path)[0]
    model = {
        "width": width, "depth": depth(weights), "patch_size": p,
        "mlp_ratio": ratio(width, hidden, lambda r: int(width * r)),
        "learn_sigma": outputs == 2 * channels * p**2,
        "time_scale": 1.0,  # the published network is asked at the index of a step
    }  # fmt: skip
    unsaid = {}
    if width in HEADS:
        model["heads"] = HEADS[width]
    else:
        unsaid["heads"] = "the number of attention heads: DiT-S 6, B 12, L and XL 16"
    classes, size = count_classes(weights, path), edge(weights, p, path)
    return Seen(model, unsaid, channels, classes, size, ADM if model["learn_sigma"] else {})


DIT = Family(
    names=(
        *both("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        *both("blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),
        *both("blocks.*.adaLN_modulation.1"),
        *both("final_layer.adaLN_modulation.1", "final_layer.linear"),
    ),
    optional=("pos_embed", "y_embedder.embedding_table.weight"),
    read=read_dit,
    rename=dit.from_published,
    preset="imagenet256-dit-b",
)


# PixelDiT (class-conditional).


def read_pixeldit(weights: Weights, path: Path) -> Seen:
    width, cells = shape(weights, "s_embedder.proj.weight", 2, path)
    pixel_width, channels = shape(weights, "pixel_embedder.proj.weight", 2, path)
    p = math.isqrt(cells // channels)
    if channels * p**2 != cells:
        raise InputError(f"{path}: s_embedder.proj.weight takes {cells} numbers, which are no "
                         f"square patch of {channels} channels; name another file")  # fmt: skip
    hidden = shape(weights, "patch_blocks.0.mlp.w1.weight", 2, path)[0]
    steered = shape(weights, "pixel_blocks.0.adaLN_modulation.0.weight", 2, path)[0]
    # Six parts a pixel, or four where the modulation comes behind attention and MLP.
    parts = steered / (p**2 * pixel_width)
    if parts not in (4, 6):
        raise InputError(f"{path}: pixel_blocks.0.adaLN_modulation.0.weight has {steered} rows, "
                         f"which are neither 4 nor 6 a pixel; name another file")  # fmt: skip
    model = {
        "width": width, "depth": depth(weights, "patch_blocks."), "patch_size": p,
        "heads": heads(weights, "patch_blocks.0.attn.q_norm.weight", width, path),
        "pixel_width": pixel_width, "pixel_depth": depth(weights, "pixel_blocks."),
        "mlp_ratio": ratio(width, hidden, lambda r: int(int(width * r) * 2 / 3)),
        "post_modulation": parts == 4, "encoder": {"kind": "none"},
    }  # fmt: skip
    return Seen(model, {}, channels, count_classes(weights, path), None)


PIXELDIT = Family(
    names=(
        *both("s_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        *trunk("patch_blocks.*"),
        *(f"patch_blocks.*.mlp.w{i}.weight" for i in (1, 2, 3)),
        *both("pixel_embedder.proj"),
        *trunk("pixel_blocks.*"),
        *both("pixel_blocks.*.compress_to_attn", "pixel_blocks.*.expand_from_attn"),
        *both("pixel_blocks.*.mlp.fc1", "pixel_blocks.*.mlp.fc2"),
        "final_layer.norm.weight", *both("final_layer.linear"),
    ),
    optional=("y_embedder.embedding_table.weight",),
    read=read_pixeldit,
    rename=pixeldit.from_published,
    preset="imagenet256-pixeldit-b",
)  # fmt: skip

# PixNerd (class-conditional).


def read_pixnerd(weights: Weights, path: Path) -> Seen:
    width, cells = shape(weights, "s_embedder.proj.weight", 2, path)
    channels, inner = shape(weights, "final_layer.linear.weight", 2, path)
    features = shape(weights, "x_embedder.embedder.0.weight", 2, path)[1] - channels
    p, bands = math.isqrt(cells // channels), math.isqrt(max(features, 0))
    if channels * p**2 != cells or bands**2 != features:
        raise InputError(f"{path}: s_embedder.proj.weight takes {cells} numbers and x_embedder "
                         f"{features} features of a place, which are no square patch of {channels} "
                         f"channels and no square code; name another file")  # fmt: skip
    hidden = shape(weights, "blocks.0.mlp.w1.weight", 2, path)[0]
    written = shape(weights, "field_blocks.0.param_generator1.0.weight", 2, path)[0]
    if written % (2 * inner**2):
        raise InputError(f"{path}: a field of width {inner} has {written} weights, which are no "
                         f"two matrices; name another file")  # fmt: skip
    model = {
        "width": width, "depth": depth(weights), "patch_size": p,
        "heads": heads(weights, "blocks.0.attn.q_norm.weight", width, path),
        "mlp_ratio": ratio(width, hidden, lambda r: int(int(width * r) * 2 / 3)),
        "decoder_width": inner, "decoder_depth": depth(weights, "field_blocks."),
        "decoder_ratio": written // (2 * inner**2), "bands": bands, "coordinates": "corner",
        "jitter": 0.0, "encoder": {"kind": "none"},
    }  # fmt: skip
    return Seen(model, {}, channels, count_classes(weights, path), None)


PIXNERD = Family(
    names=(
        *both("s_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        *trunk("blocks.*"),
        *(f"blocks.*.mlp.w{i}.weight" for i in (1, 2, 3)),
        *both("x_embedder.embedder.0"),
        "field_blocks.*.norm.weight", *both("field_blocks.*.param_generator1.0"),
        "final_layer.norm.weight", *both("final_layer.linear"),
    ),
    optional=("y_embedder.embedding_table.weight",),
    read=read_pixnerd,
    rename=pixnerd.from_published,
    preset="imagenet256-pixnerd-l",
    part=pixnerd.part_blocks,
)  # fmt: skip

# DiffiT (latent, flat).


def read_diffit(weights: Weights, path: Path) -> Seen:
    width, channels, *patch = shape(weights, "x_embedder.proj.weight", 4, path)
    p = square(tuple(patch), "x_embedder.proj.weight", path)
    hidden, outputs = (shape(weights, f"{name}.weight", 2, path)[0]
                       for name in ("blocks.0.mlp.fc1", "final_layer.linear"))  # fmt: skip
    table = "blocks.0.attn.relative_position_bias_table"
    offsets, count = shape(weights, table, 2, path)
    side = (math.isqrt(offsets) + 1) // 2
    if (2 * side - 1) ** 2 != offsets or edge(weights, p, path) not in (None, side * p):
        raise InputError(f"{path}: {table} has {offsets} offsets, which are not those of a square "
                         f"grid that is one window; name another file")  # fmt: skip
    model = {
        "width": width, "depth": depth(weights), "heads": count, "patch_size": p,
        "mlp_ratio": ratio(width, hidden, lambda r: int(width * r)),
        "learn_sigma": outputs == 2 * channels * p**2,
        "time_scale": 1.0,  # the published network is asked at the index of a step
        "encoder": {"kind": "none"},
    }  # fmt: skip
    classes = count_classes(weights, path)
    return Seen(model, {}, channels, classes, side * p, ADM if model["learn_sigma"] else {})


DIFFIT = Family(
    names=(
        *both("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        "blocks.*.attn.relative_position_bias_table",
        *both("blocks.*.attn.qkv", "blocks.*.attn.qkv_temb", "blocks.*.attn.proj"),
        *both("blocks.*.mlp.fc1", "blocks.*.mlp.fc2", "final_layer.linear"),
    ),
    optional=("pos_embed", "y_embedder.embedding_table.weight"),
    read=read_diffit, rename=diffit_flat.from_published, preset="imagenet256-dit-b",
    part=diffit_flat.without_index, kind="diffit_flat",
)  # fmt: skip

FAMILIES = {"jit": JIT, "dit": DIT, "pixeldit": PIXELDIT, "pixnerd": PIXNERD, "diffit": DIFFIT,
            "pixelhdm": PIXELHDM}  # fmt: skip
