"""Losses: alignment with a teacher (REPA, iREPA and those who took it over), frequency, LPIPS."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from pointillist import samplers
from pointillist.frozen.alexnet import LPIPS, lpips_distance
from pointillist.losses import LossConfig, criterion
from pointillist.losses.align import AlignConfig, Alignment, normalised
from pointillist.losses.frequency import FrequencyConfig, dct_matrix, frequency, jpeg_weights
from pointillist.losses.gain import GainConfig
from pointillist.models import DiTConfig, Network, dit, pixeldit
from pointillist.objective import LogitNormal, StraightConfig
from pointillist.tasks import HintsConfig
from pointillist.types import Batch, Estimate, Given, Spec, grid_axes
from tests.parity_case import (
    FOLDER,
    Case,
    Fixed,
    NotBuilt,
    known,
    make,
    match_gradients,
    plain,
    unlabel,
)  # fmt: skip
from tests.parity_pixeldit import make_c2i, make_jitmask

NOTHING = torch.zeros(2, 3, 8, 8)  # a picture that no stored teacher looks at


frequency_module = sys.modules["pointillist.losses.frequency"]  # losses.frequency is a function


class Stored:
    """A teacher that answers what is stored, on its own grid."""

    patch, digest = 1, "stored"

    def __init__(self, tokens: torch.Tensor, grid: tuple[int, int]) -> None:
        self.width, self.map = tokens.shape[2], on_grid(tokens, grid)

    def __call__(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.map


def on_grid(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return tokens.mT.unflatten(2, grid)


def tokens_of(found: torch.Tensor) -> torch.Tensor:
    return found.flatten(2).mT


def square(tokens: torch.Tensor) -> tuple[int, int]:
    edge = round(tokens.shape[1] ** 0.5)
    return edge, edge


def alignment(config: AlignConfig, width: int, teacher: Stored, weights: Any) -> Alignment:
    """With a published projector; a linear one is a convolution of one cell."""
    made = Alignment(config, width, teacher.width).look_up_to(teacher)
    ours = dict(made.projector.named_parameters())
    assert ours.keys() == weights.keys()
    with torch.no_grad():
        for name, p in ours.items():
            p.copy_(weights[name].reshape(p.shape))
    return made


def part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def conv(case: Case) -> None:
    c, io = case.constructor, case.io
    known(c, "hidden_size", "z_dim", "kernel_size", "zscore_alpha", "hw")
    grid = tuple(c["hw"]) if c["hw"] else square(io["in.x"])
    config = AlignConfig(weight=1.0, kernel=c["kernel_size"], normalise=c["zscore_alpha"])
    teacher = Stored(io["in.teacher"], grid)
    made = alignment(config, c["hidden_size"], teacher, part(case.weights, "projection_layer."))
    x = io["in.x"].requires_grad_()
    hidden = on_grid(x, grid)
    case.match("teacher_normalised", tokens_of(normalised(teacher.map, config.normalise)))
    case.match("projected", tokens_of(made.projector(hidden)))
    # Published as -cos.
    loss = made(hidden, NOTHING).mean() - 1
    case.match("out.loss", loss)
    loss.backward()
    case.match("grad.in.x", x.grad)
    case.match("grad.weight", made.projector.weight.grad)


def pixelhdm(case: Case) -> None:
    c, io = case.constructor, case.io
    known(c, "hidden_dim", "dino_dim", "lambda_repa", "repa_patch_size")
    grid = tuple(n // c["repa_patch_size"] for n in io["in.x_clean"].shape[1:3])
    teacher = Stored(io["in.dino_features"], grid)
    weights = part(case.weights, "projector.")
    made = alignment(AlignConfig(weight=1.0), c["hidden_dim"], teacher, weights)
    h = io["in.h_t"].requires_grad_()
    case.match("spatial_normalised", tokens_of(normalised(teacher.map, 1.0)))
    loss = c["lambda_repa"] * made(on_grid(h, grid), NOTHING).mean()
    case.match("out.loss", loss)
    loss.backward()
    case.match("grad.in.h_t", h.grad)
    case.match("grad.projector.weight", made.projector.weight.grad)


# A whole training step.


def velocity_pair(answer: torch.Tensor, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> Any:
    objective = StraightConfig()
    xt = objective.mix(x, eps, t)
    return objective.read(answer, xt, t), objective.target(x, eps, xt, t)


def pixeldit_repa(case: Case) -> None:
    io, trainer = case.io, case.constructor["trainer"]
    known(trainer, "lognorm_t", "timeshift", "align_layer", "proj_denoiser_dim",
          "proj_hidden_dim", "proj_encoder_dim", "feat_loss_weight")  # fmt: skip
    plain(trainer, lognorm_t=True)
    weights = {n: w for n, w in case.weights.items() if not n.startswith("trainer.")}
    stripped = Case(case.folder)
    stripped.__dict__["weights"] = weights
    x, eps = io["in.x"], io["noise"]
    model = make_c2i(stripped, case.constructor["model"], tuple(x.shape[2:]))
    objective = StraightConfig(time=LogitNormal(), shift=trainer["timeshift"])
    draw = Fixed(0, torch.arange(len(x)))
    draw.draws = {"time": io["t_draw"], "noise": eps}
    t = objective.times(draw)
    case.match("t", t, 1e-6)
    config = AlignConfig(
        weight=trainer["feat_loss_weight"], block=trainer["align_layer"], projector="mlp",
        hidden=trainer["proj_hidden_dim"], normalise=0.0,
    )  # fmt: skip
    teacher = Stored(io["in.encoder_features"], square(io["in.encoder_features"]))
    made = alignment(config, trainer["proj_denoiser_dim"], teacher,
                     {n.removeprefix("0."): w
                      for n, w in part(case.weights, "trainer.proj.").items()})  # fmt: skip
    xt = objective.mix(x, eps, t)
    given = Given(label=unlabel(io["in.y"], model))
    answer = Network(model)(*objective.see(xt, t), given, taps=made.taps)
    aligned = made(answer.hidden[0], x)
    guess, truth = objective.read(answer.value, xt, t), objective.target(x, eps, xt, t)
    loss, terms = criterion(LossConfig(align=config), guess, truth, aligned=aligned)
    case.match("out.fm_loss", terms["velocity"].mean(), 1e-5)
    case.match("out.cos_loss", terms["align"].mean(), 1e-5)
    case.match("out.loss", loss.mean(), 1e-5)
    loss.mean().backward()
    match_gradients(stripped, model, pixeldit.from_published)


def jitmask_loss(case: Case) -> None:
    """The hints' weight in the loss, and one linear layer as the projector."""
    args, io = case.constructor["args"], case.io
    options = case.constructor["model"] | {
        "input_size": args["img_size"], "num_classes": args["class_num"],
        "pixel_hidden_dim": args["pixel_hidden_dim"],
        "num_pixel_blocks": args["num_pixel_blocks"],
    }  # fmt: skip
    model = make_jitmask(case, options)
    objective = StraightConfig(time=LogitNormal(mean=args["P_mean"], std=args["P_std"]))
    draw = Fixed(0, torch.arange(len(io["draw.1.randn"])))
    draw.draws = {
        "label drop": io["draw.0.rand"], "time": io["draw.1.randn"],
        "noise": io["draw.2.randn_like"], "hints": io["draw.3.rand"],
        "hint share": torch.zeros(4), "hint drop": torch.ones(4),
    }  # fmt: skip
    task = HintsConfig(
        share=args["p_hint"], weight=args["hint_loss_weight"], label_drop=args["label_drop_prob"],
        absent=0.0,
    )  # fmt: skip
    batch, given = task(Batch(draw.index, io["in.x"], label=io["in.y"]), draw)
    t, eps = objective.times(draw), objective.noise(draw, tuple(batch.x.shape[1:]))
    xt = objective.mix(batch.x, eps, t)
    # It counts its blocks from 0.
    config = AlignConfig(
        weight=args["repa_coeff"], block=args["repa_depth"] + 1, kernel=1, normalise=0.0
    )
    feats = io["in.dino_feats"]
    made = alignment(config, options["hidden_size"], Stored(feats, square(feats)),
                     part(case.weights, "net.repa_projector."))  # fmt: skip
    answer = Network(model)(*objective.see(xt, t), given, taps=made.taps)
    aligned = made(answer.hidden[0], batch.x)
    guess, truth = objective.read(answer.value, xt, t), objective.target(batch.x, eps, xt, t)
    loss, _ = criterion(LossConfig(align=config), guess, truth, batch.weight, aligned=aligned)
    # Published as -cos.
    case.match("out.1", aligned.mean() - 1, 1e-5)
    case.match("out.0", loss.mean() - config.weight, 1e-5 * (1 + float(io["out.0"])))


