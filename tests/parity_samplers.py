"""Samplers on a Gaussian target, step by step: k-diffusion, diffusers and SiT."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pointillist import samplers
from pointillist.objective import DDPMConfig, GVPConfig, Interpolant, StraightConfig, VPConfig
from pointillist.samplers import STOCHASTIC
from pointillist.samplers.times import karras, polyexponential, ratio_of
from pointillist.samplers.times import preserving as preserving_ratios
from pointillist.types import Estimate
from tests.parity_case import Case, NotBuilt, known, plain


class Exploding(StraightConfig):
    """alpha = 1, sigma = (1 - t)/t: k-diffusion's path, in the time in which t is the share."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - t) / t


class Preserving(StraightConfig):
    """The same signal to noise with alpha^2 + sigma^2 = 1: diffusers' path for noise prediction."""

    def alpha(self, t: Tensor) -> Tensor:
        return t / torch.hypot(t, 1 - t)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - t) / torch.hypot(t, 1 - t)


class Gaussian:
    """The field of N(mu, s^2) on any path, with the states and answers it was asked for."""

    def __init__(self, case: Case, path: Interpolant) -> None:
        toy = case.constructor["toy"]
        if not toy["kind"].startswith("gaussian target N(mu,s^2)"):
            raise NotBuilt(f"toy.kind = {toy['kind']}")
        self.path, self.mu, self.s2 = path, toy["mu"], toy["s"] ** 2
        self.seen: list[Tensor] = []
        self.pictures: list[Tensor] = []

    def given(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        centred = (x - alpha * self.mu) / (alpha**2 * self.s2 + sigma**2)
        return Estimate(self.mu + alpha * self.s2 * centred, sigma * centred)

    def estimate(self, x: Tensor, t: Tensor) -> Estimate:
        return self.given(x, self.path.alpha(t), self.path.sigma(t))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.path.velocity(self.estimate(x, t), t)

    def watch(self, i: int, t: float, x: Tensor, pair: Estimate | None) -> None:
        self.seen.append(x)
        self.pictures.extend([] if pair is None else [pair.x])


# k-diffusion.


def exploding(case: Case, solver: str) -> None:
    """In sigma itself, as published: dx/dsigma = (x - D)/sigma; by D where the solver goes by D."""
    options = case.constructor["sampler"]
    known(options, "s_churn", "s_tmin", "s_tmax", "s_noise", "eta", "order", "solver_type")
    plain(options, solver_type="midpoint")
    field, sigmas = Gaussian(case, Exploding()), case.io["sigmas"]
    keywords: dict[str, Any] = {}
    if solver == "heun" and options.get("s_churn", 0) > 0:
        solver = "heun_churn"
        keywords = {"churn": options["s_churn"], "low": options.get("s_tmin", 0.0),
                    "high": options.get("s_tmax", math.inf),
                    "strength": options.get("s_noise", 1.0)}  # fmt: skip
    elif solver in STOCHASTIC:
        plain(options, s_noise=1.0)
        keywords = {"eta": options.get("eta", 1.0)}
        if solver == "dpmpp_2s_ancestral" and keywords == {"eta": 0.0}:
            solver, keywords = "dpmpp_2s", {}
    else:
        plain(options, s_churn=0.0)  # without churn the others act on nothing
    if solver == "lms":
        keywords = {"order": options.get("order", 4)}
    if solver in STOCHASTIC:
        keywords["noise"] = lambda i: case.io["draws"][i]
    sampler = functools.partial(samplers.SAMPLERS[solver], **keywords)
    if solver in STOCHASTIC or solver.startswith("dpmpp"):
        out = sampler(field, case.io["x_init"], 1 / (1 + sigmas), watch=field.watch)
    else:

        def along(x: Tensor, sigma: Tensor) -> Tensor:
            return (x - field.given(x, torch.ones_like(sigma), sigma).x) / sigma

        def watch(i: int, sigma: float, x: Tensor, none: None) -> None:
            one, s = torch.tensor([1.0, sigma], dtype=torch.float64)
            pair = field.given(x, one, s)
            field.watch(i, sigma, x, pair)

        out = sampler(along, case.io["x_init"], sigmas, watch=watch)
    case.match("x_at_callback", torch.stack(field.seen), 1e-10)
    case.match("denoised_at_callback", torch.stack(field.pictures), 1e-10)
    case.match("out", out, 1e-10)


def schedules(case: Case) -> None:
    """Sigmas, computed in float32, before the last, which is 0."""
    for kind, bounds in case.constructor.items():
        rule = {"vp": preserving_ratios, "karras": karras}.get(kind, polyexponential)
        if kind == "vp":
            plain({"vp": bounds}, vp="defaults")
            path, last = VPConfig(), torch.tensor([1 - 1e-3, 0.0], dtype=torch.float64)
            bounds = ratio_of(path, last).tolist()
        for steps in (5, 10, 18):
            name, ramp = f"{kind}.{steps}", torch.linspace(1, 0, steps, dtype=torch.float64)
            sigmas = torch.cat((rule(ramp, *bounds), torch.zeros(1)))
            # exp(x) - 1 of a small x loses digits in float32.
            case.match(name, sigmas, 2e-6 * float(sigmas.max()))
            off = ((sigmas - case.io[name]) / (1 + sigmas)).abs().max()
            assert off < 3e-6, f"{name} is off by {off:.1e} of 1 + itself"


# diffusers.

# Options that act on the grid of noise levels alone, which is stored.
GRID = ("num_train_timesteps", "use_dynamic_shifting", "base_shift", "max_shift", "shift_terminal",
        "base_image_seq_len", "max_image_seq_len", "time_shift_type", "use_karras_sigmas",
        "use_exponential_sigmas", "use_beta_sigmas", "timestep_spacing", "steps_offset",
        "beta_start", "beta_end", "beta_schedule")  # fmt: skip


def check_options(case: Case, solver: str) -> dict[str, Any]:
    """NotBuilt where the scheduler does something else than ours; what it predicts, otherwise."""
    options = case.constructor["scheduler"]
    known(case.constructor.get("step", {}))  # what set_timesteps and the shifts do is in the grid
    if solver in ("euler", "heun"):
        known(options, *GRID, "shift", "invert_sigmas", "stochastic_sampling")
        plain(options, invert_sigmas=False, stochastic_sampling=False)
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    known(options, *GRID, "use_flow_sigmas", "prediction_type", "flow_shift", "solver_order",
          "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "predict_x0",
          "final_sigmas_type", "thresholding", "disable_corrector")  # fmt: skip
    plain(options, solver_order=2, lower_order_final=True,
          algorithm_type="sde-dpmsolver++" if solver in STOCHASTIC else "dpmsolver++",
          solver_type="bh2" if solver == "unipc" else "midpoint", euler_at_final=False,
          final_sigmas_type="zero", thresholding=False, disable_corrector=[],
          predict_x0=True)  # fmt: skip
    return options


def scheduled(case: Case, solver: str) -> None:
    if case.constructor["scheduler"].get("algorithm_type") == "sde-dpmsolver++":
        solver += "_sde"
    options, io = check_options(case, solver), case.io
    kind = (options.get("use_flow_sigmas", False), options.get("prediction_type", "epsilon"))
    if kind == (True, "flow_prediction"):
        flow(case, solver)
    elif kind == (False, "epsilon"):
        preserving(case, solver)
    else:
        raise NotBuilt(f"prediction_type = {kind[1]}")
    assert len(io["timesteps"])


def flow(case: Case, solver: str) -> None:
    """Flow matching from sigma = 1 (noise) with velocity eps - x, asked at a rounded sigma."""
    io, field = case.io, Gaussian(case, StraightConfig())
    sigmas = io["sigmas"].double()
    # Heun's scheduler lists both ends of every step.
    grid = sigmas[[0, *range(1, len(sigmas) - 1, 2), -1]] if solver == "heun" else sigmas
    states: list[Tensor] = []
    answers: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        # The stored time is rounded; it is the sampler's own all the same.
        assert abs(1 - float(t) - float(io["model_time_over_num_train"][len(answers)])) < 1e-3
        states.append(x)
        answers.append(-field(x, 1 - io["model_time_over_num_train"][len(answers)].double()))
        return -answers[-1]

    out = samplers.SAMPLERS[solver](velocity, io["x_init"].double(), 1 - grid)
    case.match("model_outputs", torch.stack(answers), 1e-5)
    case.match("traj", torch.stack([*states, out]), 1e-5)


def preserving(case: Case, solver: str) -> None:
    """Noise prediction on a table of 1000 levels, asked at a whole number of its steps."""
    io, path = case.io, Preserving()
    levels, field = io["alphas_cumprod"].double(), Gaussian(case, path)
    answers: list[Tensor] = []

    class Rounded:
        def __init__(self) -> None:
            self.path = path

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return path.velocity(self.estimate(x, t), t)

        def estimate(self, x: Tensor, t: Tensor) -> Estimate:
            level = levels[io["timesteps"][len(answers)]]
            # A step of its table is the sampler's own time, to within rounding to a whole one.
            assert abs(float(path.alpha(t) - level.sqrt())) < 1e-2
            answers.append(field.given(x, level.sqrt(), (1 - level).sqrt()).eps)
            picture = (x - path.sigma(t) * answers[-1]) / path.alpha(t)
            return Estimate(picture, answers[-1])

    times = 1 / (1 + io["sigmas"].double())
    x = io["x_init"].double()
    keywords = {"noise": lambda i: io["draws"][i]} if solver in STOCHASTIC else {}
    out = samplers.SAMPLERS[solver](Rounded(), x, times, watch=field.watch, **keywords)
    case.match("model_outputs", torch.stack(answers), 1e-5)
    # UniPC's stored states are, like ours when asked about, those before they are corrected.
    case.match("traj", torch.stack([*field.seen, out]), 1e-5)


def one_step(rule: Any, field: Any, x: Tensor, times: Tensor, draws: Tensor) -> Tensor:
    """Where a step ends; as walks end without noise, one that does not end there goes on."""
    seen: list[Tensor] = []
    whole = times if times[1] == 1 else torch.cat((times, torch.ones(1)))

    def watch(i: int, t: float, state: Tensor, pair: Estimate | None) -> None:
        seen.append(state)

    out: Tensor = rule(field, x, whole, noise=lambda i: draws[i], watch=watch)
    return seen[1] if len(seen) > 1 else out


def by_levels(case: Case, solver: str) -> None:
    """DDIM and DDPM, step by step: one may end beside the level that the next begins at."""
    options, step = case.constructor["scheduler"], case.constructor.get("step", {})
    known(options, *GRID, "clip_sample", "clip_sample_range", "set_alpha_to_one", "prediction_type",
          "rescale_betas_zero_snr", "variance_type")  # fmt: skip
    known(step, "eta")
    plain(options, set_alpha_to_one=True)
    rule: Any = samplers.SAMPLERS["ddpm"]
    if solver == "ddim":
        plain(options, clip_sample=False)
        rule = functools.partial(samplers.SAMPLERS["ddim"], eta=step.get("eta", 0.0))
    elif options.get("variance_type", "fixed_small") == "fixed_large":
        rule = samplers.SAMPLERS["ddpm_large"]
    else:
        plain(options, variance_type="fixed_small")
    bound = options.get("clip_sample_range", 1.0) if options.get("clip_sample", True) else math.inf
    io, kind = case.io, options.get("prediction_type", "epsilon")
    # The betas that our own path has are walked on it, at its own times of these indices.
    ours = {"linear": "linear", "squaredcos_cap_v2": "cosine"}.get(options["beta_schedule"])
    if options.get("rescale_betas_zero_snr"):
        ours = None
    path: Interpolant = Preserving() if ours is None else DDPMConfig(schedule=ours)  # type: ignore[arg-type]
    levels = torch.cat((io["alphas_cumprod"].double(), torch.ones(1)))
    answers: list[Tensor] = []
    states = [io["x_init"].double()]

    class Clipped(Gaussian):
        def estimate(self, x: Tensor, t: Tensor) -> Estimate:
            alpha, sigma = path.alpha(t), path.sigma(t)
            pair = self.given(x, alpha, sigma)
            answers.append({"epsilon": pair.eps, "sample": pair.x,
                            "v_prediction": alpha * pair.eps - sigma * pair.x}[kind])  # fmt: skip
            picture = pair.x.clamp(-bound, bound)
            return Estimate(picture, (x - alpha * picture) / sigma)

    gap = 1000 // case.constructor["num_inference_steps"]
    for k, begin in enumerate(io["timesteps"].tolist()):
        ends = levels[[begin, max(begin - gap, -1)]]
        times = ends.sqrt() / (ends.sqrt() + (1 - ends).sqrt())
        if ours is not None:
            times = torch.tensor([999.0 - begin, 999 - max(begin - gap, -1)]).double() / 1000
            assert (path.alpha(times) - ends.sqrt()).abs().max() < 1e-6, "another table"
        states.append(one_step(rule, Clipped(case, path), states[-1], times, io["draws"][k : k + 1]
                               if "draws" in io else torch.zeros(1)))  # fmt: skip
        del answers[k + 1 :]
    case.match("model_outputs", torch.stack(answers), 1e-5)
    case.match("traj", torch.stack(states), 1e-5)


# SiT.


def sit_path(case: Case) -> Gaussian:
    paths = {"Linear": StraightConfig, "GVP": GVPConfig}
    plain(case.constructor, prediction="velocity")
    if case.constructor["path_type"] not in paths:
        raise NotBuilt(f"path_type = {case.constructor['path_type']}")
    return Gaussian(case, paths[case.constructor["path_type"]]())


def sit_ode(case: Case) -> None:
    """Its Heun asks at t = 1 as well, as ours does when another step follows."""
    options, field = case.constructor["sampler"], sit_path(case)
    known(options, "sampling_method", "num_steps")
    methods = {"euler": "euler", "heun2": "heun"}
    if options["sampling_method"] not in methods:
        raise NotBuilt(f"sampling_method = {options['sampling_method']}")
    times = torch.linspace(0, 1, options["num_steps"]).double()
    sampler = samplers.SAMPLERS[methods[options["sampling_method"]]]
    sampler(field, case.io["x_init"], torch.cat((times, times[-1:] + 0.1)), watch=field.watch)
    case.match("traj", torch.stack(field.seen), 1e-6)


def sit_sde(case: Case) -> None:
    """Its diffusion sigma (or 1 - t) is ours on the straight path; of its last steps, ours is
    Tweedie's. "Mean" goes along the stochastic drift without the noise that belongs to it.
    """
    options, io, field = case.constructor["sampler"], case.io, sit_path(case)
    known(options, "sampling_method", "diffusion_form", "diffusion_norm", "last_step",
          "last_step_size", "num_steps")  # fmt: skip
    plain(options, diffusion_norm=1.0)
    methods = {"Euler": "euler_maruyama", "Heun": "stochastic_heun"}
    if options["diffusion_form"] not in ("sigma", "linear") or field.path.kind != "straight":
        raise NotBuilt(f"diffusion_form = {options['diffusion_form']}")
    end, noise = 1 - options["last_step_size"], io["step_noise"]
    times = torch.cat((torch.linspace(0, end, options["num_steps"]), torch.ones(1))).double()
    method = methods[options["sampling_method"]]
    out = samplers.SAMPLERS[method](
        field, io["x_init"], times, noise=lambda i: noise[i], watch=field.watch
    )
    states = torch.stack(field.seen[1:])
    if method == "stochastic_heun":  # it asks with the step's noise already added
        t, dt = times[1:-2].view(-1, 1, 1), times.diff()[1:-1].view(-1, 1, 1)
        states[:-1] -= (2 * (1 - t) * dt).sqrt() * noise[1:]
    if options["last_step"] == "Mean":
        assert (out - io["traj"][-1]).abs().max() > 1e-3
        pair = field.estimate(states[-1], times[-2])
        out = states[-1] + (1 - times[-2]) * (pair.x - 2 * pair.eps)
    elif options["last_step"] != "Tweedie":
        raise NotBuilt(f"last_step = {options['last_step']}")
    case.match("traj", torch.cat((states, out[None])), 1e-6)


DIFFUSERS = "huggingface/diffusers"
FAMILIES: dict[tuple[str, str], Callable[[Case], None]] = {
    ("willisma/SiT", "Sampler.sample_ode"): sit_ode,
    ("willisma/SiT", "Sampler.sample_sde"): sit_sde,
    **{
        ("crowsonkb/k-diffusion", f"sample_{name}"): functools.partial(exploding, solver=solver)
        for name, solver in {
            "euler": "euler", "heun": "heun", "lms": "lms", "dpmpp_2m": "dpmpp_2m",
            "dpmpp_2s_ancestral": "dpmpp_2s_ancestral", "dpmpp_2m_sde": "dpmpp_2m_sde",
            "euler_ancestral": "euler_ancestral",
        }.items()
    },
    ("crowsonkb/k-diffusion", "get_sigmas_*"): schedules,
    (DIFFUSERS, "DDIMScheduler"): functools.partial(by_levels, solver="ddim"),
    (DIFFUSERS, "DDPMScheduler"): functools.partial(by_levels, solver="ddpm"),
    **{
        (DIFFUSERS, f"{name}Scheduler"): functools.partial(scheduled, solver=solver)
        for name, solver in {
            "FlowMatchEulerDiscrete": "euler", "FlowMatchHeunDiscrete": "heun",
            "DPMSolverMultistep": "dpmpp_2m", "UniPCMultistep": "unipc",
        }.items()
    },
}  # fmt: skip
