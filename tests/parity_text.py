"""The text-to-image forms of PixelDiT and PixNerd."""

from typing import Any

import torch

from pointillist.models import (
    Network,
    PixelDiTTextConfig,
    PixNerdTextConfig,
    pixeldit_text,
    pixnerd_text,
)
from pointillist.types import Given, Spec, Words, grid_axes
from tests.parity_case import Case, known, make, match_answer

Weights = dict[str, torch.Tensor]

PIXELDIT = {"in_channels": 4, "num_groups": 12, "hidden_size": 1152, "pixel_hidden_size": 64,
            "pixel_attn_hidden_size": None, "pixel_num_groups": None, "patch_depth": 18,
            "pixel_depth": 4, "num_text_blocks": 4, "patch_size": 2, "txt_embed_dim": 4096,
            "txt_max_length": 100, "use_text_rope": True, "text_rope_theta": 1e4,
            "repa_encoder_index": -1, "use_pixel_abs_pos": True,
            "pit_adaln_post_modulation": False}  # fmt: skip
PIXNERD = {"in_channels": 4, "num_groups": 12, "hidden_size": 1152, "decoder_hidden_size": 64,
           "num_encoder_blocks": 18, "num_decoder_blocks": 4, "num_text_blocks": 4,
           "patch_size": 2, "txt_embed_dim": 1024, "txt_max_length": 100}  # fmt: skip


def spec_of(c: dict[str, Any], size: tuple[int, ...]) -> Spec:
    words = Words(width=c["txt_embed_dim"], length=c["txt_max_length"])
    return Spec(channels=c["in_channels"], axes=grid_axes(size), words=words)


def pixeldit_from_published(state: Weights) -> Weights:
    return pixeldit_text.from_published(pixeldit_text.part_last(state))


def pixeldit(case: Case) -> None:
    """Its number of text blocks is read nowhere; what it aligns are the tokens of a tap."""
    known(case.constructor, *PIXELDIT)
    io, c = case.io, PIXELDIT | case.constructor
    config = PixelDiTTextConfig(
        width=c["hidden_size"], depth=c["patch_depth"], heads=c["num_groups"],
        patch_size=c["patch_size"], pixel_width=c["pixel_hidden_size"],
        pixel_depth=c["pixel_depth"], pixel_attention_width=c["pixel_attn_hidden_size"] or 0,
        pixel_heads=c["pixel_num_groups"] or 0, pixel_place=c["use_pixel_abs_pos"],
        post_modulation=c["pit_adaln_post_modulation"], text_rope=c["use_text_rope"],
        text_theta=c["text_rope_theta"], attend_padding=True,
    )  # fmt: skip
    x, y, tap = io["in.x"].requires_grad_(), io["in.y"].requires_grad_(), c["repa_encoder_index"]
    spec = spec_of(c, tuple(x.shape[2:]))
    model = make(config, spec, pixeldit_from_published(case.weights))
    taps = (tap,) if tap > 0 else ()
    answer = Network(model)(x, io["in.t"], Given(text=y), taps=taps)
    for tokens in answer.hidden:
        case.match("out.last_repa_tokens", tokens.flatten(2).mT)
    match_answer(case, model, pixeldit_from_published, answer.value)
    case.match("grad.in.y", y.grad)


def pixnerd(case: Case) -> None:
    """The plain decoder's code of places spans as many units as a patch has cells, the heavy one's
    16; scaled, its patches see the first of every r cells. Along x patches reach as far as there
    are rows, and along y as there are columns: to each axis its own span.
    """
    known(case.constructor, *PIXNERD)
    io, c = case.io, PIXNERD | case.constructor
    (source, *_) = case.config["source_files"]
    scaling = case.config.get("attributes_set_after_construction") or {}
    x, y = io["in.x"].requires_grad_(), io["in.y"].requires_grad_()
    r = int(scaling.get("decoder_patch_scaling_h", 1))
    coarse = x[..., ::r, ::r]
    size = tuple(coarse.shape[2:])
    rows, columns = (n / c["patch_size"] for n in size)
    config = PixNerdTextConfig(
        width=c["hidden_size"], depth=c["num_encoder_blocks"], heads=c["num_groups"],
        patch_size=c["patch_size"], mlp_ratio=6.0, decoder_width=c["decoder_hidden_size"],
        decoder_depth=c["num_decoder_blocks"], coordinates="corner", code="rotary",
        code_span=16.0 if "heavydecoder" in source else float(c["patch_size"]),
        weight_norm="first", final_norm=False, position_span=(columns, rows),
        text_depth=c["num_text_blocks"], attend_padding=True,
    )  # fmt: skip
    model = make(config, spec_of(c, size), pixnerd_text.from_published(case.weights))
    t = io["in.t"]
    value = Network(model).render(x, t, coarse, t, Given(text=y)).value
    match_answer(case, model, pixnerd_text.from_published, value)
    case.match("grad.in.y", y.grad)
