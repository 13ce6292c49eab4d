"""Snapshots of power-function averages in a run folder, and the weights that a width asks for.

    RUN/ema/000050000/    one safetensors file (or more) a width, with counters and digests in JSON

They are written like checkpoints, complete or absent, and stay when old checkpoints go.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pointillist.engine import checkpoint
from pointillist.engine.ema import EMA, WIDEST, Fit, Profile, fit, gamma_of, power_group, width_of
from pointillist.run import Run
from pointillist.types import InputError

WORST = 0.1  # an average whose profile is met less closely than this is refused
NEGLIGIBLE = 1e-9  # a share of the weights below what float32 resolves


class Origin(NamedTuple):
    """Where weights came from: the run folder, after how many images, and which average."""

    folder: Path
    images: int
    ema: float | str


def save_snapshot(out: Path, images: int, ema: EMA) -> None:
    facts = {"images": images, "ema_updates": ema.updates}
    checkpoint.save(out / "ema" / f"{images:09d}", ema.power_groups(), facts)


def drop_later_snapshots(out: Path, images: int) -> None:
    """Of a run that goes on from `images`: what is beyond will be made again, maybe elsewhere."""
    for path in checkpoint.complete(out / "ema"):
        if int(path.name) > images:
            shutil.rmtree(path, ignore_errors=True)


def read_weights(
    folder: Path, run: Run, ema: float | str | None, at: int | None
) -> tuple[dict[str, Tensor], Path]:
    """The weights of one average, and the checkpoint or snapshot that they are of.

    `ema` is a decay that the run kept (None: the first), 0 for the raw weights, or "power:WIDTH".
    """
    name, value = ("decay", run.train.ema[0]) if ema is None else parse_ema(ema)
    if name == "power":
        return reconstruct(folder, run, value, at)
    kept = ", ".join(f"{decay:g}" for decay in run.train.ema)
    if value and value not in run.train.ema:
        more = " and power:WIDTH" if run.train.ema_power else ""
        raise InputError(f"ema is {value:g}; this run kept {kept}{more} (0: the raw weights)")
    source = _at(checkpoint.complete(folder / "checkpoints"), at, folder)
    return checkpoint.load(source, f"ema-{value}" if value else "model"), source


def parse_ema(text: float | str) -> tuple[str, float]:
    """`0.999` as ("decay", 0.999), `power:0.07` as ("power", 0.07)."""
    kind, colon, number = str(text).rpartition(":")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not colon and 0 <= value < 1:
        return "decay", value
    if kind == "power" and 0 < value < WIDEST:
        return "power", value
    raise InputError(
        f"ema is {text}; it is a decay that the run kept, 0 for the raw weights, or power:WIDTH "
        f"with a width in (0, {WIDEST:.3f}), as power:0.07"
    )


def reconstruct(
    folder: Path, run: Run, width: float, at: int | None = None
) -> tuple[dict[str, Tensor], Path]:
    """The power-function average of relative `width` at the end of the run, or `at` an image count.

    It is a combination of all snapshots up to there (and of the checkpoint there, if it has none).
    """
    if not run.train.ema_power:
        kept = ", ".join(f"{decay:g}" for decay in run.train.ema)
        raise InputError(
            f"ema is power:{width:g}, but the run kept no snapshots; ask for {kept}, or train with "
            f"train.ema_power=[0.05, 0.1]"
        )
    snapshots = checkpoint.complete(folder / "ema")
    # Of one moment there may be both; the checkpoint has the same averages.
    moments = {int(path.name): path for path in [*checkpoint.complete(folder / "checkpoints"),
                                                 *snapshots]}  # fmt: skip
    source = _at([moments[images] for images in sorted(moments)], at, folder)
    before = [path for path in snapshots if int(path.name) < int(source.name)]
    updates = {path: _updates(path) for path in [*before, source]}
    if not updates[source]:
        raise InputError(f"{source} is from before the first update; there is nothing to average")
    # Of snapshots with no update between them one is enough: equal profiles cannot be told apart.
    distinct = {t: path for path, t in updates.items() if t}
    places = [(path, own) for path in distinct.values() for own in run.train.ema_power]
    profiles = [Profile(updates[path], gamma_of(own)) for path, own in places]
    found = fit(profiles, Profile(updates[source], gamma_of(width)))
    if found.error > WORST:
        raise InputError(_too_far(profiles, updates[source], width, found))
    return _combine(places, found.coefficients), source


def _combine(places: list[tuple[Path, float]], coefficients: Tensor) -> dict[str, Tensor]:
    """The weighted sum in float64, one file at a time."""
    total: dict[str, Tensor] = {}
    least = NEGLIGIBLE * float(coefficients.abs().max())
    for (path, own), share in zip(places, coefficients.tolist(), strict=True):
        if abs(share) < least:
            continue
        weights = checkpoint.load(path, power_group(own))
        if not weights:
            raise InputError(f"{path} has no average of width {own:g}; run.yaml and the folder do "
                             f"not belong together")  # fmt: skip
        for name, value in weights.items():
            term = share * value.double()
            total[name] = total[name] + term if name in total else term
    return {name: value.float() for name, value in total.items()}


def _too_far(profiles: list[Profile], end: int, width: float, found: Fit) -> str:
    """One sentence with the widths that these snapshots do reach."""
    own = {profile.gamma for profile in profiles}
    tried = [*torch.linspace(0.005, 0.285, 57).tolist(), *map(width_of, own)]
    reached = [w for w in tried if fit(profiles, Profile(end, gamma_of(w))).error <= WORST]
    number = len(profiles) // len(own)
    where = f"ask for {min(reached):.3f} to {max(reached):.3f}"
    return (
        f"ema is power:{width:g}, but the run's {number} snapshots meet that average only to "
        f"within {100 * found.error:.0f} %; {where}, or train with a smaller train.ema_snapshot"
    )


def _updates(path: Path) -> int:
    try:
        return int(checkpoint.facts_of(path)["ema_updates"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path / 'state.json'} lacks ema_updates; delete {path}") from None


def _at(found: list[Path], at: int | None, folder: Path) -> Path:
    """The newest, or that of an image count."""
    kept = found
    if at is not None:
        found = [path for path in found if int(path.name) == at]
    if not found and kept:
        raise InputError(
            f"at is {at}, but {folder} has {', '.join(str(int(path.name)) for path in kept)}; ask "
            f"for one of them"
        )
    if not found:
        raise InputError(f"{folder} has no complete checkpoint; train it first")
    return found[-1]
