"""What every encoder of observations keeps: a config added to ENCODERS is held to all this."""

import itertools
import math

import pytest
import torch

from pointillist.draws import Draw
from pointillist.encoders.curve import CurveConfig, encoder_from_published
from pointillist.encoders.encoder import Site
from pointillist.encoders.perceiver import PerceiverConfig
from pointillist.layers.observations import to_points
from pointillist.types import Given, InputError
from tests.parity_case import CASES, FOLDER, Case
from tests.parity_sfc import encoder_activations

ENCODERS = {
    "curve": CurveConfig(group_size=3),
    "curve, all options": CurveConfig(
        group_size=3, curve="zorder", spatial_bias=True, unified_coords=True, token_mlp=True
    ),
    "curve, as published": CurveConfig(
        group_size=3, coordinates="corner", bands=16, null_token=False, time_tokens=True,
        valid_flag=False, noisy_patches=False, spatial_bias=True,
    ),
    "perceiver": PerceiverConfig(latents=5),
    "perceiver, two looks": PerceiverConfig(latents=5, cross_depth=2, cross_heads=2),
}  # fmt: skip
SIZES = [(16,), (8, 12), (4, 8, 8)]
WIDTH, PATCH, CHANNELS = 16, 4, 2

every = pytest.mark.parametrize(
    ("name", "size"), list(itertools.product(ENCODERS, SIZES)), ids=lambda v: str(v)
)
each = pytest.mark.parametrize("name", ENCODERS)


def toy(config, size=(8, 12)):
    """A toy encoder whose zero-initialised layers are filled, so that all of it matters."""
    torch.manual_seed(0)
    encoder = config.build(Site(CHANNELS, size, PATCH, WIDTH, 2))
    with torch.no_grad():
        for p in encoder.parameters():
            if not p.any():
                p.normal_(std=0.3)
    return encoder.eval()


def grid_of(size):
    return tuple(n // PATCH for n in size)


def asked(size, b=3):
    """Patches, time and label, and pictures of which the first sample has nothing observed."""
    draw = Draw(1, torch.arange(b))
    patches = draw.normal("patches", (math.prod(grid_of(size)), WIDTH))
    c = draw.normal("c", (WIDTH,))
    share = torch.linspace(0, 0.5, b).view(-1, *[1] * (len(size) + 1))
    mask = draw.uniform("mask", (1, *size)) < share
    return patches, c, Given(seen=draw.normal("seen", (CHANNELS, *size)), mask=mask)


def answer(encoder, patches, c, given, size):
    return encoder(patches, c, encoder.condition(given, size, grid_of(size)))


def scattered(size, b=3, m=11):
    draw = Draw(4, torch.arange(b))
    return Given(
        at=draw.uniform("at", (m, len(size))) * 2 - 1,
        value=draw.normal("value", (CHANNELS, m)),
        valid=draw.uniform("valid", (1, m)) < 0.7,
    )


def part(given, which):
    return Given(*(None if v is None else v[which] for v in given))


@every
def test_a_batch_equals_its_samples_one_by_one(name, size):
    encoder = toy(ENCODERS[name], size)
    patches, c, gridded = asked(size)
    for given in (gridded, scattered(size)):
        whole = answer(encoder, patches, c, given, size)
        assert whole.shape == patches.shape and whole.isfinite().all()
        for i in range(3):
            one = slice(i, i + 1)
            alone = answer(encoder, patches[one], c[one], part(given, one), size)
            torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)


@every
def test_what_is_observed_matters_and_what_is_hidden_does_not(name, size):
    encoder = toy(ENCODERS[name], size)
    patches, c, given = asked(size)
    before = answer(encoder, patches, c, given, size)
    hidden = torch.where(given.mask, given.seen, torch.nan)
    assert torch.equal(answer(encoder, patches, c, given._replace(seen=hidden), size), before)
    other = answer(encoder, patches, c, given._replace(seen=given.seen + 1), size)
    assert torch.equal(other[0], before[0]), "nothing is observed of the first"
    assert ((other - before)[1:].abs().amax(2) > 1e-4).all(), "every patch asks every point"


@every
def test_the_order_of_points_does_not_matter(name, size):
    encoder = toy(ENCODERS[name], size)
    patches, c, _ = asked(size)
    given = scattered(size)
    # Ties: points at one place, in one cell of any size, with values of their own.
    given.at[:, 4:7] = given.at[:, 3:4]
    given.at[:, 8] = given.at[:, 7] + 1e-7
    before = answer(encoder, patches, c, given, size)
    for seed in range(3):
        turn = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
        turned = Given(
            at=given.at[:, turn], value=given.value[..., turn], valid=given.valid[..., turn]
        )
        again = answer(encoder, patches, c, turned, size)
        torch.testing.assert_close(again, before, rtol=1e-4, atol=1e-5)


