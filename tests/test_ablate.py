"""Ablations: a grid that goes on where it was stopped, what is refused, and what the table says."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist import cli
from pointillist.ablate import ablate
from pointillist.ablate.effects import departure, effects_of, range_of
from pointillist.ablate.grid import (
    Factor,
    cells_of,
    choices,
    parse_factors,
    safe,
    split_values,
    tails,
)
from pointillist.engine.log import read
from pointillist.engine.session import Interrupted
from pointillist.run import Run
from pointillist.types import InputError

# Sixteen tokens a picture, or four.
TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=128", "train.batch=32", "train.save_every=64", "train.log_every=32",
       "train.grid=0", "train.validate=16", "optim.warmup=0", "sample.steps=1",
       "evaluate.extractor=pixels", "evaluate.reference=40")  # fmt: skip
OVER = ("model.patch_size=8,16", "optim.lr=1e-3,1e-2")
NAMES = ["patch_size=8,lr=0.001", "patch_size=8,lr=0.01",
         "patch_size=16,lr=0.001", "patch_size=16,lr=0.01"]  # fmt: skip


def table(out: Path) -> dict:
    """What the file tells, without speeds."""
    found = json.loads((out / "ablation.json").read_text())
    for cell in found["cells"]:
        del cell["images_per_second"]
        for run in cell["runs"]:
            del run["images_per_second"]
    return found


def stopping(at: str, images: int, how):
    """A `watch` that stops the training of `at` there."""

    @contextmanager
    def watch(title: str, run: Run):
        def report(event):
            if title.endswith(at) and event["event"] == "step" and event["images"] == images:
                how()

        yield report

    return watch


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "unbroken"
    ablate("debug", *TOY, over=OVER, out=out)
    return out


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pointillist", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


def test_every_combination_is_a_run_with_its_validation_losses(unbroken):
    found = table(unbroken)
    assert [cell["name"] for cell in found["cells"]] == NAMES
    assert found["factors"] == {"model.patch_size": [8, 16], "optim.lr": [1e-3, 1e-2]}
    for cell in found["cells"]:
        run = Run.load(unbroken / cell["name"])
        setting = {"model.patch_size": run.model.patch_size, "optim.lr": run.optim.lr}
        assert cell["setting"] == setting
        last = [e for e in read(unbroken / cell["name"] / "log.jsonl") if "velocity@0.5" in e][-1]
        assert last["images"] == 128
        (only,) = cell["runs"]
        assert only["scores"]["velocity@0.5"]["value"] == last["velocity@0.5"]
        assert only["losses"]["velocity@0.5"] == last["velocity@0.5"] and only["losses"]["loss"] > 0
    values = [cell["losses"]["velocity@0.5"] for cell in found["cells"]]
    effect = found["effects"]["velocity@0.5"]["optim.lr"]
    assert effect["difference"] == pytest.approx(
        (values[1] + values[3] - values[0] - values[2]) / 2
    )
    assert effect["by_chance"] is None and effect["exceeds"] is None
    page = (unbroken / "ablation.html").read_text()
    assert all(name in page for name in NAMES) and "<svg" in page
    assert "one seed" in page and "Brackets" not in page and "fields do together" in page


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "how, error",
    [(interrupt, KeyboardInterrupt), (lambda: os.kill(os.getpid(), signal.SIGINT), Interrupted)],
    ids=["killed", "asked"],
)
def test_a_grid_that_was_stopped_goes_on_to_the_same_table(unbroken, tmp_path, how, error):
    with pytest.raises(error):
        ablate("debug", *TOY, over=OVER, out=tmp_path, watch=stopping(NAMES[2], 64, how))
    assert not (tmp_path / "ablation.json").exists() and not (tmp_path / NAMES[3]).exists()
    done = [tmp_path / name / "log.jsonl" for name in NAMES[:2]]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in done]
    titles, begun = [], []

    @contextmanager
    def watch(title, run):
        titles.append(title)
        yield lambda event: begun.append(event["images"]) if event["event"] == "begin" else None

    ablate("debug", *TOY, over=OVER, out=tmp_path, watch=watch)
    assert titles == [f"run 3 of 4: {NAMES[2]}", f"run 4 of 4: {NAMES[3]}"]
    assert begun == [0 if error is KeyboardInterrupt else 96, 0]  # the signal waits for the step
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in done] == before
    assert {**table(tmp_path), "recipe": 0} == {**table(unbroken), "recipe": 0}


def test_more_values_and_seeds_add_to_a_grid(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "more")
    titles = []

    @contextmanager
    def watch(title, run):
        titles.append(title)
        yield None

    over = ("model.patch_size=8", "optim.lr=1e-3,1e-2,1e-4")
    ablate(
        "debug", *TOY, over=("model.patch_size=8,4", over[1]), out=tmp_path / "more", watch=watch
    )
    assert [title.split(": ")[1] for title in titles] == [
        "patch_size=8,lr=0.0001", *(f"patch_size=4,lr={lr}" for lr in ("0.001", "0.01", "0.0001"))
    ]  # fmt: skip


def test_one_field_at_a_time_is_a_part_of_the_grid(unbroken, say):
    shutil.copytree(unbroken, "star")
    words = [word for one in OVER for word in ("--over", one)]
    code, out, error = say("ablate", "debug", *TOY, *words, "--one-at-a-time", "--out", "star")
    assert code == 0, error
    assert "run 1 of" not in out  # nothing is trained: the grid has these
    found, whole = table(Path("star")), table(unbroken)
    assert [cell["name"] for cell in found["cells"]] == [NAMES[0], NAMES[2], NAMES[1]]
    base, size, rate = (cell["losses"]["velocity@0.5"] for cell in found["cells"])
    assert base == whole["cells"][0]["losses"]["velocity@0.5"]
    effects = found["effects"]["velocity@0.5"]
    assert effects["model.patch_size"]["difference"] == pytest.approx(size - base)
    assert effects["optim.lr"]["difference"] == pytest.approx(rate - base)
    assert "departure" not in effects and found["recipe"]["one_at_a_time"]
    page = Path("star/ablation.html").read_text()
    assert "One field at a time" in page and "the others at their first" in page
    assert "fields do together, these" in page and "Brackets" not in page


def test_metrics_are_those_of_the_runs_own_reports(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "grid")
    found = ablate("debug", *TOY, over=OVER, out=tmp_path / "grid", metrics=("kid", "velocity"),
                   count=20)  # fmt: skip
    assert found.scores[0] == "kid" and len(found.scores) == 6
    for row in found.rows:
        report = json.loads((tmp_path / "grid" / row.name / "report.json").read_text())
        assert row.results[0].scores["kid"]._asdict() == report["kid"]
        assert report["kid"]["n"] == 20 and report["recipe"]["reference"] == 40
    assert "kid over optim.lr" in (tmp_path / "grid" / "ablation.html").read_text()
    assert list((tmp_path / "grid" / "references").iterdir())  # looked at once for all cells


def test_figures_that_do_not_compare_have_no_effect(tmp_path):
    found = ablate("debug", *TOY, over=["objective.noise_scale=1,2"], out=tmp_path)
    assert found.compared == [] and "noise differs" in table(tmp_path)["not_compared"].values()
    assert "fields do together" not in (tmp_path / "ablation.html").read_text()
    assert "does not compare" in (tmp_path / "ablation.html").read_text()


def test_the_command_prints_both_tables_and_judges_by_its_seeds(say):
    words = ("ablate", "debug", *TOY, "train.images=64", "--over", "optim.lr=1e-4,3e-2",
             "--seeds", "0,1", "--out", "g")  # fmt: skip
    code, out, _ = say(*words)
    assert code == 0 and "run 4 of 4: lr=0.03,seed=1" in out and "2 seeds" in out
    assert any(line.split()[:2] == ["optim.lr", "velocity@0.1"] and line.endswith("yes")
               for line in out.splitlines())  # fmt: skip
    code, out, _ = say(*words, "--json")
    found = json.loads(out)
    assert code == 0 and [len(cell["runs"]) for cell in found["cells"]] == [2, 2]
    cell = found["cells"][0]
    values = [run["scores"]["velocity@0.3"]["value"] for run in cell["runs"]]
    assert cell["over_seeds"]["velocity@0.3"] == {
        "mean": sum(values) / 2, "low": min(values), "high": max(values), "n": 2
    }  # fmt: skip


def test_an_interrupted_command_says_how_to_go_on_and_exits_130(tmp_path):
    words = [sys.executable, "-m", "pointillist", "ablate", "debug", *TOY, "train.images=64000",
             "--over", "optim.lr=1e-3,1e-2", "--out", str(tmp_path)]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None and made.stderr is not None
        for line in made.stdout:
            if line.split()[:2] == ["64", "images"]:
                break
        made.send_signal(signal.SIGINT)
        said = made.stderr.read()
        assert made.wait(60) == 130
    assert said == (
        "pointillist: stopped in run 1 of 2: lr=0.001; saved, the same command goes on\n"
    )


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "no field is varied"),
        (("--over", "model.depth"), "it is KEY=A,B"),
        (("--over", "model.depth=2"), "one value"),
        (("--over", "model.depth=[2,3]"), "one value"),
        (("--over", "model.depth=2,3,"), "empty value"),
        (("--over", "model.depth=2,2"), "a value stands there twice"),
        (("--over", "train.batch=1k,1000"), "are the same configuration"),
        (("--over", "model.depth=2,3", "--over", "model.depth=3,4"), "twice"),
        (("model.depth=2", "--over", "model.depth=2,3"), "leave out one"),
        (("--over", "model={kind: dit},{kind: jit}", "model.depth=2"), "leave out one"),
        (("--over", "model.dept=1,2"), "did you mean depth"),
        (("--over", "model.depth=2,two"), "depth=two: model.depth is 'two'"),
        (("model.wid=2", "--over", "model.depth=2,3"), "did you mean width"),
        (("--over", "seed=0,1"), "give --seeds 0,1"),
        (("--over", "evaluate.count=10,20"), "--sweep"),
        (("--over", "model.depth=2,3", "--seeds", "3"), "set seed=3"),
        (("--over", "model.depth=2,3", "--seeds", "3,3"), "stands there twice"),
        (("--over", "model.depth=2,3", "--seeds", "a,b"), "whole numbers"),
        (("seed=2", "--over", "model.depth=2,3", "--seeds", "0,1"), "leave out one"),
        (("--over", "model.depth=2,3", "--count", "20"), "add --metrics"),
        (("--over", "model.depth=2,3", "--metrics", "psnr"), "depth=2: metric psnr"),
        (("--over", "model.depth=2,3", "train.validate=0"), "nothing to compare by"),
        (("--over", "evaluate.every=0,64", "evaluate.metrics=[psnr]"), "evaluate.every"),
        (("--over", "sample.guidance.scale=1,2", "task.label_drop=0"), "scale=2: sample.guidance"),
        (("--over", "data={kind: emoji},{kind: folder, path: nowhere}"), "nowhere"),
        (
            ("--over", "train.batch=32,9000000"),
            "batch=9000000: train.batch=9000000 of this model needs",
        ),
    ],
)
def test_a_mistake_in_any_cell_is_told_before_the_first_is_trained(say, tmp_path, words, says):
    code, out, err = say("ablate", "debug", "train.images=32", "train.grid=0", *words, "--out", "g")
    assert code == 2 and says in err and len(err.splitlines()) == 1
    assert not out and not (tmp_path / "g").exists()


SFC = ("data.kind=emoji", "model.width=32", "model.depth=1", "model.heads=2",
       "model.decoder_width=8")  # fmt: skip
OPTIONS = ("model.encoder.unified_coords=false,true", "model.encoder.spatial_bias=false,true")


@pytest.mark.parametrize(
    "over, settings",
    [
        (OPTIONS, [{"unified_coords": a, "spatial_bias": b} for a in (False, True)
                   for b in (False, True)]),
        (("model.encoder.curve=hilbert,zorder",), [{"curve": "hilbert"}, {"curve": "zorder"}]),
    ],
    ids=["options", "curves"],
)  # fmt: skip
def test_the_ablations_of_the_curve_encoder_are_grids_that_can_be_trained(tmp_path, over, settings):
    begun = []

    @contextmanager
    def watch(title, run):
        begun.append(title)
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):  # once every cell was checked, before any is trained
        ablate("cifar10-sfc", *SFC, over=over, out=tmp_path, watch=watch)
    cells = cells_of("cifar10-sfc", SFC, parse_factors(over), ())
    assert begun == [f"run 1 of {len(settings)}: {cells[0].name}"]
    assert [cell.setting for cell in cells] == [
        {f"model.encoder.{name}": value for name, value in setting.items()} for setting in settings
    ]
    for cell, setting in zip(cells, settings, strict=True):
        (trial,) = cell.trials
        assert {name: getattr(trial.run.model.encoder, name) for name in setting} == setting


def test_a_folder_with_another_run_is_refused_at_once(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "grid")
    shutil.rmtree(tmp_path / "grid" / NAMES[0])
    with pytest.raises(
        InputError, match=f"{NAMES[1]}: model.width is 64, but the run in .* has 32"
    ):
        ablate("debug", *TOY, "model.width=64", over=OVER, out=tmp_path / "grid")
    longer = ("optim.schedule=constant", "train.images=256")
    with pytest.raises(InputError, match="schedule"):
        ablate("debug", *TOY, *longer, over=OVER, out=tmp_path / "grid")
    assert not (tmp_path / "grid" / NAMES[0]).exists()
    (tmp_path / "grid" / NAMES[1] / "run.yaml").unlink()
    with pytest.raises(InputError, match="its run.yaml is missing"):
        ablate("debug", *TOY, over=OVER, out=tmp_path / "grid")
    with pytest.raises(InputError, match="is a run folder"):
        ablate("debug", *TOY, over=OVER, out=tmp_path / "grid" / NAMES[2])


def test_a_longer_run_is_no_cell_of_a_shorter_grid(tmp_path):
    constant = (*TOY, "optim.schedule=constant")
    ablate("debug", *constant, over=OVER[:1], out=tmp_path)
    with pytest.raises(InputError, match="patch_size=8: train.images is 64, but .* trained on 128"):
        ablate("debug", *constant, "train.images=64", over=OVER[:1], out=tmp_path)


def test_commas_in_brackets_and_quotation_marks_do_not_separate():
    assert split_values("[0,1],[0,2]") == ("[0,1]", "[0,2]")
    assert split_values("{a: [1,2], b: 3}, 'x,y',\"[,\" ,4") == (
        "{a: [1,2], b: 3}", "'x,y'", '"[,"', "4"
    )  # fmt: skip


def test_names_have_the_shortest_keys_that_tell_them_apart():
    assert tails(["model.depth", "optim.lr"]) == ["depth", "lr"]
    assert tails(["model.encoder.depth", "model.depth"]) == ["encoder.depth", "model.depth"]
    assert tails(["task.kind"]) == ["task.kind"] and tails(["seed"]) == ["seed"]


@given(st.text())
def test_a_name_is_safe_in_every_file_system(text):
    assert set(safe(text)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-"
    )
    assert safe(text)


def test_values_of_one_spelling_are_cells_of_their_own():
    factors = parse_factors(["train.ema=[0.9],[0.99],0.9", "optim.lr=1e-3,0.01"])
    with pytest.raises(InputError, match="train.ema"):
        cells_of("debug", (), factors, ())
    factors = parse_factors(["data={kind: folder, path: a/b},{kind: folder, path: a b}"])
    first, second = (cell.name for cell in cells_of("debug", (), factors, ()))
    assert first != second and first.rpartition(",")[0] == second.rpartition(",")[0]


@settings(deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=5, max_size=5), st.integers(1, 3))
def test_effects_of_a_grid_without_chance_are_exact(numbers, seeds):
    a, b = {0: 0.0, 1: numbers[0]}, {2: 0.0, 3: numbers[1], 4: numbers[2]}
    factors = [Factor("a", ("0", "1"), (0, 1)), Factor("b", ("2", "3", "4"), (2, 3, 4))]
    cells = [{"a": i, "b": j} for i in a for j in b]
    values = [[numbers[3] + a[cell["a"]] + b[cell["b"]]] * seeds for cell in cells]
    first, second = effects_of(factors, cells, values)
    assert first.difference == pytest.approx(numbers[0], abs=1e-9)
    assert second.difference == pytest.approx(max(b.values()) - min(b.values()), abs=1e-9)
    assert departure([first, second], cells, values) == pytest.approx(0, abs=1e-9)
    assert (first.by_chance is None) == (seeds == 1)
    values[0] = [value + numbers[4] for value in values[0]]
    effects = effects_of(factors, cells, values)
    # Of a cell that stands out by x: what neither of its fields' 1/2 + 1/3 - 1/6 explains.
    assert departure(effects, cells, values) == pytest.approx(abs(numbers[4]) / 3, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(2, 4), min_size=1, max_size=4))
def test_one_field_at_a_time_has_every_value_once_beside_the_first_of_the_others(sizes):
    factors = [Factor(f"f{i}", (), tuple(range(n))) for i, n in enumerate(sizes)]
    found = list(choices(factors, one_at_a_time=True))
    assert len(set(found)) == len(found) == 1 + sum(n - 1 for n in sizes)
    assert set(found) <= set(choices(factors, one_at_a_time=False))
    cells = [{f"f{i}": value for i, value in enumerate(one)} for one in found]
    numbers = [[10.0**i + seed for seed in (0, 1)] for i in range(len(cells))]
    row = dict(zip(found, numbers, strict=True))
    for place, effect in enumerate(effects_of(factors, cells, numbers)):
        for value, mean in enumerate(effect.means.values()):
            at = tuple(value if i == place else 0 for i in range(len(sizes)))
            assert mean == pytest.approx(sum(row[at]) / 2)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_fields_that_do_nothing_exceed_chance_one_time_in_twenty(levels, one_at_a_time):
    rng = np.random.default_rng(levels)
    values = tuple(range(levels))
    factors = [Factor("a", (), values), Factor("b", (), (0, 1))]
    cells = [{"a": i, "b": j} for i, j in choices(factors, one_at_a_time)]
    found = [effects_of(factors, cells, rng.normal(size=(len(cells), 2)).tolist())
             for _ in range(600)]  # fmt: skip
    for at, low in ((0, 0.03 if levels == 2 else 0.02), (1, 0.03)):
        rate = np.mean([effects[at].exceeds for effects in found])
        assert low < rate < 0.075, (at, rate)


def test_a_range_holds_every_seed():
    assert range_of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 3)
