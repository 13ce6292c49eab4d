"""Activation checkpointing: every model has the same gradients, out of less memory."""

import threading
from dataclasses import replace

import pytest
import torch

from pointillist.describe import _saved, describe
from pointillist.draws import Draw
from pointillist.engine.recompute import blocks_of, recompute_blocks
from pointillist.layers.dropout import dropping
from pointillist.models import JiTConfig, Network
from pointillist.run import Run

from .test_models import CONFIGS, asked, toy

SIZE = (8, 12)


def gradients(model, dtype=torch.float32) -> tuple[list[torch.Tensor | None], int]:
    x, t, given = asked(SIZE)
    with torch.autocast("cpu", dtype, dtype != torch.float32), _saved(model.parameters()) as held:
        value = Network(model)(x, t, given).value
    value.float().square().sum().backward()
    return [p.grad for p in model.parameters()], held[0]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recomputed_model_has_the_same_gradients_and_keeps_less(config, dtype):
    plain, kept = gradients(toy(config, SIZE).train(), dtype)
    model = recompute_blocks(toy(config, SIZE).train())
    again, fewer = gradients(model, dtype)
    assert len(list(blocks_of(model))) >= 2 and fewer < 0.85 * kept
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_dropout_drops_the_same_in_both_forwards():
    config = JiTConfig

    def dropped(recompute: bool) -> list[torch.Tensor | None]:
        model = toy(config, SIZE, depth=4, dropout=0.5).train()
        model = recompute_blocks(model) if recompute else model
        with dropping(Draw(0, torch.arange(3))):
            return gradients(model)[0]

    for one, other in zip(dropped(False), dropped(True), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_backward_may_run_in_another_thread():
    """As it does on CUDA."""

    def dropped(recompute: bool) -> list[torch.Tensor | None]:
        model = toy(JiTConfig, SIZE, depth=4, dropout=0.5).train()
        model = recompute_blocks(model) if recompute else model
        x, t, given = asked(SIZE)
        with dropping(Draw(0, torch.arange(3))):
            loss = Network(model)(x, t, given).value.square().sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        return [p.grad for p in model.parameters()]

    for one, other in zip(dropped(False), dropped(True), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_names_of_weights_stay():
    model = toy(JiTConfig, SIZE)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in recompute_blocks(model).named_parameters()] == names


def test_what_is_promised_of_memory_falls_with_it():
    run = Run.load("cifar10-jit")
    kept, recomputed = (
        describe(replace(run, train=replace(run.train, gradient_checkpointing=way)),
                 run.data.promise())["activation_bytes"]
        for way in (False, True)
    )  # fmt: skip
    assert recomputed < kept / 3


def test_without_gradients_nothing_is_kept_for_them():
    model = recompute_blocks(toy(JiTConfig, SIZE))
    x, t, given = asked(SIZE)
    with torch.no_grad():
        assert torch.equal(
            Network(model)(x, t, given).value, Network(toy(JiTConfig, SIZE))(x, t, given).value
        )
