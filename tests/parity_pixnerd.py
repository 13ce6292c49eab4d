"""PixNerd, and PixNerDiT, its fork with hints and a decoder for larger pictures."""

import functools
from typing import Any

import torch

from pointillist import samplers
from pointillist.encoders import CurveConfig, GridConfig, NoEncoderConfig
from pointillist.encoders.curve import encoder_from_published
from pointillist.guidance import GuidanceConfig, classifier_free, network_field
from pointillist.losses import LossConfig, criterion
from pointillist.losses.align import AlignConfig
from pointillist.models import Network, PixNerdConfig, pixnerd
from pointillist.models.pixnerd import enlarged
from pointillist.objective import LogitNormal, StraightConfig, Uniform, shift_times
from pointillist.types import Given, InputError, Spec, grid_axes
from tests import parity_text
from tests.parity_case import (
    Case,
    Fixed,
    NotBuilt,
    forward,
    known,
    make,
    match_answer,
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
        coordinates="corner", jitter=0.0,
    )  # fmt: skip
    return make(config, spec_of(c, size), pixnerd.from_published(case.weights))


def c2i(case: Case) -> None:
    if "txt_embed_dim" in case.constructor:
        parity_text.pixnerd(case)
        return
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


def times_of(options: dict[str, Any]) -> torch.Tensor:
    steps, last = options["num_steps"], options.get("last_step", 1 / options["num_steps"])
    even = torch.cat((torch.linspace(0, 1 - last, steps).double(), torch.ones(1)))
    return shift_times(even, options["timeshift"])


def guidance_of(options: dict[str, Any]) -> GuidanceConfig:
    """A low end of 0 leaves the noise itself out there."""
    low, high = (options.get(f"guidance_interval_{end}", i) for end, i in (("min", 0), ("max", 1)))
    return GuidanceConfig(scale=options["guidance"], interval=(max(low, 1e-6), float(high)))


def heun(case: Case) -> None:
    raise NotBuilt("its Heun takes the slope at the end of one step for that at the begin of the "
                   "next, one evaluation a step")  # fmt: skip


