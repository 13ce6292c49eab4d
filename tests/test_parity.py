"""Published implementations, number by number: one test for every stored case.

POINTILLIST_PARITY names the folder of cases (default: shared/parity beside the project). A case is
built from its config.json alone; an unknown family, or an option of a known one that is not built,
is skipped as "not built yet", with the reason.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pointillist import samplers
from pointillist.guidance import GuidanceConfig, classifier_free, network_field
from pointillist.losses import LossConfig, criterion
from pointillist.models import DiTConfig, JiTConfig, Network, dit, jit
from pointillist.objective import GVPConfig, LogitNormal, StraightConfig, Uniform
from pointillist.types import Given, InputError, Spec, grid_axes
from tests import parity_losses, parity_metrics, parity_pixeldit
from tests.parity_case import (
    CASES,
    FOLDER,
    NONE,
    Case,
    Fixed,
    NotBuilt,
    forward,
    known,
    make,
    match_gradients,
    plain,
    unlabel,
)  # fmt: skip

# Networks, and what their published constructors take where a case says nothing.

DIT = {"input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28,
       "num_heads": 16, "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000,
       "learn_sigma": True}  # fmt: skip
JIT = {"input_size": 256, "patch_size": 16, "in_channels": 3, "hidden_size": 1024, "depth": 24,
       "num_heads": 16, "mlp_ratio": 4.0, "attn_drop": 0.0, "proj_drop": 0.0, "num_classes": 1000,
       "bottleneck_dim": 128, "in_context_len": 32, "in_context_start": 8}  # fmt: skip


def spec_of(c: dict[str, Any]) -> Spec:
    size = c["input_size"]
    classes = tuple(str(i) for i in range(c["num_classes"]))
    return Spec(channels=c["in_channels"], axes=grid_axes((size, size)), classes=classes)


def make_dit(case: Case) -> tuple[torch.nn.Module, Any]:
    known(case.constructor, *DIT)
    c = DIT | case.constructor
    config = DiTConfig(
        width=c["hidden_size"], depth=c["depth"], heads=c["num_heads"], patch_size=c["patch_size"],
        mlp_ratio=c["mlp_ratio"], time_scale=1.0, learn_sigma=c["learn_sigma"],
    )  # fmt: skip
    return make(config, spec_of(c), dit.from_published(case.weights)), dit.from_published


def make_jit(case: Case, c: dict[str, Any]) -> tuple[torch.nn.Module, Any]:
    heads = ("encoder_depth", "z_dims", "projector_dim", "projection_layer_type",
             "proj_kwargs_kernel_size")  # fmt: skip
    known(c, *JIT, *heads)
    plain(c, attn_drop=0.0, proj_drop=0.0)
    c = JIT | c
    try:
        config = JiTConfig(
            width=c["hidden_size"], depth=c["depth"], heads=c["num_heads"],
            patch_size=c["patch_size"], mlp_ratio=c["mlp_ratio"],
            bottleneck=c["bottleneck_dim"], context_tokens=c["in_context_len"],
            context_start=c["in_context_start"],
        )  # fmt: skip
    except InputError as error:
        raise NotBuilt(str(error)) from None
    weights = {n: w for n, w in case.weights.items() if not n.startswith("proj")}
    return make(config, spec_of(c), jit.from_published(weights)), jit.from_published


def dit_forward(case: Case) -> None:
    forward(case, *make_dit(case))


def jit_forward(case: Case) -> None:
    forward(case, *make_jit(case, case.constructor))


def irepa_forward(case: Case) -> None:
    forward(case, *make_jit(case, case.constructor), out="out.x")


# JiT's training and sampling.


def jit_objective(args: dict[str, Any]) -> StraightConfig:
    return StraightConfig(
        predict="x", clamp=args["t_eps"], sampling_clamp=args["t_eps"],
        noise_scale=args["noise_scale"], time=LogitNormal(mean=args["P_mean"], std=args["P_std"]),
    )  # fmt: skip


def jit_args(case: Case) -> dict[str, Any]:
    args = case.constructor["args"]
    known(args, "model", "attn_dropout", "proj_dropout", "label_drop_prob", "P_mean", "P_std",
          "t_eps", "noise_scale", "ema_decay1", "ema_decay2", "sampling_method",
          "num_sampling_steps", "cfg", "interval_min", "interval_max", "img_size",
          "class_num")  # fmt: skip
    plain(args, attn_dropout=0.0, proj_dropout=0.0)
    return args


def jit_loss(case: Case) -> None:
    args, io = jit_args(case), case.io
    model, rename = make_jit(case, case.constructor["model"])
    objective = jit_objective(args)
    draw = Fixed(0, torch.arange(len(io["t_normal"])))
    draw.draws = {"time": io["t_normal"], "noise": io["noise_unit"]}
    t = objective.times(draw)
    case.match("t", t, 1e-6)
    label = torch.where(io["label_drop_uniform"] < args["label_drop_prob"], -1, io["in.y"])
    assert torch.equal(label, unlabel(io["labels_used"], model)), "labels_used"
    x = io["in.x"]
    eps = objective.noise(draw, tuple(x.shape[1:]))
    xt = objective.mix(x, eps, t)
    answer = Network(model)(*objective.see(xt, t), Given(label=label)).value
    guess, truth = objective.read(answer, xt, t), objective.target(x, eps, xt, t)
    loss = criterion(LossConfig(velocity=1.0), guess, truth)[0].mean()
    case.match("out.loss", loss, 1e-5 * (1 + float(io["out.loss"])))
    loss.backward()
    match_gradients(case, model, rename)


def sit_loss(case: Case) -> None:
    """SiT's loss of the velocity, whatever is predicted, weighed by the path it is on."""
    io, transport = case.io, case.constructor["transport"]
    known(transport, "path_type", "prediction", "loss_weight")
    weighed = transport["prediction"] == "velocity" or transport.get("loss_weight") == "velocity"
    if not weighed:
        raise NotBuilt(f"loss_weight = {transport.get('loss_weight')}")
    predict = {"velocity": "velocity", "noise": "eps"}[transport["prediction"]]
    path = {"Linear": StraightConfig, "GVP": GVPConfig}[transport["path_type"]]
    objective = path(predict=predict, clamp=0.0, time=Uniform())
    case.constructor = case.constructor["model"]
    model, rename = make_dit(case)
    low, high = case.config["t_interval"]
    draw = Fixed(0, torch.arange(len(io["t_uniform"])))
    draw.draws = {"time": low + (high - low) * io["t_uniform"]}
    t, x, eps = objective.times(draw), io["in.x1"], io["x0"]
    case.match("t", t, 1e-6)
    xt = objective.mix(x, eps, t)
    answer = Network(model)(*objective.see(xt, t), Given(label=unlabel(io["in.y"], model))).value
    case.match("out.pred", answer)
    guess, truth = objective.read(answer, xt, t), objective.target(x, eps, xt, t)
    velocity = functools.partial(objective.velocity, t=t)
    loss = criterion(LossConfig(), guess, truth, velocity=velocity)[0]
    case.match("out.loss", loss, 1e-5 * (1 + float(io["out.loss"].max())))
    loss.mean().backward()
    match_gradients(case, model, rename)


