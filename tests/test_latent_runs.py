"""Runs on latents: trained, resumed, sampled as pictures, judged as pictures."""

import json
import shutil

import pytest
import torch
from PIL import Image

from pointillist import cli
from pointillist.data.latent import decoded
from pointillist.engine import checkpoint
from pointillist.evaluation import evaluate
from pointillist.frozen.autoencoder import Autoencoder, open_autoencoder
from pointillist.run import Run
from pointillist.runfolder import read_spec
from pointillist.sample import load, untrained
from pointillist.train import train
from pointillist.types import Given, InputError
from tests import latent_case
from tests.latent_case import COUNT, SIZE, latent, toy

pytest.importorskip("diffusers", reason="latents need diffusers: pip install 'pointillist[latent]'")
CPU = torch.device("cpu")
MORE = {"sampled": True, "flip": True}
FLIPS = ("augment.flip=true", "optim.schedule=constant", "optim.warmup=0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("latent")
    train(toy(latent(root, **MORE), *FLIPS), root / "run")
    return root


@pytest.fixture
def copy(made, tmp_path):
    """The run, its pictures and its autoencoder, to be spoilt."""
    shutil.copytree(made, tmp_path / "all")
    text = (tmp_path / "all/run/run.yaml").read_text().replace(str(made), str(tmp_path / "all"))
    (tmp_path / "all/run/run.yaml").write_text(text)
    return tmp_path / "all"


def test_what_is_drawn_is_decoded(made):
    trained = load(made / "run")
    x = trained.sample(3, seed=2)
    z = trained.sample(3, seed=2, latents=True)
    assert x.shape == (3, 3, SIZE, SIZE) and x.abs().max() <= 1
    assert z.shape == (3, 4, SIZE // 2, SIZE // 2)
    coder = open_autoencoder(str(made / "vae"), CPU)
    torch.testing.assert_close(x, coder.decode(z / 0.18215))
    assert torch.equal(decoded(trained.run.data, trained.spec, z, CPU), x)


def test_a_size_is_that_of_pictures(made):
    trained = load(made / "run")
    assert trained.sample(1, size=(24, 16)).shape == (1, 3, 24, 16)
    assert trained.sample(1, size=(24, 16), latents=True).shape == (1, 4, 12, 8)
    with pytest.raises(InputError, match="size 17x16 is no multiple of 2, .*; 16x16 would do"):
        trained.sample(1, size=(17, 16))


def test_large_pictures_are_decoded_in_tiles(made):
    run = toy(latent(made, **MORE, tile=16), *FLIPS)
    tiles, plain = (untrained(r, read_spec(made / "run")) for r in (run, load(made / "run").run))
    one, other = (trained.sample(1, steps=1, size=(16, 40)) for trained in (tiles, plain))
    assert one.shape == other.shape == (1, 3, 16, 40) and not torch.equal(one, other)
    assert torch.equal(tiles.sample(1, steps=1), plain.sample(1, steps=1))


def test_training_draws_pictures_and_validates_latents(made):
    with Image.open(made / "run/samples/000000032.png") as sheet:
        assert sheet.size == (2 * SIZE + 2, SIZE)
    events = [json.loads(line) for line in (made / "run/log.jsonl").read_text().splitlines()]
    assert any("velocity@0.5" in event for event in events)
    spec = read_spec(made / "run")
    assert spec.code.digest == open_autoencoder(str(made / "vae"), CPU).digest
    assert not spec.bounded and spec.shown == (3, (SIZE, SIZE))


def test_a_resumed_run_is_the_whole_one_and_encodes_nothing(made, tmp_path, monkeypatch):
    run = toy(latent(made, **MORE), *FLIPS, "train.images=16")

    def never(*asked):
        raise AssertionError("encoded again")

    monkeypatch.setattr(Autoencoder, "encode", never)
    train(run, tmp_path / "run")
    train(toy(latent(made, **MORE), *FLIPS), tmp_path / "run", resume=True)
    weights = [checkpoint.load(checkpoint.complete(folder / "run/checkpoints")[-1], "model")
               for folder in (made, tmp_path)]  # fmt: skip
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_pictures_and_autoencoder_may_have_moved(copy):
    for name in ("pictures", "vae", "latents"):
        (copy / name).rename(copy / f"{name}-moved")
    data = latent(copy, **MORE, autoencoder=str(copy / "vae-moved"),
                  cache=str(copy / "latents-moved"))  # fmt: skip
    shutil.rmtree(copy / "pictures")
    data["of"]["path"] = str(copy / "pictures-moved")
    train(toy(data, *FLIPS, "train.images=40"), copy / "run", resume=True)
    assert load(copy / "run").origin.images == 40


def test_another_autoencoder_is_refused_and_an_absent_one_named(copy):
    trained = load(copy / "run")
    shutil.rmtree(copy / "vae")
    with pytest.raises(InputError, match="vae is not there; bring it back, or set data.autoenc"):
        trained.sample(1)
    assert trained.sample(1, latents=True).shape == (1, 4, 8, 8)  # needs none
    latent_case.autoencoder(copy / "vae", seed=1)
    with pytest.raises(InputError, match="vae has other weights than the one that the run was"):
        trained.sample(1)
    shutil.rmtree(copy / "latents")
    with pytest.raises(InputError, match="vae has other weights than the one that the run was"):
        train(toy(latent(copy, **MORE), *FLIPS, "train.images=40"), copy / "run", resume=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"scaling_factor": 0.5}, "has scaling factor 0.5, but the run's latents have 0.18215;"),
     ({"latent_channels": 3}, "has latent channels 3, but the run's latents have 4"),
     ({"shift_factor": 1.0}, "has offset 1, but the run's latents have 0"),
     ({"block_out_channels": (8, 8, 16), "down_block_types": ["DownEncoderBlock2D"] * 3,
       "up_block_types": ["UpDecoderBlock2D"] * 3}, "has factor 4, but the run's latents have 2")],
)  # fmt: skip
def test_an_autoencoder_of_another_scale_is_refused(copy, more, message):
    shutil.rmtree(copy / "vae")
    latent_case.autoencoder(copy / "vae", **more)
    with pytest.raises(InputError, match=message):
        load(copy / "run").sample(1)
    shutil.rmtree(copy / "latents")
    with pytest.raises(InputError, match=message):
        train(toy(latent(copy, **MORE), *FLIPS, "train.images=40"), copy / "run", resume=True)


