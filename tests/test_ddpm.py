"""DDPM's path of whole steps, the variance that is learnt on it, and respaced walks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.describe import describe
from pointillist.draws import Draw
from pointillist.gradient import backward
from pointillist.guidance import (
    APGConfig,
    Field,
    GuidanceConfig,
    PowerCosineSchedule,
    classifier_free,
)
from pointillist.losses import LossConfig, criterion
from pointillist.losses.bound import bound_of, level_of, likelihood, variational_bound
from pointillist.objective import DDPMConfig, LogitNormal, StraightConfig
from pointillist.run import Run
from pointillist.sample import untrained
from pointillist.samplers import SAMPLERS, time_grid
from pointillist.types import Batch, Estimate, InputError, Spec, grid_axes
from tests.test_sampler_orders import Gaussian

PATH = DDPMConfig()
SPEC = Spec(channels=2, axes=grid_axes((3,)))
calm = settings(deadline=None, max_examples=50)
indices = st.integers(0, 999)
PATHS = [DDPMConfig(), DDPMConfig(steps=30), DDPMConfig(steps=4000),
         DDPMConfig(schedule="cosine"), DDPMConfig(schedule="cosine", steps=5)]  # fmt: skip
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.schedule}{path.steps}")


def published(path):
    """alpha^2 of every index, of betas written down one by one."""
    t = path.steps
    if path.schedule == "linear":
        betas = [1000 / t * (1e-4 + (0.02 - 1e-4) * i / (t - 1)) for i in range(t)]
    else:
        bar = [math.cos((i / t + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(t + 1)]
        betas = [min(1 - high / low, 0.999) for low, high in itertools.pairwise(bar)]
    return betas, list(itertools.accumulate((1 - beta for beta in betas), lambda a, b: a * b))


def time_of(path, index, dtype=torch.float64):
    return ((path.steps - 1 - torch.as_tensor(index, dtype=torch.float64)) / path.steps).to(dtype)


# The path.


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whole_steps_are_the_published_table(path, dtype):
    index = torch.arange(path.steps)
    betas, bars = (torch.tensor(v, dtype=torch.float64) for v in published(path))
    t = time_of(path, index, dtype)
    tight = {"rtol": 1e-10, "atol": 0} if dtype == torch.float64 else {"rtol": 3e-7, "atol": 0}
    torch.testing.assert_close(path.alpha(t).double(), bars.sqrt(), **tight)
    sigma = torch.tensor([math.sqrt(1 - bar) for bar in bars.tolist()], dtype=torch.float64)
    torch.testing.assert_close(path.sigma(t).double(), sigma, rtol=3e-7, atol=0)
    beta, posterior = path.variances(t)
    torch.testing.assert_close(beta, betas, rtol=1e-9, atol=0)
    due = betas[1:] * (1 - bars[:-1]) / (1 - bars[1:])
    torch.testing.assert_close(posterior[1:], due, rtol=1e-7, atol=0)
    assert posterior[0] == posterior[1]  # where the posterior has no variance


@each
def test_the_network_is_told_the_index_and_it_tells_the_time(path):
    index = torch.arange(path.steps)
    t = time_of(path, index, torch.float32)
    told = path.see(torch.zeros(path.steps, 1, 1), t)[1]
    assert torch.equal(told, index.float())
    assert torch.equal(time_of(path, told.double(), torch.float32), t)


@each
def test_between_steps_the_path_rises_without_a_corner(path):
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    ratio = path.alpha(t) / path.sigma(t)
    assert (ratio.diff() > 0).all()
    at = time_of(path, torch.arange(1, path.steps))
    sides = [path.alpha_rate(at + sign * 1e-9) for sign in (-1, 1)]
    torch.testing.assert_close(*sides, rtol=1e-4, atol=1e-6)
    assert (path.alpha_rate(t) >= 0).all()


@calm
@given(schedule=st.sampled_from(["linear", "cosine"]), steps=st.integers(21, 1500),
       t=st.floats(0, 1))  # fmt: skip
def test_a_time_is_found_again_whatever_the_table(schedule, steps, t):
    path = DDPMConfig(schedule=schedule, steps=steps)
    t = torch.tensor([t, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.at(path.share(t)), t, rtol=0, atol=1e-7)
    beyond = path.at(torch.tensor([0.0, 1e-9, 1.0], dtype=torch.float64))
    assert beyond.tolist() == [0, 0, 1]


@pytest.mark.parametrize("time", [PATH.time, LogitNormal(mean=-0.5, std=1.0)])
def test_training_draws_whole_steps_from_all_of_them(time):
    path = DDPMConfig(time=time, shift=2.0 if time != PATH.time else 1.0)
    t = path.times(Draw(0, torch.arange(20_000)))
    told = path.see(torch.zeros(20_000, 1, 1), t)[1]
    assert torch.equal(told, told.round()) and told.min() >= 0 and told.max() <= 999
    if time == PATH.time:
        assert told.unique().numel() > 990 and float(told.mean()) == pytest.approx(499.5, abs=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": 20}, r"objective.steps is 20; with schedule linear it lies in \[21, 100000\]"),
     ({"steps": 1, "schedule": "cosine"}, r"objective.steps is 1; with schedule cosine"),
     ({"steps": 100_001}, "objective.steps is 100001")],
)  # fmt: skip
def test_steps_that_make_no_table_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        DDPMConfig(**fields)


# Respaced times.


@pytest.mark.parametrize("steps", [2, 4, 10, 50, 250, 999, 1000])
def test_respaced_steps_are_those_of_adm(steps):
    """Indices gathered by a rounded running sum, as published, then walked from the noise."""
    stride, place, chosen = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        chosen.append(round(place))
        place += stride
    times = time_grid(steps, grid="respaced", path=PATH)
    assert times[0] == 0 and times[-1] == 1 and len(times) == steps + 1
    torch.testing.assert_close(times[:-1], time_of(PATH, sorted(chosen, reverse=True)))


def test_a_respaced_walk_has_the_betas_of_the_respaced_chain():
    """beta' = 1 - abar_i/abar_j, and the smaller variance of that, for a step from i to j."""
    _, bars = published(PATH)
    index = [999, 749, 500, 250, 0]
    drawn = []

    class Nothing(Gaussian):
        def estimate(self, x, t):
            return Estimate(0 * x, 0 * x, torch.full_like(x, fraction))

    for fraction in (0.0, 1.0, 0.3):  # noqa: B007
        seen = []
        SAMPLERS["ddpm"](
            Nothing(PATH), torch.zeros(1).double(), time_grid(5, grid="respaced", path=PATH),
            noise=lambda i: torch.ones(1), watch=lambda i, t, x, pair: seen.append(float(x)),  # noqa: B023
        )  # fmt: skip
        drawn.append(seen[1:])
    for k, (i, j) in enumerate(itertools.pairwise(index)):
        beta = 1 - bars[i] / bars[j]
        small = beta * (1 - bars[j]) / (1 - bars[i])
        mixed = math.exp(0.3 * math.log(beta) + 0.7 * math.log(small))
        found = [row[k] ** 2 for row in drawn]
        assert found == pytest.approx([small, beta, mixed], rel=1e-9)


