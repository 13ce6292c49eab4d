"""Runs that read captions: trained, resumed, sampled by prompts, judged, refused."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pointillist import cli
from pointillist.data.loader import batches
from pointillist.data.source import InMemory
from pointillist.describe import describe
from pointillist.draws import Draw
from pointillist.engine import checkpoint
from pointillist.engine.track import Tracks
from pointillist.evaluation import evaluate
from pointillist.frozen.text import TextEncoder
from pointillist.gradient import backward, shown
from pointillist.models import JiTConfig, Network
from pointillist.monitor import Grid, Validation
from pointillist.run import Run, from_dict
from pointillist.runfolder import read_spec
from pointillist.sample import Trained, load, untrained
from pointillist.tasks import GenerateConfig, HintsConfig, MixtureConfig, UpscaleConfig
from pointillist.train import train
from pointillist.types import InputError, Spec, grid_axes
from tests import latent_case, text_case
from tests.text_case import WIDTH, ReadingModel

pytest.importorskip("transformers", reason="text encoders need transformers: pip install "
                    "'pointillist[text]'")  # fmt: skip
CPU = torch.device("cpu")
SIZE = latent_case.SIZE


def source_of(captions) -> InMemory:
    n = len(captions)
    spec = Spec(channels=3, axes=grid_axes((8, 8)), captions=True, samples=n, fingerprint="x")
    return InMemory(torch.zeros(n, 3, 8, 8, dtype=torch.uint8), spec, None, captions)


@pytest.fixture(autouse=True, scope="module")
def reading():
    """The network of every run here reads captions, whatever its configuration is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JiTConfig, "build", lambda self, spec: ReadingModel(self, spec))
        yield patch


def values(root: Path) -> dict:
    return {
        "data": {"kind": "folder", "path": str(root / "pictures"), "size": SIZE, "test_share": 0.2},
        "text": {"encoder": str(root / "bert"), "length": 20, "cache": str(root / "cache"),
                 "device": "cpu"},
        "task": {"kind": "generate", "caption_drop": 0.3},
        "model": {"kind": "jit"},
        "objective": {"kind": "straight", "predict": "velocity"},
        "optim": {"schedule": "constant", "warmup": 0, "lr": 1e-2},
        "train": {"images": 32, "batch": 8, "save_every": 16, "grid": 2, "validate": 2,
                  "log_every": 8, "ema": [0.9], "workers": 0, "keep": 0},
        "sample": {"sampler": "euler", "steps": 2},
        "evaluate": {"extractor": "pixels", "count": 10, "reference": 0},
        "device": "cpu",
    }  # fmt: skip


