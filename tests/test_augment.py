"""The same picture, another way round: drawn by the sample's own number, weights turned with it."""

import pytest
import torch

from pointillist.augment import AugmentConfig
from pointillist.draws import Draw
from pointillist.types import Batch, InputError

INDEX = torch.arange(200)
X = Draw(0, INDEX).normal("x", (2, 3, 4))


def test_half_of_the_samples_are_turned_whatever_they_are_batched_with():
    draw = Draw(1, INDEX)
    whole = AugmentConfig()(Batch(INDEX, X), draw).x
    turned = (whole == X.flip(-1)).flatten(1).all(1)
    assert ((whole == X).flatten(1).all(1) ^ turned).all() and 70 < int(turned.sum()) < 130
    part = Batch(INDEX[5:9], X[5:9])
    assert torch.equal(AugmentConfig()(part, Draw(1, INDEX[5:9])).x, whole[5:9])
    assert AugmentConfig(flip=False)(Batch(INDEX, X), draw).x is X


def test_a_weight_is_turned_with_its_picture():
    found = AugmentConfig()(Batch(INDEX, X, weight=X.abs()), Draw(1, INDEX))
    assert torch.equal(found.weight, found.x.abs())


def test_scattered_samples_are_not_turned():
    batch = Batch(INDEX, X.flatten(2), where=torch.zeros(200, 12, 2))
    with pytest.raises(InputError, match="augment.flip is true, but the data are scattered"):
        AugmentConfig()(batch, Draw(1, INDEX))
