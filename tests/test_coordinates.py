"""Codes of places, and attention to tokens that may be missing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointillist.layers.coordinates import (
    FourierFeatures,
    LearnableFourierMLP,
    fourier,
    place,
    unaliased_bands,
)
from pointillist.layers.cross_attention import (
    CrossAttention,
    CrossBlock,
    DistanceBias,
    TokenBlock,
    inverse_softplus,
)
from pointillist.layers.observations import centres


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Places.


@given(size=st.tuples(st.integers(2, 300), st.integers(2, 300)))
def test_corner_and_unit_coordinates_are_those_of_the_cell_s_number_bit_for_bit(size):
    at = centres(size)
    cell = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in size))
    steps = torch.tensor(size) - 1
    assert torch.equal(place(at, size, "unit"), cell / steps)
    assert torch.equal(place(at, size, "corner"), cell / steps * 2 - 1)
    assert torch.equal(place(at, size, "centre"), at)


def test_places_between_cells_and_in_the_only_cell_have_coordinates_too():
    between = torch.tensor([[0.0, 0.25]])  # of 4 cells, 1.5 and 2 along the axes
    torch.testing.assert_close(place(between, (4, 4), "unit"), torch.tensor([[0.5, 2 / 3]]))
    assert place(torch.tensor([[0.0]]), (1,), "corner").tolist() == [[-1.0]]


def test_features_are_sines_then_cosines_axis_after_axis():
    at = torch.tensor([0.3, -0.7])
    expected = [
        f(math.pi * 2**k * x)
        for x, bands in ((0.3, 2), (-0.7, 3)) for f in (math.sin, math.cos) for k in range(bands)
    ]  # fmt: skip
    torch.testing.assert_close(fourier(at, (2, 3)), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@given(n=st.integers(2, 600))
def test_no_wave_of_the_capped_bands_is_shorter_than_four_cells_and_one_more_would_be(n):
    (bands,) = unaliased_bands((n,))
    shortest = n / 2 ** (bands - 1)  # in cells: sin(pi 2^k x) has 2^k waves on [-1, 1]
    assert shortest >= 4 or bands == 1
    assert shortest / 2 < 4


def test_bands_follow_each_axis():
    assert unaliased_bands((1, 4, 32, 48)) == (1, 1, 4, 4)


@settings(deadline=None)
@given(n=st.sampled_from([8, 16, 24, 32, 64]))
def test_capped_features_of_a_grid_determine_those_between_its_cells(n):
    """What does not alias is band-limited: Fourier interpolation of the samples gives it back."""
    bands = unaliased_bands((n,))
    samples = fourier(centres((n,)), bands).double()
    # Twice as fine: the spectrum padded with zeros; its first sample lies at the same place.
    spectrum = torch.fft.rfft(samples, dim=0)
    fine = torch.fft.irfft(F.pad(spectrum, (0, 0, 0, n - spectrum.shape[0] + 1)), 2 * n, dim=0) * 2
    at = centres((n,))[0] + torch.arange(2 * n)[:, None] / n
    torch.testing.assert_close(fine, fourier(at, bands).double(), rtol=1e-3, atol=1e-4)


def test_places_keep_their_digits_under_autocast():
    fixed, learnt = FourierFeatures((6, 6), 8), LearnableFourierMLP((6, 6), 8)
    at = torch.tensor([[0.501, 0.1], [0.502, 0.1]])  # one number in bfloat16
    assert learnt.up.weight.shape == (24, 24) and learnt.down.weight.shape == (8, 24)
    with torch.autocast("cpu", torch.bfloat16):
        for code in (fixed, learnt):
            a, b = code(at)
            assert (a - b).abs().max() > 1e-3


# Attention.


def plain(attention, x, tokens, mask, bias):
    """Sample by sample, head by head, over the tokens that are there."""
    h, e = attention.heads, x.shape[2] // attention.heads
    k, v = attention.kv(tokens).chunk(2, -1)
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        there = mask[b]
        if not there.any():
            continue
        parts = []
        for i in range(h):
            cut = slice(i * e, (i + 1) * e)
            scores = attention.q(x)[b, :, cut] @ k[b, there][:, cut].T / math.sqrt(e)
            if bias is not None:
                scores = scores + bias[b, i][:, there]
            parts.append(scores.softmax(-1) @ v[b, there][:, cut])
        out[b] = attention.out(torch.cat(parts, -1))
    return out


@pytest.mark.parametrize("biased", [True, False])
def test_attention_is_that_of_its_equation_and_zero_where_no_token_is(biased):
    torch.manual_seed(0)
    attention, x, tokens = CrossAttention(8, 2), noise(4, 5, 8), noise(4, 7, 8, seed=1)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 0])[:, None]
    bias = noise(4, 2, 5, 7, seed=2) if biased else None
    found = attention(x, attention.keys(tokens), mask, bias)
    expected = plain(attention, x, tokens, mask, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[3].any()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shown", [0, 2])
def test_gradients_beside_an_empty_sample_are_finite_and_its_own_are_zero(shown, biased):
    torch.manual_seed(0)
    block = CrossBlock(8, 2, 2.0, biased)
    x, tokens = noise(2, 5, 8).requires_grad_(), noise(2, 7, 8, seed=1).requires_grad_()
    mask = torch.arange(7) < torch.tensor([0, shown])[:, None]
    distance = noise(2, 5, 7, seed=3).abs() if biased else None
    block(x, block.keys(tokens), mask, distance).square().sum().backward()
    assert not tokens.grad[0].any()
    assert bool(tokens.grad[1].any()) == (shown > 0)
    for p in (x, tokens, *block.parameters()):
        assert p.grad is None or p.grad.isfinite().all()


def test_keys_of_one_row_serve_a_batch():
    block, x, tokens = CrossBlock(8, 2, 2.0), noise(3, 5, 8), noise(1, 7, 8, seed=1)
    mask = torch.arange(7)[None] < 4
    once = block(x, block.keys(tokens), mask)
    many = block(x, block.keys(tokens.expand(3, -1, -1)), mask.expand(3, -1))
    torch.testing.assert_close(once, many)


def test_missing_tokens_come_out_as_zeros_and_change_no_other():
    block, x = TokenBlock(8, 2, 4.0), noise(2, 6, 8)
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    found = block(x, mask)
    assert not found[1, 4:].any()
    torch.testing.assert_close(found[1, :4], block(x[1:, :4])[0])


@given(x=st.floats(1e-6, 80))
def test_softplus_is_inverted(x):
    value = torch.tensor([x], dtype=torch.float32)
    torch.testing.assert_close(F.softplus(inverse_softplus(value)), value, rtol=1e-5, atol=1e-9)


def test_a_new_bias_takes_the_distance_from_the_scores():
    distance = noise(2, 3, 4).abs()
    torch.testing.assert_close(DistanceBias(2)(distance), -distance[:, None].expand(2, 2, 3, 4))
