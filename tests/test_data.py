"""The embedded set, CIFAR-10's binary form, and samples in an order of their own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pointillist.data import CIFAR10Config, EmojiConfig
from pointillist.data import cifar10 as cifar10_file
from pointillist.data.emoji import is_test, pictures, rows
from pointillist.data.loader import Order, batches, to_batch
from pointillist.data.report import check, facts, lines
from pointillist.data.source import InMemory, Source
from pointillist.types import InputError, Spec, grid_axes

SIZES = {split: EmojiConfig().open(split) for split in ("train", "test")}


def test_all_emoji_are_there_and_the_split_is_fixed():
    assert {name: len(source) for name, source in SIZES.items()} == {"train": 3378, "test": 408}
    assert len(rows()) == len(pictures()) == 3786


def untoned(codepoints: str) -> str:
    return re.sub(r"-?(1f3f[b-f]|fe0f)", "", codepoints.lower()).strip("-")


def test_no_base_emoji_straddles_the_split():
    # Told from the codepoints, and for pairs of people from the caption; not from the stored base.
    plain = {untoned(row["codepoints"]) for row in rows() if "skin tone" not in row["caption"]}
    sides: dict[str, set[bool]] = {}
    for row in rows():
        emoji = untoned(row["codepoints"])
        if emoji not in plain:
            emoji = re.sub(r"[:,] [a-z-]+ skin tone", "", row["caption"])
        sides.setdefault(emoji, set()).add(is_test(row["base"]))
    assert all(len(side) == 1 for side in sides.values()) and len(sides) < len(rows()) / 1.9
    by_caption = {row["caption"]: row["base"] for row in rows()}
    for toned, emoji in (
        ("man: light skin tone, white hair", "man: white hair"),
        ("kiss: woman, man, dark skin tone, light skin tone", "kiss: woman, man"),
        ("woman and man holding hands: dark skin tone, light skin tone",
         "woman and man holding hands"),
        ("kiss: person, person, light skin tone, medium skin tone", "kiss"),
        ("waving hand: dark skin tone", "waving hand"),
    ):  # fmt: skip
        assert by_caption[toned] == by_caption[emoji], toned


def test_32_pixels_are_the_2_by_2_mean_of_64():
    small, large = EmojiConfig(size=32).open("test").x, EmojiConfig(size=64).open("test").x
    mean = large.float().unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-1, -3))
    assert (mean - small.float()).abs().max() <= 0.5


def test_every_emoji_has_a_caption_and_a_category():
    source = EmojiConfig().open("train")
    assert source.caption and all(len(captions[0]) > 1 for captions in source.caption)
    assert source.label is not None and len(source.spec.classes) == 10
    assert EmojiConfig().promise().classes == source.spec.classes
    assert EmojiConfig(size=64).promise().size == (64, 64)


def test_the_sheets_and_their_licences_travel_with_the_package():
    folder = Path(cifar10_file.__file__).parent / "assets"
    assert sum(path.stat().st_size for path in folder.glob("*.webp")) < 9.5e6
    assert len(list(folder.glob("LICENSE*"))) == 3


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch, n: int = 20) -> None:
    """The published form with `n` records a file in the place of 10,000."""
    monkeypatch.setattr(cifar10_file, "RECORDS", n)
    rng = np.random.default_rng(0)
    for name in [*cifar10_file.FILES["train"], "test_batch.bin"]:
        raw = rng.integers(0, 256, (n, cifar10_file.RECORD), dtype=np.uint8)
        raw[:, 0] %= 10
        raw.tofile(folder / name)


def test_cifar10_is_read_label_first_then_planes(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    source = CIFAR10Config(path=str(tmp_path)).open("test")
    raw = np.fromfile(tmp_path / "test_batch.bin", np.uint8).reshape(20, -1)
    assert source.label is not None and source.label.tolist() == raw[:, 0].tolist()
    assert source.x[3, 1, 2, 5] == raw[3, 1 + 1024 + 2 * 32 + 5]
    assert len(CIFAR10Config(path=str(tmp_path)).open("train")) == 100
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for path in tmp_path.glob("*.bin"):
        path.rename(inner / path.name)
    again = CIFAR10Config(path=str(tmp_path)).open("test")
    assert again.spec.fingerprint == source.spec.fingerprint


def test_damaged_cifar10_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="holds no test_batch.bin"):
        CIFAR10Config(path=str(tmp_path)).open("train")
    write_cifar10(tmp_path, monkeypatch)
    config, path = CIFAR10Config(path=str(tmp_path)), tmp_path / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"data_batch_2.bin has 61459 bytes instead of 61460"):
        config.open("train")
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(InputError, match="data_batch_2.bin has label 10"):
        config.open("train")
    path.unlink()
    with pytest.raises(InputError, match="data_batch_2.bin is missing"):
        config.open("train")


# Order and batches.


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own():
    order = Order(0, 10)
    epochs = [order(range(10 * i, 10 * i + 10)) for i in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert Order(0, 10)(range(7, 13)) == epochs[0][7:] + epochs[1][:3]
    assert Order(1, 10)(range(10)) != epochs[0]


class Slow(InMemory):
    """A set that wants workers."""

    in_memory = False


def tiny(kind: type[InMemory] = Slow) -> InMemory:
    x = torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    spec = Spec(channels=3, axes=grid_axes((2, 2)), classes=("a", "b"), samples=10)
    return kind(x, spec, torch.arange(10) % 2, [(str(i),) for i in range(10)])


def all_of(source: Source, **how: int) -> list[tuple]:
    found, size = [], how.pop("batch", 4)
    for batch in batches(source, 3, how.pop("start", 0), 25, size, **how):
        assert batch.label is not None and batch.caption is not None
        assert batch.x.shape[0] == size  # whole batches, also where 25 is passed
        for i in range(size):
            value = round(float(batch.x[i, 0, 0, 0]) * 127.5 + 127.5)
            found.append((int(batch.index[i]), value, int(batch.label[i]), batch.caption[i]))
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_samples_do_not_depend_on_workers(workers):
    expected = all_of(tiny(InMemory))
    assert [number for number, *_ in expected] == list(range(28))
    assert all_of(tiny(), workers=workers) == expected


def test_samples_do_not_depend_on_the_batch_or_where_a_run_goes_on():
    expected = all_of(tiny())
    assert all_of(tiny(), batch=7) == expected
    assert all_of(tiny(), start=12) == expected[12:]


class Unreadable(Slow):
    def rows(self, rows):
        raise InputError("no picture can be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_found_in_a_worker_is_still_one_sentence(workers):
    with pytest.raises(InputError, match="^no picture can be read$"):
        list(batches(tiny(Unreadable), 0, 0, 4, 4, workers))


def test_values_reach_the_network_in_its_units():
    source = tiny()
    batch = to_batch(source.rows([0, 9]), torch.tensor([5, 6]), source.spec)
    assert batch.x.dtype == torch.float32 and batch.index.tolist() == [5, 6]
    assert batch.x[0].unique().tolist() == [-1.0]
    assert batch.part(slice(1)).caption == (("0",),)


def test_a_report_says_what_an_epoch_uses():
    report = check(EmojiConfig())
    assert facts(report)["used"] == {"train": 3378, "test": 408}
    text = "\n".join(lines(report))
    assert "3786 pictures found, 0 refused" in text and "an epoch uses 3378" in text
    assert sum(facts(report)["classes"].values()) == 3786
