"""Downloads from real servers on this machine: whole, cut off, changed, wrong."""

import contextlib
import hashlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from pointillist.data import fetch as fetch_file
from pointillist.data.fetch import download, fetch
from pointillist.types import InputError

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetch_file, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def python_server(tmp_path_factory):
    """`python -m http.server`, which knows no ranges."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "a file.bin").write_bytes(CONTENT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1",
               "--directory", str(folder)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


def test_a_file_is_loaded_checked_and_not_loaded_twice(python_server, tmp_path):
    url, out = f"{python_server}/a%20file.bin", tmp_path / "deep" / "x.bin"
    seen = []
    got = fetch(url, out, SHA, lambda done, total: seen.append((done, total)))
    assert got == (out, len(CONTENT), SHA, True) and out.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in out.parent.iterdir()] == ["x.bin"]  # nothing is left beside it
    assert fetch(url, out, SHA.upper()).loaded is False


def test_without_out_the_name_is_that_of_the_address(python_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fetch(f"{python_server}/a%20file.bin?x=1").out == Path("data/a file.bin")


def test_a_wrong_checksum_leaves_nothing(python_server, tmp_path):
    with pytest.raises(InputError, match=f"has sha256 {SHA}, expected {'0' * 64}; it was not kept"):
        fetch(f"{python_server}/a%20file.bin", tmp_path / "x", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_one_sentence(python_server, tmp_path):
    with pytest.raises(InputError, match="answers HTTP 404 .*; check the address"):
        fetch(f"{python_server}/none.bin", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_part_for_a_server_without_ranges_begins_anew(python_server, tmp_path):
    url, out = f"{python_server}/a%20file.bin", tmp_path / "x"
    with urllib.request.urlopen(url) as reply:
        mark = reply.headers["Last-Modified"]
    (tmp_path / ".x.part").write_bytes(CONTENT[:1000])
    note = {"url": url, "version": mark, "total": len(CONTENT)}
    (tmp_path / ".x.part.json").write_text(json.dumps(note))
    assert fetch(url, out, SHA).out.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("source", "sha", "message"),
    [("ftp://x/y", None, "neither a known set .*nor an http or https address"),
     ("mnist", None, "mnist is neither a known set"), ("http://127.0.0.1/", None, "say --out FILE"),
     ("file:///etc/passwd", None, "nor an http"), ("cifar10", "abc", "--sha256 is abc; it has 64"),
     ("http://127.0.0.1/a b", None, "is no address: .*as %20"),
     ("http://127.0.0.1/é", None, "is no address"), ("http://[x/y", None, "is no address"),
     ("http://127.0.0.1:port/x", None, "is no address: nonnumeric port"),
     ("http://127.0.0.1/x%00", None, "say --out FILE")],
)  # fmt: skip
def test_a_wrong_request_is_one_sentence(source, sha, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        fetch(source, None, sha)


def test_places_that_are_taken_are_left_alone(tmp_path):
    with pytest.raises(InputError, match="a folder; name a file in it"):
        download("http://127.0.0.1:1/x", tmp_path)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(InputError, match="already there, and only --sha256"):
        download("http://127.0.0.1:1/x", tmp_path / "x")
    with pytest.raises(InputError, match="already there, and its sha256 is another"):
        download("http://127.0.0.1:1/x", tmp_path / "x", SHA)
    assert (tmp_path / "x").read_text() == "mine"


def test_a_server_that_is_not_there_is_one_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="cannot be reached: .*; check the network"):
        fetch(f"http://127.0.0.1:{port}/x", tmp_path / "x")


# A server that knows ranges, and breaks off where it is told to.


class Server(http.server.ThreadingHTTPServer):
    tag, content, busy = '"one"', CONTENT, 0
    heeds_if_range, most, stalls = True, len(CONTENT), 0.0  # most: bytes in the reply to a range
    endless = False  # a reply to a range goes on after the end
    answer: tuple[int, str] | None = None  # a status and a Location, in place of the file

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.cuts = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/x.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.busy:
            self.server.busy -= 1
            self.send_error(503)
            return
        if self.server.answer:
            self.send_response(self.server.answer[0])
            self.send_header("Location", self.server.answer[1])
            self.end_headers()
            return
        time.sleep(self.server.stalls)
        content, first = self.server.content, 0
        same = self.headers.get("If-Range") == self.server.tag or not self.server.heeds_if_range
        if wanted and same:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                self.send_error(416)
                return
        end = min(len(content), first + self.server.most) if first else len(content)
        self.send_response(206 if first else 200)
        self.send_header("ETag", self.server.tag)
        if not (self.server.endless and first):
            self.send_header("Content-Length", str(end - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.end_headers()
        stop = self.server.cuts.pop(0) if self.server.cuts else end
        with contextlib.suppress(ConnectionError):  # who asked may have gone
            self.wfile.write(content[first:stop])
            while self.server.endless and first:
                self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def serving():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def server():
    with serving() as running:
        yield running


def test_a_download_that_breaks_off_goes_on_where_it_ended(server, tmp_path):
    server.cuts = [1000, 500_000]
    assert fetch(server.url, tmp_path / "x", SHA).out.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=500000-"]


def test_a_truncated_download_is_told_and_a_second_call_resumes(server, tmp_path):
    server.cuts = [1000, 1000, 2000, 2000]
    with pytest.raises(InputError, match=r"broke off 4 times .*2000 bytes are kept, fetch again"):
        fetch(server.url, tmp_path / "x", SHA)
    assert not (tmp_path / "x").exists()
    server.asked.clear()
    assert fetch(server.url, tmp_path / "x", SHA).out.read_bytes() == CONTENT
    assert server.asked == ["bytes=2000-"]


def test_a_file_that_changed_meanwhile_begins_anew(server, tmp_path):
    server.cuts = [1000] * 4
    with pytest.raises(InputError, match="broke off"):
        fetch(server.url, tmp_path / "x")
    server.tag, server.content = '"two"', CONTENT[::-1]
    assert fetch(server.url, tmp_path / "x").out.read_bytes() == CONTENT[::-1]


def test_a_server_that_sends_a_part_of_another_version_is_not_believed(server, tmp_path):
    server.cuts = [1000] * 4
    with pytest.raises(InputError, match="broke off"):
        fetch(server.url, tmp_path / "x")
    server.tag, server.content, server.heeds_if_range = '"two"', CONTENT[::-1], False
    server.asked.clear()
    assert fetch(server.url, tmp_path / "x").out.read_bytes() == CONTENT[::-1]
    assert server.asked == ["bytes=1000-", None]


def test_a_part_shorter_than_asked_for_is_not_the_end(server, tmp_path):
    server.cuts, server.most = [1000], 500_000
    assert fetch(server.url, tmp_path / "x").out.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=501000-", "bytes=1001000-"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [((204, ""), "HTTP 204 No Content, which is no file"), ((403, ""), "HTTP 403 Forbidden; check"),
     ((302, "ftp://127.0.0.1/x"), "HTTP 302 Found; check"),
     ((302, "/x.bin"), "HTTP 302 .* infinite loop. The last .*; check")],
)  # fmt: skip
def test_an_answer_that_is_no_file_is_one_sentence(server, tmp_path, answer, message):
    server.answer = answer
    with pytest.raises(InputError, match=message) as caught:
        fetch(server.url, tmp_path / "x")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_server_that_stalls_is_not_waited_for_without_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_file, "TIMEOUT", 0.05)
    server.stalls = 0.2
    with pytest.raises(InputError, match="broke off 4 times .timed out"):
        fetch(server.url, tmp_path / "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_apart_from_a_broken_connection(server, tmp_path):
    (tmp_path / ".x.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match="x cannot be written: No space left on device"):
        fetch(server.url, tmp_path / "x")
    assert len(server.asked) == 1


def test_a_connection_that_is_lost_is_not_called_a_full_disk(server, tmp_path, monkeypatch):
    def lost(*words):
        raise OSError(113, "No route to host")

    monkeypatch.setattr("http.client.HTTPResponse.read", lost)
    with pytest.raises(InputError, match="broke off 4 times .*No route to host"):
        fetch(server.url, tmp_path / "x")


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    server.cuts = [1000] * 4
    with pytest.raises(InputError, match="broke off"):
        fetch(server.url, tmp_path / "x")
    server.asked.clear()
    fetch(server.url + "?other", tmp_path / "x")
    assert server.asked == [None]


def test_a_whole_part_needs_nothing_more(server, tmp_path):
    (tmp_path / ".x.part").write_bytes(CONTENT)
    note = {"url": server.url, "version": server.tag, "total": len(CONTENT)}
    (tmp_path / ".x.part.json").write_text(json.dumps(note))
    assert fetch(server.url, tmp_path / "x", SHA).bytes == len(CONTENT)
    (tmp_path / ".y.part").write_bytes(CONTENT + b"more")
    (tmp_path / ".y.part.json").write_text(json.dumps(note))
    assert fetch(server.url, tmp_path / "y", SHA).bytes == len(CONTENT)


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.busy = 2
    assert fetch(server.url, tmp_path / "x", SHA).loaded
    server.busy = 9
    with pytest.raises(InputError, match="broke off 4 times .HTTP 503"):
        fetch(server.url, tmp_path / "y", SHA)


def test_a_reply_without_end_is_cut_at_the_length_it_promised(server, tmp_path):
    server.cuts, server.endless = [1000], True
    assert fetch(server.url, tmp_path / "x").out.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", None]


def test_two_processes_do_not_write_into_one_part(server, tmp_path):
    server.stalls = 0.5
    first = threading.Thread(target=fetch, args=(server.url, tmp_path / "x", SHA))
    first.start()
    while not server.asked:
        time.sleep(0.01)
    with pytest.raises(InputError, match="x is being loaded by another process; wait for it"):
        fetch(server.url, tmp_path / "x", SHA)
    first.join()
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
