"""Fields from .npz files: crops with their own places, gaps, and training from end to end."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.data.loader import to_batch
from pointillist.data.report import check, lines
from pointillist.engine.log import read
from pointillist.gradient import shown
from pointillist.run import from_dict, to_dict
from pointillist.train import train
from pointillist.types import Axis, InputError

BESIDE = Path(__file__).parents[2] / "shared" / "data"
LEVITUS = Path(os.environ.get("POINTILLIST_DATA") or BESIDE) / "fields" / "levitus_temp3d.npz"
TICKS = {"depth": np.array([0.0, 10, 30, 100, 300, 1000]), "lat": np.arange(-7.5, 8, 1.5),
         "lon": np.arange(15.0, 375, 15)}  # fmt: skip


def written(tmp_path, axes=("depth", "lat", "lon"), gaps=True, **more):
    """A smooth field in degrees, with a gap; `more` takes the place of its arrays."""
    mesh = np.meshgrid(*(TICKS[name] for name in axes), indexing="ij")
    x = 12 + sum(np.sin(v / 60 + i) for i, v in enumerate(mesh))
    if gaps:
        x[..., :2] = np.nan
    path = tmp_path / "field.npz"
    arrays = {"temp": x, **{f"temp__{name}": TICKS[name] for name in axes}, **more}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def data(path, crop=(3, 4, 6), axis="lon", low=200, high=260, **more):
    told = [{"name": "depth", "transform": "log", "scale": 50, "unit": "m"},
            {"name": "lon", "period": 360}]  # fmt: skip
    values = {"kind": "field", "path": str(path), "crop": list(crop), "axes": told,
              "holdout": {"axis": axis, "low": low, "high": high}, **more}  # fmt: skip
    return from_dict({"data": values}).data


@pytest.mark.parametrize("axes", [("lon",), ("lat", "lon"), ("depth", "lat", "lon")])
def test_every_cell_is_the_files_value_at_its_place(tmp_path, axes):
    path = written(tmp_path, axes)
    x = np.load(path)["temp"]
    told = [{"name": "depth", "transform": "log", "scale": 50}, {"name": "lon", "period": 360}]
    config = data(path, (3, 4, 6)[-len(axes) :], axes=[a for a in told if a["name"] in axes])
    seen = {}
    for split in ("train", "test"):
        source = config.open(split)
        batch = to_batch(source.rows(range(len(source))), torch.arange(len(source)), source.spec)
        assert ((batch.weight > 0).flatten(1).float().mean(1) >= 0.25).all()
        assert (batch.x[batch.weight == 0] == 0).all() and batch.x.isfinite().all()
        columns = zip(source.spec.axes, batch.where.unbind(-1), strict=True)
        user = [axis.from_unit(u).numpy() for axis, u in columns]
        cells = tuple(
            np.abs(TICKS[n] - v[..., None]).argmin(-1) for n, v in zip(axes, user, strict=True)
        )
        found = batch.x.flatten(1).double() * source.spec.scale[0] + source.spec.offset[0]
        known = (batch.weight > 0).flatten(1).numpy()
        assert np.allclose(found.numpy()[known], x[cells][known], atol=1e-5)
        assert np.isnan(x[cells][~known]).all()
        seen[split] = set(np.unique(cells[-1]).tolist())
    held = set(np.flatnonzero((TICKS["lon"] >= 200) & (TICKS["lon"] <= 260)).tolist())
    assert seen["test"] == held and seen["train"] == set(range(24)) - held


def test_crops_go_round_a_periodic_axis_and_statistics_leave_the_hold_out(tmp_path):
    path = written(tmp_path, ("lon",), gaps=False)
    source = data(path, (6,), axes=[{"name": "lon", "period": 360}], stride=[1]).open("train")
    places = source.rows(range(len(source))).where
    assert (places.diff(dim=1) < 0).any()
    lon = TICKS["lon"]
    learnt = np.load(path)["temp"][(lon < 200) | (lon > 260)]
    assert source.spec.offset[0] == pytest.approx(learnt.mean(), rel=1e-6)
    assert source.spec.scale[0] == pytest.approx(learnt.std(), rel=1e-5)


def test_a_meridian_that_is_there_twice_is_left_out(tmp_path):
    lon = np.arange(15.0, 376, 15)
    path = written(tmp_path, ("lon",), temp=np.sin(np.radians(lon)), temp__lon=lon)
    assert data(path, (6,), axes=[{"name": "lon", "period": 360}]).open("train").x.shape == (24,)


def test_a_meridian_that_only_seems_to_be_there_twice_is_refused(tmp_path):
    lon = np.arange(0.0, 361, 15)
    path = written(tmp_path, ("lon",), temp=lon, temp__lon=lon)
    with pytest.raises(InputError, match="lon comes round after 360, but its last"):
        data(path, (6,), axes=[{"name": "lon", "period": 360}]).open("train")


def test_bounds_of_a_hold_out_are_meant_though_the_file_has_float32(tmp_path):
    ticks = np.arange(0, 2, 0.1, dtype=np.float32)
    path = written(tmp_path, ("lon",), temp=np.sin(ticks), temp__lon=ticks)
    config = data(path, (3,), axes=[], low=0.8, high=1.2)
    assert len(np.unique(config.open("test").corners)) == 3  # of five cells, in crops of three


def test_damaged_archives_are_one_sentence(tmp_path):
    path = tmp_path / "field.npz"
    ticks = {f"temp__{name}": TICKS[name] for name in ("depth", "lat", "lon")}
    np.savez_compressed(path, temp=np.random.default_rng(0).normal(size=(6, 11, 24)), **ticks)
    whole = path.read_bytes()
    for at in (60, 120, 200, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at : at + 8]) + whole[at + 8 :])
        with pytest.raises(InputError, match="field.npz|data.variable"):
            data(path).open("train")


def test_an_axis_that_falls_is_turned(tmp_path):
    path = written(tmp_path, ("lat",), temp=np.arange(11.0), temp__lat=TICKS["lat"][::-1])
    source = data(path, (3,), "lat", 3, 8, axes=[]).open("train")
    assert source.x.tolist() == list(range(10, -1, -1)) and (np.diff(source.unit[0]) > 0).all()


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-40, 40), span=st.floats(1, 5000), scale=st.floats(50, 500),
       share=st.floats(0, 1), transform=st.sampled_from(["linear", "log"]))  # fmt: skip
def test_coordinates_there_and_back(low, span, scale, share, transform):
    axis = Axis(name="z", size=4, low=low, high=low + span, transform=transform, scale=scale)
    v = low + share * span
    assert float(axis.from_unit(axis.to_unit(v))) == pytest.approx(v, abs=1e-8 * span + 1e-8)
    assert axis.to_unit([low, low + span]).tolist() == pytest.approx([-1, 1])


def test_coordinates_outside_are_named_and_periodic_ones_come_round():
    axis = Axis(name="lon", size=4, low=20.0, high=380.0, periodic=True)
    assert float(axis.to_unit(-150)) == pytest.approx(float(axis.to_unit(210)))
    with pytest.raises(InputError, match=r"z is 7 m; it lies in \[0, 5\]"):
        Axis(name="z", size=4, low=0.0, high=5.0, unit="m").to_unit([1.0, 7.0])


def test_check_tells_of_the_field(tmp_path):
    text = "\n".join(lines(check(data(written(tmp_path)))))
    assert "field temp: 6x11x24, 8.3% missing" in text and "withheld" in text
    assert "depth: 6 from 0 to 1000 m, log(1 + v/50)" in text and "periodic" in text


NAN = np.full((6, 11, 24), np.nan)


@pytest.mark.parametrize(
    ("file", "say", "message"),
    [
        ({}, {"variable": "salt"}, "data.variable is salt; .* has temp"),
        ({"more": np.zeros(2)}, {}, "data.variable is not set; .* has temp, more"),
        ({"temp__lat": None}, {}, "has 3 axes and the coordinates depth, lon"),
        ({"temp__lat": np.zeros(11)}, {}, "neither rises nor falls"),
        ({"temp__lat": np.zeros(4)}, {}, "temp__lat has shape"),
        ({"temp": NAN}, {}, "NaN everywhere"),
        ({"temp": np.full((6, 11, 24), np.inf)}, {}, "infinite values"),
        ({"temp": np.array([{}])}, {}, "cannot be read as plain arrays"),
        ({}, {"crop": [9, 4, 6]}, "data.crop is 9 on depth, which has 6 cells"),
        ({}, {"crop": [4, 6]}, "give one size for each"),
        ({}, {"low": 1, "high": 2}, "holds none of its cells"),
        ({}, {"axis": "x"}, "data.holdout.axis names x"),
        ({}, {"holdout": None}, "data.holdout is not set"),
        ({}, {"path": "nowhere.npz"}, "nowhere.npz, which is no file"),
        ({}, {"axes": [{"name": "lon", "period": 90}]}, "period 90, but its cells span"),
        ({}, {"axes": [{"name": "lat", "transform": "log"}]}, "is not finite"),
    ],
)
def test_files_that_are_no_fields_are_one_sentence(tmp_path, file, say, message):
    config = data(**{"path": written(tmp_path, **file), **say})
    with pytest.raises(InputError, match=message):
        config.open("train")


def toy(path):
    return from_dict({
        "data": {"kind": "field", "path": str(path), "crop": [3, 4, 6], "unit": "degC",
                 "axes": [{"name": "depth", "transform": "log", "scale": 50},
                          {"name": "lon", "period": 360}],
                 "holdout": {"axis": "lon", "low": 200, "high": 260}},
        "augment": {"flip": False}, "task": {"kind": "scatter", "sparsity": 0.6},
        "objective": {"predict": "x"},
        "model": {"kind": "perceiver_io", "width": 32, "latents": 16, "depth": 2, "heads": 2,
                  "frequencies": 16, "frequency_std": 1.0},
        "optim": {"lr": 3e-3, "warmup": 0},
        "train": {"images": 320, "batch": 16, "grid": 0, "validate": 8, "log_every": 16,
                  "save_every": 320, "ema": [0.5], "workers": 0},
        "sample": {"sampler": "euler", "steps": 3},
    })  # fmt: skip


def test_gaps_are_neither_shown_nor_count(tmp_path):
    run = toy(written(tmp_path))
    source = run.data.open("train")
    number = next(i for i in range(len(source)) if (source.rows([i]).weight == 0).any())
    batch = to_batch(source.rows([number]), torch.arange(1), source.spec)._replace(
        row=torch.tensor([number])
    )
    ((some, told),) = shown(run, batch, 1, torch.device("cpu"))
    gaps = batch.weight.flatten() == 0
    assert (some.weight.flatten()[gaps] == 0).all() and torch.equal(told.where, batch.where)
    near = (told.at[0][told.valid[0, 0]][:, None] - batch.where[0]).abs().sum(-1)
    place = near.argmin(1)
    assert (near.amin(1) == 0).all() and not gaps[place].any()
    assert torch.equal(told.value[0, 0][told.valid[0, 0]], batch.x.flatten()[place])


def test_a_run_on_a_field_learns_validates_and_answers_at_points(tmp_path):
    run = toy(written(tmp_path))
    trained = train(run, tmp_path / "run")
    events = read(tmp_path / "run" / "log.jsonl")
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 20 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    (event,) = (event for event in events if event["event"] == "validation")
    assert all(np.isfinite(v) for name, v in event.items() if "@" in name)
    spec = trained.spec
    at = spec.to_unit([[5.0, 0.0, 100.0], [500.0, 3.0, -150.0]])
    value = (torch.tensor([[13.0, 17.0]]) - spec.offset[0]) / spec.scale[0]
    assert value.abs().max() > 1  # standardised values have no bounds
    where = torch.cat((at, spec.to_unit([[200.0, -2.0, 220.0]])))
    post = trained.reconstruct(value, at=at, where=where, draws=3)
    found = post.draws * spec.scale[0] + spec.offset[0]
    assert found[:, 0, :2] == pytest.approx(torch.tensor([[13.0, 17.0]] * 3), abs=1e-4)
    assert found.isfinite().all() and post.std[0, 2] > 0
    with pytest.raises(InputError, match="known values are finite"):
        trained.reconstruct(value * torch.inf, at=at, where=where)


@pytest.mark.parametrize(
    ("say", "message"),
    [
        ("augment.flip=true", "set augment.flip=false"),
        ("train.grid=4", "set train.grid=0"),
        ("task.kind=upscale", "set task.kind=scatter"),
    ],
)
def test_what_is_for_pictures_is_refused(tmp_path, say, message):
    run = toy(written(tmp_path))
    with pytest.raises(InputError, match=message):
        train(from_dict(to_dict(run), (say,)), tmp_path / "run")


@pytest.mark.skipif(not LEVITUS.is_file(), reason=f"{LEVITUS} is not there; set POINTILLIST_DATA")
def test_the_oceans_temperature():
    config = from_dict({"data": {"kind": "field", "path": str(LEVITUS), "crop": [8, 24, 24],
                                 "holdout": {"axis": "xaxlevitr", "low": 200, "high": 220}}}
                       ).data  # fmt: skip
    train, test = config.open("train"), config.open("test")
    assert len(train) > 500 and test.rows([0]).x.shape == (1, 1, 8, 24, 20)
    assert 5 < train.spec.offset[0] < 12
