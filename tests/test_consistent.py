"""Draws that agree with a measurement, held to the posterior of a Gaussian, which is known."""

import functools
import math
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pointillist.consistent import (
    Consistency,
    DPSConfig,
    MomentsConfig,
    NoConsistency,
    ProjectionConfig,
    PseudoInverseConfig,
    RepaintConfig,
    back,
    corrected,
    moment_matched,
    posterior_guided,
    pseudo_inverse_guided,
    repaint,
    variance,
)
from pointillist.draws import Draw
from pointillist.guidance import (
    APGConfig,
    Count,
    Field,
    GuidanceConfig,
    classifier_free,
    moved,
    network_field,
)
from pointillist.measure import Blur, Box, Chain, Mask
from pointillist.objective import GVPConfig, Objective, StraightConfig, VEConfig
from pointillist.samplers import SAMPLERS, STOCHASTIC, time_grid
from pointillist.types import Estimate, Given, InputError, Prediction

N = 8
CELLS = torch.arange(N, dtype=torch.float64)
COVARIANCE = 0.25 * torch.exp(-(CELLS[:, None] - CELLS).abs() / 3)
MEAN = torch.linspace(-0.4, 0.5, N, dtype=torch.float64)
PATHS = get_args(get_args(Objective)[0])
MASK = torch.tensor([[[1, 0, 0, 1, 0, 0, 0, 1]]]).bool()
MEASURES = {"mask": Mask(MASK), "box": Box((4,)), "blur": Blur(0.8)}
METHODS = (ProjectionConfig(spread=0.5), PseudoInverseConfig(spread=0.5), DPSConfig(step=3.0),
           MomentsConfig(), RepaintConfig(resamples=2, jump=3, spread=0.5))  # fmt: skip
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
ZERO = torch.tensor(0.0, dtype=torch.float64)


