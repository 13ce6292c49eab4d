"""`data pack`: what is read back is what was packed."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointillist.data import CIFAR10Config, EmojiConfig, FolderConfig, ZipConfig
from pointillist.data.pack import count, pack
from pointillist.types import InputError

from .test_data import write_cifar10


@pytest.fixture
def pictures(tmp_path) -> FolderConfig:
    draw = np.random.default_rng(0)
    for name in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "pics" / name / label
            folder.mkdir(parents=True)
            for i in range(3):
                x = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(x).save(folder / f"{i}.png")
            (folder / "0.txt").write_text(f"one {label}\nanother")
    return FolderConfig(path=str(tmp_path / "pics"), size=(16, 16))


def same(a, b):
    assert torch.equal(a.x, b.x) and a.spec.classes == b.spec.classes
    assert (a.label is None) == (b.label is None)
    assert a.label is None or torch.equal(a.label, b.label)
    assert a.caption == b.caption and a.spec.captions == b.spec.captions


def test_a_folder_comes_back_with_its_splits_labels_and_captions(tmp_path, pictures):
    done = []
    packed = pack(pictures, tmp_path / "a.zip", progress=done.append)
    assert packed.written == {"train": 6, "test": 6} and done[-1] == 12 == count(pictures, "both")
    back = ZipConfig(path=str(tmp_path / "a.zip"), size=16)
    for split in ("train", "test"):
        same(pictures.open(split), back.open(split))


def test_one_split_has_edms_own_names(tmp_path, pictures):
    pack(pictures, tmp_path / "a.zip", split="train")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        assert names == [f"00000/img{i:08d}.png" for i in range(6)] + ["dataset.json"]
        assert all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
        index = json.loads(archive.read("dataset.json"))
    assert index["labels"][0] == ["00000/img00000000.png", 0] and index["classes"] == ["cat", "dog"]


def test_packing_twice_gives_the_same_bytes(tmp_path, pictures):
    for name in ("a.zip", "b.zip"):
        pack(pictures, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_archive_is_packed_again_unchanged(tmp_path, pictures):
    pack(pictures, tmp_path / "a.zip")
    pack(ZipConfig(path=str(tmp_path / "a.zip"), size=16), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize(("crop", "fit"), [("centre", "crop"), ("adm", "adm")])
def test_size_and_crop_are_those_asked_for(tmp_path, pictures, crop, fit):
    packed = pack(pictures, tmp_path / "a.zip", (10, 8), crop)
    assert packed.size == (10, 8)
    cut = FolderConfig(path=pictures.path, size=(10, 8), fit=fit)
    same(cut.open("train"), ZipConfig(path=str(tmp_path / "a.zip"), size=(10, 8)).open("train"))


def test_without_a_crop_other_sizes_are_left_out_by_name(tmp_path, pictures):
    Image.new("RGB", (9, 9)).save(Path(pictures.path) / "train" / "cat" / "small.png")
    packed = pack(pictures, tmp_path / "a.zip", (20, 24), "none")
    assert packed.written == {"train": 6, "test": 6}
    assert [(one.file, one.kind) for one in packed.refused] == [
        ("train/cat/small.png", "other size")
    ]
    assert "9x9, wanted 20x24" in packed.refused[0].reason
    assert pack(pictures, tmp_path / "b.zip", crop="none").size == (20, 24)


def test_an_unreadable_file_is_left_out_by_name(tmp_path, pictures):
    (Path(pictures.path) / "train" / "dog" / "bad.png").write_bytes(b"no picture")
    packed = pack(pictures, tmp_path / "a.zip")
    assert packed.written["train"] == 6 and packed.refused[0].file == "train/dog/bad.png"


def test_a_set_in_memory_is_packed_too(tmp_path, monkeypatch):
    whole = EmojiConfig(size=32)
    few = {split: whole.open(split) for split in ("train", "test")}

    class Few:
        kind = "emoji"

        def promise(self):
            return whole.promise()

        def open(self, split):
            source = few[split]
            from pointillist.data.source import InMemory

            return InMemory(source.x[:20], source.spec, source.label[:20], source.caption[:20])

    pack(Few(), tmp_path / "a.zip")
    back = ZipConfig(path=str(tmp_path / "a.zip"), size=32)
    for split in few:
        same(Few().open(split), back.open(split))
    small = pack(Few(), tmp_path / "b.zip", (16, 16), "adm")
    assert small.written == {"train": 20, "test": 20}
    none = pytest.raises(InputError, match="not one picture could be packed .*other size: 32x32")
    with none:
        pack(Few(), tmp_path / "c.zip", (16, 16), "none")
    assert not (tmp_path / "c.zip").exists()


def test_cifar10s_form_is_packed_bit_for_bit_and_the_same_each_time(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    config = CIFAR10Config(path=str(tmp_path))
    for name in ("a.zip", "b.zip"):
        assert pack(config, tmp_path / name).written == {"train": 100, "test": 20}
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    back = ZipConfig(path=str(tmp_path / "a.zip"), size=32, classes=10)
    for split in ("train", "test"):
        same(config.open(split), back.open(split))
    assert pack(config, tmp_path / "c.zip", (16, 16), "adm", "test").size == (16, 16)
    pack(config, tmp_path / "d.zip", (16, 16), "adm", "test")
    assert (tmp_path / "c.zip").read_bytes() == (tmp_path / "d.zip").read_bytes()
    x = config.open("test").x[0].float().view(3, 16, 2, 16, 2).mean((2, 4))
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        first = Image.open(io.BytesIO(archive.read("00000/img00000000.png")))
    assert np.abs(np.asarray(first).transpose(2, 0, 1) - x.numpy()).max() <= 1  # its box mean


def test_packing_that_is_broken_off_leaves_nothing(tmp_path, pictures):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(pictures, tmp_path / "a.zip", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["pics"]


def test_cifar10_comes_back(tmp_path):
    root = next((p for p in (Path("data/cifar10"), Path(__file__).parents[1] / "data" / "cifar10")
                 if p.is_dir()), None)  # fmt: skip
    if root is None:
        pytest.skip("CIFAR-10 is not in data/cifar10; `pointillist data fetch cifar10` brings it")
    config = CIFAR10Config(path=str(root))
    pack(config, tmp_path / "a.zip", split="test")
    back = ZipConfig(path=str(tmp_path / "a.zip"), size=32, test_share=0.5)
    a = config.open("test")
    found = [back.open(split) for split in ("train", "test")]
    assert sum(len(one) for one in found) == 10_000 and found[0].spec.classes == a.spec.classes
    assert torch.equal(torch.cat([one.x for one in found]).sum((1, 2, 3)).sort()[0],
                       a.x.sum((1, 2, 3)).sort()[0])  # fmt: skip
    assert torch.equal(torch.cat([one.label for one in found]).bincount(), a.label.bincount())


def test_what_cannot_be_packed_is_one_sentence(tmp_path, pictures):
    (tmp_path / "there.zip").touch()
    with pytest.raises(InputError, match="is already there; choose another --out"):
        pack(pictures, tmp_path / "there.zip")
    with pytest.raises(InputError, match="it ends in .zip"):
        pack(pictures, tmp_path / "a.tar")
    Image.new("RGB", (20, 20)).save(Path(pictures.path) / "train" / "bare.png")
    with pytest.raises(InputError, match="train/bare.png has no class, but others have one"):
        pack(pictures, tmp_path / "mixed.zip")
    assert not list(tmp_path.glob("*mixed*")) and not list(tmp_path.glob(".*"))
