"""What a family of published checkpoints is: names of weights, and what their shapes say."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pointillist.foreign import WRAPPERS, Weights, shown, unwrapped
from pointillist.layers.embed import sincos
from pointillist.types import InputError, Words


class Seen(NamedTuple):
    """What the weights say: fields of the model, and what they tell of the data.

    `unsaid`: fields that no weight shows, each with what is known about it; `size` is the edge of a
    picture in pixels, None where nothing tells. `recipe` are branches of the configuration that
    hold where no preset has these weights; `words` are the features of captions that they read.
    """

    model: dict[str, Any]
    unsaid: dict[str, str]
    channels: int
    classes: int
    size: int | None
    recipe: dict[str, dict[str, Any]] = {}
    words: Words | None = None


class Family(NamedTuple):
    """`names` are the published ones, with `*` for the number of a block; `prefix` may stand before
    all of them. `preset` is the published run whose recipe a size without a preset takes over;
    `objective` turns the arguments of the training, where the file has them, and the edge of its
    pictures into fields of the objective. `part` tells blocks of two kinds apart that are numbered
    in one row, or leaves out what is no weight. `kind` is the model's where it is not the family's
    name; the preset, of which the recipe is taken alone then, may be of another.
    """

    names: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Weights, Path], Seen]
    rename: Callable[[Weights], Weights]
    preset: str
    prefix: str = ""
    objective: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None
    part: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    kind: str = ""


# Names.


def bare(family: Family, weights: dict[str, Any]) -> dict[str, Any]:
    """The set without the prefixes that all of its names have, and parted where the family is."""
    plain = unwrapped(weights, (*WRAPPERS, family.prefix, *WRAPPERS))
    return family.part(plain) if family.part else plain


def check_names(name: str, family: Family, weights: dict[str, Any], path: Path) -> None:
    """InputError, with the first name missing and the first too many, for another family's file."""
    needed = expand(family.names, weights)
    known = {*needed, *expand(family.optional, weights)}
    missing = next((one for one in needed if one not in weights), None)
    extra = next((one for one in weights if one not in known), None)
    if missing is None and extra is None:
        return
    lacks = [] if missing is None else [f"{missing} is missing"]
    holds = [] if extra is None else [f"{shown(extra)} is not one of its names"]
    raise InputError(f"{path} is not a {name} checkpoint: {', and '.join(lacks + holds)}; name "
                     f"another family or file")  # fmt: skip


def expand(names: tuple[str, ...], weights: dict[str, Any]) -> list[str]:
    """The names with every `*` counted out, in order."""
    full: list[str] = []
    for one in names:
        stem, star, _ = one.partition("*")
        # At least one, so that weights without a block are told which one they lack.
        count = max(1, depth(weights, stem)) if star else 1
        full += [one.replace("*", str(i)) for i in range(count)]
    return full


def depth(weights: dict[str, Any], stem: str = "blocks.") -> int:
    """How many different numbers follow `stem` in the names."""
    pattern = re.compile(re.escape(stem) + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, weights) if match})


def both(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}.{part}" for stem in stems for part in ("weight", "bias"))


def trunk(stem: str) -> tuple[str, ...]:
    """What both kinds of PixelDiT's blocks have: norms, attention without bias, modulation."""
    single = ("norm1", "norm2", "attn.qkv", "attn.q_norm", "attn.k_norm")
    return (*(f"{stem}.{part}.weight" for part in single),
            *both(f"{stem}.attn.proj", f"{stem}.adaLN_modulation.0"))  # fmt: skip


# Shapes.


def shape(weights: Weights, name: str, axes: int, path: Path) -> tuple[int, ...]:
    """The shape of a weight that has so many axes; InputError where it has another number."""
    found = tuple(weights[name].shape)
    if len(found) != axes:
        raise InputError(f"{path}: {name} has shape {found}, published ones have {axes} axes; "
                         f"name another file")  # fmt: skip
    return found


def square(patch: tuple[int, ...], name: str, path: Path) -> int:
    if patch[0] != patch[1]:
        raise InputError(f"{path}: {name} has patches of {patch[0]}x{patch[1]}; only square ones "
                         f"are built")  # fmt: skip
    return patch[0]


def heads(weights: Weights, norm: str, width: int, path: Path) -> int:
    """How many heads of the norm's size the width holds."""
    head = shape(weights, norm, 1, path)[0]
    if width % head:
        raise InputError(f"{path}: {norm} has {head} entries, which do not divide the width "
                         f"{width}; name another file")  # fmt: skip
    return width // head


def count_classes(weights: Weights, path: Path) -> int:
    """Rows of the label table but the last, which is "no label"; 0 without a table."""
    name = "y_embedder.embedding_table.weight"
    return shape(weights, name, 2, path)[0] - 1 if name in weights else 0


def edge(weights: Weights, p: int, path: Path) -> int | None:
    """The picture's edge, from the stored table of places: it must be the fixed one, square."""
    if "pos_embed" not in weights:
        return None
    _, tokens, width = shape(weights, "pos_embed", 3, path)
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise InputError(f"{path}: pos_embed has {tokens} places, which are no square; only square "
                         f"pictures are published")  # fmt: skip
    table = weights["pos_embed"][0].float()
    fixed = sincos((side, side), (side, side), width)
    off = float((table - fixed).abs().max())
    # bfloat16 rounds the table by up to 0.004; a learnt one is elsewhere altogether.
    if not off < 0.01:
        raise InputError(f"{path}: pos_embed differs by {off:.2g} from the fixed sine-cosine "
                         f"table, and learnt places are not built; name another file")  # fmt: skip
    return side * p


def ratio(width: int, hidden: int, size: Callable[[float], int]) -> float:
    """An `mlp_ratio` for which a model of that width has that hidden size; a plain one if any."""
    exact = next((m for m in range(hidden, 2 * hidden + 2) if size(m / width) == hidden), hidden)
    for candidate in (4.0, round(exact / width, 2), exact / width, (exact + 0.25) / width):
        if candidate > 0 and size(candidate) == hidden:
            return candidate
    return exact / width
