"""Training: resumed runs, skipped steps, stops, logs and checkpoints that can be trusted."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import pointillist as pt
from pointillist import gradient
from pointillist.data import EmojiConfig, collection
from pointillist.data.loader import batches
from pointillist.data.source import InMemory
from pointillist.draws import Draw
from pointillist.engine import checkpoint
from pointillist.engine.log import read
from pointillist.engine.session import Interrupted, locked
from pointillist.models import Network
from pointillist.run import Run
from pointillist.types import Spec, grid_axes

train_module = sys.modules["pointillist.train"]  # pt.train is the function

TOY = (
    "model.width=32", "model.depth=2", "model.heads=2", "train.images=192", "train.batch=32",
    "train.save_every=64", "train.log_every=32", "train.grid=0", "train.validate=8",
    "train.ema=[0.9, 0.99]", "optim.warmup=64", "train.keep=0",
)  # fmt: skip


def toy(*more: str) -> Run:
    return Run.load("debug", *TOY, *more)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    last = checkpoint.complete(folder / "checkpoints")[-1]
    return {
        f"{group}/{name}": value
        for group in ("model", "optimizer", "ema-0.9", "ema-0.99")
        for name, value in checkpoint.load(last, group).items()
    }


def same(a: Path, b: Path) -> bool:
    left, right = tensors(a), tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def steps(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in event.items() if k != "images_per_second"}
        for event in read(folder / "log.jsonl")
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    pt.train(toy(), folder)
    return folder


def test_a_run_leaves_what_the_contract_says(unbroken):
    assert Run.load(unbroken) == toy()
    assert len(checkpoint.complete(unbroken / "checkpoints")) == 3
    assert [e["images"] for e in steps(unbroken) if e["event"] == "step"] == list(
        range(32, 193, 32)
    )
    model = pt.load(unbroken)
    assert model.sample(count=3, steps=2, seed=1).shape == (3, 3, 32, 32)


def test_the_same_run_is_the_same_run(unbroken, tmp_path):
    pt.train(toy(), tmp_path)
    assert same(unbroken, tmp_path) and steps(unbroken) == steps(tmp_path)


@pytest.mark.parametrize("stop_at", [32, 64, 160])
def test_a_resumed_run_equals_the_unbroken_run(unbroken, tmp_path, stop_at):
    class Stop(Exception):
        pass

    def halt(event):
        if event["event"] == "step" and event["images"] == stop_at:
            raise Stop

    with pytest.raises(Stop):
        pt.train(toy(), tmp_path, report=halt)
    pt.train(toy(), tmp_path, resume=True)
    assert same(unbroken, tmp_path)
    assert steps(tmp_path) == steps(unbroken)


def test_a_half_written_log_line_is_dropped_on_resume(unbroken, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path, report=lambda e: _raise(e, 96))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "ima')
    pt.train(toy(), tmp_path, resume=True)
    assert steps(tmp_path) == steps(unbroken)


def _raise(event, at):
    if event["images"] >= at:
        raise KeyboardInterrupt


@pytest.mark.parametrize("micro_batch", [8, 12, 32])
def test_micro_batches_have_the_gradient_of_the_whole(micro_batch):
    run = toy()
    source = run.data.open("train")
    torch.manual_seed(0)
    model = run.model.build(source.spec)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    batch = next(batches(source, run.seed, 0, 32, 32))

    def gradient_of(size: int) -> tuple[dict, list]:
        model.zero_grad(set_to_none=True)
        terms = gradient.backward(run, Network(model), batch, torch.device("cpu"), size)
        return terms, [p.grad.clone() for p in model.parameters()]

    terms, whole = gradient_of(0)
    again, parts = gradient_of(micro_batch)
    assert float(again["loss"]) == pytest.approx(float(terms["loss"]), rel=1e-5)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_micro_batches_train_the_same_up_to_rounding(unbroken, tmp_path):
    pt.train(toy("train.micro_batch=8"), tmp_path)
    for a, b in zip(steps(unbroken), steps(tmp_path), strict=True):
        for name in {"loss", "grad_norm"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-3)


def decoded_as_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A folder of pictures that counts as too large for the memory."""
    monkeypatch.setattr(collection, "IN_MEMORY", 0)
    for i in range(40):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (6 * i, 255 - 5 * i, 90)).save(folder / "ab"[i % 2] / f"{i}.png")
    (folder / "a" / "broken.png").write_bytes(b"no")
    (folder / "metadata.csv").write_text("file_name,text\nghost.png,boo\n")
    return "data.kind=folder", f"data.path={folder}", "data.size=16", "data.test_share=0.2"


