"""Clipping by running statistics: what stands out is clipped, and how a run goes on with it."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pointillist as pt
from pointillist.engine import checkpoint
from pointillist.engine.log import read
from pointillist.engine.optim import OptimConfig, clip_gradients
from pointillist.engine.zclip import Norms, ZScoreConfig
from pointillist.run import Run
from pointillist.types import InputError

SHORT = ZScoreConfig(threshold=2.5, decay=0.9, warmup=3)
norms_of = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=30)


def seen(norms: list[float], zscore: ZScoreConfig = SHORT) -> Norms:
    found = Norms()
    for norm in norms:
        found = found.after(zscore, norm)
    return found


def limit(found: Norms, norm: float, zscore: ZScoreConfig = SHORT) -> float:
    """What a gradient of that norm is left with."""
    return min(norm, float(found.limit(zscore, torch.tensor(norm, dtype=torch.float64))))


def test_the_first_norms_have_their_plain_mean_and_variance():
    norms = [1.0, 4.0, 2.0, 9.0]
    found = seen(norms, ZScoreConfig(threshold=1.0, warmup=4))
    values = torch.tensor(norms, dtype=torch.float64)
    assert found.steps == 4
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.variance == pytest.approx(float(values.var(correction=0)))


def test_a_known_sequence_is_clipped_as_the_equations_say():
    """Mean 2 and variance 2/3 after 1, 2, 3; then a norm of 12, which is z = 12.2 away."""
    found = seen([1.0, 2.0, 3.0])
    z = 10 / math.sqrt(2 / 3)
    clipped = 2 + 2.5**2 / z * math.sqrt(2 / 3)
    assert limit(found, 12.0) == pytest.approx(clipped) == pytest.approx(2 + 6.25 / 15)
    # It enters as the edge.
    edge, after = 2 + 2.5 * math.sqrt(2 / 3), found.after(SHORT, 12.0)
    assert after.mean == pytest.approx(0.9 * 2 + 0.1 * edge)
    assert after.variance == pytest.approx(0.9 * 2 / 3 + 0.1 * (edge - after.mean) ** 2)
    # The edge itself is left alone, and there the clipped norm begins where the norm is.
    assert found.edge(SHORT) == pytest.approx(edge) and limit(found, edge) == edge
    assert limit(found, edge * (1 + 1e-9)) == pytest.approx(edge)


@pytest.mark.parametrize("factor", [1.5, 2.0, 10.0])
def test_where_norms_rise_for_good_the_statistics_follow(factor):
    """Their own spread is narrow, so that every norm of the new kind stands out at first."""
    zscore = ZScoreConfig(threshold=2.5)
    spread = torch.randn(1200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norms = (1 + 0.05 * spread).tolist()
    found = seen(norms[:500], zscore)
    spikes = []
    for norm in norms[500:]:
        spikes.append(factor * norm > found.edge(zscore))
        found = found.after(zscore, factor * norm)
    assert spikes[0] and sum(spikes[-400:]) < 20
    assert found.mean == pytest.approx(factor, rel=0.05)


def test_nothing_is_clipped_before_the_statistics_are_there_or_where_norms_never_differ():
    assert limit(seen([1.0, 2.0]), 1e6) == 1e6
    assert limit(seen([1.0] * 9), 1e6) == 1e6
    assert seen([1.0, 5.0], ZScoreConfig()) == Norms()


@settings(max_examples=200, deadline=None)
@given(norms_of, st.floats(1e-3, 1e6))
def test_a_norm_is_never_raised_and_within_the_threshold_it_stays(norms, norm):
    found = seen(norms)
    left = limit(found, norm)
    assert left <= norm
    if norm <= found.mean + 2.5 * found.variance**0.5 * (1 - 1e-12):
        assert left == norm
    assert left >= min(norm, found.mean)  # and nothing is clipped below what is usual


@settings(max_examples=200, deadline=None)
@given(norms_of, st.floats(1e-3, 1e3), st.integers(-8, 8))
def test_gradients_of_another_scale_are_clipped_alike(norms, norm, power):
    scale = 2.0**power  # exact in floating point
    found, scaled = seen(norms), seen([scale * n for n in norms])
    assert limit(scaled, scale * norm) == pytest.approx(scale * limit(found, norm), rel=1e-12)


@pytest.mark.parametrize(("clip", "expected"), [(0.0, 2 + 6.25 / 15), (1.0, 1.0), (50.0, 2.4167)])
def test_gradients_are_clipped_to_the_lower_of_both_limits(clip, expected):
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    p.grad, q.grad = torch.tensor([4.0, 4.0, 8.0]), torch.tensor([4.0, math.sqrt(32.0)])
    optim = OptimConfig(zscore=SHORT)
    norm = clip_gradients([p, q], clip, optim, seen([1.0, 2.0, 3.0]))
    assert float(norm) == pytest.approx(12.0)
    left = torch.cat((p.grad, q.grad)).norm()
    assert float(left) == pytest.approx(expected, rel=1e-4)
    assert float(p.grad[2] / p.grad[0]) == pytest.approx(2.0)


def test_what_does_not_stand_out_keeps_its_gradient_bit_for_bit():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, 2.0, 0.3])
    clip_gradients([p], 0.0, OptimConfig(zscore=SHORT), seen([1.0, 2.0, 3.0]))
    assert p.grad.tolist() == torch.tensor([1.0, 2.0, 0.3]).tolist()


TOY = (
    "model.width=16", "model.depth=2", "model.heads=2", "model.patch_size=8", "train.images=96",
    "train.batch=8", "train.save_every=48", "train.log_every=8", "train.grid=0",
    "train.validate=0", "train.keep=0", "optim.zscore={threshold: 0.5, warmup: 3}",
)  # fmt: skip


def test_the_statistics_are_those_of_the_log_and_go_on_with_the_run(tmp_path):
    class Stop(Exception):
        pass

    def halt(event):
        if event["event"] == "step" and event["images"] == 72:
            raise Stop

    run = Run.load("debug", *TOY)
    pt.train(run, tmp_path / "a")
    with pytest.raises(Stop):
        pt.train(run, tmp_path / "b", report=halt)
    pt.train(run, tmp_path / "b", resume=True)
    steps = [[e for e in read(tmp_path / name / "log.jsonl") if e["event"] == "step"]
             for name in "ab"]  # fmt: skip
    for one, other in zip(*steps, strict=True):
        assert one | {"images_per_second": 0} == other | {"images_per_second": 0}
    expected, spikes = Norms(), 0
    for event in steps[0]:
        spike = event["grad_norm"] > expected.edge(run.optim.zscore)
        assert event["spikes"] == spike
        spikes += spike
        expected = expected.after(run.optim.zscore, event["grad_norm"])
    assert 0 < spikes < 12
    for name in "ab":
        last = checkpoint.complete(tmp_path / name / "checkpoints")[-1]
        told = json.loads((last / "state.json").read_text())["norms"]
        assert told == list(expected)
    for group in ("model", "optimizer"):
        ours, theirs = (
            checkpoint.load(checkpoint.complete(tmp_path / name / "checkpoints")[-1], group)
            for name in "ab"
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_norm_that_is_not_finite_leaves_no_trace(tmp_path, monkeypatch):
    from pointillist import gradient

    backward = gradient.backward

    def bad(run, network, batch, *rest):
        terms = backward(run, network, batch, *rest)
        if int(batch.index[0]) in (40, 48):
            next(network.model.parameters()).grad.fill_(torch.nan)
        return terms

    monkeypatch.setattr(gradient, "backward", bad)
    pt.train(Run.load("debug", *TOY), tmp_path)
    (*_, last) = checkpoint.complete(tmp_path / "checkpoints")
    steps, mean, variance = checkpoint.facts_of(last)["norms"]
    assert steps == 10 and 0 < mean < 1e3 and 0 < variance < 1e6


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"threshold": -1.0}, "optim.zscore.threshold is -1"),
        ({"threshold": 1.0, "decay": 1.0}, "optim.zscore.decay is 1"),
        ({"threshold": 1.0, "warmup": 1}, "optim.zscore.warmup is 1"),
        ({"decay": 0.99}, "optim.zscore.decay is 0.99, but optim.zscore.threshold is 0"),
    ],
)
def test_nonsense_is_refused(fields, told):
    with pytest.raises(InputError, match=told):
        ZScoreConfig(**fields)
