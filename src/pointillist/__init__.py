"""Diffusion transformers on pixels themselves, with no autoencoder in between.

run = pt.Run.load("emoji-jit", "train.images=50k")
model = pt.train(run, out="runs/emoji")
images = model.sample(count=16, steps=50, seed=0)
"""

from pointillist.posterior import Posterior
from pointillist.run import Run
from pointillist.sample import Trained, load
from pointillist.train import train
from pointillist.types import Given, InputError
from pointillist.version import __version__

__all__ = ["Given", "InputError", "Posterior", "Run", "Trained", "__version__", "load", "train"]
