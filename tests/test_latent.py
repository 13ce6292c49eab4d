"""Latents as data: encoded once, kept with what they are of, refused with anything else."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointillist import cli
from pointillist.augment import AugmentConfig
from pointillist.data.latent import LatentConfig
from pointillist.data.loader import batches, to_batch
from pointillist.draws import Draw
from pointillist.engine import checkpoint
from pointillist.engine.ranks import Ranks
from pointillist.engine.session import Interrupted, StopRequest
from pointillist.frozen import autoencoder as frozen
from pointillist.frozen.autoencoder import Autoencoder, open_autoencoder, starts, tiled
from pointillist.run import Run, from_dict
from pointillist.train import opened as train_opened
from pointillist.train import train
from pointillist.types import InputError
from tests import latent_case
from tests.latent_case import FACTOR, SIZE, latent, toy

pytest.importorskip("diffusers", reason="latents need diffusers: pip install 'pointillist[latent]'")
CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    return tmp_path


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    return open_autoencoder(str(latent_case.autoencoder(tmp_path_factory.mktemp("vae"))), CPU)


def opened(root, split="train", **more):
    return config(root, **more).open(split)


def config(root, **more) -> LatentConfig:
    return toy(latent(root, **more)).data


def whole(source):
    return to_batch(source.rows(range(len(source))), torch.arange(len(source)), source.spec)


# The autoencoder.


def test_latents_have_their_shape_and_come_back_as_pictures(coder):
    x = torch.rand(3, 3, 16, 24) * 2 - 1
    moments = coder.encode(x)
    assert moments.shape == (3, 8, 8, 12) and (moments[:, 4:] > 0).all()
    back = coder.decode(moments[:, :4])
    assert back.shape == x.shape and back.abs().max() <= 1
    posterior = coder.model.encode(x).latent_dist
    torch.testing.assert_close(moments, torch.cat((posterior.mean, posterior.std), 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(4, 40))
def test_tiles_cover_an_axis_and_overlap(cells, tile):
    found = starts(cells, tile)
    assert found[0] == 0 and (len(found) == 1) == (cells <= tile)
    if len(found) > 1:
        assert found[-1] + tile == cells
        shared = [a + tile - b for a, b in zip(found, found[1:], strict=False)]
        assert min(shared) >= max(1, tile // 4 - 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 21), st.integers(4, 21), st.integers(4, 8))
def test_tiles_of_what_looks_at_its_own_cell_are_the_whole(h, w, tile):
    x = Draw(1, torch.arange(2)).normal("x", (3, 2 * h, 2 * w))
    halved = tiled(lambda part: F.avg_pool2d(part, 2), x, tile, 2, 1)
    torch.testing.assert_close(halved, F.avg_pool2d(x, 2))
    z = F.avg_pool2d(x, 2)
    doubled = tiled(lambda part: F.interpolate(part, scale_factor=2), z, tile, 1, 2)
    torch.testing.assert_close(doubled, F.interpolate(z, scale_factor=2))


def test_one_tile_is_the_plain_answer(coder):
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(coder.encode(x, 16), coder.encode(x))
    z = coder.encode(x)[:, :4]
    assert torch.equal(coder.decode(z, 16), coder.decode(z))
    wide = torch.cat((x, x), 3)
    several, one = coder.encode(wide, 16), coder.encode(wide)
    assert several.shape == one.shape and not torch.equal(several, one)
    assert coder.decode(one[:, :4], 16).shape == wide.shape


def test_a_seam_is_no_edge():
    """Tiles that disagree by a constant, as normalisation of each alone makes them, are blended."""
    x = torch.linspace(-3, 3, 96).expand(1, 2, 64, 96)

    def centred(part):
        return part - part.mean((2, 3), keepdim=True)

    found = tiled(centred, x, 16, 2, 2)[0, 0, 0]
    steps = (found[1:] - found[:-1] - 6 / 95).abs()
    means = [x[0, 0, 0, 2 * i : 2 * i + 32].mean() for i in starts(48, 16)]
    apart = max(b - a for a, b in zip(means, means[1:], strict=False))
    assert apart > 1 and steps.max() <= 1.2 * apart / 8  # over an overlap of 8 pixels, not at once


# Data.


def test_latents_are_means_in_the_units_of_the_spec(root):
    latent(root)
    shutil.rmtree(root / "vae")
    latent_case.autoencoder(root / "vae", scaling_factor=0.5, shift_factor=0.25)
    source = opened(root)
    spec, coder = source.spec, open_autoencoder(str(root / "vae"), CPU)
    assert (spec.channels, spec.size, spec.unit) == (4, (8, 8), "latent")
    assert (spec.scale, spec.offset) == ((2.0,) * 4, (0.25,) * 4)
    assert spec.code.factor == FACTOR and spec.code.digest == coder.digest
    assert spec.largest > 1 and spec.shown == (3, (SIZE, SIZE))
    own = config(root).of.open("train")
    mean = coder.encode(whole(own).x)[:, :4]
    torch.testing.assert_close(whole(source).x, (mean - 0.25) * 0.5)
    assert torch.equal(whole(source).label, whole(own).label)
    assert spec.classes == ("a", "b") and config(root).promise().classes == ("a", "b")
    assert len(source) == len(own) == spec.samples


def test_means_and_deviations_of_channels_take_the_place_of_a_factor(root):
    latent_case.autoencoder(
        root / "vae", latents_mean=[0.0, 1, 2, 3], latents_std=[1.0, 2, 4, 8], scaling_factor=0.5
    )
    spec = config(root).promise()
    assert spec.offset == (0, 1, 2, 3) and spec.scale == (2, 4, 8, 16)


def test_a_picture_is_encoded_once(root, monkeypatch):
    seen, encode = [], Autoencoder.encode
    monkeypatch.setattr(
        Autoencoder, "encode",
        lambda self, x, tile=0: (seen.append(x.shape[0]), encode(self, x, tile))[1],
    )  # fmt: skip
    heard = []
    first = config(root).open("train", lambda done, of: heard.append((done, of)))
    assert sum(seen) == len(first) == heard[-1][0] == heard[-1][1]
    again = opened(root)
    assert sum(seen) == len(first) and torch.equal(whole(again).x, whole(first).x)
    assert again.spec == first.spec


def test_what_is_interrupted_leaves_nothing(root, monkeypatch):
    def stop(self, x, tile=0):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Autoencoder, "encode", stop)
        opened(root)
    assert [path.name for path in (root / "latents").iterdir()] == [".latents.lock"]
    assert len(opened(root))


def test_a_set_that_is_decoded_as_needed_gives_the_same_latents(root, monkeypatch):
    held = opened(root)
    monkeypatch.setattr("pointillist.data.collection.IN_MEMORY", 0)
    file = next(item.file for item in config(root).of.listing().items if item.split == "train")
    (root / "pictures" / file).write_bytes(b"no picture")
    lazy = opened(root, cache=str(root / "others"))
    assert len(lazy) == len(held) and len(lazy.refused) == 1
    assert torch.equal(lazy.label, held.label)
    same = (whole(lazy).x == whole(held).x).flatten(1).all(1)
    assert same.sum() == len(held) - 1  # the next one took the place of the damaged file


def test_half_precision_is_near_and_half_as_large(root):
    full, half = opened(root), opened(root, cache=str(root / "half"), precision="float16")
    torch.testing.assert_close(whole(half).x, whole(full).x, rtol=1e-3, atol=1e-3)
    sizes = [(root / name / "train/latents.npy").stat().st_size for name in ("latents", "half")]
    assert sizes[0] - 128 == 2 * (sizes[1] - 128)


def test_a_flipped_sample_is_the_latent_of_the_flipped_picture(root):
    source, coder = opened(root, flip=True), open_autoencoder(str(root / "vae"), CPU)
    batch = whole(source)
    draw = Draw(0, batch.index)
    turn = (draw.bits("flip") & 1).bool()
    assert turn.any() and not turn.all()
    x = whole(config(root).of.open("train")).x
    x[turn] = x[turn].flip(-1)
    wanted = coder.encode(x)[:, :4] * 0.18215
    torch.testing.assert_close(AugmentConfig()(batch, draw).x, wanted)


def test_samples_are_drawn_anew_in_every_epoch_and_alike_in_any_batch(root):
    source = opened(root, sampled=True, flip=True)
    n, rows = len(source), source.rows(range(len(source)))
    assert torch.equal(to_batch(rows, torch.arange(n), source.spec).x, whole(source).x)  # means
    found = next(batches(source, 3, 0, 1, 2 * n))
    mean = whole(source).x[found.row]
    noise = Draw(3, found.index).normal("posterior", tuple(mean.shape[1:]))
    spread = source.rows(found.row.tolist()).spread * 0.18215
    torch.testing.assert_close(found.x, mean + spread * noise, rtol=1e-5, atol=1e-5)
    pieces = torch.cat([b.x for b in batches(source, 3, 0, 2 * n, 1)])
    assert torch.equal(pieces, found.x)
    assert not torch.equal(found.x[:n][found.row[:n].argsort()],
                           found.x[n:][found.row[n:].argsort()])  # fmt: skip


# What is refused.


def test_latents_of_other_data_are_refused(root):
    opened(root)
    shutil.rmtree(root / "pictures")
    latent_case.pictures(root / "pictures", seed=1)
    with pytest.raises(InputError, match="latents/train holds latents of other data than data.of"):
        opened(root)
    with pytest.raises(InputError, match="delete it, or set another data.cache"):
        train(toy(latent(root)), root / "run")
    assert not (root / "run/run.yaml").exists()
    shutil.rmtree(root / "latents")
    assert len(opened(root))


def test_latents_of_another_autoencoder_are_refused(root):
    opened(root)
    latent_case.autoencoder(root / "vae", seed=1)
    with pytest.raises(InputError, match="holds latents of another autoencoder than"):
        opened(root)
    shutil.rmtree(root / "latents")
    opened(root)
    # The same weights, put together otherwise.
    path = root / "vae/config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"act_fn": "gelu"}))
    with pytest.raises(InputError, match="holds latents of another autoencoder than"):
        opened(root)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"tile": 8}, "holds latents with tile 1024, and data.tile is 8"),
     ({"flip": True}, "with flip False, and data.flip is True"),
     ({"sampled": True}, "with sampled False, and data.sampled is True"),
     ({"precision": "float16"}, "with precision float32, and data.precision is float16")],
)  # fmt: skip
def test_latents_made_with_other_settings_are_refused(root, more, message):
    opened(root)
    with pytest.raises(InputError, match=message):
        opened(root, **more)


def test_damaged_latents_are_refused(root):
    opened(root)
    path = root / "latents/train"
    kept = (path / "latents.npy").read_bytes()
    (path / "latents.npy").write_bytes(kept[:-40])
    with pytest.raises(InputError, match="train is damaged .*; delete it, and it is made again"):
        opened(root)
    np.save(path / "latents.npy", np.zeros((2, 1, 4, 8, 8), np.float32))
    with pytest.raises(InputError, match=r"latents.npy has shape \(2, 1, 4, 8, 8\)"):
        opened(root)
    (path / "facts.json").write_text("{")
    with pytest.raises(InputError, match="facts.json is missing or damaged; delete"):
        opened(root)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"autoencoder": ""}, "data.autoencoder is not set; give the folder"),
     ({"autoencoder": "/nowhere/vae"}, "data.autoencoder /nowhere/vae is not there; bring it back"),
     ({"of": {"kind": "folder", "size": 15}}, "data.of.size is 15x15, no multiple of 2, the factor "
      ".*; 14x14 would do"),
     ({"of": {"kind": "folder", "channels": 1}}, "takes 3 channels, and data.of has 1; set "
      "data.of.channels=3"),
     ({"of": {"kind": "folder", "path": "/nowhere"}}, "data.of.path /nowhere is not a folder"),
     ({"tile": 5}, "data.tile is 5; with data.autoencoder .* a multiple of 2, 8 or more"),
     ({"tile": 6}, "data.tile is 6; with"), ({"tile": -2}, "data.tile is -2; it is an edge"),
     ({"autoencoder": "identity", "flip": True}, "data.flip is True, but data.autoencoder is "
      "identity"),
     ({"of": {"kind": "field"}}, "data.*of.kind is 'field'; there are"),
     ({"precision": "int8"}, "data.*precision is 'int8'")],
)  # fmt: skip
def test_a_wrong_configuration_is_one_sentence(root, more, message):
    base = latent(root)
    more["of"] = {**base["of"], **more.get("of", {})}
    if more["of"]["kind"] == "field":
        more["of"] = {"kind": "field"}
    base |= {"device": "auto", "cache": "data/latents"} if more.get("flip") else {}
    with pytest.raises(InputError, match=message):
        toy({**base, **more}).data.open("train")


def test_an_autoencoder_of_another_kind_or_without_its_weights_is_refused(root):
    vae = latent_case.autoencoder(root / "vae")
    facts = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**facts, "_class_name": "AutoencoderDC"}))
    with pytest.raises(InputError, match="is of class AutoencoderDC; give an AutoencoderKL"):
        opened(root)
    (vae / "config.json").write_text(json.dumps({**facts, "scaling_factor": 0}))
    with pytest.raises(InputError, match="scaling_factor 0"):
        opened(root)
    (vae / "config.json").write_text(json.dumps(facts))
    weights = vae / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    torch.save(tensors, vae / "diffusion_pytorch_model.bin")  # a pickle is never read
    weights.unlink()
    with pytest.raises(InputError, match=r"vae cannot be loaded \(.*AutoencoderKL with .safetens"):
        opened(root)
    del tensors["decoder.conv_out.bias"]
    save_file(tensors, weights)
    with pytest.raises(InputError, match="lacks the weight decoder.conv_out.bias"):
        opened(root)


def test_an_autoencoder_is_found_by_its_hub_id(tmp_path, monkeypatch):
    """In the hub's own cache, off line."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    held = tmp_path / "hub/models--toys--tiny"
    vae = latent_case.autoencoder(held / "snapshots" / ("0" * 40))
    (held / "refs").mkdir()
    (held / "refs/main").write_text("0" * 40)
    named, local = (open_autoencoder(name, CPU) for name in ("toys/tiny", str(vae)))
    assert named.digest == local.digest and named.coding == local.coding
    with pytest.raises(InputError, match="toys/none cannot be loaded .* hub id that can be reache"):
        open_autoencoder("toys/none", CPU)


