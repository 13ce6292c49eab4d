"""A field as its .npz file has it, checked: the array and the coordinates of each of its axes."""

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pointillist.types import InputError

# What numpy raises for an archive that is cut or damaged, its headers among it.
UNREADABLE = (ValueError, OSError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error,
              tokenize.TokenError)  # fmt: skip


class FieldFile(NamedTuple):
    """Values in float32, NaN where missing, and coordinates by axis, each of which rises."""

    path: Path
    name: str
    x: np.ndarray
    ticks: dict[str, np.ndarray]

    def without_last(self, axis: int) -> "FieldFile":
        """Without the last cells of an axis, which lie where the first do."""
        name = list(self.ticks)[axis]
        x = np.ascontiguousarray(np.delete(self.x, -1, axis))
        return self._replace(x=x, ticks={**self.ticks, name: self.ticks[name][:-1]})


def read_field(path: Path, variable: str) -> FieldFile:
    """The variable (none: the only one) of a file; InputError where it is no field."""
    if not path.is_file():
        raise InputError(f"data.path is {path}, which is no file; name the .npz file of the field")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path} holds one array without coordinates; save it as .npz")
            names = [name for name in file.files if "__" not in name]
            variable = names[0] if not variable and len(names) == 1 else variable
            if variable not in names:
                said = f"is {variable}" if variable else "is not set"
                raise InputError(f"data.variable {said}; {path} has {', '.join(names) or 'none'}")
            x = file[variable]
            begin = f"{variable}__"
            ticks = {n.removeprefix(begin): file[n] for n in file.files if n.startswith(begin)}
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as plain arrays ({error}); save it with "
                         f"numpy.savez") from None  # fmt: skip
    what = f"{path}: {variable}"
    if x.dtype.kind not in "fiu" or not 1 <= x.ndim <= 3:
        raise InputError(f"{what} is {x.dtype} with {x.ndim} axes; a field has numbers on 1 to 3")
    if len(ticks) != x.ndim:
        raise InputError(f"{what} has {x.ndim} axes and the coordinates {', '.join(ticks) or '-'}; "
                         f"put one array {begin}<axis> an axis beside it")  # fmt: skip
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and told so below
        x = x.astype(np.float32)
    if np.isinf(x).any():
        raise InputError(f"{what} holds infinite values; mark what is missing by NaN")
    if np.isnan(x).all():
        raise InputError(f"{what} is NaN everywhere; choose another data.variable")
    for axis, (name, values) in enumerate(ticks.items()):
        if values.shape != (x.shape[axis],) or values.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: {begin}{name} has shape {values.shape} of {values.dtype}, axis {axis} of "
                f"{variable} {x.shape[axis]} cells; give one number a cell"
            )
        steps = np.diff(values.astype(np.float64))
        if not ((steps > 0).all() or (steps < 0).all()) or not np.isfinite(values).all():
            raise InputError(f"{path}: {begin}{name} neither rises nor falls throughout; order the "
                             f"cells by their coordinate")  # fmt: skip
        if (steps < 0).any():
            x, values = np.flip(x, axis), values[::-1]
        ticks[name] = values.astype(np.float64)
    return FieldFile(path, variable, np.ascontiguousarray(x), ticks)
