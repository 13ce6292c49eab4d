"""A held-out section of a measured field beside the truth, from a fifth of the points around it.

python bench/volume_section.py RUN OUT.png [DRAWS]

RUN is one of `volume-local`. Within the held-out longitudes a fifth of the known cells are shown,
drawn once; asked is a slab of five longitudes around the middle, drawn is the middle one, over
depth (down) and latitude. Nearest and linear interpolation have the same points, on coordinates
scaled as the model's.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from record import record
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

import pointillist as pt

SHARE, TALL, WIDE = 0.2, 7, 4  # pixels a cell
RAMP = np.array([(48, 18, 100), (36, 107, 160), (70, 180, 140), (244, 220, 90), (190, 40, 30)])


def coloured(values: np.ndarray, low: float, high: float) -> Image.Image:
    """Depth by latitude in colours, what is not a number in grey."""
    part = np.clip((values - low) / (high - low), 0, 1)
    ramp = np.stack([np.interp(np.nan_to_num(part), np.linspace(0, 1, len(RAMP)), RAMP[:, i])
                     for i in range(3)], -1)  # fmt: skip
    ramp[np.isnan(values)] = 205
    image = Image.fromarray(ramp.astype(np.uint8)[:, :])
    return image.resize((image.width * WIDE, image.height * TALL), Image.Resampling.NEAREST)


def main() -> None:
    run, out = sys.argv[1], Path(sys.argv[2])
    draws = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    model = pt.load(run)
    field = model.run.data.open("test")
    holdout = model.run.data.holdout
    spec, x = model.spec, field.x  # depth, latitude, longitude
    longitude = spec.axes[2].from_unit(field.unit[2]).numpy()
    columns = np.flatnonzero((longitude >= holdout.low) & (longitude <= holdout.high))
    middle = columns[len(columns) // 2]
    mesh = np.stack(np.meshgrid(*field.unit, indexing="ij"), -1)
    known = np.isfinite(x) & np.isin(np.arange(x.shape[2]), columns)
    chosen = known & (np.random.default_rng(1000).random(x.shape) < SHARE)
    values = (x[chosen] - spec.offset[0]) / spec.scale[0]
    slab = np.isfinite(x) & (np.abs(np.arange(x.shape[2]) - middle) <= 2)
    begun = time.perf_counter()
    post = model.reconstruct(
        torch.from_numpy(values.astype(np.float32))[None], at=torch.from_numpy(mesh[chosen]),
        where=torch.from_numpy(mesh[slab]), draws=draws, seed=0,
    )  # fmt: skip
    seconds = time.perf_counter() - begun

    def section(found: np.ndarray) -> np.ndarray:
        whole = np.full(x.shape, np.nan)
        whole[slab] = found
        return whole[:, :, middle]

    offset, scale = spec.offset[0], spec.scale[0]
    mean = section(post.mean[0].numpy() * scale + offset)
    spread = section(post.std[0].numpy() * scale)
    truth = np.where(slab, x, np.nan)[:, :, middle]
    told = chosen[:, :, middle]
    factors = np.array(model.run.model.metric)
    points, asked = mesh[chosen] * factors, mesh[slab] * factors
    nearest = section(NearestNDInterpolator(points, x[chosen])(asked))
    linear = section(LinearNDInterpolator(points, x[chosen])(asked))
    linear = np.where(np.isfinite(linear), linear, nearest)
    hidden = np.isfinite(truth) & ~told

    def error(guess: np.ndarray) -> float:
        return round(float(np.sqrt(np.mean((guess - truth)[hidden] ** 2))), 4)

    low, high = float(np.nanmin(truth)), float(np.nanmax(truth))
    rows = [
        (f"truth, {low:.1f} to {high:.1f} {spec.unit}", coloured(truth, low, high)),
        (f"shown, {told.sum()} of the section's cells",
         coloured(np.where(told, truth, np.nan), low, high)),
        (f"mean of {draws} draws, error {error(mean):.3f}", coloured(mean, low, high)),
        ("spread of the draws, 0 to 1", coloured(spread, 0, 1)),
        (f"linear interpolation, error {error(linear):.3f}", coloured(linear, low, high)),
    ]  # fmt: skip
    made = Image.new("RGB", (rows[0][1].width + 20, len(rows) * (rows[0][1].height + 26)), "white")
    for i, (text, image) in enumerate(rows):
        top = i * (image.height + 26)
        ImageDraw.Draw(made).text((10, top + 4), text, "black", ImageFont.load_default(14))
        made.paste(image, (10, top + 22))
    made.save(out)
    record(
        "volume-section",
        {
            "run": str(Path(run).name), "images": model.origin.images, "draws": draws,
            "points": int(chosen.sum()), "places": int(slab.sum()), "hidden": int(hidden.sum()),
            "seconds": round(seconds, 1), "spread, mean": round(float(np.nanmean(spread)), 4),
            "root mean square error, " + spec.unit: {
                "mean of the draws": error(mean), "nearest": error(nearest),
                "linear": error(linear),
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
