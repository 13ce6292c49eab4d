"""What sets PixNerd apart: fields that tokens write, and answers at any size."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from pointillist.draws import Draw
from pointillist.encoders import Encoder, GridConfig, SplatConfig
from pointillist.gradient import backward
from pointillist.guidance import network_field
from pointillist.layers.offset import moved
from pointillist.models import Network, PixNerdConfig, neural_field
from pointillist.models.neural_field import _WrittenMLP, code_of, places
from pointillist.objective import StraightConfig
from pointillist.resolution import box_means, coarsen
from pointillist.run import Run
from pointillist.samplers import euler, time_grid
from pointillist.tasks import HintsConfig
from pointillist.types import Batch, Given, InputError

from .awake import awake
from .contract.test_models import SIZES, asked, spec_of, toy

SIZE = (8, 12)
SMALL = {"decoder_width": 8, "bands": 4}
every_size = pytest.mark.parametrize("size", SIZES)


def made(size=SIZE, **options):
    return toy(PixNerdConfig, size, **{**SMALL, **options})


def rendered(model, size=SIZE, r=2, offsets=None, x=None):
    """An answer r times finer than what the patches see."""
    large = tuple(r * n for n in size)
    noise, t, given = asked(large)
    x = noise if x is None else x
    coarse, later = coarsen(StraightConfig(), noise, t, r)
    return Network(model).render(x, t, coarse, later, given, offsets=offsets).value


# Every choice.


@pytest.mark.parametrize(
    "options",
    [{"weight_norm": "first"}, {"weight_norm": "none"}, {"final_norm": False}, {"code": "rotary"},
     {"coordinates": "corner"}, {"bands": 5}, {"decoder_depth": 3}, {"decoder_ratio": 3},
     {"decoder_width": 6}, {"position_span": 0.0}, {"mlp_ratio": 2.0}, {"max_period": 1e4},
     {"theta": 100.0}, {"time_scale": 100.0}, {"scales": (1, 2)}, {"encoder": GridConfig()}],
    ids=str,
)  # fmt: skip
def test_every_choice_is_a_model_of_its_own_that_learns(options):
    size, r = (16, 24), 2
    model, plain = made(size, **options), made(size)
    given = asked((32, 48))[2]
    if "encoder" in options:
        given = given._replace(seen=asked(size)[0], mask=torch.ones(3, 1, *size) > 0)
    x, t, _ = asked((32, 48))
    coarse, later = coarsen(StraightConfig(), x, t, r)
    value = Network(model).render(x, t, coarse, later, given).value
    assert (value - rendered(plain, size)).abs().max() > 1e-5
    value.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name


def test_a_field_of_its_own_hands_each_patch_another_answer():
    """Two patches that are shown the same cells are told apart by their tokens alone, which know
    their places by the others'. Where all are alike there is nothing to know them by.
    """
    model = made(SIZE)
    x, t, given = asked(SIZE)
    x[..., :4, :4] = x[..., 4:, 8:]
    value = Network(model)(x, t, given).value
    assert (value[..., :4, :4] - value[..., 4:, 8:]).abs().max() > 1e-4


@pytest.mark.parametrize("r", [1, 2])
def test_a_cell_sees_what_its_answer_is_added_to(r):
    """Where tokens say nothing of what is observed, what is added to the guess follows it still."""
    model = made(SIZE, encoder=SplatConfig())
    with torch.no_grad():
        model.encoder.linear.weight.zero_()
    large = tuple(r * n for n in SIZE)
    xt, t, given = asked(large)
    coarse, later = coarsen(StraightConfig(), xt, t, r)
    mask = torch.ones(3, 1, *SIZE) > 0
    answers = []
    for seen in (torch.zeros(3, 2, *SIZE), asked(SIZE)[0]):
        found = Network(model).render(xt, t, coarse, later, given._replace(seen=seen, mask=mask))
        assert found.guess is not None and found.guess.shape[2:] == large
        answers.append(found.value - found.guess)
    apart = (answers[1] - answers[0]).abs().amax((0, 1))
    assert (apart > 1e-5).all()


def test_a_cell_is_seen_by_others_through_the_token_alone():
    model = made(SIZE)
    large = tuple(2 * n for n in SIZE)
    x = asked(large)[0]
    other = x.clone()
    other[..., 3, 5] += 1
    change = (rendered(model) - rendered(model, x=other)).abs().amax((0, 1))
    assert change[3, 5] > 1e-3
    change[3, 5] = 0
    assert not change.any()


# Written weights.


def plainly(h, w, first, second):
    d = h.shape[2]
    w1, w2 = w.unflatten(1, (2, -1)).unbind(1)
    w1, w2 = w1.unflatten(1, (d, -1)), w2.unflatten(1, (-1, d))
    w1 = F.normalize(w1, dim=1) if first else w1
    w2 = F.normalize(w2, dim=1) if second else w2
    return F.silu(h @ w1) @ w2


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, False)])
def test_written_weights_act_and_learn_as_normalised_ones(first, second):
    draw = Draw(0, torch.arange(3))
    h, w = draw.normal("h", (5, 4)), draw.normal("w", (2 * 2 * 16,))
    found = []
    for form in (_WrittenMLP.apply, plainly):
        ours = [v.clone().requires_grad_() for v in (h, w)]
        value = form(*ours, first, second)
        (value * draw.normal("g", (5, 4))).sum().backward()
        found.append((value, *(v.grad for v in ours)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_written_weights_are_kept_once():
    """Neither normalised ones nor what lies between the two layers is held for backward."""
    h, w = torch.randn(3, 5, 4, requires_grad=True), torch.randn(3, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda v: kept.append(v.numel()) or v, lambda v: v
    ):
        _WrittenMLP.apply(h, w, True, True)
    assert sum(kept) == h.numel() + w.numel() + 3 * 8 + 3 * 4


@pytest.mark.parametrize(("weight_norm", "changed"), [("both", 0), ("first", 1), ("none", 2)])
def test_scaling_what_writes_changes_only_what_is_not_normalised(weight_norm, changed):
    """Column by column: the norms leave of a column its direction."""
    moved = 0
    for half in (0, 1):
        model = made(SIZE, weight_norm=weight_norm)
        before = rendered(model)
        with torch.no_grad():
            for block in model.field.blocks:
                columns = (16, 8)[half]
                factor = 0.5 + torch.arange(columns).float()
                for p in (block.write.weight, block.write.bias):
                    view = p.unflatten(0, (2, -1))[half].unflatten(0, (-1, columns))
                    view.mul_(factor.view(-1, *[1] * (view.dim() - 2)))
        moved += bool((rendered(model) - before).abs().max() > 1e-3)
    assert moved == changed


# Places.


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("p", [1, 2, 4, 7])
def test_the_centres_of_a_patch_nest(p, axes):
    """A cell lies in the middle of those that take its place in a finer patch: no checkerboard."""
    grid = [v.T.reshape(1, axes, *[n] * axes) for v, n in
            ((places(p, axes, "centre"), p), (places(2 * p, axes, "centre"), 2 * p))]  # fmt: skip
    torch.testing.assert_close(box_means(grid[1], 2), grid[0])
    assert float(grid[0].min()) == pytest.approx(0.5 / p)
    if p > 1:  # the published places do not
        corners = [v.T.reshape(1, axes, *[n] * axes) for v, n in
                   ((places(n, axes, "corner"), n) for n in (p, 2 * p))]  # fmt: skip
        assert (box_means(corners[1], 2) - corners[0]).abs().max() > 0.01


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_dct_code_is_the_product_of_its_axes(axes):
    at, bands = places(3, axes, "corner"), 4
    code = code_of(at, "dct", bands, 1e4)
    f = torch.linspace(0, bands, bands, dtype=torch.float64)
    assert code.shape == (3**axes, bands**axes)
    for column, number in enumerate(itertools.product(range(bands), repeat=axes)):
        expected, weight = torch.ones(len(at)).double(), 1.0
        for band, axis in zip(number, reversed(range(axes)), strict=True):
            expected = expected * (torch.pi * f[band] * at[:, axis]).cos()
            weight *= float(f[band])
        torch.testing.assert_close(code[:, column], expected / (1 + weight))


def test_jitter_moves_every_cell_within_itself():
    model = made(SIZE)
    still = torch.zeros(2, 8)
    torch.testing.assert_close(rendered(model, offsets=still), rendered(model))
    apart = rendered(model, offsets=still + 0.4)
    assert (apart - rendered(model)).abs().max() > 1e-3
    # Half a cell of a patch of 4 is a whole one of a patch of 8: the field is one and the same.
    field = made(SIZE).field
    cells, s = torch.zeros(2, 16, 2), Draw(0, torch.arange(2)).normal("s", (32,))
    finer = field(torch.zeros(2, 64, 2), s, 8).unflatten(1, (8, 8))
    for row, column in itertools.product((0, 1), repeat=2):
        shift = torch.tensor([row, column]).expand(16, 2) / 2 - 0.25
        there = field(cells, s, 4, shift).unflatten(1, (4, 4))
        torch.testing.assert_close(there, finer[:, row::2, column::2], rtol=1e-4, atol=1e-5)


def test_a_table_of_places_is_made_once(monkeypatch):
    neural_field._table.cache_clear()
    model = made(SIZE)
    for _ in range(3):
        rendered(model)
    assert neural_field._table.cache_info().misses == 1


# Any size.


@every_size
def test_rendering_at_the_size_seen_is_the_forward(size):
    model = made(size)
    x, t, given = asked(size)
    plain = Network(model)(x, t, given)
    network = Network(model)
    assert torch.equal(network.render(x, t, x, t, given).value, plain.value)
    context = network.condition(given, size)
    assert torch.equal(network.render(x, t, x, t, given, context).value, plain.value)


@every_size
@pytest.mark.parametrize("r", [2, 3])
def test_a_finer_answer_has_its_size_and_a_batch_is_its_samples(size, r):
    model, large = made(size), tuple(r * n for n in size)
    x, t, given = asked(large)
    coarse, later = coarsen(StraightConfig(), x, t, r)
    network = Network(model)
    whole = network.render(x, t, coarse, later, given, taps=(1,))
    assert whole.value.shape == x.shape
    assert whole.hidden[0].shape[2:] == tuple(n // 4 for n in size)
    for i in range(3):
        one = network.render(*(v[i : i + 1] for v in (x, t, coarse, later)),
                             Given(label=given.label[i : i + 1])).value  # fmt: skip
        torch.testing.assert_close(one[0], whole.value[i], rtol=1e-4, atol=1e-5)


def test_patches_know_the_time_of_what_they_see_and_fields_their_own():
    model = made(SIZE)
    x, t, given = asked(tuple(2 * n for n in SIZE))
    coarse, later = coarsen(StraightConfig(), x, t, 2)
    network = Network(model)
    value = network.render(x, t, coarse, later, given).value
    for times in ((t + 0.3, later), (t, later + 0.3)):
        assert (network.render(x, times[0], coarse, times[1], given).value - value).abs().max() > (
            1e-4
        )


def test_the_scale_is_told_and_nothing_is_at_scale_one():
    size = (16, 24)
    model = made(size, scales=(1, 2))
    answers = {r: rendered(model, size, r) for r in (1, 2, 3)}
    with torch.no_grad():
        model.scale.mul_(3)
    assert torch.equal(rendered(model, size, 1), answers[1])
    for r in (2, 3):
        assert (rendered(model, size, r) - answers[r]).abs().max() > 1e-3
    assert (
        not PixNerdConfig(width=32, depth=1, heads=2, patch_size=4, scales=(1, 2))
        .build(spec_of(size))
        .scale.any()
    )


class Guessing(Encoder):
    """Guesses one grey for every channel."""

    def condition(self, given, size, grid, asked=None):
        return torch.full((1, 2, *(asked or size)), 0.7)

    def forward(self, patches, c, context):
        return patches

    def guess(self, context):
        return context


def test_a_guess_is_added_in_the_size_of_the_answer():
    model = made(SIZE)
    before = rendered(model)
    model.encoder = Guessing()
    torch.testing.assert_close(rendered(model) - before, torch.full_like(before, 0.7))


def test_the_residual_of_splat_is_interpolated_on_the_grid_that_is_asked():
    model = made(SIZE, encoder=SplatConfig())
    given = asked(SIZE)[2]
    draw = Draw(4, torch.arange(3))
    fine = tuple(2 * n for n in SIZE)
    seen, mask = draw.normal("seen", (2, *fine)), draw.uniform("mask", (1, *fine)) < 0.3
    given = given._replace(seen=torch.where(mask, seen, 0), mask=mask)
    context = Network(model).condition(given, SIZE, fine)
    guess = model.encoder.guess(context.encoded)
    assert guess.shape[2:] == fine
    torch.testing.assert_close(torch.where(mask, guess, 0), given.seen)


def test_the_guess_is_taken_where_the_cells_are_moved_to():
    """What is added to a picture that training takes beside its cells has to be taken there too."""
    model, (xt, t, given) = made(SIZE, encoder=SplatConfig()), asked(SIZE)
    offsets = torch.tensor([[0.3, -0.2, 0.1, 0.4], [-0.5, 0.0, 0.25, -0.1]])
    seen = torch.linspace(0, 2, 12).sin().expand(3, 2, *SIZE)
    given = given._replace(seen=seen, mask=torch.ones(3, 1, *SIZE) > 0)
    still = Network(model).render(xt, t, xt, t, given)
    apart = Network(model).render(xt, t, xt, t, given, offsets=offsets)
    torch.testing.assert_close(apart.guess, moved(still.guess, offsets))
    torch.testing.assert_close(apart.guess[..., 2:-2], moved(seen, offsets)[..., 2:-2])


def test_what_cannot_be_rendered_is_refused():
    model = made(SIZE)
    x, t, given = asked((16, 16))
    with pytest.raises(InputError, match="size 16x16 is no whole multiple of the coarse size 8x12"):
        Network(model).render(x, t, torch.zeros(3, 2, *SIZE), t, given)
    with pytest.raises(InputError, match="model.scales has 2, but 1/2 of 8x12 is no multiple"):
        made(SIZE, scales=(1, 2))


# Training and sampling.


def batch_of(first, b=4, size=(16, 16)):
    index = torch.arange(first, first + b)
    x = Draw(0, index).normal("data", (2, *size)).clamp(-1, 1)
    return Batch(index, x, label=index % 3)


@pytest.mark.parametrize("hinted", [False, True], ids=["plain", "hinted"])
def test_micro_batches_give_the_same_gradient_at_every_scale(hinted, monkeypatch):
    more = {"encoder": GridConfig()} if hinted else {}
    model = made((16, 16), scales=(1, 2), jitter=1.0, **more).train()
    task = HintsConfig(share=0.4, absent=0.25) if hinted else Run.load("debug").task
    run, seen = Run(model=model.config, task=task), set()
    rendered_by = model.render

    def render(xt, t, coarse, t_coarse, given, context, offsets, taps):
        scale = xt.shape[-1] // coarse.shape[-1]
        assert offsets.shape == (2, 4 * scale) and offsets.abs().max() <= 0.5
        seen.add((scale, float(offsets[0, 0])))
        assert (t_coarse > t).all() if scale > 1 else torch.equal(t, t_coarse)
        return rendered_by(xt, t, coarse, t_coarse, given, context, offsets, taps)

    monkeypatch.setattr(model, "render", render)
    for first in range(0, 32, 4):
        found = []
        for micro in (4, 2, 1):
            model.zero_grad()
            drawn = len(seen)
            backward(run, Network(model), batch_of(first), torch.device("cpu"), micro)
            assert len(seen) - drawn == (micro == 4)
            found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        for parts in found[1:]:
            for a, b in zip(found[0], parts, strict=True):
                assert a is not None and b is not None
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert {scale for scale, _ in seen} == {1, 2} and len(seen) == 8


def test_a_walk_at_twice_the_trained_size_is_drawn_by_patches_at_the_trained_one(monkeypatch):
    model = made(SIZE)
    seen, condition = [], model.condition
    monkeypatch.setattr(model, "condition", lambda *a: (seen.append(a[1]), condition(*a))[1])
    network, objective, large = Network(model), StraightConfig(), tuple(2 * n for n in SIZE)
    noise, _, given = asked(large)
    walks = []
    with torch.no_grad():
        for _ in range(2):
            field = network_field(network, objective, given, large)
            walks.append(euler(field, noise, time_grid(4)))
    assert seen == [SIZE, SIZE] and torch.equal(*walks) and walks[0].isfinite().all()
    field = network_field(network, objective, Given(label=given.label[1:2]), large)
    with torch.no_grad():
        torch.testing.assert_close(euler(field, noise[1:2], time_grid(4))[0], walks[0][1],
                                   rtol=1e-3, atol=1e-3)  # fmt: skip
    # At the trained size nothing is seen smaller.
    assert network.scale(SIZE) == 1 and network.scale(large) == 2


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_maruyama"])
def test_a_run_is_sampled_larger_than_it_was_trained(sampler):
    trained = awake("model.kind=pixnerd", "model.width=32", "model.depth=1", "model.heads=2",
                    "model.patch_size=8", "model.decoder_width=8")  # fmt: skip
    larger = tuple(2 * n for n in trained.spec.size)
    guided = {"guidance": 2.0} if trained.spec.classes else {}
    found = trained.sample(2, steps=3, size=larger, sampler=sampler, **guided)
    assert found.shape[2:] == larger and found.isfinite().all()
    assert torch.equal(found, trained.sample(2, steps=3, size=larger, sampler=sampler, **guided))
