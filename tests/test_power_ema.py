"""Power-function averages: their profile, and averages of any width put together afterwards."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pointillist.engine.ema import (
    EMA,
    WIDEST,
    Profile,
    fit,
    gamma_of,
    inner_product,
    power_decay,
    width_of,
)

WIDTHS = (0.05, 0.1)
calm = settings(deadline=None, max_examples=40)  # the first call of torch takes its time


def snapshots(number: int, end: float = 1000.0) -> list[Profile]:
    times = [end * (i + 1) / number for i in range(number)]
    return [Profile(t, gamma_of(width)) for t in times for width in WIDTHS]


def averages(weights: torch.Tensor, profiles: list[Profile]) -> torch.Tensor:
    """What an average with each profile is of `weights`, the value after each update, exactly."""
    s = torch.arange(1, len(weights) + 1, dtype=torch.float64)
    return torch.stack([
        (weights * ((s / p.updates) ** (p.gamma + 1) - ((s - 1) / p.updates) ** (p.gamma + 1)))
        [: int(p.updates)].sum() for p in profiles
    ])  # fmt: skip


@calm
@given(gamma=st.floats(0.001, 500))
def test_width_and_exponent_belong_together(gamma):
    assert gamma_of(width_of(gamma)) == pytest.approx(gamma, rel=1e-6)
    assert width_of(gamma) < WIDEST == width_of(0.0)


def test_the_published_widths_have_the_published_exponents():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_the_width_is_the_spread_of_the_profile(width):
    gamma, n = gamma_of(width), 200_000
    s = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    p = (gamma + 1) * s**gamma
    mean = (p * s).mean()
    assert float(p.mean()) == pytest.approx(1, abs=1e-6)
    assert float((p * (s - mean) ** 2).mean().sqrt()) == pytest.approx(width, rel=1e-5)


@calm
@given(gamma=st.floats(0.1, 40), t=st.integers(1, 60))
def test_updates_count_by_the_integral_of_the_profile(gamma, t):
    share = torch.zeros(t, dtype=torch.float64)
    for s in range(1, t + 1):
        keep = power_decay(gamma, s)
        share *= keep
        share[s - 1] += 1 - keep
    edges = (torch.arange(t + 1, dtype=torch.float64) / t) ** (gamma + 1)
    torch.testing.assert_close(share, edges.diff(), rtol=1e-9, atol=1e-12)


def test_the_average_of_a_model_is_that_sum_and_forgets_the_initial_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1e6)
    ema = EMA(model, (0.9,), widths=WIDTHS)
    values = torch.randn(40, generator=torch.manual_seed(0)).double()
    for value in values.tolist():
        nn.init.constant_(model.weight, value)
        ema.update(model)
    exact = averages(values, [Profile(40, gamma_of(width)) for width in WIDTHS])
    for width, value in zip(WIDTHS, exact, strict=True):
        found = ema.power_groups()[f"power-{width}"]["weight"]
        assert float(found) == pytest.approx(float(value), rel=1e-5)


@calm
@given(
    a=st.tuples(st.floats(1, 100), st.floats(0.5, 20)),
    b=st.tuples(st.floats(1, 100), st.floats(0.5, 20)),
)
def test_inner_products_are_the_integrals(a, b):
    a, b = Profile(*a), Profile(*b)
    n, least = 20_000, min(a.updates, b.updates)
    s = (torch.arange(n, dtype=torch.float64) + 0.5) / n * least
    product = torch.ones_like(s)
    for p in (a, b):
        product *= (p.gamma + 1) * (s / p.updates) ** p.gamma / p.updates
    assert float(inner_product([a], [b])) == pytest.approx(float(product.mean()) * least, rel=1e-5)


@pytest.mark.parametrize("unit_sum", [True, False])
@pytest.mark.parametrize("number", [1, 4, 30, 300])
def test_a_kept_profile_is_found_again(number, unit_sum):
    profiles = snapshots(number)
    found = fit(profiles, profiles[-2], unit_sum)
    expected = torch.zeros(len(profiles), dtype=torch.float64)
    expected[-2] = 1
    torch.testing.assert_close(found.coefficients, expected, rtol=0, atol=1e-8)
    assert found.error < 1e-6


@pytest.mark.parametrize("width", [0.03, 0.06, 0.08, 0.12, 0.15, 0.2])
def test_the_error_falls_with_snapshots(width):
    wanted = Profile(1000, gamma_of(width))
    errors = [fit(snapshots(n), wanted).error for n in (1, 2, 4, 8, 16, 32, 64)]
    # Every one of these grids of times holds the one before, so the error cannot grow.
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0] / 20 and errors[-1] < 0.005


@calm
@given(
    number=st.integers(1, 40), width=st.floats(0.02, 0.28), value=st.floats(-100, 100),
    end=st.integers(100, 10**7),
)  # fmt: skip
def test_weights_that_never_change_are_found_exactly(number, width, value, end):
    found = fit(snapshots(number, end), Profile(end, gamma_of(width)))
    assert float((found.coefficients * value).sum()) == pytest.approx(value, rel=1e-6, abs=1e-12)


def test_the_published_rule_shrinks_weights_where_snapshots_are_few():
    wanted = Profile(1000, gamma_of(0.15))
    sums = [float(fit(snapshots(n), wanted, unit_sum=False).coefficients.sum()) for n in (2, 64)]
    assert sums[0] < 0.9 and sums[1] == pytest.approx(1, abs=1e-4)


def test_a_unit_sum_is_nearer_for_weights_that_hover_around_a_value():
    hovering = 20 + torch.randn(2000, generator=torch.manual_seed(2)).double().cumsum(0) / 20
    for number in (1, 3, 10):
        profiles, wanted = snapshots(number, 2000), Profile(2000, gamma_of(0.15))
        exact, kept = averages(hovering, [wanted])[0], averages(hovering, profiles)
        ours, published = (
            fit(profiles, wanted, unit).coefficients @ kept for unit in (True, False)
        )
        assert abs(float(ours - exact)) < abs(float(published - exact)) / 2


@pytest.mark.parametrize("width", [0.04, 0.07, 0.15])
def test_a_ramp_of_weights_is_met_ever_better(width):
    """The average of theta(s) = s / t is (gamma + 1) / (gamma + 2) on a fine grid."""
    gamma, end = gamma_of(width), 2000
    ramp = torch.arange(1, end + 1, dtype=torch.float64) / end
    exact = averages(ramp, [Profile(end, gamma)])[0]
    assert float(exact) == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-3)
    errors = []
    for number in (2, 8, 40):
        profiles = snapshots(number, end)
        found = fit(profiles, Profile(end, gamma))
        errors.append(abs(float(found.coefficients @ averages(ramp, profiles) - exact)))
    assert errors[0] < 0.02 and errors[2] < 1e-4 and errors[2] < errors[0] / 10


def test_a_restless_walk_of_weights_is_met_too():
    end = 2000
    walk = torch.randn(end, generator=torch.manual_seed(1)).double().cumsum(0)
    for width in (0.04, 0.07, 0.15):
        exact = averages(walk, [Profile(end, gamma_of(width))])[0]
        profiles = snapshots(40, end)
        found = fit(profiles, Profile(end, gamma_of(width))).coefficients @ averages(walk, profiles)
        assert abs(float(found - exact)) < 0.01 * float(walk.std())


# Against ema-pytorch.


def test_decays_are_those_of_ema_pytorch():
    karras = pytest.importorskip("ema_pytorch").KarrasEMA
    model = nn.Linear(2, 2, bias=False)
    theirs = karras(model, sigma_rel=0.07, update_every=1)
    assert theirs.gamma == pytest.approx(gamma_of(0.07), rel=1e-12)
    # It takes the weights before the first update for update 1, so it is one ahead.
    ours = EMA(model, (0.9,), widths=(0.07, 0.1))
    ours.update(model)
    for step in range(1, 30):
        nn.init.normal_(model.weight, generator=torch.manual_seed(step))
        theirs.update()
        ours.update(model)
        if step == 1:  # its first call only copies
            theirs.ema_model.load_state_dict(ours.power_groups()["power-0.07"])
        assert theirs.beta == pytest.approx(power_decay(gamma_of(0.07), ours.updates), rel=1e-12)
        found = ours.power_groups()["power-0.07"]["weight"]
        torch.testing.assert_close(found, theirs.ema_model.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.25])
@pytest.mark.parametrize("number", [1, 3, 20])
def test_coefficients_are_those_of_ema_pytorch(width, number):
    solve = pytest.importorskip("ema_pytorch.post_hoc_ema").solve_weights
    profiles = snapshots(number)
    t, gamma = torch.tensor(profiles, dtype=torch.float64).T
    wanted = Profile(1000, gamma_of(width))
    theirs = solve(t, gamma, *torch.tensor(wanted, dtype=torch.float64)[:, None])[:, 0]
    ours = fit(profiles, wanted, unit_sum=False).coefficients
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_a_whole_reconstruction_is_that_of_ema_pytorch(tmp_path):
    ema_pytorch = pytest.importorskip("ema_pytorch")
    model = nn.Linear(3, 2, bias=False)
    theirs = ema_pytorch.PostHocEMA(
        model, sigma_rels=WIDTHS, update_every=1, checkpoint_every_num_steps=10,
        checkpoint_folder=str(tmp_path), checkpoint_dtype=torch.float32,
    )  # fmt: skip
    for step in range(40):
        nn.init.normal_(model.weight, generator=torch.manual_seed(step))
        theirs.update()
    files = sorted(tmp_path.glob("*.pt"), key=lambda f: (int(f.stem.split(".")[1]), f.stem))
    kept = [torch.load(f, weights_only=True)["ema_model.weight"].double() for f in files]
    # Snapshots in its own count of updates, 10, 20, 30, 40, narrow before wide.
    profiles = [Profile(t, gamma_of(w)) for t in (10, 20, 30, 40) for w in WIDTHS]
    for width in (0.06, 0.12):
        share = fit(profiles, Profile(40, gamma_of(width)), unit_sum=False).coefficients
        ours = sum(c * w for c, w in zip(share, kept, strict=True))
        found = theirs.synthesize_ema_model(sigma_rel=width).ema_model.weight
        torch.testing.assert_close(ours.float(), found, rtol=1e-4, atol=1e-5)
