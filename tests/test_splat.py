"""Normalised convolution from coarse to fine, and the encoder that begins with it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pointillist.encoders.encoder import Site
from pointillist.encoders.splat import SplatConfig, SplatEncoder
from pointillist.layers.observations import to_points
from pointillist.layers.patch import patch_grid, unpatchify
from pointillist.layers.splat import RESERVE, SCALES, smooth, splat, splat_channels, window
from pointillist.models import DiTConfig, JiTConfig, Network, PixelDiTConfig
from pointillist.types import Given, InputError, Spec, grid_axes

SIZES = [(24,), (8, 12), (4, 6, 4)]
grids = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some(*shape: int, share: float = 0.3, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


@settings(deadline=None)
@given(size=grids, share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_observed_values_come_back_and_all_others_are_finite(size, share, seed):
    seen, mask = noise(2, 3, *size, seed=seed), some(2, 1, *size, share=share, seed=seed)
    filled, features = splat(seen, mask.float())
    assert torch.equal(torch.where(mask, filled, 0), torch.where(mask, seen, 0))
    assert features.isfinite().all() and features.shape[1] == splat_channels(3, SCALES)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_stays_what_it_is(size):
    filled, _ = splat(torch.full((1, 2, *size), 0.7), some(1, 1, *size, share=0.1).float())
    torch.testing.assert_close(filled, torch.full_like(filled, 0.7))


def test_nothing_observed_is_mid_grey_without_trust():
    filled, features = splat(torch.full((2, 3, 5, 6), torch.nan), torch.zeros(2, 1, 5, 6))
    assert not filled.any() and not features.any()


def test_what_was_not_observed_has_no_influence():
    seen, mask = noise(2, 3, 8, 8), some(2, 1, 8, 8)
    other = torch.where(mask, seen, torch.nan)
    for mine, same in zip(splat(seen, mask.float()), splat(other, mask.float()), strict=True):
        assert torch.equal(mine, same)


def test_a_batch_equals_its_samples_one_by_one():
    seen = noise(3, 3, 8, 8)
    density = torch.stack([some(1, 8, 8, share=q, seed=7) for q in (0.0, 0.05, 0.6)]).float()
    whole = splat(seen, density).features
    for i in range(3):
        alone = splat(seen[i : i + 1], density[i : i + 1]).features
        torch.testing.assert_close(whole[i : i + 1], alone)


@pytest.mark.parametrize("size", SIZES)
def test_one_scale_is_the_mean_corrected_by_a_normalised_convolution(size):
    seen, mask, scale = noise(1, 2, *size).double(), some(1, 1, *size).double(), 1.5
    mean = (seen * mask).flatten(2).sum(-1) / mask.sum()
    wanted = torch.zeros_like(seen)
    cells = list(itertools.product(*map(range, size)))
    for here in cells:
        signal, dense = torch.zeros(2).double(), 0.0
        for there in cells:
            weight = math.exp(-0.5 * math.dist(here, there) ** 2 / scale**2)
            weight *= float(mask[(0, 0, *there)])
            signal += weight * (seen[(0, slice(None), *there)] - mean[0])
            dense += weight
        wanted[(0, slice(None), *here)] = mean[0] + signal / (dense + RESERVE * scale)
    wanted = torch.where(mask > 0, seen, wanted)
    torch.testing.assert_close(splat(seen, mask, (scale,)).filled, wanted)


def test_axes_are_alike_and_have_no_direction():
    seen, density = noise(1, 2, 7, 9), some(1, 1, 7, 9).float()
    filled = splat(seen, density).filled
    torch.testing.assert_close(splat(seen.mT, density.mT).filled.mT, filled)
    torch.testing.assert_close(splat(seen.flip(2), density.flip(2)).filled.flip(2), filled)


def test_a_smooth_picture_is_nearly_restored_from_a_fifth_of_its_cells():
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    x = ((rows / 9).sin() * (columns / 7).cos())[None, None]
    error = (splat(x, some(1, 1, 32, 32, share=0.2).float()).filled - x).square().mean().sqrt()
    assert error < 0.1 * x.std()


def test_gradients_agree_with_finite_differences_and_are_finite_without_observations():
    mask = some(2, 1, 3, 4).double()
    mask[1] = 0
    seen = noise(2, 1, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: splat(v, mask, (2.0, 0.5)).features, (seen,))
    splat(seen, mask).features.square().sum().backward()
    assert seen.grad is not None and seen.grad.isfinite().all() and not seen.grad[1].any()


def test_half_precision_around_it_changes_nothing():
    seen, density = noise(1, 3, 8, 8), some(1, 1, 8, 8).float()
    plain = splat(seen, density).features
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(splat(seen, density).features, plain)


def test_windows_are_kept_and_add_up_cell_by_cell():
    assert window(6, 1.0) is window(6, 1.0)
    lone = torch.zeros(1, 1, 6, 5)
    lone[0, 0, 1, 3] = 1
    spread = smooth(lone, 1.0)[0, 0]
    assert spread[1, 3] == 1 and spread[2, 3] == pytest.approx(math.exp(-0.5))


# The encoder.


def site(size: tuple[int, ...], patch_size: int = 2) -> Site:
    return Site(channels=3, size=size, patch_size=patch_size, width=16, heads=2)


def encoder(size: tuple[int, ...], awake: bool = True, **fields: object) -> SplatEncoder:
    made = SplatConfig(**fields).build(site(size))  # type: ignore[arg-type]
    if awake:
        with torch.no_grad():
            made.linear.weight.copy_(0.1 * noise(*made.linear.weight.shape, seed=5))
    return made


def tokens_of(made: SplatEncoder, observed: Given, size: tuple[int, ...]) -> torch.Tensor:
    grid = patch_grid(size, 2)
    b = 1 if observed.seen is None and observed.at is None else 2
    patches = noise(b, math.prod(grid), 16, seed=9)
    return made(patches, torch.zeros(b, 16), made.condition(observed, size, grid))


def gridded(size: tuple[int, ...]) -> Given:
    """Two samples, of which the first knows a tenth of its cells and the second a half."""
    mask = torch.cat([some(1, 1, *size, share=q, seed=3) for q in (0.1, 0.5)])
    return Given(seen=torch.where(mask, noise(2, 3, *size), 0), mask=mask)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noisy", [True, False])
def test_an_encoded_batch_equals_its_samples_one_by_one(size, noisy):
    made, observed = encoder(size, noisy_patches=noisy), gridded(size)
    grid = patch_grid(size, 2)
    patches, c = noise(2, math.prod(grid), 16), torch.zeros(2, 16)
    whole = made(patches, c, made.condition(observed, size, grid))
    for i in range(2):
        assert observed.seen is not None and observed.mask is not None
        one = Given(seen=observed.seen[i : i + 1], mask=observed.mask[i : i + 1])
        context = made.condition(one, size, grid)
        alone = made(patches[i : i + 1], c[i : i + 1], context)
        torch.testing.assert_close(whole[i : i + 1], alone)


@pytest.mark.parametrize("size", SIZES)
def test_points_at_cell_centres_equal_the_grid_in_any_order(size):
    made, observed = encoder(size), gridded(size)
    assert observed.seen is not None and observed.mask is not None
    at, value, valid = to_points(observed.seen, observed.mask)
    order = torch.randperm(at.shape[1], generator=torch.Generator().manual_seed(2))
    points = Given(at=at[:, order], value=value[..., order], valid=valid[:, :1, order])
    wanted = tokens_of(made, observed, size)
    torch.testing.assert_close(tokens_of(made, points, size), wanted)


@pytest.mark.parametrize("noisy", [True, False])
def test_no_observation_at_all_is_an_empty_mask_and_has_finite_gradients(noisy):
    size = (8, 12)
    made = encoder(size, noisy_patches=noisy)
    empty = Given(seen=torch.zeros(1, 3, *size), mask=torch.zeros(1, 1, *size, dtype=torch.bool))
    grid = patch_grid(size, 2)
    patches = noise(2, math.prod(grid), 16)
    found = [made(patches, torch.zeros(2, 16), made.condition(g, size, grid))
             for g in (Given(), empty)]  # fmt: skip
    assert found[0].shape == (2, 24, 16) and torch.equal(*found)
    if noisy:
        assert torch.equal(found[0], patches)
    found[0].square().sum().backward()
    assert made.linear.weight.grad is not None and made.linear.weight.grad.isfinite().all()


def test_values_outside_the_mask_change_no_token():
    made, observed = encoder((8, 12)), gridded((8, 12))
    assert observed.seen is not None and observed.mask is not None
    loud = observed._replace(seen=torch.where(observed.mask, observed.seen, 100.0))
    assert torch.equal(tokens_of(made, observed, (8, 12)), tokens_of(made, loud, (8, 12)))


def test_observed_values_change_tokens_once_the_layer_has_learnt():
    size, observed = (8, 12), gridded((8, 12))
    assert observed.seen is not None
    other = observed._replace(seen=-observed.seen)
    for awake in (False, True):
        made = encoder(size, awake=awake)
        same = torch.equal(tokens_of(made, observed, size), tokens_of(made, other, size))
        assert same is not awake


def test_without_noisy_patches_the_state_is_not_seen():
    size = (8, 12)
    made = encoder(size, noisy_patches=False)
    context = made.condition(gridded(size), size, (4, 6))
    mine, other = (made(noise(2, 24, 16, seed=i), torch.zeros(2, 16), context) for i in range(2))
    assert torch.equal(mine, other) and mine.std() > 0.1


@pytest.mark.parametrize("size", [(8, 12), (16, 10)])
def test_another_size_than_the_trained_one_is_encoded(size):
    assert tokens_of(encoder((8, 12)), gridded(size), size).shape == (2, math.prod(size) // 4, 16)


def test_bfloat16_around_the_encoder_stays_close():
    made, observed, size = encoder((8, 12)), gridded((8, 12)), (8, 12)
    plain = tokens_of(made, observed, size)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(tokens_of(made, observed, size), plain, atol=0.05, rtol=0.05)


class Smallest(nn.Module):
    """A backbone without blocks: patches, the encoder, a head at zero, and the encoder's guess."""

    def __init__(self, encoder: SplatEncoder) -> None:
        super().__init__()
        self.encoder, self.patch, self.head = encoder, nn.Linear(12, 16), nn.Linear(16, 12)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, observed: Given, size: tuple[int, ...]) -> torch.Tensor:
        grid = patch_grid(size, 2)
        context = self.encoder.condition(observed, size, grid)
        patches = self.patch(noise(2, math.prod(grid), 12))
        answer = unpatchify(self.head(self.encoder(patches, torch.zeros(2, 16), context)), 2, size)
        guess = self.encoder.guess(context)
        return answer if guess is None else answer + guess


