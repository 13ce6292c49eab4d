"""From a run folder to pictures: load, sample."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pointillist.draws import Draw
from pointillist.engine.device import autocast, is_out_of_memory, pick_device
from pointillist.guidance import Count, GuidanceConfig, classifier_free, network_field
from pointillist.known import on_grid
from pointillist.models import Network
from pointillist.run import Run, check_sampler
from pointillist.runfolder import check_shapes, read_spec
from pointillist.samplers import SAMPLERS, Watch, time_grid
from pointillist.snapshots import read_weights
from pointillist.tasks import HintsConfig, show
from pointillist.types import Given, InputError, Spec, config


class Samples(NamedTuple):
    """Pictures in [-1, 1], their labels (-1: none), and network evaluations spent on each."""

    x: Tensor
    label: Tensor | None
    nfe: int


@config
class Ask:
    """One request: what differs from the run's own `sample` settings is not None."""

    count: int = 16
    label: int | str | tuple[int | str, ...] | None = None
    size: tuple[int, ...] | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    seed: int = 0
    batch: int = 64
    dtype: str = "float32"


class Trained:
    """A network with its run: ask it for pictures."""

    def __init__(self, run: Run, spec: Spec, model: nn.Module, device: torch.device) -> None:
        self.run, self.spec, self.device = run, spec, device
        self.model = model.to(device).eval()
        self.network = Network(self.model)
        self.origin: tuple[Path, int] | None = None  # the run folder, and the images of it

    def sample(
        self,
        count: int = 16,
        label: Any = None,
        *,
        known: Given | None = None,
        watch: Watch | None = None,
        **ask: Any,
    ) -> Tensor:
        """`count` pictures, `count c *space` in [-1, 1]; fields of `Ask` by name.

        `known` holds pixels that are known, as `Given(seen=, mask=)` on the picture's grid or
        `Given(at=, value=)` at points in [-1, 1]; they come back unchanged.

        `label` is a class by number or name, one for each picture, or None: the classes in turn.
        Picture i is a function of (seed, i) and the request, not of what it is batched with.
        """
        if isinstance(label, list):
            label = tuple(label)
        return self.answer(Ask(count=count, label=label, **ask), watch, known=known).x

    @torch.no_grad()
    def answer(
        self,
        ask: Ask,
        watch: Watch | None = None,
        progress: Callable[[int], None] | None = None,
        known: Given | None = None,
    ) -> Samples:
        """Pictures with their labels and the evaluations they cost."""
        run = self.run.sample
        if getattr(self.run.model, "learn_sigma", False):
            raise InputError(
                "model.learn_sigma is true: such weights were trained on DDPM's path, on which "
                "this version does not sample; call the network itself (`pt.load(RUN).network`)"
            )
        size = ask.size or self.spec.size
        if len(size) != len(self.spec.size):
            raise InputError(
                f"size {'x'.join(map(str, size))} has {len(size)} axes; the run has "
                f"{len(self.spec.size)}"
            )
        if ask.count < 1 or ask.batch < 1:
            raise InputError(f"count is {ask.count} and batch {ask.batch}; both are 1 or more")
        if ask.seed < 0:
            raise InputError(f"seed is {ask.seed}; it must be 0 or more")
        sampler = ask.sampler or run.sampler
        check_sampler(sampler)
        steps = run.steps if ask.steps is None else ask.steps
        times = time_grid(steps, run.shift)
        guidance = GuidanceConfig(
            scale=run.guidance.scale if ask.guidance is None else ask.guidance,
            interval=run.guidance.interval if ask.interval is None else ask.interval,
        )
        if guidance.scale != 1 and not self.spec.classes:
            raise InputError(
                f"guidance is {guidance.scale:g}, but this model has no labels; leave it at 1"
            )
        if guidance.scale != 1 and not self.run.task.label_drop:
            raise InputError(
                f"guidance is {guidance.scale:g}, but the run had task.label_drop 0 and never "
                f"learnt an unlabelled answer; leave it at 1"
            )
        labels = self._labels(ask.label, ask.count)
        seen = mask = None
        if known is not None:
            seen, mask = on_grid(known, ask.count, self.spec.channels, size)
        elif isinstance(self.run.task, HintsConfig) and self.run.task.always:
            raise InputError("the run had task.absent 0 and never learnt to answer without hints; "
                             "give some")  # fmt: skip
        parts, nfe = [], 0
        for first in range(0, ask.count, ask.batch):
            index = torch.arange(first, min(first + ask.batch, ask.count))
            given = Given(label=None if labels is None else labels[index].to(self.device))
            if seen is not None and mask is not None:
                given = show(given, seen[index].to(self.device), mask[index].to(self.device))
            count = Count()
            try:
                draw, shape = Draw(ask.seed, index), (self.spec.channels, *size)
                noise = self.run.objective.noise(draw, shape, "sample")
                with autocast(self.device, ask.dtype):
                    field = self._field(given, size, guidance, count)
                    x = SAMPLERS[sampler](field, noise.to(self.device), times, watch=watch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = index.shape[0] // 2
                remedy = f"try --batch {fits}" if fits else "ask for a smaller --size"
                raise InputError(
                    f"{index.shape[0]} of {'x'.join(map(str, size))} pixels at once do not fit "
                    f"into the memory of {self.device}; {remedy}"
                ) from None
            x = x.float().cpu()
            if seen is not None and mask is not None:
                x = torch.where(mask[index], seen[index], x)
            parts.append(x)
            nfe = count.nfe
            if progress is not None:
                progress(min(first + ask.batch, ask.count))
        return Samples(torch.cat(parts), labels, nfe)

    def _field(
        self, given: Given, size: tuple[int, ...], guidance: GuidanceConfig, count: Count
    ) -> Any:
        """The guided field; without need the reference is not even built."""
        objective = self.run.objective
        field = network_field(self.network, objective, given, size, count)
        if guidance.scale == 1 or given.label is None:
            return field
        dropped = given._replace(label=torch.full_like(given.label, -1))
        reference = network_field(self.network, objective, dropped, size, count)
        return classifier_free(field, reference, guidance)

    def _labels(self, label: Any, count: int) -> Tensor | None:
        classes = self.spec.classes
        if not classes:
            if label is not None:
                raise InputError(f"label is {label}, but this model has no labels; leave it out")
            return None
        if label is None:
            return torch.arange(count) % len(classes)
        wanted: Sequence[Any] = label if isinstance(label, tuple) else (label,) * count
        if len(wanted) != count:
            raise InputError(f"{len(wanted)} labels for {count} pictures; give one for each")
        return torch.tensor([label_number(one, classes) for one in wanted])


def label_number(label: int | str, classes: tuple[str, ...]) -> int:
    """A class by name or number; -1 is "no label"."""
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    try:
        number = int(label)
    except ValueError:
        number = len(classes)
    if not -1 <= number < len(classes):
        shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        raise InputError(f"label is {label}; it is 0 to {len(classes) - 1}, or one of {shown}")
    return number


def load(
    source: str | Path,
    ema: float | str | None = None,
    device: str | None = None,
    at: int | None = None,
) -> Trained:
    """A trained network from a run folder: its newest checkpoint (or that `at` so many images).

    `ema` chooses one of the averages the run kept (default: the first), 0 the raw weights, and
    "power:WIDTH" the power-function average of that relative width, from the run's snapshots.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(f"{source} is not a run folder; `pointillist train` makes one")
    if not (folder / "run.yaml").is_file():
        raise InputError(f"{folder / 'run.yaml'} is missing; {folder} is not a run folder")
    run, spec = Run.load(folder / "run.yaml"), read_spec(folder)
    weights, source = read_weights(folder, run, ema, at)
    with torch.device("meta"):
        model = run.model.build(spec)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    check_shapes(weights, shapes, source)
    model.load_state_dict(weights, assign=True)
    trained = Trained(run, spec, model, pick_device(device or run.device))
    trained.origin = folder, int(source.name)
    return trained


def untrained(run: Run, spec: Spec, device: str | None = None) -> Trained:
    """A network with the random weights of the run's seed."""
    torch.manual_seed(run.seed)
    return Trained(run, spec, run.model.build(spec), pick_device(device or run.device))
