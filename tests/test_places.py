"""Where the answer is asked for: boxes and random places, as sets."""

import pytest
import torch

from pointillist.agreement import check_some_places
from pointillist.augment import AugmentConfig
from pointillist.draws import Draw
from pointillist.gradient import shown
from pointillist.layers.observations import centres
from pointillist.models import DiTConfig, Network
from pointillist.run import Run
from pointillist.tasks import BoxConfig, EverywhereConfig, RandomConfig, ScatterConfig
from pointillist.train import check_places
from pointillist.types import Batch, InputError

from .contract.test_models import toy

SIZE = (8, 12)


def batch_of(n=6, size=SIZE, first=0, **more):
    index = torch.arange(first, first + n)
    x = Draw(7, index).normal("picture", (2, *size)).clamp(-1, 1)
    return Batch(index, x, row=index * 5, **more)


def asked(places, batch, seed=3):
    return places.ask(batch, Draw(seed, batch.index))


def cells_of(where, size):
    """Row-major numbers of places that are cell centres."""
    number = torch.zeros(where.shape[:-1], dtype=torch.long)
    for axis, n in enumerate(size):
        number = number * n + ((where[..., axis] + 1) / 2 * n).floor().long()
    return number


def test_everywhere_leaves_the_grid_as_it_is():
    batch = batch_of()
    assert asked(EverywhereConfig(), batch) is batch


@pytest.mark.parametrize("size", [(9,), (8, 12), (3, 8, 5)])
@pytest.mark.parametrize("places", [BoxConfig(edge=4), RandomConfig(count=7)])
def test_asked_values_are_those_of_the_grid_at_their_places(places, size):
    batch = batch_of(size=size, weight=Draw(1, torch.arange(6)).uniform("w", (1, *size)) + 0.1)
    some = asked(places, batch)
    cells = cells_of(some.where, size)
    assert torch.equal(some.where, centres(size)[cells])
    for name in ("x", "weight"):
        flat = getattr(batch, name).flatten(2)
        taken = flat.gather(2, cells[:, None].expand(-1, flat.shape[1], -1))
        assert torch.equal(getattr(some, name), taken)
    assert all(len(set(row.tolist())) == row.shape[0] for row in cells)  # each once


def test_a_box_is_a_box_and_every_corner_is_drawn():
    corners = set()
    for first in range(0, 600, 100):
        some = asked(BoxConfig(edge=5), batch_of(100, first=first))
        cells = cells_of(some.where, SIZE)
        row, column = cells // 12, cells % 12
        assert (row.amax(1) - row.amin(1) == 4).all() and (
            column.amax(1) - column.amin(1) == 4
        ).all()
        corners |= set(zip(row.amin(1).tolist(), column.amin(1).tolist(), strict=True))
    assert len(corners) == (8 - 5 + 1) * (12 - 5 + 1)


def test_a_box_longer_than_an_axis_takes_all_of_it():
    some = asked(BoxConfig(edge=10), batch_of())
    assert some.x.shape[2] == 8 * 10


def test_random_places_are_evenly_drawn_and_those_that_count_come_first():
    weight = torch.ones(400, 1, *SIZE)
    weight[:, :, :, :4] = 0
    batch = batch_of(400, weight=weight)
    some = asked(RandomConfig(count=60), batch)
    assert (some.weight > 0).all()
    times = torch.bincount(cells_of(some.where, SIZE).flatten(), minlength=96).view(SIZE)
    assert (times[:, :4] == 0).all()
    expected = 400 * 60 / 64
    assert ((times[:, 4:] - expected).abs() < 5 * expected**0.5).all()
    more = asked(RandomConfig(count=70), batch)  # filled up with what counts for nothing
    assert ((more.weight > 0).sum(2) == 64).all()


@pytest.mark.parametrize("places", [BoxConfig(edge=4), RandomConfig(count=7)])
def test_places_are_a_function_of_seed_and_sample(places):
    whole, part = asked(places, batch_of(6)), asked(places, batch_of(2, first=4))
    assert torch.equal(whole.where[4:], part.where)
    assert not torch.equal(asked(places, batch_of(6), seed=4).where, whole.where)


def test_a_set_is_asked_at_some_of_its_points():
    index = torch.arange(3)
    where = Draw(2, index).uniform("where", (20, 3)) * 2 - 1
    batch = Batch(index, Draw(7, index).normal("x", (2, 20)), where=where)
    some = asked(RandomConfig(count=5), batch)
    for i in range(3):
        for k in range(5):
            (j,) = (where[i] == some.where[i, k]).all(1).nonzero().flatten().tolist()
            assert torch.equal(some.x[i, :, k], batch.x[i, :, j])


def test_of_kept_pixels_alone_only_kept_ones_are_asked_and_no_other_is_seen():
    """Changing pixels outside of the kept share changes nothing of what training is given."""
    task = ScatterConfig(reveal="kept", places=RandomConfig(count=19))
    run = Run(task=task, augment=AugmentConfig(flip=False))
    batch = batch_of(4)
    kept = task.reveal_of(Draw(run.seed, batch.index), SIZE, batch.row).kept
    other = batch._replace(x=torch.where(kept, batch.x, 9.0))
    ((one, seen),) = shown(run, batch, 4, torch.device("cpu"))
    ((two, again),) = shown(run, other, 4, torch.device("cpu"))
    assert torch.equal(one.x, two.x) and torch.equal(seen.seen, again.seen)
    assert (one.weight > 0).all() and torch.equal(seen.where, one.where)


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda: BoxConfig(edge=0), "task.places.edge is 0"),
        (lambda: RandomConfig(count=0), "task.places.count is 0"),
        (lambda: RandomConfig(count=97).check_size(SIZE), "a sample has 96 places"),
        (lambda: check_places(
            Run(task=ScatterConfig(places=BoxConfig())), Network(toy(DiTConfig, SIZE))
        ), "whole grids only"),
        (lambda: check_some_places(Run.load(
            "emoji-jit", "task.places.kind=box", "objective.noise_size=64"
        )), "objective.noise_size=null"),
        (lambda: check_some_places(Run.load(
            "emoji-jit", "task.places.kind=box", "loss.frequency.weight=1"
        )), "loss.frequency.weight=0"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_had_are_one_sentence(say, message):
    with pytest.raises(InputError, match=message):
        say()
