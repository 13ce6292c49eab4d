"""Reconstruct and upscale by command: a mistake is one sentence before anything is drawn."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reconstruct_case import HINTS, SIZE, colours, small_run, speaker, table, write


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    return speaker(monkeypatch, capsys, tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that knows hints."""
    return small_run(tmp_path_factory, "run", *HINTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A run that was never shown anything."""
    return small_run(tmp_path_factory, "plain")


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + check


# A few bytes that ask for a picture of 40,000 x 40,000.
EDGE = (40_000).to_bytes(4, "big")
HUGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", EDGE + EDGE + b"\x08\x00\x00\x00\x00")
HUGE += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
TABLES = {
    "missing": "x,y,r,g\n0,0,1,1\n",
    "outside": "x,y,r,g,b\n32,0,1,1,1\n",
    "scale": "x,y,r,g,b\n0,0,0.5,0.25,1\n",
    "nan": "x,y,r,g,b\n0,0,nan,1,1\n",
    "none": "x,y,r,g,b\n",
}


@pytest.fixture
def files(tmp_path):
    """Inputs that are wrong, each in its own way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        write("a.png", colours())
        Path("b").mkdir(), write("b/a.png", colours(seed=1))
        write("tiny.png", colours(2, 2))
        write("odd.png", colours(31, 32))
        write("clear.png", np.full((SIZE, SIZE, 4), 99, np.uint8))
        write("black.png", np.zeros((SIZE, SIZE), np.uint8))
        half = np.zeros((SIZE, SIZE), np.uint8)
        half[:8] = 255
        write("half.png", half)
        write("small.png", half[:, :8])
        half[3, 4] = 77
        write("grey.png", half)
        write("maskclear.png", np.full((SIZE, SIZE, 4), 255, np.uint8))
        Path("text.png").write_text("no picture")
        Path("huge.png").write_bytes(HUGE)
        for name, text in TABLES.items():
            Path(f"{name}.csv").write_text(text)
        table("good.csv", np.eye(SIZE) > 0, colours())
    return tmp_path


KEEP = ("--keep", "0.2")
BAD: list[tuple[tuple[str, ...], str]] = [
    (("a.png",), "none of --keep, --mask, --points given; give one of them"),
    (("a.png", *KEEP, "--mask", "half.png"), "--keep and --mask given; give one of them"),
    (KEEP, "no INPUT is given; --keep needs a picture"),
    (("a.png", "b/a.png", "--points", "good.csv"), "2 inputs are given; --points tells of one"),
    (("a.png", "--mask", "small.png"), "small.png has 32x8 pixels, the picture 32x32; give a mask"),
    (("a.png", "--mask", "black.png"), "black.png is black everywhere, so nothing is known"),
    (("a.png", "--mask", "grey.png"), "grey.png is 77 at x 4, y 3; a mask is 0 (asked for) or 255"),
    (("a.png", "--mask", "maskclear.png"), "maskclear.png has an alpha channel"),
    (("a.png", "--mask", "gone.png"), "gone.png cannot be read as a picture: No such file"),
    (("a.png", "--keep", "0"), "--keep is 0; it lies in (0, 1]"),
    (("a.png", "--keep", "1.5"), "--keep is 1.5; it lies in (0, 1]"),
    (("a.png", "--keep", "nan"), "--keep is nan; it lies in (0, 1]"),
    (("a.png", "--keep", "0.0001"), "--keep is 0.0001, which of 1,024 pixels is none; raise it"),
    (("--points", "missing.csv"), "missing.csv has columns x, y, r, g; it needs x, y, r, g, b"),
    (("--points", "outside.csv"), "outside.csv, line 2: x is 32, outside of the picture; it lies"),
    (("--points", "scale.csv"), "colours between 0 and 1 in columns r, g, b, which run from 0 to"),
    (("--points", "nan.csv"), "nan.csv, line 2: r is 'nan'; it must be a number"),
    (("--points", "none.csv"), "none.csv holds no pixel"),
    (("--points", "gone.csv"), "gone.csv cannot be read: No such file"),
    (("clear.png", *KEEP), "clear.png has an alpha channel"),
    (("gone.png", *KEEP), "gone.png cannot be read as a picture: No such file"),
    (("b", *KEEP), "b cannot be read as a picture: Is a directory"),
    (("huge.png", *KEEP), "huge.png cannot be read as a picture: "),
    (("a.png", "--mask", "huge.png"), "huge.png cannot be read as a picture: "),
    (("text.png", *KEEP), "text.png cannot be read as a picture: "),
    (("tiny.png", "--keep", "0.5"), "size 2x2 is no multiple of the patch size 4; 4x4 would do"),
    (("odd.png", *KEEP), "size 31x32 is no multiple of the patch size 4; 32x32 would do"),
    (("a.png", "odd.png", *KEEP), "size 31x32 is no multiple of the patch size 4; 32x32 would do"),
    (("a.png", *KEEP, "--size", "30x30"), "size 30x30 is no multiple of the patch size 4"),
    (("a.png", *KEEP, "--size", "8x8"), "seen lies on 32x32 cells, the pictures have 8x8; give it"),
    (("a.png", *KEEP, "--size", "64x32"), "or a coarser one of the same aspect ratio"),
    (("a.png", *KEEP, "--size", "32x32x32"), "size 32x32x32 has 3 axes; the run has 2"),
    (("a.png", *KEEP, "--size", "big"), "--size is big; it is HxW"),
    (("a.png", "b/a.png", *KEEP), "two inputs are named a; rename one"),
    (("a.png", *KEEP, "--draws", "0"), "draws is 0; it is 1 or more"),
    (("a.png", *KEEP, "--draws", "9", "--interval", "0.9"), "interval: level is 0.9, but 9 draws"),
    (("a.png", *KEEP, "--draws", "1", "--interval", "0.8"), "1 draw can express none"),
    (("a.png", *KEEP, "--noise", "-0.1"), "noise is -0.1; "),
    (("a.png", *KEEP, "--noise", "nan"), "noise is nan; "),
    (("a.png", *KEEP, "--label", "99"), "label is 99"),
    (("a.png", *KEEP, "--out", "a.png"), "cannot be written"),
    (("a.png", *KEEP, "model.width=64"), "model.width=64: a run folder describes itself; only sam"),
    (("a.png", *KEEP, "seed=3"), "seed=3: a run folder describes itself; only sample.* may be set"),
    (("a.png", *KEEP, "sample.consistency.kind=dpss"), "sample.consistency"),
    (("a.png", *KEEP, "sample.stepps=3"), "stepps"),
]
WORSE: list[tuple[tuple[str, ...], str]] = [
    (("a.png",), "give either --size or --scale"),
    (("a.png", "--scale", "2", "--size", "64x64"), "give either --size or --scale"),
    (("a.png", "--scale", "1"), "scale is 1; it is 2 or more"),
    (("a.png", "--size", "32x32"), "a.png: size is 32x32, the picture has 32x32; ask for a finer"),
    (("a.png", "--size", "8x64"), "size is 8x64, the picture has 32x32; ask for a finer grid"),
    (("a.png", "--size", "64x64x64"), "size is 64x64x64, the picture has 32x32; give as many axes"),
    (("a.png", "--size", "34x34"), "size 34x34 is no multiple of the patch size 4"),
    (("a.png", "--size", "64x96"), "or a coarser one of the same aspect ratio"),
    (("a.png", "b/a.png", "--scale", "2"), "two inputs are named a; rename one"),
    (("clear.png", "--scale", "2"), "clear.png has an alpha channel"),
    (("a.png", "--scale", "2", "--draws", "0"), "draws is 0; it is 1 or more"),
    (("a.png", "--scale", "2", "task.absent=1"), "task.absent=1: a run folder describes itself"),
    (("sample.steps=1", "--scale", "2"), "no INPUT is given; upscale needs a picture"),
]


@pytest.mark.parametrize(
    ("words", "message"),
    [(("reconstruct", "RUN", *words), message) for words, message in BAD]
    + [(("upscale", "RUN", *words), message) for words, message in WORSE],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_exit_2_before_anything_is_drawn(
    say, run, files, monkeypatch, words, message
):
    def walked(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr("pointillist.answer.Walk.__call__", walked)
    before = sorted(files.rglob("*"))
    said = say(*(run if word == "RUN" else word for word in words))
    assert said.code == 2 and message in said.err
    assert said.err.startswith("pointillist: ") and said.err.count("\n") == 1
    assert said.out == "" and sorted(files.rglob("*")) == before


def test_a_run_that_takes_no_hints_says_which_does(say, plain, files):
    said = say("reconstruct", plain, "a.png", *KEEP)
    assert said.code == 2 and "takes no hints; train one with model.encoder.kind=grid" in said.err


def test_a_task_that_leaves_nothing_to_ask_is_refused_before_training(say):
    scatter = ("train", "debug", "model.encoder.kind=grid", "task.kind=scatter",
               "task.cond_fraction=1")  # fmt: skip
    said = say(*scatter, "task.reveal=kept")
    assert said.code == 2 and "task.cond_fraction is 1 and task.reveal kept" in said.err
    said = say(*scatter, "task.sparsity=1")
    assert said.code == 2 and "so nothing is left to ask" in said.err
    assert said.err.count("\n") == 1 and not Path("runs").exists()
