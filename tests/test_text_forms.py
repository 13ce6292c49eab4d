"""What sets the text-to-image forms of PixelDiT and PixNerd apart from their class forms."""

from dataclasses import replace

import pytest
import torch

from pointillist.describe import describe
from pointillist.layers.rope import rope
from pointillist.models import Network, PixelDiTTextConfig, PixNerdTextConfig
from pointillist.models.alternation import alternated
from pointillist.run import Run
from pointillist.types import InputError

from .contract.test_models import WORDS, asked, fields_of, spec_of, toy

SIZE = (8, 12)
PIXNERD = {"decoder_width": 8, "bands": 4}


def answer(config, **options) -> tuple[torch.nn.Module, torch.Tensor]:
    model = toy(config, SIZE, **options)
    x, t, given = asked(SIZE)
    return model, Network(model)(x, t, given).value


@pytest.mark.parametrize(
    "options",
    [{"text_rope": False}, {"text_theta": 100.0}, {"attend_padding": True}, {"pixel_heads": 4},
     {"pixel_attention_width": 8}, {"post_modulation": True}, {"mlp": "gelu"}, {"bias": True},
     {"context_tokens": 3, "context_start": 1}, {"place": True}, {"depth": 1}, {"depth": 3}],
    ids=str,
)  # fmt: skip
def test_every_choice_of_pixeldit_is_a_model_of_its_own_that_learns(options):
    model, value = answer(PixelDiTTextConfig, **options)
    assert (value - answer(PixelDiTTextConfig)[1]).abs().max() > 1e-5
    value.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name


@pytest.mark.parametrize(
    "options",
    [{"text_depth": 0}, {"text_depth": 2}, {"attend_padding": True}, {"position_span": 4.0},
     {"position_span": (4.0, 2.0)}, {"position_span": 0.0}, {"code": "rotary"},
     {"code": "rotary", "code_span": 4.0}],
    ids=str,
)  # fmt: skip
def test_every_choice_of_pixnerd_is_a_model_of_its_own_that_learns(options):
    model, value = answer(PixNerdTextConfig, **PIXNERD, **options)
    others = [{}, {"code": "rotary"}] if "code_span" in options else [{}]
    for other in others:
        plain = answer(PixNerdTextConfig, **PIXNERD, **other)[1]
        assert (value - plain).abs().max() > 1e-5
    value.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name


def test_patches_span_their_number_where_no_span_is_set():
    empty, told = (answer(PixNerdTextConfig, **PIXNERD, position_span=span)[1]
                   for span in ((), (2.0, 3.0)))  # fmt: skip
    assert torch.equal(empty, told)


def test_a_span_for_each_axis_is_that_of_each():
    both = rope((3, 5), (3, 5), 8, span=(2.0, 7.0))
    rows, columns = (rope((3, 5), (3, 5), 8, span=far) for far in (2.0, 7.0))
    assert torch.equal(both[:, :2], rows[:, :2]) and torch.equal(both[:, 2:], columns[:, 2:])


@pytest.mark.parametrize(("pairs", "axes"), [(6, 1), (6, 2), (7, 2), (8, 3)])
def test_text_turns_every_pair_about_as_fast_as_patches_do(pairs, axes):
    """In each axis' share the frequencies of the text fall as those of the patches."""
    order = alternated(pairs, axes)
    assert sorted(order) == list(range(pairs))
    share = pairs // axes
    for axis in range(axes):
        for k, number in enumerate(order[axis * share : (axis + 1) * share]):
            assert number // axes == k


def test_nothing_is_asked_of_the_text_in_the_last_block():
    """So it has no queries, answers or MLP there."""
    model = toy(PixelDiTTextConfig, SIZE)
    names = {name.split(".")[0] for name, _ in model.last[0].text.named_parameters()}
    assert names == {"norm", "modulation", "kv", "k_norm"}


def test_both_are_described():
    """A longer caption costs more."""
    for config in (PixelDiTTextConfig, PixNerdTextConfig):
        run = replace(Run(), model=config(**fields_of(config)))
        spec = spec_of(SIZE)
        facts = describe(run, spec)
        longer = describe(run, replace(spec, words=replace(WORDS, length=50)))
        assert facts["parameters"] == sum(p.numel() for p in toy(config, SIZE).parameters())
        assert longer["flops"] > facts["flops"]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [(PixNerdTextConfig, {"text_depth": -1}, "model.text_depth is -1"),
     (PixNerdTextConfig, {"code_span": 4.0}, "model.code_span is 4; it is above 0, and 16 unless"),
     (PixNerdTextConfig, {"code": "rotary", "code_span": 0.0}, "model.code_span is 0"),
     (PixNerdTextConfig, {"position_span": (4.0, -1.0)}, "model.position_span is"),
     (PixNerdTextConfig, {"position_span": (4.0,)}, "but there are 2 axes of space; give one"),
     (PixelDiTTextConfig, {"text_theta": 0.0}, "model.text_theta is 0.0"),
     (PixelDiTTextConfig, {"pixel_heads": 3}, "pixel_attention_width 16 is no even number"),
     (PixelDiTTextConfig, {"pixel_heads": -1}, "model.pixel_heads is -1"),
     (PixelDiTTextConfig, {"pixel_attention": False}, "but model.pixel_attention is false")],
)  # fmt: skip
def test_what_cannot_be_is_refused(config, options, message):
    with pytest.raises(InputError, match=message):
        config(**{**fields_of(config), **options}).build(spec_of(SIZE))
