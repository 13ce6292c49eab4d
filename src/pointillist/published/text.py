"""Published text-to-image forms of PixelDiT and PixNerd."""

from pathlib import Path

from pointillist.foreign import Weights
from pointillist.models import pixeldit_text, pixnerd, pixnerd_text
from pointillist.published.family import Family, Seen, both, heads, shape, trunk
from pointillist.published.pixels import FIELDS, PIXEL_PATH, read_fields, read_levels
from pointillist.types import Words

TEXT = (*both("y_embedder.proj"), "y_embedder.norm.weight", "y_pos_embedding")


def read_words(weights: Weights, path: Path) -> Words:
    """How wide features of captions are, and for how many tokens there is a place."""
    width = shape(weights, "y_embedder.proj.weight", 2, path)[1]
    return Words(width=width, length=shape(weights, "y_pos_embedding", 3, path)[1])


# PixelDiT.


def read_pixeldit(weights: Weights, path: Path) -> Seen:
    seen = read_levels(weights, "last_blocks.0", "q_norm_x", "mlp_x", path)
    among = shape(weights, "pixel_blocks.0.attn.qkv.weight", 2, path)[1]
    more = {
        "depth": seen.model["depth"] + 1, "pixel_attention_width": among,
        "pixel_heads": heads(weights, "pixel_blocks.0.attn.q_norm.weight", among, path),
        "attend_padding": True,
    }  # fmt: skip
    return seen._replace(model=seen.model | more, words=read_words(weights, path))


def stream(stem: str, end: str, time: str) -> tuple[str, ...]:
    """What text and patches have alike in a block."""
    single = ("norm_{}1", "norm_{}2", "attn.qkv_{}", "attn.q_norm_{}", "attn.k_norm_{}",
              "mlp_{}.w1", "mlp_{}.w2", "mlp_{}.w3")  # fmt: skip
    return (*(f"{stem}.{part.format(end)}.weight" for part in single),
            *both(f"{stem}.attn.proj_{end}", f"{stem}.adaLN_modulation_{time}.0"))  # fmt: skip


PIXELDIT = Family(
    names=(
        *TEXT,
        *PIXEL_PATH,
        *(name for stem in ("patch_blocks.*", "last_blocks.0")
          for end, time in (("x", "img"), ("y", "txt"))
          for name in stream(stem, end, time)),
    ),
    optional=(),
    read=read_pixeldit,
    rename=pixeldit_text.from_published,
    preset="imagenet256-pixeldit-b",
    part=pixeldit_text.part_last,
)  # fmt: skip

# PixNerd.


def read_pixnerd(weights: Weights, path: Path) -> Seen:
    seen = read_fields(weights, shape(weights, "blocks.0.mlp.w3.weight", 2, path)[1], path)
    more = {
        "text_depth": sum(name.endswith(".mlp.w3.weight") for name in weights
                          if name.startswith("text_refine_blocks.")),
        "code": "rotary", "weight_norm": "first", "final_norm": False, "position_span": [],
        "attend_padding": True,
    }  # fmt: skip
    unsaid = {}
    if seen.model["patch_size"] != 16:  # at which both are the same
        unsaid["code_span"] = "how far a patch reaches: the heavy decoder 16, the other its size"
    return seen._replace(model=seen.model | more, unsaid=unsaid, words=read_words(weights, path))


PIXNERD = Family(
    names=(
        *TEXT,
        *FIELDS,
        *trunk("text_refine_blocks.*"),
        *both("blocks.*.attn.proj", "blocks.*.adaLN_modulation.0"),
        *(f"blocks.*.{part}.weight" for part in ("norm1", "norm2", "attn.qkv_x", "attn.kv_y",
                                                 "attn.q_norm", "attn.k_norm")),
        *(f"{stem}.*.mlp.w{i}.weight" for stem in ("blocks", "text_refine_blocks")
          for i in (12, 3)),
    ),
    optional=(),
    read=read_pixnerd,
    rename=pixnerd_text.from_published,
    preset="imagenet256-pixnerd-l",
    part=pixnerd.part_blocks,
)  # fmt: skip
