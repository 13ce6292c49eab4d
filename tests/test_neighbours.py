"""Nearest points: against brute force, the tree against the tiles, and what is not there."""

import pytest
import torch

from pointillist.layers import neighbours as room
from pointillist.layers.neighbours import by_tiles, by_tree, neighbours, select
from pointillist.types import InputError


def case(k=60, m=80, axes=2):
    made = torch.Generator().manual_seed(3)
    query = torch.rand(2, k, axes, generator=made) * 2 - 1
    points = torch.rand(2, m, axes, generator=made) * 2 - 1
    return query, points, torch.rand(2, 1, m, generator=made) < 0.7


@pytest.mark.parametrize(("axes", "radius"), [(1, 0.05), (2, 0.3), (3, 0.5)])
def test_neighbours_are_those_of_brute_force(axes, radius):
    query, points, valid = case(axes=axes)
    found = neighbours(query, points, valid, 5, radius)
    far = torch.cdist(query.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distance, index = far.masked_fill(~valid, torch.inf).sort(-1)
    edge = distance[..., 5].clamp(max=radius)
    near = distance[..., :5] < edge[..., None]
    assert torch.equal(found.valid, near) and near.any() and not near.all()
    assert torch.equal(found.index, index[..., :5].masked_fill(~near, 0))
    torch.testing.assert_close(found.edge, edge.float())


@pytest.mark.parametrize("skip_self", [False, True])
def test_tiles_equal_the_tree(monkeypatch, skip_self):
    monkeypatch.setattr(room, "TILE", 500)  # several tiles
    _, points, valid = case()
    wanted, points = 5 + skip_self, points.double()
    tree, tiles = (
        select(*search(points, points, valid, wanted, 0.4), 4, 0.4, skip_self)
        for search in (by_tree, by_tiles)
    )
    assert all(torch.equal(a, b) for a, b in zip(tree, tiles, strict=True))
    own = tree.valid & (tree.index == torch.arange(80)[:, None])
    assert own.any() != skip_self


def test_what_is_not_there_is_invalid():
    query, points, valid = case()
    for search in (by_tree, by_tiles):
        for m in (0, 80):
            none = torch.zeros(2, 1, m, dtype=torch.bool)
            far, index = search(query.double(), points[:, :m].double(), none, 4, 0.3)
            found = select(far, index, 3, 0.3, False)
            assert not found.valid.any() and (found.edge == torch.tensor(0.3)).all()
    two = neighbours(query, points[:, :2], valid[:, :, :2] | True, 5, 9.0)
    assert (two.valid.sum(-1) == 2).all()


def test_metric_multiplies_coordinates():
    query, points, valid = case()
    factors = torch.tensor([2.0, 0.5])
    scaled = neighbours(query * factors, points * factors, valid, 4, 0.3)
    found = neighbours(query, points, valid, 4, 0.3, metric=(2.0, 0.5))
    assert torch.equal(found.index, scaled.index)
    with pytest.raises(InputError, match="metric has 1"):
        neighbours(query, points, valid, 4, 0.3, metric=(2.0,))
    with pytest.raises(InputError, match="radius 0"):
        neighbours(query, points, valid, 4, 0.0)
