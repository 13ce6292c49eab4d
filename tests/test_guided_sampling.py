"""Guidance as it is asked for: of a network, a run, a request, the command line."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

import pointillist as pt
from pointillist import cli
from pointillist.draws import Draw
from pointillist.engine import checkpoint
from pointillist.guidance import (
    APGConfig,
    AutoConfig,
    GuidanceConfig,
    LinearSchedule,
    classifier_free,
    network_field,
)
from pointillist.request import Ask
from pointillist.run import Run
from pointillist.sample import Trained, untrained
from pointillist.samplers import SAMPLERS, euler, time_grid
from pointillist.types import Given, InputError

SMALL = ("model.width=32", "model.depth=2", "model.heads=2")


def stirred(trained: Trained, seed: int = 0) -> Trained:
    """Without the zeros of the first weights, so that labels matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in trained.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return trained


@pytest.fixture(scope="module")
def trained() -> Trained:
    run = Run.load("debug", *SMALL)
    return stirred(untrained(run, run.data.promise(), "cpu"))


def unlabelled(trained: Trained) -> Trained:
    """A copy in which every class has the weights of "no label"."""
    run = trained.run
    found = Trained(run, trained.spec, copy.deepcopy(trained.model), trained.device)
    table = found.model.label.table.weight
    with torch.no_grad():
        table.copy_(table[-1:].expand_as(table))
    return found


FULL = GuidanceConfig(scale=2.5, rescale=0.5, apg=APGConfig(eta=0.2, momentum=-0.5, threshold=0.3))


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_scale_one_is_the_field_itself_to_the_last_bit(trained, sampler):
    plain = trained.answer(Ask(count=2, steps=4, sampler=sampler, guidance=1.0))
    run = trained.run.sample
    assert run.guidance.scale == 1
    assert torch.equal(plain.x, trained.sample(2, steps=4, sampler=sampler))
    for schedule in (LinearSchedule(), LinearSchedule(start=2.0)):
        guidance = GuidanceConfig(scale=3.0, schedule=schedule, interval=(0.0, 0.001))
        guided = trained.answer(Ask(count=2, steps=4, sampler=sampler, guidance=guidance))
        assert guided.nfe == plain.nfe + 1 - (schedule.start == 0)  # only t = 0 is in the interval


@pytest.mark.parametrize(
    ("ask", "nfe"),
    [({"guidance": FULL}, 20), ({"guidance": 2.0, "negative": 3}, 20),
     ({"guidance": 2.0, "rescale": 0.7, "interval": (0.35, 0.65)}, 13),
     ({"guidance": 0.0}, 10), ({"guidance": 0.0, "rescale": 0.7}, 20),
     ({"guidance": GuidanceConfig(scale=3.0, schedule=LinearSchedule())}, 19)],
)  # fmt: skip
def test_every_pass_is_counted_and_none_is_run_in_vain(trained, ask, nfe):
    found = trained.answer(Ask(count=3, steps=10, batch=2, sampler="euler", **ask))
    assert found.nfe == nfe


def test_a_guide_counts_too(trained):
    guide = unlabelled(trained)
    ask = Ask(count=2, steps=5, sampler="heun", guidance=2.0)
    assert trained.answer(ask, guide=guide).nfe == 18
    assert (
        trained.answer(Ask(count=2, steps=5, guidance=0.0, sampler="euler"), guide=guide).nfe == 5
    )


def test_an_unlabelled_guide_is_classifier_free_guidance(trained):
    expected = trained.sample(3, steps=4, guidance=2.5)
    found = trained.sample(3, steps=4, guidance=2.5, guide=unlabelled(trained))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(trained.sample(3, steps=4), expected, atol=1e-2)


