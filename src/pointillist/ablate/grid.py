"""The cells of an ablation: which fields take which values, and the runs that follow from it."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pointillist.evaluation.plan import digest
from pointillist.run import Run, from_dict, read_source, to_dict
from pointillist.strict_yaml import parse_yaml
from pointillist.types import InputError

LONGEST = 120  # letters of a name that stay; file systems take 255 bytes


class Factor(NamedTuple):
    """A field and the values it takes: as they were written, and as YAML reads them."""

    key: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]


class Trial(NamedTuple):
    """One run: its folder's name, and its whole configuration."""

    name: str
    run: Run


class Cell(NamedTuple):
    """One combination of values, and its runs, which differ in their seed alone."""

    name: str
    setting: dict[str, Any]
    trials: tuple[Trial, ...]


def parse_factors(
    over: Sequence[str], overrides: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Factor]:
    """`key=a,b` for each field; InputError where a comparison would not be what it looks like."""
    if not over:
        raise InputError("no field is varied; give --over KEY=A,B")
    found: list[Factor] = []
    for text in over:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--over is {text}; it is KEY=A,B")
        if key == "seed":
            raise InputError(f"--over is {text}, but a seed is a repetition; give --seeds {values}")
        if key.split(".")[0] == "evaluate":
            raise InputError(
                f"--over is {text}, but {key} changes how runs are judged and not the runs; leave "
                f"it out, and call `pointillist evaluate --sweep` afterwards"
            )
        texts = split_values(values)
        if "" in texts:
            raise InputError(f"--over is {text}; there is an empty value, leave out a comma")
        if len(texts) < 2:
            raise InputError(f"--over is {text}, one value, which compares with none; give two or "
                             f"more, or set {text} without --over")  # fmt: skip
        if len(set(texts)) < len(texts):
            raise InputError(f"--over is {text}; a value stands there twice")
        found.append(Factor(key, texts, tuple(parse_yaml(one, key) for one in texts)))
    keys = [factor.key for factor in found]
    given = [text.partition("=")[0].strip() for text in overrides]
    given += ["seed"] if seeds else []
    for at, key in enumerate(keys):
        if key in keys[:at]:
            raise InputError(f"--over names {key} twice; give all its values at once")
        for other in given:
            if other == key or other.startswith(f"{key}."):
                raise InputError(f"{other} is set and --over varies {key}; leave out one")
        for other in keys:
            if other.startswith(f"{key}."):
                raise InputError(f"--over varies {other} and {key} around it; leave out one")
    if seeds and "seed" in given[:-1]:
        raise InputError("seed is set and --seeds are given; leave out one")
    if len(seeds) == 1:
        raise InputError(f"--seeds is {seeds[0]}, one seed, which has no range; give two or more, "
                         f"or set seed={seeds[0]}")  # fmt: skip
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds is {','.join(map(str, seeds))}; a seed stands there twice")
    return found


def split_values(text: str) -> tuple[str, ...]:
    """At its commas, but not at those within brackets or quotation marks."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts)


def choices(factors: Sequence[Factor], one_at_a_time: bool) -> Iterable[tuple[int, ...]]:
    """Which value of each field: every combination, the last field fastest.

    Or one with the first values alone, and then each of the others while all else has its first.
    """
    if not one_at_a_time:
        yield from itertools.product(*(range(len(factor.values)) for factor in factors))
        return
    base = (0,) * len(factors)
    yield base
    for place, factor in enumerate(factors):
        for i in range(1, len(factor.values)):
            yield (*base[:place], i, *base[place + 1 :])


def cells_of(
    source: str | Path,
    overrides: Sequence[str],
    factors: Sequence[Factor],
    seeds: Sequence[int],
    one_at_a_time: bool = False,
) -> list[Cell]:
    """A cell for each of `choices`; InputError where one is no configuration."""
    values = read_source(source)
    short = dict(zip((f.key for f in factors), tails([f.key for f in factors]), strict=True))
    settings, found = [], []
    for chosen in choices(factors, one_at_a_time):
        pairs = list(zip(factors, chosen, strict=True))
        more = [f"{factor.key}={factor.texts[i]}" for factor, i in pairs]
        setting = {factor.key: factor.values[i] for factor, i in pairs}
        name = ",".join(f"{short[key]}={safe(spelled(value))}" for key, value in setting.items())
        repeats = [[f"seed={seed}"] for seed in seeds] or [[]]
        try:
            runs = [from_dict(values, (*overrides, *more, *seed)) for seed in repeats]
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        settings.append((name, setting, runs))
    often = Counter(name.casefold() for name, _, _ in settings)  # some disks know no capitals
    seen: dict[str, str] = {}
    for name, setting, runs in settings:
        if often[name.casefold()] > 1 or len(name) > LONGEST:
            name = f"{name[:LONGEST]},{digest(setting)}"
        names = [f"{name},seed={seed}" for seed in seeds] or [name]
        found.append(Cell(name, setting, tuple(map(Trial, names, runs))))
        whole = digest(to_dict(runs[0]))
        if whole in seen:
            raise InputError(f"cells {seen[whole]} and {name} are the same configuration; leave "
                             f"out one of the values")  # fmt: skip
        seen[whole] = name
    return found


def tails(keys: Sequence[str]) -> list[str]:
    """The shortest ends of keys that tell them apart; a `kind` has its field's name with it."""
    found = []
    for key in keys:
        parts = key.split(".")
        for size in range(min(len(parts), 1 + (parts[-1] == "kind")), len(parts) + 1):
            tail = parts[-size:]
            if sum(other.split(".")[-size:] == tail for other in keys) == 1:
                break
        found.append(".".join(tail))
    return found


def spelled(value: Any) -> str:
    """A value as YAML, in one line; other values are spelled otherwise."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).split("\n")[0]


def safe(text: str) -> str:
    """The letters that every file system and shell takes as they are."""
    kept = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)
    return text if text and kept == text else kept.strip("-") or "-"
