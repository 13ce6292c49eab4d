"""Zip files in EDM's form: read where they lie, and every odd one refused in one sentence."""

import io
import json
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pointillist.data import FolderConfig, ZipConfig
from pointillist.data.loader import batches
from pointillist.data.report import check
from pointillist.types import InputError

NAMES = [f"{i // 3:05d}/img{i:08d}.png" for i in range(8)]


def png(level: int, size: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (level, 2 * level, 3 * level)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(path, index=None, members=None, **more):
    """An archive of eight pictures, one grey level each."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(NAMES if members is None else members):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns of a name that is there already
                archive.writestr(name, png(10 * i))
        for name, content in more.items():
            archive.writestr(name, content)
        if index is not None:
            text = index if isinstance(index, (str, bytes)) else json.dumps(index)
            archive.writestr("dataset.json", text)
    return ZipConfig(path=str(path), size=12)


def labels(*values):
    return {"labels": [[name, value] for name, value in zip(NAMES, values, strict=False)]}


def test_pictures_and_labels_are_those_of_the_archive(tmp_path):
    config = packed(tmp_path / "a.zip", labels(0, 1, 2, 0, 1, 2, 0, 1))
    train, test = config.open("train"), config.open("test")
    assert len(train) + len(test) == 8 and train.spec.classes == ("0", "1", "2")
    rows = [source.rows(range(len(source))) for source in (train, test)]
    level = torch.cat([r.x[:, 0, 0, 0] for r in rows]) // 10
    assert sorted(level.tolist()) == list(range(8))
    assert torch.equal(torch.cat([r.label for r in rows]), level.long() % 3)
    assert config.promise().classes == train.spec.classes


def test_names_of_classes_and_captions_are_read(tmp_path):
    index = {**labels(*[0] * 8), "classes": ["cat", "dog"], "captions": {NAMES[3]: ["a", "b"]}}
    source = packed(tmp_path / "a.zip", index).open("train")
    assert source.spec.classes == ("cat", "dog") and source.spec.captions
    assert {c for c in source.rows(range(len(source))).caption if c} <= {("a", "b")}


@pytest.mark.parametrize("index", [None, {"labels": None}, {}])
def test_an_archive_may_be_without_labels(tmp_path, index):
    source = packed(tmp_path / "a.zip", index).open("train")
    assert source.spec.classes == () and source.rows([0]).label is None


def test_top_folders_are_the_splits(tmp_path):
    members = ["train/00000/a.png", "train/00000/b.png", "val/00000/c.png", "other/d.png"]
    config = packed(tmp_path / "a.zip", members=members)
    assert len(config.open("train")) == 2 and len(config.open("test")) == 1
    assert "other/d.png" in [one.file for one in config.open("train").refused]


def test_the_fingerprint_knows_content_and_labels_but_not_the_place(tmp_path):
    a = packed(tmp_path / "a.zip", labels(*[0] * 8)).open("train").spec.fingerprint
    (tmp_path / "b").mkdir()
    assert packed(tmp_path / "b" / "c.zip", labels(*[0] * 8)).open("train").spec.fingerprint == a
    assert packed(tmp_path / "d.zip", labels(*[1] * 8)).open("train").spec.fingerprint != a


def test_workers_read_a_large_archive_as_one_process_does(tmp_path, monkeypatch):
    monkeypatch.setattr("pointillist.data.collection.IN_MEMORY", 0)
    source = packed(tmp_path / "a.zip", labels(*range(8))).open("train")
    assert not source.in_memory
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.rows([0, 1]).x, source.rows([0, 1]).x)
    alone, spread = (list(batches(source, 0, 0, 12, 4, workers=n)) for n in (0, 2))
    for a, b in zip(alone, spread, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.label, b.label)


def test_an_unreadable_picture_is_named_and_the_rest_is_used(tmp_path):
    config = packed(tmp_path / "a.zip", x_png=b"", **{"00000/bad.png": b"no picture"})
    report = check(config)
    assert [one.file for one in report.refused] == ["00000/bad.png"]
    assert "cannot identify image file" in report.refused[0].reason
    assert report.used["train"] + report.used["test"] == 8 and report.ignored["none"] == 1


def test_hidden_members_are_passed_over(tmp_path):
    config = packed(tmp_path / "a.zip", labels(*[0] * 8), **{"__MACOSX/._x.png": b"no picture"})
    report = check(config)
    assert not report.refused and report.found == 8


def test_a_set_is_promised_before_it_is_there():
    promised = ZipConfig(path="none.zip", classes=3, size=24).promise()
    assert promised.classes == ("0", "1", "2") and promised.size == (24, 24)


def test_a_replaced_archive_is_read_anew(tmp_path):
    config = packed(tmp_path / "a.zip", labels(*[0] * 8))
    assert config.open("train").spec.classes == ("0",)
    (tmp_path / "a.zip").unlink()
    packed(tmp_path / "a.zip", {**labels(*[3] * 8), "note": "longer"})
    assert config.open("train").spec.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("index", "members", "message"),
    [(None, ["../a.png"], "points out of the archive"),
     (None, ["/etc/a.png"], "points out of the archive"),
     (None, ["a\\..\\b.png"], "points out of the archive"),
     (None, ["./a.png"], "'./a.png' is no plain path"),
     (None, ["a\nb.png"], r"'a\\nb.png' has control characters"),
     (None, ["a\x1b[2Jb.png"], r"'a\\x1b\[2Jb.png' has control characters"),
     (None, ["a.png", "b.png", "a.png"], "member a.png is there twice"),
     (None, [], "holds no picture"),
     ("{", None, "dataset.json cannot be read"),
     (b"\xff\xfe", None, "dataset.json cannot be read"),
     ("[" * 100_000, None, "dataset.json cannot be read"),
     ([1], None, "dataset.json holds a list"),
     ({"labels": 3}, None, "labels is a int; it is a list or null"),
     ({"labels": [["a"]]}, None, "is no pair of a file and a class"),
     ({"labels": [["00000/none.png", 1]]}, None, "labels 00000/none.png, which is not a picture"),
     (labels(0, 1), None, "gives 00000/img00000002.png no label, but others have one"),
     (labels(*[0] * 7, [0.1, 0.9]), None, "is a vector; only whole numbers"),
     (labels(*[0] * 7, -1), None, "is -1; it is a whole number from 0"),
     (labels(*[0] * 7, True), None, "is True; it is a whole number"),
     (labels(*[0] * 7, "cat"), None, "is cat; it is a whole number"),
     ({"labels": labels(*[0] * 8)["labels"] + [[NAMES[0], 0]]}, None, "labels .* twice"),
     ({**labels(*[2] * 8), "classes": ["a"]}, None, "has label 2, but only 1 classes"),
     ({**labels(*[0] * 8), "classes": "a"}, None, "it is a list of names"),
     ({**labels(*[0] * 8), "classes": ["a", "a"]}, None, "names one class twice"),
     ({**labels(*[0] * 8), "classes": ["a\x1b[2J"]}, None, r"class 'a\\x1b\[2J' has control"),
     ({"labels": [["a\nb", 1]]}, None, r"labels a\\nb, which is not a picture"),
     ({"captions": {"a\nb": ["a"]}}, None, r"captions a\\nb, which is not a picture"),
     ({"labels": None, "classes": ["a"]}, None, "names classes, but gives no picture a label"),
     (labels(*[10**12] * 8), None, "far beyond its 8 pictures"),
     ({"captions": {"x.png": ["a"]}}, None, "captions x.png, which is not a picture"),
     ({"captions": {NAMES[0]: "a"}}, None, "are no list of texts")],
)  # fmt: skip
def test_an_odd_archive_is_one_sentence(tmp_path, index, members, message):
    config = packed(tmp_path / "a.zip", index, members)
    with pytest.raises(InputError, match=message) as caught:
        config.open("train")
    assert "\n" not in str(caught.value)


def test_what_is_no_archive_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="is not a zip file; name one"):
        ZipConfig(path=str(tmp_path / "none.zip")).open("train")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(InputError, match="is not a whole zip file"):
        ZipConfig(path=str(tmp_path / "text.zip")).open("train")
    packed(tmp_path / "a.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-200])
    with pytest.raises(InputError, match="is not a whole zip file"):
        ZipConfig(path=str(tmp_path / "cut.zip")).open("train")


def test_a_member_that_is_damaged_encrypted_or_a_bomb_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    packed(path)
    content = bytearray(path.read_bytes())
    first = content.index(b"\x89PNG")
    content[first + 40] ^= 0xFF
    path.write_bytes(content)
    assert "Bad CRC-32" in check(ZipConfig(path=str(path), size=12)).refused[0].reason
    whole = (tmp_path / "b.zip", packed(tmp_path / "b.zip"))
    raw = bytearray(whole[0].read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 8] |= 1  # the flag of encryption
    (tmp_path / "c.zip").write_bytes(raw)
    with pytest.raises(InputError, match="is encrypted; pack it again without"):
        ZipConfig(path=str(tmp_path / "c.zip"), size=12).open("train")
    monkeypatch.setattr("pointillist.data.archive.LARGEST_MEMBER", 50)
    with pytest.raises(InputError, match="unfolds to"):
        packed(tmp_path / "d.zip").open("train")
    monkeypatch.setattr("pointillist.data.archive.LARGEST_MEMBER", 1 << 20)
    monkeypatch.setattr("pointillist.data.archive.LARGEST_INDEX", 5)
    with pytest.raises(InputError, match="dataset.json unfolds to"):
        packed(tmp_path / "e.zip", labels(*[0] * 8)).open("train")


def test_the_number_of_classes_asked_for_must_be_there(tmp_path):
    config = packed(tmp_path / "a.zip", labels(*[1] * 8))
    with pytest.raises(InputError, match="data.classes is 5, but data.path .* has 2"):
        ZipConfig(path=config.path, size=12, classes=5).open("train")


def test_a_folder_and_an_archive_of_the_same_files_are_the_same_set(tmp_path):
    folder = tmp_path / "pics"
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(10 * i))
    archive = packed(tmp_path / "a.zip", {
        "labels": [[name, int(name[:5])] for name in NAMES],
        "classes": ["00000", "00001", "00002"],
    })  # fmt: skip
    for split in ("train", "test"):
        a, b = (c.open(split) for c in (FolderConfig(path=str(folder), size=12), archive))
        assert a.spec == b.spec  # with the fingerprint
        np.testing.assert_array_equal(a.x, b.x)


def lying(path, name: str, content: bytes, says: int) -> None:
    """An archive with one member more, which unfolds to other than it says."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    raw = path.read_bytes()
    size, told = struct.pack("<I", len(content)), struct.pack("<I", says)
    path.write_bytes(raw.replace(size + struct.pack("<H", len(name)), told + struct.pack(
        "<H", len(name))))  # fmt: skip


@pytest.mark.parametrize("name", ["bomb.png", "dataset.json"])
def test_a_member_unfolds_no_further_than_it_says(tmp_path, name):
    path = tmp_path / "a.zip"
    packed(path)
    lying(path, name, bytes(60 << 20), says=200)
    tracemalloc.start()
    try:
        if name == "dataset.json":
            with pytest.raises(InputError, match="dataset.json cannot be read"):
                ZipConfig(path=str(path), size=12).open("train")
        else:
            assert "Bad CRC-32" in check(ZipConfig(path=str(path), size=12)).refused[0].reason
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["00000/x.png", "dataset.json"])
def test_methods_that_unfold_without_bound_are_refused(tmp_path, method, name):
    path = tmp_path / "a.zip"
    packed(path)
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr(name, png(3))
    with pytest.raises(InputError, match=f"member {name} is packed by a method .*stored or defl"):
        ZipConfig(path=str(path), size=12).open("train")
