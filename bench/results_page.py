"""Write the tables of docs/results.md that come from bench/results: `make results`.

    python bench/results_page.py [--check]

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; what is between is replaced, all
else is left as it is. `--check` writes nothing and fails where the page is not what would be
written.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pointillist.run import Run, to_dict

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
    """`sparse-splat-15min`, or `...-19-draws` of it -> `splat` and its minutes."""
    form = r"(?:sparse-|unet-)(.+)-([\d.]+)min(?:-\d+-draws)?"
    name, minutes = re.fullmatch(form, stem).groups()  # type: ignore[union-attr]
    return name, minutes


def shown(value: float | None, form: str) -> str:
    """Empty where it was not measured."""
    return "" if value is None else format(value, form)


def machine(found: dict[str, Any]) -> str:
    """The family of the processor, of which minutes and seconds are."""
    name = str(found["where"].get("processor", ""))
    family = re.search(r"EPYC|Xeon|Ryzen|Core|Apple M\d+|Graviton", name)
    return family[0] if family else name


def sparse() -> str:
    """Every learnt row of the sparse protocol, the best at 20 % first; then those without."""
    heads = ["", "on", "minutes", "pictures", "parameters", "K",
             *(f"{float(share):.0%}" for share in SHARES), "whole", "SSIM", "LPIPS", "CRPS",
             "mean - draw", "80 %", "90 %", "spread/error", "s", "MB"]  # fmt: skip
    rows: list[tuple[float, Row]] = []
    for stem, found in kept("sparse-*min*").items():
        by, mark = found["by share"], ", untrained" if found["untrained"] else ""
        fifth = by["0.2"]
        at = {metric: value[0] for metric, value in fifth.items() if isinstance(value, list)}
        covered = (fifth["covered"].get(level) for level in ("0.8", "0.9"))
        rows.append((at["psnr"], [
            f"`{name_of(stem)[0]}`{mark}", machine(found), f"{found['minutes of training']:.1f}",
            f"{found['images']:,}", f"{found['parameters'] / 1e6:.2f} M", str(found["draws"]),
            *(f"{by[share]['psnr'][0]:.2f}" for share in SHARES),
            f"{at['psnr_whole']:.2f}", shown(at.get("ssim"), ".3f"), f"{at['lpips']:.3f}",
            f"{at['crps']:.4f}", f"{at['psnr'] - at['psnr_draw']:.2f}",
            *(shown(share, ".2f") for share in covered),
            f"{at['spread_error']:.2f}", f"{seconds_of(by):.2g}",
            f"{fifth['peak memory'] / 1e6:.0f}",
        ]))  # fmt: skip
    for found in kept("unet-regressor-*min").values():
        by = found["by share of known pixels"]
        at = by["0.2"]
        rows.append((at["hidden"], [
            "U-Net regressor", machine(found), f"{found['minutes']:.1f}", f"{found['images']:,}",
            f"{found['parameters'] / 1e6:.2f} M", "1",
            *(f"{by[share]['hidden']:.2f}" for share in SHARES), f"{at['whole']:.2f}",
            shown(at.get("ssim"), ".3f"), f"{at['lpips']:.3f}", f"{at['crps']:.4f}", "", "", "", "",
            f"{found['seconds a picture']:.2g}", "",
        ]))  # fmt: skip
    rows.sort(key=lambda row: -row[0])
    return table(heads, [row for _, row in rows] + list(unlearnt(len(heads))))


def seconds_of(by: dict[str, Any]) -> float:
    """Seconds a picture: the median over the shares, as the machine's speed wanders."""
    return statistics.median(row["seconds a picture"] for row in by.values())


def unlearnt(width: int) -> Iterator[Row]:
    found = kept("baselines")["baselines"]["PSNR by share of known pixels"]
    for name in ("thin_plate", "gaussian"):
        by = found[name]
        row = [f"*{NAMES[name]}*", "", "", "", "", ""]
        row += [f"{by[share]['hidden']:.2f}" for share in SHARES]
        row += [f"{by['0.2']['whole']:.2f}"]
        yield [*row, *[""] * (width - len(row))]


# What all that a place is told of the others has to go through; the numbers are the preset's.
BOTTLENECK = {
    "grid": "tokens of {width} numbers for patches of {patch_size} x {patch_size}",
    "splat": "none for the guess, an interpolation; tokens of {width} numbers for the rest",
    "unet": "none for the guess, convolutions; tokens of {width} numbers for the rest",
    "perceiver": "{latents} latents of {width} numbers",
    "sfc": "tokens of {group_size} pixels along the curve, of {width} numbers",
    "local": "none within the radius", "mamba": "{state} numbers a channel along the curve",
    "perceiverio": "{latents} latents of {width} numbers",
    "hybrid": "none near; {state} numbers a channel far off",
}  # fmt: skip
GROWTH = {"local": "local", "mamba": "mamba", "perceiverio": "perceiver_io", "hybrid": "hybrid"}
EPOCH = 50_000  # pictures


def of_preset(name: str) -> tuple[str, str]:
    """The bottleneck, and at how many places of a picture training asks."""
    run = to_dict(Run.load(f"cifar10-{name}-small"))
    model = {**run["model"], **(run["model"].get("encoder") or {})}
    model["width"] = run["model"]["width"]  # of the tokens, not of an encoder's inside
    places = run["task"]["places"]
    asked = {"everywhere": "all", "random": str(places.get("count")),
             "box": f"box of {places.get('edge')}"}[places["kind"]]  # fmt: skip
    return BOTTLENECK[name].format(**model), asked


