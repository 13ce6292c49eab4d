"""Published models of two levels, PixelDiT and PixNerd."""

import math
from pathlib import Path

from pointillist.foreign import Weights
from pointillist.models import pixeldit, pixnerd
from pointillist.published.family import (
    Family,
    Seen,
    both,
    count_classes,
    depth,
    heads,
    ratio,
    shape,
    trunk,
)
from pointillist.types import InputError

# PixelDiT (class-conditional).


def read_levels(weights: Weights, block: str, norm: str, mlp: str, path: Path) -> Seen:
    """What both forms say alike: `norm` and `mlp` are those of the patches of a `block`."""
    width, cells = shape(weights, "s_embedder.proj.weight", 2, path)
    pixel_width, channels = shape(weights, "pixel_embedder.proj.weight", 2, path)
    p = math.isqrt(cells // channels)
    if channels * p**2 != cells:
        raise InputError(f"{path}: s_embedder.proj.weight takes {cells} numbers, which are no "
                         f"square patch of {channels} channels; name another file")  # fmt: skip
    hidden = shape(weights, f"{block}.{mlp}.w1.weight", 2, path)[0]
    steered = shape(weights, "pixel_blocks.0.adaLN_modulation.0.weight", 2, path)[0]
    # Six parts a pixel, or four where the modulation comes behind attention and MLP.
    parts = steered / (p**2 * pixel_width)
    if parts not in (4, 6):
        raise InputError(f"{path}: pixel_blocks.0.adaLN_modulation.0.weight has {steered} rows, "
                         f"which are neither 4 nor 6 a pixel; name another file")  # fmt: skip
    model = {
        "width": width, "depth": depth(weights, "patch_blocks."), "patch_size": p,
        "heads": heads(weights, f"{block}.attn.{norm}.weight", width, path),
        "pixel_width": pixel_width, "pixel_depth": depth(weights, "pixel_blocks."),
        "mlp_ratio": ratio(width, hidden, lambda r: int(int(width * r) * 2 / 3)),
        "post_modulation": parts == 4, "encoder": {"kind": "none"},
    }  # fmt: skip
    return Seen(model, {}, channels, count_classes(weights, path), None)


def read_pixeldit(weights: Weights, path: Path) -> Seen:
    return read_levels(weights, "patch_blocks.0", "q_norm", "mlp", path)


PIXEL_PATH = (
    *both("s_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "pixel_embedder.proj"),
    *trunk("pixel_blocks.*"),
    *both("pixel_blocks.*.compress_to_attn", "pixel_blocks.*.expand_from_attn"),
    *both("pixel_blocks.*.mlp.fc1", "pixel_blocks.*.mlp.fc2"),
    "final_layer.norm.weight", *both("final_layer.linear"),
)  # fmt: skip

PIXELDIT = Family(
    names=(
        *PIXEL_PATH,
        *trunk("patch_blocks.*"),
        *(f"patch_blocks.*.mlp.w{i}.weight" for i in (1, 2, 3)),
    ),
    optional=("y_embedder.embedding_table.weight",),
    read=read_pixeldit,
    rename=pixeldit.from_published,
    preset="imagenet256-pixeldit-b",
)  # fmt: skip

# PixNerd (class-conditional).


def read_fields(weights: Weights, hidden: int, path: Path) -> Seen:
    """What both forms say alike, the MLPs of whose blocks have `hidden` units."""
    width, cells = shape(weights, "s_embedder.proj.weight", 2, path)
    channels, inner = shape(weights, "final_layer.linear.weight", 2, path)
    features = shape(weights, "x_embedder.embedder.0.weight", 2, path)[1] - channels
    p, bands = math.isqrt(cells // channels), math.isqrt(max(features, 0))
    if channels * p**2 != cells or bands**2 != features:
        raise InputError(f"{path}: s_embedder.proj.weight takes {cells} numbers and x_embedder "
                         f"{features} features of a place, which are no square patch of {channels} "
                         f"channels and no square code; name another file")  # fmt: skip
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


def read_pixnerd(weights: Weights, path: Path) -> Seen:
    return read_fields(weights, shape(weights, "blocks.0.mlp.w1.weight", 2, path)[0], path)


FIELDS = (
    *both("s_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "x_embedder.embedder.0"),
    "field_blocks.*.norm.weight", *both("field_blocks.*.param_generator1.0"),
    *both("final_layer.linear"),
)  # fmt: skip

PIXNERD = Family(
    names=(
        *FIELDS,
        *trunk("blocks.*"),
        *(f"blocks.*.mlp.w{i}.weight" for i in (1, 2, 3)),
        "final_layer.norm.weight",
    ),
    optional=("y_embedder.embedding_table.weight",),
    read=read_pixnerd,
    rename=pixnerd.from_published,
    preset="imagenet256-pixnerd-l",
    part=pixnerd.part_blocks,
)  # fmt: skip
