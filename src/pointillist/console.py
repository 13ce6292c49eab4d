"""What the terminal shows: a progress bar for a person, plain lines for a pipe."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pointillist.engine.device import memory_in_use


def bar(console: Console) -> Progress:
    """The one form of a progress bar: images, a note, time left."""
    return Progress(
        TextColumn("{task.completed:.0f}/{task.total:.0f} images"), BarColumn(),
        TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=console,
    )  # fmt: skip


def line(event: dict[str, Any]) -> str:
    """One event of the log as a line of text."""
    if event["event"] == "step":
        return (
            f"{event['images']:>9} images  loss {event.get('loss', float('nan')):.4f}  "
            f"lr {event['lr']:.2e}  {event['images_per_second']:.1f} img/s"
            + (f"  skipped {event['skipped']}" if event["skipped"] else "")
        )
    if event["event"] == "validation":
        figures = "  ".join(f"{k} {v:.3f}" for k, v in event.items() if k.startswith("velocity@"))
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


class Watch:
    """Shows the events of a training; use it as a context."""

    def __init__(self, total: int) -> None:
        self.console = Console()
        self.total, self.bar = total, None
        if self.console.is_terminal:
            self.bar = bar(self.console)
            self.task = self.bar.add_task("train", total=total, note="")

    def __enter__(self) -> "Watch":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if self.bar is None:
            print(line(event), flush=True)
            return
        if event["event"] == "step":
            loss, speed = event.get("loss", float("nan")), event["images_per_second"]
            note = f"loss {loss:.4f}  {speed:.1f} img/s  {memory_in_use() / 1e9:.1f} GB"
            self.bar.update(self.task, completed=event["images"], note=note)
        else:
            self.console.print(line(event), markup=False, highlight=False)


class Drawing:
    """Shows how many pictures are drawn, to a person; a pipe gets nothing. Use it as a context."""

    def __init__(self, total: int) -> None:
        console = Console(file=sys.stderr)
        self.bar = bar(console) if console.is_terminal else None
        self.begun = time.perf_counter()
        if self.bar:
            self.task = self.bar.add_task("draw", total=total, note="")

    def __enter__(self) -> "Drawing":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, done: int) -> None:
        if self.bar:
            speed = done / (time.perf_counter() - self.begun)
            note = f"{speed:.1f} img/s  {memory_in_use() / 1e9:.1f} GB"
            self.bar.update(self.task, completed=done, note=note)
