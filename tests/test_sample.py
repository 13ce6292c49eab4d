"""Sampling: one seed a picture, evaluations counted, requests checked."""

import numpy as np
import pytest
import torch

from pointillist.guidance import label_number
from pointillist.request import Ask, ask_of
from pointillist.run import Run
from pointillist.sample import untrained
from pointillist.types import InputError
from tests.awake import awake


@pytest.fixture(scope="module")
def trained():
    return awake()


def test_a_picture_is_the_same_alone_and_in_any_batch(trained):
    whole = trained.sample(6, label=list(range(6)), steps=3, seed=4)
    parts = trained.sample(6, label=list(range(6)), steps=3, seed=4, batch=4)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    alone = trained.sample(1, label=0, steps=3, seed=4)
    torch.testing.assert_close(alone[0], whole[0], rtol=1e-5, atol=1e-5)
    assert not torch.equal(trained.sample(1, label=0, steps=3, seed=5)[0], whole[0])


@pytest.mark.parametrize(
    ("ask", "nfe"),
    [({"sampler": "euler", "guidance": 1.0}, 10), ({"sampler": "heun", "guidance": 1.0}, 19),
     ({"sampler": "euler", "guidance": 2.0, "interval": (0.0, 1.0)}, 20),
     ({"sampler": "euler", "guidance": 2.0, "interval": (0.35, 0.65)}, 13),
     ({"sampler": "ab2", "guidance": 0.0, "interval": (0.0, 1.0)}, 10),
     ({"sampler": "dpmpp_2m", "guidance": 1.0}, 10)],
)  # fmt: skip
def test_evaluations_are_those_of_a_whole_batch(trained, ask, nfe):
    assert trained.answer(Ask(count=3, steps=10, batch=2, **ask)).nfe == nfe


def test_another_size_and_precision_are_answered(trained):
    x = trained.sample(2, steps=2, size=(40, 28))
    assert x.shape == (2, 3, 40, 28) and x.dtype == torch.float32
    rough = trained.sample(2, steps=2, dtype="bfloat16")
    exact = trained.sample(2, steps=2)
    assert rough.dtype == torch.float32 and (rough - exact).abs().max() < 0.1


def test_labels_by_name_number_or_in_turn(trained):
    names = trained.spec.classes
    assert label_number(names[2], names) == 2 and label_number("2", names) == 2
    assert label_number(-1, names) == -1
    found = trained.answer(Ask(count=12, steps=1))
    assert found.label.tolist() == [i % len(names) for i in range(12)]
    assert trained.answer(Ask(count=2, label=(names[1], 0), steps=1)).label.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("ask", "message"),
    [({"label": 99}, "label is 99; it is 0 to 9, or one of"), ({"label": "dog"}, "label is dog"),
     ({"label": (1, 2, 3)}, "3 labels for 2 pictures"), ({"steps": 0}, "steps is 0"),
     ({"sampler": "rk4"}, "sampler rk4 is not known; there are"), ({"count": 0}, "count is 0"),
     ({"size": (30, 32)}, "size 30x32 is no multiple of the patch size 4; 32x32 would do"),
     ({"size": (32,)}, "has 1 axes; the run has 2"), ({"seed": -1}, "seed is -1"),
     ({"interval": (1.0, 0.0)}, "guidance.interval"),
     ({"guidance": float("nan")}, "guidance is nan; it must be a finite number")],
)  # fmt: skip
def test_a_wrong_request_is_one_sentence(trained, ask, message):
    with pytest.raises(InputError, match=message):
        trained.answer(Ask(**{"count": 2, "steps": 1, **ask}))


@pytest.mark.parametrize(
    ("ask", "message"),
    [({"guidance": "2"}, "guidance is '2'; it must be a number"),
     ({"rescale": "0.7"}, "rescale is '0.7'; it must be a number"),
     ({"size": 32}, "size is 32; give one whole number an axis"),
     ({"size": (32, 32.5)}, "size is 32.5; it must be a whole number"),
     ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
     ({"seed": None}, "seed is None; it must be a whole number"),
     ({"label": 1.7}, "label is 1.7; a label is a whole number or the name"),
     ({"label": torch.tensor([1.0, 2.0])}, "label is 1.0; a label is a whole number"),
     ({"label": [1, None]}, "label is None; a label is a whole number")],
)  # fmt: skip
def test_what_is_of_another_kind_is_one_sentence(trained, ask, message):
    with pytest.raises(InputError, match=message):
        trained.sample(**{"count": 2, "steps": 1, **ask})


def test_labels_and_counts_may_be_arrays_of_whole_numbers(trained):
    for labels in (torch.tensor([3, 1]), np.array([3, 1]), [3, 1], (np.int64(3), 1)):
        assert ask_of({"label": labels}).label == (3, 1)
        assert trained.sample(2, labels, steps=1).shape == (2, 3, 32, 32)
    one = ask_of({"count": np.int64(2), "label": np.array(3), "size": [32, np.int64(32)]})
    assert (one.count, one.label, one.size) == (2, 3, (32, 32))


def test_noise_is_drawn_where_the_network_is(trained, monkeypatch):
    """As many bits on the way to a GPU as the numbers of the pictures."""
    drawn = []
    whole = type(trained.run.objective).noise
    monkeypatch.setattr(trained, "device", torch.device("meta"))
    monkeypatch.setattr(
        type(trained.run.objective), "noise",
        lambda self, draw, *rest: drawn.append(draw.index.device.type) or whole(self, draw, *rest),
    )  # fmt: skip
    with pytest.raises(Exception):  # noqa: B017 - the network is not there
        trained.sample(1, steps=1)
    assert drawn == ["meta"]


def test_a_model_without_labels_refuses_them():
    run = Run.load("debug", "model.width=32", "model.depth=2", "model.heads=2")
    model = untrained(run, run.data.promise().__class__(channels=3, axes=run.data.promise().axes))
    assert model.answer(Ask(count=1, steps=1)).label is None
    with pytest.raises(InputError, match="this model has no labels; leave it out"):
        model.sample(1, label=0, steps=1)
    with pytest.raises(InputError, match="this model has no labels; leave it at 1"):
        model.sample(1, guidance=2.0, steps=1)


def test_too_many_pictures_at_once_get_a_batch_that_may_fit(trained, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(type(trained), "_reference", full)
    with pytest.raises(InputError, match="8 of 32x32 pixels .* try --batch 4"):
        trained.sample(8, steps=1)
    with pytest.raises(InputError, match="1 of 32x32 pixels .* smaller --size"):
        trained.sample(1, steps=1)


def test_watch_sees_the_estimate_behind_every_step(trained):
    seen = []
    trained.sample(2, steps=3, watch=lambda i, t, x, pair: seen.append((i, t, pair.x.shape)))
    assert seen == [(i, pytest.approx(i / 3), (2, 3, 32, 32)) for i in range(3)]


def test_a_run_that_never_dropped_a_label_is_not_guided():
    run = Run.load("debug", "model.width=32", "model.depth=2", "model.heads=2", "task.label_drop=0")
    with pytest.raises(InputError, match="never learnt an unlabelled answer"):
        untrained(run, run.data.promise()).sample(1, guidance=2.0, steps=1)


def test_weights_that_predict_a_sigma_are_not_sampled_where_no_step_has_one():
    run = Run.load("cifar10-dit", "model.width=32", "model.depth=1", "model.learn_sigma=true")
    spec = Run.load("debug").data.promise()
    with pytest.raises(
        InputError, match="model.learn_sigma is true, but objective.kind is straight"
    ):
        untrained(run, spec).sample(1, steps=1)
