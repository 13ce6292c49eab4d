"""What the terminal shows: a progress bar for a person, plain lines for a pipe."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)  # fmt: skip

from pointillist.engine.device import memory_in_use


class Bar:
    """A progress bar over `total` images where the console is a terminal; use it as a context."""

    def __init__(self, total: int, console: Console) -> None:
        self.console, self.bar = console, None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f} images"), BarColumn(),
                TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self.task = self.bar.add_task("", total=total, note="")

    def __enter__(self) -> Any:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def move(self, images: int, speed: float, note: str = "") -> None:
        if self.bar:
            note += f"{speed:.1f} img/s  {memory_in_use() / 1e9:.1f} GB"
            self.bar.update(self.task, completed=images, note=note)


def line(event: dict[str, Any]) -> str:
    """One event of the log as a line of text."""
    if event["event"] == "step":
        return (
            f"{event['images']:>9} images  loss {event.get('loss', float('nan')):.4f}  "
            f"lr {event['lr']:.2e}  {event['images_per_second']:.1f} img/s"
            + (f"  skipped {event['skipped']}" if event["skipped"] else "")
        )
    if event["event"] == "validation":
        figures = "  ".join(f"{k} {v:.3f}" for k, v in event.items() if "@" in k)
        return f"{event['images']:>9} images  validation  {figures}"
    if event["event"] == "evaluation":
        figures = "  ".join(
            f"{name} {value:.4g} ({event[f'{name}_low']:.4g} to {event[f'{name}_high']:.4g})"
            for name, value in event.items()
            if f"{name}_low" in event
        )
        figures = event.get("refused", figures)
        return f"{event['images']:>9} images  evaluation  {figures}"
    if event["event"] == "captions":
        cut = f", {event['cut']:,} of them cut" if event["cut"] else ""
        missing = f", {event['missing']:,} samples without one" if event["missing"] else ""
        return f"{event['images']:>9} images  {event['captions']:,} captions{cut}{missing}"
    if event["event"] == "refused":
        return f"{event['images']:>9} images  refused {event['file']}: {event['reason']}"
    if event["event"] == "memory":
        where = f" on rank {event['rank']}" if event["rank"] else ""
        return (
            f"{event['images']:>9} images  memory{where}: {event['from']} samples at once did not "
            f"fit, {event['to']} do, with the same result"
        )
    if event["event"] == "left out":
        return (f"{event['images']:>9} images  every epoch leaves out {event['pictures']} of "
                f"{event['of']} pictures, which fill no batch")  # fmt: skip
    if event["event"] == "begin":
        others = f" and {event['ranks'] - 1} more" if event["ranks"] > 1 else ""
        return (
            f"{event['parameters'] / 1e6:.1f} M parameters, {event['macs'] / 1e9:.2f} GMAC a "
            f"picture, about {event['training_bytes'] / 1e9:.1f} GB, on {event['device']}{others}, "
            f"into {event['out']}, from {event['images']} images"
        )
    return f"{event['images']:>9} images  step skipped: loss or gradient is not finite"


class Watch(Bar):
    """Shows the events of a training: a bar to a person, plain lines to a pipe."""

    def __init__(self, total: int) -> None:
        super().__init__(total, Console())

    def __call__(self, event: dict[str, Any]) -> None:
        if self.bar is None:
            print(line(event), flush=True)
        elif event["event"] == "step":
            loss = f"loss {event.get('loss', float('nan')):.4f}  "
            self.move(event["images"], event["images_per_second"], loss)
        else:
            self.console.print(line(event), markup=False, highlight=False)


class Drawing(Bar):
    """Shows how many pictures are drawn, to a person; a pipe gets nothing."""

    def __init__(self, total: int) -> None:
        super().__init__(total, Console(file=sys.stderr))
        self.begun = time.perf_counter()

    def __call__(self, done: int) -> None:
        self.move(done, done / (time.perf_counter() - self.begun))


class Counting:
    """Shows how far an evaluation is, to a person; and every finished one as a line of text."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar: Drawing | None = None
        self.what = ""

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def __call__(self, what: str, done: int, of: int) -> None:
        if what != self.what:
            self._end()
            self.what, self.bar = what, Drawing(of)
            self.bar.__enter__()
        if self.bar is not None:
            self.bar(done)

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
        self.bar = None

    def rest(self) -> None:
        """No bar is shown until the next call."""
        self._end()
        self.what = ""

    def tell(self, cell: Any) -> None:
        """Setting and scores of one evaluation."""
        if self.quiet:
            return
        self.rest()
        setting = " ".join(f"{key}={value}" for key, value in cell.setting.items())
        scores = "  ".join(
            f"{name} {s.value:.4g} ({s.low:.4g} to {s.high:.4g}, n {s.n})"
            for name, s in cell.verdict.scores.items()
        )
        speed, fast = cell.verdict.speed, ""
        for name, what in (("drawn_per_second", "drawn"), ("features_per_second", "of features")):
            fast += f"  {speed[name]:.1f} pictures/s {what}" if name in speed else ""
        print(f"{setting}  {scores}{fast}".strip(), flush=True)


class Bytes:
    """Shows a download to a person; a pipe gets nothing. Call it with bytes so far and in all."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        console = Console(file=sys.stderr)
        if console.is_terminal:
            self.bar = Progress(
                DownloadColumn(), BarColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
                console=console,
            )  # fmt: skip
            self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> "Bytes":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, done: int, total: int | None) -> None:
        if self.bar:
            self.bar.update(self.task, completed=done, total=total)
