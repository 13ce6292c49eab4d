"""Buckets of aspect ratio: every picture where it belongs, every row once an epoch."""

import itertools
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pointillist.data import FolderConfig, ZipConfig, collection
from pointillist.data.buckets import (
    BucketsConfig,
    Plan,
    bucket_of,
    merged,
    numbered,
    stretch,
)
from pointillist.data.loader import batches, plan_of
from pointillist.data.report import check, facts, lines
from pointillist.data.source import Bucketed
from pointillist.picture_files import shape_of
from pointillist.types import InputError

from .buckets_case import SHAPES, folder, many, picture

POLICIES = ("repeat", "small", "merge", "drop")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many(tmp_path_factory.mktemp("many"))


# Shapes.


def test_shapes_have_about_one_area_and_come_in_both_directions():
    shapes = BucketsConfig().shapes((512, 512))
    assert (512, 512) in shapes and {(w, h) for h, w in shapes} == set(shapes)
    for h, w in shapes:
        assert h % 64 == w % 64 == 0 and 256 <= min(h, w) and max(h, w) <= 1024
        # The nearest multiple of the step: half a step away at most, from one side or the other.
        assert min(abs(512 * 512 / h - w), abs(512 * 512 / w - h)) <= 32
    assert list(shapes) == sorted(shapes, key=lambda s: s[1] / s[0])
    assert shapes[0] == (1024, 256) and len(shapes) == len(set(shapes)) > 15


edges = st.integers(1, 12)


@given(edges, edges, edges, st.data())
def test_every_set_of_shapes_holds_the_nominal_one(step, low, more, data):
    buckets = BucketsConfig(smallest=step * low, largest=step * (low + more), step=step)
    inside = st.integers(low, low + more).map(lambda n: n * step)
    size = (data.draw(inside), data.draw(inside))
    buckets.check(size)
    shapes = buckets.shapes(size)
    assert size in shapes and bucket_of(size, shapes) == size
    assert all(low * step <= n <= (low + more) * step and not n % step for s in shapes for n in s)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_picture_goes_to_the_nearest_aspect_ratio_or_is_refused_with_a_reason(h, w):
    shapes = SHAPES.shapes((16, 16))
    away = {shape: abs(np.log(w / h) - np.log(shape[1] / shape[0])) for shape in shapes}
    outside = not 0.25 / 1.5 <= w / h <= 4 * 1.5
    if outside:
        with pytest.raises(InputError, match=f"aspect ratio: {h}x{w} is outside of data.buckets"):
            bucket_of((h, w), shapes)
    else:
        assert away[bucket_of((h, w), shapes)] == pytest.approx(min(away.values()), abs=1e-12)


def test_a_tie_is_broken_the_same_way_for_every_multiple():
    found = {bucket_of((n, n), ((20, 12), (12, 20))) for n in range(1, 300)}
    assert found == {(20, 12)} and stretch((12, 20), (7, 7)) == stretch((20, 12), (3, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"step": 0}, "data.buckets.step is 0"), ({"smallest": 30}, "data.buckets.smallest is 30"),
     ({"largest": 1000}, "data.buckets.largest is 1000; it is a multiple"),
     ({"smallest": 512, "largest": 256}, "smallest is 512, above data.buckets.largest")],
)  # fmt: skip
def test_mistakes_in_buckets_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        BucketsConfig(**fields)


@pytest.mark.parametrize("size", [64, (512, 500), (128, 512)])
def test_a_size_that_is_no_bucket_is_refused(size):
    with pytest.raises(InputError, match=r"data.size is \d+x\d+, but edges of data.buckets"):
        FolderConfig(size=size, buckets=BucketsConfig())


# The plan, whatever the buckets.


