"""A teacher's answers on the disk: asked once for every picture, in this run and in the next."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pointillist as pt
from pointillist.engine import checkpoint
from pointillist.frozen import remembered, vision
from pointillist.frozen.remembered import Remembering, names_of
from pointillist.losses import align
from pointillist.run import Run
from pointillist.types import InputError
from tests.test_align import TOY


class Means:
    """A teacher of three channels: the mean colour of every cell, and which rows it was shown."""

    width, patch, digest = 3, 1, "of-this-teacher-alone"

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        self.shown += len(x)
        return nn.functional.adaptive_avg_pool2d(x, grid)


def pictures(n: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> torch.Tensor:
    levels = torch.randint(256, (n, 3, *size), generator=torch.Generator().manual_seed(seed))
    return levels / 127.5 - 1


def test_a_picture_is_asked_about_once_for_each_grid(tmp_path):
    teacher, x = Means(), pictures(5)
    kept = Remembering(teacher, tmp_path)
    first = kept(x, (2, 2))
    assert teacher.shown == 5
    again = kept(x[[4, 0, 0, 3]], (2, 2))
    assert teacher.shown == 5 and torch.equal(again, first[[4, 0, 0, 3]])
    assert kept(x, (4, 2)).shape == (5, 3, 4, 2) and teacher.shown == 10
    assert kept(x.flip(3), (2, 2)).shape == first.shape and teacher.shown == 15
    exact = nn.functional.adaptive_avg_pool2d(x, (2, 2))
    assert ((first - exact).abs() <= exact.abs() * 2**-11).all()


def test_one_picture_twice_in_a_batch_is_one_question(tmp_path):
    teacher = Means()
    kept = Remembering(teacher, tmp_path)
    found = kept(pictures(2)[[0, 1, 0]], (2, 2))
    assert teacher.shown == 2 and torch.equal(found[0], found[2])


def test_what_is_kept_is_found_by_the_next_and_by_no_other_teacher(tmp_path):
    kept, x = Remembering(Means(), tmp_path), pictures(4)
    first = kept(x, (2, 2))
    assert not list(tmp_path.rglob("part-*"))
    kept.flush()
    assert torch.equal(kept(x, (2, 2)), first)
    teacher = Means()
    later = Remembering(teacher, tmp_path)
    assert torch.equal(later(x.flip(0), (2, 2)), first.flip(0)) and teacher.shown == 0
    later.flush()
    assert len(list(tmp_path.rglob("part-*"))) == 1  # nothing new, nothing written
    other = Means()
    other.digest = "of-another-teacher"
    Remembering(other, tmp_path)(x, (2, 2))
    assert other.shown == 4


@settings(deadline=None, max_examples=20)
@given(order=st.lists(st.integers(0, 11), min_size=1, max_size=40), portion=st.integers(1, 7))
def test_in_any_order_and_portions_the_answers_are_the_teachers(tmp_path_factory, order, portion):
    folder = tmp_path_factory.mktemp("kept")
    x, exact = pictures(12), nn.functional.adaptive_avg_pool2d(pictures(12), (2, 2)).half().float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembered, "PART", 5 * 3 * 4 * 2)  # five answers
        teacher = Means()
        kept = Remembering(teacher, folder)
        for first in range(0, len(order), portion):
            some = order[first : first + portion]
            assert torch.equal(kept(x[some], (2, 2)), exact[some])
    assert teacher.shown == len(set(order))
    parts = [np.load(path) for path in folder.rglob("keys.npy")]
    assert sum(map(len, parts)) <= len(set(order))


def test_pictures_of_one_content_and_two_shapes_are_two():
    x = pictures(1, (4, 9))
    assert names_of(x) != names_of(x.reshape(1, 3, 9, 4))


def test_a_damaged_part_is_named_and_a_draft_is_no_part(tmp_path):
    kept = Remembering(Means(), tmp_path)
    kept(pictures(2), (2, 2))
    kept.flush()
    (path,) = tmp_path.glob("*/part-*")
    (path.parent / ".part-x.draft").mkdir()
    Remembering(Means(), tmp_path)(pictures(2), (2, 2))
    (path / "answers.npy").write_bytes((path / "answers.npy").read_bytes()[:-3])
    with pytest.raises(InputError, match=f"{path.name} is damaged; delete it"):
        Remembering(Means(), tmp_path)(pictures(2), (2, 2))


def test_answers_that_float16_cannot_hold_are_refused(tmp_path):
    class Huge(Means):
        def __call__(self, x, grid):
            return super().__call__(x, grid) + 1e6

    with pytest.raises(InputError, match=r"loss\.align\.cache keeps float16"):
        Remembering(Huge(), tmp_path)(pictures(1), (2, 2))


def test_a_run_asks_for_every_picture_once_and_its_like_for_none(tmp_path, monkeypatch):
    teachers: list[Means] = []

    def load(name, device):
        teachers.append(Means())
        return teachers[-1]

    monkeypatch.setattr(align, "load_teacher", load)
    monkeypatch.setattr(align, "promise", lambda name: vision.Promise(3, 0))

    def run(*more: str) -> Run:
        return Run.load("debug", *TOY, f"loss.align.cache={tmp_path / 'kept'}",
                        "augment.flip=false", *more)  # fmt: skip

    pt.train(run(), tmp_path / "a")
    asked = teachers[-1].shown
    assert 0 < asked <= 96
    pt.train(run(), tmp_path / "b")
    assert teachers[-1].shown == 0
    last = [checkpoint.complete(tmp_path / name / "checkpoints")[-1] for name in "ab"]
    for group in ("model", "beside"):
        one, other = (checkpoint.load(folder, group) for folder in last)
        assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [e for e in map(json.loads, Path(tmp_path / name / "log.jsonl").read_text().splitlines())
         if e["event"] == "step"] for name in "ab"
    ]  # fmt: skip
    assert [e["align"] for e in losses[0]] == [e["align"] for e in losses[1]]


def test_a_run_goes_on_with_its_cache_elsewhere_but_not_without(tmp_path):
    def run(cache: str, images: int) -> Run:
        return Run.load("debug", *TOY, f"loss.align.cache={cache}", f"train.images={images}",
                        "optim.schedule=constant")  # fmt: skip

    pt.train(run(str(tmp_path / "one"), 32), tmp_path / "run")
    with pytest.raises(InputError, match="loss.align.cache is , but the run"):
        pt.train(run("", 64), tmp_path / "run", resume=True)
    pt.train(run(str(tmp_path / "other"), 64), tmp_path / "run", resume=True)


def test_the_precision_of_the_run_is_not_the_answers(tmp_path):
    class Product(Means):
        def __call__(self, x, grid):
            pooled = super().__call__(x, grid)
            return (torch.full((3, 3), 1 / 3) @ pooled.flatten(2)).unflatten(2, grid)

    x = pictures(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = Remembering(Product(), tmp_path)(x, (2, 2))
    exact = Product()(x, (2, 2))
    assert ((found - exact).abs() <= exact.abs() * 2**-11).all()


def test_what_never_comes_again_is_not_kept():
    run = Run.load("debug", *TOY, "loss.align.cache=x", "augment.geometric=0.1",
                   "model.augment_labels=9")  # fmt: skip
    with pytest.raises(
        InputError, match=r"loss\.align\.cache is x, but augment\.geometric is 0\.1"
    ):
        run.check(run.data.promise())
