"""DiffiT: attention that time steers, the flat network and its guided form, a U by others."""

from typing import Any

import torch

from pointillist.guidance import GuidanceConfig, PowerCosineSchedule
from pointillist.layers.time_attention import TimeAttention
from pointillist.models import DiffiTConfig, DiffiTFlatConfig, Network, diffit_flat
from pointillist.objective import EDMConfig
from pointillist.types import Given, Spec, grid_axes
from tests.parity_case import Case, NotBuilt, forward, known, make, match_gradients, unlabel

OFFICIAL, U, V2 = "NVlabs/DiffiT", "OmChandraSharma/DL_DiffiT_", "dkagramanyan/DiffiT-v2"
FLAT = {"input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28,
        "num_heads": 16, "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000,
        "learn_sigma": True}  # fmt: skip


# Attention alone.

TMSA = {"qkv_temb.": "time.", "qkv_t.": "time.", "proj.": "out.",
        "relative_position_bias_table": "bias_table", "rpb.table": "bias_table"}  # fmt: skip
TABLES = ("relative_position_index", "rpb.index", "freqs")


def drop_tables(case: Case) -> None:
    """What is stored beside the weights and made anew here."""
    for name in [n for n in case.weights if n.endswith(TABLES)]:
        del case.weights[name]


def rename_attention(state: dict[str, Any]) -> dict[str, Any]:
    named = {}
    for name, value in state.items():
        for theirs, ours in TMSA.items():
            name = name.replace(theirs, ours)
        named[name] = value
    return named


def attention(case: Case) -> None:
    """Tokens of one window; a projection of time without a bias is one whose bias is 0."""
    c = case.constructor
    known(c, "dim", "temb_dim", "num_heads", "window_size")
    window = (c["window_size"],) * 2
    model = TimeAttention(c["dim"], c["temb_dim"], c["num_heads"], window)
    drop_tables(case)
    weights = rename_attention(case.weights)
    model.load_state_dict({"time.bias": torch.zeros(3 * c["dim"])} | weights)
    x, temb = case.io["in.x"].requires_grad_(), case.io["in.temb"].requires_grad_()
    out = model(x.unflatten(1, window), temb).flatten(1, 2)
    case.match("out", out)
    (out * case.io["cotangent"]).sum().backward()
    assert x.grad is not None and temb.grad is not None
    case.match("grad.in.x", x.grad)
    case.match("grad.in.temb", temb.grad)
    match_gradients(case, model, rename_attention)


# The flat network.


def flat(case: Case) -> None:
    """Its forward, and what it is guided to: the weight rises from 1 at the noise to w at the data
    as a cosine of a power of the time, on the first three channels alone.
    """
    known(case.constructor, *FLAT)
    if case.config["repo"] != OFFICIAL:
        raise NotBuilt("the form of DiffiT-v2")
    c = FLAT | case.constructor
    config = DiffiTFlatConfig(
        width=c["hidden_size"], depth=c["depth"], heads=c["num_heads"], patch_size=c["patch_size"],
        mlp_ratio=c["mlp_ratio"], time_scale=1.0, learn_sigma=c["learn_sigma"],
    )  # fmt: skip
    classes = tuple(str(i) for i in range(c["num_classes"]))
    size = (c["input_size"],) * 2
    spec = Spec(channels=c["in_channels"], axes=grid_axes(size), classes=classes)
    drop_tables(case)
    model = make(config, spec, diffit_flat.from_published(case.weights))
    forward(case, model, diffit_flat.from_published)
    guided(case, model)


def guided(case: Case, model: torch.nn.Module) -> None:
    """Power-cosine guidance (2312.02139, appendix), of which a scale of 3 and a power of 4 are
    stored: conditional half first, null half behind it, the conditional half's state for both.
    """
    io, w, power = case.io, 3.0, 4.0
    half = len(io["cfg.x"]) // 2
    x, t = io["cfg.x"][:half], io["cfg.t"][:half]
    network = Network(model)
    with torch.no_grad():
        toward, away = (
            network(x, t, Given(label=unlabel(label, model))).value
            for label in io["cfg.y"].split(half)
        )
    schedule = PowerCosineSchedule(power=power)
    weights = [
        GuidanceConfig(scale=w, schedule=schedule, channels=3).weight(1 - float(i) / 1000)
        for i in t
    ]
    led = away + torch.tensor(weights).view(-1, 1, 1, 1) * (toward - away)
    ours = [torch.cat((led[:, :3], one[:, 3:]), 1) for one in (toward, away)]
    case.match("cfg.out", torch.cat(ours))


# The U of others.


def rename_u(state: dict[str, Any]) -> dict[str, Any]:
    """Their names; their sinusoid has sines first, ours cosines."""
    named = {}
    for name, value in state.items():
        name = name.removeprefix("inner_model.")
        for theirs, ours in (
            ("temb_proj.1.net.0.", "time.up."), ("temb_proj.1.net.2.", "time.out."),
            ("enc_blocks.", "encoder."), ("enc_downs.", "downs."), ("dec_ups.", "ups."),
            (".gn.", ".norm."), (".transformer.tmsa.", ".block.attention."),
            (".transformer.", ".block."), (".mlp.0.", ".mlp.up."), (".mlp.2.", ".mlp.down."),
            (".qkv_t.", ".time."), (".proj.", ".out."), (".rpb.table", ".bias_table"),
            ("head.", "head.0."),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        if name.startswith("dec_blocks."):  # they count from the coarsest
            _, stage, rest = name.split(".", 2)
            name = f"decoder.{1 - int(stage)}.{rest}"
        if name == "time.up.weight":
            value = torch.cat(value.chunk(2, 1)[::-1], 1)
        named[name] = value
    return named


def u(case: Case) -> None:
    c = case.constructor["unet"]
    known(c, "in_channels", "base_channels", "channel_mult", "num_blocks", "num_heads",
          "window_size", "temb_dim", "mlp_ratio")  # fmt: skip
    config = DiffiTConfig(
        width=c["base_channels"], multiples=tuple(c["channel_mult"]),
        depth=tuple(c["num_blocks"]), heads=c["num_heads"], window=c["window_size"],
        mlp_ratio=c["mlp_ratio"], groups=8, head_norm=False, time_width=c["temb_dim"],
        time_features=c["temb_dim"], time_scale=1.0,
    )  # fmt: skip
    y, sigma = case.io["in.y"].requires_grad_(), case.io["in.sigma"]
    spec = Spec(channels=c["in_channels"], axes=grid_axes(tuple(y.shape[2:])))
    drop_tables(case)
    model = config.build(spec).eval()
    blank = {n: torch.zeros_like(p) for n, p in model.named_parameters() if "time.bias" in n}
    model.load_state_dict(blank | rename_u(case.weights))
    objective = EDMConfig(sigma_data=case.constructor["sigma_data"])
    t = ((sigma / objective.sigma_max).log() / objective._rate).float()
    answer = Network(model)(*objective.see(y, t), Given()).value
    case.match("act.inner_model", answer)
    out = objective.read(answer, y, t).x
    case.match("out", out)
    (out * case.io["cotangent"]).sum().backward()
    assert y.grad is not None
    case.match("grad.in.y", y.grad)
    match_gradients(case, model, rename_u)


FAMILIES = {
    (OFFICIAL, "DiffiTAttention"): attention,
    (OFFICIAL, "DiffiT"): flat,
    (U, "TMSA"): attention,
    (U, "EDMPrecond(DiffiTImageUNet)"): u,
    (V2, "DiffiT"): flat,
}
