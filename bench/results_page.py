"""Write the tables of docs/results.md that come from bench/results: `make results`.

    python bench/results_page.py [--check]

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; what is between is replaced, all
else is left as it is. `--check` writes nothing and fails where the page is not what would be
written.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
PART = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHARES = ("0.05", "0.1", "0.2", "0.4")
Row = list[str]


def kept(pattern: str) -> dict[str, dict[str, Any]]:
    """Results by name, in the order of their names."""
    paths = sorted(RESULTS.glob(f"{pattern}.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def table(heads: Row, rows: list[Row]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def name_of(stem: str) -> tuple[str, str]:
    """`sparse-splat-15min` -> `splat` and its minutes."""
    name, minutes = re.fullmatch(r"(?:sparse-|unet-)(.+)-([\d.]+)min", stem).groups()  # type: ignore[union-attr]
    return name, minutes


def sparse() -> str:
    """Every learnt row of the sparse protocol, the best at 20 % first; then those without."""
    heads = ["", "minutes", "pictures", "parameters", "K", *(f"{float(s):.0%}" for s in SHARES),
             "whole", "SSIM", "LPIPS", "CRPS", "mean - draw", "80 %", "90 %", "spread/error",
             "s", "MB"]  # fmt: skip
    rows: list[tuple[float, Row]] = []
    for stem, found in kept("sparse-*min").items():
        by, mark = found["by share"], ", untrained" if found["untrained"] else ""
        fifth = by["0.2"]
        at = {metric: value[0] for metric, value in fifth.items() if isinstance(value, list)}
        covered = (fifth["covered"].get(level) for level in ("0.8", "0.9"))
        rows.append((at["psnr"], [
            f"`{name_of(stem)[0]}`{mark}", f"{found['minutes of training']:.1f}",
            f"{found['images']:,}", f"{found['parameters'] / 1e6:.2f} M", str(found["draws"]),
            *(f"{by[share]['psnr'][0]:.2f}" for share in SHARES),
            f"{at['psnr_whole']:.2f}", f"{at['ssim']:.3f}", f"{at['lpips']:.3f}",
            f"{at['crps']:.4f}", f"{at['psnr'] - at['psnr_draw']:.2f}",
            *("" if share is None else f"{share:.2f}" for share in covered),
            f"{at['spread_error']:.2f}", f"{fifth['seconds a picture']:.2g}",
            f"{fifth['peak memory'] / 1e6:.0f}",
        ]))  # fmt: skip
    for found in kept("unet-regressor-*min").values():
        by = found["by share of known pixels"]
        at = by["0.2"]
        rows.append((at["hidden"], [
            "U-Net regressor", f"{found['minutes']:.1f}", f"{found['images']:,}",
            f"{found['parameters'] / 1e6:.2f} M", "1",
            *(f"{by[share]['hidden']:.2f}" for share in SHARES), f"{at['whole']:.2f}",
            f"{at['ssim']:.3f}", f"{at['lpips']:.3f}", f"{at['crps']:.4f}", "", "", "", "",
            f"{found['seconds a picture']:.2g}", "",
        ]))  # fmt: skip
    rows.sort(key=lambda row: -row[0])
    return table(heads, [row for _, row in rows] + list(unlearnt(len(heads))))


def unlearnt(width: int) -> Iterator[Row]:
    found = kept("baselines")["baselines"]["PSNR by share of known pixels"]
    for name in ("thin_plate", "gaussian"):
        by = found[name]
        row = [f"*{NAMES[name]}*", "", "", "", ""]
        row += [f"{by[share]['hidden']:.2f}" for share in SHARES]
        row += [f"{by['0.2']['whole']:.2f}"]
        yield [*row, *[""] * (width - len(row) - 2), f"{by['0.2']['seconds']:.2g}", ""]


# What all that a place is told of the others has to go through.
BOTTLENECK = {
    "grid": "tokens of 128 numbers for patches of 4 x 4", "splat": "tokens of 128 numbers",
    "unet": "none: convolutions on the pixels", "perceiver": "48 latents of 128 numbers",
    "sfc": "tokens of groups along the curve", "local": "none within the radius",
    "mamba": "16 numbers a channel along the curve", "perceiverio": "64 latents of 128 numbers",
    "hybrid": "none near; 16 numbers a channel far off",
}  # fmt: skip
GROWTH = {"local": "local", "mamba": "mamba", "perceiverio": "perceiver_io", "hybrid": "hybrid"}
EPOCH = 50_000  # pictures


def choose() -> str:
    """What the systems cost, how far they look, and what they reach: the second document's table.

    An epoch asks at the places that the preset trains on. Growth is of a forward in the number of
    places, of models that take any; locality is the share of dependence within .2.
    """
    heads = ["", "growth of time", "of memory", "bottleneck", "within .2", "s/epoch",
             "MB, training", "MB, drawing", "parameters", "whole, dB"]  # fmt: skip
    near = kept("locality").get("locality", {"radii": [], "inside": {}})
    rows: list[tuple[float, Row]] = []
    for stem, found in kept("sparse-*-15min").items():
        name, at = name_of(stem)[0], found["by share"]["0.2"]
        if name not in BOTTLENECK:
            continue
        slopes = kept(f"field-scaling-{GROWTH.get(name, '')}")
        slope = next(iter(slopes.values()))["slopes"] if slopes else None
        inside = next((v for k, v in near["inside"].items() if k.startswith(f"{name}-")), None)
        memory = found.get("peak memory of training")
        rows.append((at["psnr_whole"][0], [
            f"`{name}`" + (", untrained" if found["untrained"] else ""),
            "" if slope is None else f"{slope['forward']:.2f}",
            "" if slope is None else f"{slope['MiB']:.2f}", BOTTLENECK[name],
            "" if inside is None else f"{inside[near['radii'].index(0.2)]:.2f}",
            f"{EPOCH / found['images per second']:.0f}",
            "" if memory is None else f"{memory / 1e6:.0f}", f"{at['peak memory'] / 1e6:.0f}",
            f"{found['parameters'] / 1e6:.2f} M", f"{at['psnr_whole'][0]:.2f}",
        ]))  # fmt: skip
    if "even" in near["inside"]:
        even = near["inside"]["even"][near["radii"].index(0.2)]
        rows.append((-1.0, ["*known places within .2*", "", "", "", f"{even:.2f}"] + [""] * 5))
    rows.sort(key=lambda row: -row[0])
    return table(heads, [row for _, row in rows])


NAMES = {
    "nearest": "nearest", "linear": "linear (Delaunay; nearest outside)",
    "thin_plate": "thin plate", "biharmonic": "biharmonic on the grid",
    "gaussian": "Gaussian process, rational quadratic",
    "splat": "`splat`, the encoder's start",
}  # fmt: skip


def baselines() -> str:
    """Every classical interpolation; 20 % over whole pictures and in time too."""
    found = kept("baselines")["baselines"]["PSNR by share of known pixels"]
    heads = ["known pixels", *(f"{float(s):.0%}".replace("%", " %") for s in SHARES),
             "20 %, whole", "ms"]  # fmt: skip
    rows = []
    for name, by in found.items():
        at = by["0.2"]
        rows.append([NAMES[name], *(f"{by[s]['hidden']:.2f}" for s in SHARES),
                     f"{at['whole']:.2f}", f"{1e3 * at['seconds']:.1f}"])  # fmt: skip
    return table(heads, rows)


TABLES: dict[str, Callable[[], str]] = {"baselines": baselines, "choose": choose, "sparse": sparse}


def written(page: str) -> str:
    """The page with every table as the results have it; all have a place there."""
    there = {name for _, name, _ in PART.findall(page)}
    if there != set(TABLES):
        sys.exit(f"docs/results.md has places for {sorted(there)}, and there are {sorted(TABLES)}")
    return PART.sub(lambda part: part[1] + TABLES[part[2]]() + part[3], page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = written(page)
    if asked.check and new != page:
        sys.exit("docs/results.md is not what bench/results says; run `make results`")
    if not asked.check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
