"""What is shown and what counts: scattered pixels, regions, coarse pictures, mixtures."""

import dataclasses
import re
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pointillist.draws import Draw
from pointillist.encoders import GridConfig
from pointillist.evaluation.check import check_run
from pointillist.evaluation.plan import Plan
from pointillist.gradient import backward
from pointillist.known import check_known, known_of
from pointillist.models import DiTConfig, Network
from pointillist.resolution import box_means
from pointillist.run import Run
from pointillist.sample import untrained
from pointillist.tasks import (
    GenerateConfig,
    HintsConfig,
    InpaintConfig,
    MixtureConfig,
    ScatterConfig,
    Task,
    UpscaleConfig,
)
from pointillist.types import Batch, Given, InputError

from .contract.test_models import spec_of, toy

SIZE = (8, 12)
KINDS = get_args(get_args(Task)[0])


def batch_of(n=6, size=SIZE, first=0):
    index = torch.arange(first, first + n)
    x = Draw(7, index).normal("picture", (2, *size)).clamp(-1, 1)
    return Batch(index, x, label=index % 3, row=index * 5)


def draw_of(batch, seed=0):
    return Draw(seed, batch.index)


@settings(deadline=None)
@given(
    sparsity=st.floats(0.05, 1), cond=st.floats(0.05, 0.95), kept=st.booleans(),
    size=st.lists(st.integers(3, 9), min_size=1, max_size=3),
)  # fmt: skip
def test_exactly_so_many_pixels_are_kept_and_shown(sparsity, cond, kept, size):
    size = tuple(size)
    task = ScatterConfig(sparsity=sparsity, cond_fraction=cond, reveal="kept" if kept else "all")
    shown, inside = task.reveal_of(Draw(1, torch.arange(4)), size)
    cells = int(np.prod(size))
    keep = max(1, round(float(torch.tensor(sparsity) * cells)))
    assert abs(int(shown.flatten(1).sum(1).min()) - max(1, round(cond * keep))) <= 1
    assert shown.flatten(1).sum(1).unique().numel() == 1
    if kept:
        assert abs(int(inside.flatten(1).sum(1)[0]) - keep) <= 1
        assert not (shown & ~inside).any()


def test_every_pixel_is_shown_as_often_as_any_other():
    shown = ScatterConfig().reveal_of(Draw(0, torch.arange(4000)), (4, 4)).shown.float().mean(0)
    assert (shown - 3 / 16).abs().max() < 0.03  # round(0.5 * round(0.4 * 16))


def test_shares_may_be_ranges_from_which_every_sample_draws():
    task = ScatterConfig(sparsity=(0.1, 0.9), cond_fraction=(0.2, 0.8))
    counts = task.reveal_of(Draw(0, torch.arange(500)), (16, 16)).shown.flatten(1).sum(1)
    assert counts.min() < 30 and counts.max() > 150 and counts.unique().numel() > 50


def test_fixed_masks_belong_to_the_picture_not_to_the_epoch():
    fixed, free = ScatterConfig(fixed=True), ScatterConfig()
    first, later = batch_of(), batch_of(first=600)
    later = later._replace(row=first.row, x=first.x)
    for task, same in ((fixed, True), (free, False)):
        masks = [task(b, draw_of(b))[1].mask for b in (first, later)]
        assert torch.equal(*masks) == same
    with pytest.raises(InputError, match="do not number their pictures"):
        fixed(first._replace(row=None), draw_of(first))


def test_shown_pixels_bear_no_loss_and_all_others_do():
    batch, shown = ScatterConfig()(batch_of(), draw_of(batch_of()))
    assert torch.equal(batch.weight, (~shown.mask).float())
    batch, shown = ScatterConfig(reveal="kept")(batch_of(), draw_of(batch_of()))
    kept = round(0.4 * 96)
    assert batch.weight.sum() == 6 * (kept - round(0.5 * kept))
    assert not batch.weight[shown.mask].any()


