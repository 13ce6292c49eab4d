"""Augmentation: the same picture, another way round, drawn by the sample's own number."""

import torch
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import Batch, InputError, config


@config
class AugmentConfig:
    """`flip`: the last axis is turned round in half of the samples."""

    flip: bool = True

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        if not self.flip:
            return batch
        if batch.where is not None:
            raise InputError("augment.flip is true, but the data are scattered; set it to false")
        turn = (draw.bits("flip") & 1).view(-1, *[1] * (batch.x.dim() - 1)).bool()

        def flipped(values: Tensor) -> Tensor:
            return torch.where(turn, values.flip(-1), values)

        weight = None if batch.weight is None else flipped(batch.weight)
        return batch._replace(x=flipped(batch.x), weight=weight)
