"""Space-filling curves: every cell once, in the published order, by steps of one where promised."""

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.layers.curve import curve_index, curve_order, curve_rank
from pointillist.types import InputError

CURVES = ("hilbert", "zorder")
curves = st.sampled_from(CURVES)
PRINTED = {
    "hilbert": [[0, 1, 14, 15], [3, 2, 13, 12], [4, 7, 8, 11], [5, 6, 9, 10]],
    "zorder": [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
}


def cells(*size: int) -> torch.Tensor:
    """All cells of a grid, row-major."""
    return torch.cartesian_prod(*(torch.arange(n) for n in size)).view(-1, len(size))


def steps(size: tuple[int, ...], curve: str) -> torch.Tensor:
    """How far each cell of the curve lies from the one before, summed over the axes."""
    path = cells(*size)[curve_order(size, curve)]
    return path.diff(dim=0).abs().sum(1)


@pytest.mark.parametrize("curve", CURVES)
def test_the_printed_tables_of_four_by_four(curve):
    assert curve_rank((4, 4), curve).view(4, 4).tolist() == PRINTED[curve]


def test_z_order_jumps_from_seven_to_eight_and_hilbert_does_not():
    assert int(steps((4, 4), "zorder")[7]) == 1 + 3
    assert int(steps((4, 4), "hilbert")[7]) == 1


@pytest.mark.parametrize(
    "size",
    [(2**k,) * axes for axes, most in ((1, 9), (2, 9), (3, 5)) for k in range(most + 1)],
    ids=str,
)
def test_the_hilbert_curve_of_a_power_of_two_takes_unit_steps(size):
    taken = steps(size, "hilbert")
    assert taken.shape[0] == math.prod(size) - 1
    assert bool((taken == 1).all())


def test_the_z_order_number_is_the_bits_of_a_cell_taken_in_turn():
    cell = torch.tensor([[0b101, 0b011, 0b110]])
    assert int(curve_index(cell, 3, "zorder")) == 0b101_011_110


@settings(deadline=None, max_examples=60)
@given(size=st.one_of(
           st.tuples(st.integers(1, 600)),
           st.tuples(st.integers(1, 80), st.integers(1, 80)),
           st.tuples(st.integers(1, 18), st.integers(1, 18), st.integers(1, 18))),
       curve=curves)  # fmt: skip
def test_a_curve_over_any_grid_visits_every_cell_once(size, curve):
    order, rank = curve_order(size, curve), curve_rank(size, curve)
    everything = torch.arange(math.prod(size))
    assert torch.equal(order.sort().values, everything)
    assert torch.equal(rank[order], everything)


@pytest.mark.parametrize("size", [(512, 512), (511, 300)], ids=str)
@pytest.mark.parametrize("curve", CURVES)
def test_large_grids_are_visited_once_too(size, curve):
    assert torch.equal(curve_order(size, curve).sort().values, torch.arange(math.prod(size)))


@given(size=st.tuples(st.integers(1, 9), st.integers(1, 9)), curve=curves)
def test_a_grid_keeps_the_order_of_its_enclosing_power_of_two(size, curve):
    edge = 1 << (max(size) - 1).bit_length()
    whole = cells(edge, edge)[curve_order((edge, edge), curve)]
    inside = whole[(whole < torch.tensor(size)).all(1)]
    assert torch.equal(cells(*size)[curve_order(size, curve)], inside)


@given(axes=st.integers(1, 3), bits=st.integers(1, 4), finer=st.integers(1, 7), curve=curves,
       seed=st.integers(0, 9))  # fmt: skip
def test_a_finer_curve_visits_the_cells_of_a_coarser_one_in_its_order(
    axes, bits, finer, curve, seed
):
    draw = torch.Generator().manual_seed(seed)
    cell = torch.randint(1 << (bits + finer), (50, axes), generator=draw)
    coarse = curve_index(cell >> finer, bits, curve)
    assert torch.equal(curve_index(cell, bits + finer, curve) >> (axes * finer), coarse)


@given(curve=curves, axes=st.integers(1, 3))
def test_the_longest_curve_fits_and_one_bit_more_is_refused(curve, axes):
    bits = 62 // axes
    corners = torch.tensor(list(itertools.product((0, (1 << bits) - 1), repeat=axes)))
    number = curve_index(corners, bits, curve)
    assert number.unique().shape[0] == 2**axes
    assert int(number.min()) == 0 and int(number.max()) < 1 << (axes * bits)
    with pytest.raises(InputError, match=f"at most 62 fit, so take {bits} bits an axis"):
        curve_index(corners, bits + 1, curve)


@pytest.fixture
def one_thread():
    """Threads that wait for one another spend the processor's time too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("curve", CURVES)
def test_a_million_cells_are_ranked_within_two_seconds_and_then_at_once(curve, one_thread):
    curve_order.cache_clear()
    curve_rank.cache_clear()
    begun = time.process_time()
    first = curve_rank((1024, 1024), curve)
    assert time.process_time() - begun < 2  # of the processor: others may hold it meanwhile
    assert curve_rank((1024, 1024), curve) is first
