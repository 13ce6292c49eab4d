"""What a run folder holds, and how a run goes on from it: configuration, spec, log, checkpoints."""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from pointillist.data.latent import check_same_code
from pointillist.data.words import check_same_words
from pointillist.engine import checkpoint
from pointillist.engine.ema import EMA
from pointillist.engine.optim import load_optimizer_state, optimizer_state
from pointillist.engine.zclip import Norms
from pointillist.losses.align import Alignment, Taught
from pointillist.run import Run, to_dict
from pointillist.types import InputError, Spec

# What may differ when a run goes on: it changes where and how it computes, not what. (Data may have
# moved; that they are the same is told from their fingerprint.)
FREE_ON_RESUME = {
    "device", "data.path", "train.workers", "train.save_every", "train.keep", "train.micro_batch",
    "train.track", "train.ema_snapshot", "train.gradient_checkpointing", "data.of.path",
    "data.autoencoder", "data.cache", "data.device", "text.encoder", "text.cache", "text.device",
    "text.verify",
}  # fmt: skip


class State:
    """The counters of a run, and the sums behind the next line of the log.

    `norms` are the statistics that clipping goes by. `portion`: how many samples were asked to be
    in the memory together, and how many of them were found to fit; empty as long as all do.
    """

    LATER: ClassVar[dict[str, Any]] = {"norms": Norms(), "portion": []}  # not in older checkpoints

    def __init__(self) -> None:
        self.norms, self.portion = Norms(), list[int]()
        self.images = self.skipped = self.in_a_row = 0
        self.sums: dict[str, float] = {}
        self.counted: dict[str, int] = {}  # of each sum: a term may end on the way

    def count(self, figures: dict[str, float], size: int, finite: bool) -> None:
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite
        if finite:
            for name, value in figures.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * size
                self.counted[name] = self.counted.get(name, 0) + size

    def means(self) -> dict[str, Any]:
        """Means since the last call."""
        found = {name: total / self.counted[name] for name, total in self.sums.items()}
        self.sums, self.counted = {}, {}
        return {**found, "skipped": self.skipped}


def begin(run: Run, spec: Spec, out: Path) -> None:
    if (out / "run.yaml").exists():
        raise InputError(f"{out} already holds a run; --resume continues it, or choose another "
                         f"--out")  # fmt: skip
    if checkpoint.complete(out / "checkpoints"):
        raise InputError(f"{out} holds checkpoints, but its run.yaml is missing; bring it back and "
                         f"--resume, or choose another --out")  # fmt: skip
    text = json.dumps(TypeAdapter(Spec).dump_python(spec, mode="json"), indent=1)
    checkpoint.write_text(out / "spec.json", text)
    checkpoint.write_text(out / "log.jsonl", "")
    run.save(out / "run.yaml")  # last: a folder with a run.yaml can be resumed


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = checkpoint.complete(out / "checkpoints")
    return found[-1] if found else None


def taught_by(last: Path | None) -> Taught:
    """What a checkpoint tells of the run's alignment."""
    facts = checkpoint.facts_of(last) if last else {}
    # Earlier versions did not tell the teacher's.
    return Taught(facts.get("images", 0), **facts.get("teacher", {}))


def portion_of(last: Path | None, asked: int) -> int:
    """How many of the samples `asked` a checkpoint has found to fit into the memory together."""
    told = checkpoint.facts_of(last).get("portion") if last else None
    return min(told) if told and told[0] == asked else asked


