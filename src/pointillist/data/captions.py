"""Captions as people keep them: a .txt beside every picture, or one table for all of them.

A table is `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, at the top of the folder or of a
split's, with file names relative to where it lies. What is no text costs its own caption, and
nothing else.
"""

import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pointillist.data.collection import SPLITS
from pointillist.data.report import Refused, shown
from pointillist.types import InputError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
COLUMNS = ("text", "caption", "captions")
BYTE_ORDERS = (b"\xff\xfe", b"\xfe\xff")  # with which UTF-16 begins


def beside(path: Path) -> tuple[str, ...]:
    """Captions in the .txt of the same name, one a line; InputError where it is no text."""
    try:
        text = _text(path.with_suffix(".txt").read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InputError(f"caption: {error.strerror}") from None
    if not _is_text(text):
        raise InputError("caption: it is not UTF-8")
    return cleaned(re.split(r"\r\n|\r|\n", text))


def metadata(root: Path, files: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[Refused]]:
    """Captions by file, all that the tables have for it, each once; and what could not be told:
    files that are not there, rows that are no text.
    """
    found: dict[str, dict[str, None]] = {}
    refused, there = [], set(files)
    folders = [root / name for names in SPLITS.values() for name in names]
    for path in (folder / name for folder in (root, *folders) for name in METADATA):
        if not path.is_file():
            continue
        place = path.relative_to(root).as_posix()
        for number, row in _table(path):
            name = row.get("file_name")
            if not isinstance(name, str):
                raise InputError(f"{path}, line {number} has no file_name; each row names a file")
            told = [one for column in COLUMNS for one in _several(path, number, column, row)]
            if not all(_is_text(one) for one in (name, *told)):
                refused.append(Refused(place, f"caption: line {number} is not UTF-8"))
                continue
            file = (path.parent.relative_to(root) / name).as_posix()
            if file not in there and file not in found:
                refused.append(Refused(file, f"missing: named by {place}, but not there"))
            found.setdefault(file, {}).update(dict.fromkeys(cleaned(told)))
    return {file: tuple(texts) for file, texts in found.items()}, refused


def _several(path: Path, number: int, column: str, row: dict[str, Any]) -> Iterator[str]:
    """The captions of one column: a text, a list of them, a list as JSON where the table is CSV."""
    value = row.get(column)
    if path.suffix == ".csv" and column == "captions" and str(value).lstrip().startswith("["):
        # A caption may begin with a bracket, too.
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(str(value))
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if one is None or (isinstance(one, float) and math.isnan(one)):
            continue  # a cell that is empty
        if not isinstance(one, str):
            raise InputError(f"{path}, line {number}: {column} is {shown(str(value)[:80])}; give a "
                             f"string or list of strings")  # fmt: skip
        yield one


def cleaned(texts: Iterable[str]) -> tuple[str, ...]:
    """Without blanks at the ends, and without such as hold nothing else."""
    return tuple(one.strip() for one in texts if one.strip())


def _text(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 that says so; bytes that are neither become lone surrogates."""
    if content.startswith(BYTE_ORDERS):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode("utf-16")
    return content.decode("utf-8-sig", "surrogateescape")


def _is_text(text: str) -> bool:
    """Whether it has no lone surrogate, which no encoding of text can hold."""
    return not any("\ud800" <= one <= "\udfff" for one in text)


def _table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a table with their numbers, as they are named to people."""
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        text = _text(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if path.suffix == ".csv":
        # A quote that is never closed would swallow all that follows as one caption.
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        limit = csv.field_size_limit(len(text) + 1)  # of the process; a caption may be a book
        try:
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
        finally:
            csv.field_size_limit(limit)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is not a JSON object; one a line is read")
        rows.append((number, row))
    return rows


def _parquet(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file, of the columns that are looked at alone."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(
            f"{path} takes pyarrow to be read; pip install 'pointillist[parquet]', or keep its "
            f"captions in metadata.jsonl"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in ("file_name", *COLUMNS) if name in file.schema_arrow.names]
            return list(enumerate(file.read(columns).to_pylist(), 1))
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read: {reason}; write it again") from None
