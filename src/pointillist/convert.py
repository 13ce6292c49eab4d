"""Published checkpoints in: a file of foreign weights becomes a whole run folder.

The weights are renamed, the configuration is read off their shapes and completed by the preset of
that size, and both must then agree weight by weight. What is written is complete or absent.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointillist.data import FolderConfig
from pointillist.engine import checkpoint
from pointillist.engine.log import Log
from pointillist.foreign import Foreign, Weights, open_foreign, plain, shown
from pointillist.layers.patch import patch_grid
from pointillist.published import FAMILIES, Family, Seen, bare, check_names
from pointillist.run import Run, from_dict, preset_names, read_source, to_dict
from pointillist.runfolder import State, begin
from pointillist.strict_yaml import parse_yaml
from pointillist.types import InputError, Spec, grid_axes

Shapes = dict[str, tuple[int, ...]]

SHARD_BYTES = 512 << 20  # what is held in the memory at once, twice


class Converted(NamedTuple):
    """What came of it: the folder, the preset whose recipe it has, the averages, the parameters."""

    out: Path
    preset: str | None
    ema: tuple[float, ...]
    parameters: int


def convert(name: str, path: Path, out: Path, overrides: tuple[str, ...] = ()) -> Converted:
    """Write the run folder `out` from the checkpoint file `path` of the family `name`.

    InputError where the file is no such checkpoint, or not the one that the overrides describe;
    then nothing is written. A file with one set of weights gives a run whose average is that of
    decay 0, which is the weights themselves.
    """
    if name not in FAMILIES:
        raise InputError(f"family {name} is not known; there are {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    if out.exists():
        raise InputError(f"{out} is there already; choose another --out")
    checkpoint.check_writable(out)

    found = open_foreign(path)
    named = [(decay, bare(family, state)) for decay, state in found.sets]
    for _, state in named:
        check_names(name, family, state, path)
    sets = [(decay, plain(state, path)) for decay, state in named]
    first = sets[0][1]
    seen = family.read(first, path)
    decays = tuple(decay for decay, _ in sets if decay is not None) or (0.0,)
    run, preset = configure(name, family, seen, found, decays, overrides, path)
    spec = promise(run, seen)
    parameters = check_sizes(run, spec, sets, family, path)

    groups = {"model": Renamed(family, first, path)}
    for decay, weights in sets:
        if decay is not None:
            groups[f"ema-{decay}"] = Renamed(family, weights, path)
    facts = {**vars(State()), "ema_updates": 0}
    event = {"event": "converted", "images": 0, "family": name, "file": path.name,
             "bytes": path.stat().st_size, "preset": preset}  # fmt: skip

    def write(draft: Path) -> None:
        begin(run, spec, draft)
        Log(draft / "log.jsonl").write(event)
        checkpoint.save(draft / "checkpoints" / f"{0:09d}", groups, facts, SHARD_BYTES)
        if out.exists():  # it took a while
            raise InputError(f"{out} is there already; choose another --out")

    checkpoint.write_atomically(out, write)
    return Converted(out, preset, run.train.ema, parameters)


class Renamed:
    """One set of weights under our names, in float32, each made when it is asked for."""

    def __init__(self, family: Family, weights: Weights, path: Path) -> None:
        self.family, self.weights, self.path = family, weights, path

    def items(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.weights.items():
            if not bool(torch.isfinite(value.detach().float()).all()):
                raise InputError(f"{self.path}: {name} holds NaN or infinite values; name another "
                                 f"checkpoint")  # fmt: skip
        for renamed in self._by_block():
            for name in list(renamed):
                # A copy: parts of one mapped file are one storage, which is taken for sharing.
                yield name, renamed.pop(name).detach().to(torch.float32, copy=True)

    def _by_block(self) -> Iterator[Weights]:
        """What stands outside the blocks, then one block after the other: a family that reorders
        rows copies what it renames. It may ask the outer weights for their shapes.
        """
        blocks: dict[str, Weights] = {}
        for name, value in self.weights.items():
            block = re.match(r"\w*blocks\.\d+\.", name)
            blocks.setdefault(block[0] if block else "", {})[name] = value
        outer = blocks.pop("", {})
        done = self.family.rename(outer)
        yield dict(done)
        for block_weights in blocks.values():
            renamed = self.family.rename(outer | block_weights)
            yield {name: value for name, value in renamed.items() if name not in done}


# The configuration.


def configure(
    name: str, family: Family, seen: Seen, found: Foreign, decays: tuple[float, ...],
    overrides: tuple[str, ...], path: Path,
) -> tuple[Run, str | None]:  # fmt: skip
    """The run behind the weights, and the preset that has their size (None: no preset has).

    A size without a preset takes the recipe of the family's smallest, unguided, since the scale
    belongs to a size; the arguments of the training, where the file kept them, win over either.
    """
    asked = {key.strip(): value for key, _, value in (text.partition("=") for text in overrides)}
    size: Any = seen.size or (parse_yaml(asked["data.size"], "data.size")
                              if asked.get("data.size") else None)  # fmt: skip
    kind = family.kind or name
    preset = same_size(kind, seen, size)
    tree = to_dict(from_dict(read_source(preset or family.preset)))
    same = tree["model"] if tree["model"]["kind"] == kind else {}
    tree["model"] = same | {"kind": kind} | seen.model
    if seen.words is not None:  # the encoder is not among the weights, how much it reads is
        tree["text"]["length"] = seen.words.length
    size = tree["data"]["size"] if preset and size is None else size
    if size is None:
        raise InputError(f"{path} does not tell the size of its pictures; give it as data.size=256")
    if preset is None:
        filled = to_dict(from_dict(seen.recipe))
        tree |= {branch: filled[branch] for branch in seen.recipe}
        tree["sample"]["guidance"]["scale"] = 1.0
        for field, known in seen.unsaid.items():
            if not asked.get(f"model.{field}"):
                raise InputError(f"model.{field} is not in the weights of {path} and no preset has "
                                 f"their size; give it as model.{field}= ({known})")  # fmt: skip
            tree["model"][field] = parse_yaml(asked[f"model.{field}"], f"model.{field}")
    if not seen.classes:
        tree["sample"]["guidance"]["scale"] = 1.0
    tree["data"] |= {"size": size, "classes": seen.classes}
    if seen.channels in (1, 3):  # others are no pictures; the spec alone knows of them
        tree["data"]["channels"] = seen.channels
    tree["train"]["ema"] = list(decays)
    if family.objective is not None:
        said = family.objective(found.arguments, size)
        try:
            from_dict({"objective": tree["objective"] | said})
        except InputError as error:
            raise InputError(f"{path} keeps arguments of its training that cannot be ({error}); "
                             f"re-save its weights alone") from None  # fmt: skip
        tree["objective"] |= said
    run = from_dict(tree, overrides)
    if run.model.kind != kind:
        raise InputError(f"model.kind is {run.model.kind}, but a {name} checkpoint is converted; "
                         f"leave it out")  # fmt: skip
    if run.train.ema != decays:
        held = ", ".join(f"{decay:g}" for decay in decays)
        raise InputError(f"train.ema is {run.train.ema}, but {path} holds {held}; leave it out")
    return run, preset


def same_size(kind: str, seen: Seen, size: Any) -> str | None:
    """The ImageNet preset of the kind with that network, and that size where it is known."""
    found: dict[Any, str] = {}
    for preset in preset_names():
        if not preset.startswith("imagenet"):
            continue
        values = to_dict(from_dict(read_source(preset)))
        model = values["model"]
        if "size" not in values["data"]:  # of latents, which no family's weights tell from pixels
            continue
        if model["kind"] != kind or size not in (None, values["data"]["size"]):
            continue
        sizes = seen.model.keys() - {"time_scale"}  # how the published code counts time is none
        if seen.channels == 3 and all(model[key] == seen.model[key] for key in sizes):
            found[values["data"]["size"]] = preset
    if len(found) > 1:
        raise InputError(f"data.size is not in these weights, and {' and '.join(found.values())} "
                         f"have them alike; give data.size={next(iter(found))}")  # fmt: skip
    return next(iter(found.values()), None)


def promise(run: Run, seen: Seen) -> Spec:
    """What the data of the weights are like; class names are numbers, for a file has none.

    Channels that are no picture's are latents of another network, in a unit of its own.
    """
    if not isinstance(run.data, FolderConfig):
        return run.data.promise()
    classes = tuple(str(i) for i in range(run.data.classes))
    axes = grid_axes(run.data.grid)
    if seen.channels not in (1, 3):
        return Spec(channels=seen.channels, axes=axes, classes=classes, unit="latent",
                    offset=(0.0,) * seen.channels, scale=(1.0,) * seen.channels,
                    bounded=False, words=seen.words)  # fmt: skip
    level = (127.5,) * seen.channels
    return Spec(channels=seen.channels, axes=axes, classes=classes, offset=level, scale=level,
                captions=seen.words is not None, words=seen.words)  # fmt: skip


def check_sizes(
    run: Run, spec: Spec, sets: list[tuple[float | None, Weights]], family: Family, path: Path
) -> int:
    """The number of parameters; InputError, with the first weight and both shapes, where file and
    configuration differ.
    """
    first = sets[0][1]
    shapes = [{name: tuple(value.shape) for name, value in weights.items()} for _, weights in sets]
    for other in shapes[1:]:
        first_difference(other, shapes[0], "the first set of weights has", path)
    with torch.device("meta"):
        model = run.model.build(spec)
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if "pos_embed" in first:
        # The table is made anew and so is no weight here; that of another size would fit nowhere.
        patch_size: int = getattr(run.model, "patch_size", 1)
        places = math.prod(patch_grid(spec.size, patch_size))
        ours["pos_embed"] = (1, places, run.model.width)
    try:
        # Shapes alone: a family that reorders its rows would copy every weight.
        renamed = family.rename({name: value.to("meta") for name, value in first.items()})
        theirs = {name: tuple(value.shape) for name, value in renamed.items()}
    except (RuntimeError, IndexError) as error:  # blocks that are not alike cannot be reordered
        raise InputError(f"{path}: its weights do not fit together ({shown(str(error))}); name "
                         f"another checkpoint") from None  # fmt: skip
    theirs |= {name: tuple(first[name].shape) for name in first if name == "pos_embed"}
    first_difference(theirs, ours, "the configuration asks for", path)
    return sum(p.numel() for p in model.parameters())


def first_difference(theirs: Shapes, ours: Shapes, asks: str, path: Path) -> None:
    """InputError with the first weight, by name, whose shapes are not the same in both."""
    for name in sorted(ours.keys() | theirs.keys()):
        if theirs.get(name) == ours.get(name):
            continue
        has = f"has shape {theirs[name]}" if name in theirs else "is missing"
        wanted = ours.get(name, "nothing of that name")
        raise InputError(f"{path}: weight {name} {has}, {asks} {wanted}; leave out what says "
                         f"otherwise")  # fmt: skip
