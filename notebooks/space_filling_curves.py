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
# # Space-filling curves, from a few pixels to a whole picture
#
# What the encoder `curve` of a `pixnerd` network does, on a real picture and with the package's
# own parts: the curve, the tokens that observed pixels make along it, the attention by which
# every patch asks those tokens, and the decoder, which answers at any size.
#
# Run it as a script, `python notebooks/space_filling_curves.py`, or make a notebook of it:
#
#     pip install jupytext
#     jupytext --to ipynb notebooks/space_filling_curves.py
#
# It takes about half a minute on a processor, most of it for training two tiny networks. Figures
# are shown, and written to `out/notebooks` (`POINTILLIST_NOTEBOOK_OUT` names another folder;
# `POINTILLIST_NOTEBOOK_IMAGES` says how many pictures are trained on, `POINTILLIST_NOTEBOOK_FIT`
# for how many steps the decoder at the end is fitted).

# %%
import colorsys
import os
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

import pointillist as pt
from pointillist.data.emoji import EmojiConfig
from pointillist.draws import Draw
from pointillist.encoders.curve_tokens import CurveTokenizer
from pointillist.figures import Scale, Series, chart
from pointillist.known import protocol_mask
from pointillist.layers.coordinates import unaliased_bands
from pointillist.layers.curve import curve_order
from pointillist.layers.observations import centres
from pointillist.layers.offset import mesh, moved
from pointillist.layers.patch import patchify
from pointillist.models.neural_field import NeuralField, places
from pointillist.pictures import save_png, to_bytes

OUT = Path(os.environ.get("POINTILLIST_NOTEBOOK_OUT", "out/notebooks"))
IMAGES = int(os.environ.get("POINTILLIST_NOTEBOOK_IMAGES", "2000"))
FIT_STEPS = int(os.environ.get("POINTILLIST_NOTEBOOK_FIT", "400"))
EDGE, PATCH, GROUP, SHARE = 32, 4, 8, 0.15
SIZE = (EDGE, EDGE)
INK, RED = (30, 30, 30), (214, 40, 57)


class Chart(str):
    """SVG text that a notebook shows as a figure."""

    def _repr_svg_(self) -> str:
        return str(self)


def show(name: str, drawn: Image.Image | str) -> Image.Image | Chart:
    """Write a figure to the folder, and hand it to the notebook."""
    OUT.mkdir(parents=True, exist_ok=True)
    if isinstance(drawn, Image.Image):
        save_png(drawn, OUT / f"{name}.png")
        return drawn
    (OUT / f"{name}.svg").write_text(drawn, encoding="utf-8")
    return Chart(drawn)


def enlarged(x: Tensor, cell: int, faded: float = 0.0) -> Image.Image:
    """A picture (c h w) with `cell` pixels an edge for each of its own; `faded` towards white."""
    x = x + (1 - x) * faded
    image = Image.fromarray(to_bytes(x[None])[0])
    return image.resize((image.width * cell, image.height * cell), Image.Resampling.NEAREST)