@every
def test_cells_and_the_points_at_their_centres_are_the_same(name, size):
    encoder = toy(ENCODERS[name], size)
    patches, c, given = asked(size)
    at, value, valid = to_points(given.seen, given.mask)
    points = Given(at=at, value=value, valid=valid[:, :1])
    torch.testing.assert_close(
        answer(encoder, patches, c, points, size), answer(encoder, patches, c, given, size),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    half = Given(
        seen=given.seen, mask=given.mask & (torch.arange(size[-1]) < size[-1] // 2),
        at=at, value=value, valid=valid[:, :1] & (at[..., -1] > 0)[:, None],
    )  # fmt: skip
    torch.testing.assert_close(
        answer(encoder, patches, c, half, size), answer(encoder, patches, c, given, size),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@every
def test_nothing_known_is_the_same_however_it_is_said_and_has_finite_gradients(name, size):
    encoder = toy(ENCODERS[name], size)
    patches, c, given = asked(size)
    patches = patches.requires_grad_()
    said = [
        Given(),
        given._replace(mask=torch.zeros_like(given.mask)),
        scattered(size)._replace(valid=torch.zeros(3, 1, 11, dtype=torch.bool)),
        Given(at=torch.zeros(3, 0, len(size)), value=torch.zeros(3, CHANNELS, 0)),
    ]
    answers = [answer(encoder, patches, c, nothing, size) for nothing in said]
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0])
    sum(other.square().sum() for other in answers).backward()
    found = [p.grad for p in (patches, *encoder.parameters()) if p.grad is not None]
    assert found and all(g.isfinite().all() for g in found)


@every
def test_gradients_reach_every_weight_and_are_finite_beside_an_empty_sample(name, size):
    encoder = toy(ENCODERS[name], size)
    patches, c, given = asked(size)
    seen = given.seen.requires_grad_()
    answer(encoder, patches, c, given._replace(seen=seen), size).square().sum().backward()
    for label, p in encoder.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), label
        assert p.grad.any(), label
    assert seen.grad.isfinite().all() and not seen.grad[~given.mask.expand_as(seen)].any()


@each
@pytest.mark.parametrize("grid", [(4, 6), (16, 24)], ids=["coarser", "finer"])
def test_observations_on_another_grid_are_understood(name, grid):
    size = (8, 12)
    encoder = toy(ENCODERS[name], size)
    patches, c, _ = asked(size)
    _, _, given = asked(grid)
    before = answer(encoder, patches, c, given, size)
    other = answer(encoder, patches, c, given._replace(seen=-given.seen), size)
    assert before.isfinite().all() and ((other - before)[1:].abs().amax(2) > 1e-4).all()


@each
def test_another_size_than_the_trained_one_is_answered(name):
    encoder = toy(ENCODERS[name], (8, 12))
    patches, c, given = asked((20, 24))
    assert answer(encoder, patches, c, given, (20, 24)).shape == patches.shape


@each
def test_bfloat16_autocast_stays_close_and_in_float32(name):
    size = (8, 12)
    encoder = toy(ENCODERS[name], size)
    patches, c, given = asked(size)
    plain = answer(encoder, patches, c, given, size)
    with torch.autocast("cpu", torch.bfloat16):
        found = answer(encoder, patches, c, given, size)
        found.square().sum().backward()
    assert found.dtype == torch.float32
    assert (found - plain).abs().max() < 0.05 * plain.abs().max()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("config", [CurveConfig, PerceiverConfig])
@pytest.mark.parametrize("noisy", [True, False])
def test_answers_depend_on_the_noisy_patches_where_they_are_part_of_the_question(config, noisy):
    """A question holds its own patch; the backbone's blocks carry it to the others."""
    size = (8, 12)
    encoder = toy(config(noisy_patches=noisy), size)
    patches, c, given = asked(size)
    change = answer(encoder, patches + 1, c, given, size) - answer(encoder, patches, c, given, size)
    assert bool(change.abs().amax(2).gt(1e-3).all()) == noisy
    assert noisy or not change.any()


@pytest.mark.parametrize("config", [CurveConfig, PerceiverConfig])
def test_an_encoder_that_has_learnt_nothing_is_blind_to_observations(config):
    torch.manual_seed(0)
    size = (8, 12)
    encoder = config().build(Site(CHANNELS, size, PATCH, WIDTH, 2))
    patches, c, given = asked(size)
    assert torch.equal(
        answer(encoder, patches, c, given, size),
        answer(encoder, patches, c, given._replace(seen=given.seen + 1), size),
    )


