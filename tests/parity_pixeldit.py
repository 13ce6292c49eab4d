"""PixelDiT and jitmask, a JiT code base that was turned into it and given hints."""

import re
from typing import Any

import torch

from pointillist import samplers
from pointillist.encoders import GridConfig
from pointillist.guidance import GuidanceConfig, classifier_free, network_field
from pointillist.models import Network, PixelDiTConfig, pixeldit
from pointillist.objective import StraightConfig
from pointillist.types import Given, Spec, grid_axes
from tests.parity_case import (
    ASIDE,
    Case,
    forward,
    known,
    make,
    plain,
    unlabel,
)  # fmt: skip

PIXDIT = {"in_channels": 4, "num_groups": 12, "hidden_size": 1152, "pixel_hidden_size": 64,
          "patch_depth": 18, "pixel_depth": 4, "patch_size": 2, "num_classes": 1000,
          "use_pixel_abs_pos": True, "pit_adaln_post_modulation": False}  # fmt: skip


def make_c2i(case: Case, options: dict[str, Any], size: tuple[int, ...]) -> torch.nn.Module:
    known(options, *PIXDIT)
    c = PIXDIT | options
    config = PixelDiTConfig(
        width=c["hidden_size"], depth=c["patch_depth"], heads=c["num_groups"],
        patch_size=c["patch_size"], pixel_width=c["pixel_hidden_size"],
        pixel_depth=c["pixel_depth"], pixel_place=c["use_pixel_abs_pos"],
        post_modulation=c["pit_adaln_post_modulation"],
    )  # fmt: skip
    classes = tuple(str(i) for i in range(c["num_classes"]))
    spec = Spec(channels=c["in_channels"], axes=grid_axes(size), classes=classes)
    return make(config, spec, pixeldit.from_published(case.weights))


def c2i(case: Case) -> None:
    size = tuple(case.io["in.x"].shape[2:])
    forward(case, make_c2i(case, case.constructor, size), pixeldit.from_published)


def sampler(case: Case) -> None:
    """The published sampler keeps the weights of even steps on a shifted grid: `ab2_even`."""
    io, options = case.io, case.constructor["sampler"]
    known(options, "num_steps", "guidance", "guidance_interval_min", "guidance_interval_max",
          "timeshift")  # fmt: skip
    size = tuple(io["in.noise"].shape[2:])
    model = make_c2i(case, case.constructor["model"], size)
    times = samplers.time_grid(options["num_steps"], options["timeshift"])
    case.match("timesteps", times.float(), 1e-6)
    network, objective = Network(model), StraightConfig(predict="velocity")
    halves = [
        network_field(network, objective, Given(label=unlabel(io[f"in.{name}"], model)), size)
        for name in ("cond", "uncond")
    ]
    interval = (options["guidance_interval_min"], options["guidance_interval_max"])
    guidance = GuidanceConfig(scale=options["guidance"], interval=interval)
    guided = classifier_free(halves[0], halves[1], guidance)
    seen: list[torch.Tensor] = []
    velocities: list[torch.Tensor] = []

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        velocities.append(guided(x, t))
        return velocities[-1]

    with torch.no_grad():
        out = samplers.SAMPLERS["ab2_even"](field, io["in.noise"], times)
    slack = 2e-5 * float(io["x_traj"].abs().max())
    case.match("x_traj", torch.stack([*seen, out]), slack)
    stored = {"v": io["v_traj"][: len(velocities)]}
    off = float((torch.stack(velocities) - stored["v"]).abs().max())
    assert off <= 2e-5 * float(stored["v"].abs().max()), f"v_traj is off by {off:.2e}"


# jitmask.

JITMASK = {"input_size": 256, "patch_size": 16, "in_channels": 3, "hidden_size": 1024, "depth": 24,
           "num_heads": 16, "mlp_ratio": 4.0, "attn_drop": 0.0, "proj_drop": 0.0,
           "num_classes": 1000, "in_context_len": 32, "in_context_start": 8, "pixel_hidden_dim": 16,
           "num_pixel_blocks": 3, "repa_depth": 8, "repa_proj_dim": 768}  # fmt: skip

