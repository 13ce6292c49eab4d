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
    if event["event"] == "refused":
        return f"{event['images']:>9} images  refused {event['file']}: {event['reason']}"
    if event["event"] == "begin":
        return (
            f"{event['parameters'] / 1e6:.1f} M parameters, {event['macs'] / 1e9:.2f} GMAC a "
            f"picture, about {event['training_bytes'] / 1e9:.1f} GB, on {event['device']}, into "
            f"{event['out']}, from {event['images']} images"
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
