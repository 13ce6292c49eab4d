"""The sparse tables' bookkeeping: sessions, names, rows and figures, of results made up here."""

import json
import sys
from pathlib import Path

import pytest
import torch

import pointillist as pt
from pointillist.run import Run

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
    covered = {f"{(draws + 1 - 2 * k) / (draws + 1):.4g}": 1 - 2 * k / (draws + 1)
               for k in range(draws // 2, 0, -1)}  # fmt: skip
    scores = dict(psnr=psnr, psnr_whole=psnr + 1, psnr_draw=psnr - 2.5, ssim=0.7, lpips=0.1,
                  crps=0.07, coverage=0.8, spread_error=0.9)  # fmt: skip
    at = {**{name: [value] * 3 for name, value in scores.items()}, "seconds a picture": 0.5,
          "peak memory": 4e8, "places": 100, "covered": covered}  # fmt: skip
    return {"preset": f"cifar10-{preset}-small", "untrained": False, "images": 60_000,
            "minutes of training": 14.96, "parameters": 1_900_000, "draws": draws, "pictures": 200,
            "evaluations": 16, "where": {"cores": 2}, "by share": dict.fromkeys(SHARES, at),
            **more}  # fmt: skip


def regressor(psnr: float):
    at = {"hidden": psnr, "whole": psnr + 1, "ssim": 0.7, "lpips": 0.2, "crps": 0.1}
    return {"minutes": 15.0, "images": 300_000, "parameters": 570_000, "seconds a picture": 1e-3,
            "by share of known pixels": dict.fromkeys(SHARES, at)}  # fmt: skip


def put(folder: Path, **rows):
    for name, found in rows.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(found))


def test_rows_are_in_order_and_as_wide_as_the_head(bench, tmp_path):
    page, _, _ = bench
    alone = page.sparse().splitlines()
    assert len(alone) == 4 and "thin plate" in alone[2]
    put(tmp_path, sparse_grid_15min=row("grid", 9, 21.0),
        sparse_splat_60min=row("splat", 19, 22.5),
        sparse_mamba_15min=row("mamba", 9, 19.0, untrained=True),
        unet_regressor_15min=regressor(22.2))  # fmt: skip
    lines = page.sparse().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert [line[0] for line in cells[2:6]] == [
        "`splat`", "U-Net regressor", "`grid`", "`mamba`, untrained",
    ]  # fmt: skip
    head = cells[0]
    best, third = dict(zip(head, cells[2], strict=True)), dict(zip(head, cells[4], strict=True))
    assert best["80 %"] == "0.80" and best["90 %"] == "0.90" and third["90 %"] == ""
    assert third["mean - draw"] == "2.50" and third["minutes"] == "15.0" and third["MB"] == "400"


def test_what_was_not_measured_of_a_system_is_left_empty(bench, tmp_path):
    page, _, _ = bench
    assert len(page.choose().splitlines()) == 2
    put(tmp_path, sparse_local_15min=row("local", 9, 20.0, **{"images per second": 80.0}),
        sparse_grid_15min=row("grid", 9, 21.0, **{"images per second": 100.0,
                                                  "peak memory of training": 7e8}),
        field_scaling_local={"slopes": {"forward": 0.85, "MiB": 0.98}},
        locality={"radii": [0.1, 0.2], "inside": {"grid-15min": [0.3, 0.6], "even": [0.01, 0.03]}},
        )  # fmt: skip
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in page.choose().splitlines()]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    grid, local, even = lines[2:]
    assert grid[0] == "`grid`" and grid[1:3] == ["", ""] and grid[4:7] == ["0.60", "500", "700"]
    assert local[1:3] == ["0.85", "0.98"] and local[4:7] == ["", "625", ""]
    assert even[0] == "*known places within .2*" and even[4] == "0.03"


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
    monkeypatch.setattr(table, "rate_of", lambda preset, words, folder: 100.0)
    plans = [table.plan("local", [f"model.radius={r}"], 5, tmp_path / f"local-r{r}-5min")
             for r in (0.2, 0.3)]  # fmt: skip
    assert [plan["asked"][1] for plan in plans] == ["model.radius=0.2", "model.radius=0.3"]
    assert plans[0]["images"] == 30_016  # a whole number of batches
    with pytest.raises(SystemExit, match="give another --name"):
        table.plan("local", ["model.radius=0.4"], 5, tmp_path / "local-r0.2-5min")


def test_a_kept_run_draws_nearly_the_same_in_float32(bench, tmp_path):
    _, table, _ = bench
    words = ["model.width=24", "model.depth=2", "train.images=128", "train.batch=32",
             "train.save_every=128", "train.validate=0", "train.grid=0",
             "optim.warmup=0"]  # fmt: skip
    pt.train(Run.load("debug", *words), tmp_path / "run")
    table.store(tmp_path / "run", "run")
    kept = tmp_path / "runs" / "run"
    files = sorted(path.name for path in kept.rglob("*") if path.is_file())
    assert files == ["ema-0.99-00001.safetensors", "run.yaml", "spec.json", "state.json"]
    draws = []
    for folder in (tmp_path / "run", kept):
        run = pt.load(folder)
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
        draws.append(run.sample(2, label=[0, 1], steps=3, seed=1))
    assert not torch.equal(*draws)
    torch.testing.assert_close(*draws, rtol=0, atol=2e-2)
