"""What every benchmark shares: alternating medians, and a result file that says where."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pointillist.version import __version__, commit

RESULTS = Path(__file__).parent / "results"


def alternate(
    rivals: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of every rival; they take turns, so that a disturbance hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(warmup + rounds):
        for name, call in rivals.items():
            begun = time.perf_counter()
            call()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def circumstances() -> dict[str, Any]:
    """What a figure was measured with, and on what."""
    return {
        "pointillist": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def read(name: str) -> dict[str, Any]:
    """What results/NAME.json holds; nothing where there is none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def record(name: str, facts: dict[str, Any]) -> None:
    """Print the facts and keep them in results/NAME.json, with the circumstances unless they tell
    their own `where`.
    """
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**facts, "where": facts.get("where") or circumstances()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
