"""Downloads: going on where an earlier try ended, and checked before they count.

urllib alone: one request after the other is all there is to it. A file grows as `.NAME.part` beside
its place, with `.NAME.part.json` to say which address and which version of it the part belongs to;
only a whole file with the right checksum is moved there.
"""

import contextlib
import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pointillist.data.cifar10 import FILES, RECORD, RECORDS
from pointillist.engine.checkpoint import write_atomically, write_text
from pointillist.types import InputError

SCHEMES = ("http", "https")
TRIES, PAUSE, TIMEOUT = 4, 1.0, 30.0  # seconds
CHUNK = 1 << 16  # what a connection that is cut may cost
Watch = Callable[[int, int | None], Any]


class Known(NamedTuple):
    """A set that can be fetched by name: its archive, and the files of it that are kept."""

    url: str
    bytes: int
    sha256: str
    out: str
    files: dict[str, int]  # by name, with the bytes that each has
    inner: str = "."  # the folder in `out` where the whole archive, unpacked by hand, has them


KNOWN = {
    "cifar10": Known(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "data/cifar10",
        {name: RECORDS * RECORD for names in FILES.values() for name in names},
        "cifar-10-batches-bin",
    )
}


class Fetched(NamedTuple):
    """Where it is, what was checked ("" for a set that was unpacked before: its files have the
    right sizes), and whether anything had to be loaded.
    """

    out: Path
    bytes: int
    sha256: str
    loaded: bool


def fetch(
    source: str, out: Path | None = None, sha256: str | None = None, watch: Watch | None = None
) -> Fetched:
    """A known set, unpacked into the folder `out`, or any address, as the file `out`.

    InputError names what went wrong; what was loaded until then is kept for the next try, unless
    its checksum is wrong.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 is {sha256}; it has 64 digits of 0-9 and a-f")
    known = KNOWN.get(source)
    if known is None:
        name = _last_name(source)
        if out is None and (name in ("", ".", "..") or not name.isprintable()):
            raise InputError(f"{source} ends in no file name; say --out FILE")
        return download(source, out or Path("data") / name, sha256, watch)
    folder = out or Path(known.out)
    if _whole(folder, known.files) or _whole(folder / known.inner, known.files):
        return Fetched(folder, sum(known.files.values()), "", False)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is already there and is not a whole {source}; choose another "
                         f"--out, or remove it")  # fmt: skip
    archive = folder.parent / known.url.rpartition("/")[2]
    # One that lies there is not ours to remove; ours is hidden, and goes even after a kill.
    ours = archive.with_name("." + archive.name)
    archive = archive if archive.exists() else ours
    size = known.bytes if sha256 in (None, known.sha256) else None
    got = download(known.url, archive, sha256 or known.sha256, watch, size)
    write_atomically(folder, lambda draft: _unpack(archive, draft, known.files))
    ours.unlink(missing_ok=True)
    return Fetched(folder, got.bytes, got.sha256, got.loaded)


def _last_name(url: str) -> str:
    """The file name that an address ends in; InputError for what is no http address."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url} is no address: {error}; write http://host/path") from None
    if parts.scheme not in SCHEMES:
        raise InputError(f"{url} is neither a known set ({', '.join(KNOWN)}) nor an http or "
                         f"https address")  # fmt: skip
    return unquote(parts.path).rstrip("/").rpartition("/")[2]


def _whole(folder: Path, files: dict[str, int]) -> bool:
    return all((folder / name).is_file() and (folder / name).stat().st_size == size
               for name, size in files.items())  # fmt: skip


def download(
    url: str, out: Path, sha256: str | None = None, watch: Watch | None = None,
    size: int | None = None,
) -> Fetched:  # fmt: skip
    """The file behind an address; a file that is already right is not loaded again.

    `size` is what it must have, where that is known.
    """
    if out.is_dir():
        raise InputError(f"--out is {out}, a folder; name a file in it")
    wanted = sha256.lower() if sha256 else None
    if out.exists():
        found = _digest(out)
        if wanted is not None and found == wanted:
            return Fetched(out, out.stat().st_size, found, False)
        why = (
            "its sha256 is another" if wanted else "only --sha256 could tell whether it is the same"
        )
        raise InputError(f"{out} is already there, and {why}; choose another --out, or remove it")
    part = out.parent / f".{out.name}.part"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out, part):
            _load(url, part, watch, size)
            found = _digest(part)
            if wanted is not None and found != wanted:
                _forget(part)
                raise InputError(f"{url} has sha256 {found}, expected {wanted}; it was not kept: "
                                 f"check the address and the checksum")  # fmt: skip
            os.replace(part, out)
            _forget(part)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}; what is there is "
                         f"kept, mend that and fetch again") from error  # fmt: skip
    return Fetched(out, out.stat().st_size, found, True)


@contextlib.contextmanager
def _alone(out: Path, part: Path) -> Iterator[None]:
    """Hold the part: what two processes append to it would be neither's file."""
    path = part.with_name(part.name + ".lock")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.fstat(file.fileno()).st_nlink  # let go, and removed, just now
        except BlockingIOError:
            taken = True
        if taken:
            raise InputError(f"{out} is being loaded by another process; wait for it, or choose "
                             f"another --out")  # fmt: skip
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


# Loading.


class Broken(Exception):
    """The connection ended too early; trying again goes on from there."""


