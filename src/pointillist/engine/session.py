"""One process at a time in a run folder, and a polite end when it is asked to stop."""

import fcntl
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pointillist.types import InputError


class Interrupted(Exception):
    """Asked to stop; the state was saved."""


@contextmanager
def locked(folder: Path, wait: bool = False, name: str = ".lock") -> Iterator[None]:
    """Hold the folder; the system lets go even when the process is killed.

    With `wait` until another process lets go of it, otherwise InputError where one holds it. Locks
    of several names are held side by side: one process may need a folder for two purposes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("w")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InputError(
                f"{folder} is in use by another run; wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise InputError(
                f"{folder} cannot be locked: {error.strerror}; choose a folder on another disk"
            ) from error
        yield


class StopRequest:
    """Whether SIGINT or SIGTERM has come; a second signal acts at once, as ever."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: whoever owns it decides
                break
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.__exit__()

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()
