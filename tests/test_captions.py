"""Captions in every usual form, and what is no caption costs nothing but itself."""

import csv
import json
import sys
import zipfile
from pathlib import Path

import pytest

from pointillist.data import FolderConfig, ZipConfig
from pointillist.data.captions import METADATA, metadata
from pointillist.data.folder import scan
from pointillist.data.report import check, facts, lines
from pointillist.types import InputError

from .buckets_case import picture

WORLD = {
    "arabic": "قطة على سجادة",  # right to left
    "chinese": "一只坐在垫子上的猫",
    "devanagari": "चटाई पर बिल्ली",
    "emoji": "🐱 auf 👩‍👩‍👧 🇪🇺",
    "marks": "e\u0301 \u202eabc\u202c",
    "quotes": 'a "cat", sitting; on\ta mat',
}
LONG = " ".join(f"word{i}" for i in range(10_000))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / f"{name}.png", 8, 8)
    return tmp_path


def found(root: Path) -> dict[str, tuple[str, ...]]:
    items = scan(FolderConfig(path=str(root), size=8)).items
    return {item.file: item.captions for item in items if item.captions}


def jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def table(root: Path, kind: str, rows: list[dict]) -> None:
    """The rows as metadata of that kind."""
    path = root / f"metadata.{kind}"
    if kind == "jsonl":
        jsonl(path, rows)
    elif kind == "csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v
                                 for k, v in row.items()})  # fmt: skip
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_captions_of_all_scripts_come_back_as_they_were_written(root, kind):
    rows = [{"file_name": "a.png", "text": text} for text in WORLD.values()]
    table(root, kind, [*rows, {"file_name": "b.png", "text": LONG}])
    assert found(root) == {"a.png": tuple(WORLD.values()), "b.png": (LONG,)}


def test_captions_beside_come_back_as_they_were_written(root):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # UTF-16 says so in its first two bytes
        (root / "a.txt").write_bytes("\n".join(WORLD.values()).encode(encoding))
        assert found(root)["a.png"] == tuple(WORLD.values())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_several_captions_by_columns_lists_and_rows(root, kind):
    rows = [
        {"file_name": "a.png", "text": "one", "caption": "two", "captions": ["three", "four"]},
        {"file_name": "a.png", "text": "five", "caption": "one", "captions": []},
        {"file_name": "b.png", "text": "  ", "caption": None, "captions": ["[six] "]},
        {"file_name": "c.png", "text": "", "caption": "", "captions": None},
    ]
    table(root, kind, rows)
    assert found(root) == {"a.png": ("one", "two", "three", "four", "five"), "b.png": ("[six]",)}


def test_a_caption_in_csv_may_be_longer_than_pythons_reader_expects(root):
    table(root, "csv", [{"file_name": "a.png", "text": "x" * 200_000}])
    before = csv.field_size_limit()
    assert found(root) == {"a.png": ("x" * 200_000,)}
    assert csv.field_size_limit() == before


def test_a_caption_may_begin_with_a_bracket_in_csv(root):
    (root / "metadata.csv").write_text("file_name,captions\na.png,[cat] sits\n")
    assert found(root) == {"a.png": ("[cat] sits",)}


def test_tables_add_up_and_the_text_beside_steps_in_where_they_are_silent(root):
    jsonl(root / "metadata.jsonl", [{"file_name": "a.png", "text": "one"}])
    (root / "metadata.csv").write_text("file_name,text\na.png,two\nb.png,\n")
    for name in "ab":
        (root / f"{name}.txt").write_text("beside")
    assert found(root) == {"a.png": ("one", "two"), "b.png": ("beside",)}


