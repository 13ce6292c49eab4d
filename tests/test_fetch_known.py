"""Sets that are fetched by name: unpacked where they are looked for, or nothing is left."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from pointillist.data import fetch as fetch_file
from pointillist.data.cifar10 import FILES
from pointillist.data.fetch import KNOWN, Known, fetch
from pointillist.types import InputError

from .test_fetch import serving


@pytest.fixture
def server():
    with serving() as running:
        yield running


def archive(mode: str = "gz", **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{mode}") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name in ("../../escape.bin", "/tmp/absolute.bin"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("set/b.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


def known(server, monkeypatch, content: bytes) -> None:
    server.content = content
    files = {"a.bin": 3, "b.bin": 5}
    digest = hashlib.sha256(content).hexdigest()
    entry = Known(server.url, len(content), digest, "data/toy", files, "set")
    monkeypatch.setitem(KNOWN, "toy", entry)


def test_a_known_set_is_unpacked_where_it_is_looked_for(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known(server, monkeypatch, archive(**{"set/a.bin": b"one", "set/b.bin": b"three"}))
    got = fetch("toy")
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == ["data/toy/a.bin", "data/toy/b.bin"] and got.loaded
    assert (tmp_path / "data/toy/b.bin").read_bytes() == b"three"
    assert fetch("toy").loaded is False and len(server.asked) == 1
    (tmp_path / "data/toy/a.bin").write_bytes(b"other size")
    with pytest.raises(InputError, match="is already there and is not a whole toy"):
        fetch("toy")


def test_an_archive_that_lacks_a_file_leaves_no_folder(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known(server, monkeypatch, archive(**{"set/a.bin": b"one", "set/c.bin": b"three"}))
    with pytest.raises(InputError, match="lacks b.bin of 5 bytes"):
        fetch("toy")
    assert not (tmp_path / "data/toy").exists()
    known(server, monkeypatch, b"no archive")
    (tmp_path / "data/.x.bin").unlink()
    with pytest.raises(InputError, match="cannot be unpacked: [^\\n]*; remove"):
        fetch("toy")


@pytest.mark.parametrize("mode", ["gz", "xz", "bz2"])
def test_an_archive_that_is_damaged_inside_is_not_called_a_full_disk(
    server, tmp_path, monkeypatch, mode
):
    monkeypatch.chdir(tmp_path)
    raw = bytearray(archive(mode, **{"set/a.bin": b"one", "set/b.bin": bytes(range(256)) * 999}))
    raw[len(raw) * 2 // 3] ^= 255
    raw[-6] ^= 255
    known(server, monkeypatch, bytes(raw))
    message = "x.bin cannot be unpacked: .*; remove it and fetch again"
    with pytest.raises(InputError, match=message) as caught:
        fetch("toy")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data/toy").exists()


def test_an_archive_that_a_kill_left_is_taken_and_goes(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known(server, monkeypatch, archive(**{"set/a.bin": b"one", "set/b.bin": b"three"}))
    with monkeypatch.context() as killed:
        killed.setattr(fetch_file, "_unpack", _killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("toy")
    fetch("toy")
    assert len(server.asked) == 1
    assert sorted(p.name for p in Path("data").iterdir()) == ["toy"]


def _killed(*words):
    raise KeyboardInterrupt


def test_what_was_unpacked_by_hand_and_the_archive_beside_it_stay(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known(server, monkeypatch, archive(**{"set/a.bin": b"one", "set/b.bin": b"three"}))
    Path("data").mkdir()
    Path("data/x.bin").write_bytes(server.content)
    assert fetch("toy").loaded is False and not server.asked
    assert Path("data/x.bin").exists() and Path("data/toy/a.bin").exists()
    Path("other/set").mkdir(parents=True)
    for name in ("a.bin", "b.bin"):
        Path("data/toy", name).rename(Path("other/set", name))
    assert fetch("toy", Path("other")).loaded is False and not server.asked


def test_an_archive_of_another_length_is_not_loaded(server, tmp_path, monkeypatch):
    known(server, monkeypatch, b"an archive")
    server.content = b"Please log in to use this network."
    with pytest.raises(InputError, match="has 34 bytes instead of 10; check"):
        fetch("toy", tmp_path / "toy")
    assert not list(tmp_path.iterdir())


def test_the_address_of_cifar10_names_the_files_that_are_read():
    entry = KNOWN["cifar10"]
    assert set(entry.files) == {name for names in FILES.values() for name in names}
    assert len(entry.sha256) == 64 and entry.url.endswith("cifar-10-binary.tar.gz")


@pytest.mark.network
def test_cifar10_can_be_fetched(tmp_path):
    assert fetch("cifar10", tmp_path / "cifar10").loaded
