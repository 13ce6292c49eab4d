"""Trackers: a run's figures and pictures shown elsewhere too, at the same image counts as its log.

`log.jsonl` stays the record; what a tracker shows is a copy of it.
"""

import importlib
import importlib.util
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from pointillist.engine.checkpoint import write_text
from pointillist.engine.session import Interrupted
from pointillist.types import InputError

TrackerName = Literal["tensorboard", "wandb"]
# Events, and where their figures appear.
SHOWN = {"step": "train", "validation": "validation", "evaluation": "evaluation"}


def missing(name: str) -> str:
    """The command that installs a tracker's extra; empty where it is installed."""
    found = importlib.util.find_spec(name)
    # A mere folder of that name, as trackers leave wherever they were used, has no file behind it.
    return "" if found and found.origin else f"pip install 'pointillist[{name}]'"


class Tracker(Protocol):
    """What a tracker can do; it is made with the run's folder, image count and configuration."""

    def scalars(self, figures: dict[str, float], images: int) -> None: ...
    def picture(self, path: Path, images: int) -> None: ...
    def flush(self) -> None: ...
    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard; what lies beyond the count it goes on from is dropped."""

    def __init__(self, folder: Path, images: int, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.proto = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        # Readers forget what earlier files hold at this count and beyond.
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1)

    def scalars(self, figures: dict[str, float], images: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, images)

    def picture(self, path: Path, images: int) -> None:
        # The file as it is: `add_image` would decode it and compress it again.
        png = path.read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        image = self.proto.Summary.Image(width=width, height=height, encoded_image_string=png)
        value = self.proto.Summary.Value(tag="samples", image=image)
        self.writer.file_writer.add_summary(self.proto.Summary(value=[value]), images)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases in the project `pointillist`, with its files in RUN/wandb.

    Its id is drawn once and kept there, so that a resume continues the same run; what the service
    already has, it keeps. WANDB_MODE and the service's other variables rule as ever.
    """

    def __init__(self, folder: Path, images: int, values: dict[str, Any]) -> None:
        self.wandb: Any = importlib.import_module("wandb")
        path = folder / "wandb" / "id"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_text(path, secrets.token_hex(8))
        try:
            self.run = self.wandb.init(
                project="pointillist", name=folder.resolve().name, id=path.read_text("utf-8"),
                resume="allow", dir=str(folder), config=values, allow_val_change=True,
                settings=self.wandb.Settings(console="off"),
            )  # fmt: skip
        except self.wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(
                f"train.track has wandb, which does not begin: {reason}; mend that, or set "
                f"WANDB_MODE=offline, and --resume"
            ) from error

    def scalars(self, figures: dict[str, float], images: int) -> None:
        self.run.log(figures, step=images)

    def picture(self, path: Path, images: int) -> None:
        self.run.log({"samples": self.wandb.Image(str(path))}, step=images)

    def flush(self) -> None:
        """Its own process writes each line as it comes."""

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


TRACKERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


class Tracks:
    """All trackers of a run as one; use it as a context, and `begin` inside it.

    InputError, before a folder is made, where a tracker is not installed.
    """

    def __init__(self, names: tuple[TrackerName, ...], folder: Path) -> None:
        for name in names:
            if missing(name):
                raise InputError(
                    f"train.track has {name}, which is not installed; {missing(name)}, or leave it "
                    f"out"
                )
        self.names, self.folder = names, folder
        self.trackers: list[Tracker] = []

    def begin(self, images: int, values: dict[str, Any]) -> None:
        """Open every tracker for a run that stands at `images`; `values` is its configuration."""
        with self._told():
            for name in self.names:
                try:
                    self.trackers.append(TRACKERS[name](self.folder, images, values))
                except ImportError as error:
                    raise InputError(
                        f"train.track has {name}, which cannot be loaded: "
                        f"{' '.join(str(error).split())}; pip install --force-reinstall {name}, or "
                        f"leave it out, and --resume"
                    ) from error

    def __call__(self, event: dict[str, Any]) -> None:
        """Show the figures of an event of the log."""
        group = SHOWN.get(event["event"])
        if group and self.trackers:
            figures = {f"{group}/{k}": v for k, v in event.items() if k not in ("event", "images")}
            with self._told():
                for tracker in self.trackers:
                    tracker.scalars(figures, event["images"])

    def picture(self, path: Path, images: int) -> None:
        """Show a PNG file, and have it on the disk: a resume draws none that is there already."""
        with self._told():
            for tracker in self.trackers:
                tracker.picture(path, images)
                tracker.flush()

    def flush(self) -> None:
        """Have everything so far on the disk, before a checkpoint claims it."""
        with self._told():
            for tracker in self.trackers:
                tracker.flush()

    def __enter__(self) -> "Tracks":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            with self._told():
                for tracker in self.trackers:
                    tracker.close(failed=kind not in (None, Interrupted))
        except InputError:
            if kind is None:  # otherwise the first failure is the one to tell
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"train.track cannot write into {self.folder}: {error.strerror or error}; mend "
                f"that, or leave the tracker out, and --resume"
            ) from error