def test_without_diffusers_the_remedy_is_named(root, monkeypatch):
    data = latent(root)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match="needs diffusers, .* 'pointillist.latent.' installs it"):
        frozen.promise(data["autoencoder"])


def test_half_precision_that_overflows_is_refused(root, monkeypatch):
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x, tile=0: encode(self, x, tile) + 1e5)
    with pytest.raises(InputError, match="float16 cannot hold; set data.precision=float32"):
        opened(root, precision="float16")


@pytest.mark.parametrize(
    ("more", "message"),
    [({"task": {"kind": "hints"}, "model": {"kind": "jit", "encoder": {"kind": "grid"}}},
      "task.kind is hints, but the data are latents"),
     ({"augment": {"flip": True}}, "augment.flip is true, but the latent .* set data.flip=true"),
     ({"loss": {"align": {"weight": 1.0}}}, "loss.align.weight is 1.0, but the data are latents"),
     ({"loss": {"lpips": {"weight": 1.0}}}, "loss.lpips.weight is 1.0, but the data are latents"),
     ({"loss": {"frequency": {"weight": 1.0}}}, "loss.frequency.weight is 1.0, but the data are")],
)  # fmt: skip
def test_what_is_told_of_pixels_is_refused(root, more, message):
    run = from_dict({"augment": {"flip": False}, **more, "data": latent(root)})
    with pytest.raises(InputError, match=message):
        run.check(run.data.promise())
    if "augment" in more:
        flips = dataclasses.replace(run, data=dataclasses.replace(run.data, flip=True))
        flips.check(run.data.promise())
        neither = dataclasses.replace(flips, augment=AugmentConfig(flip=False))
        with pytest.raises(InputError, match="data.flip is true, but augment.flip is false"):
            neither.check(run.data.promise())