def test_respacing_is_of_whole_steps_alone():
    with pytest.raises(InputError, match="grid is respaced, but path straight has no whole"):
        time_grid(5, grid="respaced")
    with pytest.raises(InputError, match="steps is 1001, but grid respaced chooses among the 1000"):
        time_grid(1001, grid="respaced", path=PATH)
    with pytest.raises(InputError, match="shift is 2, but grid respaced is of whole steps"):
        time_grid(4, 2.0, "respaced", PATH)
    assert time_grid(1, grid="respaced", path=PATH).tolist() == [0, 1]


# Sampling with a variance.


class Knowing(Gaussian):
    """The field of N(1, 0.5^2) that knows how much a step to the next of `times` must add."""

    def __init__(self, path, times):
        super().__init__(path)
        self.ends = dict(zip(times[:-1].tolist(), times[1:], strict=True))

    def estimate(self, x, t):
        pair, end = super().estimate(x, t), self.ends[float(t)]
        if end == 1:
            return pair._replace(fraction=torch.zeros_like(x))
        return pair._replace(fraction=torch.full_like(x, float(self.fraction(t, end))))

    def fraction(self, t, end):
        """(log variance - log beta~)/(log beta - log beta~) of the exact reverse step."""
        ratio = (self.path.alpha(t) / self.path.alpha(end)).square()
        beta, noise = 1 - ratio, self.path.sigma(t).square()
        small = beta * self.path.sigma(end).square() / noise
        # What the picture, unknown, adds: its variance given the state, by what it weighs.
        left = self.std**2 * noise / self.spread(t).square()
        weight = self.path.alpha(end) * beta / noise
        exact = small + weight.square() * left
        # The same by Bayes: x_end is Gaussian, and x_t is it, smaller, with noise.
        prior = self.spread(end).square()
        torch.testing.assert_close(exact, 1 / (1 / prior + ratio / beta))
        return (exact / small).log() / (beta / small).log()


