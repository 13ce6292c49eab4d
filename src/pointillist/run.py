"""A whole experiment as one frozen value: load, override, check, save.

Precedence in one line: defaults < preset or file < `key=value`. Validation happens here, at the
door, with pydantic; everywhere else a configuration is an ordinary dataclass.
"""

import dataclasses
import difflib
import functools
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pointillist.agreement import (
    check_augment,
    check_buckets,
    check_code,
    check_guidance,
    check_placed,
    check_some_places,
    check_tasks,
    check_text,
)
from pointillist.augment import AugmentConfig
from pointillist.data import Data, EmojiConfig
from pointillist.data.words import TextConfig, worded
from pointillist.engine.checkpoint import write_text
from pointillist.engine.device import DeviceName
from pointillist.engine.optim import OptimConfig
from pointillist.losses import LossConfig
from pointillist.losses.bound import check_steps
from pointillist.models import Backbone, JiTConfig
from pointillist.objective import Objective, StraightConfig
from pointillist.settings import EvaluateConfig, SampleConfig, TrainConfig
from pointillist.strict_yaml import parse_yaml
from pointillist.tasks import GenerateConfig, Task
from pointillist.types import InputError, Spec, config
from pointillist.version import FORMAT, made_by


@config
class Run:
    """One field for each word of the sentence that the package says."""

    seed: int = 0
    device: DeviceName = "auto"
    data: Data = EmojiConfig()
    text: TextConfig = TextConfig()
    augment: AugmentConfig = AugmentConfig()
    task: Task = GenerateConfig()
    objective: Objective = StraightConfig()
    model: Backbone = JiTConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; it lies in [0, 2^63)")
        # At a constant rate a run may be made longer, and meet its step-down then.
        down, images = self.optim.step_down.at, self.train.images
        if down >= images and self.optim.schedule == "cosine":
            raise InputError(
                f"optim.step_down.at is {down}, but the cosine ends at train.images, {images}; set "
                f"it lower, or optim.step_down={{}} to have none"
            )

    @classmethod
    def load(cls, source: str | Path, *overrides: str) -> "Run":
        """A preset by name, a YAML file or a run folder, with `key=value` overrides."""
        return from_dict(read_source(source), overrides)

    def save(self, path: Path) -> None:
        """The resolved configuration, with what made it, complete or absent."""
        values = {"made_by": made_by(), **to_dict(self)}
        write_text(path, yaml.safe_dump(values, sort_keys=False))

    def promise(self) -> Spec:
        """What the data will be, and what their captions become, told without opening either."""
        return worded(self.text, self.data.promise())

    def check(self, spec: Spec) -> None:
        """Contradictions between the configuration and the data, before anything is computed."""
        check_augment(self, spec)
        check_steps(self.model, self.objective, self.loss.vlb)
        self.sample.walk(path=self.objective)
        check_placed(self, spec)
        check_code(self, spec)
        check_buckets(self, spec)
        check_text(self, spec)
        self.loss.check(spec)
        self.task.check_size(spec.size)
        self.task.places.check_size(spec.size)
        self.check_hints()
        self.check_regression()
        check_some_places(self)
        check_tasks(self)
        check_guidance(self, spec)

    def check_hints(self) -> None:
        """What is observed needs a model with an encoder for it, and the other way round."""
        if getattr(self.model, "observes", False):  # points, in the model itself; or none of them
            return
        encoder = getattr(self.model, "encoder", None)  # a model of your own may have none
        kind = "none" if encoder is None else encoder.kind
        if not self.task.observes and kind != "none":
            raise InputError(
                f"model.encoder.kind is {kind}, but task.kind is {self.task.kind}, so nothing is "
                f"ever observed; set task.kind=scatter or model.encoder.kind=none"
            )
        if self.task.observes and encoder is None:
            raise InputError(
                f"task.kind is {self.task.kind}, but model {self.model.kind} has no encoder, so it "
                f"cannot see what is observed; set task.kind=generate, or another model.kind as dit"
            )
        if self.task.observes and kind == "none":
            raise InputError(
                f"task.kind is {self.task.kind}, but model.encoder.kind is none, so model "
                f"{self.model.kind} cannot see what is observed; set model.encoder.kind=grid"
            )
        if getattr(encoder, "residual", False) and self.objective.predict != "x":
            raise InputError(
                f"model.encoder.residual is true, but objective.predict is "
                f"{self.objective.predict}: the answer is added to a picture; set "
                f"objective.predict=x or model.encoder.residual=false"
            )

    def check_regression(self) -> None:
        """A loss of the encoder's own picture needs one that is learnt."""
        encoder = getattr(self.model, "encoder", None)
        if self.loss.regression and not getattr(encoder, "regresses", False):
            raise InputError(
                f"loss.regression is {self.loss.regression:g}, but no encoder of the model learns "
                f"a picture; set model.encoder.kind=unet, with residual, or loss.regression=0"
            )


@functools.cache
def _adapter() -> Any:
    return TypeAdapter(Run)


def to_dict(run: Run) -> dict[str, Any]:
    """The configuration as plain YAML values."""
    # A model of your own stands outside of the union, which pydantic would warn of.
    return _adapter().dump_python(run, mode="json", warnings=False)


# Reading.


def preset_names() -> list[str]:
    folder = resources.files("pointillist") / "presets"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")


def preset_text(name: str) -> str:
    return (resources.files("pointillist") / "presets" / f"{name}.yaml").read_text("utf-8")


def run_folder(source: str | Path) -> Path | None:
    """The folder that `source` names; a preset's name is the preset, whatever lies beside it."""
    return Path(source) if str(source) not in preset_names() and Path(source).is_dir() else None


