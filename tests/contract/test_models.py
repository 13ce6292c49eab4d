"""What every backbone keeps, by its place in the union alone: one, two and three axes of space."""

import itertools
from typing import get_args

import pytest
import torch

from pointillist.draws import Draw
from pointillist.guidance import Count, network_field
from pointillist.models import Backbone, Network
from pointillist.objective import StraightConfig
from pointillist.samplers import SAMPLERS, time_grid
from pointillist.tasks import GenerateConfig, HintsConfig
from pointillist.types import Axis, Batch, Given, InputError, Spec, Words

CONFIGS = get_args(get_args(Backbone)[0])
SIZES = [(16,), (8, 12), (4, 8, 8)]
TOY = {"width": 32, "depth": 2, "heads": 2, "patch_size": 4, "latents": 5, "frequencies": 8,
       "frequency_std": 1.0, "state": 4, "multiples": (1, 2), "time_width": 32,
       "text_depth": 1, "kv_heads": 1}  # fmt: skip
WORDS = Words(width=6, length=5)
GRIDS = [config for config in CONFIGS if hasattr(config(), "patch_size")]


def spec_of(size: tuple[int, ...], classes: int = 3, channels: int = 2) -> Spec:
    axes = tuple(Axis(name=f"axis{i}", size=n) for i, n in enumerate(size))
    names = tuple(f"c{i}" for i in range(classes))
    return Spec(channels=channels, axes=axes, classes=names, words=WORDS)


def fields_of(config) -> dict[str, object]:
    """What a toy of this kind is made with."""
    more = {"context_start": 1, "context_tokens": 3} if config.__name__[0] == "J" else {}
    if config.__name__ == "PixelDiTTextConfig":
        more = {"pixel_attention_width": 16, "pixel_heads": 2}
    return {name: value for name, value in TOY.items() if hasattr(config(), name)} | more


def toy(config, size: tuple[int, ...], classes: int = 3, seed: int = 0, **more):
    """A toy network whose zero-initialised layers are filled, so that all of it matters."""
    torch.manual_seed(seed)
    model = config(**{**fields_of(config), **more}).build(spec_of(size, classes))
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    return model.eval()


def asked(size: tuple[int, ...], b: int = 3, classes: int = 3):
    draw = Draw(1, torch.arange(b))
    x = draw.normal("x", (2, *size))
    label = torch.tensor([0, -1, 2, 1][:b]) if classes else None
    return x, draw.uniform("t"), captioned(draw)._replace(label=label)


def captioned(draw: Draw) -> Given:
    """Captions of 5, 3 and 1 tokens in turn, which some kinds read."""
    there = torch.arange(WORDS.length) < 5 - draw.index[:, None] % 3 * 2
    return Given(text=draw.normal("text", (WORDS.length, WORDS.width)), text_mask=there,
                 pooled=draw.normal("pooled", (WORDS.width,)))  # fmt: skip


def part_of(given: Given, part: slice) -> Given:
    return Given(*(None if value is None else value[part] for value in given))


def built(config, size: tuple[int, ...]):
    """A toy network without numbers."""
    with torch.device("meta"):
        return config(**fields_of(config)).build(spec_of(size))


PAIRS = [(c, size) for c in CONFIGS for size in SIZES
         if len(size) in built(c, (8, 8)).takes.axes]  # fmt: skip
every = pytest.mark.parametrize(
    ("config", "size"),
    PAIRS,
    ids=lambda v: getattr(v, "__name__", str(v)),
)


@every
def test_an_answer_has_the_shape_of_the_state(config, size):
    x, t, given = asked(size)
    assert Network(toy(config, size))(x, t, given).value.shape == x.shape


@every
def test_a_batch_equals_its_samples_one_by_one(config, size):
    network = Network(toy(config, size))
    x, t, given = asked(size)
    whole = network(x, t, given).value
    for i in range(3):
        part = slice(i, i + 1)
        one = network(x[part], t[part], part_of(given, part)).value
        torch.testing.assert_close(one[0], whole[i], rtol=1e-5, atol=1e-5)


@every
def test_a_context_passed_equals_a_context_made_inside(config, size):
    network = Network(toy(config, size))
    x, t, given = asked(size)
    context = network.condition(given, size)
    assert torch.equal(network(x, t, given, context).value, network(x, t, given).value)


@every
def test_labels_matter_and_minus_one_is_a_label_of_its_own(config, size):
    network = Network(toy(config, size))
    x, t, given = asked(size, 1)
    values = [network(x, t, given._replace(label=torch.tensor([k]))).value for k in (-1, 0, 1, 2)]
    for a, b in itertools.combinations(values, 2):
        assert (a - b).abs().max() > 1e-4


