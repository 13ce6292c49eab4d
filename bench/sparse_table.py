"""Every system from the same pixels after the same minutes: trained one after another, and judged.

    python bench/sparse_table.py PRESET... [--minutes 15] [--draws 9] [--name NAME KEY=VALUE...]

A preset is tried for some thousand pictures in float32 and in bfloat16, in turn; the faster is
taken, and as many pictures as it would see in those minutes are trained on (the rate falls by a
cosine over them), so `train.images` of the preset does not count. The minutes that it took then are
in the result: a machine may be faster or slower by a third some minutes later. Then the sparse
protocol at 5, 10, 20 and 40 %: the first 200 test pictures, `--draws` draws of 16 evaluations
(DPM-Solver++(2M)), all metrics. Whatever was finished is not done again: the same call goes on
after an interruption. One result a row, as `sparse-NAME-MINUTES.json` (with another number of draws
than 9 `...-K-draws`); `make results` writes them into docs/results.md. The weights are kept in
`results/runs/NAME-MINUTES`, which `pointillist evaluate` takes as it does any run folder; with
`--kept` they are judged, and nothing is trained.

PRESET is that of the -small form: `splat` for `cifar10-splat-small`; `regressor` is the plain U-Net
of `unet_regressor.py`. Words of KEY=VALUE set fields of every preset; such runs are called
PRESET-NAME by --name. The systems are told the class of a test picture, which the regressor has no
place for, always trains in bfloat16, has no average of its weights, and stops by the clock.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, circumstances, record

from pointillist.engine.checkpoint import complete, facts_of, load, save
from pointillist.engine.log import read

SHARES = (0.05, 0.1, 0.2, 0.4)
METRICS = "psnr,psnr_whole,psnr_draw,ssim,lpips,crps,coverage,spread_error"
PRECISIONS = ("float32", "bfloat16")
PICTURES = 200
TRIED = 1536  # pictures of each trial of the rate
TURNS = 2  # trials of each precision
DRAWS = 9  # that need no telling
BATCH = 64
WALK = ("--sampler", "dpmpp_2m", "--steps", "16")
ENOUGH = 50_000  # pictures below which a row makes no claim


def pointillist(*words: str) -> tuple[str, int]:
    """Run `pointillist WORDS` as a process of its own; the command, and its peak of memory."""
    process = subprocess.Popen([sys.executable, "-m", "pointillist", *words],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{shlex.join(process.args)} ended with {os.waitstatus_to_exitcode(status)}")
    return shlex.join(["pointillist", *words]), usage.ru_maxrss * 1024


def beside(folder: Path, ending: str) -> Path:
    """FOLDER.ENDING, whatever dots FOLDER has."""
    return folder.with_name(f"{folder.name}.{ending}")


def kept(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def keep(path: Path, facts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read(folder / "log.jsonl") if event["event"] == "step"]


def speeds(preset: str, words: list[str], folder: Path) -> list[float]:
    """Pictures a second once a short run is warm, from line to line of its log."""
    shutil.rmtree(folder, ignore_errors=True)
    pointillist("train", preset, *words, f"train.images={TRIED}", "train.validate=0",
                "train.grid=0", f"train.save_every={TRIED}", "train.log_every=128",
                "optim.warmup=0", "--out", str(folder))  # fmt: skip
    events = steps_of(folder)
    # The log has the speed since the session began.
    seconds = [event["images"] / event["images_per_second"] for event in events]
    shutil.rmtree(folder)
    return [
        (b["images"] - a["images"]) / (end - begin)
        for a, b, begin, end in zip(events[1:], events[2:], seconds[1:], seconds[2:], strict=False)
    ]


def rates_of(preset: str, words: list[str], folder: Path) -> dict[str, float]:
    """Median pictures a second in every precision, which take turns."""
    found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(TURNS):
        for precision, lines in found.items():
            lines += speeds(preset, [*words, f"train.precision={precision}"], folder)
    return {precision: statistics.median(lines) for precision, lines in found.items()}


def plan(preset: str, words: list[str], minutes: float, folder: Path) -> dict[str, Any]:
    """Precision and pictures of a run, kept beside it."""
    path, asked = beside(folder, "plan.json"), [preset, *words]
    found = kept(path)
    if found is None:
        rates = rates_of(preset, words, beside(folder, "trial"))
        best = max(rates, key=lambda precision: rates[precision])
        images = round(rates[best] * 60 * minutes / BATCH) * BATCH
        found = {"asked": asked, "precision": best, "images": images, "rates": rates}
        keep(path, found)
    if found["asked"] != asked:
        sys.exit(f"{folder} is of {found['asked']}, not of {asked}; give another --name")
    return found


def seconds_of(sessions: list[dict[str, Any]], events: list[dict[str, Any]]) -> float:
    """Seconds of training over all sessions.

    Each has its own clock, whose last speed holds to where the next one took over.
    """
    ends = [session["from"] for session in sessions[1:]] + [events[-1]["images"]]
    total = 0.0
    for session, end in zip(sessions, ends, strict=True):
        of = [event for event in events if session["from"] < event["images"] <= end]
        if of:
            total += (end - session["from"]) / of[-1]["images_per_second"]
    return total


def trained(preset: str, words: list[str], minutes: float, folder: Path) -> dict[str, Any]:
    """The run, trained as far as it was not, and what its training was."""
    wanted = plan(preset, words, minutes, folder)
    done, path = beside(folder, "trained.json"), beside(folder, "sessions.json")
    if not (done.exists() and folder.exists()):
        again = (folder / "run.yaml").exists()
        saved = complete(folder / "checkpoints") if again else []
        begun = int(saved[-1].name) if saved else 0
        sessions = [one for one in kept(path) or [] if one["from"] < begun]
        keep(path, [*sessions, {"from": begun, **circumstances()}])
        save = max(BATCH, wanted["images"] // 4 // BATCH * BATCH)
        command, memory = pointillist(
            "train", preset, *words, f"train.precision={wanted['precision']}",
            f"train.images={wanted['images']}", f"train.save_every={save}", "--out", str(folder),
            *(["--resume"] if again else []),
        )  # fmt: skip
        keep(done, {"command": command, "peak memory of training": memory,
                    "load at end": round(os.getloadavg()[0], 2)})  # fmt: skip
    sessions, events = kept(path), steps_of(folder)
    seconds, images = seconds_of(sessions, events), events[-1]["images"]
    shown = subprocess.run([sys.executable, "-m", "pointillist", "show", str(folder), "--json"],
                           check=True, capture_output=True, text=True)  # fmt: skip
    return {
        **wanted, "images": images, "minutes of training": round(seconds / 60, 2),
        "images per second": round(images / seconds, 1), "sessions": sessions,
        "parameters": json.loads(shown.stdout)["parameters"], **kept(done),
    }  # fmt: skip


def judged(folder: Path, draws: int, dtype: str) -> dict[str, Any]:
    """All metrics by share, with their intervals, seconds a picture and peak memory."""
    table = {}
    for share in SHARES:
        out = folder / f"sparse-{share:g}-{draws}-{dtype}.json"
        about = beside(out, "about.json")
        if not about.exists():
            command, _ = pointillist(
                "evaluate", str(folder), "--metrics", METRICS, "--count", str(PICTURES),
                "--draws", str(draws), "--share", f"{share:g}", *WALK, "--dtype", dtype,
                "--out", str(out),
            )  # fmt: skip
            keep(about, {"command": command, **circumstances()})
        found = kept(out)
        row = {name: [found[name][key] for key in ("value", "low", "high")]
               for name in METRICS.split(",")}  # fmt: skip
        speed, inside = found["speed"], found["reliability"]
        table[f"{share:g}"] = {
            **{name: [round(v, 4) for v in values] for name, values in row.items()},
            "seconds a picture": round(draws / speed["drawn_per_second"], 3),
            "peak memory": round(speed["peak_memory_bytes"]),
            "places": inside["places"],
            "covered": {f"{level:.4g}": round(share, 4) for level, share in
                        zip(inside["levels"], inside["observed"], strict=True)},
            "evaluated": kept(about),
        }  # fmt: skip
    return table


def store(folder: Path, name: str, about: dict[str, Any]) -> None:
    """What can be drawn from: the run with its first average's weights, in float16, and what its
    training was.

    In the place of what an earlier training of that name has left.
    """
    out, newest = RESULTS / "runs" / name, complete(folder / "checkpoints")[-1]
    making = beside(out, "unfinished")
    shutil.rmtree(making, ignore_errors=True)
    facts = facts_of(newest)
    group = next(fact["group"] for fact in facts.pop("files").values()
                 if fact["group"].startswith("ema-"))  # fmt: skip
    weights = {name: w.half() for name, w in load(newest, group).items()}
    save(making / "checkpoints" / newest.name, {group: weights}, facts)
    for file in ("run.yaml", "spec.json"):
        shutil.copy(folder / file, making / file)
    keep(making / "about.json", about)
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)


def regressor(minutes: float, folder: Path) -> dict[str, Any]:
    """The regressor, by its own bench, which keeps what it finds."""
    script, done = Path(__file__).with_name("unet_regressor.py"), beside(folder, "judged.json")
    if not done.exists():
        name = f"unet-regressor-{minutes:g}min"
        again = ["--resume"] if complete(folder) else []
        subprocess.run([sys.executable, str(script), str(folder), "--minutes", f"{minutes:g}",
                        "--record", name, *again], check=True)  # fmt: skip
        keep(done, kept(RESULTS / f"{name}.json"))
    found: dict[str, Any] = kept(done)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="+", metavar="PRESET|KEY=VALUE")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--out", type=Path, default=Path("runs/sparse"))
    parser.add_argument("--name", default="")
    parser.add_argument("--kept", action="store_true",
                        help="train nothing: judge the weights in results/runs")  # fmt: skip
    parser.add_argument("--dtype", default="float32", help="of sampling")
    asked = parser.parse_args()
    words = [word for word in asked.words if "=" in word]
    if bool(words) != bool(asked.name):
        sys.exit("words of KEY=VALUE make other runs: give them a --name, and no name without any")
    for preset in (word for word in asked.words if "=" not in word):
        name = "-".join(filter(None, (preset, asked.name, f"{asked.minutes:g}min")))
        folder = asked.out / name
        if preset == "regressor":
            if words:
                sys.exit(f"the regressor is no run and has no {words[0]}; ask for it alone")
            print(json.dumps(regressor(asked.minutes, folder), indent=1))
            continue
        if asked.kept:  # in a copy, as what is judged leaves its parts there
            folder = asked.out / f"{name}-kept"
            if not folder.exists():
                shutil.copytree(RESULTS / "runs" / name, folder)
            about = kept(folder / "about.json")
            if about is None:
                sys.exit(f"{name} was kept without about.json; train it again")
        else:
            about = trained(f"cifar10-{preset}-small", words, asked.minutes, folder)
            store(folder, name, about)
        untrained = about["images"] < ENOUGH
        many = "" if asked.draws == DRAWS else f"-{asked.draws}-draws"
        record(f"sparse-{name}{many}", {
            "preset": f"cifar10-{preset}-small", "untrained": untrained, **about,
            "pictures": PICTURES, "draws": asked.draws, "evaluations": 16, "sampler": "dpmpp_2m",
            "dtype": asked.dtype,
            "by share": judged(folder, asked.draws, asked.dtype), "where": about["sessions"][-1],
        })  # fmt: skip


if __name__ == "__main__":
    main()
