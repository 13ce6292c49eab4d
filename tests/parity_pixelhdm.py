"""PixelHDM: its network with and without text, its attention and compaction, and its samplers."""

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pointillist import samplers
from pointillist.guidance import Field, GuidanceConfig, classifier_free
from pointillist.layers import embed
from pointillist.layers.grouped_attention import GroupedAttention
from pointillist.layers.mrope import mrope
from pointillist.models import Network, PixelHDMConfig, pixelhdm_weights
from pointillist.models.pixelhdm_blocks import HDMPixelBlock
from pointillist.objective import StraightConfig
from pointillist.types import Estimate, Given, Spec, Words, grid_axes
from tests.parity_case import Case, NotBuilt, known, match_gradients, plain

REPO = "yetrtyog-creator/PixelHDM"
DEFAULTS = {"hidden_dim": 1024, "pixel_dim": 16, "patch_size": 16, "patch_layers": 16,
            "pixel_layers": 4, "num_heads": 16, "num_kv_heads": 4, "mlp_ratio": 3.0,
            "bottleneck_dim": 64, "time_embed_dim": 256, "mrope_text_dim": 16,
            "mrope_img_h_dim": 24, "mrope_img_w_dim": 24, "gate_type": "headwise",
            "gate_activation": "sigmoid", "gate_bias": False}  # fmt: skip
# Sizes that follow from others, limits of tables, and what acts elsewhere than in the network.
ASIDE = ("head_dim", "text_hidden_size", "repa_enabled", "freq_loss_enabled", "use_flash_attention",
         "use_gradient_checkpointing", "repa_align_layer", "text_max_length", "mrope_text_max_len",
         "mrope_img_max_height", "mrope_img_max_width", "max_patches")  # fmt: skip

# What the published network is, where the default here is another.
PUBLISHED = {"bottleneck_silu": True, "modulation": "factorised", "pixel_place": False,
             "text_projection": False}  # fmt: skip


def config_of(options: dict[str, Any]) -> PixelHDMConfig:
    known(options, *DEFAULTS, *ASIDE)
    c = DEFAULTS | options
    return PixelHDMConfig(
        width=c["hidden_dim"], depth=c["patch_layers"], heads=c["num_heads"],
        kv_heads=c["num_kv_heads"], patch_size=c["patch_size"], bottleneck=c["bottleneck_dim"],
        pixel_width=c["pixel_dim"], pixel_depth=c["pixel_layers"], mlp_ratio=c["mlp_ratio"],
        gate=c["gate_type"], gate_activation=c["gate_activation"], gate_bias=c["gate_bias"],
        rope_dims=(c["mrope_text_dim"], c["mrope_img_h_dim"], c["mrope_img_w_dim"]),
        time_features=c["time_embed_dim"], **PUBLISHED,
    )  # fmt: skip


def make_hdm(case: Case, size: tuple[int, ...]) -> torch.nn.Module:
    config = config_of(case.constructor["PixelHDMConfig"])
    words = Words(width=config.width, length=16) if "in.text_embed" in case.io else None
    model = config.build(Spec(channels=3, axes=grid_axes(size), words=words))
    model.load_state_dict(pixelhdm_weights.from_published(case.weights))
    return model.eval()