def variance(name, field, times):
    """At the end of a walk, exactly: it is affine in what it draws. And the mean."""
    path, steps = field.path, len(times) - 1
    zero = torch.tensor(0.0, dtype=torch.float64)
    x = path.alpha(zero) * field.mean + torch.zeros(steps + 2, 1).double()
    x[1] += 1

    def noise(i):
        one = torch.zeros_like(x)
        one[2 + i] = 1
        return one

    end = SAMPLERS[name](field, x, times, noise=noise)[:, 0]
    weights = end[1:] - end[0]
    total = (weights[0] * field.spread(zero)).square() + weights[1:].square().sum()
    return float(end[0]), float(total)


@pytest.mark.parametrize("steps", [3, 5, 10, 25])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_right_variance_samples_a_gaussian_in_few_steps(steps, schedule):
    path = DDPMConfig(schedule=schedule)
    times = time_grid(steps, grid="respaced", path=path)
    mean, found = variance("ddpm", Knowing(path, times), times)
    off = abs(found / 0.25 - 1)
    # All that is left is the last step, which adds nothing: of beta = 1e-4 and the like.
    assert mean == pytest.approx(1, abs=1e-9) and off < 5e-4
    fixed = [abs(variance(name, Gaussian(path), times)[1] / 0.25 - 1)
             for name in ("ddpm", "ddpm_large")]  # fmt: skip
    assert min(fixed) > 20 * off and max(fixed) > (0.4 if steps <= 10 else 0.01)
    # The larger variance is asked for by name, whatever the field says; by DDIM there is none.
    assert variance("ddpm_large", Knowing(path, times), times) == pytest.approx(
        variance("ddpm_large", Gaussian(path), times), rel=1e-12
    )
    assert variance("ddim", Knowing(path, times), times) == variance("ddim", Gaussian(path), times)


# The bound.


def asked(index, b=4, c=2, predict="eps"):
    path = DDPMConfig(predict=predict)
    draw = Draw(0, torch.arange(b))
    x, eps = draw.uniform("x", (c, 3)) * 1.8 - 0.9, draw.normal("eps", (c, 3))
    t = time_of(path, torch.full((b,), index), torch.float32)
    xt = path.mix(x, eps, t)
    return path, x, eps, t, xt, path.target(x, eps, xt, t)


@calm
@given(index=st.integers(1, 999), predict=st.sampled_from(["eps", "x", "velocity"]))
def test_the_perfect_answer_with_the_posteriors_variance_has_no_divergence(index, predict):
    path, x, _, t, _, truth = asked(index, predict=predict)
    guess = truth._replace(fraction=torch.zeros_like(x))
    assert (variational_bound(path, guess, truth, x, t) == 0).all()
    other = truth._replace(fraction=torch.full_like(x, 0.5))
    assert (variational_bound(path, other, truth, x, t) >= 0).all()


@calm
@given(index=st.integers(1, 999), v=st.floats(-0.3, 1.3), error=st.floats(-0.5, 0.5),
       predict=st.sampled_from(["eps", "x", "velocity"]),
       strength=st.sampled_from([1.0, 2.0]))  # fmt: skip
