"""Reconstruct and upscale, from pictures in files and from arrays: what is known comes back."""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pointillist as pt
from pointillist import cli
from pointillist.consistent import (
    DPSConfig,
    MomentsConfig,
    NoConsistency,
    ProjectionConfig,
    PseudoInverseConfig,
    RepaintConfig,
)
from pointillist.known import protocol_mask
from pointillist.layers.observations import to_points
from pointillist.measure import Blur, Box, Chain
from pointillist.metrics import crps, psnr, ssim
from pointillist.pictures import to_bytes
from pointillist.request import Ask
from pointillist.train import train
from pointillist.types import Given, InputError
from tests.awake import awake

SIZE = 32
TOY = ("model.width=32", "model.depth=1", "model.heads=2", "model.context_tokens=0",
       "train.images=64", "train.batch=32", "train.save_every=64", "train.grid=0",
       "train.validate=0", "sample.steps=2", "optim.lr=0.01", "optim.warmup=0")  # fmt: skip
HINTS = ("model.encoder.kind=grid", "task.kind=hints")


class Said:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


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
def run(tmp_path_factory) -> Path:
    """The folder of a small run that knows hints."""
    folder = tmp_path_factory.mktemp("run") / "toy"
    train(pt.Run.load("debug", *TOY, *HINTS), folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The folder of a small run that was never shown anything."""
    folder = tmp_path_factory.mktemp("plain") / "toy"
    train(pt.Run.load("debug", *TOY), folder)
    return folder


def colours(h: int = SIZE, w: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def write(path: str, values: np.ndarray) -> str:
    Image.fromarray(values).save(path)
    return path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def as_state(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def table(path: str, places: np.ndarray, values: np.ndarray) -> str:
    lines = [f"{x},{y},{','.join(map(str, values[y, x]))}" for y, x in np.argwhere(places)]
    Path(path).write_text("\n".join(("x,y,r,g,b", *lines)) + "\n")
    return path


# The command.


def test_a_share_of_the_pixels_comes_back_exactly_in_every_file(say, run):
    values = colours()
    said = say("reconstruct", run, write("a.png", values), "--keep", 0.25, "--out", "o")
    assert said.code == 0, said.err
    names = {"observed", "mean", "std", "triptych", *(f"draw_{i:02d}" for i in range(9))}
    assert {p.name for p in Path("o").iterdir()} == {f"{n}.png" for n in names} | {"facts.json"}
    mask = protocol_mask(0, (SIZE, SIZE), 0.25).numpy()
    assert mask.sum() == 256
    for name in ("observed", "mean", *(f"draw_{i:02d}" for i in range(9))):
        assert (pixels(f"o/{name}.png")[mask] == values[mask]).all(), name
    assert (pixels("o/observed.png")[~mask] == 128).all()
    assert (pixels("o/std.png")[mask] == 0).all() and pixels("o/std.png")[~mask].max() > 0
    drawn = np.stack([pixels(f"o/draw_{i:02d}.png") for i in range(9)])
    assert (drawn.std(0)[~mask] > 0).any(-1).mean() > 0.9
    shown = pixels("o/triptych.png")
    assert shown.shape == (SIZE, 3 * SIZE + 4, 3)  # two pixels between pictures
    for at, name in enumerate(("observed", "mean")):
        assert (shown[:, at * 34 : at * 34 + SIZE] == pixels(f"o/{name}.png")).all()
    assert (shown[:, -SIZE:] == values).all()
    assert "a: 256 of 1,024 pixels seen, 9 draws, psnr" in said.out and "in o" in said.out


def test_scores_are_those_of_the_metrics_on_the_same_draws(say, run):
    values = colours()
    said = say("reconstruct", run, write("a.png", values), "--keep", 0.25, "--seed", 3, "--json")
    found = json.loads(said.out)
    (facts,) = found["pictures"]
    assert facts == json.loads(Path("out/reconstruct/facts.json").read_text())
    assert found["seconds"] >= 0 and facts["size"] == [SIZE, SIZE] and facts["repeated"] == 0
    truth, mask = as_state(values), protocol_mask(0, (SIZE, SIZE), 0.25)
    model = pt.load(run)
    post = model.reconstruct(truth[0], mask, draws=9, seed=3)
    for i, draw in enumerate(post.draws):
        path = f"out/reconstruct/draw_{i:02d}.png"
        assert (pixels(path) == to_bytes(draw[None])[0]).all()
    draws = post.draws[:, None].clamp(-1, 1)
    hidden = ~mask.expand(1, 1, -1, -1)
    told = {
        "psnr": psnr(draws.mean(0), truth, data_range=2.0, mask=hidden),
        "psnr_whole": psnr(draws.mean(0), truth, data_range=2.0),
        "ssim": ssim(draws.mean(0), truth, data_range=2.0),
        "crps": crps(draws, truth, hidden.expand_as(truth)),
    }
    for name, value in told.items():
        assert facts[name] == pytest.approx(float(value), rel=1e-4), name
    known = Given(seen=truth, mask=mask[None, None])
    alone = model.sample(1, label=-1, known=known, seed=3)
    torch.testing.assert_close(alone[0], post.draws[0], rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes(say, run):
    write("a.png", colours())
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        say("reconstruct", run, "a.png", "--keep", 0.2, "--draws", 2, "--seed", seed, "--out", out)
    for name in ("mean", "std", "draw_00", "draw_01", "observed"):
        a, b, c = (Path(f"{out}/{name}.png").read_bytes() for out in "abc")
        assert a == b and (a == c) == (name == "observed")


def test_a_mask_says_what_is_seen(say, run):
    values, mask = colours(), np.zeros((SIZE, SIZE), np.uint8)
    mask[:, :5] = 255
    write("m.png", mask)
    said = say("reconstruct", run, write("a.png", values), "--mask", "m.png", "--draws", 2,
               "--out", "o")  # fmt: skip
    assert said.code == 0 and "160 of 1,024 pixels seen" in said.out
    for name in ("mean", "draw_00", "draw_01"):
        assert (pixels(f"o/{name}.png")[:, :5] == values[:, :5]).all()


@pytest.mark.parametrize("whole", [False, True])
def test_a_table_says_what_is_seen_with_the_picture_or_without(say, run, whole):
    values = colours()
    places = protocol_mask(5, (SIZE, SIZE), 0.2).numpy()
    table("p.csv", places, values)
    said = say("reconstruct", run, *[write("a.png", values)] * whole, "--points", "p.csv",
               "--draws", 3, "--out", "o", "--json")  # fmt: skip
    (facts,) = json.loads(said.out)["pictures"]
    assert facts["input"] == "p" and facts["observed"] == 205 and ("psnr" in facts) == whole
    for name in ("observed", "mean", *(f"draw_{i:02d}" for i in range(3))):
        assert (pixels(f"o/{name}.png")[places] == values[places]).all()
    last = pixels("o/triptych.png")[:, -SIZE:]
    assert (last == (values if whole else pixels("o/draw_00.png"))).all()


def test_lines_that_tell_of_a_pixel_again_are_averaged_and_counted_aloud(say, run):
    Path("p.csv").write_text("x,y,r,g,b\n3,1,0,0,10\n3,1,200,0,20\n3,1,100,0,30\n0,0,9,9,9\n")
    said = say("reconstruct", run, "--points", "p.csv", "--draws", 1, "--out", "o")
    assert "2 of 1,024 pixels seen (2 lines told of one again, means are taken)" in said.out
    assert pixels("o/draw_00.png")[1, 3].tolist() == [100, 0, 20]
    assert json.loads(Path("o/facts.json").read_text())["repeated"] == 2
    assert not Path("o/std.png").exists()  # one draw has no spread
    said = say("sample", run, "--hints", "p.csv", "--count", 1)
    assert "2 lines of p.csv told of a pixel again" in said.out


def test_several_pictures_have_a_folder_and_a_mask_each(say, run):
    both = [write(f"{name}.png", colours(seed=i)) for i, name in enumerate("ab")]
    said = say("reconstruct", run, *both, "--keep", 0.2, "--draws", 2, "--out", "o", "--json")
    facts = json.loads(said.out)["pictures"]
    assert [(f["input"], f["out"]) for f in facts] == [("a", "o/a"), ("b", "o/b")]
    for i, name in enumerate("ab"):
        mask = protocol_mask(i, (SIZE, SIZE), 0.2).numpy()
        assert (pixels(f"o/{name}/draw_01.png")[mask] == colours(seed=i)[mask]).all()
        assert (pixels(f"o/{name}/observed.png")[~mask] == 128).all()


def test_a_finer_size_keeps_the_means_of_what_is_seen(say, run):
    values = (colours() // 4 + 96).astype(np.uint8)  # draws that stay within black and white
    said = say("reconstruct", run, write("a.png", values), "--keep", 0.3, "--size", "64x64",
               "--draws", 2, "--out", "o", "--json")  # fmt: skip
    (facts,) = json.loads(said.out)["pictures"]
    assert facts["size"] == [64, 64] and facts["observed"] == 307 and "psnr" not in facts
    mask = protocol_mask(0, (SIZE, SIZE), 0.3)
    post = pt.load(run).reconstruct(as_state(values)[0], mask, size=(64, 64), draws=2)
    assert post.mean.shape == (3, 64, 64)
    means = Box((2, 2))(post.draws)
    torch.testing.assert_close(means[:, :, mask], as_state(values)[:, :, mask].expand(2, -1, -1),
                               rtol=0, atol=1e-4)  # fmt: skip
    assert (pixels("o/draw_01.png") == to_bytes(post.draws[1:])[0]).all()
    assert (pixels("o/observed.png")[::2, ::2][mask] == values[mask]).all()


def test_an_interval_is_written_as_its_ends(say, run):
    write("a.png", colours())
    said = say("reconstruct", run, "a.png", "--keep", 0.2, "--draws", 9, "--interval", 0.8,
               "--out", "o")  # fmt: skip
    assert said.code == 0
    drawn = np.stack([pixels(f"o/draw_{i:02d}.png") for i in range(9)])
    assert (pixels("o/low.png") == drawn.min(0)).all()  # nine draws: 0.8 is from end to end
    assert (pixels("o/high.png") == drawn.max(0)).all()


def test_stated_noise_lets_known_pixels_move(say, run):
    values = colours()
    ask = ("reconstruct", run, write("a.png", values), "--keep", 0.3, "--draws", 2)
    assert say(*ask, "--noise", 0.3, "--out", "n").code == 0
    mask = protocol_mask(0, (SIZE, SIZE), 0.3).numpy()
    assert (pixels("n/observed.png")[mask] == values[mask]).all()
    assert (pixels("n/draw_00.png")[mask] != values[mask]).any()
    assert (pixels("n/std.png")[mask] > 0).any()


@pytest.mark.parametrize("asked", [("--scale", 2), ("--size", "64x64")])
def test_upscale_takes_a_factor_or_a_size(say, run, asked):
    values = (colours() // 4 + 96).astype(np.uint8)
    said = say("upscale", run, write("a.png", values), *asked, "--draws", 2, "--out", "o")
    assert said.code == 0 and "a: 1,024 of 1,024 pixels seen, 2 draws, in o" in said.out
    assert pixels("o/mean.png").shape == (64, 64, 3)
    assert (pixels("o/observed.png") == values.repeat(2, 0).repeat(2, 1)).all()
    for name in ("mean", "draw_00", "draw_01"):
        parts = pixels(f"o/{name}.png").reshape(SIZE, 2, SIZE, 2, 3).astype(float)
        inside = ((parts > 0) & (parts < 255)).all((1, 3))  # a file holds nothing beyond them
        assert inside.mean() > 0.3
        assert abs(parts.mean((1, 3)) - values)[inside].max() <= 0.51


def test_several_pictures_are_upscaled_each_to_its_own_size(say, run):
    write("a.png", colours(16, 16)), write("b.png", colours(8, 16))
    said = say("upscale", run, "a.png", "b.png", "--scale", 2, "--draws", 1, "--out", "o", "--json")
    facts = json.loads(said.out)["pictures"]
    assert [f["size"] for f in facts] == [[32, 32], [16, 32]]
    assert pixels("o/b/draw_00.png").shape == (16, 32, 3)


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + check


# A few bytes that ask for a picture of 40,000 x 40,000.
EDGE = (40_000).to_bytes(4, "big")
HUGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", EDGE + EDGE + b"\x08\x00\x00\x00\x00")
HUGE += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
TABLES = {
    "missing": "x,y,r,g\n0,0,1,1\n",
    "outside": "x,y,r,g,b\n32,0,1,1,1\n",
    "scale": "x,y,r,g,b\n0,0,0.5,0.25,1\n",
    "nan": "x,y,r,g,b\n0,0,nan,1,1\n",
    "none": "x,y,r,g,b\n",
}


@pytest.fixture
def files(tmp_path):
    """Inputs that are wrong, each in its own way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        write("a.png", colours())
        Path("b").mkdir(), write("b/a.png", colours(seed=1))
        write("tiny.png", colours(2, 2))
        write("odd.png", colours(31, 32))
        write("clear.png", np.full((SIZE, SIZE, 4), 99, np.uint8))
        write("black.png", np.zeros((SIZE, SIZE), np.uint8))
        half = np.zeros((SIZE, SIZE), np.uint8)
        half[:8] = 255
        write("half.png", half)
        write("small.png", half[:, :8])
        half[3, 4] = 77
        write("grey.png", half)
        write("maskclear.png", np.full((SIZE, SIZE, 4), 255, np.uint8))
        Path("text.png").write_text("no picture")
        Path("huge.png").write_bytes(HUGE)
        for name, text in TABLES.items():
            Path(f"{name}.csv").write_text(text)
        table("good.csv", np.eye(SIZE) > 0, colours())
    return tmp_path


KEEP = ("--keep", "0.2")
BAD: list[tuple[tuple[str, ...], str]] = [
    (("a.png",), "none of --keep, --mask, --points given; give one of them"),
    (("a.png", *KEEP, "--mask", "half.png"), "--keep and --mask given; give one of them"),
    (KEEP, "no INPUT is given; --keep needs a picture"),
    (("a.png", "b/a.png", "--points", "good.csv"), "2 inputs are given; --points tells of one"),
    (("a.png", "--mask", "small.png"), "small.png has 32x8 pixels, the picture 32x32; give a mask"),
    (("a.png", "--mask", "black.png"), "black.png is black everywhere, so nothing is known"),
    (("a.png", "--mask", "grey.png"), "grey.png is 77 at x 4, y 3; a mask is 0 (asked for) or 255"),
    (("a.png", "--mask", "maskclear.png"), "maskclear.png has an alpha channel"),
    (("a.png", "--mask", "gone.png"), "gone.png cannot be read as a picture: No such file"),
    (("a.png", "--keep", "0"), "--keep is 0; it lies in (0, 1]"),
    (("a.png", "--keep", "1.5"), "--keep is 1.5; it lies in (0, 1]"),
    (("a.png", "--keep", "nan"), "--keep is nan; it lies in (0, 1]"),
    (("a.png", "--keep", "0.0001"), "--keep is 0.0001, which of 1,024 pixels is none; raise it"),
    (("--points", "missing.csv"), "missing.csv has columns x, y, r, g; it needs x, y, r, g, b"),
    (("--points", "outside.csv"), "outside.csv, line 2: x is 32, outside of the picture; it lies"),
    (("--points", "scale.csv"), "colours between 0 and 1 in columns r, g, b, which run from 0 to"),
    (("--points", "nan.csv"), "nan.csv, line 2: r is 'nan'; it must be a number"),
    (("--points", "none.csv"), "none.csv holds no pixel"),
    (("--points", "gone.csv"), "gone.csv cannot be read: No such file"),
    (("clear.png", *KEEP), "clear.png has an alpha channel"),
    (("gone.png", *KEEP), "gone.png cannot be read as a picture: No such file"),
    (("b", *KEEP), "b cannot be read as a picture: Is a directory"),
    (("huge.png", *KEEP), "huge.png cannot be read as a picture: "),
    (("a.png", "--mask", "huge.png"), "huge.png cannot be read as a picture: "),
    (("text.png", *KEEP), "text.png cannot be read as a picture: "),
    (("tiny.png", "--keep", "0.5"), "size 2x2 is no multiple of the patch size 4; 4x4 would do"),
    (("odd.png", *KEEP), "size 31x32 is no multiple of the patch size 4; 32x32 would do"),
    (("a.png", "odd.png", *KEEP), "size 31x32 is no multiple of the patch size 4; 32x32 would do"),
    (("a.png", *KEEP, "--size", "30x30"), "size 30x30 is no multiple of the patch size 4"),
    (("a.png", *KEEP, "--size", "8x8"), "seen lies on 32x32 cells, the pictures have 8x8; give it"),
    (("a.png", *KEEP, "--size", "64x32"), "or a coarser one of the same aspect ratio"),
    (("a.png", *KEEP, "--size", "32x32x32"), "size 32x32x32 has 3 axes; the run has 2"),
    (("a.png", *KEEP, "--size", "big"), "--size is big; it is HxW"),
    (("a.png", "b/a.png", *KEEP), "two inputs are named a; rename one"),
    (("a.png", *KEEP, "--draws", "0"), "draws is 0; it is 1 or more"),
    (("a.png", *KEEP, "--draws", "9", "--interval", "0.9"), "interval: level is 0.9, but 9 draws"),
    (("a.png", *KEEP, "--draws", "1", "--interval", "0.8"), "1 draw can express none"),
    (("a.png", *KEEP, "--noise", "-0.1"), "noise is -0.1; "),
    (("a.png", *KEEP, "--noise", "nan"), "noise is nan; "),
    (("a.png", *KEEP, "--label", "99"), "label is 99"),
    (("a.png", *KEEP, "--out", "a.png"), "cannot be written"),
]
WORSE: list[tuple[tuple[str, ...], str]] = [
    (("a.png",), "give either --size or --scale"),
    (("a.png", "--scale", "2", "--size", "64x64"), "give either --size or --scale"),
    (("a.png", "--scale", "1"), "scale is 1; it is 2 or more"),
    (("a.png", "--size", "32x32"), "a.png: size is 32x32, the picture has 32x32; ask for a finer"),
    (("a.png", "--size", "8x64"), "size is 8x64, the picture has 32x32; ask for a finer grid"),
    (("a.png", "--size", "64x64x64"), "size is 64x64x64, the picture has 32x32; give as many axes"),
    (("a.png", "--size", "34x34"), "size 34x34 is no multiple of the patch size 4"),
    (("a.png", "--size", "64x96"), "or a coarser one of the same aspect ratio"),
    (("a.png", "b/a.png", "--scale", "2"), "two inputs are named a; rename one"),
    (("clear.png", "--scale", "2"), "clear.png has an alpha channel"),
    (("a.png", "--scale", "2", "--draws", "0"), "draws is 0; it is 1 or more"),
]


@pytest.mark.parametrize(
    ("words", "message"),
    [(("reconstruct", "RUN", *words), message) for words, message in BAD]
    + [(("upscale", "RUN", *words), message) for words, message in WORSE],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_exit_2_before_anything_is_drawn(
    say, run, files, monkeypatch, words, message
):
    def walked(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr("pointillist.sample.Walk.__call__", walked)
    before = sorted(files.rglob("*"))
    said = say(*(run if word == "RUN" else word for word in words))
    assert said.code == 2 and message in said.err
    assert said.err.startswith("pointillist: ") and said.err.count("\n") == 1
    assert said.out == "" and sorted(files.rglob("*")) == before


def test_a_run_that_takes_no_hints_says_which_does(say, plain, files):
    said = say("reconstruct", plain, "a.png", *KEEP)
    assert said.code == 2 and "takes no hints; train one with model.encoder.kind=grid" in said.err


def test_a_task_that_leaves_nothing_to_ask_is_refused_before_training(say):
    scatter = ("train", "debug", "model.encoder.kind=grid", "task.kind=scatter",
               "task.cond_fraction=1")  # fmt: skip
    said = say(*scatter, "task.reveal=kept")
    assert said.code == 2 and "task.cond_fraction is 1 and task.reveal kept" in said.err
    said = say(*scatter, "task.sparsity=1")
    assert said.code == 2 and "so nothing is left to ask" in said.err
    assert said.err.count("\n") == 1 and not Path("runs").exists()


# From Python.


@pytest.fixture(scope="module")
def model():
    return awake(*HINTS, "sample.steps=2")


@pytest.fixture(scope="module")
def unshown():
    return awake("sample.steps=2")


X = as_state(colours())[0]
MASK = protocol_mask(0, (SIZE, SIZE), 0.3)


def test_every_form_of_the_same_values_gives_the_same_draws(model):
    asked = {"draws": 2, "seed": 4}
    whole = model.reconstruct(X, MASK, **asked)
    assert whole.draws.shape == (2, 3, SIZE, SIZE) and whole.hidden.shape == (1, SIZE, SIZE)
    levels = torch.from_numpy(colours()).permute(2, 0, 1)
    gaps = torch.where(MASK, X, torch.nan)
    at, value, _ = to_points(X[None], MASK[None, None])
    forms = {
        "8-bit": model.reconstruct(levels, MASK, **asked),
        "gaps": model.reconstruct(gaps, **asked),
        "with a channel": model.reconstruct(X, MASK[None], **asked),
        "numbers": model.reconstruct(X, MASK.int(), **asked),
        "points": model.reconstruct(value[0], at=at[0], **asked),
        "array": model.reconstruct(X.numpy(), MASK.numpy(), **asked),
        "8-bit array": model.reconstruct(levels.numpy(), MASK.numpy(), **asked),
    }
    for name, post in forms.items():
        draws = torch.as_tensor(post.draws)
        torch.testing.assert_close(draws, whole.draws, rtol=1e-5, atol=1e-5, msg=name)


def test_numpy_in_numpy_out(model):
    post = model.reconstruct(X.numpy(), MASK.numpy(), draws=9)
    twin = model.reconstruct(X, MASK, draws=9)
    low, high = post.interval(0.8)
    theirs = twin.interval(0.8)
    pairs = [(post.mean, twin.mean), (post.std, twin.std), (post.draws, twin.draws),
             (post.quantile(0.3), twin.quantile(0.3)), (low, theirs[0]), (high, theirs[1]),
             (post.hidden, twin.hidden)]  # fmt: skip
    for ours, other in pairs:
        assert isinstance(ours, np.ndarray) and isinstance(other, torch.Tensor)
        assert ours.dtype == other.numpy().dtype and (ours == other.numpy()).all()
    assert post.crps(X.numpy()) == twin.crps(X)
    assert post.coverage(X.numpy(), 0.8) == twin.coverage(X, 0.8)
    assert post.count == 9 and post.levels == twin.levels
    several = model.reconstruct(np.stack((X, X)), MASK.numpy(), draws=1)
    assert isinstance(several.mean, np.ndarray) and several.mean.shape == (2, 3, SIZE, SIZE)
    big = model.upscale(X.numpy(), scale=2)
    assert isinstance(big, np.ndarray) and big.shape == (3, 64, 64)
    assert isinstance(model.upscale(X, scale=2), torch.Tensor)


def test_several_pictures_are_answered_as_each_alone(model):
    both = torch.stack((X, as_state(colours(seed=1))[0]))
    masks = torch.stack((MASK, protocol_mask(1, (SIZE, SIZE), 0.3)))
    post = model.reconstruct(both, masks, draws=3)
    assert post.draws.shape == (3, 2, 3, SIZE, SIZE)
    known = masks[:, None].expand_as(both)
    assert torch.equal(post.mean[known], both[known])
    assert (post.draws[:, known] == both[known]).all()
    alone = model.reconstruct(both[0], masks[0], draws=3)
    torch.testing.assert_close(post.draws[:, 0], alone.draws, rtol=1e-5, atol=1e-5)


def test_no_label_is_no_class_rather_than_the_first(model):
    given = {"draws": 1, "seed": 1}
    none, said = (model.reconstruct(X, MASK, label=label, **given) for label in (None, -1))
    first = model.reconstruct(X, MASK, label=0, **given)
    assert torch.equal(none.draws, said.draws) and not torch.equal(none.draws, first.draws)


def test_guidance_costs_nothing_where_no_label_is_known(model):
    cost = [
        model.answer(Ask(count=1, label=label, guidance=2.0, steps=4, sampler="euler")).nfe
        for label in (-1, 0)
    ]
    assert cost == [4, 8]
    free, guided = (
        model.reconstruct(X, MASK, draws=1, guidance=guidance).draws for guidance in (1.0, 2.0)
    )
    assert torch.equal(free, guided)


@pytest.mark.parametrize(
    ("ask", "message"),
    [({"values": X * torch.nan}, "nothing is known"),
     ({"values": torch.where(MASK, torch.nan, X), "mask": MASK},
      r"values of picture 0 are NaN at \(.*\), where the mask says that they are known; make"),
     ({"values": X + torch.inf}, "seen holds inf; known values run from -1 to 1"),
     ({"values": X * 200, "mask": MASK}, "known values run from -1 to 1"),
     ({"values": X, "mask": MASK * 0.5}, "mask holds 0.5; it is 0 or 1"),
     ({"values": X, "mask": MASK[:8]}, "mask lies on 8x32 cells, the pictures have 32x32"),
     ({"values": X, "mask": MASK & False}, "nothing is known"),
     ({"values": X[0], "mask": MASK}, "values has shape 32x32; give 3 axes for one picture"),
     ({"values": X[:1], "mask": MASK}, "hints have 1 channels, the pictures 3"),
     ({"values": None}, "values is None"), ({"values": "red"}, "values is a str; give a tensor"),
     ({"values": X[:, 0], "at": MASK, "mask": MASK}, "mask is given with at"),
     ({"values": X[:, 0], "at": torch.full((SIZE, 2), 1.5)}, "outside of the picture"),
     ({"values": X[:, 0], "at": torch.zeros(3, 2)}, "at has 3 points, value 32"),
     ({"values": X, "mask": MASK, "draws": 0}, "draws is 0; it is 1 or more"),
     ({"values": X, "mask": MASK, "size": (48, 56)}, "same aspect ratio"),
     ({"values": X, "mask": MASK, "size": 64}, "size is 64; give one whole number an axis"),
     ({"values": X, "mask": MASK, "noise": -1.0}, "noise is -1.0; ")],
)  # fmt: skip
def test_what_is_no_observation_is_one_sentence(model, ask, message):
    with pytest.raises(InputError, match=message) as caught:
        model.reconstruct(**{"draws": 1, **ask})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "message"),
    [({}, "give either size or scale"), ({"size": (64, 64), "scale": 2}, "give either size or"),
     ({"scale": 1}, "scale is 1"),
     ({"size": (64,)}, "size is 64, the picture has 32x32; give as many axes"),
     ({"size": (32, 32)}, "ask for a finer grid"), ({"size": (34, 34)}, "patch size 4")],
)  # fmt: skip
def test_a_size_that_is_not_finer_is_one_sentence(model, ask, message):
    with pytest.raises(InputError, match=message):
        model.upscale(X, **ask)


def means_over(big: torch.Tensor, n: int) -> torch.Tensor:
    """Means over n x n equal parts, whose rims may cut through cells: each cell is 2 x 2 of its."""
    fine = big.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return fine.unflatten(2, (n, -1)).unflatten(1, (n, -1)).mean((2, 4))


def test_means_over_the_boxes_of_an_enlarged_picture_are_the_picture(model):
    for asked in ({"scale": 2}, {"size": (64, 64)}, {"size": (48, 48)}, {"scale": 2, "draws": 3}):
        big = model.upscale(X, **asked)
        torch.testing.assert_close(means_over(big, SIZE), X, rtol=0, atol=2e-5)


def test_a_field_enlarges_by_any_factor_that_its_patches_reach():
    field = awake("model.kind=pixnerd", "model.width=32", "model.depth=1",
                  "model.heads=2", "model.encoder.kind=grid", "task.kind=upscale",
                  "sample.steps=2")  # fmt: skip
    picture = as_state(colours(32, 32))[0]
    for size in ((48, 48), (64, 64)):
        big = field.upscale(picture, size=size)
        assert big.shape == (3, *size)
        torch.testing.assert_close(means_over(big, 32), picture, rtol=0, atol=2e-5)


EXACT = (ProjectionConfig(), PseudoInverseConfig(), DPSConfig(), MomentsConfig(iterations=2),
         RepaintConfig())  # fmt: skip
MEASURES = {"means": Box((2, 2)), "blurred means": Chain(Blur(1.0), Box((4, 4)))}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.kind)
def test_a_measurement_that_no_network_was_shown_is_met_by_every_method(unshown, method, name):
    measure = MEASURES[name]
    y = measure(X[None])
    post = unshown.posterior((measure, y), draws=2, consistency=method, label=0)
    assert post.draws.shape == (2, 1, 3, SIZE, SIZE) and post.hidden is None
    assert post.draws.isfinite().all() and post.std.max() > 0
    torch.testing.assert_close(measure(post.draws[:, 0]), y.expand(2, -1, -1, -1),
                               rtol=0, atol=1e-3)  # fmt: skip
    same = unshown.sample(1, label=0, known=(measure, y), consistency=method)
    torch.testing.assert_close(same, post.draws[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.kind)
def test_pixels_that_no_network_was_shown_come_back_by_every_method(unshown, method):
    post = unshown.reconstruct(X, MASK, draws=2, consistency=method)
    torch.testing.assert_close(post.draws[:, :, MASK], X[:, MASK].expand(2, -1, -1),
                               rtol=0, atol=1e-5)  # fmt: skip


def test_without_consistency_a_measurement_is_shown_only(model, unshown):
    free = model.reconstruct(X, MASK, draws=1, consistency=NoConsistency())
    assert (free.draws[0][:, MASK] - X[:, MASK]).abs().max() > 1e-3
    y = MEASURES["means"](X[None])
    ignored = unshown.posterior((MEASURES["means"], y), draws=1, consistency=NoConsistency())
    assert torch.equal(ignored.draws[0], unshown.sample(1))


def test_the_more_noise_is_stated_the_further_known_pixels_may_go(model):
    apart = [
        (model.reconstruct(X, MASK, draws=2, noise=level).mean - X)[:, MASK].abs().mean()
        for level in (0.0, 0.1, 0.5)
    ]
    assert apart[0] == 0 and 0 < apart[1] < apart[2]


@pytest.mark.parametrize(
    ("known", "ask", "message"),
    [((Box((2, 2)), torch.zeros(1, 3, 5, 5)), {}, "y has 3x5x5 values a picture, its measure"),
     ((Box((2, 2)), torch.zeros(1, 3, 16, 16) * torch.nan), {}, "give finite values"),
     ((Box((3, 3)), torch.zeros(1, 3, 5, 5)), {}, r"factors is \[3, 3\], the picture has 32x32"),
     ((Box((2, 2)), torch.zeros(1, 3, 16, 16)), {"size": (32, 32, 32)}, "factors|axes"),
     (Given(seen=X[None], mask=MASK[None, None], at=torch.zeros(1, 1, 2),
            value=torch.zeros(1, 3, 1)), {"size": (64, 64)}, "points are given too")],
)  # fmt: skip
def test_what_contradicts_itself_is_one_sentence(unshown, known, ask, message):
    with pytest.raises(InputError, match=message):
        unshown.posterior(known, draws=1, **ask)
    with pytest.raises(InputError, match="noise is 0.1, but nothing is known"):
        unshown.sample(1, noise=0.1)