def test_known_pixels_are_refused(made):
    trained = load(made / "run")
    x, mask = torch.zeros(1, 3, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
    told = "known pixels are given, but the run has latents"
    for ask in (
        lambda: trained.sample(1, known=Given(seen=x, mask=mask)),
        lambda: trained.posterior(Given(seen=x, mask=mask), 2),
        lambda: trained.reconstruct(x[0], mask[0]),
        lambda: trained.upscale(x[0], scale=2),
    ):
        with pytest.raises(InputError, match=told):
            ask()
    with pytest.raises(InputError, match="where is given, but the run has latents"):
        trained.sample(1, where=torch.zeros(1, 2))


def test_a_guide_on_other_latents_is_refused(made, tmp_path):
    latent_case.autoencoder(tmp_path / "vae", seed=1)
    run = toy(latent(made, **MORE, autoencoder=str(tmp_path / "vae"), cache=str(tmp_path)), *FLIPS)
    guide = untrained(run, run.data.open("train").spec)
    with pytest.raises(InputError, match="or its latents of another autoencoder"):
        load(made / "run").sample(1, guide=guide, guidance=2.0)


def test_latents_are_not_asked_of_a_run_of_pixels(made):
    run = toy(latent_case.of(made))
    trained = untrained(run, run.data.promise())
    with pytest.raises(InputError, match="latents is true, but the run has pixels"):
        trained.sample(1, latents=True)


def test_a_run_is_judged_by_its_pictures(made):
    found = evaluate(made / "run", metrics=("kid", "velocity"), steps=1)
    plain = toy(latent_case.of(made)).data.open("train")
    assert found["kid"]["n"] == 10 and found["velocity@0.5"]["value"] > 0
    about = found["recipe"]["about"]["kid"]
    assert about["data"] == plain.spec.fingerprint and about["size"] == [SIZE, SIZE]
    assert found["recipe"]["autoencoder"]["digest"] == read_spec(made / "run").code.digest
    assert "Nearest training pictures" in (made / "run/report.html").read_text()
    with pytest.raises(InputError, match="metric psnr judges what is made of known pixels"):
        evaluate(made / "run", metrics=("psnr",))
    larger = evaluate(made / "run", metrics=("kid",), steps=1, size=(20, 20), out=made / "l.json")
    assert larger["recipe"]["size"] == [20, 20]


def say(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["pointillist", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr()


def test_the_commands_draw_pictures_and_refuse_known_ones(made, monkeypatch, capsys, tmp_path):
    code, said = say(monkeypatch, capsys, "sample", made / "run", "--count", 2, "--size", "20x24",
                     "--out", tmp_path / "x.png")  # fmt: skip
    assert code == 0, said.err
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size == (2 * 24 + 2, 20)
    table = tmp_path / "hints.csv"
    table.write_text("x,y,r,g,b\n1,1,0,0,0\n")
    picture = next((made / "pictures").rglob("*.png"))
    for words in (["sample", made / "run", "--hints", table],
                  ["reconstruct", made / "run", picture, "--keep", 0.5],
                  ["reconstruct", made / "run", "--points", table],
                  ["upscale", made / "run", picture, "--scale", 2]):  # fmt: skip
        code, said = say(monkeypatch, capsys, *words)
        assert code == 2 and "known pixels are given, but the run has latents" in said.err, words
    archive = tmp_path / "pictures.zip"
    code, said = say(monkeypatch, capsys, "data", "pack", made / "run", "--out", archive)
    assert code == 0 and f"{COUNT} pictures of {SIZE}x{SIZE}" in said.out


def test_a_spec_of_earlier_versions_is_of_pixels(made, tmp_path):
    run = toy(latent_case.of(made), "train.images=8")
    train(run, tmp_path / "run")
    path = tmp_path / "run/spec.json"
    told = json.loads(path.read_text())
    del told["code"], told["bounded"]
    path.write_text(json.dumps(told))
    trained = load(tmp_path / "run")
    assert trained.spec.largest == 1 and trained.sample(1).shape == (1, 3, SIZE, SIZE)


def test_a_preset_may_be_of_latents_and_untrained(made):
    run = toy(latent(made, **MORE), *FLIPS)
    assert Run.load(made / "run").data == run.data
    trained = untrained(run, run.data.promise())  # nobody has opened the weights yet
    assert trained.spec.code.digest == "" and trained.sample(1).shape == (1, 3, SIZE, SIZE)


def test_published_weights_of_latents_are_drawn_as_pictures(made, tmp_path):
    from pointillist.convert import convert
    from pointillist.models.dit import DiTConfig
    from tests.test_convert import make, publish, spec_of

    config = DiTConfig(width=384, depth=1, heads=6, patch_size=4, time_scale=1.0)
    torch.save(publish(make(config, spec_of(8, channels=4))), tmp_path / "a.pt")
    words = (
        "data.kind=latent", f"data.autoencoder={made}/vae", "data.of.kind=folder",
        "data.of.path=/nowhere", f"data.of.size={SIZE}", "data.of.classes=5", "augment.flip=false",
    )  # fmt: skip
    convert("dit", tmp_path / "a.pt", tmp_path / "run", words)
    trained = load(tmp_path / "run")
    assert trained.spec.code.factor == 2 and len(trained.spec.classes) == 5
    assert trained.sample(2, steps=1).shape == (2, 3, SIZE, SIZE)
    assert trained.sample(2, steps=1, latents=True).shape == (2, 4, 8, 8)
