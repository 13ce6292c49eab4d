"""A folder of pictures: every form converted and counted, every bad file skipped and named."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointillist.data import FolderConfig, collection
from pointillist.data import folder as folder_file
from pointillist.data.decode import decode
from pointillist.data.loader import batches
from pointillist.data.report import check, facts, lines
from pointillist.types import InputError

RNG = np.random.default_rng(0)


def noise(h: int = 40, w: int = 40, c: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (h, w, c), dtype=np.uint8)


def picture(path: Path, array: np.ndarray | None = None, **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if array is None else array).save(path, **save)  # type: ignore[arg-type]
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "dog/e.png"):
        picture(tmp_path / name)
    return tmp_path


def config(root: Path, **more: object) -> FolderConfig:
    return FolderConfig(path=str(root), **{"size": 32, **more})  # type: ignore[arg-type]


def whole(path: Path, channels: int = 3, size: tuple[int, int] = (4, 4), **how: object):
    return decode(path, size, channels, how.get("fit", "crop"), bool(how.get("enlarge", False)))


# Decoding.


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path):
    array = noise(4, 6)
    found = whole(picture(tmp_path / "a.png", array), size=(4, 6))
    assert np.array_equal(found.x, array.transpose(2, 0, 1))
    assert found.shape == (4, 6) and found.notes == ()


def test_grey_sixteen_bit_cmyk_and_palette_are_converted_and_noted(tmp_path):
    grey = noise(4, 4)[..., 0]
    found = whole(picture(tmp_path / "grey.png", grey))
    assert found.notes == ("grey",) and np.array_equal(found.x, np.stack([grey] * 3))
    assert np.array_equal(whole(tmp_path / "grey.png", channels=1).x[0], grey)

    found = whole(picture(tmp_path / "deep.png", grey.astype(np.uint16) * 257))
    assert found.notes == ("16-bit", "grey") and np.array_equal(found.x[0], grey)
    (tmp_path / "colour.png").write_bytes(sixteen_bit_colour(grey))
    assert whole(tmp_path / "colour.png").notes == ("16-bit",)

    flat = np.full((4, 4, 3), 200, np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    found = whole(tmp_path / "c.jpg")
    assert found.notes == ("CMYK",) and abs(found.x.astype(int) - 200).max() <= 3

    Image.fromarray(flat).convert("P").save(tmp_path / "p.png")
    found = whole(tmp_path / "p.png")
    assert found.notes == ("palette",) and abs(found.x.astype(int) - 200).max() <= 30


def sixteen_bit_colour(grey: np.ndarray) -> bytes:
    """A PNG of three 16-bit channels, which Pillow itself cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    h, w = grey.shape
    rows = np.repeat((grey.astype(">u2") * 257)[..., None], 3, -1).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", w, h, 16, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw))
            + chunk(b"IEND", b""))  # fmt: skip


