"""Snapshots of power-function averages in a run folder, and `ema="power:WIDTH"` from them."""

import shutil
from pathlib import Path

import pytest
import torch

import pointillist as pt
from pointillist.engine import checkpoint
from pointillist.run import Run

TOY = (
    "model.width=32", "model.depth=2", "model.heads=2", "train.images=192", "train.batch=16",
    "train.save_every=96", "train.log_every=96", "train.grid=0", "train.validate=0",
    "train.ema=[0.9]", "train.ema_power=[0.05, 0.1]", "train.keep=1",
    "optim.warmup=0", "optim.schedule=constant", "optim.lr=0.01",
)  # fmt: skip


def toy(*more: str) -> Run:
    return Run.load("debug", *TOY, *more)


def names(folder: Path) -> list[int]:
    return [int(path.name) for path in checkpoint.complete(folder)]


def weights(trained: pt.Trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    pt.train(toy("train.ema_snapshot=32"), folder)
    return folder


def test_snapshots_stay_when_old_checkpoints_go(unbroken):
    assert names(unbroken / "checkpoints") == [192]
    assert names(unbroken / "ema") == [32, 64, 96, 128, 160, 192]
    files = {path.name for path in (unbroken / "ema" / "000000064").iterdir()}
    assert files == {
        "power-0.05-00001.safetensors", "power-0.1-00001.safetensors", "state.json"
    }  # fmt: skip


def test_a_run_that_is_killed_and_resumed_keeps_the_same_averages(unbroken, tmp_path):
    def halt(event):
        if event["event"] == "step" and event["images"] == 192:
            raise KeyboardInterrupt  # snapshots after the checkpoint at 96 are there already

    with pytest.raises(KeyboardInterrupt):
        pt.train(toy("train.ema_snapshot=16"), tmp_path, report=halt)
    assert names(tmp_path / "checkpoints") == [96] and names(tmp_path / "ema")[-1] == 176
    pt.train(toy("train.ema_snapshot=32"), tmp_path, resume=True)
    # Those beyond the checkpoint were made again, in the rhythm that is asked now.
    assert names(tmp_path / "ema") == [16, 32, 48, 64, 80, 96, 128, 160, 192]
    for part in ("ema/000000128", "ema/000000192", "checkpoints/000000192"):
        for width in ("0.05", "0.1"):
            ours = checkpoint.load(tmp_path / part, f"power-{width}")
            theirs = checkpoint.load(unbroken / part, f"power-{width}")
            assert ours and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_kept_width_is_itself(unbroken):
    for width in (0.05, 0.1):
        kept = checkpoint.load(unbroken / "ema" / "000000192", f"power-{width}")
        found = dict(pt.load(unbroken, ema=f"power:{width}").model.named_parameters())
        assert found.keys() == kept.keys()
        for name, value in kept.items():
            torch.testing.assert_close(found[name].detach(), value)


def test_another_width_is_the_average_that_training_would_have_kept(unbroken, tmp_path):
    """Ever closer with more snapshots; the same training, with 0.07 kept for real, is the judge."""
    pt.train(toy("train.ema_power=[0.07, 0.2]"), tmp_path / "judge")
    judge = weights(pt.load(tmp_path / "judge", ema="power:0.07"))
    pt.train(toy("train.ema_snapshot=16"), tmp_path / "dense")
    pt.train(toy("train.ema_snapshot=192"), tmp_path / "sparse")
    apart = [
        float((weights(pt.load(folder, ema="power:0.07")) - judge).norm())
        for folder in (tmp_path / "sparse", unbroken, tmp_path / "dense")
    ]
    narrow, wide = (weights(pt.load(unbroken, ema=f"power:{width}")) for width in (0.05, 0.1))
    scale = float((narrow - wide).norm())
    for error, bound in zip(apart, (0.2, 0.02, 0.003), strict=True):
        assert error < bound * scale


def test_an_earlier_moment_is_found_although_its_checkpoint_is_gone(unbroken, tmp_path):
    early = pt.load(unbroken, ema="power:0.08", at=96)
    assert early.origin == (unbroken, 96, "power:0.08")
    copy = tmp_path / "copy"
    shutil.copytree(unbroken, copy)
    for later in ("checkpoints/000000192", "ema/000000128", "ema/000000160", "ema/000000192"):
        shutil.rmtree(copy / later)
    assert torch.equal(weights(early), weights(pt.load(copy, ema="power:0.08")))
    assert not torch.equal(weights(early), weights(pt.load(unbroken, ema="power:0.08")))
    with pytest.raises(pt.InputError, match="at is 90, but .* has 32, 64"):
        pt.load(unbroken, ema="power:0.08", at=90)


def test_a_checkpoint_between_snapshots_counts_as_one(tmp_path):
    run = toy("train.ema_snapshot=192")
    with pytest.raises(KeyboardInterrupt):
        pt.train(run, tmp_path, report=_stop_after_the_first_save)
    assert names(tmp_path / "ema") == [] and names(tmp_path / "checkpoints") == [96]
    assert pt.load(tmp_path, ema="power:0.07").origin[:2] == (tmp_path, 96)


def _stop_after_the_first_save(event):
    if event["event"] == "step" and event["images"] > 96:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("ema", "message"),
    [("power:0.3", r"ema is power:0.3; .* a width in \(0, 0.289\)"), ("power:0", "ema is power:0;"),
     ("power:x", "ema is power:x;"), ("wide:0.1", "ema is wide:0.1;"), ("nan", "ema is nan;"),
     ("power:0.28", r"6 snapshots meet that average only to within \d+ %; ask for 0.0\d\d to 0.\d"),
     ("power:0.01", "train with a smaller train.ema_snapshot"),
     ("0.5", r"ema is 0.5; this run kept 0.9 and power:WIDTH")],
)  # fmt: skip
def test_an_average_that_is_not_to_be_had_is_one_sentence(unbroken, ema, message):
    with pytest.raises(pt.InputError, match=message):
        pt.load(unbroken, ema=ema)


