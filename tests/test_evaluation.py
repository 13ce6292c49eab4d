"""Evaluations of a small run: figures that can be made by hand, parts that are not made twice."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from pointillist.engine.log import read
from pointillist.evaluation import compare, evaluate
from pointillist.evaluation.neighbours import nearest, real_pictures
from pointillist.known import protocol_mask
from pointillist.metrics import kernel_score, open_extractor, psnr, ssim
from pointillist.pictures import levels
from pointillist.run import Run
from pointillist.sample import Trained, load
from pointillist.train import train
from pointillist.types import Given, InputError
from pointillist.validation import held_out

TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=128", "train.batch=32", "train.grid=0", "train.validate=6", "sample.steps=2",
       "train.save_every=64", "evaluate.extractor=pixels", "evaluate.reference=220",
       "evaluate.count=300", "train.ema=[0.9, 0.5]")  # fmt: skip
HINTS = ("task.kind=hints", "model.encoder.kind=grid", "task.share=[0.1, 0.6]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(Run.load("debug", *TOY), folder / "plain")
    train(Run.load("debug", *TOY, *HINTS, "evaluate.count=30"), folder / "hinted")
    return folder


@pytest.fixture
def fresh(runs):
    """The runs as they were before anything was judged."""
    for name in ("evaluations", "report.json", "report.html", "sweep.json", "sweep.html"):
        for run in ("plain", "hinted"):
            path = runs / run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(runs / "references", ignore_errors=True)
    return runs


def test_a_score_is_that_of_the_runs_own_samples(fresh):
    found = evaluate(fresh / "plain", metrics=("kid", "precision"), reference=0, batch=50)
    trained = load(fresh / "plain")
    extractor = open_extractor("pixels")
    drawn = levels(trained.sample(300, batch=50))
    source = trained.run.data.open("train")
    real = extractor(real_pictures(source, range(len(source))))
    by_hand = kernel_score(extractor(drawn), real)
    assert found["kid"]["value"] == pytest.approx(by_hand.value, rel=1e-4)
    assert found["kid"]["n"] == 300 and found["kid"]["low"] < found["kid"]["value"]
    assert 0 <= found["precision"]["low"] <= found["precision"]["value"] <= 1
    recipe = found["recipe"]
    assert (recipe["nfe"], recipe["sampler"], recipe["steps"]) == (3, "heun", 2)
    assert recipe["ema"] == 0.9 and recipe["images"] == 128 and len(recipe["weights"]) == 16
    assert found["speed"]["drawn_per_second"] > 0 < found["speed"]["features_per_second"]


def test_an_interrupted_evaluation_goes_on_and_a_finished_one_draws_nothing(fresh, monkeypatch):
    whole = evaluate(fresh / "plain", metrics=("kid", "fid"))
    shutil.rmtree(fresh / "plain" / "evaluations")

    def stop(what, done, of):
        if what == "pictures" and done < of:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(fresh / "plain", metrics=("kid", "fid"), progress=stop)
    drawn = []
    answer = Trained.answer
    monkeypatch.setattr(
        Trained,
        "answer",
        lambda self, ask, **k: (drawn.append(ask.count), answer(self, ask, **k))[1],
    )
    again = evaluate(fresh / "plain", metrics=("kid", "fid"))
    assert drawn == [44]  # of 300, the first part of 256 was there
    assert [again[name] for name in ("kid", "fid")] == [whole[name] for name in ("kid", "fid")]
    evaluate(fresh / "plain", metrics=("kid", "precision", "recall"))
    assert drawn == [44]  # another metric of the same pictures needs no new ones
    evaluate(fresh / "plain", metrics=("kid",), seed=1)
    assert drawn == [44, 256, 44]


def test_real_pictures_are_looked_at_once_for_all_runs(fresh):
    seen = []

    def watch(what, done, of):
        seen.append(what)

    evaluate(fresh / "plain", metrics=("fid", "kid"), progress=watch)
    assert seen.count("real pictures") == 4  # 220 in batches of 64, though two metrics want them
    seen.clear()
    evaluate(fresh / "plain", metrics=("fid", "kid"), guidance=1.5, progress=watch)
    evaluate(fresh / "hinted", metrics=("kid",), count=20, progress=watch)
    assert "real pictures" not in seen and "pictures" in seen
    assert not list((fresh / "references").glob("*.unfinished"))


def test_the_sparse_protocol_is_the_published_one(fresh):
    mask = protocol_mask(7, (32, 32), 0.2)
    chosen = np.random.default_rng(1007).permutation(1024)[:205]
    assert mask.sum() == 205 and sorted(mask.flatten().nonzero()[:, 0].tolist()) == sorted(chosen)

    metrics = ("psnr", "psnr_whole", "coverage", "crps", "ssim")
    found = evaluate(fresh / "hinted", metrics=metrics, draws=3)
    trained = load(fresh / "hinted")
    x, label = held_out(trained.run.data.open("test"), 30)
    known = torch.stack([protocol_mask(i, (32, 32), 0.2) for i in range(30)])[:, None]
    draws = trained.posterior(Given(seen=x, mask=known), 3, tuple(label.tolist())).draws.clamp(
        -1, 1
    )
    by_hand = psnr(draws.mean(0), x, data_range=2.0, mask=~known).mean()
    assert found["psnr"]["value"] == pytest.approx(float(by_hand), abs=1e-4)
    assert found["psnr_whole"]["value"] > found["psnr"]["value"]
    levels = (((one + 1) * 127.5).round().to(torch.uint8) for one in (draws.mean(0), x))
    assert found["ssim"]["value"] == pytest.approx(float(ssim(*levels).mean()), abs=5e-3)
    assert found["recipe"]["draws"] == 3 and found["psnr"]["n"] == 30


def test_the_report_stands_alone_and_says_how_to_repeat_it(fresh):
    evaluate(fresh / "plain", metrics=("kid", "velocity"))
    page = (fresh / "plain" / "report.html").read_text()
    assert "href=" not in page and "url(" not in page and "@import" not in page
    assert page.count("src=") == page.count('src="data:') and "Nearest training pictures" in page
    for fact in ("weights", "extractor_digest", "resize", "nfe", "seed", "split", "times"):
        assert f"&quot;{fact}&quot;" in page
    kept = json.loads((fresh / "plain" / "report.json").read_text())
    validation = [e for e in read(fresh / "plain" / "log.jsonl") if e["event"] == "validation"][-1]
    small = evaluate(fresh / "plain", metrics=("velocity",), count=6)
    for t in (0.1, 0.5, 0.9):
        assert small[f"velocity@{t:g}"]["value"] == pytest.approx(validation[f"velocity@{t:g}"])
    assert set(kept) == {"kid", *(f"velocity@{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)),
                         "recipe", "speed"}  # fmt: skip
    evaluate(fresh / "hinted", metrics=("psnr", "hinted"), draws=3)
    assert "K = 3 draws" in (fresh / "hinted" / "report.html").read_text()


def test_a_training_picture_or_its_mirror_image_is_found():
    source = Run.load("debug").data.open("train")
    asked = real_pictures(source, [5, 11])
    found = nearest(torch.cat((asked, asked.flip(-1))), source, k=2, portion=100)
    assert found.rows[:, 0].tolist() == [5, 11, 5, 11] and not found.distance[:, 0].any()
    assert torch.equal(found.pictures[:2, 0], asked) and (found.distance[:, 1] > 0).all()
    assert found.searched == len(source)


def test_a_sweep_writes_a_row_and_a_line_for_each_combination(fresh):
    found = evaluate(fresh / "plain", sweeps=["ema=0,0.9", "guidance=1,2"], count=10)
    assert [row["setting"] for row in found["sweep"]] == [
        {"ema": ema, "guidance": scale} for ema in (0.0, 0.9) for scale in (1.0, 2.0)
    ]
    alone = evaluate(fresh / "plain", ema=0.9, guidance=2.0, count=10)
    assert found["sweep"][3]["kid"] == alone["kid"]
    page = (fresh / "plain" / "sweep.html").read_text()
    assert "ema 0.9" in page and "<svg" in page and "n = 10 samples" in page
    drawn = []
    with pytest.raises(InputError, match=r"ema is 0.7; this run kept 0.9, 0.5"):
        evaluate(fresh / "plain", sweeps=["ema=0,0.7"], seed=3,
                 progress=lambda *told: drawn.append(told))  # fmt: skip
    assert not drawn  # refused before anything is computed
    with pytest.raises(InputError, match="ema is given both as an option and in --sweep"):
        evaluate(fresh / "plain", sweeps=["ema=0"], ema=0.9)


def test_runs_are_compared_where_they_were_judged_alike(fresh, tmp_path):
    with pytest.raises(InputError, match="report.json is missing; call `pointillist evaluate"):
        compare([fresh / "plain", fresh / "hinted"], tmp_path / "out")
    for run in ("plain", "hinted"):
        evaluate(fresh / run, metrics=("kid", "velocity"), count=30)
    rows = compare([fresh / "plain", fresh / "hinted"], tmp_path / "out")
    assert [row.name for row in rows] == ["plain", "hinted"]
    assert rows[1].parameters > rows[0].parameters and rows[0].macs > 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<svg" in page and "pictures drawn a second" in page
    table = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert table[0]["metrics"]["kid"]["n"] == 30
    evaluate(fresh / "hinted", metrics=("kid",), count=20)
    with pytest.raises(
        InputError, match="kid of hinted was computed with n 20, that of plain with 30"
    ):
        compare([fresh / "plain", fresh / "hinted"], tmp_path / "out")
    with pytest.raises(InputError, match="two runs are named plain"):
        compare([fresh / "plain", fresh / "plain"], tmp_path / "out")
    with pytest.raises(InputError, match="a comparison takes two or more"):
        compare([fresh / "plain"], tmp_path / "out")
    (fresh / "plain" / "report.json").write_text("{")
    with pytest.raises(InputError, match="report.json is damaged"):
        compare([fresh / "plain", fresh / "hinted"], tmp_path / "out")


@pytest.mark.parametrize(
    ("run", "settings", "says"),
    [
        ("plain", {"metrics": ("psnr",)}, "metric psnr judges what is made of known pixels"),
        ("plain", {"metrics": ("fid",), "count": 100}, "fid of 100 generated pictures on 192"),
        ("plain", {"metrics": ("fid5k",), "reference": 50}, "fid5k of 50 real pictures on 192"),
        ("plain", {"extractor": "resnet"}, "extractor 'resnet' is not known"),
        ("plain", {"extractor": "no/where.pt"}, "no/where.pt cannot be read"),
        ("plain", {"metrics": ("velocity",), "size": (40, 40)}, "size is 40x40, but velocity"),
        ("plain", {"at": 7}, "at is 7, but .* has 64, 128; ask for one"),
        ("plain", {"dtype": "int8"}, "dtype is int8; it is one of float32"),
        ("plain", {"metrics": ("kid",), "count": 5}, "kid of 5 generated pictures means nothing"),
        ("plain", {"metrics": ("recall",), "reference": 3}, "recall of 3 real pictures means"),
        ("plain", {"metrics": ("fid150",)}, "takes 193 or more, so name another number"),
        ("plain", {"size": (30, 32)}, "no multiple of the patch size 4"),
        ("plain", {"colour": 1}, "colour is no setting of an evaluation; there are metrics"),
        ("plain", {"guidance": float("nan")}, "guidance"),
        ("hinted", {"metrics": ("psnr",), "share": 0.0001}, "share is 0.0001, which of 1,024"),
        ("hinted", {"metrics": ("psnr",), "share": 0.9999}, "leaves none hidden"),
        ("nowhere", {}, "nowhere is not a run folder; `pointillist train` makes one"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_before_a_picture_is_drawn(runs, run, settings, says):
    def drawn(what, done, of):
        assert what != "pictures"

    with pytest.raises(InputError, match=says):
        evaluate(runs / run, progress=drawn, **settings)


def test_parts_are_used_again_only_where_nothing_that_makes_pictures_has_changed(fresh, tmp_path):
    shutil.copytree(fresh / "plain", tmp_path / "run")
    first = evaluate(tmp_path / "run", count=12)["kid"]
    text = (tmp_path / "run" / "run.yaml").read_text()
    (tmp_path / "run" / "run.yaml").write_text(text.replace("noise_scale: 1.0", "noise_scale: 3.0"))
    assert evaluate(tmp_path / "run", count=12)["kid"] != first
    (tmp_path / "run" / "run.yaml").write_text(text)
    assert evaluate(tmp_path / "run", count=12)["kid"] == first
    # A weaker network that leads away has a say as well.
    shutil.copytree(fresh / "plain", tmp_path / "weak")
    last = tmp_path / "weak" / "checkpoints" / "000000128"
    last.rename(tmp_path / "later")
    led = text.replace("guidance:\n    scale: 1.0", "guidance:\n    scale: 2.0").replace(
        "run: ''", f"run: {tmp_path / 'weak'}"
    )
    (tmp_path / "run" / "run.yaml").write_text(led)
    guided = evaluate(tmp_path / "run", count=12)
    assert guided["recipe"]["guidance"]["scale"] == 2.0 and guided["kid"] != first
    (tmp_path / "later").rename(last)  # the guide is trained further
    assert evaluate(tmp_path / "run", count=12)["kid"] != guided["kid"]


def test_two_calls_at_once_share_the_work(fresh):
    """In processes of their own, as two shells would."""
    command = [sys.executable, "-m", "pointillist", "evaluate", str(fresh / "plain"), "--count",
               "40", "--json", "--out"]  # fmt: skip
    both = [
        subprocess.Popen([*command, str(fresh / f"{name}.json")], stdout=-1, stderr=-1, text=True)
        for name in "ab"
    ]
    said = [(one.communicate(timeout=120), one.returncode) for one in both]
    assert [code for _, code in said] == [0, 0], said
    assert json.loads(said[0][0][0])["kid"] == json.loads(said[1][0][0])["kid"]


def test_a_network_that_draws_one_picture_only_is_told_and_training_goes_on(tmp_path):
    run = Run.load("debug", *TOY, "evaluate.every=64", "evaluate.count=20", "optim.lr=1e-9",
                   "objective.noise_scale=0.001")  # fmt: skip
    train(run, tmp_path / "run")
    judged = [e for e in read(tmp_path / "run" / "log.jsonl") if e["event"] == "evaluation"]
    assert [e["images"] for e in judged] == [64, 128]
    assert all("rows are equal" in e["refused"] for e in judged)


def test_a_sweep_is_checked_whole_before_its_first_cell(fresh):
    drawn = []
    for sweep, says in (("size=32,33", "no multiple"), ("guidance=1,nan", "guidance")):
        with pytest.raises(InputError, match=says):
            evaluate(fresh / "plain", sweeps=sweep, count=12, progress=lambda *t: drawn.append(t))
    assert not drawn


def test_training_judges_itself_as_evaluate_does_and_resumes_the_same(tmp_path):
    asked = ("evaluate.every=32", "evaluate.count=12", "evaluate.reference=40")
    run = Run.load("debug", *TOY, *asked)
    train(run, tmp_path / "a" / "run")
    judged = [e for e in read(tmp_path / "a" / "run" / "log.jsonl") if e["event"] == "evaluation"]
    assert [e["images"] for e in judged] == [32, 64, 96, 128]
    found = evaluate(tmp_path / "a" / "run", at=64, batch=32)
    assert found["kid"]["value"] == pytest.approx(judged[1]["kid"], rel=1e-5)
    assert found["kid"]["low"] == pytest.approx(judged[1]["kid_low"], rel=1e-4)

    class Stop(Exception):
        pass

    def kill(event):
        if event["event"] == "evaluation" and event["images"] == 96:
            raise Stop

    with pytest.raises(Stop):
        train(run, tmp_path / "b" / "run", report=kill)
    other = Run.load("debug", *TOY, *asked, "evaluate.draws=3")  # it only looks on: may differ
    train(other, tmp_path / "b" / "run", resume=True)
    again = [e for e in read(tmp_path / "b" / "run" / "log.jsonl") if e["event"] == "evaluation"]
    assert again == judged


def test_a_training_that_could_not_judge_itself_does_not_begin(tmp_path):
    for asked, says in (
        ("psnr", "metric psnr judges"),
        ("fid12", "fid12 of 12 generated pictures"),
    ):
        run = Run.load("debug", *TOY, "evaluate.every=32", f"evaluate.metrics=[{asked}]")
        with pytest.raises(InputError, match=says):
            train(run, tmp_path / "run")
        assert not (tmp_path / "run" / "run.yaml").exists()
