"""A small network whose zero weights have been filled, so that every part of it has a say."""

from typing import Any

import torch

from pointillist.run import Run
from pointillist.sample import Trained, untrained

TOY = ("model.width=32", "model.depth=2", "model.heads=2")


def awake(*overrides: Any) -> Trained:
    run = Run.load("debug", *TOY, *overrides)
    trained = untrained(run, run.data.promise(), "cpu")
    with torch.no_grad():
        for p in trained.model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    return trained