def sampler(case: Case, name: str = "euler") -> None:
    io, options = case.io, case.constructor["sampler"]
    size = tuple(io["in.noise"].shape[2:])
    known(options, "num_steps", "guidance", "guidance_interval_min", "guidance_interval_max",
          "timeshift", "order", "step_fn", "w_scheduler", "last_step", "last_step_fn")  # fmt: skip
    plain(options, order=2, w_scheduler="LinearScheduler", last_step_fn="ode_step_fn")
    model = make_c2i(case, case.constructor["model"], size)
    times = times_of(options)
    case.match("timesteps", times.float(), 1e-6)
    network, objective = Network(model), StraightConfig(predict="velocity")
    halves = [
        network_field(network, objective, Given(label=unlabel(io[f"in.{part}"], model)), size)
        for part in ("cond", "uncond")
    ]
    guided = classifier_free(halves[0], halves[1], guidance_of(options))
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
        position_span=float(size[0] // c["patch_size"]), encoder=encoder, jitter=0.0,
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


def curve_from_published(state: Weights, config: CurveConfig) -> Weights:
    """The curve encoder's weights; a model with a shared code keeps one that it does not use, and
    one that is shown no mask has no use for its density, and the bias may be switched off.
    """
    unused = ("query.",) * config.unified_coords + ("density.",) * (not config.density)
    encoder = {f"encoder.{n}": w for n, w in encoder_from_published(state).items()
               if not n.startswith(unused)
               and not (n.endswith(".bias.scale") and not config.spatial_bias)}  # fmt: skip
    return pixnerd.from_published(state) | encoder


def curve_of(options: dict[str, Any], density: bool) -> CurveConfig:
    c = PIXNERDIT | options
    return CurveConfig(
        curve=c["sfc_curve"], group_size=c["sfc_group_size"], self_depth=c["sfc_self_depth"],
        cross_depth=c["sfc_cross_depth"], unified_coords=c["sfc_unified_coords"],
        spatial_bias=c["sfc_spatial_bias"], bands=16, coordinates="corner", noisy_patches=False,
        null_token=False, time_tokens=True, valid_flag=False, density=density,
    )  # fmt: skip


def encoder_of(case: Case, options: dict[str, Any], masked: bool) -> tuple[Any, Any]:
    """The encoder of a case, and how its whole model is renamed."""
    mode = options["encoder_type"]
    if mode == "perceiver":
        raise NotBuilt("encoder_type = perceiver: the published one fails on a keyword, and the "
                       "perceiver here is another")  # fmt: skip
    if mode == "sfc":
        curve = curve_of(options, density=masked)
        rename = functools.partial(curve_from_published, config=curve)
        try:
            rename(case.weights)
        except InputError as error:
            raise NotBuilt(str(error)) from None
        return curve, rename
    # Without a mask nothing of it is added, not even its layer's bias.
    return (GridConfig(), grid_from_published) if masked else (
        NoEncoderConfig(), pixnerd.from_published)  # fmt: skip


def pixnerdit(case: Case) -> None:
    attributes = case.config.get("attributes_set_after_construction") or {}
    io, options = case.io, dict(case.constructor)
    if (case.config.get("forward_kwargs") or {}).get("disable_spatial_bias"):
        options["sfc_spatial_bias"] = False
    r = int(attributes.get("decoder_patch_scaling_h", 1))
    x, mask = io["in.x"].requires_grad_(), io.get("in.cond_mask")
    small = tuple(n // r for n in x.shape[2:])
    encoder, rename = encoder_of(case, options, mask is not None)
    curved = options["encoder_type"] == "sfc"
    # Scaled, the grid form resizes its input bilinearly, which by two is a box mean, and its mask
    # by the first of every r cells; the curve's takes the first of both. All at one time.
    coarse = x[..., ::r, ::r] if curved else torch.nn.functional.avg_pool2d(x, r)
    given = Given()
    if mask is not None or curved:
        every = torch.ones_like(x[:, :1]) if mask is None else mask
        given = Given(seen=coarse, mask=every[..., ::r, ::r].bool())
    model = make_pixnerdit(options, small, encoder, rename(case.weights))
    given = given._replace(label=unlabel(io["in.y"], model))
    t = io["in.t"]
    # To enlarge a picture, its noisy state is resized bilinearly, and the field asked there.
    finer = enlarged(x, tuple(case.io["out"].shape[2:]))
    match_answer(case, model, rename, Network(model).render(finer, t, coarse, t, given).value)


def loss_hints(case: Case) -> None:
    """Its mean is over all pixels, known ones too; known values are written into the state."""
    io, options = case.io, case.constructor["model"]
    encoder, rename = encoder_of(case, options, masked=True)
    x, mask = io["in.x"], io["in.cond_mask"].bool()
    model = make_pixnerdit(options, tuple(x.shape[2:]), encoder, rename(case.weights))
    objective, t = drawn(case, case.constructor["trainer"])
    xt = torch.where(mask, x, objective.mix(x, io["noise"], t))
    given = Given(seen=x, mask=mask, label=unlabel(io["in.y"], model))
    answer = Network(model)(xt, t, given).value
    # The pair is that of the state before; a velocity that is predicted is itself whatever it was.
    errors = criterion(LossConfig(velocity=1.0), *pair_of(objective, answer, io, t))[0]
    found = errors.mean()
    case.match("out.loss", found, 1e-5 * (1 + float(io["out.loss"])))
    found.backward()
    match_gradients(case, model, rename)


def sampler_hints(case: Case) -> None:
    """Known values are written into the state before and after every step, clean.

    Here they stay on their own path (`guidance.pinned`), so the steps are taken one by one.
    """
    io, c = case.io, case.constructor
    encoder, rename = encoder_of(case, c["model"], masked=True)
    x, mask, clean = io["in.noise"], io["in.cond_mask"].bool(), io["in.x_cond"]
    size = tuple(x.shape[2:])
    model = make_pixnerdit(c["model"], size, encoder, rename(case.weights))
    network, objective = Network(model), StraightConfig(predict="velocity")
    halves = [
        network_field(
            network, objective,
            Given(label=unlabel(io[f"in.{part}"], model), seen=clean, mask=mask), size,
        )
        for part in ("cond", "uncond")
    ]  # fmt: skip
    guided = classifier_free(halves[0], halves[1], guidance_of(c["sampler"]))
    times = times_of(c["sampler"])
    case.match("timesteps", times.float(), 1e-6)
    seen = [x]
    with torch.no_grad():
        for i in range(len(times) - 1):
            shown = torch.where(mask, clean, x)
            v = guided(shown, times[i])
            x = torch.where(mask, clean, x + (times[i + 1] - times[i]) * v)
            seen.append(x)
    case.match("x_traj", torch.stack(seen), 1e-4 * float(io["x_traj"].abs().max()))


FAMILIES = {
    ("MCG-NJU/PixNerd", "PixNerDiT"): c2i,
    ("MCG-NJU/PixNerd", "FlowMatchingTrainer"): loss,
    ("MCG-NJU/PixNerd", "REPATrainer"): repa,
    ("MCG-NJU/PixNerd", "EulerSampler"): sampler,
    ("MCG-NJU/PixNerd", "AdamLMSampler"): functools.partial(sampler, name="ab2"),
    ("MCG-NJU/PixNerd", "HeunSampler"): heun,
    ("colpark/kevinhelp1", "PixNerDiT"): pixnerdit,
    ("colpark/kevinhelp1", "FlowMatchingTrainer"): loss_hints,
    ("colpark/kevinhelp1", "EulerSampler"): sampler_hints,
}