def jit_sampler(case: Case) -> None:
    args, io = jit_args(case), case.io
    model, _ = make_jit(case, case.constructor["model"])
    if args["sampling_method"] not in ("euler", "heun"):
        raise NotBuilt(f"sampling_method = {args['sampling_method']}")
    objective, network = jit_objective(args), Network(model)
    x = args["noise_scale"] * io["in.noise_unit"]
    labels, size = io["in.labels"], tuple(x.shape[2:])
    halves = [
        network_field(network, objective, Given(label=label), size)
        for label in (labels, torch.full_like(labels, -1))
    ]
    interval = (args["interval_min"], args["interval_max"])
    guided = classifier_free(*halves, GuidanceConfig(scale=args["cfg"], interval=interval))
    seen: list[torch.Tensor] = []
    spent: list[torch.Tensor] = []

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        spent.append(guided(x, t))
        return spent[-1]

    with torch.no_grad():
        out = samplers.SAMPLERS[args["sampling_method"]](
            field, x, samplers.time_grid(args["num_sampling_steps"]),
            watch=lambda i, t, x, pair: seen.append(x),
        )  # fmt: skip
    # Rounding grows along the walk: at guidance w each step multiplies it by about w.
    slack = 2e-5 * float(io["out"].abs().max())
    case.match("z_traj", torch.stack([*seen, out]), slack)
    case.match("out", out, slack)
    case.match("v_evals", torch.stack(spent), 2e-5 * float(io["v_evals"].abs().max()))


