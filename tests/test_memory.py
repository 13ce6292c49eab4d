"""Training where memory runs out: the portion halves, and the run stays the run that was asked."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import pointillist as pt
from pointillist import gradient
from pointillist.console import line
from pointillist.data.loader import batches
from pointillist.describe import _saved, describe, observed
from pointillist.engine import checkpoint
from pointillist.engine.log import read
from pointillist.engine.optim import build_optimizer
from pointillist.gradient import Step, fitted
from pointillist.layers.fused import hidden_weights
from pointillist.losses.align import build_alignment
from pointillist.models import Network
from pointillist.run import Run
from pointillist.types import Given, InputError

TOY = (
    "model.width=16", "model.depth=2", "model.heads=2", "model.patch_size=8", "train.images=128",
    "train.batch=16", "train.save_every=32", "train.log_every=16", "train.grid=0",
    "train.validate=0", "train.keep=0", "optim.warmup=64",
)  # fmt: skip
ALIGNED = ("loss.align.weight=0.5", "loss.align.block=1")
CPU = torch.device("cpu")


def toy(*more: str) -> Run:
    return Run.load("debug", *TOY, *more)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, int]], list[int]]:
    """From the image counts on, as keys, a forward of more samples than the value has no memory.

    It fails in a forward, in the last portion of a batch, when gradients of others are there.
    """
    asked: list[int] = []

    def install(most: dict[int, int]) -> list[int]:
        backward, call = gradient.backward, Network.__call__
        room = [1 << 30, 0]

        def noticed(run, network, batch, device, micro_batch=0, alignment=None, step=None,
                    reader=None):  # fmt: skip
            found = [size for first, size in most.items() if step.first >= first]
            whole = batch.x.shape[0] if step is not None else 0
            room[:] = found[-1] if found else 1 << 30, whole
            asked.append(micro_batch)
            return backward(run, network, batch, device, micro_batch, alignment, step, reader)

        def narrow(self, xt, *rest, **more):
            room[1] -= xt.shape[0]
            if xt.shape[0] > room[0] and room[1] <= 0 and not xt.is_meta:
                raise torch.OutOfMemoryError("no")
            return call(self, xt, *rest, **more)

        monkeypatch.setattr(gradient, "backward", noticed)
        monkeypatch.setattr(Network, "__call__", narrow)
        return asked

    return install


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    (*_, last) = checkpoint.complete(folder / "checkpoints")
    groups = {name.rpartition("-")[0] for name in checkpoint.facts_of(last)["files"]}
    return {
        f"{group}/{name}": value
        for group in sorted(groups)
        for name, value in checkpoint.load(last, group).items()
    }


def of_kind(folder: Path, kind: str) -> list[dict]:
    return [e for e in read(folder / "log.jsonl") if e["event"] == kind]


def halt(at: int) -> Callable[[dict], None]:
    def watch(event: dict) -> None:
        if event["event"] == "step" and event["images"] == at:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize("more", [(), ALIGNED, ("optim.hidden=muon",)])
def test_a_run_whose_memory_ran_out_is_the_undisturbed_one(tmp_path, short, more):
    pt.train(toy(*more), tmp_path / "a")
    asked, told = short({64: 5}), []
    pt.train(toy(*more), tmp_path / "b", report=told.append)
    assert asked == [16] * 5 + [8, 4] + [4] * 3
    event = {"event": "memory", "images": 80, "rank": 0, "from": 16, "to": 4}
    assert of_kind(tmp_path / "b", "memory") == [event] and told.count(event) == 1
    for one, other in zip(of_kind(tmp_path / "a", "step"), of_kind(tmp_path / "b", "step"),
                          strict=True):  # fmt: skip
        for name in one.keys() - {"event", "images_per_second"}:
            assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-6)
    ours, theirs = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert (tmp_path / "a" / "run.yaml").read_text() == (tmp_path / "b" / "run.yaml").read_text()


def test_a_repeated_batch_has_bit_for_bit_the_step_of_the_smaller_portion(tmp_path, short):
    """Nothing of the try that failed is left in the gradients."""
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(*ALIGNED), tmp_path / "a", report=halt(80))
    pt.train(toy(*ALIGNED, "train.micro_batch=8"), tmp_path / "a", resume=True)
    short({64: 8})
    pt.train(toy(*ALIGNED), tmp_path / "b")
    ours, theirs = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_size_is_kept_with_the_run_and_halves_again(tmp_path, short):
    asked = short({32: 8, 96: 2})
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path, report=halt(80))
    (*_, last) = checkpoint.complete(tmp_path / "checkpoints")
    assert last.name == "000000064" and checkpoint.facts_of(last)["portion"] == [16, 8]
    asked.clear()
    told: list[dict] = []
    pt.train(toy(), tmp_path, resume=True, report=told.append)
    assert asked == [8, 8, 8, 4, 2, 2]
    (begin, *_) = told
    assert begin["event"] == "begin"  # which counts what is in the memory together now
    whole = describe(toy(), toy().data.promise())
    assert begin["training_bytes"] == whole["training_bytes"] - 8 * whole["activation_bytes"]
    found = [(e["images"], e["from"], e["to"]) for e in of_kind(tmp_path, "memory")]
    assert found == [(48, 16, 8), (112, 8, 2)]
    assert "micro_batch: 0" in (tmp_path / "run.yaml").read_text()


def test_an_event_behind_the_checkpoint_is_told_once(tmp_path, short):
    short({64: 8})
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path, report=halt(80))
    pt.train(toy(), tmp_path, resume=True)
    assert [e["images"] for e in of_kind(tmp_path, "memory")] == [80]


def test_who_asks_for_another_portion_on_resume_has_it(tmp_path, short):
    asked = short({32: 4})
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path, report=halt(80))
    asked.clear()
    short({})
    pt.train(toy("train.micro_batch=12"), tmp_path, resume=True)
    assert set(asked) == {12}


def test_a_checkpoint_of_earlier_versions_knows_of_no_size(tmp_path):
    import json

    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path, report=halt(80))
    (*_, last) = checkpoint.complete(tmp_path / "checkpoints")
    facts = json.loads((last / "state.json").read_text())
    del facts["portion"], facts["norms"]
    (last / "state.json").write_text(json.dumps(facts))
    pt.train(toy(), tmp_path, resume=True)
    assert of_kind(tmp_path, "step")[-1]["images"] == 128


def test_one_sample_that_does_not_fit_is_one_sentence(tmp_path, short):
    short({32: 0})
    sentence = "16 samples at once do not fit into the memory of cpu, nor does one; choose a small"
    with pytest.raises(InputError, match=sentence):
        pt.train(toy(), tmp_path / "a")
    with pytest.raises(InputError, match="1 sample does not fit into the memory of cpu; choose"):
        pt.train(toy("train.micro_batch=1"), tmp_path / "b")


def test_room_for_the_first_moments_is_a_part_of_the_first_step(monkeypatch):
    """They are made by the step itself, which must not be the one to find that they do not fit."""
    run = toy(*ALIGNED)
    model = run.model.build(run.data.promise())
    made = build_alignment(run.loss.align, model, CPU)
    assert made is not None
    optimizer = build_optimizer(model, run.optim, hidden_weights(model), list(made.parameters()))
    batch = next(batches(run.data.open("train"), run.seed, 0, 16, 16))
    empty, tries = torch.empty_like, []

    def full(p, **more):
        tries.append(p)
        if len(tries) < 3:  # the first two tries find no room for the first moment
            raise torch.OutOfMemoryError("no")
        return empty(p, **more)

    monkeypatch.setattr(torch, "empty_like", full)
    args = run, Network(model), optimizer, batch, CPU
    terms, fits = fitted(*args, 16, made, Step(0, 16))
    monkeypatch.undo()
    assert fits == 4 and len(tries) == 2 + 2 * (len(list(model.parameters())) + 2)
    grads = [p.grad.clone() for p in (*model.parameters(), *made.parameters())]
    optimizer.zero_grad(set_to_none=True)
    again, _ = fitted(*args, 4, made, Step(0, 16))
    for one, p in zip(grads, (*model.parameters(), *made.parameters()), strict=True):
        assert torch.equal(one, p.grad)
    assert all(torch.equal(terms[name], again[name]) for name in terms)


def test_a_batch_smaller_than_the_portion_says_nothing_of_what_fits(short):
    run = toy()
    model = run.model.build(run.data.promise())
    optimizer = build_optimizer(model, run.optim, hidden_weights(model))
    batch = next(batches(run.data.open("train"), run.seed, 0, 6, 6))
    args = run, Network(model), optimizer, batch, CPU
    asked = short({0: 6, 16: 4})
    assert fitted(*args, 16, None, Step(0, 6))[1] == 16
    assert fitted(*args, 16, None, Step(16, 6))[1] == 3 and asked == [16, 16, 3]


def test_another_error_is_no_lack_of_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(gradient, "backward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        pt.train(toy(), tmp_path)


def test_pictures_and_validation_go_by_the_size_that_fits(tmp_path, short, monkeypatch):
    train_module = sys.modules["pointillist.train"]
    sizes: list[int] = []
    look = train_module.Validation.__call__

    def watched(self, *args):
        sizes.append(self.run.train.at_once)
        return look(self, *args)

    monkeypatch.setattr(train_module.Validation, "__call__", watched)
    short({32: 4})
    pt.train(toy("train.validate=4", "train.images=64"), tmp_path)
    assert sizes == [16, 4]


def test_the_console_has_one_line():
    event = {"event": "memory", "images": 80, "rank": 0, "from": 16, "to": 4}
    told = "       80 images  memory: 16 samples at once did not fit, 4 do, with the same result"
    assert line(event) == told
    assert "memory on rank 3: 16" in line({**event, "rank": 3})


# The estimate before the first step.


def held(run: Run, count: int) -> int:
    """Bytes that a forward of so many pictures keeps for backward, without the loss."""
    spec = run.data.promise()
    with torch.device("meta"):
        model = run.model.build(spec).train()
        x, t = torch.zeros(count, spec.channels, *spec.size), torch.zeros(count)
        given = Given(label=torch.zeros(count, dtype=torch.long) if spec.classes else None)
        given = observed(given, run.task.most(spec.size), spec, count)
    with _saved(model.parameters()) as kept:
        Network(model)(x, t, given)
    return kept[0]


@pytest.mark.parametrize("name", ["cifar10-jit", "cifar10-dit", "cifar10-pixeldit", "cifar10-sfc"])
def test_a_picture_more_takes_what_is_promised(name):
    run = Run.load(name, "train.precision=float32", "train.micro_batch=1")
    four = held(run, 6) - held(run, 2)  # of one alone less is copied
    facts = describe(run, run.data.promise())
    terms = 16 * 4 * 3 * 32 * 32  # the loss keeps fewer than 16 values for each one of the picture
    each = facts["activation_bytes"]
    assert four / 4 <= each <= four / 4 + terms
    # Whatever the portion, what is there once is there once.
    more = Run.load(name, "train.precision=float32", "train.micro_batch=9")
    assert (
        describe(more, run.data.promise())["training_bytes"] - facts["training_bytes"] == 8 * each
    )


def test_half_precision_shrinks_what_a_block_makes_and_not_what_comes_into_it():
    def kept(*more: str) -> int:
        run = Run.load("debug", *more)
        return describe(run, run.data.promise())["activation_bytes"]

    again = "train.gradient_checkpointing=true"
    assert kept("train.precision=bfloat16") < 0.8 * kept()
    full, half = kept(again), kept(again, "train.precision=bfloat16")
    deeper = kept(again, "model.depth=6") - full
    assert deeper == kept(again, "model.depth=6", "train.precision=bfloat16") - half > 0
    assert half < full


def test_an_optimizer_covers_what_is_trained_beside_the_model():
    """Dropping its gradients drops all."""
    model, beside = nn.Linear(3, 3), [nn.Parameter(torch.ones(2))]
    optimizer = build_optimizer(model, toy().optim, {}, beside)
    for p in (*model.parameters(), *beside):
        p.grad = torch.ones_like(p)
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in (*model.parameters(), *beside))
