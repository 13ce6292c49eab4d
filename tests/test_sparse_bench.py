"""The sparse tables' bookkeeping: sessions, names, rows and figures, of results made up here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import pointillist as pt
from pointillist.data import EmojiConfig
from pointillist.known import protocol_mask
from pointillist.layers.observations import centres
from pointillist.run import Run
from pointillist.types import Prediction, Takes

BENCH = Path(__file__).parents[1] / "bench"
SHARES = ("0.05", "0.1", "0.2", "0.4")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The benches as modules, which keep what they find in a folder of its own."""
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("record", "results_page", "sparse_table", "sparse_figures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import results_page
    import sparse_figures
    import sparse_table

    baselines = (results_page.RESULTS / "baselines.json").read_text(encoding="utf-8")
    (tmp_path / "baselines.json").write_text(baselines, encoding="utf-8")
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    monkeypatch.setattr(sparse_table, "RESULTS", tmp_path)
    monkeypatch.setattr(sparse_figures, "IMAGES", tmp_path)
    return results_page, sparse_table, sparse_figures


def row(preset: str, draws: int, psnr: float, **more):
    """A result whose figures differ by metric and share; `psnr` is that at a fifth."""
    covered = {f"{(draws + 1 - 2 * k) / (draws + 1):.4g}": 1 - 2 * k / (draws + 1)
               for k in range(draws // 2, 0, -1)}  # fmt: skip
    table = {}
    for i, share in enumerate(SHARES):
        off = i - 2
        scores = dict(psnr=psnr + off, psnr_whole=psnr + 1 + off, psnr_draw=psnr - 2.5 + 2 * off,
                      ssim=0.7 + off / 10, lpips=0.1 + off / 100, crps=0.07 + off / 1000,
                      coverage=0.8 + off / 100, spread_error=0.9 + off / 100)  # fmt: skip
        table[share] = {
            **{name: [value] * 3 for name, value in scores.items()},
            "seconds a picture": 0.5 + off / 10, "peak memory": 4e8 + off * 1e6, "places": 100,
            "covered": {level: value + off / 100 for level, value in covered.items()},
        }  # fmt: skip
    return {"preset": f"cifar10-{preset}-small", "untrained": False, "images": 60_000,
            "minutes of training": 14.96, "parameters": 1_900_000, "draws": draws, "pictures": 200,
            "evaluations": 16, "where": {"cores": 2, "processor": "AMD EPYC"}, "by share": table,
            **more}  # fmt: skip


def regressor(psnr: float):
    table = {share: {"hidden": psnr + i - 2, "whole": psnr + i - 1, "ssim": 0.5 + i / 10,
                     "lpips": 0.2 + i / 100, "crps": 0.1 + i / 1000}
             for i, share in enumerate(SHARES)}  # fmt: skip
    return {"minutes": 15.0, "images": 300_000, "parameters": 570_000, "seconds a picture": 1e-3,
            "images per second": 250.0, "peak memory, with training": 6e8,
            "where": {"processor": "Intel(R) Xeon(R) Processor"},
            "by share of known pixels": table}  # fmt: skip


def put(folder: Path, **rows):
    for name, found in rows.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(found))


def test_rows_are_in_order_and_as_wide_as_the_head(bench, tmp_path):
    page, _, _ = bench
    alone = page.sparse().splitlines()
    assert len(alone) == 4 and "thin plate" in alone[2]
    put(tmp_path, sparse_grid_15min=row("grid", 9, 21.0),
        **{"sparse_splat_60min_19_draws": row("splat", 19, 22.5)},
        sparse_mamba_15min=row("mamba", 9, 19.0, untrained=True),
        unet_regressor_15min=regressor(22.2))  # fmt: skip
    lines = page.sparse().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert [line[0] for line in cells[2:6]] == [
        "`splat`", "U-Net regressor", "`grid`", "`mamba`, untrained",
    ]  # fmt: skip
    head = cells[0]
    best = dict(zip(head, cells[2], strict=True))
    assert best["80 %"] == "0.80" and best["90 %"] == "0.90" and best["K"] == "19"
    assert cells[4] == [
        "`grid`", "EPYC", "15.0", "60,000", "1.90 M", "9", "19.00", "20.00", "21.00", "22.00",
        "22.00", "0.700", "0.100", "0.0700", "2.50", "0.80", "", "0.90", "0.45", "400",
    ]  # fmt: skip
    assert cells[3][6:14] == ["20.20", "21.20", "22.20", "23.20", "23.20", "0.700", "0.220",
                              "0.1020"]  # fmt: skip
    assert [line[1] for line in cells[2:7]] == ["EPYC", "Xeon", "EPYC", "EPYC", ""]


def test_what_was_not_measured_of_a_system_is_left_empty(bench, tmp_path):
    page, _, _ = bench
    assert len(page.choose().splitlines()) == 2
    put(tmp_path, sparse_local_15min=row("local", 9, 20.0, **{"images per second": 80.0}),
        sparse_grid_15min=row("grid", 9, 21.0, **{"images per second": 100.0,
                                                  "peak memory of training": 7e8}),
        field_scaling_local={"slopes": {"forward": 0.85, "MiB": 0.98}},
        locality={"radii": [0.1, 0.2], "inside": {
            "grid-60min": [0.5, 0.7], "grid-15min": [0.3, 0.6], "even": [0.01, 0.03]}},
        unet_regressor_15min=regressor(22.2))  # fmt: skip
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in page.choose().splitlines()]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    best, grid, local, even = lines[2:]
    assert best == ["U-Net regressor", "", "", "none, convolutions", "", "all", "200", "Xeon",
                    "600", "", "0.57 M", "23.20"]  # fmt: skip
    assert grid == ["`grid`", "", "", "tokens of 128 numbers for patches of 4 x 4", "0.60", "all",
                    "500", "EPYC", "700", "400", "1.90 M", "22.00"]  # fmt: skip
    assert local[:3] == ["`local`", "0.85", "0.98"]
    assert local[4:9] == ["", "box of 10", "625", "EPYC", ""]
    assert even[0] == "*known places within .2*" and even[4] == "0.03"


def test_cells_of_an_ablation_have_their_seeds_and_effects_what_seeds_make(bench, tmp_path):
    page, _, _ = bench
    assert len(page.cells("curve").splitlines()) == len(page.effects("curve").splitlines()) == 2

    def cell(value: bool, psnr: list[float]):
        scores = {"psnr": psnr, "psnr_draw": [18.0] * len(psnr), "crps": [0.07] * len(psnr),
                  "spread_error": [0.9] * len(psnr)}  # fmt: skip
        return {"setting": {"model.encoder.bias": value, "model.encoder.curve": "hilbert"},
                "scores": scores, "parameters": 1e6, "images per second": 150.2}  # fmt: skip

    def effect(difference: float, by_chance: float | None):
        return {"model.encoder.bias": {
            "means": {"false": 20, "true": 20 + difference}, "difference": difference,
            "by_chance": by_chance,
            "exceeds": None if by_chance is None else abs(difference) > by_chance,
        }}  # fmt: skip

    put(tmp_path,
        ablation_curve={"images": 54_016, "cells": [cell(False, [20.0, 20.2]),
                                                    cell(True, [20.5, 20.7])],
                        "effects": {"psnr": {**effect(0.5, 0.3), "departure": 0.1},
                                    "crps": effect(-0.001, 0.002)}},
        ablation_local={"images": 34_048, "cells": [cell(True, [19.0])],
                        "effects": {"psnr": effect(0.1, None), "crps": effect(0.0, None)}},
        )  # fmt: skip
    rows = [[part.strip() for part in line.strip("|").split("|")]
            for line in page.cells("curve", "local").splitlines()]  # fmt: skip
    assert len({len(row) for row in rows}) == 1 and len(rows) == 5
    assert rows[2][:2] == ["`curve` bias false, curve hilbert", "20.10 (20.00 to 20.20)"]
    assert rows[4][1] == "19.00" and rows[3][3] == "2.60 (2.50 to 2.70)"
    told = [[part.strip() for part in line.strip("|").split("|")]
            for line in page.effects("curve", "local").splitlines()]  # fmt: skip
    assert [row[4] for row in told[2:]] == ["yes", "no", "one seed", "one seed"]
    assert told[2][:4] == ["`bias` false, true", "PSNR, dB", "+0.5000", "0.3000"]


def test_figures_show_the_trained_systems_of_those_minutes(bench, tmp_path, monkeypatch):
    _, _, figures = bench
    monkeypatch.setattr(sys, "argv", ["sparse_figures.py"])
    figures.main()
    assert not list(tmp_path.glob("*.svg"))
    put(tmp_path, sparse_grid_15min=row("grid", 9, 21.0),
        sparse_grid_wide_15min=row("grid", 9, 20.0), sparse_local_15min=row("local", 9, 20.0),
        sparse_mamba_15min=row("mamba", 9, 19.0, untrained=True),
        sparse_splat_60min=row("splat", 19, 22.5),
        unet_regressor_15min=regressor(22.2))  # fmt: skip
    figures.main()
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert sorted(drawn) == [f"sparse-{name}-15min.svg" for name in
                             ("crps-seconds", "crps-share", "psnr-seconds", "psnr-share",
                              "reliability")]  # fmt: skip
    for text in drawn.values():
        assert "grid" in text and "local" in text
        assert not any(name in text for name in ("mamba", "splat", "wide"))
    assert "U-Net regressor" in drawn["sparse-psnr-share-15min.svg"]


def test_slopes_splines_and_portions_are_what_they_are_called(bench):
    import field_scaling
    import many_sizes
    import unet_regressor

    sizes = [2**n for n in range(5, 9)]
    assert field_scaling.slope(sizes, [3e-9 * n**2 for n in sizes]) == pytest.approx(2)
    at = centres((32, 32)).view(32, 32, 2).permute(2, 0, 1)[None]
    mask = protocol_mask(0, (32, 32), 0.2)[None, None]
    fine = many_sizes.spline(torch.where(mask, at / 2, 0), mask, 64)
    # A plane is what it does not bend.
    truth = centres((64, 64)).view(64, 64, 2).permute(2, 0, 1)[None] / 2
    torch.testing.assert_close(fine, truth, rtol=0, atol=1e-4)
    train = EmojiConfig(size=32).open("train")
    x, mask = unet_regressor.portion(train, 64, 0, 0.25)
    again, other = (unet_regressor.portion(train, first, 0, 0.25) for first in (64, 128))
    assert x.abs().max() <= 1 and (mask.flatten(1).sum(1) == 256).all()
    assert torch.equal(x, again[0]) and torch.equal(mask, again[1])
    assert not torch.equal(x, other[0]) and not torch.equal(mask, other[1])


def test_dependence_lies_where_a_network_looks(bench):
    import locality

    run = Run.load("emoji-sfc")
    spec = run.data.open("test").spec

    def network_of(look):
        def answer(x, t, given):
            return Prediction(look(given.seen * given.mask))

        answer.takes = Takes(observations="gridded")
        return SimpleNamespace(network=answer, spec=spec, run=run)

    def near(seen):  # 3 x 3 cells: the farthest lies .09 away
        return F.avg_pool2d(seen, 3, 1, 1)

    def far(seen):
        return seen.mean((2, 3), keepdim=True).expand_as(seen)

    inside, even = locality.dependence(network_of(near), 3, 4, 0.1, 0.9)
    assert inside.tolist() == pytest.approx([1, 1, 1, 1]) and even[0] < 0.02
    inside, even = locality.dependence(network_of(far), 3, 4, 0.1, 0.9)
    assert inside.tolist() == pytest.approx(even.tolist())


def test_seconds_of_sessions_add_up_to_where_the_next_took_over(bench):
    _, table, _ = bench
    events = [{"images": n, "images_per_second": v}
              for n, v in ((2000, 90.0), (4000, 100.0), (6000, 50.0), (8000, 50.0))]  # fmt: skip
    assert table.seconds_of([{"from": 0}], events[:2]) == pytest.approx(40)
    # Killed behind 4,000, of which 4,500 were saved; then 3,500 at 50 a second.
    two = [{"from": 0}, {"from": 4500}]
    assert table.seconds_of(two, events) == pytest.approx(4500 / 100 + 3500 / 50)


def test_runs_whose_names_have_dots_keep_what_is_theirs(bench, tmp_path, monkeypatch):
    _, table, _ = bench
    rates = {"float32": 90.0, "bfloat16": 100.0}
    monkeypatch.setattr(table, "rates_of", lambda preset, words, folder: rates)
    plans = [table.plan("local", [f"model.radius={r}"], 5, tmp_path / f"local-r{r}-5min")
             for r in (0.2, 0.3)]  # fmt: skip
    assert [plan["asked"][1] for plan in plans] == ["model.radius=0.2", "model.radius=0.3"]
    assert plans[0]["images"] == 30_016  # a whole number of batches
    assert plans[0]["precision"] == "bfloat16"
    with pytest.raises(SystemExit, match="give another --name"):
        table.plan("local", ["model.radius=0.4"], 5, tmp_path / "local-r0.2-5min")


def test_a_kept_run_draws_nearly_the_same_in_float32(bench, tmp_path):
    _, table, _ = bench
    words = ["model.width=24", "model.depth=2", "train.images=128", "train.batch=32",
             "train.save_every=128", "train.validate=0", "train.grid=0",
             "optim.warmup=0"]  # fmt: skip
    pt.train(Run.load("debug", *words), tmp_path / "run")
    table.store(tmp_path / "run", "run", {"images": 128})
    kept = tmp_path / "runs" / "run"
    files = sorted(path.name for path in kept.rglob("*") if path.is_file())
    assert files == ["about.json", "ema-0.99-00001.safetensors", "run.yaml", "spec.json",
                     "state.json"]  # fmt: skip
    (kept / "run.yaml").write_text("of another training")
    table.store(tmp_path / "run", "run", {"images": 128})
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    draws = []
    for folder in (tmp_path / "run", kept):
        run = pt.load(folder)
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
        draws.append(run.sample(2, label=[0, 1], steps=3, seed=1))
    assert not torch.equal(*draws)
    torch.testing.assert_close(*draws, rtol=0, atol=2e-2)
