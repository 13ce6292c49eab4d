"""Samplers and grids as words of a run's configuration, on a toy network."""

import pytest
import torch

from pointillist.request import Ask
from pointillist.run import Run
from pointillist.sample import Trained, untrained
from pointillist.samplers import SAMPLERS, time_grid
from pointillist.settings import SampleConfig
from pointillist.types import InputError

SMALL = ("model.width=16", "model.depth=1", "model.heads=2", "model.context_start=0")


def toy(*overrides: str) -> Trained:
    run = Run.load("debug", *SMALL, *overrides)
    trained = untrained(run, run.data.promise(), "cpu")
    with torch.no_grad():
        for p in trained.model.parameters():
            if not p.any():
                p.normal_(std=0.05, generator=torch.manual_seed(0))
    return trained


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_what_it_is_drawn_with(sampler):
    trained = toy()
    whole = trained.sample(3, steps=3, sampler=sampler, label=1, seed=5)
    parts = trained.sample(3, steps=3, sampler=sampler, label=1, seed=5, batch=1)
    torch.testing.assert_close(whole, parts, rtol=0, atol=2e-5)
    assert (
        trained.sample(1, steps=3, sampler=sampler, label=1, seed=6) - whole[:1]
    ).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["straight", "gvp", "vp", "cosine", "ve"])
@pytest.mark.parametrize("predict", ["x", "velocity", "eps"])
def test_every_sampler_walks_every_path(kind, predict):
    trained = toy(f"objective.kind={kind}", f"objective.predict={predict}")
    for sampler in SAMPLERS:
        x = trained.sample(1, steps=4, sampler=sampler, label=0, guidance=1.5)
        assert torch.isfinite(x).all()


def test_a_grid_of_ones_own_is_walked():
    seen = []
    trained = toy("sample.times=[0,0.2,0.7,1]", "sample.sampler=euler")
    answer = trained.answer(Ask(count=1), watch=lambda i, t, x, pair: seen.append(round(t, 6)))
    assert seen == [0, 0.2, 0.7] and answer.nfe == 3
    with pytest.raises(InputError, match="steps is 5, but sample.times is a grid of 3 steps"):
        trained.sample(1, steps=5)


def test_a_schedule_goes_by_the_path_of_the_run():
    seen = []
    trained = toy("objective.kind=edm", "objective.predict=residual", "sample.grid=karras")
    trained.answer(Ask(count=1, steps=4), watch=lambda i, t, x, pair: seen.append(t))
    path = trained.run.objective
    assert seen == time_grid(4, grid="karras", path=path)[:-1].tolist()
    assert seen != time_grid(4, grid="karras")[:-1].tolist()
    assert torch.equal(SampleConfig(grid="karras").walk(4), time_grid(4, grid="karras"))


def test_the_grid_is_named():
    assert torch.equal(SampleConfig(grid="quadratic").walk(4), time_grid(4, grid="quadratic"))
    assert torch.equal(SampleConfig(shift=2.0).walk(), time_grid(50, 2.0))
    with pytest.raises(InputError, match="sample.grid is cubic; there are uniform, quadratic"):
        SampleConfig(grid="cubic")
    with pytest.raises(InputError, match="leave out the one or the others"):
        SampleConfig(times=(0.0, 0.5, 1.0), shift=2.0)
    with pytest.raises(InputError, match="rise from 0 to 1"):
        SampleConfig(times=(0.0, 0.5))
    for shift in (0.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="sample.shift is .*; it must be above 0, and finite"):
            SampleConfig(shift=shift)
