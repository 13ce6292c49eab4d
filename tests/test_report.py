"""The report of a set: counts that are right, and names that cannot write over a terminal."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointillist import cli
from pointillist.data import FolderConfig
from pointillist.data.report import check, facts, lines, shown
from pointillist.data.source import InMemory
from pointillist.types import InputError, Spec, grid_axes

ESCAPE = "a\x1b[2J\nb"


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder as somebody else's archive may leave it."""
    for name in (ESCAPE, "plain ü"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / name / f"{i}.png")
    (tmp_path / ESCAPE / f"{ESCAPE}.png").write_bytes(b"no picture")
    return tmp_path


def test_names_of_files_and_classes_are_printed_on_one_line(odd):
    report = check(FolderConfig(path=str(odd), size=8))
    text = lines(report)
    assert not any(shown(line) != line for line in text)
    assert any(r"a\x1b[2J\nb (2), plain ü (2)" in line for line in text)
    assert facts(report)["refused"][0]["file"] == f"{ESCAPE}/{ESCAPE}.png"  # for machines, as it is


def test_what_was_left_out_is_printed_on_one_line(odd, monkeypatch, capsys):
    words = ["data", "pack", str(odd), "data.size=8", "--out", str(odd / "x.zip")]
    monkeypatch.setattr(sys, "argv", ["pointillist", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert not ended.value.code and r"left out a\x1b[2J\nb/a\x1b[2J\nb.png: unreadable" in out
    assert "\x1b" not in out


def test_a_picture_without_a_class_is_not_counted_to_the_last_one():
    class Some:
        kind = "some"

        def open(self, split):
            spec = Spec(channels=3, axes=grid_axes((4, 4)), classes=("cat", "dog"))
            return InMemory(np.zeros((3, 3, 4, 4), np.uint8), spec, np.array([0, 0, -1]))

    report = check(Some())
    assert report.classes == Counter(cat=4) and report.unlabelled == ["train 2", "test 2"]


def test_a_size_that_no_memory_holds_is_refused():
    with pytest.raises(InputError, match=r"data.size is \(99999, 99999\); .* at most 80,000,000"):
        FolderConfig(path="none", size=(99999, 99999))
