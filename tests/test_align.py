"""Alignment: what is learnt from a teacher, when it ends, and how a run with it goes on."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pointillist as pt
from pointillist.data.loader import batches
from pointillist.describe import describe
from pointillist.draws import Draw
from pointillist.engine import checkpoint
from pointillist.frozen import vision
from pointillist.gradient import backward
from pointillist.losses import align
from pointillist.losses.align import (
    AlignConfig,
    Alignment,
    build_alignment,
    misalignment,
    normalised,
)  # fmt: skip
from pointillist.models import Network
from pointillist.run import Run
from pointillist.types import InputError

CPU = torch.device("cpu")
TOY = (
    "model.width=16", "model.depth=2", "model.heads=2", "model.patch_size=8", "train.images=96",
    "train.batch=16", "train.save_every=32", "train.log_every=16", "train.grid=0",
    "train.validate=0", "train.keep=0", "optim.warmup=32", "loss.align.weight=0.5",
    "loss.align.block=1",
)  # fmt: skip


def toy(*more: str) -> Run:
    return Run.load("debug", *TOY, *more)


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return Draw(seed, torch.arange(shape[0])).normal("noise", shape[1:])


class Means:
    """A teacher of three channels: the mean colour of every cell, and how often it was asked."""

    width, patch, digest = 3, 1, "means"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        self.asked += 1
        return nn.functional.adaptive_avg_pool2d(x, grid)


# The distance.


def test_what_points_the_same_way_is_aligned_and_the_opposite_is_2():
    y = noise(2, 5, 3, 4)
    torch.testing.assert_close(misalignment(7 * y, y), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(misalignment(-y, y), torch.full((2,), 2.0))


def test_normalised_tokens_have_no_mean_and_deviation_1_on_grids_that_are_not_square():
    y = noise(2, 5, 3, 4) * 4 + 7
    found = normalised(y, 1.0)
    torch.testing.assert_close(found.mean((2, 3)), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((2, 3)), torch.ones(2, 5), atol=1e-4, rtol=0)
    assert normalised(y, 0.0) is y
    left = normalised(y, 0.6).mean((2, 3)) * y.std((2, 3))
    torch.testing.assert_close(left, 0.4 * y.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_places_correspond_on_a_grid_that_is_not_square():
    """What copies the cells is aligned with the teacher of this picture, not of a mirrored one."""
    x = noise(2, 3, 24, 40)
    config = AlignConfig(weight=1.0, kernel=1, normalise=0.0)
    made = Alignment(config, 3, 3).look_up_to(Means())
    with torch.no_grad():
        made.projector.weight.copy_(torch.eye(3)[:, :, None, None])
    cells = nn.functional.adaptive_avg_pool2d(x, (3, 5))
    torch.testing.assert_close(made(cells, x), torch.zeros(2), atol=1e-6, rtol=0)
    assert (made(cells.flip(3), x) > 0.3).all()


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("way", [{}, {"projector": "mlp", "hidden": 7, "normalise": 0.0}])
def test_a_picture_on_its_side_is_aligned_as_it_was(height, width, way):
    """Rows and columns change places in the picture, the tokens, the teacher and the kernel."""
    x, hidden = noise(2, 3, height, width), noise(2, 4, height // 8, width // 8, seed=5)
    config = AlignConfig(weight=1.0, **way)
    made = Alignment(config, 4, 3).look_up_to(Means())
    before = made(hidden, x)
    before.sum().backward()
    slopes = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(p.mT.clone() if p.dim() == 4 else p)
    after = made(hidden.mT, x.mT)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    for p, slope in zip(made.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, slope.mT if p.dim() == 4 else slope)
    if height != width:  # tokens that lie as before belong to other places of the picture
        assert (made(hidden.mT.flip(2), x.mT) - before).abs().max() > 1e-3


def test_a_square_is_aligned_as_its_two_halves_are_on_average():
    x, hidden = noise(2, 3, 32, 32), noise(2, 4, 8, 8, seed=5)
    made = Alignment(AlignConfig(weight=1.0, kernel=1, normalise=0.0), 4, 3).look_up_to(Means())
    halves = [made(h, part) for h, part in zip(hidden.chunk(2, 3), x.chunk(2, 3), strict=True)]
    torch.testing.assert_close(torch.stack(halves).mean(0), made(hidden, x))


@pytest.mark.parametrize("projector", ["conv", "mlp"])
def test_gradients_reach_model_and_projector_and_never_the_teacher(projector):
    class Trained(nn.Module):
        width, patch, digest = 4, 1, "trained"

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(noise(4, 3))

        def forward(self, x, grid):
            return torch.einsum("o c, b c h w -> b o h w", self.weight, Means()(x, grid))

    run, teacher = toy(f"loss.align.projector={projector}"), Trained()
    spec = run.data.promise()
    model = run.model.build(spec)
    made = Alignment(run.loss.align, 16, 4).look_up_to(teacher)
    assert not [n for n, _ in made.named_parameters() if not n.startswith("projector.")]
    batch = next(batches(run.data.open("train"), run.seed, 0, 8, 8))
    terms = backward(run, Network(model), batch, CPU, 0, made)
    assert set(terms) == {"loss", "velocity", "align"}
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
    assert teacher.weight.grad is None
    # The head starts at 0, so without the alignment nothing reaches the patches.
    reached = model.patch.weight.grad
    assert reached is not None and reached.any()
    model.zero_grad()
    backward(run, Network(model), batch, CPU, 0, None)
    assert model.patch.weight.grad is not None and not model.patch.weight.grad.any()


def test_micro_batches_have_the_loss_and_gradients_of_the_whole():
    run = toy(*WAYS["all terms"])
    model = run.model.build(run.data.promise())
    made = build_alignment(run.loss.align, model, CPU)
    with torch.no_grad():  # heads that start at 0 would let nothing through
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    batch = next(batches(run.data.open("train"), run.seed, 0, 12, 12))
    found, slopes = [], []
    for size in (0, 5):
        model.zero_grad()
        made.zero_grad()
        found.append(backward(run, Network(model), batch, CPU, size, made))
        named = (*model.named_parameters(), *made.named_parameters())
        slopes.append({name: p.grad.clone() for name, p in named if p.grad is not None})
    assert set(found[0]) == {"loss", "velocity", "frequency", "lpips", "align"}
    assert slopes[0].keys() == slopes[1].keys() and slopes[0]["projector.weight"].any()
    for a, b in (found, slopes):
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-6)


# In a run.


def tensors(folder: Path, *groups: str) -> dict[str, torch.Tensor]:
    last = checkpoint.complete(folder / "checkpoints")[-1]
    return {
        f"{group}/{name}": value
        for group in groups or ("model", "optimizer", "ema-0.99", "beside", "beside-optimizer")
        for name, value in checkpoint.load(last, group).items()
    }


def steps(folder: Path) -> list[dict]:
    events = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in e.items() if k != "images_per_second"} for e in events]


def same(a: Path, b: Path) -> bool:
    left, right = tensors(a), tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


WAYS = {
    "conv": (),
    "mlp and muon": (
        "loss.align.projector=mlp", "loss.align.hidden=8", "optim.hidden=muon",
        "train.micro_batch=5",
    ),
    "bfloat16, ended": ("loss.align.stop_after=48", "train.precision=bfloat16"),
    "all terms": ("loss.lpips={weight: 0.1, after: 0.3}", "loss.frequency.weight=0.5"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_aligned_run_is_resumed_bit_for_bit(tmp_path, way):
    class Stop(Exception):
        pass

    def halt(event):
        if event["event"] == "step" and event["images"] == 80:
            raise Stop

    run = toy(*WAYS[way])
    pt.train(run, tmp_path / "a")
    with pytest.raises(Stop):
        pt.train(run, tmp_path / "b", report=halt)
    pt.train(run, tmp_path / "b", resume=True)
    assert same(tmp_path / "a", tmp_path / "b") and steps(tmp_path / "a") == steps(tmp_path / "b")


def test_an_alignment_ends_in_the_middle_of_a_line_of_the_log_and_its_teacher_is_not_asked_again(
    tmp_path, monkeypatch
):
    teacher = Means()
    monkeypatch.setattr(align, "load_teacher", lambda name, device: teacher)
    monkeypatch.setattr(align, "promise", lambda name: vision.Promise(3, 0))
    shown: list[float] = []
    monkeypatch.setattr(
        align, "misalignment",
        lambda a, b: shown.append(float(misalignment(a, b).detach().mean())) or misalignment(a, b),
    )  # fmt: skip
    run = toy("loss.align.stop_after=33", "train.log_every=96")
    pt.train(run, tmp_path)
    # Batches begin at 0, 16 and 32; the next, at 48, is beyond.
    assert teacher.asked == len(shown) == 3
    (step,) = [e for e in steps(tmp_path) if e["event"] == "step"]
    assert step["align"] == pytest.approx(sum(shown) / 3)
    at_32, at_64, at_96 = checkpoint.complete(tmp_path / "checkpoints")
    weights = [checkpoint.load(folder, "beside") for folder in (at_32, at_64, at_96)]
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    assert not torch.equal(*(w["projector.weight"] for w in weights[:2]))


def test_the_run_before_the_end_is_the_run_without_an_end(tmp_path):
    pt.train(toy("train.images=32", "optim.schedule=constant"), tmp_path / "a")
    ended = toy("train.images=32", "optim.schedule=constant", "loss.align.stop_after=32")
    pt.train(ended, tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


def test_the_projector_is_no_part_of_the_model_its_averages_or_what_is_sampled(tmp_path):
    pt.train(toy("train.images=32"), tmp_path / "a")
    pt.train(toy("train.images=32", "loss.align={}"), tmp_path / "b")
    for group in ("model", "optimizer", "ema-0.99"):
        assert tensors(tmp_path / "a", group).keys() == tensors(tmp_path / "b", group).keys()
    assert not tensors(tmp_path / "b", "beside") and len(tensors(tmp_path / "a", "beside")) == 2
    assert pt.load(tmp_path / "a").sample(count=2, steps=2).shape == (2, 3, 32, 32)


def test_a_run_saved_before_terms_could_end_goes_on(tmp_path):
    older = toy("loss.align={}", "train.log_every=48")
    pt.train(older, tmp_path / "b")
    for folder in checkpoint.complete(tmp_path / "b" / "checkpoints")[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (first,) = checkpoint.complete(tmp_path / "b" / "checkpoints")
    facts = json.loads((first / "state.json").read_text())
    assert facts["counted"] and len(set(facts["counted"].values())) == 1
    facts["counted"] = next(iter(facts["counted"].values()))
    (first / "state.json").write_text(json.dumps(facts))
    before = steps(tmp_path / "b")
    pt.train(older, tmp_path / "b", resume=True)
    assert steps(tmp_path / "b") == before


def vit(folder: Path, **more: int) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**sizes, image_size=56, patch_size=14, **more)
    torch.manual_seed(more.get("mlp_ratio", 0))
    transformers.Dinov2Model(config).save_pretrained(folder)


def test_a_teacher_may_move_and_another_in_its_place_is_refused(tmp_path):
    class Stop(Exception):
        pass

    def halt(event):
        if event["event"] == "step" and event["images"] == 48:
            raise Stop

    vit(tmp_path / "vit")
    with pytest.raises(Stop):
        pt.train(toy(f"loss.align.teacher={tmp_path / 'vit'}"), tmp_path / "run", report=halt)
    (tmp_path / "vit").rename(tmp_path / "moved")
    moved = toy(f"loss.align.teacher={tmp_path / 'moved'}")
    vit(tmp_path / "vit", mlp_ratio=2)
    for other in (toy(f"loss.align.teacher={tmp_path / 'vit'}"), toy()):
        with pytest.raises(InputError, match="is not the teacher that the run was begun with"):
            pt.train(other, tmp_path / "run", resume=True)
    pt.train(moved, tmp_path / "run", resume=True)
    assert Run.load(tmp_path / "run").loss.align.teacher == str(tmp_path / "moved")


def test_a_teacher_that_no_checkpoint_tells_of_keeps_its_name(tmp_path):
    pt.train(toy("train.images=32"), tmp_path)
    (last,) = checkpoint.complete(tmp_path / "checkpoints")
    facts = json.loads((last / "state.json").read_text())
    assert facts.pop("teacher") == {"width": 256, "digest": vision.AlexNet.digest}
    (last / "state.json").write_text(json.dumps(facts))
    vit(tmp_path / "vit")
    with pytest.raises(InputError, match="loss.align.teacher is .*vit, but the run in"):
        run = toy(f"loss.align.teacher={tmp_path / 'vit'}", "train.images=32")
        pt.train(run, tmp_path, resume=True)
    pt.train(toy("train.images=32"), tmp_path, resume=True)


def test_a_run_whose_alignment_has_ended_goes_on_without_its_teacher(tmp_path):
    class Stop(Exception):
        pass

    def halt(event):
        if event["event"] == "step" and event["images"] == 80:
            raise Stop

    vit(tmp_path / "vit")
    run = toy(f"loss.align.teacher={tmp_path / 'vit'}", "loss.align.stop_after=48")
    pt.train(run, tmp_path / "a")
    with pytest.raises(Stop):
        pt.train(run, tmp_path / "b", report=halt)
    (tmp_path / "vit").rename(tmp_path / "gone")
    told: list[dict] = []
    pt.train(run, tmp_path / "b", resume=True, report=told.append)
    assert same(tmp_path / "a", tmp_path / "b") and told[0]["teacher_parameters"] == 0
    (*_, last) = checkpoint.complete(tmp_path / "b" / "checkpoints")
    facts = [checkpoint.facts_of(folder)["teacher"] for folder in (last, *checkpoint.complete(
        tmp_path / "a" / "checkpoints"))]  # fmt: skip
    assert facts[0]["digest"] and all(fact == facts[0] for fact in facts)


def test_a_teacher_is_let_go_at_the_end_of_the_alignment():
    made = Alignment(AlignConfig(weight=1.0, stop_after=48), 16, 3).look_up_to(Means())
    made.let_go(47)
    assert made.teacher is not None
    made.let_go(48)
    assert made.teacher is None and made.digest == "means"


# Costs and refusals.


def test_what_terms_keep_for_backward_is_counted():
    plain, terms = (
        describe(run, run.data.promise())["activation_bytes"]
        for run in (toy("loss.align={}"), toy("loss.align={}", *WAYS["all terms"]))
    )
    # LPIPS keeps at least the answers of five layers, twice, for pictures of 32 pixels.
    answers = 4 * (64 * 49 + 192 * 9 + 3 * 256)
    assert terms - plain > answers


def test_what_is_trained_and_asked_beside_the_model_is_counted():
    plain, aligned = (describe(run, run.data.promise()) for run in (toy("loss.align={}"), toy()))
    assert aligned["parameters"] == plain["parameters"] and "teacher_parameters" not in plain
    assert aligned["projector_parameters"] == 256 * (16 * 9 + 1)
    assert aligned["teacher_parameters"] == vision.promise("alexnet").parameters == 2_469_696
    more = aligned["training_bytes"] - plain["training_bytes"]
    kept = aligned["activation_bytes"] - plain["activation_bytes"]
    assert more == 4 * (4 * aligned["projector_parameters"] + 2_469_696) + 16 * kept


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (("loss.align.block=3",), "loss.align.block is 3, but model jit has 2 blocks to align"),
        (("loss.align.teacher=resnet",), "loss.align.teacher"),
        (("model.patch_size=32",), "normalise is 1.0, but the model makes one token"),
    ],
)
def test_what_cannot_be_aligned_is_refused_before_anything_is_written(tmp_path, fields, told):
    with pytest.raises(InputError, match=told):
        pt.train(toy(*fields), tmp_path / "run")
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_run_is_aligned_with_a_vit_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "vit")
    run = toy(f"loss.align.teacher={tmp_path / 'vit'}", "train.images=32")
    pt.train(run, tmp_path / "run")
    assert tensors(tmp_path / "run", "beside")["beside/projector.weight"].shape[0] == 8
    assert all(0 < e["align"] < 2 for e in steps(tmp_path / "run") if e["event"] == "step")
    # What it consulted is not needed to draw from it.
    (tmp_path / "vit").rename(tmp_path / "gone")
    assert pt.load(tmp_path / "run").sample(count=1, steps=2).shape == (1, 3, 32, 32)


def test_a_vit_without_the_extra_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'pointillist\[teachers\]'"):
        pt.train(toy("loss.align.teacher=facebook/dinov2-base"), tmp_path / "run")


def test_a_model_that_gives_no_tokens_away_is_refused():
    run = toy()
    model = run.model.build(run.data.promise())
    model.takes = model.takes._replace(taps=0)
    with pytest.raises(InputError, match="model jit has 0 blocks to align"):
        build_alignment(run.loss.align, model, CPU)
