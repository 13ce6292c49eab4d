"""Muon: orthogonal updates of the matrices inside the blocks, part by part."""

import pytest
import torch
from torch import nn

from pointillist.describe import describe
from pointillist.engine import muon as muon_file
from pointillist.engine.muon import Muon, orthogonal
from pointillist.engine.optim import OptimConfig, build_optimizer, moments
from pointillist.layers.fused import Fused, hidden_weights
from pointillist.run import Run
from pointillist.types import InputError

MUON = OptimConfig(hidden="muon", lr=0.1)


def stepped(weights: list[torch.Tensor], parts: list[int], grads, **own) -> list[torch.Tensor]:
    """The weights after one step for each list of gradients."""
    found = [nn.Parameter(w.clone()) for w in weights]
    rest = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    settings = {"lr": 0.1, "momentum": 0.95, "decay": 0.0, **own}
    optimizer = Muon(dict(zip(found, parts, strict=True)), rest, **settings)
    for step in grads:
        for p, grad in zip(found, step, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return [p.detach() for p in found]


@pytest.mark.parametrize(
    "shape", [(1, 64, 64), (1, 200, 24), (1, 24, 200), (3, 48, 64), (2, 96, 32)]
)
def test_singular_values_lie_in_the_known_band_and_vectors_stay(shape):
    # Singular values over two decades, as gradients have them.
    m, n = shape[-2:]
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    x = u * torch.logspace(-2, 0, min(m, n)) @ v
    found = orthogonal(x)
    values = torch.linalg.svdvals(found)
    assert found.shape == x.shape and 0.65 < values.min() and values.max() < 1.25
    inner = u.mT @ found @ v.mT  # diagonal where the singular vectors are those of x
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-3


def test_a_tall_matrix_is_the_transpose_of_a_wide_one():
    x = torch.randn(2, 40, 12)
    torch.testing.assert_close(orthogonal(x), orthogonal(x.mT).mT)


def test_a_fused_weight_is_updated_as_its_parts_alone():
    fused = torch.randn(3 * 32, 20)
    strength = torch.tensor([1.0, 10.0, 0.1]).repeat_interleave(32)[:, None]
    grads = [torch.randn_like(fused) * strength for _ in range(3)]
    (whole,) = stepped([fused], [3], [[g] for g in grads], decay=0.1)
    alone = stepped(list(fused.chunk(3)), [1] * 3, [g.chunk(3) for g in grads], decay=0.1)
    for a, b in zip(whole.chunk(3), alone, strict=True):
        torch.testing.assert_close(a, b)
    (unsplit,) = stepped([fused], [1], [[g] for g in grads], decay=0.1)
    assert (unsplit - whole).norm() > 0.1 * (whole - fused).norm()


@pytest.mark.parametrize("shape", [(48, 48), (96, 16), (16, 96)])
def test_an_unsplit_weight_gets_the_update_of_torch(shape, monkeypatch):
    weight = torch.randn(shape)
    grads = [torch.randn(shape) for _ in range(4)]
    theirs = nn.Parameter(weight.clone())
    optimizer = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, momentum=0.95, nesterov=True,
                                 adjust_lr_fn="match_rms_adamw")  # fmt: skip
    # Their products are in bfloat16 everywhere: the same numbers in float32 are what we compare.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    for grad in grads:
        theirs.grad = grad.clone()
        optimizer.step()
    (ours,) = stepped([weight], [1], [[g] for g in grads], decay=0.2)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_an_update_has_the_size_of_adamws_and_decay_is_decoupled():
    weight, grad = torch.ones(64, 256), torch.randn(64, 256)
    (found,) = stepped([weight], [1], [[grad]], lr=0.01)
    assert float((found - weight).square().mean().sqrt()) == pytest.approx(0.01 * 0.2, rel=0.15)
    (decayed,) = stepped([weight], [1], [[grad]], lr=0.01, decay=0.5)
    torch.testing.assert_close(found - decayed, weight * 0.01 * 0.5, rtol=1e-4, atol=1e-6)
    (still,) = stepped([weight], [1], [[torch.zeros_like(grad)]])
    assert torch.equal(still, weight)  # a gradient of zero, as at adaLN-Zero's start, is no NaN


PIXELS = {"enter.linear.weight": 2, "leave.linear.weight": 4}


@pytest.mark.parametrize(
    ("name", "fused"), [("debug", 3), ("cifar10-dit", 2), ("cifar10-pixeldit", 5)]
)
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(name, fused):
    run = Run.load(name, "optim.hidden=muon", "optim.weight_decay=0.1")
    with torch.device("meta"):
        model = run.model.build(run.data.promise())
    names = {p: name for name, p in model.named_parameters()}
    hidden = hidden_weights(model)
    linear = {
        f"{name}.weight" for name, m in model.named_modules() if type(m) in (nn.Linear, Fused)
    }
    assert {names[p] for p in hidden} == {n for n in linear if "blocks." in n}
    split = {names[p].split(".", 2)[2]: parts for p, parts in hidden.items() if parts > 1}
    expected = {"attention.qkv.weight": 3, "modulation.weight": 6, "mlp.gate_up.weight": 2}
    expected |= PIXELS if "pixeldit" in name else {}
    assert split == {k: v for k, v in expected.items() if k in split} and len(split) == fused

    optimizer = build_optimizer(model, run.optim, hidden)
    groups = [set(group["params"]) for group in optimizer.param_groups]
    assert set().union(*groups) == set(names) and sum(map(len, groups)) == len(names)
    assert groups[0] == set(hidden)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    assert len(moments(optimizer)) == 2 * len(names) - len(hidden)


def test_memory_counts_one_moment_for_muon_and_two_for_adamw():
    plain, muon = Run.load("debug"), Run.load("debug", "optim.hidden=muon")
    with torch.device("meta"):
        hidden = hidden_weights(plain.model.build(plain.data.promise()))
    a, b = (describe(run, run.data.promise())["training_bytes"] for run in (plain, muon))
    assert a - b == 4 * sum(p.numel() for p in hidden) > 0


def test_the_state_is_made_by_the_first_step_and_as_large_as_was_counted():
    model = nn.ModuleDict({"blocks": nn.ModuleList([Fused(8, 24, 3)]), "head": nn.Linear(8, 3)})
    optimizer = build_optimizer(model, MUON, hidden_weights(model))
    assert not optimizer.state
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    made = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert sum(v.numel() for v in made) == sum(p.numel() for p, _ in moments(optimizer))
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_blocks_has_nothing_for_muon():
    model = nn.Linear(3, 3)
    with pytest.raises(InputError, match="optim.hidden is muon, but the model has no blocks"):
        build_optimizer(model, MUON, hidden_weights(model))


def test_a_rate_set_on_every_group_is_the_rate_of_every_weight():
    model = nn.ModuleDict({"blocks": nn.ModuleList([Fused(8, 24, 3)]), "head": nn.Linear(8, 3)})
    optimizer = build_optimizer(model, MUON, hidden_weights(model))
    before = [p.detach().clone() for p in model.parameters()]
    for rate, moves in ((0.0, False), (0.1, True)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert all(moved) if moves else not any(moved)


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_is_close_to_float32():
    x = torch.randn(3, 256, 384)
    found = muon_file.orthogonal(x.cuda())
    assert found.dtype == torch.bfloat16
    assert (found.float().cpu() - orthogonal(x)).norm() < 0.03 * x.shape[1] ** 0.5 * 3**0.5
