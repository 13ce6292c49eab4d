"""PixelHDM: text in the sequence, places of any shape, depth, and lessons of the published log."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointillist.layers.embed import sincos
from pointillist.layers.grouped_attention import GroupedAttention, attend_grouped
from pointillist.layers.mrope import mrope, mrope_dims, turns
from pointillist.layers.rope import rotate
from pointillist.models import Network, PixelHDMConfig
from pointillist.models.pixelhdm_blocks import PatchBlock, strength_of
from pointillist.types import Given, InputError, Spec, Words, grid_axes

WORDS = Words(width=24, length=6)
TOY = PixelHDMConfig(width=32, depth=2, heads=4, kv_heads=2, patch_size=4, pixel_width=4,
                     pixel_depth=2, bottleneck=8)  # fmt: skip
SIZE = (8, 12)


def make(config=TOY, words: Words | None = WORDS, classes=0, fill=True):
    torch.manual_seed(0)
    names = tuple(str(i) for i in range(classes))
    model = config.build(Spec(channels=3, axes=grid_axes(SIZE), classes=names, words=words))
    with torch.no_grad():
        for p in model.parameters():
            if fill and not p.any():
                p.normal_(std=0.05)
    return model.eval()


def asked(b=2, size=SIZE, words=WORDS):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(b, 3, *size, generator=draw)
    text = torch.randn(b, words.length, words.width, generator=draw)
    mask = torch.arange(words.length) < torch.tensor([[4], [6]])[:b]
    pooled = torch.randn(b, words.width, generator=draw)
    return x, torch.linspace(0.2, 0.8, b), Given(text=text, text_mask=mask, pooled=pooled)


def s_cond(model, x, t, given):
    found = []
    model.pixel_blocks[0].register_forward_pre_hook(lambda block, given: found.append(given[1]))
    Network(model)(x, t, given)
    return found[0]


# Places.


def test_a_head_of_64_is_shared_16_24_24():
    assert mrope_dims(64, 2) == (16, 24, 24) and mrope_dims(16, 2) == (4, 6, 6)
    assert mrope_dims(8, 2) == (4, 2, 2)


@settings(deadline=None, max_examples=30)
@given(head=st.integers(4, 40), axes=st.integers(1, 3))
def test_shares_are_even_and_fill_the_head(head, axes):
    dims = mrope_dims(2 * head, axes)
    assert sum(dims) == 2 * head and all(n >= 2 and n % 2 == 0 for n in dims)


@settings(deadline=None, max_examples=20)
@given(h=st.integers(1, 5), w=st.integers(1, 5), text=st.integers(0, 4))
def test_a_patch_has_the_same_place_in_pictures_of_any_shape(h, w, text):
    dims = (4, 6, 6)
    table, whole = mrope((h, w), dims, text=text), mrope((5, 5), dims, text=text)
    assert torch.equal(table[:text], whole[:text])
    patches = whole[text:].unflatten(0, (5, 5))[:h, :w].flatten(0, 1)
    assert torch.equal(table[text:], patches)


def test_text_turns_with_its_number_and_patches_with_length_row_and_column():
    table = mrope((2, 3), (4, 6, 6), text=5)
    along, rows, columns = table.split((2, 3, 3), -1)
    assert torch.equal(along[:5], turns(6, 4, 1e4)[:5]) and (table[:5, 2:] == 1).all()
    assert torch.equal(along[5:], turns(6, 4, 1e4)[5:].expand(6, -1))
    assert torch.equal(rows[5:], turns(2, 6, 1e4).repeat_interleave(3, 0))
    assert torch.equal(columns[5:], turns(3, 6, 1e4).repeat(2, 1))


def test_turning_a_picture_on_its_side_swaps_rows_and_columns():
    lying = mrope((2, 3), (4, 6, 6)).unflatten(0, (2, 3))
    standing = mrope((3, 2), (4, 6, 6)).unflatten(0, (3, 2))
    assert torch.equal(lying[..., 2:5].mT.mT, standing.transpose(0, 1)[..., 5:8])
    assert torch.equal(lying[..., 5:8], standing.transpose(0, 1)[..., 2:5])


def test_scores_depend_on_distances_alone():
    q, k = torch.randn(2, 1, 1, 30, 16, generator=torch.Generator().manual_seed(0))
    turn = mrope((5, 6), (4, 6, 6))
    same_q, same_k = q[:, :, :1].expand_as(q), k[:, :, :1].expand_as(k)
    scores = (rotate(same_q, turn) @ rotate(same_k, turn).mT)[0, 0].view(5, 6, 5, 6)
    torch.testing.assert_close(scores[0, 0, 2, 3], scores[1, 2, 3, 5])
    torch.testing.assert_close(scores[4, 5, 3, 5], scores[1, 1, 0, 1])
    assert (scores[0, 0, 2, 3] - scores[0, 0, 3, 2]).abs() > 1e-3


@pytest.mark.parametrize("dims", [(4, 4), (4, 6, 8), (5, 5, 6), (0, 8, 8)])
def test_shares_that_do_not_fit_are_refused(dims):
    with pytest.raises(InputError, match=r"model.rope_dims is .* sum to a head's width 16"):
        make(replace(TOY, heads=2, rope_dims=dims))


# Attention.


@pytest.mark.parametrize("masked", [False, True])
def test_grouped_attention_is_attention_with_repeated_keys(masked):
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=draw)
    k, v = torch.randn(2, 2, 2, 7, 8, generator=draw)
    mask = torch.rand(2, 7, generator=draw) < 0.7 if masked else None
    seen = None if mask is None else mask[:, None, None]
    repeated = F.scaled_dot_product_attention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), attn_mask=seen
    )
    torch.testing.assert_close(attend_grouped(q, k, v, mask), repeated)


def test_gates_are_one_number_a_head_or_one_an_entry():
    draw = torch.Generator().manual_seed(0)
    x, plain = torch.randn(1, 5, 16, generator=draw), GroupedAttention(16, 2, 1, "none")
    for gate, rows in (("headwise", 2), ("elementwise", 16)):
        layer = GroupedAttention(16, 2, 1, gate)
        layer.load_state_dict(plain.state_dict() | {"gate.weight": torch.zeros(rows, 16)})
        torch.testing.assert_close(layer(x), plain(x) / 2)  # sigmoid(0)
        layer.activation = F.silu
        assert not layer(x).any()


# Text.


def test_padding_does_not_count_wherever_it_stands():
    model, (x, t, asked_for) = make(words=Words(width=24, length=9)), asked()
    value = Network(model)(x, t, asked_for).value
    noisy = torch.where(asked_for.text_mask[..., None], asked_for.text, torch.nan)
    torch.testing.assert_close(Network(model)(x, t, asked_for._replace(text=noisy)).value, value)
    longer = asked_for._replace(text=F.pad(asked_for.text, (0, 0, 0, 3)),
                                text_mask=F.pad(asked_for.text_mask, (0, 3)))  # fmt: skip
    torch.testing.assert_close(Network(model)(x, t, longer).value, value, rtol=1e-4, atol=1e-5)
    left = asked_for._replace(text=F.pad(asked_for.text, (0, 0, 3, 0)),
                              text_mask=F.pad(asked_for.text_mask, (3, 0)))  # fmt: skip
    torch.testing.assert_close(Network(model)(x, t, left).value, value, rtol=1e-4, atol=1e-5)


def test_the_length_of_each_samples_text_counts():
    mask = asked()[2].text_mask
    table = mrope((2, 3), (4, 6, 6), text=6, mask=mask)
    for row, n in zip(table[:, 0], (4, 6), strict=True):
        assert torch.equal(row[6:, :2], turns(7, 4, 1e4)[n].expand(6, -1))
        assert torch.equal(row[6:, 2:], mrope((2, 3), (4, 6, 6))[:, 2:])


def test_a_sample_without_a_token_is_answered():
    model, (x, t, asked_for) = make(), asked()
    none = asked_for._replace(text_mask=torch.zeros_like(asked_for.text_mask))
    value = Network(model)(x, t, none).value
    assert value.isfinite().all()
    assert (value - Network(model)(x, t, asked_for).value).abs().max() > 1e-4


@pytest.mark.parametrize("change", ["text", "pooled"])
def test_captions_matter(change):
    model, (x, t, asked_for) = make(), asked()
    other = asked_for._replace(**{change: getattr(asked_for, change).flip(0)})
    difference = Network(model)(x, t, other).value - Network(model)(x, t, asked_for).value
    assert difference.abs().amax((1, 2, 3)).min() > 1e-4


def test_a_batch_with_text_equals_its_samples_and_its_context():
    network, (x, t, asked_for) = Network(make()), asked()
    whole = network(x, t, asked_for).value
    context = network.condition(asked_for, SIZE)
    assert torch.equal(network(x, t, asked_for, context).value, whole)
    for i in range(2):
        one = Given(*(None if v is None else v[i : i + 1] for v in asked_for))
        torch.testing.assert_close(network(x[i : i + 1], t[i : i + 1], one).value[0], whole[i],
                                   rtol=1e-4, atol=1e-5)  # fmt: skip


def test_taps_give_the_tokens_of_the_picture_alone():
    x, t, asked_for = asked()
    (hidden,) = Network(make())(x, t, asked_for, taps=(1,)).hidden
    assert hidden.shape == (2, TOY.width, 2, 3)


def test_a_model_of_captions_wants_a_caption():
    model = make(classes=3)
    assert model.takes.text
    assert not make(words=None, classes=3).takes.text
    x, t, _ = asked()
    with pytest.raises(InputError, match="reads captions, and none is given"):
        model(x, t, Given(label=torch.zeros(2, dtype=torch.long)))


def test_a_pooled_vector_of_another_width_is_refused():
    model, (x, t, told) = make(), asked()
    with pytest.raises(InputError, match="pooled vector of width .* of width 3 is given; encode"):
        Network(model)(x, t, told._replace(pooled=torch.zeros(len(x), 3)))
    assert Network(model)(x, t, told._replace(pooled=None)).value.isfinite().all()


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 8, 12)])
@pytest.mark.parametrize("width", [7, 16])
def test_places_are_those_of_the_whole_table(size, width):
    spec = replace(make().spec, axes=grid_axes(size))
    model = replace(TOY, pixel_width=width).build(spec)
    code = sincos(size, size, width).T.reshape(1, width, *size)
    assert torch.equal(model._places(size, torch.device("cpu")), code)


def test_features_of_another_width_need_the_projection():
    with pytest.raises(InputError, match="features are 24 wide and model.width is 32"):
        make(replace(TOY, text_projection=False))
    wide = Words(width=32, length=6)
    model = make(replace(TOY, text_projection=False), wide)
    x, t, given_text = asked(words=wide)
    assert Network(model)(x, t, given_text).value.shape == x.shape


# Lessons.


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_another_caption_changes_what_steers_the_pixels_by_a_tenth(size, alike):
    """At the start, for features of any size; `alike`: the cosine of both captions."""
    model = make(replace(TOY, width=64), fill=False)
    x, t, asked_for = asked()
    draw = torch.Generator().manual_seed(2)
    common, one, two = F.normalize(torch.randn(3, 2, 24, generator=draw), dim=-1)
    pooled = [size * (alike**0.5 * common + (1 - alike) ** 0.5 * v) for v in (one, two)]
    found = [s_cond(model, x, t, asked_for._replace(pooled=p, text=size * asked_for.text))
             for p in pooled]  # fmt: skip
    assert ((found[1] - found[0]).norm(dim=-1) / found[0].norm(dim=-1)).min() >= 0.1


GAINS = {"modulation_gain": "modulation.weight steering", "spread_gain": "spread.weight",
         "output_gain": "head.weight",
         "gate_start": "modulation.bias leave.linear.bias"}  # fmt: skip


@pytest.mark.parametrize("name", GAINS)
def test_every_gain_is_read_from_one_field(name):
    """Twice the gain is twice those weights, and no other weight moves."""
    one, two = (
        dict(make(replace(TOY, **{name: value}), fill=False).named_parameters())
        for value in (0.5, 1.0)
    )
    moved = {n for n in one if not torch.equal(one[n], two[n])}
    wanted = {n for n in one if any(word in n for word in GAINS[name].split())}
    if name == "modulation_gain":
        wanted = {n for n in wanted if n.endswith("weight")}
    assert moved == wanted and moved
    for n in moved:
        torch.testing.assert_close(2 * one[n], two[n])


def test_a_published_start_is_to_be_had():
    model = make(replace(TOY, gate_start=1.0, output_gain=1.0, modulation_gain=1.0), fill=False)
    x, t, asked_for = asked()
    assert Network(model)(x, t, asked_for).value.std() > 0.1


def test_compaction_saves_p_to_the_fourth_pairs():
    """L^2 pairs of attention for L patches, and not (L p^2)^2: 65,536 times fewer at p = 16."""
    pairs = []
    for p in (16, 1):
        config = PixelHDMConfig(width=8, heads=1, kv_heads=1, depth=1, pixel_depth=1, patch_size=p,
                                pixel_width=1, bottleneck=1, rope_dims=(4, 2, 2))  # fmt: skip
        with torch.device("meta"):
            model = config.build(Spec(channels=1, axes=grid_axes((32, 32))))
            counted = []
            model.pixel_blocks[0].attention.register_forward_pre_hook(
                lambda layer, given, counted=counted: counted.append(given[0].shape[1] ** 2)
            )
            Network(model)(torch.zeros(1, 1, 32, 32), torch.zeros(1), Given())
        pairs += counted
    assert pairs[1] == pairs[0] * 65_536


def test_the_variance_of_what_blocks_add_does_not_grow_with_depth():
    """Every branch adds a normed answer: without the factor, variance grows by 2 each block."""
    torch.manual_seed(0)
    x, c = torch.randn(1, 64, 32), torch.zeros(1, 32)

    def added(depth: int, k: float) -> float:
        y = x
        for _ in range(depth):
            block = PatchBlock(32, GroupedAttention(32, 2, 1), 64, strength_of(depth, k))
            torch.nn.init.zeros_(block.modulation.weight)
            with torch.no_grad():
                block.modulation.bias.view(6, -1)[[2, 5]] = 1.0
                y = block(y, c, mrope((8, 8), (8, 4, 4)))
        return float((y - x).var())

    scaled, bare = ([added(depth, k) for depth in (4, 8, 16)] for k in (2.0, 0.0))
    assert max(scaled) < 2.0 and max(scaled) / min(scaled) < 1.5
    assert bare[2] / bare[0] > 3 and bare[0] > 4 * max(scaled)
    assert strength_of(16, 2.0) == pytest.approx(32**-0.5) and strength_of(16, 0.0) == 1


# Choices.


@pytest.mark.parametrize(
    "options",
    [{"modulation": "patch"}, {"modulation": "factorised"}, {"bottleneck": 0},
     {"bottleneck_silu": True}, {"gate": "none"}, {"gate": "elementwise"}, {"gate_bias": True},
     {"gate_activation": "silu"}, {"pixel_place": False}, {"depth_scale": 0.0},
     {"pixel_depth_scale": 0.0}, {"kv_heads": 4}, {"rope_dims": (2, 2, 4)}, {"theta": 10.0},
     {"time_features": 64}, {"time_scale": 1.0}, {"mlp_ratio": 2.0}, {"spread_gain": 1.0}],
    ids=str,
)  # fmt: skip
def test_every_choice_is_a_model_of_its_own_that_learns(options):
    model = make(replace(TOY, **options))
    x, t, asked_for = asked()
    value = Network(model)(x, t, asked_for).value
    assert (value - Network(make())(x, t, asked_for).value).abs().max() > 1e-6
    value.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name


@pytest.mark.parametrize("modulation", ["pixel", "factorised"])
def test_what_is_made_again_in_backward_has_the_same_gradient(modulation):
    gradients = []
    for recompute in (True, False):
        model = make(replace(TOY, recompute=recompute, modulation=modulation))
        x, t, asked_for = asked()
        Network(model)(x, t, asked_for).value.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for again, kept in zip(*gradients, strict=True):
        assert torch.equal(again, kept)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"kv_heads": 3}, "model.kv_heads is 3; it must divide model.heads 4"),
     ({"gate": "none", "gate_bias": True}, "model.gate is none, but model.gate_bias"),
     ({"depth_scale": -1.0}, "model.depth_scale is -1.0; it must be 0 or more"),
     ({"time_features": 3}, "model.time_features is 3; it must be even"),
     ({"mlp_ratio": 0.01}, "model.mlp_ratio is 0.01, which leaves no hidden unit"),
     ({"pixel_depth": 0}, "model.pixel_depth is 0; it must be 1 or more")],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        replace(TOY, **options)


def test_heads_too_narrow_for_the_axes_are_refused():
    with pytest.raises(InputError, match="leaves heads of 4, which have no pair to turn for each"):
        make(replace(TOY, heads=8, kv_heads=8))


@pytest.mark.slow
def test_networks_of_any_depth_learn_alike_where_branches_are_scaled(monkeypatch):
    """As measured by `bench/depth_scaling.py`, which shows the same without the scaling."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    bench = importlib.import_module("depth_scaling")
    losses = [bench.loss_of(depth, 2.0, 300) for depth in bench.DEPTHS]
    assert max(losses) / min(losses) < 1.1
