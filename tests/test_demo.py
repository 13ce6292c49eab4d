"""The tour judges honestly: exit 1 where the network is no better than per-pixel statistics."""

import re

import pytest

import pointillist as pt
from pointillist.demo import run_demo

TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=256", "train.save_every=128", "train.log_every=64", "train.validate=8",
       "sample.steps=2", "train.precision=float32")  # fmt: skip


def test_a_network_that_learnt_nothing_fails_the_tour(tmp_path, capsys):
    assert not run_demo(tmp_path, TOY)
    page = (tmp_path / "index.html").read_text()
    assert "<b>not better</b>" in page and page.count("<img") == 4 and page.count("<tr>") == 6
    assert "NOT better" in capsys.readouterr().out
    assert not re.search(r'(src|href)="(?!data:)', page)  # the page stands alone
    run_demo(tmp_path, TOY)  # its own earlier run is no obstacle
    (tmp_path / "run" / ".tour").unlink()  # as if it were somebody else's
    with pytest.raises(pt.InputError, match="already holds a run"):
        run_demo(tmp_path, TOY)
    assert (tmp_path / "run" / "checkpoints").is_dir()


@pytest.mark.slow
def test_the_tour_as_shipped_passes(tmp_path):
    assert run_demo(tmp_path)