@st.composite
def asked(draw: st.DrawFn, policy: str | None = None) -> tuple[dict, int, int, str]:
    """Numbers of pictures by bucket, seed, batch and policy."""
    counts = draw(st.lists(st.integers(1, 23), min_size=1, max_size=6))
    sizes = draw(st.permutations([(8, 32), (12, 24), (16, 16), (20, 12), (24, 12), (32, 8)]))
    batch, seed = draw(st.integers(1, 9)), draw(st.integers(0, 5))
    policy = policy or draw(st.sampled_from(POLICIES))
    if policy == "drop" and max(counts) < batch:
        batch = max(counts)
    return dict(zip(sizes, counts, strict=False)), seed, batch, policy


def plan_for(counts: dict, seed: int, batch: int, policy: str) -> Plan:
    return Plan(numbered(counts), seed, batch, policy)  # type: ignore[arg-type]


@settings(deadline=None)
@given(asked(), st.integers(0, 3))
def test_every_row_counts_once_an_epoch_in_batches_of_one_bucket(case, epoch):
    plan = plan_for(*case)
    slots = list(plan.slots(epoch * plan.used, (epoch + 1) * plan.used))
    homes = {row: i for i, bucket in enumerate(plan.buckets) for row in bucket.rows.tolist()}
    counted = Counter[int]()
    at = epoch * plan.used
    for slot in slots:
        assert slot.first == at and len({homes[row] for row in slot.rows}) == 1
        weights = slot.counts or (1.0,) * len(slot.rows)
        assert sum(weights) == slot.size and set(weights) <= {0.0, 1.0}
        full = slot.size if plan.policy == "small" else plan.batch
        assert len(slot.rows) == len(slot.numbers) == full <= plan.batch
        mine = [(n, r) for n, r, c in zip(slot.numbers, slot.rows, weights, strict=True) if c]
        assert [n for n, _ in mine] == list(range(at, at + slot.size))
        # What fills up is a repeat of a sample that counts, its number and so its draws included.
        assert set(zip(slot.numbers, slot.rows, strict=True)) == set(mine)
        counted.update(row for _, row in mine)
        at += slot.size
    left = plan.left_out(epoch)
    assert set(counted.values()) == {1} and not set(counted) & set(left)
    assert sorted([*counted, *left]) == list(range(plan.rows)) and at == (epoch + 1) * plan.used
    assert bool(left) == (plan.policy == "drop" and plan.used < plan.rows)


@settings(deadline=None, max_examples=30)
@given(asked(), st.data())
def test_going_on_from_any_border_is_the_tail_and_elsewhere_is_refused(case, data):
    plan = plan_for(*case)
    whole = list(plan.slots(0, 2 * plan.used + 1))
    k = data.draw(st.integers(0, len(whole) - 1))
    assert list(plan.slots(whole[k].first, 2 * plan.used + 1)) == whole[k:]
    again = plan_for(*case)
    assert list(again.slots(whole[k].first, 2 * plan.used + 1)) == whole[k:]
    for slot in whole:
        assert plan.before(slot.first + slot.size) == slot.first
    if whole[k].size > 1:
        with pytest.raises(InputError, match="not the end of a batch of data.buckets"):
            list(plan.slots(whole[k].first + 1, 2 * plan.used + 1))


@settings(deadline=None)
@given(asked(), st.integers(1, 4))
def test_parts_of_all_ranks_are_the_whole_and_of_one_length(case, ranks):
    counts, seed, batch, policy = case
    plan = plan_for(counts, seed, batch * ranks, "repeat" if policy == "drop" else policy)
    parts = [list(plan.slots(0, plan.used, (i, ranks))) for i in range(ranks)]
    for whole, *shares in zip(plan.slots(0, plan.used), *parts, strict=True):
        assert len({len(one.rows) for one in shares}) == 1
        assert {(one.first, one.size) for one in shares} == {(whole.first, whole.size)}
        joint = [(n, r) for one in shares
                 for n, r, c in zip(one.numbers, one.rows, one.counts or (1.0,) * len(one.rows),
                                    strict=True) if c]  # fmt: skip
        assert joint == list(zip(whole.numbers, whole.rows, strict=True))[: whole.size]