def test_tables_in_the_folders_of_splits_name_files_from_there(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / split / "cat" / "a.png", 8, 8)
        jsonl(tmp_path / split / "metadata.jsonl", [{"file_name": "cat/a.png", "text": split}])
    assert found(tmp_path) == {"train/cat/a.png": ("train",), "val/cat/a.png": ("val",)}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_in_another_encoding_costs_its_own_caption(root, kind):
    lines_ = {
        "jsonl": b'{"file_name": "a.png", "text": "caf\xe9"}\n{"file_name": "b.png", "text": "ok"}',
        "csv": b"file_name,text\na.png,caf\xe9\nb.png,ok\n",
    }[kind]
    (root / f"metadata.{kind}").write_bytes(lines_)
    report = check(FolderConfig(path=str(root), size=8))
    assert found(root) == {"b.png": ("ok",)} and sum(report.used.values()) == 4
    (one,) = report.refused
    line = 1 if kind == "jsonl" else 2
    assert one.file == f"metadata.{kind}" and one.reason == f"caption: line {line} is not UTF-8"


def test_half_a_character_is_no_text(root):
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "cat \\ud83d"}\n')
    captions, refused = metadata(root, ["a.png"])
    assert not captions and [one.kind for one in refused] == ["caption"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_that_is_not_there_is_told_once(root, kind):
    table(root, kind, [{"file_name": "gone.png", "text": str(i)} for i in range(3)])
    _, refused = metadata(root, ["a.png"])
    assert [tuple(one) for one in refused] == [
        ("gone.png", f"missing: named by metadata.{kind}, but not there")
    ]


@pytest.mark.parametrize("value", [5, True, {"a": "b"}, ["a", 5], [["a"]]])
def test_what_is_neither_text_nor_a_list_of_texts_is_refused(root, value):
    jsonl(root / "metadata.jsonl", [{"file_name": "a.png", "caption": value}])
    with pytest.raises(InputError, match="line 1: caption is .*; give a string or list of strings"):
        found(root)


def test_the_report_counts_captions_and_names_what_has_none(root):
    table(root, "jsonl", [{"file_name": "a.png", "captions": ["cat", LONG]}])
    (root / "b.txt").write_text(" \n\n")
    (root / "c.txt").write_bytes(b"\xff\xfe\xe9")  # half of a character of UTF-16
    (root / "d.txt").write_bytes(b"caf\xe9")
    report = check(FolderConfig(path=str(root), size=8))
    text = "\n".join(lines(report))
    assert f"captioned, but for 3: 2 captions of 3 to {len(LONG):,} characters" in text
    told = facts(report)
    assert told["caption_count"] == 2 and told["caption_characters"] == [3, len(LONG)]
    assert sorted(told["uncaptioned"]) == ["b.png", "c.png", "d.png"]
    assert told["refused_by_kind"] == {"caption": 2}


def test_an_archive_holds_several_captions_of_any_script(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    captions = {"a.png": [*WORLD.values(), LONG], "b.png": [" b ", "", "\n"], "c.png": [" "]}
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.glob("*.png")):
            archive.write(file, file.name)
        archive.writestr("dataset.json", json.dumps({"labels": None, "captions": captions}))
    report = check(ZipConfig(path=str(path), size=8))
    items = ZipConfig(path=str(path), size=8).listing().items
    assert {item.file: item.captions for item in items if item.captions} == {
        "a.png": (*WORLD.values(), LONG), "b.png": ("b",)
    }  # fmt: skip
    assert sorted(report.uncaptioned) == ["c.png", "d.png"]


# Parquet.


def test_parquet_without_its_reader_names_the_remedy(root, monkeypatch):
    (root / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InputError, match=r"metadata.parquet takes pyarrow .* 'pointillist\[parquet"
    ):
        found(root)


def test_a_damaged_parquet_file_is_named(root):
    pytest.importorskip("pyarrow")
    (root / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="metadata.parquet cannot be read: .*; write it again"):
        found(root)


def test_parquet_with_other_columns_is_read_for_what_it_says(root):
    table(root, "parquet", [{"file_name": "a.png", "width": 8, "captions": ["x"], "id": 1.5}])
    assert found(root) == {"a.png": ("x",)}
    table(root, "parquet", [{"name": "a.png"}])
    with pytest.raises(InputError, match="line 1 has no file_name"):
        found(root)


def test_tables_are_no_files_that_are_passed_over(root):
    for name in METADATA[:2]:
        table(root, name.partition(".")[2], [{"file_name": "a.png", "text": "x"}])
    assert not scan(FolderConfig(path=str(root), size=8)).ignored