def test_a_network_that_predicts_the_picture_starts_as_the_interpolation():
    size, observed = (8, 12), gridded((8, 12))
    assert observed.seen is not None and observed.mask is not None
    network = Smallest(encoder(size, awake=False))
    answer = network(observed, size)
    assert torch.equal(answer, splat(observed.seen, observed.mask.float()).filled)
    answer.square().sum().backward()
    assert network.head.weight.grad is not None and network.head.weight.grad.any()
    assert not Smallest(encoder(size, awake=False, residual=False))(observed, size).any()


@pytest.mark.parametrize("config", [DiTConfig, JiTConfig, PixelDiTConfig])
@pytest.mark.parametrize("noisy", [True, False])
def test_every_backbone_starts_as_the_interpolation_and_learns_from_there(config, noisy):
    size, observed = (8, 12), gridded((8, 12))
    assert observed.seen is not None and observed.mask is not None
    spec = Spec(channels=3, axes=grid_axes(size))
    more = {"context_start": 0} if config is JiTConfig else {}
    splatted = SplatConfig(noisy_patches=noisy)
    torch.manual_seed(0)
    model = config(width=32, depth=1, heads=2, patch_size=2, encoder=splatted, **more).build(spec)
    network, x, t = Network(model), noise(2, 3, *size), torch.tensor([0.1, 0.9])
    answer = network(x, t, observed).value
    fill = splat(observed.seen, observed.mask.float()).filled
    assert torch.equal(answer, fill)
    # Nothing observed at all is one row for the whole batch.
    assert not network(x, t, Given()).value.any()
    for _ in range(4):  # the head first, then what it lets through
        model.zero_grad()
        (network(x, t, observed).value - 0.3).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0 if p.grad is None else 0.1 * p.grad)
    context = network.condition(observed, size)
    learnt = network(x, t, observed).value
    assert torch.equal(network(x, t, observed, context).value, learnt)
    assert model.encoder.linear.weight.any() and not torch.equal(learnt, fill)


@pytest.mark.parametrize("scales", [(), (1.0, 2.0), (2.0, 0.0), (2.0, -1.0)])
def test_scales_that_make_no_sense_are_refused(scales):
    with pytest.raises(InputError, match=r"model\.encoder\.scales is .*the widest first"):
        SplatConfig(scales=scales)
