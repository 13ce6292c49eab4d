"""DiffiT: windows, attention that time steers, the U and the flat network."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.layers.time_attention import TimeAttention, attend_biased, attend_fused
from pointillist.layers.windows import fitted, inside, merge, offset_rows, offsets, partition
from pointillist.models import DiffiTConfig, DiffiTFlatConfig, Network
from pointillist.types import Given, InputError, Spec, grid_axes

axes = st.integers(1, 3)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def maps(draw):
    """A size and a window on as many axes: multiples, others, and windows larger than the map."""
    s = draw(axes)
    side, edge = st.integers(1, (40, 12, 6)[s - 1]), st.integers(1, 9)
    return tuple(draw(side) for _ in range(s)), tuple(draw(edge) for _ in range(s))


# Windows.


@settings(deadline=None)
@given(maps())
def test_merging_undoes_partitioning(case):
    size, window = case
    x = noise(2, *size, 3)
    windows = partition(x, window)
    cells, count = math.prod(fitted(size, window)), 1
    for n, w in zip(size, window, strict=True):
        count *= math.ceil(n / w)
    assert windows.shape == (2, count, cells, 3)
    assert torch.equal(merge(windows, window, size), x)


@settings(deadline=None)
@given(maps())
def test_what_is_inside_is_what_the_map_has(case):
    size, window = case
    own = inside(size, window)
    filled = partition(torch.ones(1, *size, 1), window)[0, ..., 0] == 1
    assert bool(filled.all()) if own is None else torch.equal(own, filled)
    assert bool(filled.any(1).all())  # no window without a key


def test_windows_are_blocks_of_neighbours_whatever_stands_around_the_axes():
    x = torch.arange(4 * 6).view(1, 4, 6, 1)
    windows = partition(x, (2, 3))[0, ..., 0]
    assert windows.tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11],
                                [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]  # fmt: skip
    around = partition(x.view(1, 1, 4, 6, 1, 1).expand(2, 3, 4, 6, 5, 1), (2, 3), first=2)
    assert around.shape == (2, 3, 4, 6, 5, 1)
    assert torch.equal(around[1, 2, :, :, 4, 0], windows)
    assert torch.equal(merge(around, (2, 3), (4, 6), first=2)[1, 2, :, :, 4, 0], x[0, ..., 0])


@settings(deadline=None)
@given(maps())
def test_a_row_of_the_table_is_an_offset(case):
    """Equal offsets share a row, different ones do not, and none is outside of the table."""
    size, trained = case
    window = fitted(size, trained)
    rows = offsets(window, trained)
    cells = [torch.arange(n) for n in window]
    at = torch.stack(torch.meshgrid(*cells, indexing="ij"), -1).flatten(0, -2)
    seen: dict[int, tuple[int, ...]] = {}
    for row, step in zip(
        rows.flatten().tolist(), (at[:, None] - at[None]).flatten(0, 1).tolist(), strict=True
    ):
        assert seen.setdefault(row, step) == step
    assert len(set(map(tuple, seen.values()))) == len(seen)
    assert 0 <= int(rows.min()) and int(rows.max()) < offset_rows(trained)


def test_a_smaller_window_takes_the_rows_of_its_own_offsets():
    whole, part = offsets((3, 4), (3, 4)), offsets((2, 2), (3, 4))
    own = torch.tensor([0, 1, 4, 5])  # the cells of the corner of 2 x 2 among 3 x 4
    assert torch.equal(part, whole[own][:, own])


# Attention.


def attention(window=(4, 4), width=24, time_width=10, heads=3):
    torch.manual_seed(0)
    made = TimeAttention(width, time_width, heads, window)
    with torch.no_grad():
        made.bias_table.normal_()
    return made


def plain(made: TimeAttention, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Eq. 3-6, window by window, head by head, pair by pair of cells."""
    d, size, window = x.shape[-1], x.shape[1:-1], made.window
    q, k, v = (
        (x @ ws.T + bs) + (c @ wt.T + bt).view(-1, 1, 1, d)
        for ws, bs, wt, bt in zip(
            *(made.qkv.weight.chunk(3), made.qkv.bias.chunk(3)),
            *(made.time.weight.chunk(3), made.time.bias.chunk(3)),
            strict=True,
        )
    )
    out, e = torch.zeros_like(x), d // made.heads
    table = made.bias_table.view(*(2 * w - 1 for w in window), made.heads)
    for top in range(0, size[0], window[0]):
        for left in range(0, size[1], window[1]):
            rows = range(top, min(top + window[0], size[0]))
            columns = range(left, min(left + window[1], size[1]))
            cells = [(i, j) for i in rows for j in columns]
            for h in range(made.heads):
                part = slice(h * e, (h + 1) * e)
                for i, j in cells:
                    scores = [
                        (q[:, i, j, part] * k[:, m, n, part]).sum(-1) / e**0.5
                        + table[i - m + window[0] - 1, j - n + window[1] - 1, h]
                        for m, n in cells
                    ]
                    weights = torch.stack(scores, -1).softmax(-1)
                    values = torch.stack([v[:, m, n, part] for m, n in cells], 1)
                    out[:, i, j, part] = (weights[..., None] * values).sum(1)
    return made.out(out)


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (5, 7), (3, 2), (2, 9)])
def test_attention_is_the_equations_on_any_map(size):
    made, x, c = attention(), noise(2, *size, 24), noise(2, 10, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(made(x, c), plain(made, x, c), rtol=1e-4, atol=1e-5)


def test_the_fused_form_is_the_plain_one_gradients_included():
    made = attention()
    q, k, v = (noise(2, 3, 6, 16, 8, seed=s).requires_grad_() for s in range(3))
    found = []
    for form in (attend_biased, attend_fused):
        out = form(q, k, v, made.bias((5, 11)))
        g = torch.autograd.grad(out.square().sum(), (q, k, v, made.bias_table))
        found.append((out, *g))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_windows_do_not_see_one_another_and_a_map_in_one_window_is_seen_whole():
    made, c = attention(), noise(1, 10)
    x = noise(1, 8, 8, 24)
    other = x.clone()
    other[:, 4:, 4:] += 1
    moved = (made(x, c) - made(other, c)).abs().amax((0, 3))
    assert bool((moved[4:, 4:] > 1e-4).all())
    moved[4:, 4:] = 0
    assert not moved.any()
    small = x[:, :3, :4]
    changed = small.clone()
    changed[:, 0, 0] += 1
    assert bool(((made(small, c) - made(changed, c)).abs().amax((0, 3)) > 1e-6).all())


def test_time_matters_even_where_nothing_spatial_selects():
    made, x = attention(), noise(1, 8, 8, 24)
    with torch.no_grad():
        made.qkv.weight[:48] = 0
        made.qkv.bias[:48] = 0
    answers = [made(x, noise(1, 10, seed=s)) for s in (1, 2)]
    assert (answers[0] - answers[1]).abs().max() > 1e-2


def test_the_key_part_of_time_cancels():
    made, x, c = attention(), noise(2, 8, 8, 24), noise(2, 10, seed=1)
    made(x, c).square().sum().backward()
    of_q, of_k, of_v = made.time.weight.grad.chunk(3)
    assert not of_k.any() and of_q.abs().max() > 1e-2 and of_v.abs().max() > 1e-2
    assert made.qkv.bias.grad.chunk(3)[1].abs().max() < 1e-5 * of_q.abs().max()
    before = made(x, c)
    with torch.no_grad():
        made.time.weight[24:48].normal_()
    assert torch.equal(made(x, c), before)
    with torch.no_grad():  # and by the equations, which add it
        corner = plain(made, x[:, :4, :4], c)
    torch.testing.assert_close(before[:, :4, :4], corner, rtol=1e-4, atol=1e-5)


def test_the_bias_depends_on_the_offset_alone_and_matters():
    made, x, c = attention(), noise(1, 8, 8, 24), noise(1, 10)
    bias = made.bias((8, 8))[:, 0].view(3, 4, 4, 4, 4)
    assert torch.equal(bias[:, 1, 1, 2, 3], bias[:, 0, 0, 1, 2])
    assert torch.equal(bias[:, 3, 2, 0, 1], bias[:, 3, 1, 0, 0])
    assert not torch.equal(bias[:, 1, 1, 2, 3], bias[:, 2, 3, 1, 1])  # i - j, not its size
    # One that told queries apart only would cancel in the softmax.
    assert bias.flatten(3).std(-1).min() > 0.1
    biased = made(x, c)
    with torch.no_grad():
        made.bias_table.zero_()
    assert (made(x, c) - biased).abs().max() > 1e-2


def test_dropout_is_for_training():
    made = TimeAttention(24, 10, 3, (4, 4), dropout=0.5)
    x, c = noise(2, 8, 8, 24), noise(2, 10)
    assert (made.train()(x, c) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(made.eval()(x, c), made(x, c))


# The U.


def spec_of(*size: int, channels: int = 3, classes: int = 0) -> Spec:
    names = tuple(str(i) for i in range(classes))
    return Spec(channels=channels, axes=grid_axes(size), classes=names)


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """A network whose zero-initialised layers are filled, so that all of it matters."""
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    return model.eval()


def u(*size: int, classes: int = 0, **fields) -> Network:
    torch.manual_seed(0)
    config = DiffiTConfig(**{"width": 8, "heads": 2, "depth": 1, "time_width": 16} | fields)
    return Network(filled(config.build(spec_of(*size, classes=classes))))


@settings(deadline=None, max_examples=12)
@given(h=st.integers(1, 21), w=st.integers(1, 21), down=st.sampled_from(["strided", "bilinear"]),
       up=st.sampled_from(["strided", "bilinear"]))  # fmt: skip
def test_a_picture_of_any_size_is_answered_in_its_size(h, w, down, up):
    x = noise(2, 3, h, w)
    value = u(16, 16, down=down, up=up)(x, torch.rand(2), Given()).value
    assert value.shape == x.shape and bool(value.isfinite().all())


def test_stages_have_their_own_widths_blocks_and_windows():
    model = u(16, 16, multiples=(1, 2, 3), depth=(1, 2, 3), window=(8, 4, 2)).model
    for i, (width, depth, window) in enumerate(((8, 1, 8), (16, 2, 4), (24, 3, 2))):
        for half in (model.encoder, model.decoder):
            assert len(half[i]) == depth
            for block in half[i]:
                assert block.conv.out_channels == width
                assert block.block.attention.window == (window, window)
    assert [stage[0].conv.in_channels for stage in model.decoder] == [16, 32, 24]
    assert model.encoder[2][0].norm.num_groups == 8 and model.encoder[1][0].norm.num_groups == 16


def test_every_stage_leaves_a_skip_to_its_mirror_image():
    """Concatenated before its first block; what is left out there changes the answer."""
    network, found = u(16, 16, multiples=(1, 2, 3)), {}
    model, x, t = network.model, noise(1, 3, 16, 16), torch.tensor([0.3])
    for i in range(3):
        model.encoder[i][-1].register_forward_hook(
            lambda module, given, answer, i=i: found.__setitem__(f"left {i}", answer)
        )
        model.decoder[i][0].register_forward_pre_hook(
            lambda module, given, i=i: found.__setitem__(f"taken {i}", given[0])
        )
    plain = network(x, t, Given()).value
    for i in range(2):
        left, taken = found[f"left {i}"], found[f"taken {i}"]
        width = left.shape[1]
        assert taken.shape[1] == 2 * width
        halves = [torch.equal(half, left) for half in taken.split(width, 1)]
        assert sum(halves) == 1
        without = u(16, 16, multiples=(1, 2, 3))
        with torch.no_grad():
            first = 0 if halves[0] else width
            without.model.decoder[i][0].conv.weight[:, first : first + width].zero_()
        assert (without(x, t, Given()).value - plain).abs().max() > 1e-4
    assert found["taken 2"].shape[1] == found["left 2"].shape[1]


def test_heads_need_no_pairs():
    """Nothing is rotated, so a head of three channels is as good as any."""
    network = u(16, 16, width=9, heads=3, groups=3)
    assert network(noise(1, 3, 16, 16), torch.tensor([0.3]), Given()).value.isfinite().all()


def test_a_block_is_its_equations():
    """Eq. 9-10: no convolution sees the time, and nothing acts behind the outer residual."""
    block, x, c = u(16, 16).model.encoder[0][0], noise(2, 8, 16, 16), noise(2, 16, seed=1)
    h = torch.nn.functional.silu(block.norm(x))
    tokens = block.conv(h).permute(0, 2, 3, 1)
    tokens = tokens + block.block.attention(block.block.norm1(tokens), c)
    tokens = tokens + block.block.mlp(block.block.norm2(tokens))
    torch.testing.assert_close(block(x, c), tokens.permute(0, 3, 1, 2) + x)


@pytest.mark.parametrize("kind", [DiffiTConfig, DiffiTFlatConfig])
def test_how_a_sample_was_augmented_is_told(kind):
    config = kind(width=16, heads=2, depth=1, augment_labels=4)
    network = Network(filled(config.build(spec_of(8, 8, classes=2))))
    x, t, label = noise(2, 3, 8, 8), torch.rand(2), torch.tensor([0, -1])
    plain = network(x, t, Given(label=label)).value
    told = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0]])
    value = network(x, t, Given(label=label, augment=told)).value
    assert torch.equal(value[0], plain[0]) and (value[1] - plain[1]).abs().max() > 1e-4
    with pytest.raises(InputError, match="augment_labels is 4, .* 3 numbers .*augment_labels=3"):
        network(x, t, Given(label=label, augment=told[:, :3]))


