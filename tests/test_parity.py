"""Published implementations, number by number: one test for every stored case.

POINTILLIST_PARITY names the folder of cases (default: shared/parity beside the project). A case is
built from its config.json alone. Cases of what is built (`ACCOUNTED`) are matched (`REQUIRED`) or
left out for a reason (`LEFT_OUT`). Elsewhere an unknown family, or an option of a known one that is
not built, is skipped as "not built yet", with the reason.
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
from tests import (
    parity_diffit,
    parity_losses,
    parity_metrics,
    parity_perceiver_io,
    parity_pixeldit,
    parity_pixelhdm,
    parity_pixnerd,
    parity_samplers,
    parity_scan,
    parity_sfc,
    parity_text,
)  # fmt: skip
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


FAMILIES: dict[tuple[str, str], Callable[[Case], None]] = {
    ("facebookresearch/DiT", "DiT"): dit_forward,
    ("willisma/SiT", "SiT"): dit_forward,
    ("willisma/SiT", "Transport.training_losses"): sit_loss,
    ("LTH14/JiT", "JiT"): jit_forward,
    ("LTH14/JiT", "Denoiser"): jit_loss,
    ("LTH14/JiT", "Denoiser.generate"): jit_sampler,
    ("End2End-Diffusion/iREPA", "JiT (with projection heads)"): irepa_forward,
    ("gcy-hub/PixelDiT", "PixDiT"): parity_pixeldit.c2i,
    ("gcy-hub/PixelDiT", "PixDiT_T2I"): parity_text.pixeldit,
    ("gcy-hub/PixelDiT", "FlowDPMSolverSampler"): parity_pixeldit.sampler,
    ("yashbelhe/jitmask", "JiT"): parity_pixeldit.jitmask,
    ("yashbelhe/jitmask", "Denoiser"): parity_losses.jitmask_loss,
    ("toshas/torch-fidelity", "*_features_to_metric"): parity_metrics.features,
    ("GaParmar/clean-fid", "frechet_distance, kernel_distance"): parity_metrics.clean,
    ("scikit-image/scikit-image", "peak_signal_noise_ratio, structural_similarity"):
        parity_metrics.pictures,
    ("End2End-Diffusion/iREPA",
     "ProjectionLayer(conv) + SpatialNormalization(zscore) + CosineProjectionLoss"):
        parity_losses.conv,
    ("sihyun-yu/REPA", "SILoss"): parity_losses.repa,
    **{
        ("sihyun-yu/REPA", f"{name}_sampler"):
            functools.partial(parity_losses.repa_sampler, stochastic=stochastic)
        for name, stochastic in (("euler", False), ("euler_maruyama", True))
    },
    ("gcy-hub/PixelDiT", "REPATrainer"): parity_losses.pixeldit_repa,
    ("yetrtyog-creator/PixelHDM", "FrequencyLoss"): parity_losses.frequencies,
    ("yetrtyog-creator/PixelHDM", "REPALoss"): parity_losses.pixelhdm,
    ("yetrtyog-creator/PixelHDM", "CombinedLoss"): parity_losses.combined,
    ("richzhang/PerceptualSimilarity", "LPIPS"): parity_losses.lpips,
    ("colpark/NFDiffusion", "PerceiverIO"): parity_perceiver_io.perceiver_io,
    **parity_diffit.FAMILIES,
    **parity_pixelhdm.FAMILIES,
    **parity_pixnerd.FAMILIES,
    **parity_samplers.FAMILIES,
    **parity_scan.FAMILIES,
    **parity_sfc.FAMILIES,
}  # fmt: skip


ACCOUNTED = ("pixeldit_t2i", "diffit_", "pixelhdm_", "pixnerd_", "pixnerdit_", "sfc_", "asf_",
             "mamba", "kdiff_", "sched_ddim", "sched_ddpm", "sched_dpmpp2m")  # fmt: skip
REQUIRED = {
    "diffit_tmsa", "diffit_latent", "diffit_latent_nosigma",
    "diffit_image_tmsa", "diffit_image_unet",
    "pixelhdm_text", "pixelhdm_text_aux_chw", "pixelhdm_text_nomask", "pixelhdm_image_only",
    "pixelhdm_gqa_gated_headwise", "pixelhdm_gqa_gated_elementwise", "pixelhdm_token_compaction",
    "pixelhdm_freq_loss", "pixelhdm_freq_loss_pad_q30", "pixelhdm_freq_loss_rgb",
    "pixelhdm_irepa_loss", "pixelhdm_combined_loss",
    "pixelhdm_sampler_euler", "pixelhdm_sampler_heun",
    "pixnerd_c2i_square", "pixnerd_c2i_rect",
    "pixnerd_loss_lognorm", "pixnerd_loss_uniform_shift", "pixnerd_loss_repa",
    "pixnerd_sampler_euler", "pixnerd_sampler_adam2", "pixnerd_sampler_sde",
    "pixnerd_t2i", "pixnerd_t2i_rect", "pixnerd_t2i_heavydecoder",
    "pixnerd_t2i_heavydecoder_scale2", "pixeldit_t2i", "pixeldit_t2i_pixattn_norope",
    "pixnerdit_grid", "pixnerdit_grid_hints", "pixnerdit_grid_decoderscale2",
    "pixnerdit_sfc_baseline", "pixnerdit_sfc_unified", "pixnerdit_sfc_spatial",
    "pixnerdit_sfc_both", "pixnerdit_sfc_dense", "pixnerdit_sfc_decoderscale2",
    "pixnerdit_sfc_superres2", "pixnerdit_loss_hints", "pixnerdit_sampler_hints",
    "sfc_curve_orders",
    "sfc_tokenizer_hilbert", "sfc_tokenizer_zorder", "sfc_tokenizer_dense_unified",
    "sfc_tokenizer_fixed_tokenmlp", "sfc_tokenizer_empty",
    "sfc_cross_plain", "sfc_cross_spatial", "sfc_cross_spatial_nocoords",
    "asf_perceiver_io",
    "mamba_selective_scan", "mamba_selective_scan_constBC", "mamba_selective_scan_groups",
    "mamba1_block", "mamba1_block_bias", "mamba2_ssd_minimal", "mamba2_ssd_minimal_init",
    "kdiff_euler", "kdiff_heun", "kdiff_lms", "kdiff_dpmpp_2m", "kdiff_dpmpp_2s_eta0",
    "kdiff_dpmpp_2m_sde", "kdiff_dpmpp_2s_ancestral", "kdiff_euler_ancestral", "kdiff_heun_churn",
    "kdiff_sigma_schedules",
    "sched_ddim", "sched_ddim_eta_v_trailing", "sched_ddpm", "sched_ddpm_large_sample",
    "sched_dpmpp2m_eps", "sched_dpmpp2m_sde",
}  # fmt: skip
PERCEIVER = ("the published perceiver mode fails on a keyword, and takes noisy pixels for observed "
             "ones where there is no mask; the perceiver here is another")  # fmt: skip
GLOBAL = ("its local attention is a mean of the neighbours, then attention among all queries; the "
          "one here is local")  # fmt: skip
FIXED = ("its state space has a fixed step and no input that selects, and takes time and memory "
         "quadratic in the points; the one here is Mamba's")  # fmt: skip
LEFT_OUT = {
    "diffit_v2_latent": "another network under the name: rotations and normed q and k in the place "
                        "of the bias by offsets and of places, RMSNorm, SwiGLU",
    "asf_local_implicit": GLOBAL,
    "asf_local_implicit_empty_neighbourhood": GLOBAL,
    **dict.fromkeys(
        ("asf_mamba_notebook", "asf_mamba_v1", "asf_mamba_v2_bidirectional",
         "asf_mamba_v3_morton_grid", "asf_mamba_v3_sparse", "asf_ssm_block_fast",
         "asf_ssm_block_loop"), FIXED),
    "asf_transformer_v4": "attention of everything to everything, which no model on sets here has",
    "asf_sampler_heun": "recorded around a network that is left out",
    "asf_sampler_ddim": "it adds noise that no drift takes away (tests/test_published_faults.py)",
    "asf_sampler_sde": "it adds noise that no drift takes away (tests/test_published_faults.py)",
    "pixelhdm_sampler_dpm_pp": "it multiplies the predicted picture by the noise's coefficient, "
                               "and diverges",
    "pixnerd_sampler_heun": "its Heun takes the slope at the end of one step for that at the begin "
                            "of the next, one evaluation a step",
    "pixnerdit_perceiver": PERCEIVER,
    "pixnerdit_perceiver_patches": PERCEIVER,
}  # fmt: skip


def match(name: str) -> None:
    """NotBuilt where nothing here answers to the case, AssertionError where it is off."""
    case = Case(FOLDER / name)
    source = case.config.get("repo", "an unnamed repository").split(" ")[0]
    kind = case.config.get("model_class", "an unnamed class")
    check = FAMILIES.get((source, kind))
    if check is None:
        raise NotBuilt(f"{kind} of {source}")
    check(case)


@pytest.mark.parametrize("name", CASES or [pytest.param("", marks=NONE)])
def test_parity(name: str) -> None:
    try:
        match(name)
    except NotBuilt as missing:
        if name in LEFT_OUT:
            pytest.skip(f"left out: {LEFT_OUT[name]}")
        if name.startswith(ACCOUNTED):
            pytest.fail(f"not built, and not in LEFT_OUT: {missing}", pytrace=False)
        pytest.skip(f"not built yet: {missing}")
    except AssertionError as error:
        pytest.fail(f"not matched: {error}", pytrace=False)


@pytest.mark.skipif(not CASES, reason=NONE.kwargs["reason"])
def test_every_case_of_what_is_built_is_required_or_left_out() -> None:
    assert not REQUIRED & set(LEFT_OUT)
    assert {name for name in CASES if name.startswith(ACCOUNTED)} == REQUIRED | set(LEFT_OUT)


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_what_is_left_out_is_not_built(name: str) -> None:
    if name not in CASES:
        pytest.skip(f"no parity case {name} in {FOLDER}")
    with pytest.raises(NotBuilt):
        match(name)


def test_a_required_case_that_is_not_built_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    if "sfc_curve_orders" not in CASES:
        pytest.skip(f"no parity case sfc_curve_orders in {FOLDER}")
    monkeypatch.delitem(FAMILIES, (parity_sfc.REPO, "_precompute_sfc_order_and_coords"))
    with pytest.raises(pytest.fail.Exception, match="not in LEFT_OUT"):
        test_parity("sfc_curve_orders")


def test_the_criterion_can_fail() -> None:
    """A sampler of the wrong order does not pass for the right one."""
    if "kdiff_heun" not in CASES:
        pytest.skip(f"no parity case kdiff_heun in {FOLDER}")
    with pytest.raises(AssertionError, match="off by"):
        parity_samplers.exploding(Case(FOLDER / "kdiff_heun"), "euler")
    assert math.isfinite(float(Case(FOLDER / "kdiff_heun").io["out"].sum()))