def _load(url: str, part: Path, watch: Watch | None, size: int | None) -> None:
    """Fill `part` until it is whole, over several connections if need be."""
    for number in range(1, TRIES + 1):
        try:
            _once(url, part, watch, size)
            return
        except Broken as broken:
            if number == TRIES:
                have = part.stat().st_size if part.exists() else 0
                raise InputError(f"{url} broke off {TRIES} times ({broken}); {have} bytes are "
                                 f"kept, fetch again to go on") from None  # fmt: skip
            time.sleep(PAUSE * number)


def _once(url: str, part: Path, watch: Watch | None, size: int | None) -> None:
    """One connection: ask for what is missing, and append it."""
    note = part.with_name(part.name + ".json")
    have, version, expected = _resumable(url, part, note)
    # Another version than the part's is sent whole.
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    reply = _ask(url, headers)
    if reply is None:  # nothing is left to send
        if have == expected:
            return
        _forget(part)
        raise Broken("the part did not fit the file")
    with reply:
        said = [reply.headers.get(name) for name in ("ETag", "Last-Modified")]
        # A weak tag may stand for other bytes; it cannot vouch for a part.
        marks = [mark for mark in said if mark and not mark.startswith("W/")]
        length = reply.headers.get("Content-Length")
        if have and reply.status == 206:
            span = re.match(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != have:
                _forget(part)
                raise Broken("the server sent another part than was asked for")
            # A server may send less than the rest, so the length of its reply is not the end.
            total = int(span[2]) if span[2] != "*" else expected or size
            # Nor does every server that knows ranges look at If-Range.
            if (marks and version not in marks) or total != (expected or total):
                _forget(part)
                raise Broken("the file has changed meanwhile")
        elif reply.status == 200:
            have = 0  # a server without ranges begins anew
            total = int(length) if length and length.isdecimal() else size
            version = marks[0] if marks else ""
        else:
            raise InputError(f"{url} answers HTTP {reply.status} {reply.reason}, which is no file; "
                             f"check the address")  # fmt: skip
        if size is not None and total != size:
            raise InputError(f"{url} has {total} bytes instead of {size}; check that it is reached "
                             f"without a page in between")  # fmt: skip
        write_text(note, json.dumps({"url": url, "version": version, "total": total}))
        with part.open("ab" if have else "wb") as file:
            for block in _blocks(reply):
                have += len(block)
                if total is not None and have > total:
                    break
                file.write(block)
                if watch is not None:
                    watch(have, total)
            file.flush()
            os.fsync(file.fileno())  # before the name says that it is whole
    if total is not None and have > total:
        _forget(part)
        raise Broken(f"the server sent more than the {total} bytes there are")
    if total is not None and have < total:
        raise Broken(f"{have} of {total} bytes")


def _ask(url: str, headers: dict[str, str]) -> HTTPResponse | None:
    """The reply to one request; None where the server has no byte of the range asked for."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "pointillist", **headers})
        return OPENER.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and headers:
                return None
            said = " ".join(f"HTTP {error.code} {error.reason}".split())
            if error.code in (408, 425, 429) or error.code >= 500:
                raise Broken(said) from None
            raise InputError(f"{url} answers {said}; check the address") from None
    except urllib.error.URLError as error:
        raise InputError(f"{url} cannot be reached: {error.reason}; check the network and the "
                         f"address") from None  # fmt: skip
    except (InvalidURL, ValueError) as error:  # the second where a letter is not ASCII
        raise InputError(f"{url} is no address: {error}; write http://host/path, and blanks and "
                         f"letters beyond ASCII as %20") from None  # fmt: skip
    except (HTTPException, OSError) as error:
        raise Broken(str(error) or type(error).__name__) from None


def _blocks(reply: HTTPResponse) -> Iterator[bytes]:
    """What the reply holds; an error here is the connection's, where one in writing is not."""
    try:
        while block := reply.read(CHUNK):
            yield block
    except (HTTPException, OSError) as error:
        raise Broken(str(error) or type(error).__name__) from None


class Redirects(urllib.request.HTTPRedirectHandler):
    """Stays with http and https, where urllib would follow to ftp too."""

    def redirect_request(self, *words: Any) -> urllib.request.Request | None:
        *_, target = words
        return super().redirect_request(*words) if urlsplit(target).scheme in SCHEMES else None


OPENER = urllib.request.build_opener(Redirects)


def _resumable(url: str, part: Path, note: Path) -> tuple[int, str, int | None]:
    """How many bytes are there, of which version and of how many; none where nobody can tell."""
    try:
        said = json.loads(note.read_text("utf-8"))
        if said["url"] == url and said["version"]:
            return part.stat().st_size, said["version"], said["total"]
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return 0, "", None


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Unpacking.


def _unpack(archive: Path, draft: Path, files: dict[str, int]) -> None:
    """The expected files, found by their last name, and nothing else of the archive."""
    draft.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name not in files or not member.isfile() or member.size != files[name]:
                    continue
                content = tar.extractfile(member)
                assert content is not None
                with content, (draft / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not a decoder's
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{archive} cannot be unpacked: {reason}; remove it and fetch "
                         f"again") from None  # fmt: skip
    lacking = [name for name in files if not (draft / name).is_file()]
    if lacking:
        raise InputError(f"{archive} lacks {lacking[0]} of {files[lacking[0]]} bytes; remove it "
                         f"and fetch again")  # fmt: skip