def test_the_divergence_is_that_of_two_gaussians(index, v, error, predict, strength):
    """Against torch's own, of means and deviations written as the papers do."""
    _, bars = published(PATH)
    bar, before = bars[index], bars[index - 1]
    beta = 1 - bar / before
    small = beta * (1 - before) / (1 - bar)
    path = DDPMConfig(predict=predict, noise_scale=strength)
    draw = Draw(1, torch.arange(2))
    x, eps = draw.normal("x", (1, 3)).double(), strength * draw.normal("eps", (1, 3)).double()
    t = time_of(path, torch.full((2,), index))
    xt = path.mix(x, eps, t)
    truth = path.target(x, eps, xt, t)
    answer = path.answer(Estimate(x, eps), t)
    guess = path.read(torch.cat((answer + error, torch.full_like(x, 2 * v - 1)), 1), xt, t)
    found = variational_bound(path, guess, truth, x, t, strength)

    def mean(picture):
        of_x = math.sqrt(before) * beta / (1 - bar)
        return of_x * picture + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * xt

    normal = torch.distributions.Normal
    std = strength * math.exp((v * math.log(beta) + (1 - v) * math.log(small)) / 2)
    picture = (
        guess.x if predict != "eps" else (xt - math.sqrt(1 - bar) * guess.eps) / math.sqrt(bar)
    )
    due = torch.distributions.kl_divergence(
        normal(mean(x), strength * math.sqrt(small)), normal(mean(picture), std)
    )
    torch.testing.assert_close(
        found.double(), due.flatten(1).mean(1) / math.log(2), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("index", [0, 1, 40, 999])
def test_the_mean_has_no_gradient_of_the_bound(index):
    path, x, eps, t, xt, truth = asked(index)
    off = eps + 0.1 * Draw(3, torch.arange(4)).normal("off", (2, 3))
    answer = torch.cat((off, torch.zeros_like(x)), 1).requires_grad_()
    guess = path.read(answer, xt, t)
    bound = bound_of(path, guess, truth, x, t, SPEC)
    (gradient,) = torch.autograd.grad(bound.sum(), answer)
    assert (gradient[:, :2] == 0).all() and (gradient[:, 2:] != 0).all()
    # Of the hybrid loss the noise has that of the simple one, and v that of the bound.
    weights = LossConfig(velocity=0.0, eps=1.0, vlb=0.3)
    guess = path.read(answer, xt, t)
    loss, terms = criterion(weights, guess, truth, bound=bound_of(path, guess, truth, x, t, SPEC))
    (both,) = torch.autograd.grad(loss.sum(), answer)
    torch.testing.assert_close(both[:, :2], 2 * (off - eps) / 6)
    torch.testing.assert_close(both[:, 2:], 0.3 * gradient[:, 2:])
    assert list(terms) == ["eps", "vlb"]
    torch.testing.assert_close(loss, terms["eps"] + 0.3 * terms["vlb"])


def test_no_bound_is_asked_of_a_network_that_says_no_variance():
    path, x, _, t, xt, truth = asked(5)
    assert bound_of(path, path.read(x, xt, t), truth, x, t, SPEC) is None
    with pytest.raises(InputError, match="loss.vlb is -1.0; a weight is 0 or more"):
        LossConfig(vlb=-1.0)


def test_places_that_do_not_count_are_in_no_bound():
    path, x, eps, t, xt, truth = asked(0)
    weight = torch.tensor([1.0, 0.0, 0.0]).expand(4, 1, 3)
    answer = torch.cat((eps, torch.zeros_like(x)), 1)
    found = bound_of(path, path.read(answer, xt, t), truth, x, t, SPEC, weight)
    worse = torch.cat((eps + 3 * (1 - weight), torch.ones_like(x) - weight), 1)
    again = bound_of(path, path.read(worse, xt, t), truth, x, t, SPEC, weight)
    torch.testing.assert_close(found, again)
    assert (found != 0).all()


@calm
@given(mean=st.floats(-3, 3), std=st.floats(1e-3, 20))
def test_the_chances_of_all_levels_are_one(mean, std):
    level = 2 / 255
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    parts = likelihood(x, torch.full_like(x, mean), torch.full_like(x, std), level)
    assert parts.isfinite().all() and float(parts.exp().sum()) == pytest.approx(1, abs=1e-9)


@calm
@given(mean=st.floats(-0.9, 0.9), std=st.floats(5e-3, 0.5))
def test_a_fine_level_is_the_density_times_its_width(mean, std):
    x = torch.linspace(-0.9, 0.9, 37, dtype=torch.float64)
    where = torch.full_like(x, mean), torch.full_like(x, std)
    density = likelihood(x, *where, 0.0)
    torch.testing.assert_close(density, torch.distributions.Normal(*where).log_prob(x))
    near = (x - mean).abs() < 3 * std
    fine = likelihood(x, *where, 1e-5) - math.log(1e-5)
    torch.testing.assert_close(fine[near], density[near], rtol=0, atol=1e-4)


def test_the_last_step_is_a_likelihood_in_bits():
    """Of a level for pictures, of the density for latents, which have no levels."""
    path, x, eps, t, xt, truth = asked(0)
    answer = torch.cat((eps + 0.5, torch.zeros_like(x)), 1)
    guess = path.read(answer, xt, t)
    betas, bars = published(path)
    small = betas[1] * (1 - bars[0]) / (1 - bars[1])
    std = (betas[0] * small) ** 0.25  # v = 1/2
    mean = (xt.double() - math.sqrt(betas[0]) * (eps + 0.5)) / math.sqrt(bars[0])
    latent = Spec(channels=2, axes=grid_axes((3,)), unit="latent", offset=(0.0,), scale=(1.0,))
    assert level_of(SPEC) == pytest.approx(2 / 255) and level_of(latent) == 0
    for spec in (SPEC, latent):
        wide = torch.full_like(mean, std)
        due = -likelihood(x.double(), mean, wide, level_of(spec)).flatten(1).mean(1) / math.log(2)
        found = bound_of(path, guess, truth, x, t, spec).double()
        torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-4)
    assert (bound_of(path, guess, truth, x, t, SPEC) > 0).all()
    assert (bound_of(path, guess, truth, x, t, latent) < 0).all()