def choose() -> str:
    """What the systems cost, how far they look, and what they reach: the second document's table.

    Growth is of a forward in the number of places, of models that take any; locality is the share
    of dependence within .2.
    """
    heads = ["", "growth of time", "of memory", "bottleneck", "within .2", "places asked",
             "s/epoch", "on", "MB, training", "MB, drawing", "parameters", "whole, dB"]  # fmt: skip
    near = kept("locality").get("locality", {"radii": [], "inside": {}})
    rows: list[tuple[float, Row]] = []
    for stem, found in kept("sparse-*-15min").items():
        name, at = name_of(stem)[0], found["by share"]["0.2"]
        if name not in BOTTLENECK:
            continue
        slopes = kept(f"field-scaling-{GROWTH.get(name, '')}")
        slope = next(iter(slopes.values()))["slopes"] if slopes else None
        inside = near["inside"].get(f"{name}-15min")
        memory = found.get("peak memory of training")
        bottleneck, places = of_preset(name)
        rows.append((at["psnr_whole"][0], [
            f"`{name}`" + (", untrained" if found["untrained"] else ""),
            *(shown(slope and slope[kind], ".2f") for kind in ("forward", "MiB")), bottleneck,
            "" if inside is None else f"{inside[near['radii'].index(0.2)]:.2f}", places,
            f"{EPOCH / found['images per second']:.0f}", machine(found),
            "" if memory is None else f"{memory / 1e6:.0f}", f"{at['peak memory'] / 1e6:.0f}",
            f"{found['parameters'] / 1e6:.2f} M", f"{at['psnr_whole'][0]:.2f}",
        ]))  # fmt: skip
    for found in kept("unet-regressor-15min").values():
        whole = found["by share of known pixels"]["0.2"]["whole"]
        rows.append((whole, [
            "U-Net regressor", "", "", "none, convolutions", "", "all",
            f"{EPOCH / found['images per second']:.0f}", machine(found),
            f"{found['peak memory, with training'] / 1e6:.0f}", "",
            f"{found['parameters'] / 1e6:.2f} M", f"{whole:.2f}",
        ]))  # fmt: skip
    if "even" in near["inside"]:
        even = near["inside"]["even"][near["radii"].index(0.2)]
        rows.append((-1.0, ["*known places within .2*", "", "", "", f"{even:.2f}"] + [""] * 7))
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


def ends(values: list[float], form: str) -> str:
    """One value, or the mean of several and how far they reach."""
    mean = format(sum(values) / len(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({format(min(values), form)} to {format(max(values), form)})"


def short(setting: dict[str, Any]) -> str:
    parts = (f"{key.rpartition('.')[2]} {json.dumps(value)}" for key, value in setting.items())
    return ", ".join(parts).replace('"', "")


def cells(*studies: str) -> str:
    """Every cell of the ablations of those names; brackets: the lowest and highest seed."""
    heads = ["", "20 %, hidden", "CRPS", "mean - draw", "spread/error", "parameters",
             "pictures", "pictures/s"]  # fmt: skip
    rows = []
    for study in studies:
        for found in kept(f"ablation-{study}").values():
            for one in found["cells"]:
                scores = one["scores"]
                over = [a - b for a, b in zip(scores["psnr"], scores["psnr_draw"], strict=True)]
                rows.append([
                    f"`{study}` {short(one['setting'])}", ends(scores["psnr"], ".2f"),
                    ends(scores["crps"], ".4f"), ends(over, ".2f"),
                    ends(scores["spread_error"], ".2f"), f"{one['parameters'] / 1e6:.2f} M",
                    f"{found['images']:,}", f"{one['images per second']:.0f}",
                ])  # fmt: skip
    return table(heads, rows)


def effects(*studies: str) -> str:
    """What each field does to PSNR and CRPS, beside what seeds do."""
    heads = ["", "of", "difference", "by chance up to", "more than seeds make"]
    names = {"psnr": "PSNR, dB", "crps": "CRPS"}
    rows = []
    for study in studies:
        for found in kept(f"ablation-{study}").values():
            for score, label in names.items():
                for key, one in found["effects"][score].items():
                    if key == "departure":
                        continue
                    chance = one["by_chance"]
                    rows.append([
                        f"`{key.rpartition('.')[2]}` {', '.join(one['means'])}", label,
                        f"{one['difference']:+.4f}", "" if chance is None else f"{chance:.4f}",
                        {None: "one seed", True: "yes", False: "no"}[one["exceeds"]],
                    ])  # fmt: skip
    return table(heads, rows)


CURVES, RANGES = ("curve", "order"), ("local", "mamba")


def tables() -> dict[str, Callable[[], str]]:
    """What makes each table; of ablations, where any was made."""
    found = {"baselines": baselines, "choose": choose, "sparse": sparse}
    if any(kept(f"ablation-{study}") for study in CURVES):
        found |= {"curves": partial(cells, *CURVES), "curve-effects": partial(effects, *CURVES)}
    if any(kept(f"ablation-{study}") for study in RANGES):
        found |= {"ranges": partial(cells, *RANGES)}
    return found


def written(page: str) -> str:
    """The page with every table as the results have it; all have a place there."""
    there, made = {name for _, name, _ in PART.findall(page)}, tables()
    if there != set(made):
        sys.exit(f"docs/results.md has places for {sorted(there)}, and there are {sorted(made)}")
    return PART.sub(lambda part: part[1] + made[part[2]]() + part[3], page)


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
