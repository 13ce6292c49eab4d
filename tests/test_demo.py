"""The tour judges honestly: exit 1 where the network is no better than per-pixel statistics."""

import re

import pytest
import torch

import pointillist as pt
from pointillist.demo import RESTORED, restore, run_demo
from pointillist.known import protocol_mask
from pointillist.metrics import psnr
from pointillist.sample import untrained

TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=256", "train.save_every=128", "train.log_every=64", "train.validate=8",
       "sample.steps=2", "train.precision=float32")  # fmt: skip


def test_a_network_that_learnt_nothing_fails_the_tour(tmp_path, capsys):
    assert not run_demo(tmp_path, TOY)
    page = (tmp_path / "index.html").read_text()
    assert "<b>not better</b>" in page and page.count("<img") == 5
    assert page.count("<tr>") == 6 + RESTORED + 2  # with a head and a mean each of its own
    assert page.count('<th scope="row">emoji ') == RESTORED and "From 20% of the pixels" in page
    assert "NOT better" in capsys.readouterr().out
    assert not re.search(r'(src|href)="(?!data:)', page)  # the page stands alone
    run_demo(tmp_path, TOY)  # its own earlier run is no obstacle
    (tmp_path / "run" / ".tour").unlink()  # as if it were somebody else's
    with pytest.raises(pt.InputError, match="already holds a run"):
        run_demo(tmp_path, TOY)
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_the_tour_reconstructs_as_the_command_does(tmp_path):
    run = pt.Run.load("emoji-demo", *TOY)
    trained = untrained(run, run.data.promise(), "cpu")
    found = restore(run, trained)
    assert found.sheet.shape == (RESTORED, 9, 3, 32, 32)
    seen, mean, truth, nearest = (found.sheet[:, column] for column in (0, 1, 6, 7))
    known = torch.stack([protocol_mask(i, (32, 32), 0.2) for i in range(RESTORED)])[:, None]
    for column in (seen, mean, nearest):
        assert torch.equal(torch.where(known, column, 0), torch.where(known, truth, 0))
    for name, column in (("network", mean), ("nearest", nearest)):
        ours = psnr(column.clamp(-1, 1), truth, data_range=2.0, mask=~known)
        told = torch.tensor([row[name] for row in found.psnr], dtype=torch.float64)
        torch.testing.assert_close(told, ours, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_the_tour_as_shipped_passes(tmp_path):
    assert run_demo(tmp_path)
