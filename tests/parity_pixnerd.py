"""PixNerd, and PixNerDiT, its fork with hints and a decoder for larger pictures."""

import functools
from typing import Any

import torch

from pointillist import samplers
from pointillist.encoders import GridConfig, NoEncoderConfig
from pointillist.guidance import GuidanceConfig, classifier_free, network_field
from pointillist.losses import LossConfig, criterion
from pointillist.losses.align import AlignConfig
from pointillist.models import Network, PixNerdConfig, pixnerd
from pointillist.objective import LogitNormal, StraightConfig, Uniform, shift_times
from pointillist.types import Given, Spec, grid_axes
from tests.parity_case import (
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

Weights = dict[str, torch.Tensor]

C2I = {"in_channels": 4, "num_groups": 12, "hidden_size": 1152, "hidden_size_x": 64,
       "nerf_mlpratio": 4, "num_blocks": 18, "num_cond_blocks": 4, "patch_size": 2,
       "num_classes": 1000}  # fmt: skip


def spec_of(c: dict[str, Any], size: tuple[int, ...]) -> Spec:
    classes = tuple(str(i) for i in range(c["num_classes"]))
    return Spec(channels=c["in_channels"], axes=grid_axes(size), classes=classes)


def make_c2i(case: Case, options: dict[str, Any], size: tuple[int, ...]) -> torch.nn.Module:
    known(options, *C2I)
    c = C2I | options
    config = PixNerdConfig(
        width=c["hidden_size"], depth=c["num_cond_blocks"], heads=c["num_groups"],
        patch_size=c["patch_size"], decoder_width=c["hidden_size_x"],
        decoder_depth=c["num_blocks"] - c["num_cond_blocks"], decoder_ratio=c["nerf_mlpratio"],
        coordinates="corner", jitter=False,
    )  # fmt: skip
    return make(config, spec_of(c, size), pixnerd.from_published(case.weights))


def c2i(case: Case) -> None:
    if "num_classes" not in case.constructor:
        raise NotBuilt("a model of texts")
    size = tuple(case.io["in.x"].shape[2:])
    forward(case, make_c2i(case, case.constructor, size), pixnerd.from_published)


# Training.


def drawn(case: Case, trainer: dict[str, Any]) -> tuple[StraightConfig, torch.Tensor]:
    """The objective of a trainer, and the times of its stored draw."""
    times = LogitNormal() if trainer["lognorm_t"] else Uniform()
    objective = StraightConfig(time=times, shift=trainer["timeshift"])
    draw = Fixed(0, torch.arange(len(case.io["t_draw"])))
    draw.draws = {"time": case.io["t_draw"]}
    t = objective.times(draw)
    case.match("t", t, 1e-6)
    return objective, t


def pair_of(objective: StraightConfig, answer: torch.Tensor, io: Any, t: torch.Tensor) -> Any:
    xt = objective.mix(io["in.x"], io["noise"], t)
    return objective.read(answer, xt, t), objective.target(io["in.x"], io["noise"], xt, t)


def loss(case: Case) -> None:
    io, trainer = case.io, case.constructor["trainer"]
    if "encoder_type" in case.constructor["model"]:
        return loss_hints(case)
    known(trainer, "lognorm_t", "timeshift")
    model = make_c2i(case, case.constructor["model"], tuple(io["in.x"].shape[2:]))
    objective, t = drawn(case, trainer)
    xt = objective.mix(io["in.x"], io["noise"], t)
    answer = Network(model)(xt, t, Given(label=unlabel(io["in.y"], model))).value
    found = criterion(LossConfig(velocity=1.0), *pair_of(objective, answer, io, t))[0].mean()
    case.match("out.loss", found, 1e-5 * (1 + float(io["out.loss"])))
    found.backward()
    match_gradients(case, model, pixnerd.from_published)


def repa(case: Case) -> None:
    """Published as v-loss + weight (1 - cos), with the teacher's tokens as stored."""
    from tests.parity_losses import Stored, alignment, part, square

    io, trainer = case.io, case.constructor["trainer"]
    known(trainer, "lognorm_t", "timeshift", "align_layer", "proj_denoiser_dim",
          "proj_hidden_dim", "proj_encoder_dim", "feat_loss_weight")  # fmt: skip
    every = dict(case.weights)
    case.__dict__["weights"] = {n: w for n, w in every.items() if not n.startswith("trainer.")}
    model = make_c2i(case, case.constructor["model"], tuple(io["in.x"].shape[2:]))
    objective, t = drawn(case, trainer)
    config = AlignConfig(
        weight=trainer["feat_loss_weight"], block=trainer["align_layer"], projector="mlp",
        hidden=trainer["proj_hidden_dim"], normalise=0.0,
    )  # fmt: skip
    teacher = Stored(io["in.encoder_features"], square(io["in.encoder_features"]))
    made = alignment(config, trainer["proj_denoiser_dim"], teacher, part(every, "trainer.proj.0."))
    xt = objective.mix(io["in.x"], io["noise"], t)
    given = Given(label=unlabel(io["in.y"], model))
    answer = Network(model)(xt, t, given, taps=made.taps)
    flow = criterion(LossConfig(velocity=1.0), *pair_of(objective, answer.value, io, t))[0].mean()
    apart = made(answer.hidden[0], io["in.x"]).mean()
    case.match("out.fm_loss", flow, 1e-5 * (1 + float(io["out.fm_loss"])))
    case.match("out.cos_loss", apart, 1e-5)
    total = flow + trainer["feat_loss_weight"] * apart
    case.match("out.loss", total, 1e-5 * (1 + float(io["out.loss"])))
    total.backward()
    match_gradients(case, model, pixnerd.from_published)


# Sampling.

ENDS = ("min", "max")


def heun(case: Case) -> None:
    raise NotBuilt("its Heun takes the slope at the end of one step for that at the begin of the "
                   "next, one evaluation a step")  # fmt: skip


def sampler(case: Case, name: str = "euler") -> None:
    io, options = case.io, case.constructor["sampler"]
    size = tuple(io["in.noise"].shape[2:])
    if "encoder_type" in case.constructor["model"]:
        raise NotBuilt("known pixels are written into the state after each step; here they stay on "
                       "their own path")  # fmt: skip
    known(options, "num_steps", "guidance", "guidance_interval_min", "guidance_interval_max",
          "timeshift", "order", "step_fn", "w_scheduler", "last_step", "last_step_fn")  # fmt: skip
    plain(options, order=2, w_scheduler="LinearScheduler", last_step_fn="ode_step_fn")
    model = make_c2i(case, case.constructor["model"], size)
    steps, last = options["num_steps"], options.get("last_step", 1 / options["num_steps"])
    even = torch.cat((torch.linspace(0, 1 - last, steps).double(), torch.ones(1)))
    times = shift_times(even, options["timeshift"])
    case.match("timesteps", times.float(), 1e-6)
    network, objective = Network(model), StraightConfig(predict="velocity")
    halves = [
        network_field(network, objective, Given(label=unlabel(io[f"in.{part}"], model)), size)
        for part in ("cond", "uncond")
    ]
    low, high = (options.get(f"guidance_interval_{end}", float(i)) for i, end in enumerate(ENDS))
    interval = (max(low, 1e-6), high)  # a low end of 0 leaves the noise itself out there
    guidance = GuidanceConfig(scale=options["guidance"], interval=interval)
    guided = classifier_free(halves[0], halves[1], guidance)
    seen: list[torch.Tensor] = []

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return guided(x, t)

    if options.get("step_fn") == "sde_step_fn":  # w is sigma there, which it always is here
        name = "euler_maruyama"
    with torch.no_grad():
        out = samplers.SAMPLERS[name](
            field, io["in.noise"], times, noise=lambda i: io["step_noise"][i]
        )
    case.match("x_traj", torch.stack([*seen, out]), 2e-5 * float(io["x_traj"].abs().max()))


# PixNerDiT.

PIXNERDIT = {"in_channels": 3, "num_groups": 12, "hidden_size": 768, "decoder_hidden_size": 64,
             "num_encoder_blocks": 12, "num_decoder_blocks": 2, "patch_size": 2, "num_classes": 10,
             "encoder_type": "grid", "perceiver_num_latents": 256, "perceiver_cross_heads": 1,
             "perceiver_depth": 2, "include_patch_tokens_in_perceiver": False,
             "sfc_curve": "hilbert", "sfc_group_size": 8, "sfc_cross_depth": 2, "sfc_self_depth": 2,
             "sfc_unified_coords": False, "sfc_spatial_bias": False}  # fmt: skip


def make_pixnerdit(
    options: dict[str, Any], size: tuple[int, ...], encoder: Any, weights: Weights
) -> torch.nn.Module:
    """For pictures whose patches see `size`; their rotary places run from 0 to their number."""
    known(options, *PIXNERDIT)
    c = PIXNERDIT | options
    config = PixNerdConfig(
        width=c["hidden_size"], depth=c["num_encoder_blocks"], heads=c["num_groups"],
        patch_size=c["patch_size"], mlp_ratio=6.0, decoder_width=c["decoder_hidden_size"],
        decoder_depth=c["num_decoder_blocks"], decoder_ratio=2, coordinates="corner",
        code="rotary", weight_norm="first", final_norm=False,
        position_span=float(size[0] // c["patch_size"]), encoder=encoder, jitter=False,
    )  # fmt: skip
    return make(config, spec_of(c, size), weights)


def grid_from_published(state: Weights) -> Weights:
    """The grid encoder's weights, for patches in which known values are part of the state.

    Published as a layer on the share of known pixels: a weight of w/p^2 for each of the mask.
    """
    named = pixnerd.from_published(state)
    density, patch = state["patch_hint_proj.weight"], named["patch.weight"]
    cells = patch.shape[1] // named["field.head.weight"].shape[0]
    named["encoder.hint.linear.weight"] = torch.cat(
        (torch.zeros_like(patch), (density / cells).expand(-1, cells)), 1
    )
    named["patch.bias"] = named["patch.bias"] + state["patch_hint_proj.bias"]
    return named


def pixnerdit(case: Case) -> None:
    kwargs, attributes = (
        case.config.get(name) or {}
        for name in ("forward_kwargs", "attributes_set_after_construction")
    )
    io, options = case.io, case.constructor
    if kwargs.get("superres_scale", 1.0) != 1.0:
        raise NotBuilt(f"superres_scale = {kwargs['superres_scale']}: the decoder is shown a noisy "
                       f"state resized bilinearly")  # fmt: skip
    r = int(attributes.get("decoder_patch_scaling_h", 1))
    x = io["in.x"].requires_grad_()
    small = tuple(n // r for n in x.shape[2:])
    mask = io.get("in.cond_mask")
    mode = options["encoder_type"]
    if mode != "grid":
        raise NotBuilt(f"encoder_type = {mode}")
    # Scaled, the grid form resizes its input bilinearly: by two, the mean of two by two cells.
    coarse = torch.nn.functional.avg_pool2d(x, r)
    encoder, rename = NoEncoderConfig(), pixnerd.from_published
    given = Given()
    if mask is not None:
        # It resizes the mask by "nearest": the first of every r cells.
        encoder, rename = GridConfig(), grid_from_published
        given = Given(seen=coarse.detach(), mask=mask[..., ::r, ::r].bool())
    model = make_pixnerdit(options, small, encoder, rename(case.weights))
    given = given._replace(label=unlabel(io["in.y"], model))
    t = io["in.t"]
    value = Network(model).render(x, t, coarse, t, given).value
    case.match("out", value)
    (value * io["cotangent"]).sum().backward()
    case.match("grad.in.x", x.grad)
    match_gradients(case, model, rename)


def loss_hints(case: Case) -> None:
    """Its mean is over all pixels, known ones too."""
    raise NotBuilt(f"encoder_type = {case.constructor['model']['encoder_type']}")


FAMILIES = {
    ("MCG-NJU/PixNerd", "PixNerDiT"): c2i,
    ("MCG-NJU/PixNerd", "FlowMatchingTrainer"): loss,
    ("MCG-NJU/PixNerd", "REPATrainer"): repa,
    ("MCG-NJU/PixNerd", "EulerSampler"): sampler,
    ("MCG-NJU/PixNerd", "AdamLMSampler"): functools.partial(sampler, name="ab2"),
    ("MCG-NJU/PixNerd", "HeunSampler"): heun,
    ("colpark/kevinhelp1", "PixNerDiT"): pixnerdit,
    ("colpark/kevinhelp1", "FlowMatchingTrainer"): loss,
    ("colpark/kevinhelp1", "EulerSampler"): sampler,
}
