"""The notebooks run from top to bottom and draw what they say."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FAST = {"POINTILLIST_NOTEBOOK_IMAGES": "64", "POINTILLIST_NOTEBOOK_FIT": "20"}
DRAWN = {"curves", "tokens", "attention", "places", "sizes"}
CHARTS = {"locality", "token_width", "attention_near", "borders"}


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    out = tmp_path_factory.mktemp("notebooks")
    script = NOTEBOOKS / "space_filling_curves.py"
    ran = subprocess.run(
        [sys.executable, script], env=os.environ | FAST | {"POINTILLIST_NOTEBOOK_OUT": str(out)},
        cwd=out, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return out


def test_the_notebook_of_curves_writes_every_figure_and_nothing_else(figures):
    assert {path.name for path in figures.iterdir()} == {f"{name}.png" for name in DRAWN} | {
        f"{name}.svg" for name in CHARTS
    }


def test_its_pictures_hold_more_than_their_captions(figures):
    for name in DRAWN:
        with Image.open(figures / f"{name}.png") as opened:
            levels = np.asarray(opened.convert("RGB")).astype(int)
        coloured = levels.max(-1) - levels.min(-1) > 60
        rows, columns = coloured.any(1).mean(), coloured.any(0).mean()
        assert rows > 0.2 and columns > 0.5, name


def test_its_charts_have_lines_of_more_than_one_value(figures):
    for name in CHARTS:
        lines = ElementTree.parse(figures / f"{name}.svg").iter(
            "{http://www.w3.org/2000/svg}polyline"
        )
        heights = [{point.split(",")[1] for point in line.get("points").split()} for line in lines]
        assert len(heights) >= 3 and all(len(values) > 2 for values in heights), name


def test_it_has_cells_of_both_kinds_for_jupytext():
    text = (NOTEBOOKS / "space_filling_curves.py").read_text(encoding="utf-8")
    cells = [line for line in text.splitlines() if line.startswith("# %%")]
    assert cells.count("# %% [markdown]") >= 8 and cells.count("# %%") >= 8
    assert set(cells) == {"# %% [markdown]", "# %%"}
