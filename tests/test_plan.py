"""What is asked of an evaluation: metrics by name, sweeps, folders of finished parts."""

import dataclasses

import pytest
import torch

from pointillist.evaluation.parts import Parts, remembered
from pointillist.evaluation.plan import Plan, cells, digest, parse_sweeps
from pointillist.metrics.features import Extractor
from pointillist.metrics.interval import share_score
from pointillist.metrics.names import Metric, parse_metric, parse_metrics
from pointillist.types import InputError


def quiet(done):
    pass


def test_a_metric_may_name_its_pictures_and_all_real_ones():
    assert parse_metric("kid") == Metric("kid", "kid")
    assert parse_metric("fid50k_full") == Metric("fid50k_full", "fid", 50_000, True)
    assert parse_metric("fid10k") == Metric("fid10k", "fid", 10_000, False)
    assert parse_metric("recall5k") == Metric("recall5k", "recall", 5000, False)
    assert parse_metric("spread_error").score == "spread_error"
    assert Plan(metrics=("kid", "fid3k"), count=500).pictures == 3000


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: parse_metric("psnr10k"), "metric psnr10k is not known"),
        (lambda: parse_metric("is"), "metric is is not known; there are fid, kid"),
        (lambda: parse_metric("fid1"), "asks for 1 pictures"),
        (lambda: parse_metric("recall5k_full"), "takes as many real pictures .* ask for recall5k"),
        (lambda: parse_metrics(()), "no metric is asked for"),
        (lambda: parse_metrics(("kid", "kid")), "one stands there twice"),
        (lambda: Plan(draws=1), "evaluate.draws is 1; it must be 2 or more"),
        (lambda: Plan(share=1.0), "evaluate.share is 1.0; it lies in"),
        (lambda: Plan(split="all"), "evaluate.split is all; it is train or test"),
        (lambda: Plan(count=1), "evaluate.count is 1"),
        (lambda: Plan(sampler="magic"), "sampler magic is not known"),
        (lambda: Plan(steps=0), "steps is 0; it must be 1 or more"),
        (lambda: parse_sweeps(["colour=1"]), "KEY one of ema, guidance"),
        (lambda: parse_sweeps(["ema"]), "it is KEY=A,B"),
        (lambda: parse_sweeps(["ema=0,0"]), "a value stands there twice"),
        (lambda: parse_sweeps(["ema=0", "ema=0.9"]), "names ema twice"),
        (lambda: parse_sweeps(["guidance=1,two"]), "guidance takes scale, not 'two'"),
        (lambda: parse_sweeps(["size=32,wide"]), "size takes HxW, not 'wide'"),
        (lambda: parse_sweeps(["interval=0.1"]), "interval takes LO:HI, not '0.1'"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_in_a_sentence(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_a_sweep_is_every_combination_with_the_first_key_slowest():
    sweeps = parse_sweeps(["ema=0,power:0.1", "guidance=1,1.5", "interval=0:1", "at=2k"])
    found = cells(Plan(), sweeps)
    assert [(s["ema"], s["guidance"]) for s, _ in found] == [
        (0.0, 1.0), (0.0, 1.5), ("power:0.1", 1.0), ("power:0.1", 1.5)
    ]  # fmt: skip
    setting, plan = found[-1]
    assert plan == dataclasses.replace(Plan(), **setting)
    assert plan.interval == (0.0, 1.0) and plan.at == 2000
    assert [s["size"] for s, _ in cells(Plan(), parse_sweeps(["size=32,48x64"]))] == [
        (32, 32), (48, 64)
    ]  # fmt: skip


def test_parts_that_are_there_are_not_made_again(tmp_path):
    asked = []

    def make(first, number):
        asked.append((first, number))
        return {"x": torch.arange(first, first + number)} | (
            {"y": torch.ones(2)} if not first else {}
        )

    parts = Parts(tmp_path / "parts", 4)
    parts.fill(6, make, quiet)
    parts.fill(6, make, quiet)
    assert asked == [(0, 4), (4, 2)]
    parts.fill(9, make, quiet)  # the short part at the end is another one by now
    assert asked[2:] == [(4, 4), (8, 1)]
    assert parts.all("x", 9).tolist() == list(range(9)) and parts.all("y", 9).shape == (2,)
    (path,) = (p for p in (tmp_path / "parts").iterdir() if p.name.startswith("00000004-0004"))
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"00000004-0004.safetensors is damaged .*delete it"):
        parts.all("x", 9)


def test_features_of_a_batch_seen_before_are_found(tmp_path):
    calls = []

    def compute(pictures):
        calls.append(pictures.shape[0])
        return pictures.float().flatten(1)[:, :3]

    plain = Extractor("toy", "d1", 3, "none", compute)
    a = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    kept = remembered(plain, tmp_path / "kept")
    assert torch.equal(kept(a), plain(a)) and torch.equal(kept(a), plain(a)) and calls == [2, 2, 2]
    other = remembered(dataclasses.replace(plain, digest="d2"), tmp_path / "kept")
    other(a)
    assert len(calls) == 4  # another extractor's features are not its own


def test_a_digest_follows_every_fact_and_no_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) != digest({"b": 2})


def test_the_interval_of_a_share_is_wilsons():
    assert share_score(0.0, 10) == pytest.approx((0.0, 0.0, 0.277533, 10), abs=1e-6)
    assert share_score(0.5, 100) == pytest.approx((0.5, 0.403832, 0.596168, 100), abs=1e-6)
    with pytest.raises(InputError, match="is no share"):
        share_score(1.2, 10)