WAYS = {
    "accumulation": ("train.micro_batch=8",),
    "dropout": ("model.dropout=0.3", "model.depth=4"),
    "bfloat16": ("train.precision=bfloat16",),
    "augmentation": ("augment.geometric=0.5", "model.augment_labels=9"),
    "no EMA warm-up": ("train.ema_warmup=false",),
    "muon": ("optim.hidden=muon", "optim.weight_decay=0.1"),
    "step-down": ("optim.step_down.at=96", "optim.step_down.clip=0.01"),
    "decay": ("optim.weight_decay=0.1", "optim.schedule=constant"),
    "hints": ("model.encoder.kind=grid", "task.kind=hints", "task.share=[0.1,0.5]"),
    "pixels": (
        "model.kind=pixeldit",
        "model.width=32",
        "model.depth=1",
        "model.heads=2",
        "model.patch_size=8",
        "model.pixel_width=4",
        "train.precision=bfloat16",
    ),
}


@pytest.mark.parametrize("more", [(), ("model.dropout=0.3", "model.depth=4")])
def test_blocks_that_are_computed_again_train_the_same_run(tmp_path, more):
    for name, recomputed in (("a", "false"), ("b", "true")):
        few = ("train.images=96", "train.save_every=96", *more)
        pt.train(toy(*few, f"train.gradient_checkpointing={recomputed}"), tmp_path / name)
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_is_resumed_bit_for_bit(tmp_path, way):
    run = toy(*WAYS[way])
    pt.train(run, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        pt.train(run, tmp_path / "b", report=lambda e: _raise(e, 96))
    pt.train(run, tmp_path / "b", resume=True)
    assert same(tmp_path / "a", tmp_path / "b") and steps(tmp_path / "a") == steps(tmp_path / "b")


def test_a_step_down_lowers_the_rate_and_clips_by_its_own_norm(tmp_path, monkeypatch):
    clips = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_",
                        lambda p, norm: clips.append(norm) or clip(p, norm))  # fmt: skip
    down = ("optim.step_down.at=96", "optim.step_down.clip=0.5", "optim.schedule=constant")
    pt.train(toy(*down), tmp_path)
    rates = [e["lr"] for e in steps(tmp_path) if e["event"] == "step"]
    assert rates == [0.0005, 0.001, 0.001, 0.0001, 0.0001, 0.0001]
    assert clips == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("workers", [0, 2])
def test_other_numbers_of_workers_resume_the_same_run(tmp_path, monkeypatch, workers):
    fields = decoded_as_needed(tmp_path / "pics", monkeypatch)
    pt.train(toy(*fields, "train.workers=1"), tmp_path / "a")
    run = toy(*fields, f"train.workers={workers}")
    with pytest.raises(KeyboardInterrupt):
        pt.train(run, tmp_path / "b", report=lambda e: _raise(e, 96))
    pt.train(run, tmp_path / "b", resume=True)
    assert same(tmp_path / "a", tmp_path / "b") and steps(tmp_path / "a") == steps(tmp_path / "b")
    (tmp_path / "pics").rename(tmp_path / "moved")  # the same pictures in another place
    pt.train(toy(*fields, f"data.path={tmp_path / 'moved'}"), tmp_path / "b", resume=True)
    (tmp_path / "moved" / "a" / "0.png").unlink()
    with pytest.raises(pt.InputError, match="holds other data than the run"):
        pt.train(toy(*fields, f"data.path={tmp_path / 'moved'}"), tmp_path / "b", resume=True)
    refused = [e["file"] for e in steps(tmp_path / "a") if e["event"] == "refused"]
    assert "a/broken.png" in refused and refused.count("ghost.png") == 1