def test_a_run_may_keep_its_latents_in_its_own_folder(root):
    train(toy(latent(root, cache=str(root / "run"))), root / "run")
    assert (root / "run/train/latents.npy").exists() and (root / "run/run.yaml").exists()


def test_who_asks_to_stop_need_not_wait_for_the_encoder(root):
    run, stop = toy(latent(root)), StopRequest()
    stop.asked = True
    with pytest.raises(Interrupted, match="stopped at .* pictures to encode, of which nothing"):
        train_opened(run, stop, Ranks())
    assert not (root / "latents/train").exists()


def test_a_run_that_cannot_be_is_refused_before_anything_is_encoded(root):
    with pytest.raises(InputError, match="augment.flip is true, but the latent"):
        train(toy(latent(root), "augment.flip=true"), root / "run")
    assert not (root / "latents").exists()


# Identity.


def test_without_an_autoencoder_a_run_is_the_plain_one_bit_for_bit(root):
    latent_case.pictures(root / "pictures")
    plain = latent_case.of(root)
    same = {"kind": "latent", "of": plain, "autoencoder": "identity"}
    flips = ("augment.flip=true",)
    train(toy(plain, *flips), root / "plain")
    train(toy(same, *flips), root / "same")
    assert (root / "plain/spec.json").read_bytes() == (root / "same/spec.json").read_bytes()
    found = [checkpoint.load(checkpoint.complete(root / name / "checkpoints")[-1], "model")
             for name in ("plain", "same")]  # fmt: skip
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    sheets = [(root / name / "samples/000000032.png").read_bytes() for name in ("plain", "same")]
    assert sheets[0] == sheets[1]


# Words.


def test_the_commands_know_the_kind(root, capsys, monkeypatch):
    def say(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pointillist", "data", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        found = capsys.readouterr()
        assert caught.value.code == 0, found.err
        return found.out

    assert "\nlatent " in say("list")
    data = latent(root)
    words = [f"data.of.{key}={value}" for key, value in data["of"].items()]
    words += [f"data.autoencoder={root}/vae", f"data.cache={root}/latents", "data.device=cpu"]
    told = say("check", "latent", *words)
    assert f"{latent_case.COUNT} pictures found" in told and "latents of 4 x 8x8 by" in told
    assert "train: none are kept in" in told
    n = len(opened(root))
    assert f"train: {n} are kept in {root}/latents/train" in say("check", "latent", *words)


def test_a_configuration_is_read_back_as_it_was_written(root):
    run = toy(latent(root, sampled=True))
    run.save(root / "run.yaml")
    assert Run.load(root / "run.yaml") == run
