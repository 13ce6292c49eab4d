"""Trackers: what TensorBoard and Weights & Biases have kept is what the log says."""

import contextlib
import importlib
import json
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pointillist as pt
from pointillist.doctor import facts
from pointillist.engine import track as track_file
from pointillist.engine.log import read
from pointillist.engine.session import Interrupted
from pointillist.engine.track import Tracks
from pointillist.pictures import png
from pointillist.run import Run, to_dict

TOY = (
    "model.width=32", "model.depth=2", "model.heads=2", "train.images=192", "train.batch=32",
    "train.save_every=64", "train.log_every=32", "train.grid=2", "train.validate=8",
    "sample.steps=2", "optim.warmup=64",
)  # fmt: skip
PICTURES = [64, 128, 192]


def toy(*track: str) -> Run:
    return Run.load("debug", *TOY, f"train.track=[{','.join(track)}]")


def stop_at(images: int):
    def report(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["images"] == images:
            raise KeyboardInterrupt

    return report


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What log.jsonl says, as a tracker would name it."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in read(folder / "log.jsonl"):
        group = {"step": "train", "validation": "validation"}[event["event"]]
        for name, value in event.items():
            if name not in ("event", "images"):
                found.setdefault(f"{group}/{name}", []).append((event["images"], value))
    return found


# TensorBoard.


@pytest.fixture
def board():
    where = "tensorboard.backend.event_processing.event_accumulator"
    module = pytest.importorskip(where, reason="pip install 'pointillist[tensorboard]'")

    def load(folder: Path):
        everything = module.EventAccumulator(str(folder / "tensorboard"), size_guidance={
            "scalars": 0, "images": 0})  # fmt: skip
        return everything.Reload()

    return load


@pytest.mark.parametrize("killed_at", [None, 32, 160])
def test_tensorboard_shows_the_log_once_and_whole(tmp_path, board, killed_at):
    if killed_at:
        with pytest.raises(KeyboardInterrupt):
            pt.train(toy("tensorboard"), tmp_path, report=stop_at(killed_at))
    pt.train(toy("tensorboard"), tmp_path, resume=killed_at is not None)
    shown, expected = board(tmp_path), logged(tmp_path)
    assert sorted(shown.Tags()["scalars"]) == sorted(expected) and "train/loss" in expected
    for name, values in expected.items():
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert found == [(images, float(np.float32(value))) for images, value in values]
    pictures = shown.Images("samples")
    assert [event.step for event in pictures] == PICTURES
    for event in pictures:
        path = tmp_path / "samples" / f"{event.step:09d}.png"
        assert event.encoded_image_string == path.read_bytes()
        with Image.open(path) as picture:
            assert (event.width, event.height) == picture.size


def test_a_tracker_may_join_a_run_that_goes_on(tmp_path, board):
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy(), tmp_path, report=stop_at(160))
    assert not (tmp_path / "tensorboard").exists()
    pt.train(toy("tensorboard"), tmp_path, resume=True)
    assert [event.step for event in board(tmp_path).Scalars("train/loss")] == [160, 192]


def test_a_picture_that_was_shown_survives_a_kill(tmp_path, board):
    (tmp_path / "x.png").write_bytes(png(Image.new("RGB", (3, 2))))
    with Tracks(("tensorboard",), tmp_path) as tracks:
        tracks.begin(0, {})
        tracks.picture(tmp_path / "x.png", 64)
        # As a process that is killed here would leave it: a resume draws no sheet that is there.
        shutil.copytree(tmp_path / "tensorboard", tmp_path / "killed" / "tensorboard")
    assert [event.step for event in board(tmp_path / "killed").Images("samples")] == [64]


# Weights & Biases.