def sheet(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Captioned pictures in rows on white."""
    head, gap, rim, font = 24, 12, 8, ImageFont.load_default(15)
    wide = max(sum(image.width + gap for _, image in row) for row in rows) - gap
    high = sum(max(image.height for _, image in row) + head + gap for row in rows) - gap
    made = Image.new("RGB", (wide + 2 * rim, high + 2 * rim), "white")
    draw, top = ImageDraw.Draw(made), rim
    for row in rows:
        left = rim
        for caption, image in row:
            draw.text((left, top + 2), caption, INK, font)
            made.paste(image, (left, top + head))
            left += image.width + gap
        top += max(image.height for _, image in row) + head + gap
    return made


def hue(part: float, value: float = 0.85) -> tuple[int, int, int]:
    """A colour of the circle, `part` in [0, 1) of the way round."""
    r, g, b = colorsys.hsv_to_rgb(part % 1, 0.9, value)
    return round(255 * r), round(255 * g), round(255 * b)


test = EmojiConfig(size=32).open("test")
fine = EmojiConfig(size=64).open("test")
NUMBER = next(i for i, (text,) in enumerate(test.caption) if text == "beach with umbrella")


def picture(of: Tensor, number: int) -> Tensor:
    return of[number].float() / 127.5 - 1


beach = picture(test.x, NUMBER)

# %% [markdown]
# ## The curve
#
# A curve visits every cell of a grid once and so gives each a number. Along **Hilbert's** the
# next cell is always a neighbour. The **Z-order** (Morton) curve interleaves the bits of row and
# column: it is simpler and jumps. Plain **rows** are what a picture is stored in. Colour runs
# along the curve.

# %%
ORDERS: dict[str, Tensor] = {
    "Hilbert": curve_order(SIZE, "hilbert"),
    "Z-order": curve_order(SIZE, "zorder"),
    "rows": torch.arange(EDGE * EDGE),
}


def walked(order: Tensor, cell: int = 13) -> Image.Image:
    """The picture, faded, with the curve drawn over it."""
    image = enlarged(beach, cell, 0.55)
    draw = ImageDraw.Draw(image)
    rows, columns = order // EDGE, order % EDGE
    at = [
        ((x + 0.5) * cell, (y + 0.5) * cell)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    for i, (start, end) in enumerate(zip(at, at[1:], strict=False)):
        draw.line([start, end], hue(0.8 * i / len(at)), 2)
    return image


show("curves", sheet([[(name, walked(order)) for name, order in ORDERS.items()]]))

# %% [markdown]
# What matters is locality: how far apart in the plane are two pixels that are k steps apart on
# the curve? For k below the length of a row both curves keep them closer than rows do. At k = 32
# plain rows come back to the next cell below; that is their rhythm and no locality.


# %%
def distance(order: Tensor, k: int) -> float:
    """Mean distance in cells of pixels k steps apart."""
    at = torch.stack((order // EDGE, order % EDGE), -1).float()
    return float((at[k:] - at[:-k]).norm(dim=-1).mean())


STEPS = [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256]
far = {name: [distance(order, k) for k in STEPS] for name, order in ORDERS.items()}
print("mean distance, cells   " + "  ".join(f"k={k}" for k in (1, 8, 64)))
for name, found in far.items():
    print(f"{name:22} " + "  ".join(f"{found[STEPS.index(k)]:.2f}" for k in (1, 8, 64)))
show(
    "locality",
    chart(
        [Series(name, STEPS, found) for name, found in far.items()],
        title="How far apart k steps take you", note=f"n = all pairs of a {EDGE}x{EDGE} grid",
        x=Scale("steps along the curve", log=True), y=Scale("mean distance, cells", low=0.0),
    ),
)  # fmt: skip

# %% [markdown]
# ## The tokens
#
# Only observed pixels are visited. Every eight that follow on the curve are one token: their
# colours, the code of each place, and its position along the curve. A token lies at the mean of
# its pixels. Few pixels make few tokens, and no token is spent on what was not observed.

# %%
mask = protocol_mask(NUMBER, SIZE, SHARE)
given = pt.Given(seen=torch.where(mask, beach, 0)[None], mask=mask[None, None])
print(f"{int(mask.sum())} of {mask.numel()} pixels, {-(-int(mask.sum()) // GROUP)} tokens")


def groups(order: Tensor, seen: Tensor) -> list[Tensor]:
    """Cells (row-major numbers) of every token."""
    return list(order[seen.flatten()[order]].split(GROUP))


def tokens_drawn(order: Tensor, cell: int = 13) -> Image.Image:
    """Observed pixels in the colour of their token, joined along the curve; tokens at the means."""
    image = Image.new("RGB", (EDGE * cell, EDGE * cell), "white")
    draw = ImageDraw.Draw(image)
    for i, cells in enumerate(groups(order, mask)):
        # By the golden ratio, so that neighbours on the curve differ.
        colour = hue(i * 0.618034)
        at = [((int(c) % EDGE + 0.5) * cell, (int(c) // EDGE + 0.5) * cell) for c in cells]
        if len(at) > 1:
            draw.line(at, colour, 1)
        for x, y in at:
            draw.rectangle((x - 5, y - 5, x + 5, y + 5), colour)
        x, y = (sum(part) / len(at) for part in zip(*at, strict=True))
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), "white", INK, 2)
    return image


observed = torch.where(mask, beach, 1.0)
show(
    "tokens",
    sheet([[
        ("the picture", enlarged(beach, 13)),
        (f"observed, {SHARE:.0%}", enlarged(observed, 13)),
    ], [
        (f"tokens of {GROUP} along {name}", tokens_drawn(ORDERS[name]))
        for name in ("Hilbert", "Z-order")
    ]]),
)  # fmt: skip

# %% [markdown]
# The package's own tokenizer puts its tokens at the same places:

# %%
tokenizer = CurveTokenizer(3, 64, unaliased_bands(SIZE), GROUP, "hilbert")
mine = [centres(SIZE)[cells].mean(0) for cells in groups(ORDERS["Hilbert"], mask)]
assert torch.allclose(tokenizer(given, SIZE).at[0], torch.stack(mine), atol=1e-6)

# %% [markdown]
# How wide is a token? The fewer pixels are seen, the further apart lie eight of them. Along a
# good curve they fill a blob, whose width falls as one over the root of the share; along rows
# they fill a line.


# %%
def spread(order: Tensor, share: float, masks: int = 20) -> float:
    """Root mean square distance, in cells, of a token's pixels from its place; over some masks."""
    squares = []
    for number in range(masks):
        cells = order[protocol_mask(number, SIZE, share).flatten()[order]]
        at = torch.stack((cells // EDGE, cells % EDGE), -1).float()
        token = torch.arange(len(at)) // GROUP
        total = torch.zeros(int(token[-1]) + 1, 2).index_add(0, token, at)
        mean = total / token.bincount()[:, None]
        squares.append((at - mean[token]).square().sum(-1))
    return float(torch.cat(squares).mean().sqrt())


SHARES = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
wide = {name: [spread(order, share) for share in SHARES] for name, order in ORDERS.items()}
for name, found in wide.items():
    print(f"{name:8} {found[1]:.2f} cells at 10 % observed, {found[5]:.2f} at 40 %")
show(
    "token_width",
    chart(
        [Series(name, SHARES, found) for name, found in wide.items()],
        title=f"How wide a token of {GROUP} pixels is", note="n = 20 random masks a point",
        x=Scale("share observed", log=True), y=Scale("rms distance from its place, cells", low=0.0),
    ),
)  # fmt: skip

# %% [markdown]
# ## The attention
#
# Now two networks, the same but for `spatial_bias`, each **trained here for seconds** on the
# embedded emoji (the test pictures, the beach among them, are not seen). That is enough to look
# at, not to be good.

# %%
SMALL = (
    "model.width=64", "model.depth=2", "model.decoder_width=24", "model.encoder.cross_depth=1",
    f"train.images={IMAGES}", "train.batch=32", f"train.save_every={IMAGES}", "train.validate=0",
    "train.grid=0", "train.workers=0", "train.precision=float32", "optim.warmup=200",
    "optim.lr=2e-3",
)  # fmt: skip


def trained(bias: bool) -> pt.Trained:
    run = pt.Run.load("emoji-sfc", *SMALL, f"model.encoder.spatial_bias={str(bias).lower()}")
    with tempfile.TemporaryDirectory() as folder:
        return pt.train(run, out=Path(folder) / "run")


networks = {"without bias": trained(False), "with spatial bias": trained(True)}


# %% [markdown]
# Each patch asks with its place, the time, the label and, here, the noisy patch itself
# (`noisy_patches`). Its attention over the tokens is softmax(q·k/√e), and with the bias
# softmax(q·k/√e − s·distance), with one s > 0 a head. The weights below are means over the heads
# of the first cross-attention, at t = 0.3.


# %%
class Attention(NamedTuple):
    """Weights of every patch on every token and, last, on the null token; places of both."""

    weight: Tensor  # b n m
    tokens: Tensor  # b m-1 s
    patches: Tensor  # n s
    real: Tensor  # b m-1


@torch.no_grad()
def attention(net: pt.Trained, x: Tensor, known: pt.Given, t: float = 0.3) -> Attention:
    """What the patches of the state of x at time t look at, on the way the model takes."""
    model, encoder, b = net.model, net.model.encoder, x.shape[0]
    path, times = net.run.objective, torch.full((x.shape[0],), t)
    xt = path.mix(x, path.noise(Draw(0, torch.arange(b)), (3, *SIZE)), times)
    context = encoder.condition(known, SIZE, (EDGE // PATCH,) * 2)
    label = model.label(torch.full((b,), -1))
    c = F.silu(model.time(times) + label)
    asked = context.query + c[:, None] + model.patch(patchify(xt, PATCH))
    block, (k, v) = encoder.cross_blocks[0], context.keys[0]
    heads = block.attention.heads
    q = rearrange(block.attention.q(block.norm_q(asked)), "b n (h e) -> b h n e", h=heads)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    bias = None if block.bias is None else block.bias(context.distance)
    scores = scores if bias is None else scores + bias
    weight = scores.masked_fill(~context.mask[:, None, None], -torch.inf).softmax(-1)
    # The same as the layer's own answer, or the figure would show something else.
    mixed = block.attention.out(rearrange(weight @ v, "b h n e -> b n (h e)"))
    own = block.attention(block.norm_q(asked), context.keys[0], context.mask, bias)
    assert torch.allclose(mixed, own, atol=1e-5)
    at = encoder.tokenizer(known, SIZE)
    return Attention(weight.mean(1), at.at, centres((EDGE // PATCH,) * 2), at.mask)


def looked_at(found: Attention, patch: int, cell: int = 11) -> Image.Image:
    """The weights of one patch: areas of circles over the picture; the patch is framed."""
    image = enlarged(beach, cell, 0.6)
    draw = ImageDraw.Draw(image)
    half = EDGE * cell / 2
    for weight, (y, x) in zip(found.weight[0, patch], found.tokens[0].tolist(), strict=False):
        # All of the weight on one token would be a circle two fifths of the edge wide.
        r = max(1.0, 0.1 * EDGE * cell * float(weight) ** 0.5 * 2)
        x, y = (x + 1) * half, (y + 1) * half
        draw.ellipse((x - r, y - r, x + r, y + r), hue(0.6), "white")
    top, left = (n * PATCH * cell for n in divmod(patch, EDGE // PATCH))
    draw.rectangle((left, top, left + PATCH * cell, top + PATCH * cell), None, RED, 3)
    return image


ASKING = (10, 28, 53)  # numbers of patches, row by row
seen = {name: attention(net, beach[None], given) for name, net in networks.items()}
show(
    "attention",
    sheet([
        [(f"patch {patch}, {name}", looked_at(found, patch)) for patch in ASKING]
        for name, found in seen.items()
    ]),
)  # fmt: skip

# %% [markdown]
# How much of the weight lies near? The share within a radius of the patch, over all patches of 32
# test pictures; beside it what a patch would give that looks at all tokens alike. The bias starts
# with s = 1 for every head: one half of the picture's edge costs a factor e. Where to look has to
# be learnt otherwise, and seconds do not suffice: without the bias the network looks at all
# tokens nearly alike.

# %%
several = torch.stack([picture(test.x, i) for i in range(32)])
masks = torch.stack([protocol_mask(i, SIZE, SHARE) for i in range(32)])[:, None]
known = pt.Given(seen=torch.where(masks, several, 0), mask=masks)
RADII = [2, 4, 6, 8, 12, 16, 24, 32]


def share_within(found: Attention, weight: Tensor) -> list[float]:
    """Mean share of the weight within each radius, in cells, of the patch's centre."""
    away = torch.cdist(found.patches.expand(weight.shape[0], -1, -1), found.tokens) * EDGE / 2
    weight = weight[..., : away.shape[-1]]
    whole = weight.sum(-1)
    return [float(((away <= r) * weight).sum(-1).div(whole).mean()) for r in RADII]


many = {name: attention(net, several, known) for name, net in networks.items()}
near = {name: share_within(found, found.weight) for name, found in many.items()}
some = many["without bias"]
alike = some.real.float()[:, None].expand(-1, some.patches.shape[0], -1)
near["all tokens alike"] = share_within(some, alike)
for name, found in near.items():
    print(f"{name:18} {found[RADII.index(8)]:.0%} of the weight within 8 cells")
for name, found in many.items():
    print(f"{name:18} {float(found.weight[..., -1].mean()):.0%} of the weight on the null token")
show(
    "attention_near",
    chart(
        [Series(name, RADII, found, style="guide" if "alike" in name else "line")
         for name, found in near.items()],
        title="Share of the attention that lies near", note="n = 64 patches of 32 test pictures",
        x=Scale("radius, cells", low=0.0), y=Scale("share of the weight inside", low=0.0, high=1.0),
    ),
)  # fmt: skip

# %% [markdown]
# ## The decoder, at any size
#
# Each patch's token writes the weights of a small field: a place in the patch, and the noisy
# colour found there, to the answer. A field can be asked anywhere. Where its cells lie matters:
# at **centres**, (i + .5)/n, the cells of any number tile the patch, and neighbouring patches
# keep one step between them. In published code the outer cells lie on the **corners**, so those
# of two neighbouring patches coincide, at every size, and the steps inside do not fit the step
# across.


# %%
def ticks(convention: Literal["centre", "corner"]) -> Image.Image:
    """Cells along two neighbouring patches, asked 4, 8 and 12 times each."""
    image = Image.new("RGB", (520, 130), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for row, edge in enumerate((4, 8, 12)):
        y = 25 + 40 * row
        draw.text((2, y - 9), f"{edge}", INK, font)
        draw.line((40, y, 500, y), (190, 190, 190), 1)
        for patch, colour in enumerate((hue(0.6), hue(0.03))):
            for at in places(edge, 1, convention)[:, 0].tolist():
                x = 40 + 230 * (patch + at)
                r = 6 - 2 * patch  # where two coincide both are seen
                draw.ellipse((x - r, y - r, x + r, y + r), colour)
        for x in (40, 270, 500):
            draw.line((x, y - 14, x, y + 14), INK, 1)
    return image


show("places", sheet([[("centres, as here", ticks("centre")), ("corners", ticks("corner"))]]))

# %% [markdown]
# A decoder alone, **fitted here in seconds** to one picture: 64 free tokens, one a patch, in the
# place of those that a network would make, and grey in the place of the noisy colours. What it
# was not shown is what it invents between the cells. Three ways:
#
# - corners, the cells of the 32 x 32 picture only, as published;
# - centres, and the rows and columns of cells moved at random by up to half a cell, where the
#   picture is taken too (`jitter`);
# - the same, and every other step at twice the size (`scales: [1, 2]`), which a picture of 64 x
#   64 allows.
#
# Each is asked on the trained grid, twice and three times as fine; three times none of them was
# shown.
#
# Cosines of up to eight half-waves a patch fit four cells in many ways, and nothing says what
# lies between: the first way is right on its cells and wild beside them. Jitter tells the second
# of every place between, as a cubic through the cells has it. Only the third knows what finer cells
# hold.


# %%
FITS = {
    "corners, 32 alone": ("corner", False, (1,)),
    "centres, jitter": ("centre", True, (1,)),
    "centres, jitter, scales 1 and 2": ("centre", True, (1, 2)),
}
TRUTH = {1: beach, 2: picture(fine.x, NUMBER)}


class Fitted(NamedTuple):
    field: NeuralField
    tokens: Tensor

    def ask(self, times: int, jitter: Tensor | None = None) -> Tensor:
        """The picture with `times` as many pixels along each axis."""
        edge = PATCH * times
        cells = torch.zeros(self.tokens.shape[0], edge**2, 3)
        found = self.field(cells, F.silu(self.tokens), edge, jitter)
        return rearrange(found, "(r q) (i j) c -> c (r i) (q j)", r=EDGE // PATCH, i=edge)


def fitted(convention: Literal["centre", "corner"], moves: bool, scales: tuple[int, ...]) -> Fitted:
    torch.manual_seed(0)
    field = NeuralField(3, 3, 2, 64, 24, 2, 1, "both", True, convention, "dct", 8, 1e4, 16.0)
    tokens = torch.nn.Parameter(torch.randn((EDGE // PATCH) ** 2, 64))
    made = Fitted(field, tokens)
    optimiser = torch.optim.Adam([*field.parameters(), tokens], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, FIT_STEPS)
    draw = Draw(0, torch.arange(FIT_STEPS))
    for step in range(FIT_STEPS):
        times = scales[step % len(scales)]
        one = draw._replace(index=draw.index[step : step + 1])
        truth, jitter = TRUTH[times], None
        if moves:
            offsets = one.uniform("jitter", (2, PATCH * times))[0] - 0.5
            truth = moved(truth[None], offsets)[0]
            jitter = mesh(offsets)
        loss = (made.ask(times, jitter) - truth).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return made


fits = {name: fitted(*way) for name, way in FITS.items()}
with torch.no_grad():
    asked = {name: {n: one.ask(n) for n in (1, 2, 3)} for name, one in fits.items()}
for name, found in asked.items():
    error = (found[2] - TRUTH[2]).square().mean()
    print(f"{name:32} asked for 64 x 64: {10 * torch.log10(4 / error):.1f} dB")


def with_borders(image: Image.Image) -> Image.Image:
    """Ticks on the rim at the borders of patches, so that the eye may look for them inside."""
    step = image.width * PATCH // EDGE
    made = Image.new("RGB", (image.width + 8, image.height + 8), "white")
    made.paste(image, (8, 8))
    draw = ImageDraw.Draw(made)
    for at in range(8, made.width, step):
        draw.line((at, 0, at, 6), RED, 1)
        draw.line((0, at, 6, at), RED, 1)
    return made


show(
    "sizes",
    sheet([
        [(f"{name}: {EDGE * n}", with_borders(enlarged(x, 12 // n))) for n, x in found.items()]
        for name, found in asked.items()
    ]),
)  # fmt: skip

# %% [markdown]
# Is there a border between patches? Sort the steps between neighbouring pixels by where in a
# patch they lie, and hold the step into the next patch against those between the picture's 32 x 32
# cells inside of one. Where no border was added both are as large; the true picture, whose patches
# are no more than a thought, shows how even that is by chance. A field that is smooth inside of its
# patch has a faint border there, which grows with the size: two fields agree at their border only
# as far as the fit made them.
#
# This is the decoder alone, with tokens that were fitted together. That the tokens of neighbours
# agree is what a network's blocks learn, and seconds of training do not teach it at any size.


# %%
def steps_by_place(x: Tensor, times: int) -> list[float]:
    """Mean absolute step at every place of a patch over the mean of all, the one across last."""
    edge = PATCH * times
    found = torch.zeros(edge)
    for one in (x, x.mT):
        steps = (one[..., 1:] - one[..., :-1]).abs().mean((0, 1))
        found += torch.stack([steps[place::edge].mean() for place in range(edge)])
    return (found / found.mean()).tolist()


def across(x: Tensor, times: int) -> float:
    """The step into the next patch over the mean of those between its 32 x 32 cells."""
    *inside, over = steps_by_place(x, times)[times - 1 :: times]
    return over * len(inside) / sum(inside)


print("step into the next patch over steps between cells inside, at 32, 64 and 96 pixels")
for name, found in asked.items():
    print(f"{name:32} " + "  ".join(f"{across(x, n):.2f}" for n, x in found.items()))
print(f"{'the true picture, 32 and 64':32} " + "  ".join(f"{across(x, n):.2f}"
                                                         for n, x in TRUTH.items()))  # fmt: skip
show(
    "borders",
    chart(
        [Series(name, [(i + 1) / 12 for i in range(12)], steps_by_place(found[3], 3))
         for name, found in asked.items()]
        + [Series("true picture, 64", [(i + 1) / 8 for i in range(8)], steps_by_place(TRUTH[2], 2),
                  style="guide")],
        title="Steps between pixels, three times as fine, by their place in a patch",
        note="n = 64 patches; into the next cell at 1/4, 1/2, 3/4, into the next patch at 1",
        x=Scale("place in the patch", low=0.0, high=1.05),
        y=Scale("mean step over the mean of all", low=0.0),
    ),
)  # fmt: skip