def test_a_guide_without_classes_and_with_another_prediction_is_taken(trained):
    run = Run.load("debug", *SMALL, "objective.predict=velocity")
    spec = trained.spec.__class__(channels=3, axes=trained.spec.axes)
    guide = stirred(untrained(run, spec, "cpu"), 1)
    found = trained.sample(2, label=[1, 2], steps=3, sampler="euler", guidance=1.5, guide=guide)
    labels, objective = Given(label=torch.tensor([1, 2])), trained.run.objective
    ours = network_field(trained.network, objective, labels, (32, 32))
    theirs = network_field(guide.network, run.objective, Given(), (32, 32))
    with torch.no_grad():
        field = classifier_free(ours, theirs, GuidanceConfig(scale=1.5))
        expected = euler(field, _noise(trained, 2), time_grid(3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _noise(trained: Trained, count: int) -> torch.Tensor:
    return trained.run.objective.noise(Draw(0, torch.arange(count)), (3, 32, 32), "sample")


def test_a_model_without_labels_can_be_guided_by_a_weaker_one(trained):
    spec = trained.spec.__class__(channels=3, axes=trained.spec.axes)
    ours, weaker = (stirred(untrained(trained.run, spec, "cpu"), seed) for seed in (0, 1))
    found = ours.sample(1, steps=2, guidance=2.0, guide=weaker)
    assert not torch.equal(found, ours.sample(1, steps=2))


def test_a_negative_label_is_the_reference(trained):
    found = trained.sample(2, label=[1, 2], steps=3, sampler="euler", guidance=2.0, negative=5)
    halves = [
        network_field(trained.network, trained.run.objective, Given(label=label), (32, 32))
        for label in (torch.tensor([1, 2]), torch.tensor([5, 5]))
    ]
    x, times = _noise(trained, 2), time_grid(3)
    with torch.no_grad():
        for start, end in zip(times[:-1], times[1:], strict=True):
            toward, away = (half(x, start) for half in halves)
            x = x + (end - start) * (2 * toward - away)
    torch.testing.assert_close(found, x.float(), rtol=1e-4, atol=1e-4)
    name = trained.spec.classes[5]
    again = trained.sample(2, label=[1, 2], steps=3, sampler="euler", guidance=2.0, negative=name)
    assert torch.equal(again, found)
    none = trained.sample(2, label=[1, 2], steps=3, sampler="euler", guidance=2.0, negative=-1)
    assert torch.equal(
        none, trained.sample(2, label=[1, 2], steps=3, sampler="euler", guidance=2.0)
    )


def test_momentum_belongs_to_one_walk(trained):
    """A second call, and pictures drawn in parts, start from nothing again."""
    whole = trained.sample(4, steps=4, guidance=FULL)
    assert torch.equal(trained.sample(4, steps=4, guidance=FULL), whole)
    parts = trained.sample(4, steps=4, guidance=FULL, batch=2)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [2.0, FULL])
def test_half_precision_is_close(trained, guidance):
    rough = trained.sample(2, steps=3, guidance=guidance, dtype="bfloat16")
    exact = trained.sample(2, steps=3, guidance=guidance)
    assert rough.dtype == torch.float32 and (rough - exact).abs().mean() < 0.05


def test_a_request_adds_to_what_the_run_says(trained):
    run = Run.load("debug", *SMALL, "sample.guidance.scale=2", "sample.guidance.rescale=0.6")
    ours = Trained(run, trained.spec, trained.model, trained.device)
    whole = GuidanceConfig(scale=2.0, rescale=0.6, negative=4)
    assert torch.equal(
        ours.sample(2, steps=2, negative=4), trained.sample(2, steps=2, guidance=whole)
    )
    assert torch.equal(ours.sample(2, steps=2, guidance=1.0), trained.sample(2, steps=2))


@pytest.mark.parametrize(
    ("ask", "message"),
    [({"negative": 3}, "negative is given, but guidance is 1"),
     ({"rescale": 0.5, "guidance": 1.0}, "rescale is given, but guidance is 1"),
     ({"guidance": GuidanceConfig(schedule=LinearSchedule())}, "schedule is given, but guidance"),
     ({"guidance": 2.0, "negative": "dog"}, "negative is dog; it is 0 to 9, or one of"),
     ({"guidance": 2.0, "negative": 10}, "negative is 10; it is 0 to 9"),
     ({"guidance": 2.0, "rescale": 2.0}, "guidance.rescale is 2"),
     ({"guidance": GuidanceConfig(scale=2.0, auto=AutoConfig(ema=0.9))}, "came from no run folder"),
     ({"guidance": GuidanceConfig(scale=2.0, auto=AutoConfig(run="gone"))}, "gone is not a run fo"),
     ({"guidance": GuidanceConfig(scale=2.0, auto=AutoConfig(run="gone")), "negative": 2},
      "guidance.negative is 2, but guidance.auto names the reference too")],
)  # fmt: skip
def test_a_contradiction_is_one_sentence(trained, ask, message):
    with pytest.raises(InputError, match=message):
        trained.answer(Ask(count=1, steps=1, **ask))


def test_a_guide_must_answer_the_same_question(trained):
    def guide(*more: str, **spec: object) -> Trained:
        run = Run.load("debug", *SMALL, *more)
        promised = run.data.promise()
        values = {"channels": 3, "axes": promised.axes, "classes": promised.classes, **spec}
        return untrained(run, promised.__class__(**values), "cpu")

    for wrong, message in (
        (guide(channels=1), "the guide has 1 channels on 2 axes, the run 3 on 2"),
        (guide(classes=("a", "b")), "the guide has 2 classes that are not the run's 10"),
        (guide("objective.noise_scale=2"), "the guide's objective has another path or noise"),
    ):
        with pytest.raises(InputError, match=message):
            trained.sample(1, steps=1, guidance=2.0, guide=wrong)
    with pytest.raises(InputError, match="guide is given, but guidance is 1"):
        trained.sample(1, steps=1, guide=guide())
    with pytest.raises(InputError, match="negative is 2, but a guide is given as the reference"):
        trained.sample(1, steps=1, guidance=2.0, guide=guide(), negative=2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(("sample.guidance.rescale=0.7",), "sample.guidance.rescale is set, but sample.guidance.scal"),
     (("sample.guidance.schedule.kind=linear",), "sample.guidance.schedule is set, but"),
     (("sample.guidance.scale=2", "sample.guidance.negative=dog"), "guidance.negative is dog"),
     (("sample.guidance.scale=2", "sample.guidance.auto.run=a"), "set train.grid=0, or give"),
     (("sample.guidance.scale=2", "task.label_drop=0"), "no unlabelled answer is ever learnt")],
)  # fmt: skip
def test_a_run_is_checked_before_it_trains(overrides, message):
    run = Run.load("debug", *overrides)
    with pytest.raises(InputError, match=message):
        run.check(run.data.promise())