def toy(root: Path, *more: str) -> Run:
    return from_dict(values(root), more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on pictures of two classes, one of which has captions that tell its colours."""
    root = tmp_path_factory.mktemp("text")
    latent_case.pictures(root / "pictures")
    for i, path in enumerate(sorted((root / "pictures").rglob("*.png"))):
        if i % 11:
            path.with_suffix(".txt").write_text(f"picture {i}\nthe {i % 3} of three")
    text_case.encoder(root / "bert", "bert")
    train(toy(root), root / "run")
    return root


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "all")
    text = (tmp_path / "all/run/run.yaml").read_text().replace(str(made), str(tmp_path / "all"))
    (tmp_path / "all/run/run.yaml").write_text(text)
    return tmp_path / "all"


@pytest.fixture(scope="module")
def trained(made) -> Trained:
    return load(made / "run")


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# Training.


def test_captions_are_counted_once_and_the_encoder_is_kept_in_mind(made):
    told = [event for event in events(made / "run") if event["event"] == "captions"]
    assert len(told) == 1 and told[0]["missing"] == 2 and told[0]["captions"] >= 20
    words = read_spec(made / "run").words
    assert (words.width, words.length) == (WIDTH, 20)
    assert words.digest == TextEncoder(str(made / "bert"), 20, CPU).digest
    assert any("velocity@0.5" in event for event in events(made / "run"))
    with Image.open(made / "run/samples/000000032.png") as sheet:
        assert sheet.size == (2 * SIZE + 2, SIZE)


def test_what_is_read_is_trained(made, trained):
    first = untrained(trained.run, trained.spec)
    for name in ("tokens", "pooled"):
        before, after = (getattr(one.model, name).weight for one in (first, trained))
        assert (before - after).abs().max() > 1e-3


def test_a_resumed_run_is_the_whole_one_and_encodes_nothing(made, tmp_path, monkeypatch):
    def never(*asked):
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextEncoder, "__call__", never)
    train(toy(made, "train.images=16"), tmp_path / "run")
    train(toy(made), tmp_path / "run", resume=True)
    weights = [checkpoint.load(checkpoint.complete(folder / "run/checkpoints")[-1], "model")
               for folder in (made, tmp_path)]  # fmt: skip
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_gradient_does_not_depend_on_the_portions(made, trained):
    run, found = trained.run, []
    batch = next(batches(run.data.open("train"), 0, 0, 8, 8))
    for size in (8, 3, 1):
        model = run.model.build(trained.spec)
        model.load_state_dict(trained.model.state_dict())
        backward(run, Network(model), batch, CPU, size, reader=trained.reader)
        found.append({name: p.grad for name, p in model.named_parameters()})
    for other in found[1:]:
        for name, value in other.items():
            torch.testing.assert_close(value, found[0][name])


def test_what_is_shown_of_a_sample_is_its_own_caption(made, trained):
    run = dataclasses.replace(trained.run, task=dataclasses.replace(trained.run.task,
                                                                    caption_drop=0.0))  # fmt: skip
    batch = next(batches(run.data.open("train"), 0, 0, 8, 8))
    for part, given in shown(run, batch, 3, CPU, trained.reader):
        told = [caption for (caption,) in part.caption]
        theirs = [some for i, some in zip(batch.index, batch.caption, strict=True)
                  if i in part.index]  # fmt: skip
        assert all(one in (some or ("",)) for one, some in zip(told, theirs, strict=True))
        expected = trained.reads(told)
        assert torch.equal(given.text, expected.text) and torch.equal(given.pooled, expected.pooled)
        assert torch.equal(given.text_mask, expected.mask)


def test_a_mixture_tells_each_of_its_tasks_the_captions_of_its_samples(made, trained):
    tasks = MixtureConfig(caption_drop=0.0, tasks=(GenerateConfig(), UpscaleConfig(factors=(2,))))
    run = dataclasses.replace(trained.run, task=tasks)
    batch = next(batches(run.data.open("train"), 0, 0, 16, 16))
    whole = dict(zip(batch.index.tolist(), batch.caption, strict=True))
    seen = 0
    for part, given in shown(run, batch, 16, CPU, trained.reader):
        for index, (caption,) in zip(part.index.tolist(), part.caption, strict=True):
            assert caption in (whole[index] or ("",))
            seen += 1
        told = [caption for (caption,) in part.caption]
        assert torch.equal(given.pooled, trained.reads(told).pooled)
    assert seen == 16


def test_validation_reads_the_first_captions(made, trained):
    test = trained.run.data.open("test")
    with_text = Validation(trained.run, test, None, trained.reader)
    (batch,) = with_text.batches
    told = with_text.text_of(batch, torch.device("cpu")).captions
    assert tuple(told) == tuple(some[0] if some else "" for some in test.caption[:2])


def test_a_sheet_of_hints_asks_with_the_captions_of_its_own_pictures(made, trained, tmp_path):
    run, test = trained.run, trained.run.data.open("test")
    hinted = dataclasses.replace(run, task=HintsConfig(share=0.3))
    hinted = dataclasses.replace(hinted, train=dataclasses.replace(run.train, grid=3))
    tracks = Tracks((), tmp_path)
    grid = Grid(hinted, trained.spec, test, tmp_path, trained.device, tracks, trained.reader)
    assert grid.prompt == tuple(some[0] if some else "" for some in test.caption[:3])
    assert grid.label is None and not trained.spec.classes


# Prompts.


def test_a_prompt_is_asked_for_and_one_is_for_all(trained):
    with pytest.raises(InputError, match='prompt is missing, .* give a text, or "" for nothing'):
        trained.sample(2)
    one, two = trained.sample(2, prompt="picture 1"), trained.sample(2, prompt=["picture 1"] * 2)
    assert torch.equal(one, two)
    other = trained.sample(2, prompt=("picture 1", "the 2 of three"))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    assert not torch.equal(one, trained.sample(2, prompt=""))
    with pytest.raises(InputError, match="3 prompts for 2 pictures; give one for each"):
        trained.sample(2, prompt=["a", "b", "c"])
    with pytest.raises(InputError, match="prompt is 3; a prompt is a text"):
        trained.sample(2, prompt=[3, "a"])


def test_a_picture_does_not_depend_on_its_batch(trained):
    prompts = ("a", "picture 2 is long", "", "مرحبا")
    whole = trained.sample(4, prompt=prompts, guidance=2.0, seed=1)
    parts = trained.sample(4, prompt=prompts, guidance=2.0, seed=1, batch=3)
    torch.testing.assert_close(whole, parts)


def test_prompts_are_encoded_once_for_all_steps(made, monkeypatch):
    trained, asked, call = load(made / "run"), [], TextEncoder.__call__

    def counted(self, captions):
        asked.extend(captions)
        return call(self, captions)

    monkeypatch.setattr(TextEncoder, "__call__", counted)
    trained.sample(4, prompt="a", guidance=2.0, steps=5, batch=2)
    assert sorted(asked) == ["", "a"]
    trained.sample(2, prompt="a", negative="b", guidance=2.0)
    assert sorted(asked) == ["", "a", "b"]


def test_a_negative_prompt_takes_the_place_of_the_empty_one(trained):
    def velocity(x, t, prompt):
        found = trained.network(x, torch.full((2,), t), trained.reads([prompt] * 2).into(EMPTY))
        return found.value

    from pointillist.types import Given

    EMPTY = Given(label=torch.full((2,), -1))
    for negative in (None, "the 1 of three"):
        x = trained.run.objective.noise(Draw(5, torch.arange(2)), (3, SIZE, SIZE), "sample")
        with torch.no_grad():
            for t in (0.0, 0.25, 0.5, 0.75):
                toward, away = velocity(x, t, "picture 1"), velocity(x, t, negative or "")
                x = x + 0.25 * (away + 3 * (toward - away))
        found = trained.sample(2, prompt="picture 1", negative=negative, guidance=3.0, steps=4,
                               seed=5)  # fmt: skip
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [({"prompt": ["a", None]}, "prompt is None; a prompt is a text"),
     ({"prompt": "a", "negative": ["dog"]}, r"negative is \['dog'\]; give one text, or one class"),
     ({"prompt": "a", "negative": 1.5}, "negative is 1.5; give one text")],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(trained, ask, sentence):
    with pytest.raises(InputError, match=sentence):
        trained.sample(2, guidance=2.0, **ask)


def test_what_is_told_of_the_cost_holds_for_all_portions(trained):
    from pointillist.request import Ask

    prompts = ("a", "a", "")  # the last portion is not led anywhere
    assert trained.answer(Ask(count=3, prompt=prompts, guidance=3.0, batch=2)).nfe == 4


def test_a_negative_prompt_may_be_any_text_a_number_too(trained):
    ask = {"prompt": "picture 1", "guidance": 3.0, "steps": 2}
    none, number = (trained.sample(1, negative=negative, **ask) for negative in (None, "-1"))
    assert not torch.equal(none, number)


def test_the_way_from_the_empty_prompt_to_itself_is_not_walked(trained):
    from pointillist.request import Ask

    plain = trained.answer(Ask(count=2, prompt="", guidance=3.0))
    assert plain.nfe == 2 and torch.equal(plain.x, trained.sample(2, prompt=""))
    led = trained.answer(Ask(count=2, prompt=("", "a"), guidance=3.0))
    assert led.nfe == 4


def test_guidance_needs_an_empty_caption_that_was_learnt(made):
    run = toy(made, "task.caption_drop=0")
    bare = untrained(run, run.promise())
    with pytest.raises(InputError, match="task.caption_drop 0 and never learnt the empty caption"):
        bare.sample(1, prompt="a", guidance=2.0)
    bare.sample(1, prompt="a", negative="b", guidance=2.0)
    spec = dataclasses.replace(run.promise(), captions=True)
    with pytest.raises(InputError, match="scale is 2.0, but task.caption_drop is 0"):
        toy(made, "task.caption_drop=0", "sample.guidance.scale=2").check(spec)
    toy(made, "sample.guidance.scale=2").check(spec)


def test_a_run_without_an_encoder_takes_no_prompt():
    run = Run.load("debug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JiTConfig, "build", BUILD)
        plain = untrained(run, run.promise())
    with pytest.raises(InputError, match="prompt is 'a fox', but this run reads no captions"):
        plain.sample(1, prompt="a fox")


BUILD = JiTConfig.build


# Judged.


def test_a_run_is_judged_by_the_captions_of_the_test_split(copy):
    report = evaluate(copy / "run", metrics=("kid", "velocity"))
    assert report["recipe"]["prompts"] == "captions of the test split"
    assert report["kid"]["n"] == 10 and "velocity@0.5" in report


# Encoders that differ, or are not there.


def test_a_run_is_judged_anew_where_its_prompts_are_others(copy):
    first = evaluate(copy / "run", metrics=("kid",))
    again = evaluate(copy / "run", metrics=("kid",))
    assert again["kid"] == first["kid"]
    for path in (copy / "pictures").rglob("*.txt"):
        path.write_text("something else")
    assert evaluate(copy / "run", metrics=("kid",))["kid"] != first["kid"]


def test_an_encoder_that_does_not_fit_says_so(copy, monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(InputError, match="does not fit into the memory of cpu; give a smaller"):
        toy(copy).text.open(CPU)


def test_an_encoder_may_have_moved(copy):
    before = load(copy / "run").sample(1, prompt="a")
    (copy / "bert").rename(copy / "moved")
    trained = load(copy / "run")
    with pytest.raises(InputError, match="text.encoder .*bert is not there; bring it back, or set"):
        trained.sample(1, prompt="a")
    text = (copy / "run/run.yaml").read_text()
    (copy / "run/run.yaml").write_text(text.replace(str(copy / "bert"), str(copy / "moved")))
    assert torch.equal(load(copy / "run").sample(1, prompt="a"), before)
    moved = f"text.encoder={copy / 'moved'}"
    train(toy(copy, "train.images=40", moved), copy / "run", resume=True)


def test_another_encoder_is_refused(copy):
    shutil.rmtree(copy / "bert")
    text_case.encoder(copy / "bert", "bert", seed=1)
    with pytest.raises(InputError, match="bert has other weights, another configuration"):
        load(copy / "run").sample(1, prompt="a")
    with pytest.raises(InputError, match="bert has other weights, another configuration"):
        train(toy(copy, "train.images=40"), copy / "run", resume=True)
    with pytest.raises(InputError, match="text.length is 21, but the run in .* has 20"):
        train(toy(copy, "train.images=40", "text.length=21"), copy / "run", resume=True)
    text = (copy / "run/run.yaml").read_text()
    (copy / "run/run.yaml").write_text(text.replace("verify: true", "verify: false"))
    assert load(copy / "run").sample(1, prompt="a").shape == (1, 3, SIZE, SIZE)
    train(toy(copy, "train.images=40", "text.verify=false"), copy / "run", resume=True)


def test_an_encoder_of_another_width_ends_with_exit_2(copy, monkeypatch, capsys):
    shutil.rmtree(copy / "bert")
    text_case.encoder(copy / "bert", "bert", width=24)
    code, error = called(monkeypatch, capsys, "sample", str(copy / "run"), "--prompt", "a",
                         "--out", str(copy / "x.png"))[::2]  # fmt: skip
    assert code == 2 and "has width 24, but the run was trained with 16; give the" in error
    assert error.count("\n") == 1 and "Traceback" not in error


# What contradicts itself.


def test_models_and_encoders_must_want_each_other(made, reading):
    run = toy(made)
    spec = dataclasses.replace(run.promise(), captions=True)
    none = toy(made, "text.encoder=none")
    reading.setattr(ReadingModel, "__init__", _without_words)
    try:
        with pytest.raises(InputError, match="text.encoder is none, but model jit reads captions"):
            describe(none, none.promise())
    finally:
        reading.setattr(ReadingModel, "__init__", INIT)
    assert describe(run, spec)["parameters"] == 2 * (WIDTH + 1) * 3 + 4 * 3 + 3
    reading.setattr(JiTConfig, "build", BUILD)
    try:
        with pytest.raises(InputError, match="but model jit reads no captions; set text.encoder="):
            describe(toy(made, "model.width=32", "model.depth=6", "model.heads=2"), spec)
    finally:
        reading.setattr(JiTConfig, "build", lambda self, spec: ReadingModel(self, spec))


INIT = ReadingModel.__init__


def _without_words(self, config, spec):
    torch.nn.Module.__init__(self)
    self.config, self.spec = config, spec


def test_data_without_captions_are_refused(made, tmp_path):
    shutil.copytree(made / "pictures", tmp_path / "bare", ignore=shutil.ignore_patterns("*.txt"))
    run = toy(made, f"data.path={tmp_path / 'bare'}")
    with pytest.raises(InputError, match="but the data have no captions; put a .txt beside each"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run/run.yaml").exists()


# The command line.


def called(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["pointillist", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, *capsys.readouterr()


def test_prompts_from_the_command_line(made, trained, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "one")
    words = ("sample", str(made / "run"), "--prompt", "picture 1", "--prompt", "", "--out", out,
             "--guidance", "2", "--negative", "the 1 of three", "--json")  # fmt: skip
    code, told, _ = called(monkeypatch, capsys, *words)
    assert code == 0 and json.loads(told)["count"] == 2
    assert len(list((tmp_path / "one").glob("*.png"))) == 2
    code, _, error = called(monkeypatch, capsys, "sample", str(made / "run"), "--out", out)
    assert code == 2 and "prompt is missing" in error


def test_a_prompt_that_is_cut_is_told(made, tmp_path, monkeypatch, capsys):
    words = ("sample", str(made / "run"), "--out", str(tmp_path / "a"), "--prompt", "x " * 60)
    code, told, error = called(monkeypatch, capsys, *words, "--prompt", "short", "--json")
    assert code == 0 and json.loads(told)["cut"] == 1
    assert error == "1 of 2 prompts were cut at 20 tokens, which is text.length of the run\n"


def test_a_picture_is_edited_from_the_command_line(made, trained, tmp_path, monkeypatch, capsys):
    picture = sorted((made / "pictures").rglob("*.png"))[0]
    out = tmp_path / "edited.png"
    code, told, error = called(
        monkeypatch, capsys, "edit", str(made / "run"), str(picture), "--prompt", "picture 1",
        "--strength", "0.5", "--steps", "4", "--out", str(out), "--json",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads(told)["out"] == [str(out)]
    with Image.open(out) as image:
        assert image.size == (SIZE, SIZE)
    Image.new("RGB", (SIZE + 1, SIZE)).save(tmp_path / "odd.png")
    code, _, error = called(monkeypatch, capsys, "edit", str(made / "run"), str(picture),
                            str(tmp_path / "odd.png"), "--prompt", "a", "--out",
                            str(tmp_path / "both"))  # fmt: skip
    assert code == 2 and "odd.png: " in error and not (tmp_path / "both").exists()
    for words, sentence in (
        (("--strength", "0"), "strength is 0.0; it lies in [1e-6, 1]"),
        (("--strength", "1.2"), "strength is 1.2; it lies in [1e-6, 1]"),
        ((), "prompt is missing"),
        (("--out", "x.jpg"), "--out is x.jpg; name a .png"),
    ):
        said = () if not words else ("--prompt", "a")
        code, _, error = called(monkeypatch, capsys, "edit", str(made / "run"), str(picture), *said,
                                "--out", str(out), *words)  # fmt: skip
        assert code == 2 and sentence in error and error.count("\n") == 1


def test_show_tells_of_the_encoder_and_a_preset_is_drawn_untrained(made, tmp_path, monkeypatch,
                                                                  capsys):  # fmt: skip
    import yaml

    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(values(made)))
    code, told, error = called(monkeypatch, capsys, "show", str(tmp_path / "toy.yaml"), "--json")
    assert code == 0, error
    assert json.loads(told)["run"]["text"]["length"] == 20
    code, _, error = called(
        monkeypatch, capsys, "sample", str(tmp_path / "toy.yaml"), "--random-init", "--prompt", "a",
        "--count", "2", "--size", "12x20", "--out", str(tmp_path / "x.png"),
    )  # fmt: skip
    assert code == 0, error
