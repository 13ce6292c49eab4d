"""How a run is trained, sampled and judged, where that is no matter of data, task or model."""

import math

from torch import Tensor

from pointillist.consistent import Consistency, ProjectionConfig
from pointillist.engine.device import Precision
from pointillist.engine.ema import WIDEST
from pointillist.engine.track import TrackerName
from pointillist.guidance import GuidanceConfig
from pointillist.metrics.names import parse_metrics
from pointillist.objective import Interpolant
from pointillist.samplers import GRIDS, SAMPLERS, STRAIGHT, time_grid, times_of
from pointillist.types import Count, InputError, config


@config
class TrainConfig:
    """How long and in what portions; all counts are images.

    `micro_batch` 0 takes the batch whole; smaller parts give the same gradient up to the order of
    summation, and are taken where the memory asks for them. `gradient_checkpointing` computes
    blocks a second time in the place of remembering them. `grid` pictures are drawn at every save,
    `validate` test pictures are denoised.
    `keep` checkpoints stay (0: all). After `patience` non-finite steps in a row the run stops.
    `ema_power` are relative widths of power-function averages, of which snapshots are kept every
    `ema_snapshot` images (0: at every save), whatever `keep` says, for averages of any width later.
    `track` shows the log and the pictures in TensorBoard or Weights & Biases too.
    """

    images: Count = 1_000_000
    batch: Count = 256
    micro_batch: Count = 0
    ema: tuple[float, ...] = (0.9999,)
    ema_warmup: bool = True
    ema_power: tuple[float, ...] = ()
    ema_snapshot: Count = 0
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    save_every: Count = 100_000
    log_every: Count = 1_000
    keep: int = 3
    grid: int = 16
    validate: int = 256
    workers: int = 2
    patience: int = 20
    track: tuple[TrackerName, ...] = ()

    def __post_init__(self) -> None:
        for name in ("images", "batch", "save_every", "log_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("micro_batch", "keep", "grid", "validate", "workers", "ema_snapshot"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} is {getattr(self, name)}; it must be 0 or more")
        if not self.ema or not all(0 <= decay < 1 for decay in self.ema):
            raise InputError(f"train.ema is {self.ema}; give one or more decays in [0, 1)")
        if len(set(self.ema)) < len(self.ema):
            raise InputError(f"train.ema is {self.ema}; a decay stands there twice")
        self._check_power()
        if len(set(self.track)) < len(self.track):
            raise InputError(f"train.track is {self.track}; a tracker stands there twice")

    def _check_power(self) -> None:
        widths = list(self.ema_power)
        if not all(0 < width < WIDEST for width in widths):
            raise InputError(
                f"train.ema_power is {widths}; relative widths lie in (0, {WIDEST:.3f}), as 0.05"
            )
        if widths and len(set(widths)) < max(2, len(widths)):
            raise InputError(
                f"train.ema_power is {widths}; give two or more different widths, as [0.05, 0.1], "
                f"between which others can be found"
            )
        if self.ema_snapshot and not widths:
            raise InputError(
                f"train.ema_snapshot is {self.ema_snapshot}, but train.ema_power is empty, so "
                f"there is nothing to keep; set train.ema_power=[0.05, 0.1]"
            )

    @property
    def at_once(self) -> int:
        """Samples that are in the memory together."""
        return self.micro_batch or self.batch


@config
class SampleConfig:
    """How pictures are drawn where the caller does not say otherwise.

    `steps` times are spaced by `grid`, in the path's own t or (`karras` and the like) by the noise,
    and then moved by `shift`, in the path's own t, where `objective.shift` goes by the noise unless
    training times are uniform; `times` is a grid of one's own in the place of all three.
    `consistency` is how a walk is made to agree with what is known: pixels that the network was
    shown stay as they are, whichever is chosen but `none`.
    """

    sampler: str = "heun"
    steps: int = 50
    shift: float = 1.0
    grid: str = "uniform"
    times: tuple[float, ...] = ()
    guidance: GuidanceConfig = GuidanceConfig()
    consistency: Consistency = ProjectionConfig()

    def __post_init__(self) -> None:
        check_sampler(self.sampler)
        if self.steps < 1:
            raise InputError(f"sample.steps is {self.steps}; a sampler takes at least 1 step")
        if not 0 < self.shift < math.inf:
            raise InputError(f"sample.shift is {self.shift}; it must be above 0, and finite")
        if self.grid not in GRIDS:
            raise InputError(f"sample.grid is {self.grid}; there are {', '.join(GRIDS)}")
        if self.times:
            times_of(self.times)
            if self.shift != 1 or self.grid != "uniform":
                raise InputError(
                    f"sample.times is a whole grid, but sample.shift is {self.shift:g} and "
                    f"sample.grid {self.grid}; leave out the one or the others"
                )

    def walk(self, steps: int | None = None, path: Interpolant = STRAIGHT) -> Tensor:
        """The times of a walk on `path`; `steps` in the place of the configuration's own."""
        if not self.times:
            steps = self.steps if steps is None else steps
            return time_grid(steps, self.shift, self.grid, path)
        if steps is not None and steps != len(self.times) - 1:
            raise InputError(
                f"steps is {steps}, but sample.times is a grid of {len(self.times) - 1} steps; "
                f"leave steps out or set sample.times=[]"
            )
        return times_of(self.times)


@config
class EvaluateConfig:
    """How a run is judged where the caller does not say otherwise.

    `every` so many images training computes `metrics` of its first average, on `count` generated
    pictures (0: never). Real pictures are the first `reference` of the split's own random order (0,
    or a metric named `..._full`: all). `draws` reconstructions of every held-out picture with hints
    at `share`.
    """

    every: Count = 0
    metrics: tuple[str, ...] = ("kid",)
    count: Count = 1000
    reference: Count = 10_000
    split: str = "train"
    extractor: str = "inception"
    draws: int = 9
    share: float = 0.2

    def __post_init__(self) -> None:
        parse_metrics(self.metrics)
        for name, least in (("every", 0), ("count", 2), ("reference", 0), ("draws", 2)):
            if getattr(self, name) < least:
                raise InputError(
                    f"evaluate.{name} is {getattr(self, name)}; it must be {least} or more"
                )
        if self.split not in ("train", "test"):
            raise InputError(f"evaluate.split is {self.split}; it is train or test")
        if not 0 < self.share < 1:
            raise InputError(f"evaluate.share is {self.share}; it lies in (0, 1)")


def check_sampler(name: str) -> None:
    if name not in SAMPLERS:
        raise InputError(f"sampler {name} is not known; there are {', '.join(SAMPLERS)}")
