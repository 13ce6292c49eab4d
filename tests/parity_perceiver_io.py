"""The layers of Perceiver IO against the published neural field that is built of them."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from pointillist.layers.perceiver import Answer, Block, GaussianFeatures
from tests.parity_case import Case, known, match_gradients, plain

OPTIONS = {"input_channels": 3, "output_channels": 3, "coord_dim": 2, "num_latents": 512,
           "latent_dim": 512, "num_fourier_feats": 256, "fourier_scale": 10.0, "num_blocks": 6,
           "num_heads": 8, "mlp_ratio": 4, "dropout": 0.1, "learnable_fourier": False}  # fmt: skip


class Stored(GaussianFeatures):
    """Published frequencies, drawn by another generator."""

    table: Tensor

    def frequencies(self, device: torch.device) -> Tensor:
        return self.table


class Field(nn.Module):
    """Observed points in, values at queries out; no state, no time, no residual in the answer."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        d, n = c["latent_dim"], 2 * c["num_fourier_feats"]
        self.place = Stored(c["coord_dim"], c["num_fourier_feats"], c["fourier_scale"])
        self.observed = nn.Sequential(
            nn.Linear(c["input_channels"] + n, d), nn.LayerNorm(d), nn.GELU()
        )
        self.query = nn.Sequential(nn.Linear(n, d), nn.LayerNorm(d), nn.GELU())
        self.latents = nn.Parameter(torch.empty(c["num_latents"], d))
        self.blocks = nn.ModuleList(
            Block(d, c["num_heads"], float(c["mlp_ratio"])) for _ in range(c["num_blocks"])
        )
        self.answer = Answer(d, c["num_heads"], float(c["mlp_ratio"]), residual=False)
        self.head = nn.Linear(d, c["output_channels"])


NAMES = [
    (r"input_embed", "observed"),
    (r"query_embed", "query"),
    (r"output_proj", "head"),
    (r"decoder\.", "answer.look."),
    (r"self_attn\.cross_attn\.", "mix."),
    (r"cross_attn\.", "look."),
    (r"cross_norm1", "norm_look"),
    (r"self_norm1", "norm_mix"),
    (r"self_norm2", "norm_mlp"),
    (r"mlp\.0\.", "mlp.up."),
    (r"mlp\.3\.", "mlp.down."),
    (r"q_proj", "q"),
    (r"out_proj", "out"),
]


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names; k and v are one projection here, and a norm that no output uses is left out."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if "cross_norm2" in name or name.startswith("fourier_features"):
            continue
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if "v_proj" in name:
            continue
        if "k_proj" in name:
            original = next(n for n, v in state.items() if v is value)
            value = torch.cat((value, state[original.replace("k_proj", "v_proj")]))
            name = name.replace("k_proj", "kv")
        named[name] = value
    return named


def perceiver_io(case: Case) -> None:
    known(case.constructor, *OPTIONS)
    plain(case.constructor, learnable_fourier=False)
    ours = Field(OPTIONS | case.constructor)
    ours.load_state_dict(rename(case.weights))
    ours.place.table = case.weights["fourier_features.B"]
    io = case.io
    at, asked = io["in.input_coords"], io["in.query_coords"].requires_grad_()
    value = io["in.input_values"].requires_grad_()
    tokens = ours.observed(torch.cat((ours.place(at), value), -1))
    z = ours.latents.expand(at.shape[0], -1, -1)
    for i, block in enumerate(ours.blocks):
        assert isinstance(block, Block)
        z = block(z, block.look.keys(tokens))
        case.match(f"act.blocks.{i}", z)
    out = ours.head(ours.answer(ours.query(ours.place(asked)), z))
    case.match("out", out)
    (out * io["cotangent"]).sum().backward()
    assert value.grad is not None and asked.grad is not None
    case.match("grad.in.input_values", value.grad)
    case.match("grad.in.query_coords", asked.grad)
    match_gradients(case, ours, rename)
