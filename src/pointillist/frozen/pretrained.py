"""What all networks of others share: where a name leads, errors in a sentence, a digest."""

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from pointillist.engine.device import is_out_of_memory
from pointillist.types import InputError


def expanded(name: str) -> str:
    """A folder below one's home by its whole path; any other name as it is."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def may_be_hub_id(name: str) -> bool:
    """Whether a name that is no folder can be one: OWNER/NAME."""
    return name[:1] not in ("", ".", "/", "~") and name.count("/") == 1


def version(name: str) -> tuple[tuple[str, int], ...]:
    """A folder may change in one process; what the hub has under an id does not."""
    folder = sorted(Path(name).glob("*")) if Path(name).is_dir() else []
    return tuple((str(path), path.stat().st_mtime_ns) for path in folder)


class told:
    """Turns what a library raises about `what` into one sentence, and keeps its warnings back."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy, self.warnings = what, remedy, warnings.catch_warnings()

    def __enter__(self) -> None:
        self.warnings.__enter__()
        warnings.simplefilter("ignore")  # of arguments that it gives to the hub's library itself

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.warnings.__exit__(kind, error, trace)
        # It names no error that it would keep to: whatever comes is about this network, but for the
        # memory, of which others tell more.
        if not isinstance(error, Exception) or isinstance(error, InputError):
            return
        if not is_out_of_memory(error):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(f"{self.what} cannot be loaded ({first}); {self.remedy}") from None


def digest(text: str, weights: Iterable[tuple[str, Tensor]]) -> str:
    """Of a text and of named weights, in the order given."""
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name, value in weights:
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()