class Squares:
    """The published penalty: the mean square of the pixels' two scales, summed over the blocks."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.total = torch.zeros(())
        for block in model.modules():
            if isinstance(block, HDMPixelBlock):
                block.steering.enter.register_forward_hook(functools.partial(self.add, 1, 2))
                block.steering.leave.register_forward_hook(functools.partial(self.add, 2, 4))

    def add(self, which: int, parts: int, module: Any, given: Any, made: Tensor) -> None:
        self.total = self.total + made.chunk(parts, -1)[which].square().mean()


def their_wave(t: Tensor, width: int, max_period: float) -> Tensor:
    """The features of time with the angle rounded as theirs: (t f) 1000."""
    half = width // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
    angle = t[:, None] * frequency * 1000
    return torch.cat((angle.cos(), angle.sin()), -1)


def network(case: Case) -> None:
    """The answer as it is, within what rounding 1000 t otherwise does (1e-4 of a whole network);
    then answer and gradients within the criterion of all cases, with their rounding put in.
    """
    with pytest.MonkeyPatch.context() as patch:
        walk(case, 1e-4)
        patch.setattr(embed, "sinusoid", their_wave)
        walk(case, None)


def walk(case: Case, rounding: float | None) -> None:
    """Pictures have their channels last there, but for those of three rows."""
    io, last = case.io, case.io["in.x_t"].shape[1] != 3
    model_scale = 1000.0 if rounding is not None else 1.0
    given_x = io["in.x_t"].clone().requires_grad_()
    x = given_x.movedim(-1, 1) if last else given_x
    model: Any = make_hdm(case, tuple(x.shape[2:]))
    assert model.time.scale == 1000
    model.time.scale = model_scale
    text = io["in.text_embed"].clone().requires_grad_() if "in.text_embed" in io else None
    given = Given(
        text=text, text_mask=io.get("in.text_mask"), pooled=io.get("in.pooled_text_embed")
    )
    scales = Squares(model)
    options = case.constructor["PixelHDMConfig"]
    taps = (options["repa_align_layer"],) if "out.repa_features" in io else ()
    found = Network(model)(x, io["in.t"], given, taps=taps)
    value, out = found.value.movedim(1, -1), "out" if "out" in io else "out.v"
    case.match(out, value, None if rounding is None else rounding * float(io[out].abs().max()))
    if rounding is not None:
        return
    if taps:
        case.match("out.repa_features", found.hidden[0].flatten(2).mT)
        case.match("out.gamma_l2", scales.total)
    (value * io["cotangent"]).sum().backward()
    assert given_x.grad is not None
    # The stored probe is of answers. Where every weight is off by 6e-8 of itself these gradients
    # are off by up to 6e-5 of their largest entry, for they pass through a norm of few entries.
    slack = 6e-5 * float(io["grad.in.x_t"].abs().max())
    case.match("grad.in.x_t", given_x.grad, slack)
    if text is not None:
        assert text.grad is not None
        case.match("grad.in.text_embed", text.grad, slack)
    match_gradients(case, model, pixelhdm_weights.from_published)


# Parts.


def places(case: Case, text: int, grid: tuple[int, ...], mask: Tensor | None) -> None:
    """The stored places are those that `mrope` counts, where a token is seen."""
    stored = case.io["in.position_ids"]
    length = mask.sum(1) if mask is not None else torch.zeros(len(stored), dtype=torch.long)
    mesh = torch.cartesian_prod(*map(torch.arange, grid))
    for row, n in zip(stored, length, strict=True):
        assert torch.equal(row[:n, 0], torch.arange(n)) and not row[:text, 1:].any()
        assert torch.equal(row[text:, 0], n.expand(len(mesh))) and torch.equal(row[text:, 1:], mesh)


def attention(case: Case) -> None:
    options, turn, where = (case.constructor[n] for n in ("attention", "mrope", "position_ids"))
    known(options, "hidden_dim", "num_heads", "num_kv_heads", "gate_type", "gate_activation",
          "gate_bias", "use_flash_attention")  # fmt: skip
    known(turn, "head_dim", "axes_dims", "max_seq_len", "max_height", "max_width", "theta")
    layer = GroupedAttention(
        options["hidden_dim"], options["num_heads"], options["num_kv_heads"], options["gate_type"],
        options["gate_activation"], options.get("gate_bias", False),
    )  # fmt: skip
    layer.load_state_dict(rename_attention(case.weights))
    text, p = where["text_len"], where["patch_size"]
    grid = (where["img_height"] // p, where["img_width"] // p)
    mask = case.io["in.attention_mask"]
    assert mask[:, text:].all() and mask[:, :text].sum(1).tolist() == where["valid"]
    places(case, text, grid, mask[:, :text])
    rotation = mrope(grid, tuple(turn["axes_dims"]), turn.get("theta", 1e4), text, mask[:, :text])
    x = case.io["in.x"].requires_grad_()
    out = layer(x, rotation, mask)
    # Padding asks too, from its own place there, from the last token's here: nobody reads it.
    seen = mask[..., None]
    stored, cotangent = case.io["out"], case.io["cotangent"]
    case.match("out", torch.where(seen, out, stored))
    if not mask.all():
        # So the stored gradients, which are of those answers too, need its place.
        turned = torch.cat([mrope(grid, tuple(turn["axes_dims"]), turn.get("theta", 1e4), text,
                                  None)[None, None]] * len(mask))  # fmt: skip
        rotation = torch.where(seen[:, None], rotation, turned)
    out = layer(x, rotation, mask)
    case.match("out", out)
    (out * cotangent).sum().backward()
    assert x.grad is not None
    case.match("grad.in.x", x.grad)
    match_gradients(case, layer, rename_attention)


def rename_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = pixelhdm_weights.from_published({f"x.attention.{name}": v for name, v in state.items()})
    return {name.removeprefix("x.attention."): value for name, value in found.items()}


def rename_compaction(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = pixelhdm_weights.from_published(
        {f"x.compaction.{name}": v for name, v in state.items()}
    )
    return {name.removeprefix("x."): value for name, value in found.items()}


def compaction(case: Case) -> None:
    """The pixel block's own layers, without its modulation and MLP; the published layer, by itself,
    adds what came in, which in a block the block does.
    """
    c = case.constructor
    known(c, "hidden_dim", "pixel_dim", "patch_size", "num_heads", "num_kv_heads", "mrope_axes")
    layer = GroupedAttention(c["hidden_dim"], c["num_heads"], c["num_kv_heads"])
    block = HDMPixelBlock(c["hidden_dim"], c["pixel_dim"], c["patch_size"] ** 2, layer, 1, "patch",
                          1.0, recompute=False)  # fmt: skip
    weights = rename_compaction(case.weights)
    missing = block.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    grid = tuple((case.io["in.position_ids"][0, -1, 1:] + 1).tolist())
    places(case, 0, grid, None)
    x = case.io["in.x"].requires_grad_()
    tokens = block.pre(block.compact(x.flatten(2)))
    tokens = block.attention(tokens, mrope(grid, tuple(c["mrope_axes"])))
    case.match("act.attention", tokens)
    out = x + block.spread(block.post(tokens)).reshape(x.shape)
    case.match("out", out)
    (out * case.io["cotangent"]).sum().backward()
    assert x.grad is not None
    case.match("grad.in.x", x.grad)
    match_gradients(case, block, rename_compaction)


# Samplers.


def toy(text: Tensor, s: float) -> Field:
    """The stored field: N(mu, s^2) in each picture, mu the mean of a text's features."""
    mu = text.mean((1, 2))[:, None, None, None]

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        centred = (x - t * mu) / (t**2 * s**2 + (1 - t) ** 2)
        return Estimate(mu + t * s**2 * centred, (1 - t) * centred)

    return Field(estimate, StraightConfig(predict="velocity"))


