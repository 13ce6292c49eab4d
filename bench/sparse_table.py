"""Every system from the same pixels after the same minutes: trained one after another, and judged.

    python bench/sparse_table.py PRESET... [--minutes 15] [--draws 9] [KEY=VALUE...]

A preset is tried for some hundred pictures in float32 and in bfloat16; the faster is taken, and as
many pictures as it sees in those minutes are trained on (the rate falls by a cosine over them), so
`train.images` of the preset does not count. Then the sparse protocol at 5, 10, 20 and 40 %: the
first 200 test pictures, `--draws` draws of 16 evaluations (DPM-Solver++(2M)), all metrics. Whatever
was finished is not done again: the same call goes on after an interruption. One result a row, as
`sparse-NAME-MINUTES.json`; `make results` writes them into docs/results.md.

PRESET is that of the -small form: `splat` for `cifar10-splat-small`; `regressor` is the plain U-Net
of `unet_regressor.py`. Words of KEY=VALUE set fields of every preset, whose names then end in
--name. The systems are told the class of a test picture, which the regressor has no place for.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, record

from pointillist.engine.checkpoint import complete
from pointillist.engine.log import read

SHARES = (0.05, 0.1, 0.2, 0.4)
METRICS = "psnr,psnr_whole,psnr_draw,ssim,lpips,crps,coverage,spread_error"
TRIED = 1024  # pictures of each trial of the rate
BATCH = 64
WALK = ("--sampler", "dpmpp_2m", "--steps", "16")
ENOUGH = 50_000  # pictures below which a row makes no claim


def called(*words: str) -> list[str]:
    """Run `pointillist WORDS` in a process of its own, so that its memory is its own."""
    subprocess.run([sys.executable, "-m", "pointillist", *words], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return ["pointillist", *words]


def elapsed(events: list[dict[str, Any]], begun: int = 0) -> list[float]:
    """Seconds of training behind each event: the log has the speed since the session began."""
    return [(event["images"] - begun) / event["images_per_second"] for event in events]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read(folder / "log.jsonl") if event["event"] == "step"]


def rate_of(preset: str, words: list[str], folder: Path) -> float:
    """Pictures a second once a short run is warm: the median over the lines of its log."""
    shutil.rmtree(folder, ignore_errors=True)
    called("train", preset, *words, f"train.images={TRIED}", "train.validate=0", "train.grid=0",
           f"train.save_every={TRIED}", "train.log_every=128", "optim.warmup=0",
           "--out", str(folder))  # fmt: skip
    events = steps_of(folder)
    seconds = elapsed(events)
    shutil.rmtree(folder)
    return statistics.median(
        (b["images"] - a["images"]) / (end - begin)
        for a, b, begin, end in zip(events[1:], events[2:], seconds[1:], seconds[2:], strict=False)
    )


def plan(preset: str, words: list[str], minutes: float, folder: Path) -> dict[str, Any]:
    """Precision and pictures of a run, kept beside it."""
    path = folder.with_suffix(".plan.json")
    if not path.exists():
        rates = {
            precision: rate_of(preset, [*words, f"train.precision={precision}"],
                               folder.with_suffix(".trial"))
            for precision in ("float32", "bfloat16")
        }  # fmt: skip
        best = max(rates, key=lambda precision: rates[precision])
        images = round(rates[best] * 60 * minutes / BATCH) * BATCH
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"precision": best, "images": images, "rates": rates}))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def trained(preset: str, words: list[str], minutes: float, folder: Path) -> dict[str, Any]:
    """The run, trained as far as it was not, and what its training was."""
    wanted = plan(preset, words, minutes, folder)
    done, kept = folder / "trained.json", folder.with_suffix(".sessions.json")
    if not done.exists():
        sessions = json.loads(kept.read_text()) if kept.exists() else []
        again = (folder / "run.yaml").exists()
        saved = complete(folder / "checkpoints") if again else []
        load = round(os.getloadavg()[0], 2)
        sessions.append({"from": int(saved[-1].name) if saved else 0, "load": load})
        kept.write_text(json.dumps(sessions))
        save = max(BATCH, wanted["images"] // 4 // BATCH * BATCH)
        command = called(
            "train", preset, *words, f"train.precision={wanted['precision']}",
            f"train.images={wanted['images']}", f"train.save_every={save}", "--out", str(folder),
            *(["--resume"] if again else []),
        )  # fmt: skip
        facts = {"command": " ".join(command), "load at end": round(os.getloadavg()[0], 2)}
        done.write_text(json.dumps(facts))
    sessions, events, seconds = json.loads(kept.read_text()), steps_of(folder), 0.0
    ends = [session["from"] for session in sessions[1:]] + [events[-1]["images"]]
    for session, end in zip(sessions, ends, strict=True):
        of = [e for e in events if session["from"] < e["images"] <= end]
        seconds += elapsed(of, session["from"])[-1] if of else 0.0
    shown = subprocess.run([sys.executable, "-m", "pointillist", "show", str(folder), "--json"],
                           check=True, capture_output=True, text=True)  # fmt: skip
    images = events[-1]["images"]
    return {
        **wanted, "images": images, "minutes of training": round(seconds / 60, 2),
        "images per second": round(images / seconds, 1), "sessions": sessions,
        "parameters": json.loads(shown.stdout)["parameters"], **json.loads(done.read_text()),
    }  # fmt: skip


def judged(folder: Path, draws: int, dtype: str) -> dict[str, Any]:
    """All metrics by share, with their intervals, seconds a picture and peak memory."""
    table = {}
    for share in SHARES:
        out = folder / f"sparse-{share:g}-{draws}-{dtype}.json"
        if not out.exists():
            called("evaluate", str(folder), "--metrics", METRICS, "--count", "200", "--draws",
                   str(draws), "--share", f"{share:g}", *WALK, "--dtype", dtype, "--out",
                   str(out))  # fmt: skip
        found = json.loads(out.read_text())
        row = {name: [found[name][key] for key in ("value", "low", "high")]
               for name in METRICS.split(",")}  # fmt: skip
        speed = found["speed"]
        table[f"{share:g}"] = {
            **{name: [round(v, 4) for v in values] for name, values in row.items()},
            "seconds a picture": round(draws / speed["drawn_per_second"], 3),
            "peak memory": round(speed["peak_memory_bytes"]),
        }
    return table


def regressor(minutes: float, folder: Path) -> dict[str, Any]:
    """The regressor, by its own bench, which keeps what it finds."""
    script = Path(__file__).with_name("unet_regressor.py")
    kept = RESULTS / f"unet-regressor-{minutes:g}min.json"
    if not kept.exists():
        again = ["--resume"] if folder.exists() else []
        subprocess.run([sys.executable, str(script), str(folder), "--minutes", f"{minutes:g}",
                        "--record", kept.stem, *again], check=True)  # fmt: skip
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="+", metavar="PRESET|KEY=VALUE")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--draws", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("runs/sparse"))
    parser.add_argument("--name", default="")
    parser.add_argument("--dtype", default="float32", help="of sampling")
    asked = parser.parse_args()
    words = [word for word in asked.words if "=" in word]
    if bool(words) != bool(asked.name):
        sys.exit("words of KEY=VALUE make other runs: give them a --name, and no name without any")
    for preset in (word for word in asked.words if "=" not in word):
        name = f"{preset}{asked.name}-{asked.minutes:g}min"
        folder = asked.out / name
        if preset == "regressor":
            print(json.dumps(regressor(asked.minutes, folder), indent=1))
            continue
        about = trained(f"cifar10-{preset}-small", words, asked.minutes, folder)
        untrained = about["images"] < ENOUGH
        record(f"sparse-{name}", {
            "preset": f"cifar10-{preset}-small", "untrained": untrained, **about, "pictures": 200,
            "draws": asked.draws, "evaluations": 16, "sampler": "dpmpp_2m", "dtype": asked.dtype,
            "by share": judged(folder, asked.draws, asked.dtype),
        })  # fmt: skip


if __name__ == "__main__":
    main()
