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
# # State spaces along a curve
#
# What the model `mamba` does, with the package's own parts: observed points and places in one
# sequence along a Hilbert curve, what a selective scan remembers of it, that reading both ways
# lets every place hear of every other, and what it costs.
#
# Run it as a script, `python notebooks/state_space.py`; figures go to `out/notebooks`
# (`POINTILLIST_NOTEBOOK_OUT` names another folder). Some seconds on a processor.

# %%
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from pointillist.data.emoji import EmojiConfig
from pointillist.figures import Scale, Series, chart
from pointillist.known import protocol_mask
from pointillist.layers.mamba import BothWays, sequence_of
from pointillist.layers.observations import centres
from pointillist.layers.scan import selective_scan

OUT = Path(os.environ.get("POINTILLIST_NOTEBOOK_OUT", "out/notebooks"))


class Chart(str):
    """SVG text that a notebook shows as a figure."""

    def _repr_svg_(self) -> str:
        return str(self)


def show(name: str, drawn: str) -> Chart:
    """Write a figure to the folder, and hand it to the notebook."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.svg").write_text(drawn, encoding="utf-8")
    return Chart(drawn)


# %% [markdown]
# ## One sequence
#
# A fifth of a picture's pixels are known; all its places are asked. Along the curve a known pixel
# stands next to the places that lie next to it.

# %%
picture = EmojiConfig(size=32).open("test").x[7].float() / 127.5 - 1
mask = protocol_mask(7, (32, 32), 0.2)
where = centres((32, 32))[None]
at = where[:, mask.flatten()]
told = torch.ones(at.shape[:2], dtype=torch.bool)
sequence = sequence_of(where, at, told, "hilbert")
both = torch.cat((at, where), 1)[0][sequence.order[0]]
steps = (both[1:] - both[:-1]).norm(dim=-1) * 16
mean, most = float(steps.mean()), float(steps.max())
print(f"{len(both)} tokens; a step is {mean:.2f} cells long, {most:.2f} at most")

# %% [markdown]
# ## What the state keeps
#
# h[l] = exp(dt A) h[l-1] + dt B x[l], y = C h. With A = -(1 ... 16) every channel forgets at 16
# speeds; how fast is a matter of the step dt, which the network makes of what it reads. Here the
# brightness of the known pixels is written into the state, and nothing at the places.

# %%
known = sequence.of(torch.ones(1, at.shape[1], 1), torch.zeros(1, where.shape[1], 1))[0, :, 0]
light = torch.cat((picture.flatten(1)[:, mask.flatten()], picture.flatten(1)), 1).mean(0)
x = (light[sequence.order[0]] * known)[None, :, None]
A = -torch.arange(1.0, 17.0)[None]
ones = torch.ones(1, x.shape[1], 1, 16)


def remembered(dt: float) -> Tensor:
    """The state, read with equal weights, over what a constant 1 would leave there."""
    step = torch.full_like(x, dt)
    return (
        selective_scan(x, step, A, ones, ones) / selective_scan(x * 0 + 1, step, A, ones, ones)
    )[0, :, 0]


span = slice(300, 500)
number = list(range(span.start, span.stop))
show(
    "state_along_the_curve",
    chart(
        [Series(f"dt = {dt:g}", number, remembered(dt)[span].tolist()) for dt in (0.001, 0.01, 0.1)]
        + [Series("known pixels", number, x[0, span, 0].tolist(), style="points")],
        title="The state along the curve", note="200 of the tokens of one emoji",
        x=Scale("token along the curve"), y=Scale("brightness"),
    ),
)  # fmt: skip

# %% [markdown]
# ## Both ways
#
# One pass hears of what came before. With a pass from either end every place hears of every
# other, most of those near it on the curve: the response to a change of one token.

# %%
torch.manual_seed(0)
mix = BothWays(32)
tokens, middle = torch.randn(1, 400, 32), 200
changed = tokens.clone()
changed[:, middle] += 1
with torch.no_grad():
    response = (mix(changed) - mix(tokens)).norm(dim=-1)[0]
    ahead = (mix.ahead(mix.enter(changed).chunk(2, -1)[0], None)
             - mix.ahead(mix.enter(tokens).chunk(2, -1)[0], None)).norm(dim=-1)[0]  # fmt: skip
near = list(range(middle - 60, middle + 61))
show(
    "response",
    chart(
        [Series("both ways", [i - middle for i in near], (response[near] + 1e-9).tolist()),
         Series("one way", [i - middle for i in near], (ahead[near] + 1e-9).tolist())],
        title="Who hears of a change", note="one token of 400 changed, untrained block",
        x=Scale("tokens away along the curve"), y=Scale("change of the answer", log=True),
    ),
)  # fmt: skip

# %% [markdown]
# ## Cost
#
# A scan costs as much as the sequence is long.

# %%
lengths, seconds = [512, 1024, 2048, 4096], []
for n in lengths:
    h = torch.randn(1, n, 32)
    with torch.no_grad():
        mix(h)
        begun = time.perf_counter()
        mix(h)
        seconds.append(time.perf_counter() - begun)
print("  ".join(f"{n} tokens {1e3 * s:.0f} ms" for n, s in zip(lengths, seconds, strict=True)))