@every
def test_another_size_than_the_trained_one_is_answered(config, size):
    network = Network(toy(config, size))
    larger = tuple(n + 4 for n in size)
    x, t, given = asked(larger)
    assert network(x, t, given).value.shape == x.shape


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", GRIDS)
def test_the_tokens_behind_every_block_can_be_had_and_change_nothing(config, size):
    network = Network(toy(config, size))
    x, t, given = asked(size)
    plain, tapped = network(x, t, given), network(x, t, given, taps=(1, 2))
    assert not plain.hidden and torch.equal(plain.value, tapped.value)
    assert network.takes.taps == TOY["depth"] == len(tapped.hidden)
    for tokens in tapped.hidden:
        assert tokens.shape == (3, TOY["width"], *(n // TOY["patch_size"] for n in size))
    (last,) = network(x, t, given, taps=(2,)).hidden
    assert torch.equal(last, tapped.hidden[1]) and not torch.equal(last, tapped.hidden[0])


@pytest.mark.parametrize("config", GRIDS)
def test_tapped_tokens_lie_where_their_patches_lie(config):
    """Noise in one patch moves the token of that patch most, on a grid that is not square."""
    network, size = Network(toy(config, (8, 12))), (8, 12)
    x, t, given = asked(size, 1)
    other = x.clone()
    other[..., 4:, 8:] += 5
    before, after = (network(v, t, given, taps=(1,)).hidden[0] for v in (x, other))
    assert int((after - before).square().sum(1).argmax()) == 5


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_without_classes_needs_no_label(config):
    network = Network(toy(config, (8, 8), classes=0))
    x, t, given = asked((8, 8), classes=0)
    assert network(x, t, given).value.shape == x.shape


@pytest.mark.parametrize("config", CONFIGS)
def test_a_new_network_answers_zero(config):
    model = config(**fields_of(config)).build(spec_of((8, 8)))
    x, t, given = asked((8, 8))
    assert not Network(model)(x, t, given).value.any()


@pytest.mark.parametrize("config", CONFIGS)
def test_half_micro_batches_give_the_same_gradient(config):
    model = toy(config, (8, 8))
    x, t, given = asked((8, 8), 4)

    def gradient(parts):
        model.zero_grad()
        for part in parts:
            answer = Network(model)(x[part], t[part], part_of(given, part)).value
            (answer.square().flatten(1).mean(1).sum() / 4).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradient([slice(0, 4)]), gradient([slice(0, 2), slice(2, 4)]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_bfloat16_is_close_to_float32(config):
    network = Network(toy(config, (8, 8)))
    x, t, given = asked((8, 8))
    with torch.no_grad():
        exact = network(x, t, given).value
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(x, t, given).value.float()
    assert (exact - rounded).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("config", GRIDS)
def test_what_does_not_divide_by_the_patch_is_refused_with_a_size_that_does(config):
    model = toy(config, (8, 8))
    x, t, given = asked((10, 8))
    with pytest.raises(InputError, match="10x8.*patch size 4.*8x8"):
        model(x, t, given)


NFE = {"heun": 5, "stochastic_heun": 5, "dpmpp_2s": 4, "dpmpp_2s_ancestral": 4, "heun_churn": 4,
       "heun_edm": 4, "langevin": 5}  # fmt: skip


@pytest.mark.parametrize("predict", ["x", "velocity", "eps"])
@pytest.mark.parametrize(
    ("config", "sampler", "size"), [(c, s, size) for c, size in PAIRS for s in SAMPLERS],
    ids=lambda v: getattr(v, "__name__", str(v)),
)  # fmt: skip
def test_every_model_is_trained_a_step_and_sampled_by_every_sampler(config, sampler, size, predict):
    model = toy(config, size).train()
    network, objective = Network(model), StraightConfig(predict=predict)
    draw = Draw(0, torch.arange(2))
    batch = Batch(draw.index, draw.normal("data", (2, *size)), label=torch.tensor([0, 1]))
    # A model on sets has layers for what is observed, in its own body.
    task = HintsConfig(absent=0.0) if network.takes.sets else GenerateConfig()
    batch, given = task(batch, draw)
    told = captioned(draw)
    given = given._replace(text=told.text, text_mask=told.text_mask, pooled=told.pooled)
    t, eps = objective.times(draw), objective.noise(draw, (2, *size))
    xt = objective.mix(batch.x, eps, t)
    guess = objective.read(network(xt, t, given).value, xt, t)
    (guess.x - batch.x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())

    count = Count()
    with torch.no_grad():
        field = network_field(network, objective, given, size, count)
        x = SAMPLERS[sampler](
            field, eps, time_grid(3), noise=lambda i: objective.noise(draw, (2, *size), f"step {i}")
        )
    assert x.shape == eps.shape and torch.isfinite(x).all()
    with torch.no_grad():  # picture 1 alone is what it was in the batch
        alone = Draw(0, torch.arange(1, 2))
        field = network_field(network, objective, part_of(given, slice(1, 2)), size)
        again = SAMPLERS[sampler](
            field, objective.noise(alone, (2, *size)), time_grid(3),
            noise=lambda i: objective.noise(alone, (2, *size), f"step {i}"),
        )  # fmt: skip
    torch.testing.assert_close(again[0], x[1], rtol=1e-3, atol=1e-3 * float(x.abs().max()))
    assert count.nfe == NFE.get(sampler, 3)


@pytest.mark.parametrize("config", CONFIGS)
def test_tables_of_places_made_on_one_device_do_not_reach_another(config):
    with torch.device("meta"):
        model = config(**fields_of(config)).build(spec_of((8, 8)))
        given = Given(label=torch.zeros(1, dtype=torch.long), text=torch.zeros(1, 5, 6))
        answer = Network(model)(torch.zeros(1, 2, 8, 8), torch.zeros(1), given)
        assert answer.value.is_meta
    x, t, given = asked((8, 8))
    assert not Network(toy(config, (8, 8)))(x, t, given).value.is_meta


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("bare", [False, True], ids=["as it is", "without places"])
def test_residual_streams_stay_float32_under_autocast(config, bare):
    """Sums over many blocks lose what is small in bfloat16."""
    more = {"pixel_place": False} if bare and hasattr(config(), "pixel_place") else {}
    model = toy(config, (8, 8), **more)
    seen = []
    for layers in (m for m in model.modules() if isinstance(m, torch.nn.ModuleList)):
        for block in layers:
            block.register_forward_pre_hook(lambda block, given: seen.append(given[0].dtype))
    x, t, given = asked((8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        Network(model)(x, t, given)
    assert seen and set(seen) == {torch.float32}