# Samplers on a Gaussian target, whose exact denoiser is known.


def gaussian(case: Case) -> tuple[float, float]:
    """Mean and variance of the target."""
    toy = case.constructor["toy"]
    if not toy["kind"].startswith("gaussian target N(mu,s^2)"):
        raise NotBuilt(f"toy.kind = {toy['kind']}")
    return toy["mu"], toy["s"] ** 2


def kdiff(case: Case, solver: str) -> None:
    """A variance-exploding path is walked in sigma itself: dx/dsigma = (x - D)/sigma."""
    known(case.constructor["sampler"], "s_churn", "s_tmin", "s_tmax", "s_noise")
    plain(case.constructor["sampler"], s_churn=0.0)  # without churn the others act on nothing
    mu, s2 = gaussian(case)
    seen: list[torch.Tensor] = []
    pictures: list[torch.Tensor] = []

    def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (s2 * x + sigma**2 * mu) / (s2 + sigma**2)

    sigmas, x = case.io["sigmas"], case.io["x_init"]
    if solver == "dpmpp_2m":
        # Scaled by t = 1/(1 + sigma) the path is straight, and lambda = -log sigma is unchanged.
        def straight(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            sigma = 1 / t - 1
            seen.append(y / t)
            pictures.append(denoised(y / t, sigma))
            return (pictures[-1] - y) / (1 - t)

        times = 1 / (1 + sigmas)
        out = samplers.dpmpp_2m(straight, x * times[0], times) / times[-1]
    else:

        def exploding(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return (x - denoised(x, sigma)) / sigma

        def watch(i: int, sigma: float, x: torch.Tensor, pair: Any) -> None:
            seen.append(x)
            pictures.append(denoised(x, torch.tensor(sigma, dtype=torch.float64)))

        out = samplers.SAMPLERS[solver](exploding, x, sigmas, watch=watch)
    case.match("x_at_callback", torch.stack(seen), 1e-10)
    case.match("denoised_at_callback", torch.stack(pictures), 1e-10)
    case.match("out", out, 1e-10)


# Options that act on the grid of noise levels alone, which is stored.
GRID = ("num_train_timesteps", "use_dynamic_shifting", "base_shift", "max_shift", "shift_terminal",
        "base_image_seq_len", "max_image_seq_len", "time_shift_type", "use_karras_sigmas",
        "use_exponential_sigmas", "use_beta_sigmas", "timestep_spacing", "steps_offset",
        "beta_start", "beta_end", "beta_schedule")  # fmt: skip


def flow(case: Case, solver: str) -> None:
    """diffusers' flow matching runs from sigma = 1 (noise) with velocity eps - x."""
    c, io = case.constructor, case.io
    options = dict(c["scheduler"])
    known(c.get("step", {}))  # what set_timesteps and the shifts do is in the stored grid
    if solver == "dpmpp_2m":
        known(options, *GRID, "use_flow_sigmas", "prediction_type", "flow_shift", "solver_order",
              "algorithm_type", "solver_type", "lower_order_final", "euler_at_final",
              "final_sigmas_type", "thresholding")  # fmt: skip
        plain(options, solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint",
              lower_order_final=True, euler_at_final=False, final_sigmas_type="zero",
              thresholding=False)  # fmt: skip
        wanted = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        for name, value in wanted.items():
            if options.get(name) != value:
                raise NotBuilt(f"{name} = {options.get(name)}")
    else:
        known(options, *GRID, "shift", "invert_sigmas", "stochastic_sampling")
        plain(options, invert_sigmas=False, stochastic_sampling=False)
    mu, s2 = gaussian(case)
    sigmas = io["sigmas"].double()
    # Heun's scheduler lists both ends of every step.
    grid = sigmas[[0, *range(1, len(sigmas) - 1, 2), -1]] if solver == "heun" else sigmas
    states: list[torch.Tensor] = []
    answers: list[torch.Tensor] = []

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = io["model_time_over_num_train"][len(answers)].double()
        var = (1 - sigma) ** 2 * s2 + sigma**2
        off = (x - (1 - sigma) * mu) / var
        states.append(x)
        answers.append(sigma * off - mu - (1 - sigma) * s2 * off)
        return -answers[-1]

    x = io["x_init"].double()
    out = samplers.SAMPLERS[solver](field, x, 1 - grid)
    case.match("traj", torch.stack([*states, out]), 1e-5)
    case.match("model_outputs", torch.stack(answers), 1e-5)


FAMILIES: dict[tuple[str, str], Callable[[Case], None]] = {
    ("facebookresearch/DiT", "DiT"): dit_forward,
    ("willisma/SiT", "SiT"): dit_forward,
    ("willisma/SiT", "Transport.training_losses"): sit_loss,
    ("LTH14/JiT", "JiT"): jit_forward,
    ("LTH14/JiT", "Denoiser"): jit_loss,
    ("LTH14/JiT", "Denoiser.generate"): jit_sampler,
    ("End2End-Diffusion/iREPA", "JiT (with projection heads)"): irepa_forward,
    ("gcy-hub/PixelDiT", "PixDiT"): parity_pixeldit.c2i,
    ("gcy-hub/PixelDiT", "FlowDPMSolverSampler"): parity_pixeldit.sampler,
    ("yashbelhe/jitmask", "JiT"): parity_pixeldit.jitmask,
    ("yashbelhe/jitmask", "Denoiser"): parity_losses.jitmask_loss,
    ("crowsonkb/k-diffusion", "sample_euler"): lambda case: kdiff(case, "euler"),
    ("crowsonkb/k-diffusion", "sample_heun"): lambda case: kdiff(case, "heun"),
    ("crowsonkb/k-diffusion", "sample_dpmpp_2m"): lambda case: kdiff(case, "dpmpp_2m"),
    ("huggingface/diffusers", "FlowMatchEulerDiscreteScheduler"): lambda case: flow(case, "euler"),
    ("huggingface/diffusers", "FlowMatchHeunDiscreteScheduler"): lambda case: flow(case, "heun"),
    ("huggingface/diffusers", "DPMSolverMultistepScheduler"): lambda case: flow(case, "dpmpp_2m"),
    ("toshas/torch-fidelity", "*_features_to_metric"): parity_metrics.features,
    ("GaParmar/clean-fid", "frechet_distance, kernel_distance"): parity_metrics.clean,
    ("scikit-image/scikit-image", "peak_signal_noise_ratio, structural_similarity"):
        parity_metrics.pictures,
    ("End2End-Diffusion/iREPA",
     "ProjectionLayer(conv) + SpatialNormalization(zscore) + CosineProjectionLoss"):
        parity_losses.conv,
    ("sihyun-yu/REPA", "SILoss"): parity_losses.repa,
    ("gcy-hub/PixelDiT", "REPATrainer"): parity_losses.pixeldit_repa,
    ("yetrtyog-creator/PixelHDM", "FrequencyLoss"): parity_losses.frequencies,
    ("yetrtyog-creator/PixelHDM", "REPALoss"): parity_losses.pixelhdm,
    ("yetrtyog-creator/PixelHDM", "CombinedLoss"): parity_losses.combined,
    ("richzhang/PerceptualSimilarity", "LPIPS"): parity_losses.lpips,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES or [pytest.param("", marks=NONE)])
def test_parity(name: str) -> None:
    case = Case(FOLDER / name)
    source = case.config.get("repo", "an unnamed repository").split(" ")[0]
    kind = case.config.get("model_class", "an unnamed class")
    check = FAMILIES.get((source, kind))
    if check is None:
        pytest.skip(f"not built yet: {kind} of {source}")
    try:
        check(case)
    except NotBuilt as missing:
        pytest.skip(f"not built yet: {missing}")
    except AssertionError as error:
        pytest.fail(f"not matched: {error}", pytrace=False)


def test_the_criterion_can_fail() -> None:
    """A sampler of the wrong order does not pass for the right one."""
    if "kdiff_heun" not in CASES:
        pytest.skip(f"no parity case kdiff_heun in {FOLDER}")
    with pytest.raises(AssertionError, match="off by"):
        kdiff(Case(FOLDER / "kdiff_heun"), "euler")
    assert math.isfinite(float(Case(FOLDER / "kdiff_heun").io["out"].sum()))