def test_a_window_larger_than_the_map_is_refused():
    with pytest.raises(InputError, match="model.window is 13, but the data have 8x12 cells; set"):
        DiffiTConfig(width=16, window=(4, 13, 4)).build(spec_of(8, 12))
    assert DiffiTConfig(width=16, window=12).build(spec_of(8, 12))


def test_a_volume_is_refused():
    with pytest.raises(InputError, match="model.kind is diffit, which works on pictures"):
        DiffiTConfig().build(spec_of(4, 4, 4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"depth": (1, 2)}, r"model.depth is \(1, 2\), but model.multiples has 3 stages"),
     ({"window": (4, 4, 0)}, r"model.window is \(4, 4, 0\); it must be 1 or more"),
     ({"depth": ()}, r"model.depth is \(\); it must be 1 or more"),
     ({"multiples": ()}, r"model.multiples is \(\)"), ({"dropout": 1.0}, "model.dropout is 1.0"),
     ({"heads": 3}, "model.width 128 is not divisible by model.heads 3"),
     ({"time_features": 3}, "model.time_features is 3; it must be even"),
     ({"augment_labels": -1}, "model.augment_labels is -1"), ({"groups": 0}, "model.groups is 0"),
     ({"mlp_ratio": 0.001}, "model.mlp_ratio is 0.001, which leaves no hidden unit"),
     ({"mlp_ratio": 0.0}, "model.mlp_ratio is 0.0")],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_in_one_sentence(fields, message):
    with pytest.raises(InputError, match=message):
        DiffiTConfig(**fields)


