"""Dropout by sample: whatever the batch, whatever is computed again."""

import pytest
import torch
from torch import nn

from pointillist.draws import Draw
from pointillist.layers.dropout import Dropout, dropping, name_dropouts

INDEX = torch.arange(5, 13)


def drop(layer: Dropout, x: torch.Tensor, index: torch.Tensor, seed: int = 0) -> torch.Tensor:
    with dropping(Draw(seed, index)):
        return layer(x)


def test_a_sample_loses_the_same_entries_in_any_batch():
    layer, x = Dropout(0.3), torch.ones(8, 7, 9)
    whole = drop(layer, x, INDEX)
    assert torch.equal(drop(layer, x[2:5], INDEX[2:5]), whole[2:5])
    assert torch.equal(drop(layer, x.flip(0), INDEX.flip(0)), whole.flip(0))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(drop(layer, x, INDEX, seed=1), whole)


def test_windows_of_a_sample_are_its_own():
    layer, x = Dropout(0.5), torch.ones(8, 6, 4)
    windows = drop(layer, x.reshape(8 * 3, 2, 4), INDEX)
    assert torch.equal(windows.reshape(8, 6, 4), drop(layer, x, INDEX))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_share_is_p_and_the_mean_stays(p):
    found = drop(Dropout(p), torch.ones(8, 5001), INDEX)
    kept = found != 0
    assert abs(1 - kept.float().mean() - p) < 4 * (p * (1 - p) / found.numel()) ** 0.5
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - p)))


def test_the_gradient_is_the_mask():
    x = torch.ones(8, 50, requires_grad=True)
    found = drop(Dropout(0.4), x, INDEX)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(grad, found.detach())


def test_layers_of_a_network_drop_differently():
    model = nn.Sequential(Dropout(0.5), Dropout(0.5))
    name_dropouts(model)
    first, second = (drop(layer, torch.ones(8, 40), INDEX) for layer in model)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_eval_mode_nor_at_zero():
    x = torch.ones(8, 5)
    assert drop(Dropout(0.5).eval(), x, INDEX) is x and drop(Dropout(0.0), x, INDEX) is x


def test_on_its_own_a_layer_uses_torchs_generator():
    layer, x = Dropout(0.5), torch.ones(8, 40)
    torch.manual_seed(0)
    first = layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), first) and not torch.equal(layer(x), first)
