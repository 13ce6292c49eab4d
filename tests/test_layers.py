"""The shared alphabet against plain twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointillist.layers.attend import attend, first_keys
from pointillist.layers.attention import SelfAttention, check_heads
from pointillist.layers.embed import LabelEmbedding, TimeEmbedding, positions, sincos, sinusoid
from pointillist.layers.mlp import SwiGLU
from pointillist.layers.norm import PlainLayerNorm, RMSNorm, modulate, modulated_norm
from pointillist.layers.patch import patch_grid, patchify, unpatchify
from pointillist.layers.rope import rope, rotate
from pointillist.types import InputError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(grid=st.lists(st.integers(1, 4), min_size=1, max_size=3), p=st.integers(1, 3),
       c=st.integers(1, 3))  # fmt: skip
def test_unpatchify_undoes_patchify(grid, p, c):
    x = noise(2, c, *(n * p for n in grid))
    tokens = patchify(x, p)
    s = len(grid)
    assert tokens.shape == (2, math.prod(grid), c * p**s)
    # Published heads have the channel fastest, published embeddings slowest.
    turned = tokens.unflatten(-1, (c, p**s)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(turned, p, tuple(x.shape[2:])), x)


def test_a_token_holds_one_patch_channel_by_channel():
    x = torch.arange(2 * 4 * 6).view(1, 2, 4, 6).float()
    assert torch.equal(patchify(x, 2)[0, 4], x[0, :, 2:4, 2:4].flatten())


def test_a_size_that_does_not_fit_names_one_that_does():
    with pytest.raises(InputError, match="size 30x32 is no multiple of the patch size 4; 32x32"):
        patch_grid((30, 32), 4)
    with pytest.raises(InputError, match="4x4 would do"):
        patch_grid((2, 2), 4)


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 4, 6, 16)])
def test_the_closed_form_of_rms_norm_equals_torch(shape):
    norm = RMSNorm(shape[-1])
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * noise(shape[-1], seed=1))
    x, cotangent = noise(*shape).requires_grad_(), noise(*shape, seed=2)
    norm(x).backward(cotangent)
    mine, mine_weight = x.grad, norm.weight.grad
    y = x.detach().clone().requires_grad_()
    weight = norm.weight.detach().clone().requires_grad_()
    plain = F.rms_norm(y, (shape[-1],), weight, norm.eps)
    plain.backward(cotangent)
    torch.testing.assert_close(norm(x), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine, y.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine_weight, weight.grad, rtol=1e-4, atol=1e-5)


def test_rms_norm_gradient_agrees_with_finite_differences():
    from pointillist.layers.norm import _RMSNormCPU

    x = noise(3, 4).double().requires_grad_()
    weight = (1 + noise(4, seed=3).double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: _RMSNormCPU.apply(x, w, 1e-6), (x, weight))


def test_a_modulated_norm_is_its_parts_and_keeps_its_input_alone():
    norm, x, cotangent = RMSNorm(8), noise(2, 5, 8), noise(2, 5, 8, seed=4)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * noise(8, seed=1))
    shift, scale = noise(2, 8, seed=2), noise(2, 8, seed=3)
    found = []
    for form in (modulated_norm, lambda norm, x, a, b: modulate(norm(x), a, b)):
        inputs = [v.clone().requires_grad_() for v in (x, shift, scale)]
        norm.weight.grad = None
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda v, kept=kept: kept.append(v.shape) or v, lambda v: v
        ):
            answer = form(norm, *inputs)
        answer.backward(cotangent)
        found.append([answer.detach(), *(v.grad for v in inputs), norm.weight.grad])
        if form is modulated_norm:
            assert kept.count(x.shape) == 1
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_a_modulated_norm_agrees_with_finite_differences():
    from pointillist.layers.norm import _ModulatedRMSNormCPU

    inputs = [noise(*s, seed=i).double().requires_grad_()
              for i, s in enumerate([(2, 3, 4), (4,), (2, 4), (2, 4)])]  # fmt: skip
    assert torch.autograd.gradcheck(lambda *v: _ModulatedRMSNormCPU.apply(*v, 1e-6), inputs)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gated_product_is_not_kept_and_its_gradient_is_torch_s(precision, bias):
    layer, x, cotangent = SwiGLU(8, 6, bias=bias), noise(2, 5, 8), noise(2, 5, 8, seed=1)
    found = []
    for plain in (False, True):
        y = x.clone().requires_grad_()
        layer.zero_grad()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda v, kept=kept: kept.append(tuple(v.shape)) or v, lambda v: v
        ), torch.autocast("cpu", precision, enabled=precision != torch.float32):  # fmt: skip
            if plain:
                gate, up = layer.gate_up(y).chunk(2, -1)
                answer = layer.down(F.silu(gate) * up)
            else:
                answer = layer(y)
                assert (2, 5, 6) not in kept and (10, 6) not in kept
        answer.backward(cotangent.to(answer.dtype))
        found.append([answer.detach(), y.grad, *(p.grad for p in layer.parameters())])
    for mine, torchs in zip(*found, strict=True):
        assert mine.dtype == torchs.dtype
        torch.testing.assert_close(mine, torchs)


@given(turn=st.integers(0, 20), q=st.integers(0, 20), k=st.integers(0, 20))
def test_rotated_products_depend_on_distance_alone(turn, q, k):
    table = rope((64,), (64,), 8)
    x, y = noise(1, 1, 1, 8), noise(1, 1, 1, 8, seed=1)

    def product(i: int, j: int) -> float:
        return float((rotate(x, table[i : i + 1]) * rotate(y, table[j : j + 1])).sum())

    assert product(q, k) == pytest.approx(product(q + turn, k + turn), abs=1e-4)


def test_rotation_is_that_of_its_equation():
    table = rope((2, 3), (2, 3), 8, fixed=1)
    assert table.shape == (7, 4) and torch.equal(table[0], torch.ones(4, dtype=torch.complex64))
    x = noise(1, 1, 7, 8)
    y = rotate(x, table)
    row, column = 1, 2  # token 1 + 5
    for pair, (place, k) in enumerate([(row, 0), (row, 1), (column, 0), (column, 1)]):
        angle = place * 1e4 ** -(k / 2)
        a, b = x[0, 0, 6, 2 * pair], x[0, 0, 6, 2 * pair + 1]
        turned = torch.stack(
            (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
        )
        torch.testing.assert_close(y[0, 0, 6, 2 * pair : 2 * pair + 2], turned)


@pytest.mark.parametrize("n", [5, 300])  # the plain steps in bfloat16, and torch's form
@pytest.mark.parametrize("masked", ["no", "first", "added"])
def test_attention_equals_the_three_plain_steps(n, masked):
    q, k, v = (noise(2, 3, n, 8, seed=i).requires_grad_() for i in range(3))
    mask, told = None, 0.0
    if masked == "first":
        there = torch.arange(n - 2) < torch.tensor([[n - 4], [1]])
        mask = first_keys(there, n)
        assert mask[0, 0, 0].tolist() == [*there[0].tolist(), True, True]
        told = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    elif masked == "added":
        mask = told = noise(1, 3, n, n, seed=4)
    plain = ((q @ k.transpose(-1, -2) / 8**0.5) + told).softmax(-1) @ v
    slopes = torch.autograd.grad(plain.square().sum(), (q, k, v))

    def close(*given, mask, far: float, far_slopes: float) -> None:
        ours = attend(*given, mask)
        assert ours.dtype == given[0].dtype
        assert (ours - plain).abs().max() < far
        found = torch.autograd.grad(ours.float().square().sum(), given)
        for one, other in zip(found, slopes, strict=True):
            assert (one - other).norm() < far_slopes * other.norm()
        with torch.no_grad():
            assert (attend(*given, mask) - plain).abs().max() < far

    close(q, k, v, mask=mask, far=1e-5, far_slopes=1e-5)
    half = (x.detach().bfloat16().requires_grad_() for x in (q, k, v))
    rounded = mask.bfloat16() if masked == "added" else mask
    close(*half, mask=rounded, far=0.05, far_slopes=0.03)


def test_dropout_acts_in_training_alone():
    layer, x = SelfAttention(16, 2, dropout=0.5), noise(1, 4, 16)
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_time_stays_in_float32_under_autocast():
    embed = TimeEmbedding(16, scale=1000.0)
    t = torch.tensor([0.9985, 1.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near, end = embed(t)
    assert near.dtype == torch.float32 and (near - end).abs().max() > 1e-4


def test_the_sinusoid_has_its_frequencies():
    wave = sinusoid(torch.tensor([0.5]), 8, 1e4)[0]
    angles = 0.5 * torch.tensor([1e4 ** -(i / 4) for i in range(4)])
    torch.testing.assert_close(wave, torch.cat((angles.cos(), angles.sin())))


def test_minus_one_takes_the_last_row():
    embed = LabelEmbedding(3, 4)
    found = embed(torch.tensor([2, -1]))
    assert torch.equal(found, embed.table.weight[[2, 3]])


def test_positions_of_a_finer_grid_cover_the_same_span():
    assert positions((4,), (4,))[0].tolist() == [0, 1, 2, 3]
    assert positions((8,), (4,))[0].tolist() == [-0.25 + 0.5 * i for i in range(8)]


@pytest.mark.parametrize("grid", [(5,), (2, 3), (2, 2, 3)])
def test_places_differ_and_the_last_axis_comes_first(grid):
    code = sincos(grid, grid, 24)
    assert code.shape == (math.prod(grid), 24)
    assert len(code.unique(dim=0)) == math.prod(grid)
    half = 24 // (2 * len(grid))
    width = torch.arange(grid[-1]).float()
    torch.testing.assert_close(code[: grid[-1], 0], width.sin())
    torch.testing.assert_close(code[: grid[-1], half], width.cos())


def test_swiglu_and_modulation_are_their_equations():
    layer, x = SwiGLU(4, 6), noise(2, 3, 4)
    gate, up = (x @ layer.gate_up.weight.T + layer.gate_up.bias).chunk(2, -1)
    torch.testing.assert_close(layer(x), layer.down(gate * gate.sigmoid() * up))
    shift, scale = noise(2, 4, seed=1), noise(2, 4, seed=2)
    expected = PlainLayerNorm(4)(x) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(modulate(PlainLayerNorm(4)(x), shift, scale), expected)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="width 100 is not divisible by model.heads 12"):
        check_heads(100, 12)
    with pytest.raises(InputError, match="odd heads of 5"):
        check_heads(10, 2)


def test_dropout_acts_behind_the_attention_and_not_on_its_weights():
    attention = SelfAttention(16, 2, dropout=0.5)
    x = noise(3, 5, 16)
    whole = attention.eval()(x)
    dropped = attention.train()(x)
    kept = dropped != 0
    assert 0.2 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_tables_of_places_are_made_once():
    assert sincos((4, 4), (4, 4), 24) is sincos((4, 4), (4, 4), 24)
    assert rope((4, 4), (4, 4), 8) is rope((4, 4), (4, 4), 8)
    assert rope((4, 4), (4, 4), 8).dtype == torch.complex64
