"""Checkpoints: groups of tensors in sharded safetensors, the rest in JSON; complete or absent.

A checkpoint is written beside its final place, synced, and renamed, so a power cut or a full disk
leaves the earlier ones untouched. `state.json` lists every file with its size and digest, and a
file that no longer agrees is refused by name. Nothing here is, or reads, a pickle.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pointillist.types import InputError

SHARD_BYTES = 2 << 30


@runtime_checkable
class Group(Protocol):
    """Named tensors; a dict, or what makes each only when its turn to be written has come."""

    def items(self) -> Iterable[tuple[str, Tensor]]: ...


Groups = Mapping[str, Group]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder beside `path`, sync it, and move it there in one step."""
    draft = path.parent / f".{path.name}.draft"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(draft)
        write(draft)
        for part in [*draft.rglob("*"), draft] if draft.is_dir() else [draft]:
            _sync(part)
        if path.is_dir():
            _remove(path)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        _discard(draft)
        raise InputError(_unwritable(path, error)) from error
    except BaseException:
        _discard(draft)
        raise


def _discard(draft: Path) -> None:
    with contextlib.suppress(OSError):
        _remove(draft)


def _unwritable(path: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, 0)
    remedy = "free some space and try again" if full else "choose a place that can be written"
    return f"{path} cannot be written: {error.strerror or error}; {remedy}"


def check_writable(path: Path) -> None:
    """InputError now, rather than after the work, where nothing can be written at `path`."""
    draft = path.parent / f".{path.name}.draft"
    made = [folder for folder in draft.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(draft)  # what a process that was killed left there, a folder perhaps
        draft.touch()
        draft.unlink()
        for folder in made:  # the innermost first; the work may yet be refused
            folder.rmdir()
    except OSError as error:
        raise InputError(_unwritable(path, error)) from error


def write_text(path: Path, text: str) -> None:
    """A text file, complete or absent."""
    write_atomically(path, lambda draft: _write(draft, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _shards(tensors: Group, limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, value in tensors.items():
        if shard and size + value.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = value.detach().cpu().contiguous()
        size += value.nbytes
    yield shard


def save(
    folder: Path, groups: Groups, facts: dict[str, Any], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write one checkpoint folder: `group-00001.safetensors` ..., and `state.json`."""

    def write(draft: Path) -> None:
        draft.mkdir()
        files: dict[str, dict[str, Any]] = {}
        for group, tensors in groups.items():
            for number, shard in enumerate(_shards(tensors, shard_bytes), 1):
                name = f"{group}-{number:05d}.safetensors"
                try:
                    save_file(shard, draft / name)
                except SafetensorError as error:
                    # The library hides the system's own error; a full disk is the usual one.
                    left = shutil.disk_usage(draft).free
                    raise OSError(0, f"{name}: {error} ({left} bytes left on the disk)") from error
                path = draft / name
                files[name] = {
                    "group": group, "bytes": path.stat().st_size, "blake2b": _digest(path)
                }  # fmt: skip
        _write(draft / "state.json", json.dumps({"files": files, **facts}, indent=1))

    write_atomically(folder, write)


def facts_of(folder: Path) -> dict[str, Any]:
    """What `state.json` says."""
    path = folder / "state.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        whole = all(
            {"group", "bytes", "blake2b"} <= fact.keys() for fact in facts["files"].values()
        )
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(
            f"{path} is missing or damaged; delete {folder} to use an earlier checkpoint"
        )
    return facts


def load(folder: Path, group: str, device: str = "cpu") -> dict[str, Tensor]:
    """One group of tensors; InputError names a file that is missing or not as it was written."""
    tensors: dict[str, Tensor] = {}
    for name, fact in facts_of(folder)["files"].items():
        if fact["group"] != group:
            continue
        path = folder / name
        remedy = f"delete {folder} to use an earlier checkpoint"
        if not path.is_file():
            raise InputError(f"{path} is missing; {remedy}")
        if path.stat().st_size != fact["bytes"] or _digest(path) != fact["blake2b"]:
            raise InputError(f"{path} is damaged, it is not what was written; {remedy}")
        tensors.update(load_file(path, device=device))
    return tensors


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints below `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.name.isdigit() and (p / "state.json").is_file())
    return sorted(found, key=lambda p: int(p.name))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; 0 keeps all."""
    for old in complete(folder)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
