"""Runs on buckets: resumed, shared by ranks, judged; what fills a batch up does not count."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import pointillist as pt
from pointillist import gradient
from pointillist.data.collection import nominal
from pointillist.data.loader import batches, plan_of
from pointillist.describe import describe
from pointillist.engine.ema import EMA
from pointillist.engine.log import read
from pointillist.evaluation import evaluate
from pointillist.evaluation.neighbours import nearest
from pointillist.models import Network
from pointillist.monitor import Validation
from pointillist.run import Run, to_dict
from pointillist.types import InputError
from pointillist.validation import held_out, held_out_batches, velocity_errors

from .buckets_case import many
from .test_ranks import ask, check_same, tensors  # noqa: F401

TOY = (
    "model.width=16", "model.depth=1", "model.heads=2", "model.context_tokens=0",
    "model.bottleneck=8", "train.images=60", "train.batch=8", "train.save_every=30",
    "train.log_every=1", "train.grid=0", "train.validate=12", "train.ema=[0.9]", "train.keep=0",
    "optim.warmup=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many(tmp_path_factory.mktemp("few"), 50)


def words(root: Path, policy: str = "repeat", *more: str) -> tuple[str, ...]:
    buckets = f"{{smallest: 8, largest: 32, step: 4, policy: {policy}}}"
    return (*TOY, f"data.buckets={buckets}", "data.kind=folder", f"data.path={root}",
            "data.size=16", *more)  # fmt: skip


def toy(root: Path, policy: str = "repeat", *more: str) -> Run:
    return Run.load("debug", *words(root, policy, *more))


class Stop(Exception):
    pass


@pytest.mark.parametrize("policy", ["repeat", "small", "merge", "drop"])
def test_a_run_stopped_in_mid_epoch_goes_on_as_if_it_had_not(root, tmp_path, policy):
    run = toy(root, policy)
    pt.train(run, tmp_path / "a")
    stops = [e["images"] for e in read(tmp_path / "a" / "log.jsonl") if e["event"] == "step"]

    def halt(event):
        if event["event"] == "step" and event["images"] == stops[5]:
            raise Stop

    with pytest.raises(Stop):
        pt.train(run, tmp_path / "b", report=halt)
    pt.train(run, tmp_path / "b", resume=True)
    for name, value in tensors(tmp_path / "a").items():
        assert torch.equal(value, tensors(tmp_path / "b")[name]), name
    a, b = ([{k: v for k, v in e.items() if k != "images_per_second"}
             for e in read(tmp_path / name / "log.jsonl")] for name in "ab")  # fmt: skip
    assert a == b
    plan = plan_of(run.data.open("train"), 0, 8)
    slots = plan.slots(0, 60)
    assert stops == [slot.first + slot.size for slot in slots] and stops[-1] >= 60
    left = [e for e in a if e["event"] == "left out"]
    expected = {"event": "left out", "images": 0, "pictures": 50 - plan.used, "of": 50}
    assert left == ([expected] if policy == "drop" else [])


def test_repeats_and_smaller_batches_train_the_same(root, tmp_path):
    for policy in ("repeat", "small"):
        pt.train(toy(root, policy), tmp_path / policy)
    check_same(tmp_path / "repeat", tmp_path / "small")


@pytest.mark.parametrize("policy", ["repeat", "small"])
def test_two_ranks_train_the_run_that_one_trains(ask, root, tmp_path, policy):  # noqa: F811
    for count in (1, 2):
        found = ask("train", "debug", *words(root, policy), "--out", tmp_path / str(count),
                    count=count)  # fmt: skip
        assert [one["code"] for one in found] == [0] * count, found
    check_same(tmp_path / "1", tmp_path / "2")


def awake(run: Run) -> Network:
    torch.manual_seed(0)
    model = run.model.build(run.data.open("train").spec)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    return Network(model)


MIXED = ("task.kind=mixture", "model.encoder.kind=grid",
         "task.tasks=[{kind: generate}, {kind: hints, share: [0.1, 0.5]}]")  # fmt: skip


@pytest.mark.parametrize("more", [(), MIXED, ("augment.flip=true", "train.micro_batch=3")], ids=str)
def test_what_fills_a_batch_has_no_part_in_the_gradient(root, more):
    run = toy(root, "repeat", *more)
    source, network = run.data.open("train"), awake(run)
    filled = next(b for b in batches(source, 0, 0, 50, 8) if b.counts is not None)
    assert filled.counts is not None
    n = int(filled.counts.sum())
    bare = filled.part(slice(n))._replace(counts=None)
    found = []
    for batch in (filled, bare):
        network.model.zero_grad(set_to_none=True)
        terms = gradient.backward(run, network, batch, torch.device("cpu"))
        gradients = [p.grad.clone() for p in network.model.parameters()]
        found.append((gradients, {name: float(v) for name, v in terms.items()}))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# Held-out pictures.


def test_validation_asks_of_every_bucket_at_its_own_size(root):
    run, network = toy(root), awake(toy(root))
    test = run.data.open("test")
    groups = held_out_batches(test, 12)
    assert sum(batch.x.shape[0] for batch in groups) == 12 and len(groups) > 5
    assert {tuple(batch.x.shape[2:]) for batch in groups} <= set(test.spec.buckets)
    every = [int(i) for batch in groups for i in batch.index]
    assert len(set(every)) == 12
    # The error of each is that of the picture alone, under the noise of its number.
    squares = places = 0.0
    for batch in groups:
        for i in range(batch.x.shape[0]):
            found = velocity_errors(network, run.objective, batch.x[i : i + 1], None, (0.5,),
                                    numbers=batch.index[i : i + 1])  # fmt: skip
            squares, places = squares + float(found.squares), places + float(found.places)
    validation = Validation(run, test, None)
    told = validation(network.model, network, EMA(network.model, (0.9,)))
    assert told["velocity@0.5"] == pytest.approx(squares / places, rel=1e-5)


def test_all_else_sees_held_out_pictures_at_the_nominal_size(root):
    run = toy(root, "repeat", "data.enlarge=true")
    test = run.data.open("test")
    x, _ = held_out(test, 5)
    plain = nominal(run.data).open("test")
    assert tuple(x.shape[1:]) == (3, 16, 16) and len(plain) == len(test) == 27
    order = [test.item(row).file for row in range(5)]
    names = sorted(p.relative_to(root).as_posix() for p in (root / "val").iterdir())
    assert torch.equal(x, held_out(plain, 27)[0][[names.index(name) for name in order]])
    drawn = ((x + 1) * 127.5).round().byte()
    assert nearest(drawn, plain, 1).distance.max() == 0
    assert nominal(Run.load("debug").data) == Run.load("debug").data


def test_a_run_with_hints_is_drawn_at_the_nominal_size_and_judged_there(root, tmp_path):
    run = toy(root, "repeat", "task.kind=hints", "model.encoder.kind=grid", "train.grid=3",
              "train.images=16", "sample.steps=1", "data.enlarge=true")  # fmt: skip
    pt.train(run, tmp_path / "run")
    (sheet,) = (tmp_path / "run" / "samples").iterdir()
    with Image.open(sheet) as drawn:
        assert drawn.size == (3 * 16 + 4, 3 * 16 + 4)
    (event,) = (e for e in read(tmp_path / "run" / "log.jsonl") if e["event"] == "validation")
    assert math.isfinite(event["hinted@0.5"]) and math.isfinite(event["velocity@0.5"])
    found = evaluate(tmp_path / "run", metrics=("psnr", "velocity"), count=4, draws=2, steps=1)
    assert found["psnr"]["n"] == 4 and found["velocity@0.5"]["n"] == 4
    oblong = pt.load(tmp_path / "run").sample(count=1, size=(20, 12), steps=1)
    assert oblong.shape == (1, 3, 20, 12)


# What fits, and what it takes.


def test_memory_is_that_of_the_largest_bucket_and_cost_of_the_nominal(root):
    run = toy(root)
    spec = run.data.open("train").spec
    largest = max(spec.buckets, key=math.prod)
    assert math.prod(largest) > 256
    plain, found = describe(run, dataclasses.replace(spec, buckets=())), describe(run, spec)
    assert found["macs"] == plain["macs"] and found["tokens"] == 16
    assert found["activation_bytes"] > plain["activation_bytes"]
    at = dataclasses.replace(
        spec, buckets=(), axes=tuple(dataclasses.replace(axis, size=n)
                                     for axis, n in zip(spec.axes, largest, strict=True))
    )  # fmt: skip
    assert found["activation_bytes"] == describe(run, at)["activation_bytes"]


def test_a_step_that_does_not_suit_the_patches_is_refused(root):
    run = toy(root, "repeat", "model.patch_size=8")
    with pytest.raises(InputError, match="data.buckets.step is 4, which makes a bucket of .* jit"):
        run.check(run.data.promise())
    good = Run.load(
        "debug",
        *TOY,
        "data.kind=folder",
        f"data.path={root}",
        "data.size=16",
        "data.buckets={smallest: 8, largest: 32, step: 8}",
        "model.patch_size=8",
    )
    good.check(good.data.promise())


def test_masks_of_one_size_are_refused_in_buckets(root, tmp_path):
    mask = Image.new("L", (16, 16), 255)
    mask.putpixel((3, 3), 0)
    mask.save(tmp_path / "mask.png")
    run = toy(root, "repeat", "task.kind=inpaint", f"task.masks={tmp_path / 'mask.png'}",
              "model.encoder.kind=grid")  # fmt: skip
    with pytest.raises(
        InputError, match="data.buckets has pictures of .*, and .*mask.png has 16x16"
    ):
        run.check(run.data.promise())


def test_flips_and_turned_pictures_go_with_every_shape(root):
    run = toy(root, "repeat", "augment.geometric=0.5", "model.augment_labels=9")
    run.check(run.data.promise())
    source, network = run.data.open("train"), awake(run)
    for batch in batches(source, 0, 0, 50, 8):
        terms = gradient.backward(run, network, batch, torch.device("cpu"))
        assert torch.isfinite(terms["loss"])


def test_latents_and_packed_sets_have_no_buckets(root, tmp_path):
    from pointillist.data.pack import pack

    with pytest.raises(InputError, match="data.of.buckets is set, but latents of a set have one"):
        Run.load("debug", "data.kind=latent", "data.autoencoder=x",
                 f"data.of={{kind: folder, path: {root}, size: 16, buckets: {{smallest: 8, "
                 "largest: 32, step: 4}}")  # fmt: skip
    with pytest.raises(InputError, match="data.buckets is set, but a packed set has one size"):
        pack(toy(root).data, tmp_path / "a.zip")


def test_buckets_are_part_of_the_configuration(root, tmp_path):
    run = toy(root, "merge")
    run.save(tmp_path / "run.yaml")
    assert Run.load(tmp_path / "run.yaml") == run
    assert to_dict(run)["data"]["buckets"]["policy"] == "merge"
    assert to_dict(Run.load("debug", "data.kind=folder"))["data"]["buckets"] is None
    with pytest.raises(InputError, match=r"data.buckets is null, so give it as a whole, as data.b"):
        Run.load("debug", "data.kind=folder", "data.buckets.step=4")
    # What a run has learnt may be looked at without the buckets that it was learnt on.
    dataclasses.replace(run, data=dataclasses.replace(run.data, buckets=None)).check(
        run.data.promise()
    )
    # A branch is checked against what is set beside it, whatever comes first.
    assert toy(root).data.buckets.step == 4
    both = toy(root, "repeat", "data.buckets.policy=small")
    assert both.data.buckets.policy == "small" and both.data.buckets.step == 4
