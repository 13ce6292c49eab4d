"""Reconstruct and upscale by command: what is known comes back in every file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pointillist as pt
from pointillist.consistent import (
    DPSConfig,
    MomentsConfig,
    NoConsistency,
    ProjectionConfig,
    PseudoInverseConfig,
    RepaintConfig,
)
from pointillist.known import protocol_mask
from pointillist.measure import Box
from pointillist.metrics import crps, psnr, ssim
from pointillist.pictures import to_bytes
from pointillist.types import Given
from tests.reconstruct_case import (
    HINTS,
    SIZE,
    as_state,
    colours,
    pixels,
    small_run,
    speaker,
    table,
    write,
)


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    return speaker(monkeypatch, capsys, tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that knows hints."""
    return small_run(tmp_path_factory, "run", *HINTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A run that was never shown anything."""
    return small_run(tmp_path_factory, "plain")


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
        "ssim": ssim((draws.mean(0) + 1) / 2, (truth + 1) / 2, data_range=1.0),
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


KINDS = {"projection": ProjectionConfig(), "pseudo_inverse": PseudoInverseConfig(),
         "dps": DPSConfig(), "moments": MomentsConfig(), "repaint": RepaintConfig(),
         "none": NoConsistency()}  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_word_chooses_how_draws_are_made_to_agree(say, plain, noise):
    values = colours()
    mask = protocol_mask(0, (SIZE, SIZE), 0.3)
    ask = ("reconstruct", plain, write("a.png", values), "--keep", 0.3, "--draws", 1, "--steps", 1,
           "--noise", noise)  # fmt: skip
    model, found = pt.load(plain), {}
    for kind, method in KINDS.items():
        said = say(*ask, f"sample.consistency.kind={kind}", "--out", kind, "--json")
        assert said.code == 0, said.err
        post = model.reconstruct(as_state(values)[0], mask, draws=1, steps=1, noise=noise,
                                 consistency=method)  # fmt: skip
        found[kind] = pixels(f"{kind}/draw_00.png")
        assert (found[kind] == to_bytes(post.draws)[0]).all(), kind
        (facts,) = json.loads(said.out)["pictures"]
        assert facts["recipe"]["consistency"]["kind"] == kind and facts["recipe"]["noise"] == noise
        back = (found[kind][mask.numpy()] == values[mask.numpy()]).all()
        assert back == (noise == 0 and kind != "none"), kind
    ways = ("projection", "pseudo_inverse", "dps", "moments", "none") if noise else ("dps", "none")
    for i, one in enumerate(ways):
        assert all((found[one] != found[other]).any() for other in ways[i + 1 :]), one
    said = say("upscale", plain, "a.png", "--scale", 2, "--draws", 1, "sample.steps=1",
               "sample.consistency.kind=dps", "sample.consistency.step=0.5", "--json")  # fmt: skip
    (facts,) = json.loads(said.out)["pictures"]
    assert facts["recipe"]["consistency"] == {"kind": "dps", "step": 0.5}
    assert facts["recipe"]["steps"] == 1


def test_facts_say_how_to_draw_the_same_again(say, run):
    write("a.png", colours()), write("b.png", colours(seed=1))
    ask = ("reconstruct", run, "a.png", "b.png", "--keep", 0.2, "--draws", 2, "--steps", 3,
           "--sampler", "euler", "--seed", 5, "--noise", 0.1, "--label", 2, "--guidance", 2,
           "--out", "o")  # fmt: skip
    assert say(*ask).code == 0
    facts = json.loads(Path("o/b/facts.json").read_text())
    recipe = facts["recipe"]
    assert facts["nfe"] == 6  # three steps, each with and without the label
    told = {"run": "toy", "images": 64, "sampler": "euler", "steps": 3, "seed": 5, "label": "2",
            "noise": 0.1, "dtype": "float32", "picture": 1, "size": [SIZE, SIZE]}  # fmt: skip
    assert {name: recipe[name] for name in told} == told
    assert recipe["guidance"]["scale"] == 2 and recipe["consistency"]["kind"] == "projection"
    assert recipe["ema"] == pt.load(run).run.train.ema[0]
    model = pt.load(Path(run).parent / recipe["run"], recipe["ema"], at=recipe["images"])
    mask = protocol_mask(1, (SIZE, SIZE), 0.2)
    known = Given(seen=as_state(colours(seed=1)), mask=mask[None, None])
    asked = {name: recipe[name] for name in ("sampler", "steps", "seed", "label", "noise")}
    post = model.posterior(known, 2, first=recipe["picture"], guidance=2.0, **asked)
    assert (to_bytes(post.draws[1])[0] == pixels("o/b/draw_01.png")).all() and post.nfe == 6
    said = say("reconstruct", run, "a.png", "--keep", 0.2, "--draws", 1, "--json")
    (facts,) = json.loads(said.out)["pictures"]
    assert facts["recipe"]["label"] is None and facts["nfe"] == 3  # two steps of heun


def test_a_table_counts_on_its_picture_and_size_is_the_answers(say, run):
    values = colours()
    table("p.csv", protocol_mask(5, (SIZE, SIZE), 0.2).numpy(), values)
    ask = ("reconstruct", run, "--points", "p.csv", "--size", "64x64", "--draws", 1, "--json")
    said = say(*ask, write("a.png", values), "--out", "with")
    (facts,) = json.loads(said.out)["pictures"]
    assert facts["size"] == [64, 64] and facts["of"] == SIZE * SIZE and facts["observed"] == 205
    (facts,) = json.loads(say(*ask, "--out", "without").out)["pictures"]
    assert facts["size"] == [64, 64] and facts["of"] == 64 * 64 and facts["observed"] == 205
    places = protocol_mask(5, (SIZE, SIZE), 0.2).numpy()
    fine = pixels("with/observed.png")[::2, ::2]  # each seen pixel is the mean of four of them
    assert (fine[places] == values[places]).all()
    assert (pixels("without/draw_00.png")[:SIZE, :SIZE][places] == values[places]).all()
    table("p.csv", np.eye(40, 48) > 0, colours(40, 48))  # it reaches beyond the picture
    said = say(*ask, "a.png")
    assert said.code == 2 and "p.csv, line 34: x is 32, outside of the picture" in said.err


def test_a_mask_lies_on_its_picture_as_both_are_seen(say, run):
    """A camera stores both lying on their side, and says so."""
    values, mask = colours(), np.zeros((SIZE, SIZE), np.uint8)
    mask[3, :9] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(values).save("a.png", exif=turned)
    Image.fromarray(mask).save("m.png", exif=turned)
    said = say("reconstruct", run, "a.png", "--mask", "m.png", "--draws", 1, "--out", "o")
    assert said.code == 0 and "9 of 1,024 pixels seen" in said.out
    upright, known = np.rot90(values, -1), np.rot90(mask, -1) > 0
    assert (pixels("o/draw_00.png")[known] == upright[known]).all()
    assert (pixels("o/observed.png")[~known] == 128).all()
