"""How far a network looks: the share of its dependence on known pixels that lies within a radius.

    python bench/locality.py RUN... [--pictures 16] [--places 24] [--time 0.1] [--share 0.2]

Of the answer at hidden places, the derivatives by every known value, their sizes summed over the
channels of both: of that weight, the share at distance below r from the place, in coordinates in
which a picture has an edge of 2, mean over places. It stands for the share of attention weight,
which scans and latents have none of.
`even` is the share of the known places that lie there, which a network without any preference for
near ones would show.
"""

import argparse
from pathlib import Path

import torch
from record import read, record
from torch import Tensor

import pointillist as pt
from pointillist.data.collection import nominal
from pointillist.draws import Draw
from pointillist.known import protocol_mask
from pointillist.known_points import observed
from pointillist.layers.observations import centres
from pointillist.sample import Trained
from pointillist.types import Given
from pointillist.validation import held_out_batch

RADII = (0.1, 0.2, 0.4, 0.8)


def dependence(run: Trained, pictures: int, places: int, time: float, share: float) -> Tensor:
    """Share of weight inside each radius, and of known places, `2 radii`."""
    size = tuple(run.spec.size)
    batch = held_out_batch(nominal(run.run.data).open("test"), pictures)
    mask = torch.stack([protocol_mask(i, size, share) for i in range(pictures)])[:, None]
    known = observed(Given(seen=batch.x, mask=mask), pictures, run.spec, size, None,
                     run.network.takes)  # fmt: skip
    given = known.shown(Given(label=batch.label if run.spec.classes else None))
    at = centres(size).view(-1, 2)
    if given.value is None:
        assert given.seen is not None
        leaf = given.seen.detach().requires_grad_()
        given, where = given._replace(seen=leaf), at.expand(pictures, -1, -1)
        there = mask.flatten(1)
    else:
        assert given.at is not None and given.valid is not None
        leaf = given.value.detach().requires_grad_()
        given, where, there = given._replace(value=leaf), given.at, given.valid[:, 0]
    objective, t = run.run.objective, torch.full((pictures,), time)
    noise = objective.noise(Draw(0, torch.arange(pictures)), tuple(batch.x.shape[1:]), "sample")
    x = objective.mix(torch.where(mask, batch.x, 0), noise, t)  # of which no derivative is taken
    value = run.network(*objective.see(x, t), given).value.flatten(2)
    draw = Draw(1, torch.arange(pictures))
    # The hidden places of every picture in an order of its own; as many as are asked for.
    order = draw.uniform("places", (mask[0].numel(),)).masked_fill(mask.flatten(1), 2).argsort(1)
    rows, found = torch.arange(pictures), []
    for number in range(places):
        place = order[:, number]
        weight = torch.zeros(there.shape)
        for answer in value[rows, :, place].sum(0):  # pictures do not know of one another
            (slope,) = torch.autograd.grad(answer, leaf, retain_graph=True)
            weight += slope.flatten(2).abs().sum(1) * there
        far = (where - at[place][:, None]).norm(dim=2)
        inside = torch.stack([far < radius for radius in RADII])
        total = weight.sum(1).clamp(min=1e-30)
        even = (inside & there).sum(2) / there.sum(1)
        found.append(torch.stack([(weight * inside).sum(2) / total, even]).mean(2))
    return torch.stack(found).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--places", type=int, default=24)
    parser.add_argument("--time", type=float, default=0.1)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--record", default="locality", help="name of the result")
    asked = parser.parse_args()
    settings = {"radii": list(RADII), "pictures": asked.pictures, "places": asked.places,
                "time": asked.time, "share": asked.share}  # fmt: skip
    # Rows of other runs that were measured alike stay.
    kept = read(asked.record)
    rows = kept["inside"] if {**kept, **settings} == kept else {}
    for folder in asked.runs:
        ours, even = dependence(
            pt.load(folder, device="cpu"), asked.pictures, asked.places, asked.time, asked.share
        )
        rows[Path(folder).name] = [round(float(v), 4) for v in ours]
        rows["even"] = [round(float(v), 4) for v in even]
        print(Path(folder).name, rows[Path(folder).name], flush=True)
    record(asked.record, {**settings, "inside": rows})


if __name__ == "__main__":
    main()