def gaussian(path=None, covariance=COVARIANCE):
    """The perfect field of N(MEAN, covariance) on N cells of one channel."""
    path = path or StraightConfig()

    def estimate(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        whole = alpha**2 * covariance + sigma**2 * torch.eye(N).double()
        found = torch.linalg.solve(whole, (x[:, 0].double() - alpha * MEAN).T).T
        picture = (MEAN + alpha * found @ covariance)[:, None]
        return Estimate(picture.to(x.dtype), (sigma * found)[:, None].to(x.dtype))

    return Field(estimate, path)


def drawn(name, seed, shape, count=1):
    return Draw(seed, torch.arange(count)).normal(name, shape).double()


def begin(count, path=None):
    path = path or StraightConfig()
    return path.alpha(ZERO) * MEAN + path.sigma(ZERO) * drawn("begin", 0, (1, N), count)


def fresh(i, count, seed=0):
    return drawn(f"step {i}", seed, (1, N), count)


def measured(name, level, count=1, seed=3, covariance=COVARIANCE):
    """y of pictures drawn from the Gaussian, with noise of std `level` in all that is measured."""
    measure, factor = MEASURES[name], torch.linalg.cholesky(covariance)
    y = measure(MEAN + drawn("truth", seed, (1, N), count) @ factor.T)
    noise = level * drawn("noise of y", seed, tuple(y.shape[1:]), count)
    return y + (measure(noise) if name == "mask" else noise)


def walk(method, name, y, level, x, sampler="heun", steps=64, path=None, covariance=COVARIANCE):
    noise = functools.partial(fresh, count=x.shape[0])
    return method.apply(
        SAMPLERS[sampler], gaussian(path, covariance), x, time_grid(steps), MEASURES[name], y,
        level, noise=noise,
    )  # fmt: skip


def exact(name, level, covariance=COVARIANCE):
    """Of the posterior: the gain K of its mean MEAN + K (y - A MEAN), its covariance; and Cov y."""
    a = MEASURES[name](torch.eye(N).double()[:, None]).flatten(1).T
    noise = level**2 * torch.eye(len(a)).double()
    if name == "mask":
        noise = a @ noise @ a.T
    inner = a @ covariance @ a.T + noise
    gain = covariance @ a.T @ torch.linalg.pinv(inner, rtol=1e-10)
    return gain, covariance - gain @ a @ covariance, inner


def errors(gain, cov, name, level, covariance=COVARIANCE):
    """Bias of the mean, root mean square over all y, in prior stds; total variance as a share of
    the posterior's; error of the covariance as a share of it."""
    true_gain, true_cov, inner = exact(name, level, covariance)
    off = (gain - true_gain) @ inner @ (gain - true_gain).T
    return (
        float((off.diagonal() / covariance.diagonal()).mean().sqrt()),
        float(cov.trace() / true_cov.trace()),
        float((cov - true_cov).norm() / true_cov.norm()),
    )


def of_affine(method, name, level, sampler="heun", path=None, covariance=COVARIANCE):
    """`errors` of a walk that is affine in y and in what it begins with: no error of chance."""
    path, measure = path or StraightConfig(), MEASURES[name]
    start, rows = path.alpha(ZERO) * MEAN, torch.eye(N).double()[:, None]
    level_y = measure(MEAN.view(1, 1, N))
    m = level_y.numel()
    y = torch.cat([level_y.expand(1 + N, -1, -1), level_y + torch.eye(m).double()[:, None]])
    x = start + path.sigma(ZERO) * torch.cat([torch.zeros(1, 1, N), rows, torch.zeros(m, 1, N)])
    end = walk(method, name, y, level, x.double(), sampler, 64, path, covariance)[:, 0]
    torch.testing.assert_close(end[0], MEAN, rtol=0, atol=1e-3)
    spread, gain = (end[1 : N + 1] - end[0]).T, (end[N + 1 :] - end[0]).T
    return errors(gain, spread @ spread.T, name, level, covariance)


def of_draws(method, name, level, sampler="heun", count=2000):
    """`errors` by as many draws, each with a y of its own, and a line through them."""
    y = measured(name, level, count)
    x = walk(method, name, y, level, begin(count), sampler)[:, 0]
    seen = (y - MEASURES[name](MEAN.view(1, 1, N))).flatten(1)
    solution = torch.linalg.pinv(seen, rtol=1e-10) @ (x - x.mean(0))
    rest = x - x.mean(0) - seen @ solution
    return errors(solution.T, rest.T @ rest / count, name, level)


CASES = [("mask", 0.0), ("mask", 0.1), ("box", 0.0), ("box", 0.1), ("blur", 0.1)]


@pytest.mark.parametrize(("name", "level"), CASES)
@pytest.mark.parametrize("path", [StraightConfig(), GVPConfig(), VEConfig()], ids=lambda p: p.kind)
def test_matched_moments_draw_from_the_posterior(name, level, path):
    mean, total, cov = of_affine(MomentsConfig(iterations=8), name, level, "dpmpp_2m", path)
    assert mean < 0.006 and total == pytest.approx(1, abs=0.016) and cov < 0.016


def test_matched_moments_need_as_many_iterations_as_the_measurement_has_directions():
    found = [of_affine(MomentsConfig(iterations=n), "box", 0.1) for n in (1, 2)]
    assert found[0][0] > 0.01 and found[1][0] < 1e-3  # two boxes


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.kind)
@pytest.mark.parametrize(("name", "level"), [("box", 0.0), ("blur", 0.1)])
def test_projection_and_pigdm_draw_from_the_posterior_where_values_are_independent(
    method, name, level
):
    """There C = r_t^2 I, which both assume."""
    found = of_affine(method, name, level, covariance=0.25 * torch.eye(N).double())
    assert found[0] < 1e-3 and found[1] == pytest.approx(1, abs=0.01) and found[2] < 0.01
    if level:  # and only if r_t is that of these pictures
        wrong = of_affine(type(method)(), name, level, covariance=0.25 * torch.eye(N).double())
        assert wrong[2] > 0.1


BIASES = {  # of the mean in prior stds, and the total variance as a share of the posterior's
    ("projection", "mask"): (0.372, 1.65), ("projection", "box"): (0.072, 1.03),
    ("pseudo_inverse", "mask"): (0.067, 1.02), ("pseudo_inverse", "box"): (0.041, 0.99),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.kind)
@pytest.mark.parametrize("name", ["mask", "box"])
def test_the_biases_of_projection_and_pigdm_are_those_that_are_stated(method, name):
    """They take the values of a picture to be independent, and here they are not."""
    mean, total, _ = of_affine(method, name, 0.0)
    stated = BIASES[method.kind, name]
    assert mean == pytest.approx(stated[0], rel=0.25) and total == pytest.approx(
        stated[1], abs=0.03
    )


def test_resampling_approaches_the_posterior():
    once, few, many = (
        of_draws(RepaintConfig(resamples=n), "mask", 0.0, count=1000) for n in (1, 4, 10)
    )
    assert once[0] > 2 * few[0] > 3 * many[0]
    assert once[1] > 1.5 and few[1] < 1.3 and many[1] < 1.17
    assert once[2] > 0.8 and many[2] < 0.25


