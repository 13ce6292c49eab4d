"""Several processes train the run that one trains, and end together whatever happens to one."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pointillist as pt
from pointillist.data.loader import batches
from pointillist.data.source import Source
from pointillist.describe import describe, refuse_too_large
from pointillist.engine import checkpoint
from pointillist.engine.log import read
from pointillist.engine.ranks import Ranks, joined
from pointillist.run import Run

from .ranks_case import TOY

Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Runs words of `pointillist` on several ranks."""
    script = [sys.executable, str(Path(__file__).with_name("ranks_case.py"))]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=one_thread
    )
    assert process.stdin and process.stdout

    def run(*words: object, **case: Any) -> list[dict[str, Any]]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"words": [str(word) for word in words], **case}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def train(ask: Ask, out: Path, *more: object, **case: Any) -> list[dict[str, Any]]:
    return ask("train", "debug", *TOY, *more, "--out", out, **case)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    last = checkpoint.complete(folder / "checkpoints")[-1]
    groups = {name.rpartition("-")[0] for name in checkpoint.facts_of(last)["files"]}
    return {
        f"{group}/{name}": value
        for group in sorted(groups)
        for name, value in checkpoint.load(last, group).items()
    }


def check_same(a: Path, b: Path) -> None:
    """Weights, averages, moments and log agree up to the order of summation."""
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for name, value in left.items():  # moments are far smaller than weights
        near = 1e-5 * (min(1.0, float(value.abs().max())) if "exp_avg" in name else 1.0)
        torch.testing.assert_close(right[name], value, rtol=1e-5, atol=near, msg=name)
    for one, other in zip(read(a / "log.jsonl"), read(b / "log.jsonl"), strict=True):
        assert one.keys() == other.keys()
        assert one.pop("event") == other.pop("event")
        one.pop("images_per_second", 0), other.pop("images_per_second", 0)
        assert other == pytest.approx(one, rel=1e-5)