def sampler(case: Case) -> None:
    """On their times, .05 to .95. Their Heun takes its second slope in the last step too."""
    c, io = case.constructor, case.io
    known(c, "method", "num_steps", "t_eps", "guidance_scale", "t_start", "toy")
    plain(c, t_start=None)
    if c["method"] not in ("euler", "heun"):
        raise NotBuilt(f"method = {c['method']}")
    times = torch.linspace(c["t_eps"], 1 - c["t_eps"], c["num_steps"] + 1, dtype=torch.float64)
    case.match("timesteps", times, 1e-12)
    field = classifier_free(
        toy(io["text_embed"], c["toy"]["s"]), toy(io["null_text_embed"], c["toy"]["s"]),
        GuidanceConfig(scale=c["guidance_scale"]),
    )  # fmt: skip
    seen: list[Tensor] = []
    # A step more, for ours ends with one slope: of it only where it begins is looked at.
    samplers.SAMPLERS[c["method"]](
        field, io["z_0"], torch.cat((times, torch.tensor([0.99]).double())),
        watch=lambda i, t, x, pair: seen.append(x),
    )  # fmt: skip
    case.match("traj", torch.stack(seen), 1e-10)
    case.match("out", seen[-1], 1e-10)


FAMILIES = {
    (REPO, "PixelHDM"): network,
    (REPO, "GatedMultiHeadAttention with MRoPE"): attention,
    (REPO, "TokenCompaction"): compaction,
    (REPO, "UnifiedSampler"): sampler,
}