def test_a_label_needs_no_dropped_ones_to_be_led_away_from():
    run = Run.load("debug", "sample.guidance.scale=2", "sample.guidance.negative=3",
                   "task.label_drop=0", "sample.guidance.schedule.kind=power_cosine",
                   "sample.guidance.schedule.power=2", "sample.guidance.apg.eta=0")  # fmt: skip
    run.check(run.data.promise())
    assert run.sample.guidance.weight(0.5) == pytest.approx(1 + (1 - 0.5**0.5) / 2)


# From run folders.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run.load("debug", *SMALL, "train.images=96", "train.batch=32", "train.save_every=32",
                   "train.grid=0", "train.validate=0", "train.ema=[0.5, 0.9]", "optim.lr=0.02",
                   "optim.warmup=0", "train.ema_power=[0.05, 0.1]")  # fmt: skip
    out = tmp_path_factory.mktemp("guided") / "run"
    pt.train(run, out)
    return out


def test_another_average_or_an_earlier_moment_of_the_run_guides(folder):
    ours = pt.load(folder)
    for ema in (0.9, "0.9", "power:0.1", 0.0):
        guidance = GuidanceConfig(scale=2.0, auto=AutoConfig(ema=ema))
        found = ours.sample(2, steps=2, guidance=guidance)
        expected = ours.sample(2, steps=2, guidance=2.0, guide=pt.load(folder, ema=ema))
        assert torch.equal(found, expected)
    early = pt.load(folder, at=32)
    assert not torch.equal(ours.sample(1, steps=2, guidance=2.0, guide=early),
                           ours.sample(1, steps=2))  # fmt: skip
    with pytest.raises(InputError, match="is 0.5, which is the average that is guided itself"):
        ours.sample(1, guidance=GuidanceConfig(scale=2.0, auto=AutoConfig(ema="0.5")))


def test_an_earlier_moment_is_guided_by_its_own_averages(folder):
    ours = pt.load(folder, at=64)
    found = ours.sample(1, steps=2, guidance=GuidanceConfig(scale=2.0, auto=AutoConfig(ema=0.9)))
    guide = pt.load(folder, ema=0.9, at=64)
    assert torch.equal(found, ours.sample(1, steps=2, guidance=2.0, guide=guide))
    assert len(checkpoint.complete(folder / "ema")) == 3


def test_the_command_takes_them_all(folder, monkeypatch, capsys, tmp_path):
    def say(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pointillist", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    start = ("sample", folder, "--count", 2, "--steps", 3, "--sampler", "euler", "--json",
             "--out", tmp_path / "x.png")  # fmt: skip
    for words, nfe in (
        (("--guidance", 2, "--negative", 3, "--rescale", 0.7, "--ema", "power:0.07"), 6),
        (("--guidance", 2, "sample.guidance.schedule.kind=linear"), 5),
        (("--guidance", 2, "sample.guidance.apg.eta=0", "sample.guidance.auto.ema=0.9"), 6),
        (("sample.guidance.scale=2", f"sample.guidance.auto.run={folder}",
          "sample.guidance.auto.ema=power:0.1"), 6),
    ):  # fmt: skip
        code, out, err = say(*start, *words)
        assert code == 0 and json.loads(out.splitlines()[-1])["nfe"] == nfe, err
    for words, sentence in (
        (("--negative", 3), "negative is given, but guidance is 1"),
        (("sample.guidance.rescale=0.7",), "rescale is given, but guidance is 1"),
        (("--guidance", 2, "--negative", "dog"), "negative is dog"),
        (("--guidance", 2, "train.batch=2"), "train.batch=2: a run folder describes itself"),
        (("--guidance", 2, "sample.guidance.apgg=2"), "did you mean apg"),
    ):
        code, _, err = say(*start, *words)
        assert code == 2 and sentence in err
