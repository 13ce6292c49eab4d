"""Tasks: what the network may see, and where its answer counts."""

from typing import Literal

import torch

from pointillist.draws import Draw
from pointillist.types import Batch, Given, InputError, config


@config
class GenerateConfig:
    """Nothing is seen but the label, which is dropped (-1) in a share of the samples.

    The drop is what makes classifier-free guidance possible (Ho and Salimans 2207.12598).
    """

    kind: Literal["generate"] = "generate"
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.label_drop <= 1:
            raise InputError(f"task.label_drop is {self.label_drop}; it lies in [0, 1]")

    def __call__(self, batch: Batch, draw: Draw) -> tuple[Batch, Given]:
        label = batch.label
        if label is not None and self.label_drop:
            drop = draw.uniform("label drop") < self.label_drop
            label = torch.where(drop, -1, label)
        return batch, Given(label=label, where=batch.where)


Task = GenerateConfig  # a union by kind as soon as there is a second task