@settings(deadline=None, max_examples=30)
@given(asked("repeat"))
def test_repeat_and_small_have_the_same_samples_in_the_same_batches(case):
    plan, small = plan_for(*case), plan_for(*case[:3], "small")
    spans = [[(s.first, s.rows[: s.size]) for s in one.slots(0, 3 * plan.used)]
             for one in (plan, small)]  # fmt: skip
    assert spans[0] == spans[1]


def test_the_order_belongs_to_seed_and_epoch():
    buckets = numbered({(16, 16): 20, (8, 32): 30})
    plan = Plan(buckets, 0, 4, "repeat")
    epochs = [[slot.rows for slot in plan.slots(50 * e, 50 * e + 50)] for e in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [slot.rows for slot in Plan(buckets, 1, 4, "repeat").slots(0, 50)]
    # Buckets are mixed: batches of both lie in either half of the epoch.
    halves = [{row[0] < 30 for row in half} for half in (epochs[0][:6], epochs[0][6:])]
    assert halves == [{True, False}] * 2


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40))
def test_merging_leaves_no_bucket_short_and_loses_no_row(counts, least):
    sizes = [(8, 32), (12, 20), (16, 16), (20, 12), (28, 8), (32, 8)]
    found = merged(numbered(dict(zip(sizes, counts, strict=False))), least)
    assert min(len(b.rows) for b in found) >= least or len(found) == 1
    assert sorted(row for b in found for row in b.rows.tolist()) == list(range(sum(counts)))
    assert {b.size for b in found} <= set(sizes[: len(counts)])


def test_a_short_bucket_goes_into_the_nearest():
    buckets = numbered({(8, 32): 2, (12, 20): 9, (16, 16): 9, (32, 8): 9})
    found = {bucket.size: bucket.rows.tolist() for bucket in merged(buckets, 5)}
    assert found[(12, 20)] == list(range(11)) and len(found) == 3


def test_a_batch_that_no_bucket_fills_is_refused_where_the_rest_is_dropped():
    with pytest.raises(InputError, match="policy is drop, but no bucket holds a batch of 8; set"):
        Plan(numbered({(16, 16): 5, (8, 32): 7}), 0, 8, "drop")


# Pictures.


def numbers_of(x: torch.Tensor) -> list[int]:
    levels = (x * 127.5 + 127.5).round().long()
    return (levels[:, 0, 0, 0] + 251 * levels[:, 1, 0, 0]).tolist()


