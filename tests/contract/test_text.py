"""What every model that reads captions keeps, by its place in the union alone."""

import dataclasses

import pytest
import torch

from pointillist.models import Network
from pointillist.types import InputError

from .test_models import (
    CONFIGS,
    SIZES,
    WORDS,
    asked,
    built,
    fields_of,
    part_of,
    spec_of,
    toy,
)

READERS = [config for config in CONFIGS if built(config, (8, 8)).takes.text]
every = pytest.mark.parametrize("config", READERS)
PLACED = [config for config in READERS if config().kind != "pixelhdm"]  # tokens have learnt places
SIZE = (8, 12)
LENGTHS = (5, 3, 1)  # of the captions in `asked`


def test_what_reads_captions_says_so():
    assert {"pixeldit_text", "pixnerd_text"} <= {config().kind for config in READERS}


@pytest.mark.parametrize("size", SIZES)
@every
def test_what_stands_in_the_padding_does_not_matter(config, size):
    network = Network(toy(config, size))
    x, t, given = asked(size)
    value = network(x, t, given).value
    for filled in (3.0, torch.nan):
        other = given.text.masked_fill(~given.text_mask[..., None], filled)
        assert torch.equal(network(x, t, given._replace(text=other)).value, value)


@every
def test_a_padded_caption_is_the_caption_itself(config):
    network = Network(toy(config, SIZE))
    x, t, given = asked(SIZE)
    value = network(x, t, given).value
    for i, length in enumerate(LENGTHS):
        part = slice(i, i + 1)
        alone = part_of(given, part)._replace(text=given.text[part, :length], text_mask=None)
        one = network(x[part], t[part], alone).value
        torch.testing.assert_close(one[0], value[i], rtol=1e-5, atol=1e-5)


@every
def test_every_token_and_their_order_matter(config):
    network = Network(toy(config, SIZE))
    x, t, given = asked(SIZE, 1)
    value = network(x, t, given).value
    for i in range(WORDS.length):
        other = given.text.clone()
        other[:, i] += 1
        assert (network(x, t, given._replace(text=other)).value - value).abs().max() > 1e-4
    turned = given._replace(text=given.text.flip(1))
    assert (network(x, t, turned).value - value).abs().max() > 1e-4


@every
def test_a_caption_without_a_token_is_answered_and_learnt_from(config):
    model = toy(config, SIZE)
    x, t, given = asked(SIZE)
    mask = given.text_mask.clone()
    mask[1] = False
    value = Network(model)(x, t, given._replace(text_mask=mask)).value
    value.square().sum().backward()
    assert value.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    whole = Network(model)(x, t, given).value
    assert (whole - value)[1].abs().max() > 1e-4 and torch.equal(whole[[0, 2]], value[[0, 2]])


@pytest.mark.parametrize("config", [c for c in READERS if hasattr(c(), "attend_padding")])
def test_padding_that_is_attended_is_read(config):
    x, t, given = asked(SIZE)
    plain, seeing = (toy(config, SIZE, attend_padding=way) for way in (False, True))
    off = (Network(plain)(x, t, given).value - Network(seeing)(x, t, given).value).abs()
    assert off[0].max() == 0 and min(off[1].max(), off[2].max()) > 1e-4
    unmasked = Network(plain)(x, t, given._replace(text_mask=None)).value
    assert torch.equal(unmasked, Network(seeing)(x, t, given).value)


@pytest.mark.parametrize("config", [c for c in READERS if hasattr(c(), "attend_padding")])
def test_padding_that_is_attended_is_the_same_whatever_captions_are_beside(config):
    network = Network(toy(config, SIZE, attend_padding=True))
    x, t, given = asked(SIZE)
    value = network(x, t, given._replace(text=given.text * given.text_mask[..., None])).value
    part = slice(2, 3)
    alone = part_of(given, part)
    alone = alone._replace(text=given.text[part, :1], text_mask=given.text_mask[part, :1])
    one = network(x[part], t[part], alone).value
    torch.testing.assert_close(one[0], value[2], rtol=1e-5, atol=1e-5)


@every
def test_text_is_projected_once_for_a_walk(config):
    """What stands in `given.text` afterwards is not looked at any more."""
    network = Network(toy(config, SIZE))
    x, t, given = asked(SIZE)
    context = network.condition(given, SIZE)
    value = network(x, t, given, context).value
    forgotten = given._replace(text=torch.full_like(given.text, torch.nan))
    assert torch.equal(network(x, t, forgotten, context).value, value)


@every
def test_captions_that_do_not_fit_are_refused(config):
    network = Network(toy(config, SIZE))
    x, t, given = asked(SIZE)
    kind = config().kind
    with pytest.raises(InputError, match=f"{kind} reads captions, and none is given"):
        network(x, t, given._replace(text=None, text_mask=None))
    longer = given._replace(text=torch.zeros(3, 6, 6), text_mask=torch.ones(3, 6).bool())
    with pytest.raises(InputError, match=f"captions have 6 tokens, but model {kind} reads 5; cut"):
        network(x, t, longer)
    with pytest.raises(InputError, match=f"width 7, but model {kind} was built for 6"):
        network(x, t, given._replace(text=torch.zeros(3, 5, 7)))


@pytest.mark.parametrize("config", PLACED)
def test_data_that_nobody_reads_are_refused(config):
    speechless = dataclasses.replace(spec_of(SIZE), words=None)
    with pytest.raises(InputError, match=f"model.kind is {config().kind}.*text.encoder=minilm"):
        config(**fields_of(config)).build(speechless)
