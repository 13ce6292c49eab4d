"""What a run shows of itself at every save, with and without hints."""

import numpy as np
import pytest
import torch
from PIL import Image

from pointillist.engine.log import read
from pointillist.models import Network
from pointillist.run import Run
from pointillist.sample import untrained
from pointillist.tasks import HeldOut, HintsConfig, show
from pointillist.train import train
from pointillist.types import Given, InputError
from pointillist.validation import held_out, held_out_observed, velocity_loss

TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=64", "train.batch=32", "train.grid=3", "train.validate=6", "sample.steps=1",
       "train.save_every=64")  # fmt: skip
HINTS = ("task.kind=hints", "model.encoder.kind=grid", "task.share=[0.1, 0.6]")


@pytest.mark.parametrize(
    ("absent", "names"),
    [(0.0, {"hinted"}), (0.2, {"velocity", "hinted"})],
    ids=["always", "sometimes"],  # a set's own name differs from process to process
)
def test_a_run_with_hints_is_judged_and_drawn_with_them(tmp_path, absent, names):
    run = Run.load("debug", *TOY, *HINTS, f"task.absent={absent}")
    train(run, tmp_path / "run")
    (event,) = (e for e in read(tmp_path / "run" / "log.jsonl") if e["event"] == "validation")
    assert {name.partition("@")[0] for name in event if "@" in name} == names
    sheet = Image.open(tmp_path / "run" / "samples" / "000000064.png")
    size = run.data.promise().size[0]
    assert sheet.size == (3 * size + 4, 3 * size + 4)
    # Known pixels, what is made of them, the whole picture: known ones are the same in all three.
    parts = torch.from_numpy(np.array(sheet.convert("RGB")))
    rows = torch.stack([parts[i * (size + 2) :][:size, :size] for i in range(3)])
    truth, _ = held_out(run.data.open("test"), 3)
    known = held_out_observed(run.task, truth).given.mask[0, 0]
    assert 0 < known.sum() < known.numel()
    assert (rows[0][known] == rows[2][known]).all() and (rows[1][known] == rows[2][known]).all()
    assert (rows[1][~known] != rows[2][~known]).any()


def test_the_hints_of_validation_are_those_of_the_task_and_never_none():
    x = torch.zeros(200, 3, 8, 8)
    known = held_out_observed(HintsConfig(share=(0.2, 0.4), absent=0.5), x).given.mask
    assert torch.equal(
        known, held_out_observed(HintsConfig(share=(0.2, 0.4), absent=0.1), x).given.mask
    )
    assert known.float().mean() == pytest.approx(0.3, abs=0.02)


def test_only_hidden_pixels_are_judged():
    """A network that answers nothing has the error of the truth itself, over what is hidden."""
    run = Run.load("debug", *TOY, *HINTS)
    model = untrained(run, run.data.promise(), "cpu").model
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    x = torch.zeros(2, 3, 32, 32)
    x[:, :, :16] = 1.0
    known = torch.zeros(2, 1, 32, 32, dtype=torch.bool)

    def of(known):
        return HeldOut(show(Given(), x, known), ~known)

    known[:, :, :16] = True
    # A picture of 0 is answered everywhere, so the velocity is off by x/(1 - t).
    asked = (Network(model), run.objective, x, torch.zeros(2).long(), [0.5])
    assert velocity_loss(*asked, observed=of(known))[0] == pytest.approx(0.0, abs=1e-9)
    assert velocity_loss(*asked)[0] == pytest.approx(2.0, rel=1e-5)
    assert velocity_loss(*asked, observed=of(~known))[0] == pytest.approx(4.0, rel=1e-5)
    known[0] = True  # wholly known: no pixel of it is judged, and none counts as right
    some = velocity_loss(*asked, observed=of(known))[0]
    known[1] = ~known[1]
    known[1, :, :16] = False
    assert some == pytest.approx(0.0, abs=1e-9)
    assert velocity_loss(*asked, observed=of(known))[0] == pytest.approx(4.0, rel=1e-5)
    with pytest.raises(InputError, match="every pixel of the held-out pictures is known"):
        velocity_loss(*asked, observed=of(torch.ones_like(known)))