@pytest.mark.parametrize("policy", ["repeat", "small"])
@pytest.mark.parametrize("lazy", [False, True])
def test_two_hundred_pictures_in_nine_shapes_count_once_an_epoch(root, policy, lazy, monkeypatch):
    if lazy:
        monkeypatch.setattr(collection, "IN_MEMORY", 0)
    source = folder(root, policy).open("train")
    assert isinstance(source, Bucketed) and source.in_memory != lazy and len(source) == 200
    assert len(source.spec.buckets) == 9 and source.spec.size == (16, 16)
    for epoch in range(2):
        seen, sizes = Counter[int](), Counter[tuple[int, ...]]()
        for batch in batches(source, 0, 200 * epoch, 200 * (epoch + 1), 8):
            assert batch.x.shape[0] == 8 or policy == "small"
            counts = torch.ones(batch.x.shape[0]) if batch.counts is None else batch.counts
            seen.update(n for n, c in zip(numbers_of(batch.x), counts, strict=True) if c)
            sizes[tuple(batch.x.shape[2:])] += int(counts.sum())
        assert seen == Counter(range(200))
        expected = {bucket.size: bucket.rows.shape[0] for bucket in source.buckets}
        assert sizes == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_going_on_in_mid_epoch_repeats_no_picture(root, policy):
    source = folder(root, policy).open("train")
    used = plan_of(source, 0, 8).used
    whole = list(batches(source, 0, 0, used, 8))
    for k in (1, len(whole) // 2, len(whole) - 1):
        done = sum(8 if b.counts is None else int(b.counts.sum()) for b in whole[:k])
        if policy == "small":
            done = sum(b.x.shape[0] for b in whole[:k])
        rest = list(batches(source, 0, done, used, 8))
        for a, b in zip(whole[k:], rest, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.index, b.index)
            assert torch.equal(a.row, b.row)
    rows = [row for b in whole for row in b.row.unique().tolist()]
    assert len(rows) == len(set(rows)) == used


def test_workers_and_laziness_change_nothing(root, monkeypatch):
    small = folder(root, "merge").open("train")
    expected = list(batches(small, 3, 0, 60, 8))
    monkeypatch.setattr(collection, "IN_MEMORY", 0)
    large = folder(root, "merge").open("train")
    for workers in (0, 1):
        for a, b in zip(expected, batches(large, 3, 0, 60, 8, workers), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.index, b.index)
            assert (a.counts is None) == (b.counts is None)


def test_merging_crops_and_enlarges_but_drops_nothing(root):
    source = folder(root, "merge").open("train")
    seen, sizes = Counter[int](), set()
    for batch in batches(source, 0, 0, 200, 8):
        counts = torch.ones(8) if batch.counts is None else batch.counts
        rows = [row for row, c in zip(batch.row.tolist(), counts, strict=True) if c]
        seen.update(rows)
        sizes.add(tuple(batch.x.shape[2:]))
    assert seen == Counter(range(200)) and len(sizes) < 9
    fewest = min(len(bucket.rows) for bucket in plan_of(source, 0, 8).buckets)
    assert fewest >= 8


def test_no_picture_is_stretched(tmp_path):
    """A circle stays one in every bucket, whether it is cropped or padded."""
    for i, (h, w) in enumerate([(40, 40), (44, 90), (90, 44), (50, 60), (36, 130)]):
        y, x = np.mgrid[:h, :w]
        disc = (y - (h - 1) / 2) ** 2 + (x - (w - 1) / 2) ** 2 < 9**2
        Image.fromarray((255 * disc).astype(np.uint8)).save(tmp_path / f"{i}.png")
    for fit, policy in itertools.product(("crop", "pad", "adm"), ("repeat", "merge")):
        source = folder(tmp_path, policy, fit=fit, test_share=0.01, enlarge=True).open("train")
        for batch in batches(source, 0, 0, 4, 2):
            for x in batch.x[:, 0] > 0:
                h, w = x.shape
                middle = x[h // 2, :], x[:, w // 2]
                if fit == "pad":  # without the white of the padding
                    middle = tuple(_inner(line) for line in middle)
                across, down = (int(line.sum()) for line in middle)
                assert abs(across - down) <= 1 <= down, (fit, policy, x.shape)


def _inner(line: torch.Tensor) -> torch.Tensor:
    """A line without the white at its ends."""
    dark = (~line).nonzero().flatten()
    return line[int(dark[0]) : int(dark[-1]) + 1]


def test_pictures_outside_of_every_bucket_or_too_small_are_refused_and_counted(tmp_path):
    many(tmp_path, 20)
    picture(tmp_path / "train" / "needle.png", 1, 4000)
    picture(tmp_path / "train" / "tower.png", 200, 20)
    picture(tmp_path / "train" / "small.png", 12, 12)
    (tmp_path / "train" / "broken.png").write_bytes(b"no")
    report = check(folder(tmp_path), 8)
    kinds = {Path(one.file).stem: one.kind for one in report.refused}
    assert kinds == {"needle": "aspect ratio", "tower": "aspect ratio", "small": "too small",
                     "broken": "unreadable"}  # fmt: skip
    text = "\n".join(lines(report))
    assert "1x4000 is outside of data.buckets, which go from 32x8 to 8x32" in text
    assert report.used == {"train": 20, "test": 27}
    source = folder(tmp_path).open("train")
    assert len(source) == 20 and {one.kind for one in source.refused} == set(kinds.values())
    assert len(folder(tmp_path, enlarge=True).open("train")) == 21


def test_turned_pictures_go_where_they_are_seen_to_belong(tmp_path):
    for name in ("a", "b"):
        image = Image.open(picture(tmp_path / f"{name}.png", 12, 20))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / f"{name}.png", exif=exif)
        assert shape_of(tmp_path / f"{name}.png") == (20, 12)
    assert folder(tmp_path).open("train").spec.buckets == ((20, 12),)


def test_an_archive_has_buckets_too(root, tmp_path):
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root).as_posix())
    buckets = BucketsConfig(smallest=8, largest=32, step=4)
    packed = ZipConfig(path=str(path), size=16, buckets=buckets).open("train")
    for a, b in zip(batches(packed, 0, 0, 40, 8), batches(folder(root).open("train"), 0, 0, 40, 8),
                    strict=True):  # fmt: skip
        assert torch.equal(a.x, b.x)


