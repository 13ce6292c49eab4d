"""The picture that an encoder makes of the known pixels, before any step: how near it comes.

    python bench/guess.py RUN...

Of runs with `model.encoder.kind=unet` or `splat`, by the sparse protocol: PSNR in dB over the
hidden pixels of the first 200 test pictures, clipped to [-1, 1]. It takes a single forward.
"""

import argparse
from pathlib import Path

import torch
from record import record
from sparse_table import PICTURES, SHARES

import pointillist as pt
from pointillist.data.collection import nominal
from pointillist.known import protocol_mask
from pointillist.metrics.pixel import psnr
from pointillist.sample import Trained
from pointillist.types import Given, InputError
from pointillist.validation import held_out


@torch.no_grad()
def guesses(run: Trained) -> dict[str, float]:
    """Mean PSNR over the hidden pixels, by the share that is known."""
    size, found = tuple(run.spec.size), {}
    truth, label = held_out(nominal(run.run.data).open("test"), PICTURES)
    for share in SHARES:
        mask = torch.stack([protocol_mask(i, size, share) for i in range(len(truth))])[:, None]
        given = Given(seen=torch.where(mask, truth, 0), mask=mask,
                      label=label if run.spec.classes else None)  # fmt: skip
        guess = run.network(torch.zeros_like(truth), torch.zeros(len(truth)), given).guess
        if guess is None:
            raise InputError("the run's encoder makes no guess; give one of unet or splat")
        dB = psnr(guess.clamp(-1, 1), truth, data_range=2.0, mask=~mask)
        found[f"{share:g}"] = round(float(dB.mean()), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    asked = parser.parse_args()
    for folder in asked.runs:
        found = guesses(pt.load(folder, device="cpu"))
        record(f"guess-{Path(folder).name}", {"pictures": PICTURES, "hidden, dB": found})


if __name__ == "__main__":
    main()