@pytest.fixture(scope="module")
def alone(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert train(ask, folder, count=1)[0]["code"] == 0
    return folder


def test_two_ranks_train_the_run_that_one_trains_and_one_of_them_writes(ask, alone, tmp_path):
    first, second = train(ask, tmp_path)
    assert (first["code"], second["code"]) == (0, 0)
    assert "on cpu and 1 more" in first["out"]
    assert not first["err"] + second["out"] + second["err"]
    check_same(alone, tmp_path)
    saved = [path.name for path in checkpoint.complete(tmp_path / "checkpoints")]
    assert saved == ["000000064", "000000128", "000000192"]


SHORT = ("train.images=64", "train.batch=16", "train.save_every=64", "train.log_every=16")
WAYS = {
    "muon": ("optim.hidden=muon", "optim.weight_decay=0.1"),
    "micro-batches": ("train.micro_batch=3",),
    "one larger than the share": ("train.micro_batch=12",),
    "a mixture": ("model.encoder.kind=grid", "train.batch=2", "train.images=8", "train.log_every=2",
                  "train.save_every=8", "task.kind=mixture",
                  "task.tasks=[{kind: generate}, {kind: hints, share: [0.1, 0.5]}]"),
    "alignment": ("loss.align.weight=0.5", "loss.align.block=1", "loss.align.stop_after=32"),
    "many averages": ("train.ema_power=[0.05, 0.1]", "loss.frequency.weight=0.5"),
    "statistics and scales": ("optim.zscore={threshold: 0.2, warmup: 2}", "loss.gain.weight=0.1"),
    "scales": ("model.kind=pixnerd", "model.width=32", "model.depth=1", "model.heads=2",
               "model.patch_size=8", "model.decoder_width=8", "model.scales=[1, 2]",
               "model.jitter=0.5"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_is_the_same_on_two_ranks(ask, tmp_path, way):
    words = (*SHORT, *WAYS[way])
    assert [one["code"] for one in train(ask, tmp_path / "a", *words, count=1)] == [0]
    assert [one["code"] for one in train(ask, tmp_path / "b", *words)] == [0, 0]
    check_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_another_number_of_ranks_goes_on_with_the_run(ask, alone, tmp_path, before, after):
    found = train(ask, tmp_path, count=before, trouble="stop", rank=before - 1)
    assert {one["code"] for one in found} == {130}
    assert found[0]["err"] == "pointillist: stopped at 96 images; saved, --resume continues\n"
    assert not any(one["err"] for one in found[1:])
    assert read(tmp_path / "log.jsonl")[-1]["images"] == 96
    assert {one["code"] for one in train(ask, tmp_path, "--resume", count=after)} == {0}
    check_same(alone, tmp_path)


TROUBLES = {
    # What happens, to which rank: the one sentence.
    ("no memory", 1): "16 samples at once do not fit into the memory of cpu, nor does one; choose",
    ("unreadable", 1): "a.png cannot be read; mend it",
    ("full disk", 0): "000000064 cannot be written: No space left",
    ("never finite", 1): "loss or gradient was not finite in 3 steps in a row at 128 images",
    ("other words", 1): "optim.lr is 0.5 on rank 1 and 0.001 on rank 0; start all with the same",
    ("no data", 0): "the pictures are not there; bring them back",
    ("no data", 1): "the pictures are not there; bring them back",
    ("other data", 1): "data.path holds other data on rank 1 than on rank 0",
    ("killed", 1): "one of the 2 processes has ended without a word",
}


@pytest.mark.parametrize(("trouble", "rank"), TROUBLES)
def test_what_befalls_one_rank_ends_all_with_one_sentence(ask, tmp_path, trouble, rank):
    first, second = train(ask, tmp_path, "train.patience=3", trouble=trouble, rank=rank)
    assert first["err"].startswith(f"pointillist: {TROUBLES[trouble, rank]}")
    assert first["err"].count("\n") == 1 and not second["err"]
    assert (first["code"], second["code"]) == (2, -9 if trouble == "killed" else 2)


def test_a_fault_of_ours_on_one_rank_is_traced_there_and_ends_all(ask, tmp_path):
    first, second = train(ask, tmp_path, trouble="bug")
    assert first["err"] == (
        "pointillist: rank 1 failed by KeyError: 'a bug'; it has printed where\n"
    )
    assert second["err"].endswith("KeyError: 'a bug'\n")
    assert (first["code"], second["code"]) == (2, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_memory_runs_out_goes_on_in_smaller_portions(ask, alone, tmp_path, rank):
    found = train(ask, tmp_path, trouble="memory", rank=rank)
    assert [one["code"] for one in found] == [0, 0]
    assert found[0]["out"].count(f"memory{' on rank 1' * rank}: 16 samples at once") == 1
    log = read(tmp_path / "log.jsonl")
    event = {"event": "memory", "images": 96, "rank": rank, "from": 16, "to": 4}
    assert [e for e in log if e["event"] == "memory"] == [event]
    log.remove(event)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    check_same(alone, tmp_path)
    (*_, last) = checkpoint.complete(tmp_path / "checkpoints")
    assert checkpoint.facts_of(last)["portion"] == ([] if rank else [16, 4])


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(ask, tmp_path):
    assert [one["code"] for one in train(ask, tmp_path, trouble="not finite")] == [0, 0]
    log = read(tmp_path / "log.jsonl")
    assert [e["images"] for e in log if e["event"] == "skipped"] == [96]
    assert [e["skipped"] for e in log if e["event"] == "step"] == [0, 0, 1, 1, 1, 1]
    assert all(torch.isfinite(value).all() for value in tensors(tmp_path).values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train.batch=33",), "train.batch is 33, which 2 processes cannot share evenly"),
        (("--resume",), "run.yaml is missing; there is no run to resume"),
        (("optim.hidden=sgd",), "optim.hidden"),
        (("train.batch=20M",), "10000000 samples at once of this model needs"),
    ],
)
def test_mistakes_are_told_once(ask, tmp_path, words, sentence):
    first, second = train(ask, tmp_path, *words)
    assert sentence in first["err"] and first["err"].count("\n") == 1 and not second["err"]
    assert first["code"] == second["code"] == 2


def test_a_run_that_is_there_is_refused_once_and_left_alone(ask, alone):
    before = (alone / "log.jsonl").read_text()
    first, second = train(ask, alone)
    assert "already holds a run; --resume continues it" in first["err"] and not second["err"]
    assert first["code"] == second["code"] == 2
    assert (alone / "log.jsonl").read_text() == before


def test_sums_take_in_ranks_without_a_gradient_and_none_stays_none(ask):
    found = [json.loads(one["out"]) for one in ask(call="sums", count=3)]
    assert found[0] == found[1] == found[2]
    assert found[0]["weights"] == [[0.0] * n for n in (3, 1, 2, 7, 2)]
    expected = [[6.0] * 3, [20.0], None, [6000.0] * 7, [10000.0] * 2]
    assert found[0]["gradients"] == expected
    assert found[0]["told"] == {"odd": [1], "rank": ["rank 0", "rank 1", "rank 2"], "never": []}


@pytest.mark.slow
def test_torchrun_starts_it_and_its_end_is_passed_on(tmp_path, alone):
    """The whole way: torchrun, two ranks, SIGTERM to torchrun, and one process that goes on."""
    words = ["-m", "pointillist", "train", "debug", *TOY, "--out", str(tmp_path)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launch, *words], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.time() + 100
    while time.time() < end and not checkpoint.complete(tmp_path / "checkpoints"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    last = int(checkpoint.complete(tmp_path / "checkpoints")[-1].name)
    # Between the signal and the ranks the run may have come to its end.
    said = f"pointillist: stopped at {last} images; saved, --resume continues"
    assert errors.count("pointillist: ") == errors.count(said) == (last < 192)
    pt.train(Run.load("debug", *TOY), tmp_path, resume=True)
    check_same(alone, tmp_path)


def test_others_that_are_not_there_are_told_of(monkeypatch, tmp_path):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    sentence = "WORLD_SIZE is 2 and RANK is not set, but the other processes are not reached: "
    with pytest.raises(pt.InputError, match=sentence):
        pt.train(Run.load("debug", *TOY), tmp_path / "out")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        pt.InputError, match="not reached: .*MASTER_ADDR.*; start all with torchrun"
    ):
        pt.train(Run.load("debug", *TOY), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as ranks, joined() as again:
        assert ranks.leads and ranks.count == again.count == 1
        p = torch.nn.Parameter(torch.ones(2))
        ranks.sum_gradients([p])
        assert p.grad is None and not torch.distributed.is_initialized()
        assert ranks.meet(stop=True, none=[]) == {"stop": [True], "none": []}
        assert ranks.part_of(7, torch.device("cpu")) == 7 and ranks.local == 0
        assert ranks.sum([torch.ones(()), torch.zeros(())]).tolist() == [1, 0]
    with pytest.raises(KeyError), joined():
        raise KeyError


@functools.cache
def emoji() -> Source:
    return Run.load("debug").data.open("train")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 40))
def test_parts_of_all_ranks_are_the_batches_of_one(ranks, share, skip, stop):
    source, size = emoji(), ranks * share
    start = skip * size
    whole = list(batches(source, 3, start, start + stop, size))
    parts = [list(batches(source, 3, start, start + stop, size, part=(i, ranks)))
             for i in range(ranks)]  # fmt: skip
    for batch, *shares in zip(whole, *parts, strict=True):
        for name in ("index", "x", "label", "row"):
            joint = torch.cat([getattr(one, name) for one in shares])
            assert torch.equal(getattr(batch, name), joint)


def test_too_large_a_batch_is_named_as_it_was_set():
    run = Run.load("debug", *TOY)
    facts = describe(run, run.data.open("train").spec)
    with pytest.raises(pt.InputError, match="train.batch=32 of this model needs"):
        refuse_too_large(run, facts, 100, "cpu")
    small = Run.load("debug", *TOY, "train.micro_batch=16")
    with pytest.raises(pt.InputError, match="16 samples at once of this model needs"):
        refuse_too_large(small, facts, 100, "cpu")


def test_a_device_for_one_process_is_refused_to_several():
    with pytest.raises(pt.InputError, match="device is mps, which one process alone can use"):
        Ranks(1, 2).place(torch.device("mps"))
