"""The log of a run: one JSON object a line, without gap or repeat after a resume."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pointillist.engine.checkpoint import write_text
from pointillist.types import InputError


class Log:
    """Appends events to `log.jsonl`; each is flushed, so a kill loses at most its own line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, images: int) -> None:
        """Drop what was logged after `images`, and a last line that was cut off in writing."""
        kept = [event for event in read(self.path) if event["images"] <= images]
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))

    def write(self, event: dict[str, Any]) -> None:
        with self._opened() as file:
            file.write(json.dumps(event) + "\n")

    def sync(self) -> None:
        """Have the lines so far on the disk, before a checkpoint claims them."""
        with self._opened() as file:
            os.fsync(file.fileno())

    @contextmanager
    def _opened(self) -> Iterator[TextIO]:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                yield file
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror or error}; mend that and --resume"
            ) from error


def read(path: Path) -> list[dict[str, Any]]:
    """All whole events of a log."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