def test_what_is_not_kept_changes_neither_loss_nor_gradient():
    run = Run(
        task=ScatterConfig(reveal="kept"), model=DiTConfig(width=32, depth=1, heads=2,
                                                           encoder=GridConfig()),
    )  # fmt: skip
    spec, batch = spec_of(SIZE), batch_of()
    kept = run.task.reveal_of(draw_of(batch), SIZE).kept
    run = dataclasses.replace(run, augment=dataclasses.replace(run.augment, flip=False))
    other = batch._replace(x=torch.where(kept, batch.x, torch.randn_like(batch.x)))
    assert not torch.equal(other.x, batch.x)
    found = []
    for one in (batch, other):
        model = toy(DiTConfig, SIZE, encoder=GridConfig())
        terms = backward(run, Network(model), one, torch.device("cpu"))
        found.append((terms["loss"], [p.grad.clone() for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0]) and found[0][0] > 0
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(a, b)
    assert spec.size == SIZE


def test_what_is_asked_enters_nothing_that_stands_in_for_what_is_not_kept():
    """Noised again beside them, the targets would be told twice."""
    task, batch = ScatterConfig(reveal="kept"), batch_of()
    shown, kept = task.reveal_of(draw_of(batch), SIZE)
    other = batch._replace(x=torch.where(kept & ~shown, -batch.x, batch.x))
    states = [task(b, draw_of(b))[0].x for b in (batch, other)]
    assert torch.equal(torch.where(kept, 0, states[0]), torch.where(kept, 0, states[1]))
    assert torch.equal(torch.where(kept, states[0], 0), torch.where(kept, batch.x, 0))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(("task.fixed=true",), "augment.flip turns pictures under their masks"),
     (("task.reveal=kept", "loss.lpips.weight=0.1"), "loss.lpips looks at whole pictures"),
     (("task.reveal=kept", "model.kind=pixnerd", "model.width=32", "model.heads=2",
       "model.patch_size=4", "model.jitter=0.5", "model.encoder.kind=grid"),
      "model.jitter takes the picture beside its cells"),
     (("task.sparsity=0.0001",), "of 1,024 pixels are none")],
)  # fmt: skip
def test_a_task_that_the_rest_of_a_run_contradicts_is_refused(overrides, message):
    run = Run.load("debug", "task.kind=scatter", "model.encoder.kind=grid", *overrides)
    with pytest.raises(InputError, match=message):
        run.check(run.data.promise())


def test_of_very_few_kept_pixels_one_is_left_to_ask():
    task = ScatterConfig(sparsity=(0.001, 0.4), cond_fraction=0.9, reveal="kept")
    shown, kept = task.reveal_of(Draw(0, torch.arange(500)), (16, 16))
    assert (kept & ~shown).flatten(1).any(1).all()


@settings(deadline=None)
@given(area=st.floats(0.05, 0.95), shape=st.sampled_from(["box", "stroke"]),
       size=st.lists(st.integers(4, 12), min_size=1, max_size=3))  # fmt: skip
def test_a_region_is_hidden_that_is_as_large_as_was_asked(area, shape, size):
    task = InpaintConfig(shapes=(shape,), area=area)
    hidden = ~task.reveal_of(Draw(2, torch.arange(3)), tuple(size)).shown
    wanted = max(1, round(float(torch.tensor(area) * np.prod(size))))
    assert (hidden.flatten(1).sum(1) - wanted).abs().max() <= 1


@pytest.mark.parametrize("shape", ["box", "stroke"])
def test_a_hidden_region_hangs_together(shape):
    hidden = (
        ~InpaintConfig(shapes=(shape,), area=0.2)
        .reveal_of(Draw(3, torch.arange(40)), (24, 24))
        .shown.float()
        .bool()
    )
    inside = hidden[..., 1:, :] & hidden[..., :-1, :]
    # Scattered pixels of that share would have a fifth of their neighbours hidden.
    assert inside.sum() / hidden.sum() > 0.75