# The curve encoder's own.


def test_tokens_and_keys_are_made_once_where_tokens_know_no_time():
    size = (8, 12)
    patches, c, given = asked(size)
    for time_tokens in (True, False):
        encoder = toy(CurveConfig(time_tokens=time_tokens), size)
        context, calls = encoder.condition(given, size, grid_of(size)), []
        for block in encoder.self_blocks:
            block.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for _ in range(3):
            encoder(patches, c, context)
        assert len(calls) == 3 * 2 * time_tokens


def test_the_number_of_tokens_is_that_of_the_fullest_sample():
    size = (8, 12)
    encoder = toy(CurveConfig(group_size=4), size)
    for most in (0, 1, 4, 5, 96):
        mask = torch.arange(96).view(8, 12) < torch.tensor([most // 3, most, 0]).view(3, 1, 1, 1)
        tokens = encoder.tokenizer(Given(seen=torch.ones(3, CHANNELS, 8, 12), mask=mask), size)
        assert tokens.value.shape[1] == max(1, -(-most // 4))
        expected = [-(-int(n) // 4) for n in mask.flatten(1).sum(1)]
        assert tokens.mask.sum(1).tolist() == expected
        assert not tokens.value[~tokens.mask].any() and not tokens.at[~tokens.mask].any()


def test_a_token_lies_at_the_mean_of_its_points_and_no_empty_slot_counts():
    size = (4, 4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0, 0] = mask[..., 0, 1] = True
    given = Given(seen=torch.zeros(1, CHANNELS, 4, 4), mask=mask)
    for coordinates, expected in (
        ("centre", [-0.75, -0.5]), ("corner", [-1, (-1 - 1 / 3 * 3) / 4]), ("unit", [0, 1 / 4]),
    ):  # fmt: skip
        encoder = toy(CurveConfig(group_size=4, coordinates=coordinates), size)
        at = encoder.tokenizer(given, size).at[0, 0]
        torch.testing.assert_close(at, torch.tensor(expected, dtype=torch.float32))


def test_a_place_that_many_observed_is_coded_once_for_all_of_them():
    size, b = (8, 12), 5
    tokenizer, rows = toy(CurveConfig(group_size=4), size).tokenizer, []
    seen = torch.randn(b, 2, *size).clamp(-1, 1)
    given = Given(seen=seen, mask=torch.rand(b, 1, *size) < 0.5)
    tokenizer.code.register_forward_hook(lambda _, at, __: rows.append(at[0].numel() // 2))
    together = tokenizer(given, size)
    assert rows == [96], "each cell once: more points are observed, but fewer tokens are made"
    for i in range(b):
        alone = tokenizer(part(given, slice(i, i + 1)), size)
        n = alone.value.shape[1]
        torch.testing.assert_close(together.value[i, :n], alone.value[0], rtol=1e-4, atol=1e-5)
    assert all(row < 96 for row in rows[1:])


@pytest.mark.parametrize("options", [
    {}, {"coordinate_code": "fixed", "token_mlp": True}, {"curve_position": False},
    {"valid_flag": False, "coordinates": "corner"},
])  # fmt: skip
def test_a_table_of_places_gives_the_tokens_of_single_points(options):
    size = (8, 12)
    encoder = toy(CurveConfig(group_size=3, **options), size)
    _, _, given = asked(size, b=12)
    tokenizer, calls = encoder.tokenizer, []
    direct = tokenizer._direct
    tokenizer._direct = lambda *asked: (calls.append(1), direct(*asked))[1]
    tabled = tokenizer(given, size)
    assert not calls, "a batch with more tokens than cells is read from the table"
    for i in range(12):
        alone = tokenizer(part(given, slice(i, i + 1)), size)
        n = alone.value.shape[1]
        torch.testing.assert_close(tabled.value[i, :n], alone.value[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tabled.at[i, :n], alone.at[0])
    assert len(calls) == 12
    found = []
    for one in (False, True):
        tokenizer.zero_grad()
        parts = [part(given, slice(i, i + 1)) for i in range(12)] if one else [given]
        sum(tokenizer(p, size).value.pow(3).sum() for p in parts).backward()
        found.append([p.grad.clone() for p in tokenizer.parameters()])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4)


def test_an_empty_slot_is_told_from_a_grey_point_in_the_first_cell_only_by_its_flag():
    """Without a code of the place, a slot of zeros and a point of zeros look alike."""
    size = (4, 4)
    for flag in (True, False):
        encoder = toy(CurveConfig(group_size=2, valid_flag=flag), size)
        tokenizer = encoder.tokenizer
        with torch.no_grad():
            tokenizer.project.weight.unflatten(1, (2, -1))[..., tokenizer.told :] = 0
        mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
        mask[:, :, 0, 0] = mask[1, :, 0, 1] = True
        value = tokenizer(Given(seen=torch.zeros(2, CHANNELS, 4, 4), mask=mask), size).value
        assert torch.equal(value[0], value[1]) != flag


def test_near_tokens_count_for_more_and_the_gradient_reaches_the_scale_of_distance():
    size = (8, 12)
    patches, c, given = asked(size)
    encoder = toy(CurveConfig(spatial_bias=True, time_tokens=True), size)
    answer(encoder, patches, c, given, size).square().sum().backward()
    for block in encoder.cross_blocks:
        scale = torch.nn.functional.softplus(block.bias.scale)
        torch.testing.assert_close(scale, torch.ones(2))
        assert (block.bias.scale.grad.abs() > 1e-6).all()
    context = encoder.condition(given, size, grid_of(size))
    bias = encoder.cross_blocks[0].bias(context.distance)
    nearest = context.distance.argmin(-1)[:, None].expand(-1, 2, -1)
    assert torch.equal(bias.argmax(-1), nearest)


def test_published_scales_are_taken_over_offsets_ignored_and_repulsion_refused():
    state = {
        "sfc_cross.blocks.0.spatial_scale": torch.tensor([0.01, 30.0]),
        "sfc_cross.blocks.0.spatial_offset": torch.tensor([1.0, 2.0]),
        "s_embedder.proj.weight": torch.ones(2, 2),
    }
    named = encoder_from_published(state)
    assert list(named) == ["cross_blocks.0.bias.scale"]
    back = torch.nn.functional.softplus(named["cross_blocks.0.bias.scale"])
    torch.testing.assert_close(back, state["sfc_cross.blocks.0.spatial_scale"])
    state["sfc_cross.blocks.0.spatial_scale"][1] = -0.5
    with pytest.raises(InputError, match="spatial_scale is -0.5 for a head"):
        encoder_from_published(state)


def test_an_offset_of_all_scores_is_forgotten_by_softmax():
    encoder = toy(CurveConfig(spatial_bias=True))
    attention, tokens = encoder.cross_blocks[0].attention, torch.randn(2, 7, WIDTH)
    x, bias = torch.randn(2, 5, WIDTH), torch.randn(2, 2, 5, 7)
    offset = torch.tensor([1.5, -2.0])[:, None, None]
    keys = attention.keys(tokens)
    torch.testing.assert_close(
        attention(x, keys, None, bias + offset), attention(x, keys, None, bias),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(("config", "field", "value", "words"), [
    (CurveConfig, "group_size", 0, "model.encoder.group_size is 0; it must be 1 or more"),
    (CurveConfig, "bands", 0, "model.encoder.bands is 0; it must be 1 or more"),
    (CurveConfig, "self_depth", -1, "model.encoder.self_depth is -1; it must be 0 or more"),
    (CurveConfig, "mlp_ratio", 0.0, "model.encoder.mlp_ratio is 0.0; it must be above 0"),
    (PerceiverConfig, "latents", 0, "model.encoder.latents is 0; it must be 1 or more"),
    (PerceiverConfig, "mlp_ratio", -1.0, "model.encoder.mlp_ratio is -1.0; it must be above 0"),
])  # fmt: skip
def test_impossible_fields_are_refused_by_name(config, field, value, words):
    with pytest.raises(InputError, match=words):
        config(**{field: value})


def test_contradictions_are_refused():
    with pytest.raises(InputError, match="unified_coords is true, but coordinate_code is fixed"):
        CurveConfig(unified_coords=True, coordinate_code="fixed")
    for config, field in ((CurveConfig, "heads"), (PerceiverConfig, "cross_heads")):
        with pytest.raises(InputError, match=f"{field} is 3, which does not divide model.width 16"):
            toy(config(**{field: 3}))


WHOLE = [f"pixnerdit_sfc_{name}" for name in ("baseline", "unified", "spatial", "both", "dense")]


@pytest.mark.parametrize("name", WHOLE)
def test_tokens_and_answers_of_a_published_model_are_matched(name):
    if name not in CASES:
        pytest.skip(f"no parity case {name} in {FOLDER}")
    encoder_activations(Case(FOLDER / name))
