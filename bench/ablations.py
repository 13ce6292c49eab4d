"""Fields of the sparse systems varied, by `pointillist ablate`: some minutes a cell.

    python bench/ablations.py STUDY... [--out runs/ablations]

`curve`: unified coordinates with and without spatial bias, two seeds. `order`: Hilbert's curve
against the Z-order, two seeds; its first cell is that of `curve` and is not trained twice. `local`
and `mamba`: the ranges of the second document, one field at a time.

The first cell is tried for some thousand pictures in float32 and in bfloat16; all cells of a study
are trained in the faster, on as many pictures as the first sees in the study's minutes. What was
finished is not done again. One result a study, as `ablation-STUDY.json`; `make results` writes them
into docs/results.md.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from record import circumstances, record
from sparse_table import BATCH, keep, kept, pointillist, rates_of


class Study(NamedTuple):
    """What is varied, and how its cells are judged at a fifth known."""

    preset: str
    minutes: float
    over: dict[str, str]  # the first value is that of the preset
    seeds: str = ""
    one_at_a_time: bool = False
    # Draws, evaluations of each, pictures.
    judged: tuple[int, int, int] = (9, 16, 200)
    # Study and cell whose runs are those of the first cell here.
    base: tuple[str, str] = ("", "")


BRIEF = (4, 8, 100)
CURVE = "model.encoder.curve"
STUDIES = {
    "curve": Study(
        "cifar10-sfc-small",
        6,
        {"model.encoder.unified_coords": "false,true", "model.encoder.spatial_bias": "false,true"},
        "0,1",
    ),
    "order": Study(
        "cifar10-sfc-small",
        6,
        {CURVE: "hilbert,zorder"},
        "0,1",
        base=("curve", "unified_coords=false,spatial_bias=false"),
    ),  # fmt: skip
    "local": Study(
        "cifar10-local-small",
        5,
        {"model.radius": "0.4,0.2,0.3", "model.heads": "4,8,16", "model.depth": "4,6,8"},
        one_at_a_time=True,
        judged=BRIEF,
    ),
    "mamba": Study("cifar10-mamba-small", 5, {"model.state": "16,8,32"}, judged=BRIEF),
}
METRICS = "psnr,psnr_whole,psnr_draw,crps,spread_error"


def plan(name: str, out: Path) -> dict[str, Any]:
    """Precision and pictures of a study's cells, kept beside them."""
    study = STUDIES[name]
    path = out / f"{study.base[0] or name}.plan.json"
    found: dict[str, Any] | None = kept(path)
    if found is None:
        if study.base[0]:
            sys.exit(f"{name} begins with a cell of {study.base[0]}; ask for that first")
        rates = rates_of(study.preset, [], out / "trial")
        best = max(rates, key=lambda precision: rates[precision])
        images = round(rates[best] * 60 * study.minutes / BATCH) * BATCH
        found = {"precision": best, "images": images, "rates": rates}
        keep(path, found)
    return found


def bring(name: str, out: Path) -> None:
    """The first cell's runs, from the study that has them."""
    study = STUDIES[name]
    if not study.base[0]:
        return
    ((key, values),) = study.over.items()
    first = f"{key.rpartition('.')[2]}={values.partition(',')[0]}"
    for seed in study.seeds.split(","):
        to = out / name / f"{first},seed={seed}"
        if not to.exists():
            shutil.copytree(out / study.base[0] / f"{study.base[1]},seed={seed}", to)


def cell(found: dict[str, Any]) -> dict[str, Any]:
    """A cell of `ablation.json`, with what the page tells of it."""
    return {
        "setting": found["setting"], "parameters": found["parameters"], "macs": found["macs"],
        "images per second": round(found["images_per_second"], 1),
        "scores": {name: [round(run["scores"][name]["value"], 5) for run in found["runs"]]
                   for name in found["runs"][0]["scores"]},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", metavar="STUDY", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    asked = parser.parse_args()
    for name in asked.studies:
        study, wanted, folder = STUDIES[name], plan(name, asked.out), asked.out / name
        bring(name, asked.out)
        draws, evaluations, pictures = study.judged
        where = circumstances()
        command, _ = pointillist(
            "ablate", study.preset, f"train.images={wanted['images']}",
            f"train.save_every={wanted['images']}", "train.grid=0",
            f"train.precision={wanted['precision']}", "sample.sampler=dpmpp_2m",
            f"sample.steps={evaluations}", f"evaluate.draws={draws}",
            *(word for key, values in study.over.items() for word in ("--over", f"{key}={values}")),
            *(["--seeds", study.seeds] if study.seeds else []),
            *(["--one-at-a-time"] if study.one_at_a_time else []),
            "--metrics", METRICS, "--count", str(pictures), "--out", str(folder),
        )  # fmt: skip
        found = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
        record(f"ablation-{name}", {
            "command": command, "minutes": study.minutes, **wanted, "seeds": found["seeds"],
            "pictures": pictures, "draws": draws, "evaluations": evaluations,
            "cells": [cell(one) for one in found["cells"]], "effects": found["effects"],
            "where": where,
        })  # fmt: skip


if __name__ == "__main__":
    main()