def test_steps_skipped_before_and_after_a_stop_are_counted_in_a_row(tmp_path, monkeypatch):
    backward = gradient.backward

    def bad(run, network, batch, device, micro_batch=0, *beside):
        terms = backward(run, network, batch, device, micro_batch, *beside)
        if 32 <= int(batch.index[0]) < 128:
            next(network.model.parameters()).grad.fill_(torch.nan)
        return terms

    monkeypatch.setattr(gradient, "backward", bad)
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy("train.patience=3"), tmp_path, report=lambda e: _raise(e, 96))
    with pytest.raises(pt.InputError, match="not finite in 3 steps in a row at 128 images"):
        pt.train(toy("train.patience=3"), tmp_path, resume=True)


def test_what_was_cut_off_in_the_middle_of_a_save_is_no_obstacle(unbroken, tmp_path, monkeypatch):
    replace = checkpoint.os.replace

    def killed(source, target):
        if Path(target).name == "000000128":
            shutil.copytree(source, tmp_path / "left")  # what a kill would have left there
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "left").rename(tmp_path / "run" / "checkpoints" / ".000000128.draft")
    pt.train(toy(), tmp_path / "run", resume=True)
    assert same(unbroken, tmp_path / "run") and steps(unbroken) == steps(tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("images", [64, 80])
def test_a_run_made_longer_is_the_long_run(tmp_path, images):
    # The short one ends before its rate steps down, as a preset made short does.
    fixed = ("optim.schedule=constant", "optim.step_down.at=128", "optim.step_down.clip=0.01")
    pt.train(toy("train.images=192", *fixed), tmp_path / "a")
    pt.train(toy(f"train.images={images}", *fixed), tmp_path / "b")
    longer = toy("train.images=192", *fixed)
    pt.train(longer, tmp_path / "b", resume=True)
    assert same(tmp_path / "a", tmp_path / "b") and Run.load(tmp_path / "b") == longer


def test_a_folder_without_its_configuration_keeps_its_checkpoints(tmp_path):
    pt.train(toy(), tmp_path)
    (tmp_path / "run.yaml").unlink()
    log = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(pt.InputError, match="holds checkpoints, but its run.yaml is missing"):
        pt.train(toy(), tmp_path)
    assert len(checkpoint.complete(tmp_path / "checkpoints")) == 3
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_run_killed_while_it_began_can_begin_again(tmp_path, monkeypatch):
    def killed(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path)
    monkeypatch.undo()
    pt.train(toy(), tmp_path)


def test_a_configuration_edited_behind_the_run_is_refused_by_name(tmp_path):
    pt.train(toy(), tmp_path)
    path = tmp_path / "run.yaml"
    text = path.read_text()
    path.write_text(text.replace("width: 32", "width: 64"))
    with pytest.raises(pt.InputError, match="do not belong together"):
        pt.train(Run.load(tmp_path), tmp_path, resume=True)
    path.write_text(text.replace("  ema:\n", "  ema:\n  - 0.5\n"))
    with pytest.raises(pt.InputError, match="do not belong together"):
        pt.train(Run.load(tmp_path), tmp_path, resume=True)


def test_resume_names_the_field_that_differs(unbroken):
    with pytest.raises(pt.InputError, match="optim.lr is 0.002, but the run in .* has 0.001"):
        pt.train(toy("optim.lr=2e-3"), unbroken, resume=True)
    with pytest.raises(pt.InputError, match="train.images is 400"):
        pt.train(toy("train.images=400"), unbroken, resume=True)
    with pytest.raises(pt.InputError, match="model.kind is dit, but the run in .* has jit"):
        pt.train(toy("model.kind=dit", "model.width=32", "model.heads=2"), unbroken, resume=True)
    pt.train(toy("train.keep=9"), unbroken, resume=True)
    pt.train(toy(), unbroken, resume=True)


def test_a_folder_that_holds_a_run_is_not_overwritten(unbroken):
    before = tensors(unbroken)
    with pytest.raises(pt.InputError, match="already holds a run; --resume"):
        pt.train(toy(), unbroken)
    assert all(torch.equal(before[k], v) for k, v in tensors(unbroken).items())


def test_a_folder_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(pt.InputError, match="in use by another run"):
        pt.train(toy(), tmp_path)


def test_resume_without_a_run_says_so(tmp_path):
    with pytest.raises(pt.InputError, match="no run to resume"):
        pt.train(toy(), tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(unbroken, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(unbroken, copy)
    last = checkpoint.complete(copy / "checkpoints")[-1]
    path = last / "ema-0.9-00001.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(pt.InputError, match=r"ema-0.9-00001.safetensors is damaged"):
        pt.load(copy)
    path.unlink()
    with pytest.raises(pt.InputError, match=r"ema-0.9-00001.safetensors is missing"):
        pt.load(copy)
    (last / "state.json").unlink()  # no longer a complete checkpoint: the one before is taken
    assert pt.load(copy).sample(count=1, steps=1).shape == (1, 3, 32, 32)
    (copy / "spec.json").unlink()
    with pytest.raises(pt.InputError, match="spec.json is missing"):
        pt.load(copy)


def test_non_finite_steps_are_skipped_counted_and_stop_the_run(tmp_path, monkeypatch):
    backward = gradient.backward
    bad = {64, 96}

    def sometimes(run, network, batch, device, micro_batch=0, *beside):
        terms = backward(run, network, batch, device, micro_batch, *beside)
        if int(batch.index[0]) in bad:
            next(network.model.parameters()).grad.fill_(torch.nan)
        return terms

    monkeypatch.setattr(gradient, "backward", sometimes)
    pt.train(toy(), tmp_path / "a")
    skipped = [e for e in steps(tmp_path / "a") if e["event"] == "skipped"]
    assert [e["images"] for e in skipped] == [96, 128]
    assert steps(tmp_path / "a")[-1]["event"] == "validation"
    assert [e for e in steps(tmp_path / "a") if e["event"] == "step"][-1]["skipped"] == 2
    assert all(torch.isfinite(v).all() for v in tensors(tmp_path / "a").values())
    bad.update(range(0, 192, 32))
    with pytest.raises(pt.InputError, match="not finite in 3 steps in a row at 96 images"):
        pt.train(toy("train.patience=3"), tmp_path / "b")


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, monkeypatch):
    save_file = checkpoint.save_file
    calls = []

    def full(shard, path):
        calls.append(path)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        save_file(shard, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(pt.InputError, match="000000128 cannot be written: No space left"):
        pt.train(toy(), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000000064"]
    monkeypatch.undo()
    pt.train(toy(), tmp_path, resume=True)
    assert len(checkpoint.complete(tmp_path / "checkpoints")) == 3


def start(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pointillist", "train", "debug", *TOY, *more]
    return subprocess.Popen(
        [*command, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(folder: Path, images: int) -> None:
    end = time.time() + 120
    while time.time() < end:
        if any(e["images"] >= images for e in read(folder / "log.jsonl")):
            return
        time.sleep(0.02)
    raise AssertionError("the run did not get there")


def test_sigterm_finishes_the_step_saves_and_exits_130(tmp_path):
    process = start(tmp_path, "train.images=100k", "train.save_every=50k")
    wait_for(tmp_path, 64)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors
    last = checkpoint.complete(tmp_path / "checkpoints")[-1]
    assert read(tmp_path / "log.jsonl")[-1]["images"] == int(last.name)
    assert f"stopped at {int(last.name)} images; saved, --resume continues" in errors


@pytest.mark.parametrize("when", [32, 64, 80])
def test_a_stop_that_comes_at_any_moment_is_saved_before_it_is_announced(
    tmp_path, when, monkeypatch
):
    class Late(train_module.StopRequest):
        """Asked to stop while an event is being written."""

    stops = []
    monkeypatch.setattr(train_module, "StopRequest", lambda: stops.append(Late()) or stops[-1])

    def ask(event):
        if event["event"] in ("step", "validation") and event["images"] >= when:
            stops[-1].asked = True

    with pytest.raises(Interrupted, match="saved") as caught:
        pt.train(toy("train.images=640"), tmp_path, report=ask)
    last = checkpoint.complete(tmp_path / "checkpoints")[-1]
    assert f"stopped at {int(last.name)} images" in str(caught.value)
    # What an unbroken run logs at its save points is there, and nothing between them but the step.
    checked = [e["images"] for e in steps(tmp_path) if e["event"] == "validation"]
    assert checked == list(range(64, int(last.name) + 1, 64))


def test_pictures_that_a_kill_kept_from_being_drawn_are_drawn_on_resume(tmp_path):
    pt.train(toy("train.grid=2", "sample.steps=2"), tmp_path)
    picture = tmp_path / "samples" / "000000192.png"
    drawn = picture.read_bytes()
    picture.unlink()
    pt.train(toy("train.grid=2", "sample.steps=2"), tmp_path, resume=True)
    assert picture.read_bytes() == drawn


@pytest.mark.slow
def test_a_run_killed_three_times_equals_the_unbroken_run(tmp_path, unbroken):
    for instant in (32, 96, 160):
        process = start(tmp_path, *(["--resume"] if instant > 32 else []))
        wait_for(tmp_path, instant)
        process.kill()
        process.communicate()
    process = start(tmp_path, "--resume")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert same(unbroken, tmp_path) and steps(tmp_path) == steps(unbroken)


@pytest.mark.slow
def test_a_toy_distribution_is_sampled_back(tmp_path, monkeypatch):
    """Trained on N(m_k, 0.3^2) by class k, the samples of a class have its mean and spread."""
    means, n = torch.tensor([-0.5, 0.5]), 4096
    label = torch.arange(n) % 2
    x = means[label].view(-1, 1, 1, 1) + 0.3 * Draw(9, torch.arange(n)).normal("toy", (1, 4, 4))
    spec = Spec(channels=1, axes=grid_axes((4, 4)), classes=("low", "high"), offset=(0.0,),
                scale=(1.0,), samples=n, fingerprint="toy")  # fmt: skip
    monkeypatch.setattr(EmojiConfig, "open", lambda self, split: InMemory(x, spec, label))
    run = toy("train.images=100k", "train.save_every=100k", "train.batch=128", "augment.flip=false",
              "model.patch_size=2", "objective.time.kind=uniform", "optim.lr=2e-3",
              "train.log_every=10k")  # fmt: skip
    trained = pt.train(run, tmp_path)
    for k in range(2):
        found = trained.sample(400, label=k, steps=30, seed=1)
        assert abs(float(found.mean() - means[k])) < 0.03
        assert abs(float(found.std() - 0.3)) < 0.04


@pytest.mark.slow
def test_a_toy_run_overfits_a_handful_of_pictures(tmp_path):
    run = Run.load(
        "debug", "train.images=20k", "train.grid=0", "train.validate=0", "train.save_every=20k",
        "model.width=64", "model.heads=2", "augment.flip=false",
        "optim.lr=2e-3",
    )  # fmt: skip
    source = run.data.open("train")
    few = type(source)(source.x[:4], source.spec, source.label[:4], source.caption[:4])
    losses = []
    original = type(run.data).open
    type(run.data).open = lambda self, split: few
    try:
        pt.train(run, tmp_path, report=lambda e: losses.append(e["loss"]) if "loss" in e else None)
    finally:
        type(run.data).open = original
    assert losses[-1] < 0.1 * losses[0]


def test_log_lines_are_json_and_name_their_event(unbroken):
    for line in (unbroken / "log.jsonl").read_text().splitlines():
        assert {"event", "images"} <= json.loads(line).keys()


def test_interrupted_is_not_a_mistake_of_the_user():
    assert not issubclass(Interrupted, ValueError)