SIT = ("path_type", "input_size", "patch_size", "in_channels", "hidden_size",
       "decoder_hidden_size", "encoder_depth", "depth", "num_heads", "mlp_ratio",
       "class_dropout_prob", "num_classes", "use_cfg", "z_dims", "projector_dim", "fused_attn",
       "qk_norm")  # fmt: skip


def make_repa(case: Case) -> tuple[Any, Case]:
    """SiT is DiT without sigma; beside it the case without what is no part of it, the projectors.

    One variant normalises q and k by a LayerNorm, which no model here has: it is put in.
    """
    c = case.constructor["model"]
    known(c, *SIT)
    config = DiTConfig(
        width=c["hidden_size"], depth=c["depth"], heads=c["num_heads"], patch_size=c["patch_size"],
        mlp_ratio=c["mlp_ratio"], time_scale=1.0,
    )  # fmt: skip
    weights = {n: w for n, w in case.weights.items() if not n.startswith("projectors.")}
    stripped = Case(case.folder)
    norms = {n: weights.pop(n) for n in list(weights) if "_norm." in n and ".attn." in n}
    stripped.__dict__["weights"] = weights
    spec = Spec(
        channels=c["in_channels"], axes=grid_axes((c["input_size"],) * 2),
        classes=tuple(str(i) for i in range(c["num_classes"])),
    )  # fmt: skip
    model = make(config, spec, dit.from_published(weights))
    if norms:
        for i, block in enumerate(model.blocks):
            for name in ("q_norm", "k_norm"):
                layer = nn.LayerNorm(c["hidden_size"] // c["num_heads"])
                prefix = f"blocks.{i}.attn.{name}."
                layer.load_state_dict(part(norms, prefix))
                setattr(block.attention, name, layer)
    return model, stripped


def repa_sampler(case: Case, stochastic: bool) -> None:
    """Its clock runs the other way, and its network is float32 in a walk of float64.

    Both parts of its Heun are guided or not as the beginning of the step is. Its last stochastic
    step goes along the drift without the noise that belongs to it; ours goes to the picture.
    """
    options, io = case.constructor["sampler"], case.io
    known(options, "num_steps", "heun", "cfg_scale", "guidance_low", "guidance_high")
    model, _ = make_repa(case)
    network, label = Network(model), unlabel(io["in.y"], model)
    low, high = options["guidance_low"], options["guidance_high"]
    seen: list[Tensor] = []
    began: list[float] = []  # the beginning of the step that each question belongs to
    heun = bool(options.get("heun"))

    def watch(i: int, t: float, x: Tensor, pair: Estimate | None) -> None:
        seen.append(x)

    def field(x: Tensor, t: Tensor) -> Tensor:
        theirs = 1 - float(t)
        began.append(began[-1] if heun and len(began) % 2 else theirs)
        times = torch.full((x.shape[0],), theirs)

        def answer(number: Tensor) -> Tensor:
            return -network(x.float(), times, Given(label=number)).value.double()

        found = answer(label)
        if low <= began[-1] <= high:
            free = answer(torch.full_like(label, -1))
            found = free + options["cfg_scale"] * (found - free)
        return found

    x = io["in.latents"].double()
    with torch.no_grad():
        if not stochastic:
            sampler = samplers.SAMPLERS["heun" if heun else "euler"]
            out = sampler(field, x, samplers.time_grid(options["num_steps"]), watch=watch)
            case.match("out", out, 2e-5 * float(io["out"].abs().max()))
            return
        times = torch.cat((torch.linspace(0, 0.96, options["num_steps"]).double(), torch.ones(1)))
        noise = io["step_noise"]
        out = samplers.euler_maruyama(field, x, times, noise=lambda i: noise[i], watch=watch)
        assert (out - io["out"]).abs().max() > 1e-3
        pair = StraightConfig().pair(field(seen[-1], times[-2]), seen[-1], times[-2])
    out = seen[-1] + (1 - times[-2]) * (pair.x - 2 * pair.eps)
    case.match("out", out, 2e-5 * float(io["out"].abs().max()))


def repa(case: Case) -> None:
    """Here t = 1 is the noise, and every teacher counts alike."""
    c, io = case.constructor["model"], case.io
    known(case.constructor["loss"], "prediction", "path_type", "weighting")
    plain(case.constructor["loss"], prediction="v")
    model, stripped = make_repa(case)
    network, made = Network(model), []
    for i in range(len(c["z_dims"])):
        align = AlignConfig(
            weight=0.5, block=c["encoder_depth"], projector="mlp", hidden=c["projector_dim"],
            normalise=0.0,
        )  # fmt: skip
        teacher = Stored(io[f"in.zs.{i}"], square(io[f"in.zs.{i}"]))
        made.append(alignment(align, c["hidden_size"], teacher,
                              part(case.weights, f"projectors.{i}.")))  # fmt: skip
    given = Given(label=unlabel(io["in.y"], model))
    answer = network(io["in.images"], io["fwd.t"], given, taps=made[0].taps)
    case.match("fwd.out", answer.value)
    for i, one in enumerate(made):
        case.match(f"fwd.z.{i}", tokens_of(one.projector(answer.hidden[0])))

    x, eps, draw = io["in.images"], io["noise"], io["t_draw"]
    if case.constructor["loss"]["weighting"] == "lognormal":
        draw = draw.exp() / (1 + draw.exp())
        if case.constructor["loss"]["path_type"] == "cosine":
            draw = 2 / torch.pi * torch.atan(io["t_draw"].exp())
    alpha, sigma, da, ds = 1 - draw, draw, -torch.ones_like(draw), torch.ones_like(draw)
    if case.constructor["loss"]["path_type"] == "cosine":
        turn = draw * torch.pi / 2
        alpha, sigma = turn.cos(), turn.sin()
        da, ds = -torch.pi / 2 * sigma, torch.pi / 2 * alpha
    answer = network(alpha * x + sigma * eps, draw.flatten(), given, taps=made[0].taps)
    # The criterion compares x - eps, whatever is called x and eps.
    pairs = Estimate(-answer.value, torch.zeros_like(x)), Estimate(-(da * x + ds * eps), 0 * x)
    aligned = torch.stack([one(answer.hidden[0], x) for one in made]).mean(0)
    loss, terms = criterion(LossConfig(align=made[0].config), *pairs, aligned=aligned)
    case.match("out.denoising_loss", terms["velocity"], 2e-5)
    case.match("out.proj_loss", aligned.mean() - 1, 1e-5)
    loss.mean().backward()
    projectors = {
        f"projectors.{i}.{name}": p.grad
        for i, one in enumerate(made)
        for name, p in one.projector.named_parameters()
    }
    for row, name in enumerate(case.config["param_order"]):
        if name in projectors:
            stored = float(case.io["grad.param_norms"][row])
            off = abs(float(projectors[name].norm()) - stored)
            assert off <= 1e-4 * stored + 1e-6, f"gradient of {name} is off by {off:.2e}"
    stripped.config["param_order"] = [
        name if name in stripped.weights else "projectors" for name in case.config["param_order"]
    ]
    match_model(stripped, model)


def match_model(case: Case, model: nn.Module) -> None:
    """Norms of the gradients of what has a name of its own in both."""
    theirs = {n: w.clone().requires_grad_() for n, w in case.weights.items()}
    ours = dict(model.named_parameters())
    total = torch.zeros(())
    for name, value in dit.from_published(theirs).items():
        if name in ours and ours[name].grad is not None:
            total = total + (value * ours[name].grad[: value.shape[0]]).sum()
    found = dict(zip(theirs, torch.autograd.grad(total, list(theirs.values()), allow_unused=True),
                     strict=True))  # fmt: skip
    for row, name in enumerate(case.config["param_order"]):
        gradient = found.get(name)
        if gradient is not None:
            stored = float(case.io["grad.param_norms"][row])
            off = abs(float(gradient.norm()) - stored)
            assert off <= 1e-4 * stored + 1e-6, f"gradient of {name} is off by {off:.2e}"


# Frequencies.


def crossed(x: torch.Tensor) -> torch.Tensor:
    """PixelHDM's transform: C X C in the place of C X C^T, so that its columns hold no frequencies.

    Everything else of its loss is ours.
    """
    h, w = x.shape[2:]
    x = nn.functional.pad(x, (0, -w % 8, 0, -h % 8), mode="reflect")
    matrix = dct_matrix().to(x)
    rows = torch.einsum("kp, bcipw -> bcikw", matrix, x.unflatten(2, (-1, 8)))
    both = torch.einsum("bchjq, ql -> bchjl", rows.flatten(2, 3).unflatten(3, (-1, 8)), matrix)
    return both.flatten(3)[:, :, :h, :w]


def with_its_transform(check: Callable[[Case], None]) -> Callable[[Case], None]:
    def checked(case: Case) -> None:
        with mock.patch.object(frequency_module, "block_dct", crossed):
            check(case)

    return checked


@with_its_transform
def frequencies(case: Case) -> None:
    c, io = case.constructor, case.io
    known(c, "quality", "weight", "use_ycbcr")
    colour = "ycbcr" if c["use_ycbcr"] else "none"
    config = FrequencyConfig(weight=c["weight"], quality=c["quality"], colour=colour)
    for ours, theirs in zip(jpeg_weights(c["quality"]), "yc", strict=True):
        stored = case.weights[f"weights_{theirs}"]
        assert torch.allclose(ours, stored.reshape(8, 8), rtol=1e-5), f"weights_{theirs}"
    v = io["in.v_pred"].requires_grad_()
    # The stored transform is of the channels as they are, whatever the loss takes.
    case.match("dct_of_target", crossed(io["in.v_target"]), 2e-6)
    loss = c["weight"] * frequency(config, v - io["in.v_target"]).mean()
    case.match("out.loss", loss, 1e-5 * (1 + float(io["out.loss"])))
    loss.backward()
    case.match("grad.in.v_pred", v.grad)


@with_its_transform
def combined(case: Case) -> None:
    c, io = case.constructor, case.io
    known(c, "lambda_freq", "lambda_repa", "freq_quality", "lambda_gamma_l2", "repa")
    v, x, eps = (io[f"in.{n}"].movedim(-1, 1) for n in ("v_pred", "x_clean", "noise"))
    v = v.requires_grad_()
    grid = tuple(n // c["repa"]["repa_patch_size"] for n in x.shape[2:])
    align = AlignConfig(weight=c["lambda_repa"])
    made = alignment(align, c["repa"]["hidden_dim"], Stored(io["in.dino_features"], grid),
                     part(case.weights, "repa_loss.projector."))  # fmt: skip
    config = LossConfig(
        frequency=FrequencyConfig(weight=c["lambda_freq"], quality=c["freq_quality"]), align=align,
        gain=GainConfig(weight=c["lambda_gamma_l2"], of="places"),
    )  # fmt: skip
    guess, truth = Estimate(v + eps, eps), Estimate(x, eps)
    aligned = made(on_grid(io["in.h_t"], grid), x)
    # The squares of PixelHDM's own scales are handed in as a number.
    gains = io["in.gamma_l2"].expand(x.shape[0])
    loss, terms = criterion(config, guess, truth, aligned=aligned, gains=gains)
    case.match("out.vloss", terms["velocity"].mean(), 1e-5)
    case.match("out.freq_loss", c["lambda_freq"] * terms["frequency"].mean(), 1e-5)
    case.match("out.repa_loss", c["lambda_repa"] * terms["align"].mean(), 1e-5)
    case.match("out.gamma_l2", c["lambda_gamma_l2"] * terms["gain"].mean(), 1e-6)
    case.match("out.total", loss.mean(), 1e-5)
    loss.mean().backward()
    case.match("grad.in.v_pred", v.grad.movedim(1, -1))


# LPIPS.


def lpips(case: Case) -> None:
    """The stored distances with the stored weights, and nearly so with ours in float16."""
    plain(case.constructor, net="alex", version="0.1")
    path = Path(FOLDER).parent / "data" / "weights" / "lpips_alex.safetensors"
    if not path.is_file():
        raise NotBuilt(f"no weights in {path.parent}")
    x, y = case.io["in.x"], case.io["in.y"]
    with torch.no_grad():
        case.match("out", lpips_distance(x, y, LPIPS(path)), 2e-6)
        case.match("out", lpips_distance(x, y), 2e-4)
