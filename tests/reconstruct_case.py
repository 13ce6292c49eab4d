"""What tests of reconstruct and upscale share: small runs, pictures, masks, tables, a command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pointillist as pt
from pointillist import cli
from pointillist.train import train

SIZE = 32
TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=64", "train.batch=32", "train.save_every=64", "train.grid=0",
       "train.validate=0", "sample.steps=2", "optim.lr=0.01", "optim.warmup=0")  # fmt: skip
HINTS = ("model.encoder.kind=grid", "task.kind=hints")


def small_run(folders: Any, name: str, *words: str) -> Path:
    """The folder of a small run of the debug preset with `words`, trained for two steps."""
    folder = folders.mktemp(name) / "toy"
    train(pt.Run.load("debug", *TOY, *words), folder)
    return folder


class Said:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def speaker(monkeypatch: Any, capsys: Any, folder: Path) -> Callable[..., Said]:
    """Runs the command of its words in a folder."""
    monkeypatch.chdir(folder)

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["pointillist", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Said(int(caught.value.code or 0), *capsys.readouterr())

    return run


def colours(h: int = SIZE, w: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def write(path: str, values: np.ndarray) -> str:
    Image.fromarray(values).save(path)
    return path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def as_state(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def table(path: str, places: np.ndarray, values: np.ndarray) -> str:
    lines = [f"{x},{y},{','.join(map(str, values[y, x]))}" for y, x in np.argwhere(places)]
    Path(path).write_text("\n".join(("x,y,r,g,b", *lines)) + "\n")
    return path
