"""A folder of pictures: every form converted and counted, every bad file skipped and named."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointillist.data import FolderConfig
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
    assert report.found == 10 and sum(report.used.values()) == 5
    said = {one.file: one.reason for one in report.refused}
    assert set(said) == {f"cat/{name}" for name in expected}
    assert all(text in said[f"cat/{name}"] for name, text in expected.items())
    text = "\n".join(lines(report))
    assert all(f"refused cat/{name}" in text for name in expected) and str(root) in text
    sources = [config(root).open(split) for split in ("train", "test")]
    assert len(sources[0]) == report.used["train"]
    assert len(sources[1]) == report.used["test"] or len(sources[1]) == 5
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
        ("dog/gone.png", "named by metadata.jsonl, but not there")
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
    before = {item.file: item.split for item in folder_file.scan(config(root)).items}
    assert list(before.values()).count("test") >= 1
    for i in range(60):
        picture(root / "dog" / f"new{i}.png")
    after = {item.file: item.split for item in folder_file.scan(config(root, test_share=0.3)).items}
    again = {item.file: item.split for item in folder_file.scan(config(root, test_share=0.3)).items}
    assert after == again and 8 <= list(after.values()).count("test") <= 32


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
    assert folder_file.parse_size("16x24") == (16, 24) and folder_file.parse_size("16") == 16
    for fields in ({"size": 0}, {"classes": -1}, {"test_share": 1.0}):
        with pytest.raises(InputError, match=f"data.{next(iter(fields))}"):
            config(root, **fields)


# Sets that do not fit into memory.


def test_a_large_set_is_decoded_in_workers_as_a_small_one_is_in_memory(root, monkeypatch):
    small = config(root).open("train")
    monkeypatch.setattr(folder_file, "IN_MEMORY", 0)
    large = config(root).open("train")
    assert small.in_memory and not large.in_memory and len(small) == len(large)
    expected = list(batches(small, 0, 0, 9, 4))
    for workers in (0, 2):
        for a, b in zip(expected, batches(large, 0, 0, 9, 4, workers), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.label, b.label)


def test_an_unreadable_file_of_a_large_set_gives_way_to_the_next(root, monkeypatch):
    monkeypatch.setattr(folder_file, "IN_MEMORY", 0)
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
