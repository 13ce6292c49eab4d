"""What sets PixelDiT apart: pixels that are steered one by one, and what that costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.encoders import GridConfig
from pointillist.layers.patch import pixels, unpixels
from pointillist.layers.rope import rope
from pointillist.models import Network, PixelDiTConfig
from pointillist.types import Given, Spec, grid_axes

from .contract.test_models import asked, toy

SIZE = (8, 12)


def answer(x=None, **options):
    noise, t, given = asked(SIZE)
    return Network(toy(PixelDiTConfig, SIZE, **options))(noise if x is None else x, t, given).value


@settings(deadline=None)
@given(grid=st.lists(st.integers(1, 3), min_size=1, max_size=3), blocks=st.integers(1, 2),
       edge=st.integers(1, 2))  # fmt: skip
def test_unpixels_undoes_pixels(grid, blocks, edge):
    p = blocks * edge
    size = tuple(n * p for n in grid)
    x = torch.randn(2, 3, *size, generator=torch.manual_seed(0))
    cells = pixels(x, p, edge)
    assert cells.shape == (2, x[0, 0].numel() // p ** len(grid), p ** len(grid), 3)
    assert torch.equal(unpixels(cells, p, edge, size), x)


def test_the_cells_of_a_block_lie_together():
    x = torch.arange(4 * 8).view(1, 1, 4, 8).float()
    second = pixels(x, 4, 2)[0, 1, :, 0]
    assert torch.equal(second[4:8], x[0, 0, 0:2, 6:8].flatten())
    assert torch.equal(pixels(x, 4, 4)[0, 1, :, 0], x[0, 0, :, 4:].flatten())


def test_two_pixels_of_equal_colour_in_one_patch_come_out_differently():
    """Without places and attention only a modulation of their own tells pixels apart."""
    x = torch.ones(3, 2, *SIZE) * 0.3
    alike = {"pixel_place": False, "pixel_attention": False}
    steered = answer(x, **alike)[:, :, :4, :4].flatten(2)
    assert steered.std(-1).min() > 1e-3
    patchwise = answer(x, modulation="patch", **alike)[:, :, :4, :4].flatten(2)
    assert patchwise.std(-1).max() < 1e-6


@pytest.mark.parametrize(
    "options",
    [{"modulation": "patch"}, {"post_modulation": True}, {"compaction": 2}, {"compaction": 1},
     {"pixel_attention": False}, {"pixel_rope": False}, {"pixel_place": False},
     {"condition_time": False}, {"condition_silu": False}, {"place": True}, {"rope_span": 0.0},
     {"mlp": "gelu"}, {"pixel_gelu": "tanh"}, {"context_tokens": 3, "context_start": 1}],
    ids=str,
)  # fmt: skip
def test_every_choice_is_a_model_of_its_own_that_learns(options):
    model = toy(PixelDiTConfig, SIZE, **options)
    x, t, asked_for = asked(SIZE)
    value = Network(model)(x, t, asked_for).value
    plain = answer()
    assert value.shape == plain.shape and (value - plain).abs().max() > 1e-5
    value.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name


@pytest.mark.parametrize(
    "options", [{}, {"post_modulation": True}, {"encoder": GridConfig()}], ids=str
)
def test_what_is_made_again_in_backward_has_the_same_gradient(options):
    x, t, asked_for = asked(SIZE)
    gradients = []
    for recompute in (True, False):
        model = toy(PixelDiTConfig, SIZE, recompute=recompute, **options)
        Network(model)(x, t, asked_for).value.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for again, kept in zip(*gradients, strict=True):
        assert torch.equal(again, kept)


def test_recomputing_with_hints_in_bfloat16_has_the_same_gradient():
    """Backward makes the modulation again outside of the forward's autocast, from real hints."""
    x, t, asked_for = asked(SIZE)
    mask = torch.rand(3, 1, *SIZE, generator=torch.manual_seed(3)) < 0.4
    given = asked_for._replace(seen=x.flip(0), mask=mask)
    gradients = []
    for recompute in (True, False):
        model = toy(PixelDiTConfig, SIZE, recompute=recompute, encoder=GridConfig())
        with torch.autocast("cpu", torch.bfloat16):
            value = Network(model)(x, t, given).value
        value.float().square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, kept in gradients[1].items():
        assert torch.equal(gradients[0][name], kept), name
    assert gradients[0]["hint_pixel.up.weight"].any()
    assert gradients[0]["encoder.hint.linear.weight"].any()


def saved(model, batch: int, precision: torch.dtype) -> int:
    """Bytes that one forward keeps for backward, weights and their casts too."""
    held: dict[int, int] = {}
    kept = []

    def pack(value):
        storage = value.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        kept.append(value)
        return value

    size = model.spec.size
    given_label = Given(label=torch.zeros(batch, dtype=torch.long))
    half = torch.autocast("cpu", precision, enabled=precision != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), half:
        model(torch.zeros(batch, 3, *size), torch.zeros(batch), given_label)
    return sum(held.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_picture_needs_at_most_three_fifths_of_the_memory_of_the_stored_form(precision):
    """B itself, at 64 pixels. What does not grow with the batch falls out of the difference."""
    spec = Spec(channels=3, axes=grid_axes((64, 64)), classes=("a", "b"))
    per_picture = []
    for recompute in (True, False):
        model = PixelDiTConfig(recompute=recompute).build(spec)
        per_picture.append(saved(model, 2, precision) - saved(model, 1, precision))
    assert per_picture[0] <= 0.6 * per_picture[1]


def test_a_compacted_block_turns_by_its_own_place():
    """Blocks come patch by patch; the table is that of the whole grid in this order."""
    model = toy(PixelDiTConfig, SIZE, compaction=2)
    table = model.condition(Given(label=torch.zeros(1, dtype=torch.long)), SIZE).pixel_rotation
    whole = rope((4, 6), (4, 6), 16, span=16.0).unflatten(0, (4, 6))
    # The second patch of the first row holds blocks (0, 2), (0, 3), (1, 2), (1, 3).
    assert torch.equal(table[4:8], whole[0:2, 2:4].flatten(0, 1))


def test_published_patches_span_sixteen_at_any_size():
    for n in (4, 16, 33):
        angle = rope((n,), (n,), 4, span=16.0).angle()[:, 0]
        steps = torch.linspace(0, 16, n)
        torch.testing.assert_close(angle, torch.atan2(steps.sin(), steps.cos()))


def test_time_reaches_the_pixels_where_it_is_asked_to():
    """With the patches' answer to time taken away, only s + t can tell the pixels of it."""
    x, _, asked_for = asked(SIZE)
    for condition_time in (True, False):
        model = toy(PixelDiTConfig, SIZE, condition_time=condition_time)
        with torch.no_grad():
            for block in model.blocks:
                block.modulation.weight.zero_()
        early, late = (Network(model)(x, torch.full((3,), t), asked_for).value for t in (0.1, 0.9))
        assert ((early - late).abs().max() > 1e-4) == condition_time