@pytest.mark.parametrize("index", [1, 5, 60, 400, 900])
def test_the_bound_is_least_at_the_variance_of_the_exact_step(index):
    """For Gaussian data and a perfect mean, whose variance is known."""
    count = 40_000
    draw = Draw(0, torch.arange(count))
    x, eps = 1 + 0.5 * draw.normal("x", (1, 1)), draw.normal("eps", (1, 1))
    t = time_of(PATH, torch.full((count,), index), torch.float32)
    xt = PATH.mix(x, eps, t)
    truth = PATH.target(x, eps, xt, t)
    at, end = time_of(PATH, index), time_of(PATH, index - 1)
    pair = Gaussian(PATH).estimate(xt.double(), at)
    v = torch.tensor(0.5, requires_grad=True)
    for _ in range(12):  # Newton's, on a convex function of one number
        guess = Estimate(pair.x.float(), pair.eps.float(), v.expand_as(x))
        loss = variational_bound(PATH, guess, truth, x, t).double().mean()
        (slope,) = torch.autograd.grad(loss, v, create_graph=True)
        (bend,) = torch.autograd.grad(slope, v)
        v = (v - slope / bend).detach().requires_grad_()
    exact = Knowing(PATH, torch.tensor([0.0, 1.0])).fraction(at, end)
    # The log of a variance from so many draws is known to 1 %; v is a share of log beta/beta~.
    beta, small = PATH.variances(t[:1])
    wide = float((beta / small).log())
    assert abs(float(v.detach() - exact)) * wide < 0.02 * float(
        (exact * wide).expm1() / (exact * wide).exp()
    )


# Guidance by the index.


@calm
@given(index=indices, w=st.floats(1.1, 8))
def test_the_power_cosine_goes_by_the_published_index(index, w):
    """w(t) = 1 + (w - 1) (1 - cos(pi (1 - index/1000)^4))/2, and w itself at index 0."""
    t = time_of(PATH, index)
    x = torch.zeros(1, 2, 1, dtype=torch.float64)

    def constant(value):
        return Field(lambda x, t: Estimate(torch.full_like(x, value), 0 * x, x + value), PATH)

    guidance = GuidanceConfig(scale=w, schedule=PowerCosineSchedule())
    guided = classifier_free(constant(1.0), constant(0.0), guidance).estimate(x, t)
    due = 1 + (w - 1) * (1 - math.cos(math.pi * (1 - index / 1000) ** 4)) / 2
    torch.testing.assert_close(guided.x, torch.full_like(x, due))
    assert (guided.fraction == 1).all(), "the variance is the guided network's own"
    if index == 0:
        assert due == pytest.approx(w)
    assert PATH.progress(1.0) == 1 and StraightConfig().progress(0.3) == 0.3


# Channels, and a whole run.