# The flat network.


def test_the_flat_network_has_its_published_number_of_parameters():
    """28 layers are the 561 million of the paper's table; the 30 of its text are 600.9."""
    for depth, millions in ((28, 561.035232), (30, 600.906752)):
        config = DiffiTFlatConfig(width=1152, depth=depth, heads=16, learn_sigma=True)
        with torch.device("meta"):
            model = config.build(spec_of(32, 32, channels=4, classes=1000))
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters / 1e6 == pytest.approx(millions, abs=1e-6)


def test_a_larger_grid_is_attended_in_windows_of_the_trained_one():
    torch.manual_seed(0)
    config = DiffiTFlatConfig(width=16, heads=2, depth=2, patch_size=2)
    network = Network(filled(config.build(spec_of(8, 8))))
    x, t = noise(1, 3, 16, 12), torch.tensor([0.5])
    other = x.clone()
    other[..., :8, :8] += 1
    moved = (network(x, t, Given()).value - network(other, t, Given()).value).abs().amax((0, 1))
    assert bool((moved[:8, :8] > 0).all())
    moved[:8, :8] = 0
    assert not moved.any()


def test_a_sigma_doubles_the_answer():
    config = DiffiTFlatConfig(width=16, heads=2, depth=1, learn_sigma=True)
    x = noise(2, 3, 8, 8)
    value = Network(config.build(spec_of(8, 8)))(x, torch.rand(2), Given()).value
    assert value.shape == (2, 6, 8, 8)