def check_same(run: Run, spec: Spec, out: Path, moved: frozenset[str] = frozenset()) -> None:
    """A resumed run is the same run: InputError names the first field that differs.

    `moved`: fields that may differ because what they name is known to be the same.
    """
    if not (out / "run.yaml").is_file():
        raise InputError(f"{out / 'run.yaml'} is missing; there is no run to resume in {out}")
    before, now = leaves(to_dict(Run.load(out / "run.yaml"))), leaves(to_dict(run))
    free = FREE_ON_RESUME | moved | ({"train.images"} if run.optim.schedule != "cosine" else set())
    if before.get("loss.align.cache") and now.get("loss.align.cache"):
        free |= {"loss.align.cache"}  # elsewhere; none at all has the teacher's own precision
    # A kind comes first: the fields below it differ because it does.
    fields = sorted(before.keys() | now.keys(), key=lambda name: (name[-4:] != "kind", name))
    for field in fields:
        may = field in free or field.startswith("evaluate.")  # which only looks on
        if before.get(field) != now.get(field) and not may:
            raise InputError(
                f"{field} is {now.get(field)}, but the run in {out} has {before.get(field)}; "
                f"resume with the same value or choose another --out"
            )
    kept = read_spec(out)
    check_same_words(run.text, kept.words, spec.words)
    if kept.code is not None and spec.code is not None:
        check_same_code(kept, spec, getattr(run.data, "autoencoder", ""))
    begun_with = kept.fingerprint
    if begun_with != spec.fingerprint and not begun_with:
        raise InputError(
            f"the run in {out} was converted from published weights, and there is no optimizer "
            f"state to go on from; train a new run in another --out"
        )
    if begun_with != spec.fingerprint:
        field = "data.of.path" if run.data.kind == "latent" else "data.path"
        raise InputError(
            f"{field} holds other data than the run in {out} was begun with; bring them back or "
            f"choose another --out"
        )


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The values of a tree of fields by their dotted names."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in leaves(branch, f"{path}.{name}" if path else name).items()
    }


def save_checkpoint(
    out: Path,
    run: Run,
    state: State,
    model: nn.Module,
    optimizer: Any,
    ema: EMA,
    beside: Alignment | None = None,
) -> None:
    """Everything a resumed run needs; `beside` is what is trained without being a part of the
    model, and has groups of its own.
    """
    groups: dict[str, checkpoint.Group] = {
        "model": dict(model.named_parameters()),
        "optimizer": optimizer_state(model, optimizer),
        **ema.groups(),
    }
    if beside is not None:
        groups["beside"] = dict(beside.named_parameters())
        groups["beside-optimizer"] = optimizer_state(beside, optimizer)
    facts = {**vars(state), "ema_updates": ema.updates}
    if beside is not None:
        facts["teacher"] = {"width": beside.width, "digest": beside.digest}
    checkpoint.save(out / "checkpoints" / f"{state.images:09d}", groups, facts)
    checkpoint.prune(out / "checkpoints", run.train.keep)


def load_checkpoint(
    last: Path | None,
    state: State,
    model: nn.Module,
    optimizer: Any,
    ema: EMA,
    beside: nn.Module | None = None,
) -> None:
    """Go on from a checkpoint; a run killed before its first one begins again."""
    if last is None:
        return
    facts = checkpoint.facts_of(last)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weights = {name: checkpoint.load(last, name)
               for name in ("model", *ema.groups())}  # fmt: skip
    for group in weights.values():
        check_shapes(group, shapes, last)
    load_weights(model, weights["model"])
    load_optimizer_state(model, optimizer, checkpoint.load(last, "optimizer"))
    if beside is not None:
        found_beside = checkpoint.load(last, "beside")
        shapes = {name: tuple(p.shape) for name, p in beside.named_parameters()}
        check_shapes(found_beside, shapes, last)
        load_weights(beside, found_beside)
        load_optimizer_state(beside, optimizer, checkpoint.load(last, "beside-optimizer"))
    ema.load(weights)
    try:
        ema.updates = facts["ema_updates"]
        facts = State.LATER | facts
        for name in vars(state):
            setattr(state, name, facts[name])
        state.norms = Norms(*state.norms)
        if isinstance(state.counted, int):  # of all sums alike, in runs of earlier versions
            state.counted = dict.fromkeys(state.sums, state.counted)
    except KeyError as error:
        raise InputError(f"{last / 'state.json'} lacks {error}; delete {last} to use an earlier "
                         f"checkpoint") from None  # fmt: skip


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.copy_(weights[name])


def read_spec(folder: Path) -> Spec:
    """What the data promised, as the run kept it."""
    path = folder / "spec.json"
    if not path.is_file():
        raise InputError(f"{path} is missing; {folder} is not a whole run folder")
    try:
        return TypeAdapter(Spec).validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {error.errors()[0]['msg']}; bring it back") from None


def check_shapes(weights: dict[str, Tensor], ours: dict[str, tuple[int, ...]], where: Path) -> None:
    """InputError unless the weights are those, by name and shape, that the model has."""
    theirs = {name: tuple(w.shape) for name, w in weights.items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"{where}: weight {name} has shape {theirs.get(name)}, the configuration asks for "
                f"{ours.get(name)}; run.yaml and checkpoint do not belong together"
            )