def test_the_widths_in_the_refusal_are_to_be_had(unbroken):
    with pytest.raises(pt.InputError) as refusal:
        pt.load(unbroken, ema="power:0.28")
    low, high = str(refusal.value).partition("ask for ")[2].partition(",")[0].split(" to ")
    assert float(low) < 0.05 and float(high) > 0.1
    for width in (low, high):
        assert pt.load(unbroken, ema=f"power:{width}").sample(1, steps=1).shape == (1, 3, 32, 32)


def test_a_run_without_snapshots_says_so(tmp_path):
    pt.train(toy("train.ema_power=[]"), tmp_path)
    assert not (tmp_path / "ema").exists()
    with pytest.raises(pt.InputError, match="the run kept no snapshots; ask for 0.9, or train"):
        pt.load(tmp_path, ema="power:0.07")
    with pytest.raises(pt.InputError, match=r"train.ema_power is \[0.05, 0.1\], but the run in"):
        pt.train(toy(), tmp_path, resume=True)


def test_a_damaged_snapshot_is_refused_by_name(unbroken, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(unbroken, copy)
    path = copy / "ema" / "000000160" / "power-0.1-00001.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(pt.InputError, match=r"000000160/power-0.1-00001.safetensors is damaged"):
        pt.load(copy, ema="power:0.08")
    (path.parent / "state.json").unlink()  # no longer a complete snapshot: the others are taken
    assert pt.load(copy, ema="power:0.08").origin[:2] == (copy, 192)


@pytest.mark.parametrize(
    ("override", "message"),
    [("train.ema_power=[0.05]", "give two or more different widths"),
     ("train.ema_power=[0.05, 0.05]", "give two or more different widths"),
     ("train.ema_power=[0.05, 0.3]", r"relative widths lie in \(0, 0.289\)"),
     ("train.ema_power=[0, 0.1]", r"relative widths lie in \(0, 0.289\)"),
     ("train.ema_snapshot=-1", "train.ema_snapshot is -1; it must be 0 or more")],
)  # fmt: skip
def test_wrong_widths_are_refused(override, message):
    with pytest.raises(pt.InputError, match=message):
        toy(override)
    with pytest.raises(pt.InputError, match="train.ema_power is empty, so there is nothing"):
        toy("train.ema_power=[]", "train.ema_snapshot=10k")