def test_mask_files_are_read_and_wrong_ones_refused(tmp_path):
    levels = np.zeros((8, 12), np.uint8)
    levels[:, :5] = 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    task = InpaintConfig(masks=str(tmp_path))
    task.check_size(SIZE)
    shown = task.reveal_of(Draw(0, torch.arange(3)), SIZE).shown
    assert torch.equal(shown[1, 0], torch.from_numpy(levels > 0))
    wrong = {
        "grey": (np.full((8, 12), 128, np.uint8), "is 128 at x 0, y 0; a mask is 0"),
        "black": (np.zeros((8, 12), np.uint8), "is black everywhere, so nothing is known"),
        "white": (np.full((8, 12), 255, np.uint8), "white everywhere"),
        "small": (levels[:4], "has 4x12 pixels, the picture 8x12"),
        "alpha": (np.zeros((8, 12, 4), np.uint8), "has an alpha channel"),
    }
    for name, (pixels, message) in wrong.items():
        path = tmp_path / "wrong" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        with pytest.raises(InputError, match=message):
            InpaintConfig(masks=str(path)).check_size(SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no .png"):
        InpaintConfig(masks=str(tmp_path / "empty")).check_size(SIZE)
    with pytest.raises(InputError, match="cannot be read"):
        InpaintConfig(masks=str(tmp_path / "none.png")).check_size(SIZE)


REMEDIES = [
    (HintsConfig(absent=0.0), "task.absent=0.1", HintsConfig(absent=0.1)),
    (ScatterConfig(), "task.absent=0.1", ScatterConfig(absent=0.1)),
    (InpaintConfig(), "task.absent=0.1", InpaintConfig(absent=0.1)),
    (UpscaleConfig(), "a task.kind=mixture that holds {kind: upscale} and {kind: generate}",
     MixtureConfig(tasks=(UpscaleConfig(), GenerateConfig()))),
    (MixtureConfig(tasks=(UpscaleConfig(), ScatterConfig())),
     "absent: 0.1 of the task scatter, or {kind: generate} among task.tasks",
     MixtureConfig(tasks=(UpscaleConfig(), ScatterConfig(absent=0.1)))),
    (MixtureConfig(tasks=(UpscaleConfig(), UpscaleConfig(factors=(4,)))),
     "{kind: generate} among task.tasks",
     MixtureConfig(tasks=(UpscaleConfig(), UpscaleConfig(factors=(4,)), GenerateConfig()))),
]  # fmt: skip


@pytest.mark.parametrize(("task", "remedy", "mended"), REMEDIES)
def test_a_task_that_always_shows_something_names_a_remedy_that_works(task, remedy, mended):
    assert task.always and task.remedy == remedy and not mended.always
    known = known_of(Given(seen=torch.zeros(1, 3, 32, 32)), 1, 3, (32, 32))
    with pytest.raises(InputError, match=re.escape(f"leave noise out, or train with {remedy}")):
        check_known(known, 0.1, task.remedy)
    run = Run.load("debug", "model.width=32", "model.depth=2", "model.heads=2",
                   "model.encoder.kind=grid", "task.kind=hints")  # fmt: skip
    run = dataclasses.replace(run, task=task)
    with pytest.raises(InputError, match=re.escape(f"or hinted, or train with {remedy}")):
        check_run(run, run.data.promise(), Plan(metrics=("kid",)))
    with pytest.raises(InputError, match=re.escape(f"give some, or train with {remedy}")) as caught:
        untrained(run, run.data.promise(), "cpu").sample(1, steps=1)
    assert "\n" not in str(caught.value)


def test_the_coarse_picture_is_the_mean_of_boxes_and_each_sample_draws_its_factor():
    batch = batch_of(20)
    parts = list(UpscaleConfig(factors=(2, 4)).parts(batch, draw_of(batch)))
    assert sum(part.x.shape[0] for part, _ in parts) == 20
    for (part, shown), factor in zip(parts, (2, 4), strict=True):
        assert torch.equal(shown.seen, box_means(part.x, factor)) and shown.mask.all()
        assert part.weight is None and part.x.shape[0] > 2
    means = batch.x.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean((-1, -3))
    torch.testing.assert_close(box_means(batch.x, 4), means)


MIXED = MixtureConfig(
    tasks=(GenerateConfig(), ScatterConfig(), UpscaleConfig(), InpaintConfig()),
    weights=(1.0, 2.0, 1.0, 1.0),
)


def test_every_sample_of_a_mixture_draws_its_task_by_itself():
    batch = batch_of(400)
    whole = [(part.index, shown) for part, shown in MIXED.parts(batch, draw_of(batch))]
    shares = [index.shape[0] / 400 for index, _ in whole]
    assert np.allclose(shares, [0.2, 0.4, 0.2, 0.2], atol=0.06)
    # The same sample in another batch draws the same.
    some = Batch(*(None if v is None else v[100:140] for v in batch))
    for (index, shown), (fewer, less) in zip(
        whole, ((p.index, s) for p, s in MIXED.parts(some, draw_of(some))), strict=True
    ):
        kept = torch.isin(index, fewer)
        assert torch.equal(index[kept], fewer)
        if shown.seen is not None:
            assert torch.equal(shown.seen[kept], less.seen)


def test_a_mixture_trains_with_the_same_gradient_in_micro_batches():
    run = Run(task=MIXED, model=DiTConfig(width=32, depth=2, heads=2, encoder=GridConfig()))
    gradients = []
    for micro in (0, 5):
        model = toy(DiTConfig, SIZE, encoder=GridConfig())
        backward(run, Network(model), batch_of(16), torch.device("cpu"), micro)
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", [kind() for kind in KINDS], ids=lambda task: task.kind)
def test_held_out_pictures_are_shown_the_same_in_every_run(task):
    x = batch_of(5).x
    found = task.held_out(x, torch.arange(5))
    assert (found is None) == (not task.observes)
    if found is None:
        return
    again = task.held_out(x[2:], torch.arange(2, 5))
    assert torch.equal(found.given.seen[2:], again.given.seen)
    assert torch.equal(found.hidden[2:], again.hidden) and found.hidden.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: ScatterConfig(sparsity=0.0), "task.sparsity is 0.0; it lies in .0, 1."),
     (lambda: ScatterConfig(sparsity=1.5), "task.sparsity is 1.5"),
     (lambda: ScatterConfig(cond_fraction=(0.6, 0.3)), "a range rises"),
     (lambda: ScatterConfig(cond_fraction=1.0, reveal="kept"), "nothing is left to ask"),
     (lambda: ScatterConfig(cond_fraction=1.0, sparsity=1.0), "nothing is left to ask"),
     (lambda: ScatterConfig(absent=1.0), "use task.kind=generate"),
     (lambda: ScatterConfig(sparsity=0.001).check_size((8, 8)), "of 64 pixels are none; raise"),
     (lambda: ScatterConfig(sparsity=0.02, cond_fraction=0.9, reveal="kept").check_size((8, 8)),
      "leaves none to ask"),
     (lambda: InpaintConfig(shapes=()), "give box, stroke or both"),
     (lambda: InpaintConfig(area=0.0), "task.area is 0"),
     (lambda: InpaintConfig(area=(0.2, 1.0)), "task.area reaches 1, so nothing is ever known"),
     (lambda: InpaintConfig(area=0.3, masks="m.png"), "takes the place of task.area"),
     (lambda: UpscaleConfig(factors=(1,)), "a factor is 2 or more"),
     (lambda: UpscaleConfig(factors=()), "give one or more, each once"),
     (lambda: UpscaleConfig(factors=(5,)).check_size((8, 8)), "5, which does not divide"),
     (lambda: MixtureConfig(tasks=(GenerateConfig(),)), "takes two or more"),
     (lambda: MixtureConfig(weights=(1.0,)), "1 numbers for 2 tasks"),
     (lambda: MixtureConfig(weights=(1.0, 0.0)), "a weight is above 0"),
     (lambda: MixtureConfig(tasks=(HintsConfig(label_drop=0.3), GenerateConfig())),
      "task.tasks.0.label_drop is 0.3; in a mixture set task.label_drop")],
)  # fmt: skip
def test_a_task_that_makes_no_sense_is_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_mixture_is_read_from_a_configuration():
    run = Run.load("debug", "task.kind=mixture", "model.encoder.kind=grid",
                   "task.tasks=[{kind: scatter}, {kind: upscale, factors: [2, 4]}]")  # fmt: skip
    assert run.task.tasks == (ScatterConfig(), UpscaleConfig(factors=(2, 4)))
    run.check(run.data.promise())