def test_resampling_single_steps_loses_spread():
    """Each is a step of first order, again and again."""
    step, stretch = (
        of_draws(RepaintConfig(resamples=20, jump=jump), "mask", 0.0, count=1000)[1]
        for jump in (1, 8)
    )
    assert step < 0.93 < 1 < stretch


def test_dps_is_biased_at_every_step_size():
    found = [of_draws(DPSConfig(step=step), "mask", 0.0, count=1000) for step in (1.0, 3.0, 10.0)]
    assert min(mean for mean, _, _ in found) > 0.07
    assert found[0][1] > 1.4 and found[2][1] < 0.85


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["mask", "box", "blur"])
def test_without_noise_a_projected_walk_ends_on_the_measurement_with_every_sampler(sampler, name):
    y, noise = measured(name, 0.0, 3), functools.partial(fresh, count=3)
    measure = MEASURES[name]
    x = SAMPLERS[sampler](corrected(gaussian(), measure, y), begin(3), time_grid(9), noise=noise)
    torch.testing.assert_close(measure(x), y, rtol=0, atol=1e-9)


@each_method
@pytest.mark.parametrize("path", PATHS)
def test_without_noise_every_method_ends_on_the_measurement_on_every_path(method, path):
    for name in MEASURES:
        y, x = measured(name, 0.0, 3).float(), begin(3, path()).float()
        end = method.apply(
            SAMPLERS["dpmpp_2m"], gaussian(path()), x, time_grid(9), MEASURES[name], y,
            noise=lambda i: fresh(i, 3).float(),
        )  # fmt: skip
        assert end.dtype == torch.float32 and end.abs().max() < 20
        torch.testing.assert_close(MEASURES[name](end), y, rtol=0, atol=1e-5)


def left(method, name, level, count=2000):
    """Standard deviation of y - A x over draws of x, each for a y of its own."""
    y = measured(name, level, count)
    residual = y - MEASURES[name](walk(method, name, y, level, begin(count)))
    return float((residual[MASK.expand_as(residual)] if name == "mask" else residual).std())


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("method", (METHODS[0], *METHODS[3:]), ids=lambda method: method.kind)
def test_the_noise_of_a_measurement_is_what_draws_leave(method, name):
    """Truth and draw are alike given y, so y - A x has the noise's own standard deviation."""
    assert left(method, name, 0.1) == pytest.approx(0.1, rel=0.15)


def test_pigdm_leaves_a_fifth_too_much_or_too_little_and_dps_what_its_step_says():
    assert left(METHODS[1], "mask", 0.1) == pytest.approx(0.118, abs=0.004)
    assert left(METHODS[1], "box", 0.1) == pytest.approx(0.081, abs=0.004)
    assert left(METHODS[1], "blur", 0.1) == pytest.approx(0.1, rel=0.15)
    # DPS does not ask for the level, and is below or above it by its step.
    assert left(DPSConfig(step=1.0), "mask", 0.1) > 0.3
    assert left(DPSConfig(step=10.0), "mask", 0.1) < 0.03


def test_the_paper_s_own_damping_would_leave_too_little_on_a_walk_without_noise():
    """DDNM+ in min(1, sigma/(alpha level)) leaves level/e of flat pictures, r^2/(r^2 + level^2)
    leaves level: the reason for not taking the former."""
    level, count, flat = 0.1, 2000, 2500 * torch.eye(N).double()
    field, measure = gaussian(covariance=flat), MEASURES["mask"]
    y = torch.zeros(count, 1, N).double()

    def estimate(x, t):
        pair = field.estimate(x, t)
        share = min(1.0, float((1 - t) / (t * level))) if t > 0 else 1.0
        return moved(pair, share * measure(y - pair.x), t, field.path)

    published = Field(estimate, field.path)
    ours = corrected(field, measure, y, level, 50.0)
    stds = [
        float(SAMPLERS["heun"](f, begin(count), time_grid(200))[MASK.expand(count, 1, N)].std())
        for f in (published, ours)
    ]
    assert stds == pytest.approx([level / math.e, level], rel=0.05)


@pytest.mark.parametrize("path", PATHS)
def test_what_goes_back_is_a_state_of_the_earlier_time(path):
    objective, count = path(), 4000
    t, to = (torch.tensor(value).double() for value in (0.6, 0.2))
    x, eps = drawn("x", 1, (1, N), count), drawn("eps", 2, (1, N), count)
    found = back(
        objective,
        objective.alpha(t) * x + objective.sigma(t) * eps,
        t,
        to,
        drawn("new", 3, (1, N), count),
    )
    noise = found - objective.alpha(to) * x
    assert float(noise.std()) == pytest.approx(float(objective.sigma(to)), rel=0.02)
    assert abs(float((noise * x).mean() / noise.std())) < 0.02
    new = drawn("new", 3, (1, N))
    if float(objective.alpha(ZERO)) == 0:
        assert torch.equal(back(objective, x[:1], t, ZERO, new), new)  # alpha = 0: noise alone
        with pytest.raises(InputError, match="t is 0, where the state holds no signal"):
            back(objective, x[:1], ZERO, ZERO, new)


