"""Augmentation: the same picture, another way round, drawn by the sample's own number."""

import torch

from pointillist.draws import Draw
from pointillist.types import Batch, config


@config
class AugmentConfig:
    """`flip`: the last axis is turned round in half of the samples."""

    flip: bool = True

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        if not self.flip:
            return batch
        turn = draw.bits("flip") & 1
        turn = turn.view(-1, *[1] * (batch.x.dim() - 1)).bool()
        return batch._replace(x=torch.where(turn, batch.x.flip(-1), batch.x))