def test_the_fingerprint_tells_other_buckets_from_these(root):
    one = folder(root).open("train").spec
    other = FolderConfig(path=str(root), size=16, buckets=BucketsConfig(smallest=8, largest=24,
                         step=8)).open("train").spec  # fmt: skip
    assert one.fingerprint != other.fingerprint != folder(root).open("test").spec.fingerprint
    assert one.fingerprint == folder(root, "small").open("train").spec.fingerprint


def test_where_a_bucket_of_a_large_set_goes_bad_its_neighbours_give_way(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "IN_MEMORY", 0)
    many(tmp_path, 30)
    source = folder(tmp_path).open("train")
    lonely = min(source.buckets, key=lambda bucket: len(bucket.rows))
    files = [source.item(row).file for row in lonely.rows.tolist()]
    for file in files:
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[:60])  # the head stays
    heard = []
    found = list(batches(source, 0, 0, 30, 4, refused=lambda one, images: heard.append(one.file)))
    assert sorted(heard) == sorted(files) and lonely.size in {tuple(b.x.shape[2:]) for b in found}


# What is said of it.


def test_the_report_counts_buckets_and_says_what_an_epoch_uses(root):
    report = check(folder(root), 8)
    assert report.epoch is not None
    counts = report.epoch.counts
    assert sum(counts.values()) == 200 and len(counts) == 9
    batches_of = sum(-(-n // 8) for n in counts.values())
    text = "\n".join(lines(report))
    assert f"an epoch uses 200 (200 to train, 27 to test) in {batches_of} batches of 8" in text
    assert f"{8 * batches_of - 200} places of batches are filled up with repeats" in text
    assert f"16x16 ({counts[16, 16]})" in text and "buckets hold less than a batch of 8" in text
    told = facts(report)
    assert told["buckets"]["train"] == {f"{h}x{w}": n for (h, w), n in counts.items()}
    assert told["epoch"]["repeats"] == 8 * batches_of - 200 and json.dumps(told)
    source = folder(root).open("train")
    assert counts == {b.size: len(b.rows) for b in source.buckets}


def test_the_report_names_what_the_first_epoch_drops(root):
    report = check(folder(root, "drop"), 8, seed=5)
    source = folder(root, "drop").open("train")
    plan = plan_of(source, 5, 8)
    assert report.epoch and report.epoch.used == plan.used < 200
    names = [source.item(row).file for row in plan.left_out(0)]
    assert list(report.epoch.left_out) == names and len(names) == 200 - plan.used
    assert plan.left_out(0) != plan.left_out(1)
    text = "\n".join(lines(report))
    assert f"{len(names)} pictures are left out of every epoch" in text
    assert f"  left out {names[0]}" in text
    assert "buckets hold less than a batch of 8, and no epoch ever uses those: 28x8" in text


def test_the_report_says_what_is_merged(root):
    report = check(folder(root, "merge"), 8)
    assert report.epoch and len(report.epoch.counts) < 9 and not report.epoch.short
    assert "merged into" in "\n".join(lines(report))