def test_repaint_numbers_its_draws_in_turn_and_its_steps_by_the_grid():
    numbers, steps = [], []

    def noise(i):
        numbers.append(i)
        return fresh(i, 2)

    def watch(i, t, x, pair):
        steps.append((i, round(t, 6)))

    field = corrected(gaussian(), MEASURES["box"], measured("box", 0.0, 2))
    for sampler in ("euler", "euler_maruyama"):
        repaint(SAMPLERS[sampler], field, begin(2), time_grid(5), noise=noise, resamples=2, jump=2,
                watch=watch)  # fmt: skip
    grid = [(i, i / 5) for i in range(5)]
    assert steps == 2 * [*grid[:2], *grid[:2], *grid[2:4], *grid[2:4], grid[4], grid[4]]
    # Three ways back, and one step of two in each of four stretches draws of its own.
    assert numbers == [*range(3), *range(3 + 4)]


@each_method
def test_a_walk_is_the_same_again_and_for_each_picture_by_itself(method):
    y, x = measured("box", 0.1, 3), begin(3)
    for sampler in ("heun", "euler_maruyama"):
        whole = walk(method, "box", y, 0.1, x, sampler, 12)
        assert torch.equal(whole, walk(method, "box", y, 0.1, x, sampler, 12))
        one = walk(method, "box", y[:1], 0.1, x[:1], sampler, 12)
        torch.testing.assert_close(one, whole[:1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("guidance", [
    GuidanceConfig(), GuidanceConfig(scale=2.0), GuidanceConfig(scale=2.0, rescale=0.5),
    GuidanceConfig(scale=2.0, apg=APGConfig(momentum=-0.5, eta=0.0)),
], ids=["none", "plain", "rescaled", "momentum"])  # fmt: skip
@each_method
def test_it_composes_with_classifier_free_guidance(method, guidance):
    other = gaussian(covariance=0.1 * torch.eye(N).double())
    y = measured("mask", 0.0, 2)
    noise = functools.partial(fresh, count=2)
    rest = begin(2), time_grid(8), MEASURES["mask"], y
    ends = [
        method.apply(SAMPLERS["heun"], field, *rest, noise=noise)
        for field in (gaussian(), classifier_free(gaussian(), other, guidance))
    ]
    assert torch.equal(*ends) == (guidance.scale == 1)
    torch.testing.assert_close(MEASURES["mask"](ends[1]), y, rtol=0, atol=1e-9)


class Perfect:
    """A network that answers for the Gaussian as its objective asks; no tensor of it is trained."""

    def __init__(self, objective):
        self.objective = objective

    def scale(self, size):
        return 1

    def condition(self, given, size):
        return None

    def __call__(self, seen, t, given, context):
        t = t[0].double().cpu()
        return Prediction(self.objective.answer(gaussian(self.objective).estimate(seen, t), t))


@pytest.mark.parametrize("predict", ["x", "velocity", "eps"])
@each_method
def test_a_network_without_gradients_is_led_as_the_field_behind_it(method, predict):
    """`sample` runs without gradients; a closure that needs one asks for it, and leaves none."""
    objective, count, y = StraightConfig(predict=predict), Count(), measured("mask", 0.1, 2)
    rest = begin(2), time_grid(8), MEASURES["mask"], y, 0.1
    noise = functools.partial(fresh, count=2)
    with torch.no_grad():
        field = network_field(Perfect(objective), objective, Given(), (N,), count)
        end = method.apply(SAMPLERS["dpmpp_2m"], field, *rest, noise=noise)
    exact = method.apply(SAMPLERS["dpmpp_2m"], gaussian(), *rest, noise=noise)
    # A perfect guess of the noise at t = 0.01 is taken for that at t = 0.
    torch.testing.assert_close(end, exact, rtol=0, atol=0.03 if predict == "eps" else 1e-4)
    assert not end.requires_grad
    assert count.nfe == 8 * (2 if method.kind == "repaint" else 1)


@each_method
def test_a_network_in_bfloat16_leaves_the_measurement_in_float32(method):
    """Under autocast conjugate gradients on a blurred mean would grow without bound."""
    measure = Chain(Blur(1.0), Box((2,)))
    y, x = measure(begin(2)).float(), drawn("x", 4, (1, N), 2).float()
    for level in (0.0, 0.05):
        rest = gaussian(), x, time_grid(6), measure, y, level
        with torch.autocast("cpu", torch.bfloat16):
            end = method.apply(SAMPLERS["euler"], *rest, noise=lambda i: fresh(i, 2).float())
        exact = method.apply(SAMPLERS["euler"], *rest, noise=lambda i: fresh(i, 2).float())
        torch.testing.assert_close(end, exact, rtol=0, atol=1e-5)


def test_the_pair_stays_one_of_the_state_it_was_asked_about():
    x, t = begin(2), torch.tensor(0.3).double()
    y = measured("box", 0.0, 2)
    rest = gaussian(), MEASURES["box"], y
    for guided in (corrected(*rest), pseudo_inverse_guided(*rest), posterior_guided(*rest),
                   moment_matched(*rest)):  # fmt: skip
        for at in (t, torch.tensor(1e-3).double()):
            pair = guided.estimate(x, at)
            torch.testing.assert_close(at * pair.x + (1 - at) * pair.eps, x)
    # Asked of a picture that does not depend on the state, there is nothing to lead.
    level = Field(lambda x, t: Estimate(torch.ones_like(x), (x - t) / (1 - t)), StraightConfig())
    for method in (pseudo_inverse_guided, posterior_guided, moment_matched):
        assert torch.equal(method(level, MEASURES["box"], y).estimate(x, t).x, torch.ones_like(x))


def test_the_variance_falls_from_the_data_s_to_that_of_the_noise_over_the_signal():
    path, t = StraightConfig(), torch.tensor([0.0, 0.5, 0.999]).double()
    found = variance(path, t, 2.0, 0.5)
    assert float(found[0]) == pytest.approx(0.25) and (found.diff() < 0).all()
    assert float(found[1]) == pytest.approx(1 / (1 / 0.25 + 1 / 4))
    assert float(found[2]) == pytest.approx((2e-3 / 0.999) ** 2, rel=1e-3)


def test_a_configuration_names_its_kind():
    adapter = TypeAdapter(Consistency)
    for method in (*METHODS, NoConsistency()):
        assert adapter.validate_python({"kind": method.kind}) == type(method)()
    assert adapter.validate_python({"kind": "dps", "step": 2}) == DPSConfig(step=2.0)
    with pytest.raises(ValidationError, match="spread"):
        adapter.validate_python({"kind": "dps", "spread": 2})


def test_none_is_the_walk_as_it_is():
    y = measured("mask", 0.0, 2)
    x = walk(NoConsistency(), "mask", y, 0.0, begin(2), steps=5)
    assert torch.equal(x, SAMPLERS["heun"](gaussian(), begin(2), time_grid(5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProjectionConfig(spread=0.0), "consistency.spread is 0.0; it must be above 0"),
        (lambda: PseudoInverseConfig(spread=math.inf), "consistency.spread is inf"),
        (lambda: RepaintConfig(spread=-1.0), "consistency.spread is -1.0"),
        (lambda: DPSConfig(step=0.0), "consistency.step is 0.0; it must be above 0"),
        (lambda: MomentsConfig(iterations=0), "consistency.iterations is 0; it must be 1 or more"),
        (lambda: RepaintConfig(resamples=0), "consistency.resamples is 0; it must be 1 or more"),
        (lambda: RepaintConfig(jump=0), "consistency.jump is 0; it must be 1 or more"),
        (lambda: walk(METHODS[0], "mask", measured("mask", 0.0), -0.1, begin(1)), "noise is -0.1"),
        (lambda: walk(METHODS[0], "box", torch.zeros(1, 1, 3).double(), 0.0, begin(1)),
         "y has shape 1x1x3, the measurement of these pictures 1x1x2; give one row a picture"),
        (lambda: repaint(SAMPLERS["euler"], gaussian(), begin(1), time_grid(2), noise=None),
         "repaint adds noise; give noise="),
        (lambda: repaint(SAMPLERS["euler"], gaussian(), begin(1), time_grid(2),
                         noise=lambda i: fresh(i, 1), jump=0), "resamples is 10 and jump 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_samplers_that_add_noise_are_drawn_from_the_posterior_too():
    for sampler in STOCHASTIC:
        # Which fall short of the spread by themselves.
        bar = 0.12 if sampler in ("ddpm", "euler_ancestral") else 0.08
        mean, total, cov = of_draws(MomentsConfig(), "mask", 0.1, sampler, 1000)
        assert mean < 0.05 and total == pytest.approx(1, abs=bar) and cov < 2 * bar