def records(path: Path) -> list[Any]:
    """All records of a .wandb file: LevelDB's log format around W&B's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, found, part, at = path.read_bytes(), [], b"", 7
    assert raw[:4] == b":W&B"
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # the rest of a block that has no place for a header
            continue
        length, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(part))
            part = b""
    return found


def test_wandb_keeps_the_log_and_a_resume_continues_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install 'pointillist[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    folder = tmp_path / "mine"
    with pytest.raises(KeyboardInterrupt):
        pt.train(toy("wandb"), folder, report=stop_at(160))
    time.sleep(1)  # W&B names its folders by the second
    pt.train(toy("wandb"), folder, resume=True)

    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    ids, rows = set(), []
    for path in files:
        for record in records(path):
            if record.HasField("run"):
                ids.add((record.run.project, record.run.display_name, record.run.run_id))
                config = {i.key: json.loads(i.value_json) for i in record.run.config.update}
                if config:
                    run = json.loads(json.dumps(to_dict(toy("wandb"))))
                    assert {k: config[k] for k in run} == run
            if record.HasField("history"):
                items = record.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                rows.append((record.history.step.num, row))
    assert ids == {("pointillist", "mine", (folder / "wandb" / "id").read_text())}
    for name, values in logged(folder).items():
        if name == "train/images_per_second":
            continue
        found = dict((step, row[name]) for step, row in rows if name in row)
        assert found == dict(values)
    shown = {step: row["samples/path"] for step, row in rows if "samples/path" in row}
    assert sorted(shown) == PICTURES
    for step, path in shown.items():
        (kept,) = folder.glob(f"wandb/offline-run-*/files/{path}")
        assert kept.read_bytes() == (folder / "samples" / f"{step:09d}.png").read_bytes()
    assert [step for step, row in rows if "train/loss" in row][-2:] == [160, 192]


def test_wandb_that_does_not_begin_is_one_sentence(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install 'pointillist[wandb]'")

    def refuse(**settings):
        raise wandb.errors.UsageError("api_key not configured (no-tty)\ncall wandb login")

    monkeypatch.setattr(wandb, "init", refuse)
    message = "wandb, which does not begin: api_key not configured .* WANDB_MODE=offline"
    with pytest.raises(pt.InputError, match=message) as caught:
        pt.train(toy("wandb"), tmp_path)
    assert "\n" not in str(caught.value)


# What is missing or fails.


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_extra_is_told_with_its_command_and_leaves_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.setattr(track_file.importlib.util, "find_spec", lambda wanted: None)
    command = rf"pip install 'pointillist\[{name}\]'"
    with pytest.raises(pt.InputError, match=rf"train.track has {name}, .* {command}"):
        pt.train(toy(name), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_folder_of_that_name_is_no_tracker(name, tmp_path, monkeypatch):
    # A run folder holds one, and so does every folder in which W&B was ever used.
    (tmp_path / name).mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    with pytest.raises(pt.InputError, match=f"train.track has {name}, which is not installed"):
        Tracks((name,), tmp_path)


def test_a_tracker_that_cannot_be_loaded_is_one_sentence(tmp_path, monkeypatch):
    def broken(*about):
        raise ImportError("cannot import name 'x'\nfrom 'protobuf'")

    monkeypatch.setitem(track_file.TRACKERS, "tensorboard", broken)
    monkeypatch.setattr(track_file, "missing", lambda name: "")
    message = (
        "tensorboard, which cannot be loaded: cannot import name 'x' from 'protobuf'; pip inst"
    )
    with pytest.raises(pt.InputError, match=message), Tracks(("tensorboard",), tmp_path) as tracks:
        tracks.begin(0, {})


def test_the_doctor_knows_the_trackers(monkeypatch):
    monkeypatch.setattr(track_file.importlib.util, "find_spec", lambda wanted: None)
    monkeypatch.setattr("importlib.metadata.version", _absent)
    parts = facts()["parts"]
    assert parts["TensorBoard"] == "missing: pip install 'pointillist[tensorboard]'"
    assert parts["Weights & Biases"] == "missing: pip install 'pointillist[wandb]'"


def _absent(name: str) -> str:
    import importlib.metadata

    raise importlib.metadata.PackageNotFoundError(name)


def test_a_tracker_that_cannot_write_is_one_sentence(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *about):
            pass

        def scalars(self, figures, images):
            raise OSError(28, "No space left on device")

        def close(self, failed):
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(track_file.TRACKERS, "tensorboard", Full)
    monkeypatch.setattr(track_file, "missing", lambda name: "")
    message = "train.track cannot write into .*: No space left on device; mend that"
    with pytest.raises(pt.InputError, match=message):
        pt.train(toy("tensorboard"), tmp_path)
    with pytest.raises(pt.InputError, match=message), Tracks(("tensorboard",), tmp_path) as tracks:
        tracks.begin(0, {})  # closing alone fails
    with pytest.raises(KeyError), Tracks(("tensorboard",), tmp_path) as tracks:
        tracks.begin(0, {})
        raise KeyError  # and hides no earlier failure


def test_only_a_failure_is_told_as_one(tmp_path, monkeypatch):
    told = []

    class Deaf:
        def __init__(self, *about):
            pass

        def close(self, failed):
            told.append(failed)

    monkeypatch.setitem(track_file.TRACKERS, "tensorboard", Deaf)
    monkeypatch.setattr(track_file, "missing", lambda name: "")
    for end in (None, Interrupted("stopped; saved"), pt.InputError("no")):
        with contextlib.suppress(Interrupted, pt.InputError):
            with Tracks(("tensorboard",), tmp_path) as tracks:
                tracks.begin(0, {})
                if end:
                    raise end
    assert told == [False, False, True]
