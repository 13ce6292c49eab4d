"""What is judged and how: one frozen value, whose digest names the folder of its results."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

from pointillist.metrics.names import GENERATED, Metric, parse_metrics
from pointillist.request import Ask
from pointillist.settings import EvaluateConfig, check_sampler
from pointillist.types import InputError, config, parse_count, parse_size

KEPT = 50_000  # real pictures whose features are kept: 400 MB of Inception's


@config
class Plan(EvaluateConfig):
    """One evaluation: what differs from the run's own `sample` is not None.

    `at` is the checkpoint by its images (None: the newest). Pictures are numbers 0 to count - 1 of
    `seed`.
    """

    at: int | None = None
    ema: float | str | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    sampler: str | None = None
    steps: int | None = None
    size: tuple[int, ...] | None = None
    seed: int = 0
    dtype: str = "float32"
    batch: int = 64

    def __post_init__(self) -> None:
        EvaluateConfig.__post_init__(self)
        if self.sampler is not None:
            check_sampler(self.sampler)
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; it must be {least} or more")

    def of(self, kind: tuple[str, ...]) -> tuple[Metric, ...]:
        """The metrics of one kind: GENERATED, RESTORED or DENOISED."""
        return tuple(metric for metric in parse_metrics(self.metrics) if metric.score in kind)

    @property
    def pictures(self) -> int:
        """How many pictures are generated for all metrics that want some."""
        return max(metric.pictures or self.count for metric in self.of(GENERATED))

    def real(self, available: int, full: bool = False) -> int:
        """How many real pictures generated ones are held against."""
        return available if full or not self.reference else min(self.reference, available)

    @property
    def options(self) -> dict[str, Any]:
        """How pictures are drawn, as fields of `Ask`."""
        names = ("size", "steps", "sampler", "guidance", "interval", "seed", "batch", "dtype")
        return {name: getattr(self, name) for name in names}

    def ask(self, count: int) -> Ask:
        """The request for so many of the plan's pictures."""
        return Ask(count=count, **self.options)


def plan_of(asked: EvaluateConfig, **more: Any) -> Plan:
    """The run's own settings, with those of `more` that are not None in their place."""
    known = [field.name for field in dataclasses.fields(Plan) if field.name != "every"]
    for name in more:
        if name not in known:
            raise InputError(f"{name} is no setting of an evaluation; there are {', '.join(known)}")
    if isinstance(more.get("metrics"), str):
        more["metrics"] = (more["metrics"],)
    own = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
    return Plan(**{**own, **{name: value for name, value in more.items() if value is not None}})


def digest(facts: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of what makes results what they are."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# Sweeps.

SWEPT = {"ema": "width", "guidance": "scale", "interval": "LO:HI", "sampler": "name",
         "steps": "number", "seed": "number", "at": "images", "size": "HxW"}  # fmt: skip


def parse_sweeps(texts: str | Sequence[str]) -> dict[str, list[Any]]:
    """`key=a,b` for each key, in the order given; values as the field's type."""
    found: dict[str, list[Any]] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        key, equals, values = text.partition("=")
        if not equals or key not in SWEPT:
            raise InputError(f"--sweep is {text}; it is KEY=A,B with KEY one of {', '.join(SWEPT)}")
        if key in found:
            raise InputError(f"--sweep names {key} twice; give all its values at once")
        found[key] = [_value(key, value.strip(), text) for value in values.split(",")]
        if len(set(found[key])) < len(found[key]):
            raise InputError(f"--sweep is {text}; a value stands there twice")
    return found


def _value(key: str, text: str, whole: str) -> Any:
    try:
        if key == "interval":
            low, high = (float(part) for part in text.split(":"))
            return low, high
        if key == "guidance":
            return float(text)
        if key == "size":
            return parse_size(text, "--sweep size")
        if key in ("steps", "seed", "at"):
            count = parse_count(text)
            return count if isinstance(count, int) else int(text)
        if key == "ema":
            try:
                return float(text)
            except ValueError:
                return text
    except ValueError:
        raise InputError(f"--sweep is {whole}; {key} takes {SWEPT[key]}, not {text!r}") from None
    return text


def cells(plan: Plan, sweeps: dict[str, list[Any]]) -> list[tuple[dict[str, Any], Plan]]:
    """Every combination: what was set, and the plan with it."""
    found = []
    for values in itertools.product(*sweeps.values()):
        setting = dict(zip(sweeps, values, strict=True))
        found.append((setting, dataclasses.replace(plan, **setting)))
    return found
