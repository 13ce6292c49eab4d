"""The command: what it prints, what it refuses, and with which exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pointillist import cli
from pointillist.run import preset_names

TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=64", "train.batch=32", "train.save_every=32", "train.grid=4",
       "train.validate=8", "sample.steps=2", "optim.lr=0.01", "optim.warmup=0")  # fmt: skip


class Said:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["pointillist", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Said(int(caught.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "toy"
    command = [sys.executable, "-m", "pointillist", "train", "debug", *TOY, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "M parameters" in done.stdout and "64 images  validation" in done.stdout
    return folder


def test_training_leaves_a_run_folder_that_samples(say, trained, tmp_path):
    names = {path.name for path in trained.iterdir()} - {".lock"}
    assert names == {"run.yaml", "spec.json", "log.jsonl", "samples", "checkpoints"}
    assert size_of(trained / "samples" / "000000064.png") == (66, 66)
    said = say("sample", trained, "--count", 5, "--label", 2, "--guidance", 2, "--sampler", "ab2",
               "--steps", 4, "--interval", "0.2,0.8", "--out", "x.png")  # fmt: skip
    assert said.code == 0 and "5 pictures, 7 network evaluations each" in said.out
    assert size_of("x.png") == (100, 66)


def test_a_run_is_judged_swept_and_compared(say, trained, tmp_path):
    asked = ("--extractor", "pixels", "--count", 12, "--reference", 20, "--steps", 1)
    found = json.loads(say("evaluate", trained, *asked, "--metrics", "kid,velocity", "--json").out)
    assert set(found["kid"]) == {"value", "low", "high", "n"} and found["recipe"]["steps"] == 1
    said = say("evaluate", trained, *asked, "--sweep", "guidance=1,2", "--out", tmp_path / "s.json")
    assert "guidance=2.0  kid " in said.out and (tmp_path / "s.html").is_file()
    said = say("evaluate", trained, *asked, "--sizes", "32,16x24")
    assert "size=(16, 24)" in said.out
    shutil.copytree(trained, tmp_path / "other")
    rows = json.loads(say("compare", trained, tmp_path / "other", "--json").out)
    assert [row["metrics"]["kid"]["n"] for row in rows] == [12, 12]


def test_samples_into_a_folder_are_one_file_each(say, trained):
    said = say("sample", trained, "--count", 3, "--out", "many", "--json", "--size", "32x40")
    facts = json.loads(said.out)
    assert facts["count"] == 3 and facts["nfe"] == 3 and facts["images_per_second"] > 0
    assert sorted(os.listdir("many")) == [f"{i:06d}.png" for i in range(3)]
    assert size_of("many/000000.png") == (40, 32)


def test_the_same_seed_gives_the_same_file(say, trained):
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        say("sample", trained, "--count", 2, "--seed", seed, "--out", name)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_known_pixels_are_given_by_a_table(say):
    Path("hints.csv").write_text("x,y,r,g,b\n3,1,255,0,0\n31,31,0,0,255\n")
    preset = ("debug", "--random-init", "model.depth=1", "model.context_tokens=0",
              "model.encoder.kind=grid", "task.kind=hints", "--steps", 1, "--count", 1)  # fmt: skip
    said = say("sample", *preset, "--hints", "hints.csv", "--out", "r.png")
    assert said.code == 0
    with Image.open("r.png") as image:
        assert image.getpixel((3, 1)) == (255, 0, 0) and image.getpixel((31, 31)) == (0, 0, 255)
    said = say("sample", *preset, "--hints", "hints.csv", "--size", "16x16")
    assert said.code == 2 and "line 3: x is 31, outside of the picture" in said.err


def test_a_preset_runs_untrained(say):
    said = say("sample", "debug", "--random-init", "model.depth=1", "model.context_tokens=0",
               "--count", 1, "--steps", 1, "--out", "r.png")  # fmt: skip
    assert said.code == 0 and Path("r.png").exists()


def test_show_tells_of_what_is_trained_beside_the_model(say):
    assert "teacher" not in say("show", "cifar10-jit").out.partition("# parameters")[2]
    said = say("show", "cifar10-jit", "loss.align.weight=0.5").out
    assert "# teacher           2,469,696, frozen" in said and "# projector         590,080" in said


def test_show_tells_what_a_run_costs(say, trained):
    facts = json.loads(say("show", "imagenet256-jit-b", "--json").out)
    assert facts["parameters"] == facts["trainable"] == 131_123_712
    assert facts["flops"] == 2 * facts["macs"] and facts["activation_bytes"] > 1e8
    text = say("show", "debug", "model.depth=2").out
    assert "depth: 2" in text and "# parameters" in text and "GMAC" in text
    assert say("show", trained).code == 0


def test_presets_and_sets_are_listed(say):
    text = say("presets").out
    assert all(name in text for name in preset_names())
    assert len(json.loads(say("presets", "--json").out)) == len(preset_names())
    assert set(json.loads(say("data", "list", "--json").out)) == {
        "emoji",
        "cifar10",
        "folder",
        "latent",
        "zip",
        "field",
    }
    assert "cifar10" in say("data", "list").out


def test_a_folder_is_packed_checked_and_described(say, tmp_path):
    for i in range(6):
        folder = tmp_path / "pics" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 24), (40 * i, 0, 0)).save(folder / f"{i}.png")
    (tmp_path / "pics" / "cat" / "bad.png").write_text("no picture")
    said = say("data", "pack", "pics", "--out", "p.zip", "--size", "16", "--crop", "adm")
    assert said.code == 0 and "6 pictures of 16x16 in p.zip" in said.out
    assert "left out cat/bad.png: unreadable" in said.out
    facts = json.loads(say("data", "check", "p.zip", "data.size=16", "--json").out)
    assert facts["found"] == 6 and set(facts["classes"]) == {"cat", "dog"}
    facts = json.loads(say("data", "pack", "p.zip", "data.size=16", "--split", "train", "--out",
                           "q.zip", "--json").out)  # fmt: skip
    assert facts["size"] == [16, 16] and facts["refused"] == []
    assert say("data", "pack", "pics", "--out", "p.zip").code == 2
    said = say("data", "pack", "pics", "--out", "r.zip", "--crop", "middle")
    assert said.code == 2 and "--crop is middle; it is one of adm, centre, none" in said.err
    said = say("data", "pack", "pics", "--out", "r.zip", "--split", "half")
    assert said.code == 2 and "--split is half" in said.err


def test_fetching_nonsense_is_one_sentence(say):
    said = say("data", "fetch", "mnist")
    assert said.code == 2 and "mnist is neither a known set (cifar10)" in said.err


def test_data_check_takes_a_kind_a_folder_or_a_preset(say, tmp_path):
    assert json.loads(say("data", "check", "emoji", "--json").out)["found"] == 3786
    assert json.loads(say("data", "check", "debug", "--json").out)["size"] == [32, 32]
    for i in range(3):
        (tmp_path / "pics").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / "pics" / f"{i}.png")
    said = say("data", "check", "pics", "data.size=16")
    assert "pics: 3 pictures found, 0 refused" in said.out and "3 x 16x16 each" in said.out
    assert "too small" in say("data", "check", "pics", "data.size=64").out


def test_the_doctor_reports(say):
    facts = json.loads(say("doctor", "--json").out)
    assert facts["packages"]["torch"].startswith("2.") and "cpu" in facts["devices"]
    said = say("doctor").out
    assert (
        "torchvision" in said
        and "teachers (transformers)" in said
        and "latents (" in said
        and "Inception" in said
    )


def test_a_folder_of_ones_own_pictures_trains(say, tmp_path):
    for i in range(12):
        (tmp_path / "pics" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "pics" / "ab"[i % 2] / f"{i}.png"
        Image.new("RGB", (20, 20), (20 * i, 0, 99)).save(path)
    (tmp_path / "pics" / "a" / "bad.png").write_text("no")
    said = say("train", "debug", *TOY, "data.kind=folder", "data.path=pics", "data.size=16",
               "--out", "mine")  # fmt: skip
    assert said.code == 0 and "refused a/bad.png" in said.out
    assert '"classes": [\n  "a",' in Path("mine/spec.json").read_text()


BAD = [
    (("train", "debgu"), "did you mean debug"),
    (("train", "debug", "model.dept=4"), "model.dept is not a field; did you mean depth"),
    (("train", "debug", "--resume", "--out", "new"), "no run to resume"),
    (("train", "cifar10-jit", "data.path=none"), "data.path none holds no test_batch.bin"),
    (("train", "debug", "data.kind=folder", "data.path=none"), "data.path none is not a folder"),
    (("train", "debug", "--out", "/proc/x"), "cannot be written"),
    (("sample", "nowhere"), "is not a run folder"),
    (("sample", "RUN", "--steps", "0"), "steps is 0"),
    (("sample", "RUN", "--sampler", "dpm"), "sampler dpm is not known"),
    (("sample", "RUN", "--label", "99"), "label is 99"),
    (("sample", "RUN", "--size", "30x32"), "no multiple of the patch size 4"),
    (("sample", "RUN", "--size", "big"), "--size is big"),
    (("sample", "RUN", "--size", "²"), "--size is ²"),
    (("sample", "RUN", "--out", "s.jpg"), "name a .png for one picture, or a folder"),
    (("sample", "RUN", "--guidance", "nan"), "guidance is nan"),
    (("sample", "debug", "--random-init", "--ema", "0.9"), "random weights have no averages"),
    (("sample", "RUN", "--interval", "1"), "--interval is 1"),
    (("sample", "RUN", "--dtype", "int8"), "--dtype is int8"),
    (("sample", "RUN", "--ema", "0.5"), "this run kept 0.99"),
    (("sample", "RUN", "--ema", "wide"), "ema is wide; it is a decay that the run kept"),
    (("sample", "RUN", "--ema", "power:0.07"), "ema is power:0.07, but the run kept no snapshots"),
    (("sample", "RUN", "--out", "/proc/x.png"), "cannot be written"),
    (("sample", "RUN", "--count", "many"), "many"),
    (("sample", "RUN", "--cuont", "1"), "--cuont"),
    (("sample", "RUN", "model.depth=2"), "a run folder describes itself"),
    (("evaluate", "RUN", "--metrics", "beauty"), "metric beauty is not known"),
    (("evaluate", "RUN", "--count", "few"), "--count is few; it is a number such as 5k"),
    (("evaluate", "RUN", "--sizes", "big"), "--sizes is big; it is HxW"),
    (("evaluate", "RUN", "--out", "report"), "--out is report; name a .json file"),
    (
        ("evaluate", "RUN", "--split", "all", "--extractor", "pixels"),
        "evaluate.split is all; it is train or test",
    ),
    (("compare", "RUN", "RUN"), "two runs are named toy"),
    (("sample", "debug"), "is not a run folder"),
    (("show", "x.yaml"), "neither a preset, a file nor a run folder"),
    (("data", "check", "nothing"), "neither a preset"),
    (("sing",), "sing"),
]


def test_cuda_where_there_is_none_is_named(say, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = say("train", "debug", "--device", "cuda", "--out", "new")
    assert said.code == 2 and "device is cuda" in said.err and not Path("new").exists()


def test_more_than_the_memory_holds_is_refused_with_a_batch_that_fits(say, monkeypatch):
    import sys as modules

    monkeypatch.setattr(modules.modules["pointillist.train"], "free_memory", lambda device: 3 << 30)
    said = say("train", "debug", "train.batch=100k", "model.width=768", "model.heads=8")
    assert said.code == 2 and "train.micro_batch=" in said.err and "fits" in said.err


def test_the_bare_command_prints_its_help_and_no_empty_sentence(say):
    for words in ((), ("data",)):
        said = say(*words)
        assert said.code == 2 and "Usage" in said.out + said.err
        assert "pointillist: ;" not in said.err


def test_a_preset_is_a_preset_whatever_lies_beside_it(say):
    Path("debug").mkdir()
    assert say("show", "debug", "--json").code == 0
    said = say("train", "debug", *TOY)
    assert (
        said.code == 0 and Path("runs/debug/run.yaml").exists() and not any(Path("debug").iterdir())
    )


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_a_mistake_is_one_sentence_and_exit_2(say, trained, words, message):
    before = sorted(path.name for path in trained.rglob("*"))
    said = say(*(str(trained) if word == "RUN" else word for word in words))
    assert said.code == 2 and message in said.err
    assert said.err.startswith("pointillist: ") and said.err.count("\n") == 1
    assert "Traceback" not in said.err and said.out == ""
    assert sorted(path.name for path in trained.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_named(say, tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = say("train", "debug", *TOY, "--out", "file/run")
    assert said.code == 2 and "file/run cannot be written" in said.err


def test_a_damaged_run_folder_is_named(say, trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / "spec.json").write_text("{")
    said = say("sample", "copy")
    assert said.code == 2 and "spec.json" in said.err and said.err.count("\n") == 1
    (tmp_path / "copy" / "run.yaml").unlink()
    assert "run.yaml is missing" in say("sample", "copy").err
    shutil.copytree(trained, tmp_path / "other")
    text = (tmp_path / "other" / "run.yaml").read_text()
    (tmp_path / "other" / "run.yaml").write_text(text.replace("width: 32", "width: 64"))
    assert "do not belong together" in say("sample", "other").err


def test_an_interrupted_command_exits_130(say, monkeypatch):
    import pointillist.doctor

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(pointillist.doctor, "facts", stop)
    said = say("doctor")
    assert said.code == 130 and "interrupted" in said.err


def test_a_closed_pipe_is_no_mistake():
    command = f"{sys.executable} -m pointillist presets | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout.strip() in ("0", "1")


def test_the_help_names_every_sampler():
    from pointillist import cli_words
    from pointillist.evaluation.plan import SWEPT
    from pointillist.metrics.names import NAMES
    from pointillist.samplers import SAMPLERS

    assert cli_words.SAMPLERS.split(", ") == list(SAMPLERS)
    assert cli_words.METRICS.split(", ") == list(NAMES)
    assert cli_words.SWEPT.split(", ") == list(SWEPT)


KILLED = """
import os, signal, sys
from pathlib import Path
from pointillist import cli
from pointillist.engine.checkpoint import write_atomically

def half(draft):
    draft.mkdir()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()

cli.app = lambda **words: write_atomically(Path(sys.argv[1]) / "run", half)
cli.main()
"""


def test_a_command_that_is_terminated_leaves_no_draft(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "pointillist: interrupted\n")
    assert list(tmp_path.iterdir()) == []