def test_transparent_parts_lie_on_white(tmp_path):
    array = np.zeros((4, 4, 4), np.uint8)
    array[:2, :, 3] = 255
    found = whole(picture(tmp_path / "a.png", array))
    assert found.notes == ("transparent",)
    assert not found.x[:, :2].any() and (found.x[:, 2:] == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert (whole(tmp_path / "p.png").x == 255).all()


def test_rotation_in_exif_is_undone(tmp_path):
    image = Image.fromarray(noise(4, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned a quarter
    image.save(tmp_path / "a.png", exif=exif)
    found = whole(tmp_path / "a.png", size=(8, 4))
    assert found.notes == ("EXIF-rotated",) and found.shape == (8, 4)
    expected = np.rot90(np.asarray(image), -1).transpose(2, 0, 1)
    assert np.array_equal(found.x, expected)


def test_crop_keeps_the_centre_and_pad_keeps_everything(tmp_path):
    array = np.zeros((10, 30, 3), np.uint8)
    array[:, 10:20] = 99
    path = picture(tmp_path / "a.png", array)
    assert (whole(path, size=(10, 10)).x == 99).all()
    padded = whole(path, size=(10, 10), fit="pad").x
    assert (
        (padded[:, 0] == 255).all()
        and (padded[:, -1] == 255).all()
        and abs(int(padded[0, 5, 5]) - 99) < 10
    )


def test_what_is_too_small_is_refused_unless_it_may_be_enlarged(tmp_path):
    path = picture(tmp_path / "a.png", noise(3, 9))
    with pytest.raises(InputError, match="too small: 3x9, wanted 4x4; data.enlarge=true takes it"):
        whole(path)
    assert whole(path, enlarge=True).x.shape == (3, 4, 4)


def bad_files(folder: Path) -> dict[str, str]:
    """Files no one can use, and what is said of each."""
    good = picture(folder.parent / "good.png", noise(60, 60)).read_bytes()
    (folder.parent / "good.png").unlink()
    (folder / "cut.png").write_bytes(good[:900])
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.png").touch()
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    picture(folder / "small.png", noise(5, 5))
    return {
        "cut.png": "truncated", "text.jpg": "cannot identify", "empty.png": "the file is empty",
        "bomb.png": "decompression bomb", "small.png": "too small: 5x5",
    }  # fmt: skip


def test_bad_files_are_skipped_named_and_counted(root):
    expected = bad_files(root / "cat")
    report = check(config(root))
    # The share held out by name has not one usable picture, so it takes those of training.
    assert report.found == 10 and report.used == {"train": 5, "test": 5}
    assert report.borrowed == "test"
    said = {one.file: one.reason for one in report.refused}
    assert set(said) == {f"cat/{name}" for name in expected}
    assert all(text in said[f"cat/{name}"] for name, text in expected.items())
    text = "\n".join(lines(report))
    assert all(f"refused cat/{name}" in text for name in expected) and str(root) in text
    sources = [config(root).open(split) for split in ("train", "test")]
    assert [len(source) for source in sources] == list(report.used.values())
    assert {one.file for source in sources for one in source.refused} == set(said)


# Classes, captions, splits.


def test_a_sub_folder_is_a_class(root):
    source = config(root).open("train")
    assert source.spec.classes == ("cat", "dog") and config(root).promise().classes == (
        "cat",
        "dog",
    )
    assert check(config(root)).classes == {"cat": 2, "dog": 3}
    with pytest.raises(InputError, match="data.classes is 3, but data.path .* has 2 sub-folders"):
        config(root, classes=3).open("train")
    assert config(Path("nowhere"), classes=3).promise().classes == ("0", "1", "2")


def test_a_flat_folder_has_no_classes(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
    source = config(tmp_path).open("train")
    assert source.spec.classes == () and source.rows([0]).label is None


def test_captions_come_from_text_files_and_metadata(root):
    (root / "cat" / "a.txt").write_text("a cat\n\nsitting\n")
    (root / "metadata.jsonl").write_text(
        json.dumps({"file_name": "dog/c.png", "text": "a dog"}) + "\n"
        + json.dumps({"file_name": "dog/gone.png", "text": ["no", "dog"]}) + "\n"
    )  # fmt: skip
    (root / "metadata.csv").write_text('file_name,text\ndog/d.png,"a dog, asleep"\n')
    report = check(config(root))
    assert [tuple(one) for one in report.refused] == [
        ("dog/gone.png", "missing: named by metadata.jsonl, but not there")
    ]
    assert report.uncaptioned == ["cat/b.png", "dog/e.png"] and facts(report)["captions"]
    captions = {
        item.file: item.captions for item in folder_file.scan(config(root)).items if item.captions
    }
    assert captions == {
        "cat/a.png": ("a cat", "sitting"), "dog/c.png": ("a dog",), "dog/d.png": ("a dog, asleep",)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "line 1 is not a JSON object"), ('{"text": "a"}', "line 1 has no file_name"),
     ('{"file_name": "a", "text": {"b": 1}}', "give a string or list")],
)  # fmt: skip
def test_bad_metadata_is_refused_with_its_line(root, text, message):
    (root / "metadata.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        config(root).open("train")


def test_the_split_holds_when_files_are_added(root):
    def splits() -> dict[str, str]:
        found = folder_file.scan(config(root, test_share=0.3)).items
        return {item.file: item.split for item in found}

    for i in range(30):
        picture(root / "dog" / f"new{i}.png")
    before = splits()
    assert 4 <= list(before.values()).count("test") <= 18
    for i in range(30, 60):
        picture(root / "dog" / f"new{i}.png")
    after = splits()
    assert len(after) == 65 and before.items() <= after.items()


def test_split_folders_are_the_splits_and_not_classes(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
        picture(tmp_path / name)
    assert len(config(tmp_path).open("train")) == 2 and len(config(tmp_path).open("test")) == 1
    assert config(tmp_path).open("test").spec.classes == ("cat", "dog")


def test_a_single_picture_is_both_splits(tmp_path):
    picture(tmp_path / "a.png")
    assert len(config(tmp_path).open("train")) == len(config(tmp_path).open("test")) == 1


def test_missing_and_empty_folders_say_so(tmp_path):
    with pytest.raises(InputError, match="data.path .*/none is not a folder"):
        config(tmp_path / "none").open("train")
    with pytest.raises(InputError, match="holds no picture"):
        config(tmp_path).open("train")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(
        InputError, match="none of the 1 pictures .* can be used; the first is a.png"
    ):
        config(tmp_path).open("train")


def test_sizes_may_be_oblong_and_out_of_range_fields_are_named(root):
    assert config(root, size=(16, 24)).open("train").x.shape[1:] == (3, 16, 24)
    assert collection.parse_size("16x24") == (16, 24) and collection.parse_size("16") == 16
    for fields in ({"size": 0}, {"classes": -1}, {"test_share": 1.0}):
        with pytest.raises(InputError, match=f"data.{next(iter(fields))}"):
            config(root, **fields)


# Sets that do not fit into memory.


def test_a_large_set_is_decoded_in_workers_as_a_small_one_is_in_memory(root, monkeypatch):
    small = config(root).open("train")
    monkeypatch.setattr(collection, "IN_MEMORY", 0)
    large = config(root).open("train")
    assert small.in_memory and not large.in_memory and len(small) == len(large)
    expected = list(batches(small, 0, 0, 9, 4))
    for workers in (0, 2):
        for a, b in zip(expected, batches(large, 0, 0, 9, 4, workers), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.label, b.label)


def test_an_unreadable_file_of_a_large_set_gives_way_to_the_next(root, monkeypatch):
    monkeypatch.setattr(collection, "IN_MEMORY", 0)
    source = config(root).open("train")
    broken = source.items[1].file
    (root / broken).write_bytes(b"no")
    rows = source.rows([0, 1, 2])
    assert torch.equal(rows.x[1], rows.x[2])
    assert [one.file for one in rows.refused] == [broken]
    heard = []
    list(batches(source, 0, 0, len(source), 2, refused=lambda one, images: heard.append(one.file)))
    assert heard == [broken]
    for item in source.items:
        (root / item.file).write_bytes(b"no")
    with pytest.raises(InputError, match="none of the"):
        source.rows([0])


# Folders as people have them.


def test_a_name_that_is_not_utf8_is_refused_by_name(root):
    os.rename(root / "cat" / "a.png", os.fsencode(root / "cat") + b"/caf\xe9.png")
    report = check(config(root))
    assert [(one.file, one.kind) for one in report.refused] == [("cat/caf\\xe9.png", "unreadable")]
    assert report.found == 5 and len(config(root).open("train").refused) == 1


def test_captions_of_several_lines_quotes_and_marks(root):
    (root / "metadata.csv").write_text('file_name,text\ncat/a.png,"one\ntwo"\n', newline="")
    (root / "metadata.jsonl").write_text('{"file_name": "cat/b.png", "text": "a\u2028b"}\n')
    (root / "dog" / "c.txt").write_bytes("\ufeffa dog".encode())
    found = {item.file: item.captions for item in folder_file.scan(config(root)).items}
    assert found["cat/a.png"] == ("one\ntwo",) and found["cat/b.png"] == ("a\u2028b",)
    assert found["dog/c.png"] == ("a dog",)
    (root / "metadata.csv").write_text('file_name,text\na,"' + "x" * 200_000)
    with pytest.raises(InputError, match=r"metadata.csv, line \d+ is not CSV"):
        folder_file.scan(config(root))


def test_a_caption_that_cannot_be_read_costs_its_caption_alone(root):
    (root / "cat" / "a.txt").write_bytes(b"caf\xe9")
    (root / "cat" / "b.txt").write_text("a cat")
    report = check(config(root))
    assert [one.file for one in report.refused] == ["cat/a.txt"] and sum(report.used.values()) == 5
    assert "cat/a.png" in report.uncaptioned


def test_links_are_followed_once_and_dangling_ones_are_refused(root, tmp_path_factory, monkeypatch):
    store = tmp_path_factory.mktemp("store")
    picture(store / "x.png")
    (root / "bird").symlink_to(store)
    (root / "dog" / "loop").symlink_to(root)
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    report = check(config(root))
    assert report.spec.classes == ("bird", "cat", "dog") and sum(report.used.values()) == 6
    assert [(one.file, one.kind) for one in report.refused] == [("cat/gone.png", "unreadable")]
    monkeypatch.setattr(collection, "IN_MEMORY", 0)
    sources = [config(root).open(split) for split in ("train", "test")]
    assert sum(len(source) for source in sources) == 6
    assert [one.file for source in sources for one in source.refused] == ["cat/gone.png"]


def test_split_folders_have_their_usual_names_and_nothing_lies_beside_them(tmp_path):
    for name in (
        "train/cat/a.png",
        "valid/cat/b.png",
        "test/cat/c.png",
        "extra/cat/d.png",
        "e.png",
    ):
        picture(tmp_path / name)
    report = check(config(tmp_path))
    assert report.used == {"train": 1, "test": 2} and report.spec.classes == ("cat",)
    assert sorted(one.file for one in report.refused) == ["e.png", "extra/cat/d.png"]
    assert {one.kind for one in report.refused} == {"outside"}


def test_train_alone_is_the_split_and_beside_classes_a_class(tmp_path):
    for name in ("a/train/cat/a.png", "a/train/dog/b.png", "b/train/a.png", "b/bus/b.png"):
        picture(tmp_path / name)
    assert folder_file.scan(config(tmp_path / "a")).classes == ("cat", "dog")
    assert folder_file.scan(config(tmp_path / "b")).classes == ("bus", "train")


def test_floating_point_pictures_are_refused_not_blackened(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match="floating-point values have no known black and white"):
        whole(tmp_path / "f.tif")


def test_the_report_counts_by_kind_and_says_what_an_epoch_really_uses(root):
    (root / "cat" / "a.png").write_bytes(b"no")
    picture(root / "dog" / "small.png", noise(8, 8))
    picture(root / "top.png")
    (root / "notes.heic").write_bytes(b"x")
    (root / "metadata.csv").write_text("file_name,text\nghost.png,boo\n")
    report = check(config(root))
    text = "\n".join(lines(report))
    assert "7 pictures found, 3 refused (1 missing, 1 too small, 1 unreadable)" in text
    assert "1 without a class, as top.png" in text and "no pictures: 1 .heic" in text
    assert facts(report)["refused_by_kind"] == {"missing": 1, "unreadable": 1, "too small": 1}
    sources = {split: config(root).open(split) for split in ("train", "test")}
    assert report.used == {split: len(source) for split, source in sources.items()}


def test_a_split_that_borrows_says_so(tmp_path):
    picture(tmp_path / "a.png")
    report = check(config(tmp_path))
    assert report.used == {"train": 1, "test": 1} and report.borrowed
    assert "has no picture of its own" in "\n".join(lines(report))