def read_source(source: str | Path) -> dict[str, Any]:
    """The values of a preset, a YAML file or a run folder."""
    path = Path(source)
    if str(source) in preset_names():
        name, text = f"preset {source}", preset_text(str(source))
    else:
        if path.is_dir():
            path = path / "run.yaml"
        if not path.is_file():
            near = difflib.get_close_matches(str(source), preset_names(), 1)
            hint = f"did you mean {near[0]}?" if near else "`pointillist presets` lists them"
            raise InputError(f"{source} is neither a preset, a file nor a run folder; {hint}")
        try:
            name, text = str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
    values = parse_yaml(text, name)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"{name} holds a {type(values).__name__}; a configuration is a mapping")
    made = values.pop("made_by", None)
    written = made.get("format", 1) if isinstance(made, dict) else 1
    if not isinstance(written, int) or written > FORMAT:
        raise InputError(
            f"{name} has format {written}, this version reads up to {FORMAT}; update pointillist"
        )
    return values


# Values to a Run, and overrides.


def from_dict(values: dict[str, Any], overrides: tuple[str, ...] = ()) -> Run:
    """Validate, then set `key=value` overrides on the resolved tree and validate again."""
    run = _validate(values)
    if not overrides:
        run.check_hints()
        return run
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"{text} is not of the form key=value")
        pairs.append((key.strip(), parse_yaml(value, key) if value else ""))
    tree = to_dict(run)
    # A kind goes first and empties its branch, so that the other keys are looked up in the new one.
    # A whole branch is filled up before anything in it is set, and after all that it must suit.
    whole: list[str] = []
    turns = []
    for key, value in pairs:
        below = any(key.startswith(f"{branch}.") for branch in whole)
        turns.append(0 if key.endswith("kind") else 3 if below else 1 + isinstance(value, dict))
        whole += [key] if isinstance(value, dict) else []
    for _, (key, value) in sorted(zip(turns, pairs, strict=True), key=lambda turn: turn[0]):
        _set(tree, key, value)
        if key.endswith("kind") or isinstance(value, dict):
            tree = to_dict(_validate(tree))
    run = _validate(tree)
    run.check_hints()
    return run


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *folders, last = key.split(".")
    branch: Any = tree
    for i, part in enumerate([*folders, last]):
        if not isinstance(branch, dict) or part not in branch:
            known = list(branch) if isinstance(branch, dict) else []
            near = difflib.get_close_matches(part, known, 1)
            here = ".".join([*folders, last][: i + 1])
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            if branch is None:
                above = here.rpartition(".")[0]
                hint = f"{above} is null, so give it as a whole, as {above}={{{part}: ...}}"
            raise InputError(f"{here} is not a field; {hint}")
        if i == len(folders):
            break
        branch = branch[part]
    if last == "kind":
        branch.clear()
    branch[last] = value


def _validate(values: dict[str, Any]) -> Run:
    try:
        run = _adapter().validate_python(values)
    except ValidationError as error:
        raise InputError(_sentence(error, values)) from None
    _refuse_yes_for_numbers(values, to_dict(run), "")
    return run


def _sentence(error: ValidationError, values: Any) -> str:
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return str(inner)
    path = _path(first["loc"], values)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(str(first["loc"][-1]), _field_names(), 1)
        return f"{path} is not a field" + (f"; did you mean {near[0]}?" if near else "")
    if first["type"].startswith("union_tag"):
        tag = first["ctx"].get("tag")
        given = "is missing" if tag is None else f"is {tag!r}"
        return f"{path}.kind {given}; there are {', '.join(_kinds(first))}"
    return f"{path} is {first['input']!r}; {first['msg'][0].lower()}{first['msg'][1:]}"


def _kinds(error: Any) -> list[str]:
    """The tags a union knows. A missing one is tried, as pydantic tells them of a wrong one."""
    if error["type"] == "union_tag_invalid":
        return re.findall(r"'(\w+)'", error["ctx"]["expected_tags"])
    values: Any = {"kind": "?"}
    for key in reversed(error["loc"]):
        values = {key: values}
    try:
        _adapter().validate_python(values)
    except ValidationError as again:
        first = again.errors()[0]
        return _kinds(first) if first["type"] == "union_tag_invalid" else []
    return []


def _path(loc: tuple[int | str, ...], values: Any) -> str:
    """Where in `values` an error lies, in the reader's keys alone.

    pydantic's own place also has the tag of every union and the kind of every validator on the way.
    """
    path = []
    for part in loc:
        # The objective alone may leave its kind out.
        kind = values.get("kind", "straight") if isinstance(values, dict) else None
        tagged = isinstance(values, dict) and part not in values and kind == part
        if tagged or str(part).startswith("function-"):
            continue
        path.append(str(part))
        try:
            values = values[part]
        except (LookupError, TypeError):
            values = None
    return ".".join(path)


def _field_names() -> list[str]:
    names: list[str] = []

    def walk(value: Any) -> None:
        for field in dataclasses.fields(value):
            names.append(field.name)
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                walk(inner)

    walk(Run())
    return names


def _refuse_yes_for_numbers(given: Any, read: Any, path: str) -> None:
    """pydantic reads true as 1; in a configuration that is a slip of the pen."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            _refuse_yes_for_numbers(value, read.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(given, list) and isinstance(read, list):
        for i, (value, found) in enumerate(zip(given, read, strict=False)):
            _refuse_yes_for_numbers(value, found, f"{path}.{i}")
    elif isinstance(given, bool) and not isinstance(read, bool):
        raise InputError(f"{path} is {str(given).lower()}; it takes a {type(read).__name__}")