@pytest.mark.parametrize(("n", "w"), [(1, 3.0), (3, 4.4), (3, -1.0), (4, 2.0)])
def test_the_first_channels_are_guided_as_if_they_were_alone(n, w):
    t = torch.tensor(0.4, dtype=torch.float64)
    x, *pictures = torch.randn(3, 2, 4, 5, generator=torch.manual_seed(0)).double()

    def of(picture):
        def estimate(x, t):
            c = x.shape[1]
            eps = (x - PATH.alpha(t) * picture[:, :c]) / PATH.sigma(t)
            return Estimate(picture[:, :c], eps)

        return Field(estimate, PATH)

    for more in ({}, {"rescale": 0.7}, {"apg": APGConfig(eta=0.2, threshold=0.5)}):
        few, whole = (
            classifier_free(*map(of, pictures), GuidanceConfig(scale=w, channels=limit, **more))
            for limit in (n, None)
        )
        found, alone = few.estimate(x, t), whole.estimate(x[:, :n], t)
        torch.testing.assert_close(found.x[:, :n], alone.x)
        torch.testing.assert_close(found.eps[:, :n], alone.eps)
        assert torch.equal(found.x[:, n:], pictures[0][:, n:])
        torch.testing.assert_close(PATH.alpha(t) * found.x + PATH.sigma(t) * found.eps, x)
    # Where the reference alone would do, the other channels still are the field's own.
    nothing = GuidanceConfig(scale=0.0, channels=n)
    found = classifier_free(*map(of, pictures), nothing).estimate(x, t)
    assert torch.equal(found.x[:, n:], pictures[0][:, n:])


def test_channels_are_those_of_the_data():
    for wrong in (0, -1):
        with pytest.raises(InputError, match=f"guidance.channels is {wrong}; it is 1 or more"):
            GuidanceConfig(channels=wrong)
    run = Run.load("debug", "model.width=32", "model.depth=2", "model.heads=2")
    trained = untrained(run, run.data.promise(), "cpu")
    with pytest.raises(InputError, match="guidance.channels is 4, but the data have 3; give"):
        trained.sample(1, steps=1, guidance=GuidanceConfig(scale=2.0, channels=4))
    assert GuidanceConfig(channels=3).idle == "channels"


RUN = ("model.kind=dit", "model.width=32", "model.depth=1", "model.heads=2", "model.patch_size=8",
       "model.learn_sigma=true", "model.time_scale=1", "objective.kind=ddpm", "loss.velocity=0",
       "loss.eps=1", "sample.sampler=ddpm", "sample.grid=respaced", "sample.steps=4")  # fmt: skip


def test_a_run_that_learns_its_variance_is_trained_and_sampled():
    run = Run.load("debug", *RUN)
    spec = run.data.promise()
    run.check(spec)
    assert describe(run, spec)["activation_bytes"] > 0
    trained = untrained(run, spec, "cpu")
    draw = Draw(0, torch.arange(6))
    batch = Batch(index=torch.arange(6), x=draw.uniform("x", (3, 32, 32)) * 2 - 1,
                  label=torch.zeros(6, dtype=torch.long))  # fmt: skip
    found = {}
    for micro in (0, 2):
        trained.model.zero_grad()
        terms = backward(run, trained.network, batch, torch.device("cpu"), micro)
        assert set(terms) == {"loss", "eps", "vlb"}
        torch.testing.assert_close(terms["loss"], terms["eps"] + terms["vlb"])
        found[micro] = trained.model.head.weight.grad.clone()
    torch.testing.assert_close(found[0], found[2])
    by_channel = found[0].unflatten(0, (-1, 6)).abs().sum((0, 2))
    assert (by_channel > 0).all(), "both halves of the head are trained"
    x = trained.sample(2, seed=1)
    assert x.shape == (2, 3, 32, 32) and x.isfinite().all()
    assert torch.equal(x[1:], trained.sample(2, seed=1, batch=1)[1:])
    # The head is 0, so v = 1/2: between the two that are fixed, whose noise is the same.
    with torch.no_grad():
        walks = []
        for v in (0.0, 1.0):
            trained.model.head.bias.unflatten(0, (-1, 6))[:, 3:] = 2 * v - 1
            walks.append(trained.sample(2, seed=1))
    torch.testing.assert_close(walks[1], trained.sample(2, seed=1, sampler="ddpm_large"))
    assert (walks[0] - x).abs().max() > 1e-3 and (walks[1] - x).abs().max() > 1e-3
