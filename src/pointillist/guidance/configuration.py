"""What to do about guidance, as a configuration."""

import math

from pointillist.guidance.schedule import ConstantSchedule, Schedule
from pointillist.types import InputError, config


@config
class APGConfig:
    """Adaptive projected guidance; as it stands here it changes nothing.

    `eta` is the weight of the part of the guidance that is parallel to the picture, which saturates
    colours (the paper: 0). `momentum` is what each evaluation keeps of the sum of those before it;
    the paper takes it negative, -0.5 to -0.75. `threshold` bounds the root mean square of the
    guidance over all values of a picture, in the picture's own units, which means the same at any
    size and channel count; 0 is no bound. The paper bounds the norm instead: r there is
    r / sqrt(c h w) here.
    """

    eta: float = 1.0
    momentum: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta):
            raise InputError(f"guidance.apg.eta is {self.eta}; it must be a finite number")
        if not -1 < self.momentum < 1:
            raise InputError(f"guidance.apg.momentum is {self.momentum:g}; it lies in (-1, 1)")
        if not 0 <= self.threshold < math.inf:
            raise InputError(f"guidance.apg.threshold is {self.threshold:g}; it is 0 or more")


@config
class AutoConfig:
    """The weaker network of autoguidance: another run, another average of a run, or both.

    An empty `run` is the run itself; an empty `ema` is the run's first average.
    """

    run: str = ""
    ema: float | str = ""


@config
class GuidanceConfig:
    """away + w (toward - away), w = 1 + (scale - 1) share(t) in `interval` and 1 outside.

    A schedule counts t from the noise, on every path; on `ddpm` it counts 1 - index/T, as
    published, which is 1/T more. `channels`: the first so many are guided, the others are not
    (None: all are).

    At scale 1 there is no guidance and no reference is asked. The reference is the network with the
    label `negative` (-1: none), or with `auto` a weaker network with the same label. `rescale` is
    the share of the result whose standard deviation is brought back to that before guidance.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    schedule: Schedule = ConstantSchedule()
    rescale: float = 0.0
    apg: APGConfig = APGConfig()
    negative: int | str = -1
    auto: AutoConfig = AutoConfig()
    channels: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"guidance is {self.scale}; it must be a finite number")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise InputError(
                f"guidance.interval is [{low:g}, {high:g}]; it must rise and lie in [0, 1]"
            )
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance.rescale is {self.rescale:g}; it lies in [0, 1]")
        if self.channels is not None and self.channels < 1:
            raise InputError(
                f"guidance.channels is {self.channels}; it is 1 or more, or null for all of them"
            )
        if self.automatic and self.negated:
            raise InputError(
                f"guidance.negative is {self.negative}, but guidance.auto names the reference too; "
                f"leave one of them out"
            )

    @property
    def automatic(self) -> bool:
        """Whether the reference is a weaker network."""
        return self.auto != AutoConfig()

    @property
    def negated(self) -> bool:
        """Whether the reference has a label, or a prompt; "-1" is one as any other text."""
        return self.negative != -1

    @property
    def idle(self) -> str | None:
        """The first field that is set and, at scale 1, would do nothing."""
        rest = GuidanceConfig(scale=self.scale, interval=self.interval)
        names = ("schedule", "rescale", "apg", "negative", "auto", "channels")
        changed = (name for name in names if getattr(self, name) != getattr(rest, name))
        return next(changed, None) if self.scale == 1 else None

    def check_channels(self, channels: int) -> None:
        """InputError where more are to be guided than there are."""
        if self.channels is not None and self.channels > channels:
            raise InputError(
                f"guidance.channels is {self.channels}, but the data have {channels}; give at most "
                f"so many, or null for all"
            )

    def weight(self, t: float, progress: float | None = None) -> float:
        """w at time t; a low end of 0 takes the noise itself in (JiT).

        `progress`: what the schedule is asked at, where that is not t (`Interpolant.progress`).
        """
        low, high = self.interval
        # A grid meets an end to within rounding: the fourth of ten steps begins 4e-17 after 0.3.
        if not (t < high - 1e-9 and (low == 0 or t > low + 1e-9)):
            return 1.0
        share = self.schedule.share(t if progress is None else progress)
        return self.scale if share == 1 else 1 + (self.scale - 1) * share


def label_number(label: int | str, classes: tuple[str, ...], what: str = "label") -> int:
    """A class by name or number; -1 is "no label"."""
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    try:
        number = int(label)
    except ValueError:
        number = len(classes)
    if not -1 <= number < len(classes):
        shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        raise InputError(f"{what} is {label}; it is 0 to {len(classes) - 1}, or one of {shown}")
    return number
