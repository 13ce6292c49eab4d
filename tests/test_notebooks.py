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
PICTURES = {
    "space_filling_curves": {"curves", "tokens", "attention", "places", "sizes"},
    "local_implicit": set(),
    "state_space": set(),
}
CHARTS = {
    "space_filling_curves": {"locality", "token_width", "attention_near", "borders"},
    "local_implicit": {"weights_over_distance", "a_line"},
    "state_space": {"state_along_the_curve", "response"},
}
LINES = {"state_along_the_curve": 3, "response": 2, "a_line": 3}  # three or more elsewhere


@pytest.fixture(scope="module", params=list(CHARTS))
def run(request, tmp_path_factory):
    """A notebook's name and the folder of its figures."""
    out = tmp_path_factory.mktemp("notebooks")
    ran = subprocess.run(
        [sys.executable, NOTEBOOKS / f"{request.param}.py"],
        env=os.environ | FAST | {"POINTILLIST_NOTEBOOK_OUT": str(out)},
        cwd=out, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return request.param, out


def test_a_notebook_writes_every_figure_and_nothing_else(run):
    name, out = run
    assert {path.name for path in out.iterdir()} == {f"{p}.png" for p in PICTURES[name]} | {
        f"{c}.svg" for c in CHARTS[name]
    }


def test_its_pictures_hold_more_than_their_captions(run):
    name, out = run
    for picture in PICTURES[name]:
        with Image.open(out / f"{picture}.png") as opened:
            levels = np.asarray(opened.convert("RGB")).astype(int)
        coloured = levels.max(-1) - levels.min(-1) > 60
        rows, columns = coloured.any(1).mean(), coloured.any(0).mean()
        assert rows > 0.2 and columns > 0.5, picture


def test_its_charts_have_lines_of_more_than_one_value(run):
    name, out = run
    for figure in CHARTS[name]:
        lines = ElementTree.parse(out / f"{figure}.svg").iter(
            "{http://www.w3.org/2000/svg}polyline"
        )
        heights = [{point.split(",")[1] for point in line.get("points").split()} for line in lines]
        assert len(heights) >= LINES.get(figure, 3), figure
        assert all(len(values) > 2 for values in heights), figure


@pytest.mark.parametrize("name", list(CHARTS))
def test_it_has_cells_of_both_kinds_for_jupytext(name):
    text = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    cells = [line for line in text.splitlines() if line.startswith("# %%")]
    assert cells.count("# %% [markdown]") >= 5 and cells.count("# %%") >= 4
    assert set(cells) == {"# %% [markdown]", "# %%"}
