# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Local attention: a field that is known near by
#
# What the model `local` does, with the package's own parts: which points a place looks at, how
# their weights fall with distance before and after training, why the field that comes of it has
# no jumps, and that a field answered in tiles is the field answered at once.
#
# Run it as a script, `python notebooks/local_implicit.py`; figures go to `out/notebooks`
# (`POINTILLIST_NOTEBOOK_OUT` names another folder, `POINTILLIST_NOTEBOOK_IMAGES` says how many
# pictures are trained on). About a minute on a processor.

# %%
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import pointillist as pt
from pointillist.data.emoji import EmojiConfig
from pointillist.figures import Scale, Series, chart
from pointillist.known import protocol_mask
from pointillist.layers.norm import modulate
from pointillist.layers.observations import centres
from pointillist.models import in_tiles
from pointillist.models.local import Local

OUT = Path(os.environ.get("POINTILLIST_NOTEBOOK_OUT", "out/notebooks"))
IMAGES = int(os.environ.get("POINTILLIST_NOTEBOOK_IMAGES", "2000"))
SMALL = ("model.width=64", "model.depth=3", f"train.images={IMAGES}", f"train.save_every={IMAGES}",
         "train.batch=16", "train.validate=0", "train.grid=0", "train.log_every=1k")  # fmt: skip


class Chart(str):
    """SVG text that a notebook shows as a figure."""

    def _repr_svg_(self) -> str:
        return str(self)


def show(name: str, drawn: str) -> Chart:
    """Write a figure to the folder, and hand it to the notebook."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.svg").write_text(drawn, encoding="utf-8")
    return Chart(drawn)


picture = EmojiConfig(size=32).open("test").x[7].float() / 127.5 - 1
mask = protocol_mask(7, (32, 32), 0.2)
AT = centres((32, 32))[mask.flatten()][None]
VALUE = picture.flatten(1)[:, mask.flatten()][None]
print(f"{AT.shape[1]} of {mask.numel()} pixels are known")

# %% [markdown]
# ## Training
#
# The preset `emoji-local`, smaller: boxes of a picture are asked, 5 to 40 % of it are known.

# %%
with tempfile.TemporaryDirectory() as folder:
    trained = pt.train(pt.Run.load("emoji-local", *SMALL), out=Path(folder) / "run")
fresh = trained.run.model.build(trained.spec)
model = trained.network.model
assert isinstance(model, Local)

# %% [markdown]
# ## Weights over distance
#
# Every place weighs the points near it by what both hold and by how far apart they are; the
# weight fades to nothing at the edge of its neighbourhood, which is the radius or the first
# point that is left out. Here is the mean weight of a neighbour over its distance.


# %%
def weights(of: Local, block: int, t: float = 0.5) -> tuple[Tensor, Tensor]:
    """Distances of all pairs over the edge, and their mean weights over the heads."""
    where = centres((32, 32))[None]
    given = pt.Given(at=AT, value=VALUE, where=where)
    with torch.no_grad():
        context = of.condition(given, (1024,))
        state = t * picture.flatten(1)[None] + (1 - t) * torch.randn(1, 3, 1024)
        x, c = of.enter(state, torch.tensor([t]), context)
        for i in range(block):
            x = of.step(i, x, c, context)
        layer, told = of._block(of.blocks[block]), context.told
        shift, scale = layer.modulation(c).chunk(6, -1)[:2]
        h = modulate(layer.norm1(x), shift, scale)
        keys = layer.keys(h, None if told is None else told[block], context.turn, True)
        weight, _ = layer.attention.weights(h, keys, context.pairs, context.turn)
    there = context.pairs.far < 1
    return context.pairs.far.sqrt()[there], weight.mean(1)[there]


def profile(of: Local, block: int) -> list[float]:
    far, weight = weights(of, block)
    bins = (far * 10).long().clamp(max=9)
    return [float(weight[bins == i].mean()) if bool((bins == i).any()) else 0.0 for i in range(10)]


torch.manual_seed(0)
rows = {"untrained, block 1": profile(fresh, 0)}
rows |= {f"trained, block {i + 1}": profile(model, i) for i in range(3)}
middles = [(i + 0.5) / 10 for i in range(10)]
show(
    "weights_over_distance",
    chart(
        [Series(name, middles, found) for name, found in rows.items()],
        title="What a neighbour weighs", note="mean over 1 024 places, 4 heads, t = 0.5",
        x=Scale("distance / edge of the neighbourhood"), y=Scale("mean weight", low=0.0),
    ),
)  # fmt: skip
for name, found in rows.items():
    print(f"{name:20}" + " ".join(f"{w:.3f}" for w in found))

# %% [markdown]
# ## A line through the picture
#
# Coordinates are continuous: here a line of 400 places across the middle, between the cells. The
# answer has no jump where neighbours come and go; half the spacing halves the largest step.


# %%
def line(n: int) -> tuple[Tensor, Tensor]:
    """Places along a line and the predicted picture there, of a state that is grey."""
    s = torch.linspace(-0.95, 0.95, n)
    where = torch.stack((torch.full_like(s, 0.03), s), -1)[None]
    given = pt.Given(at=AT, value=VALUE, where=where)
    with torch.no_grad():
        return s, model(torch.zeros(1, 3, n), torch.tensor([0.5]), given).value[0]


place, answer = line(400)
show(
    "a_line",
    chart(
        [Series(name, place.tolist(), answer[i].tolist()) for i, name in enumerate("RGB")],
        title="Between the cells", note="one row of an emoji, 400 places",
        x=Scale("column, -1 to 1"), y=Scale("predicted value"),
    ),
)  # fmt: skip

# %% [markdown]
# ## Tiles
#
# An answer depends on nothing farther off than depth times radius. So a field is answered in
# tiles, each with what lies within that reach, and no seam is to be seen.

# %%
with torch.no_grad():
    state, t = torch.randn(1, 3, 32, 32), torch.tensor([0.4])
    given = pt.Given(at=AT, value=VALUE)
    whole = trained.network(state, t, given).value
    parts = in_tiles(trained.network, 1.0)(state, t, given).value
print(f"largest difference of tiles and whole: {float((whole - parts).abs().max()):.1e}")
