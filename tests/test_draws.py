"""Draws are functions of (seed, sample, purpose, position), and nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.draws import Draw, permutation, philox

KNOWN = [  # Random123's own test vectors for philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_vectors(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**63 - 1),
    first=st.integers(0, 2**40),
    count=st.integers(1, 9),
    shape=st.lists(st.integers(1, 7), max_size=3).map(tuple),
    cut=st.integers(0, 9),
)
def test_a_draw_does_not_depend_on_the_batch_it_stands_in(seed, first, count, shape, cut):
    index = torch.arange(first, first + count)
    whole = Draw(seed, index).normal("noise", shape)
    assert whole.shape == (count, *shape)
    parts = [Draw(seed, part).normal("noise", shape) for part in (index[:cut], index[cut:])]
    assert torch.equal(torch.cat(parts), whole)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple))
def test_a_tile_is_cut_out_of_the_whole(data, shape):
    tile = tuple(
        slice(low := data.draw(st.integers(0, n - 1)), data.draw(st.integers(low + 1, n)))
        for n in shape
    )
    draw = Draw(5, torch.tensor([0, 3]))
    assert torch.equal(draw.normal("noise", shape, tile), draw.normal("noise", shape)[:, *tile])
    assert torch.equal(draw.bits("mask", shape, tile), draw.bits("mask", shape)[:, *tile])


def test_a_draw_does_not_depend_on_the_number_of_threads():
    draw, before = Draw(1, torch.arange(8)), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(draw.normal("noise", (3, 64, 64)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_seed_sample_purpose_and_position_all_matter():
    index = torch.tensor([0, 1, 2**32, 2**33 + 1])
    values = [Draw(seed, index).bits(purpose, (8,)) for seed in (0, 1, 2**32) for purpose in "ab"]
    every = torch.cat([value.flatten() for value in values])
    assert len(every.unique()) == len(every)


def test_uniforms_and_whole_numbers_stay_in_their_range():
    draw = Draw(0, torch.arange(200))
    uniform = draw.uniform("u", (500,))
    assert 0 <= uniform.min() and uniform.max() < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.005
    counts = torch.bincount(draw.below("n", 7, (500,)).flatten(), minlength=7)
    assert len(counts) == 7 and (counts / 1e5 - 1 / 7).abs().max() < 0.005


def test_normals_have_the_moments_and_tails_of_a_normal():
    x = Draw(0, torch.arange(100)).normal("x", (5000,)).double().flatten()
    # Kolmogorov-Smirnov at 1 in 1000.
    cdf = torch.special.ndtr(x.sort().values)
    steps = torch.arange(1, len(x) + 1) / len(x)
    assert float((cdf - steps).abs().max()) < 1.95 / math.sqrt(len(x))
    assert abs(float((x[:-1] * x[1:]).mean())) < 5 / math.sqrt(len(x))
    assert torch.isfinite(x).all() and x.abs().max() < 7


def test_an_order_holds_every_row_once_and_epochs_differ():
    orders = [permutation(0, epoch, "order", 1000) for epoch in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[1], orders[2])