NAMES = (
    (r"x_embedder\.proj\.", "patch."),
    (r"t_embedder\.mlp\.0\.", "time.up."),
    (r"t_embedder\.mlp\.2\.", "time.out."),
    (r"y_embedder\.embedding_table\.", "label.table."),
    (r"^in_context_posemb", "token_place"),
    (r"^(blocks\..*)\.attn\.proj\.", r"\1.attention.out."),
    (r"^(blocks\..*)\.attn\.", r"\1.attention."),
    (r"\.mlp\.fc1\.", ".mlp.up."),
    (r"\.mlp\.fc2\.", ".mlp.down."),
    (r"^(blocks\..*)\.adaLN_modulation\.1\.", r"\1.modulation."),
    (r"^pixel_embed\.", "pixel."),
    (r"^pixel_norm_out\.", "norm."),
    (r"^pixel_out\.", "head."),
    (r"\.ptc_compress\.", ".compact."),
    (r"\.ptc_decompress\.", ".spread."),
    (r"^(pixel_blocks\.\d+)\.attn_proj\.", r"\1.attention.out."),
    (r"^(pixel_blocks\.\d+)\.(qkv|q_norm|k_norm)\.", r"\1.attention.\2."),
    (r"\.ffn\.0\.", ".mlp.up."),
    (r"\.ffn\.2\.", ".mlp.down."),
    (r"^hint_mlp\.0\.", "hint_pixel.up."),
    (r"^hint_mlp\.2\.", "hint_pixel.down."),
)


def jitmask_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """jitmask's weights under our names; the hints of the patches, which it lacks, are zero."""
    named: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("net.")
        if name == "pos_embed" or name.startswith(ASIDE):
            continue
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if name == "patch.weight":
            cells = value[0, 0].numel()
            zero = torch.zeros(value.shape[0], (value.shape[1] + 1) * cells)
            named["encoder.hint.linear.weight"] = zero
            value = value.flatten(1)
        if ".adaLN_proj." in name:
            width = next(w for n, w in state.items() if n.endswith("pixel_out.weight")).shape[1]
            rows = value.unflatten(0, (-1, 6, width)).transpose(0, 1)
            for layer, part in (("enter", rows[:2]), ("leave", rows[2:])):
                named[name.replace("adaLN_proj", f"{layer}.linear")] = part.flatten(0, 2)
            continue
        if name.startswith("hint_mod."):
            cut = value.shape[0] // 3
            for layer, part in (("enter", value[:cut]), ("leave", value[cut:])):
                named[name.replace("hint_mod", f"hint_pixel.{layer}")] = part
            continue
        named[name] = value[0] if name == "token_place" else value
    return named


def make_jitmask(case: Case, options: dict[str, Any]) -> torch.nn.Module:
    known(options, *JITMASK)
    plain(options, attn_drop=0.0, proj_drop=0.0)
    c = JITMASK | options
    config = PixelDiTConfig(
        width=c["hidden_size"], depth=c["depth"], heads=c["num_heads"],
        patch_size=c["patch_size"], mlp_ratio=c["mlp_ratio"], mlp="gelu", pixel_gelu="tanh",
        bias=True, pixel_width=c["pixel_hidden_dim"], pixel_depth=c["num_pixel_blocks"],
        context_tokens=c["in_context_len"], context_start=c["in_context_start"],
        pixel_rope=False, pixel_place=False, condition_silu=False, place=True, rope_span=0.0,
        max_period=1e4, encoder=GridConfig(),
    )  # fmt: skip
    size = (c["input_size"],) * 2
    classes = tuple(str(i) for i in range(c["num_classes"]))
    spec = Spec(channels=c["in_channels"], axes=grid_axes(size), classes=classes)
    return make(config, spec, jitmask_names(case.weights))


def jitmask(case: Case) -> None:
    model, given = make_jitmask(case, case.constructor), Given()
    if "in.gt_pixels" in case.io:
        size, p = model.spec.size, model.config.patch_size
        value, mask = (
            pixeldit.unpixels(case.io[name].unflatten(1, (-1, p * p)), p, p, size)
            for name in ("in.gt_pixels", "in.hint_mask")
        )
        given = Given(seen=value, mask=mask.bool())
    forward(case, model, jitmask_names, out="out.v", given=given)
