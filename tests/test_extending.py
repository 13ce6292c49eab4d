"""A model of one's own, as docs/extending.md has it: trained and sampled without a line of ours."""

import subprocess
import sys

from PIL import Image

# In a process of its own: under test the type checker holds `Run.model` to the union, which a model
# from outside does not stand in.
SCRIPT = """
import dataclasses
from typing import Literal

import sys

import torch
from torch import nn

import pointillist as pt
from pointillist.types import Prediction, Takes, config


@config
class MineConfig:
    kind: Literal["mine"] = "mine"
    width: int = 8

    def build(self, spec):
        return Mine(self, spec)


class Mine(nn.Module):
    takes = Takes(axes=(1, 2, 3))

    def __init__(self, config, spec):
        super().__init__()
        self.config, self.spec = config, spec
        self.up = nn.Linear(spec.channels + 1, config.width)
        self.down = nn.Linear(config.width, spec.channels)

    def condition(self, given, size):
        return None

    def forward(self, xt, t, given, context=None):
        time = t.view(-1, 1, 1, 1).expand_as(xt[:, :1])
        hidden = torch.relu(self.up(torch.cat((xt, time), 1).movedim(1, -1)))
        return Prediction(self.down(hidden).movedim(-1, 1))


base = pt.Run.load("debug", "train.images=64", "train.batch=32", "train.grid=2",
                   "train.validate=4", "sample.steps=2")
trained = pt.train(dataclasses.replace(base, model=MineConfig()), sys.argv[1])
assert trained.sample(2, steps=2).shape == (2, 3, 32, 32)
"""


def test_a_model_of_ones_own_is_trained_and_sampled(tmp_path):
    call = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path / "mine")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "mine" / "samples" / "000000064.png") as sheet:
        assert sheet.size == (66, 32)
