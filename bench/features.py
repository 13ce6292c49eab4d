"""Pictures a second of feature extraction, and whether memory grows with their number.

    python bench/features.py [EXTRACTOR ...]      by default pixels, alexnet and inception

Random pictures of 32 x 32, one thread, every extractor in a process of its own. The peak is what
the process ever held, read after 200, 400, 600 and 800 pictures; features go into moments and are
dropped. Seconds of work are those that the process had a core to itself: on a busy machine they are
fewer than the clock's.
alexnet is the teacher of alignment on 8 x 8 tokens, the mean over which is taken.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from record import record
from torch import Tensor

from pointillist.metrics import Extractor, extract, open_extractor

MARKS, BATCH = (200, 400, 600, 800), 20


def alexnet() -> Extractor:
    from pointillist.frozen.vision import load_teacher

    teacher = load_teacher("alexnet", torch.device("cpu"))

    def compute(pictures: Tensor) -> Tensor:
        return teacher(pictures.float() / 127.5 - 1, (8, 8)).mean((2, 3))

    return Extractor("alexnet", "", teacher.width, "bicubic to 143 x 143", compute)


def megabytes() -> float:
    """The most that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    extractor = alexnet() if name == "alexnet" else open_extractor(name)
    generator = torch.Generator().manual_seed(0)
    peaks: dict[int, float] = {}

    def pictures() -> Iterator[Tensor]:
        for done in range(0, MARKS[-1] + 1, BATCH):
            if done in MARKS:
                peaks[done] = round(megabytes(), 1)
            if done < MARKS[-1]:
                yield torch.randint(0, 256, (BATCH, 3, 32, 32), generator=generator).byte()

    extract(extractor, [next(pictures())], keep=False)  # the first batch allocates
    clock, worked = time.perf_counter(), time.process_time()
    extract(extractor, pictures(), keep=False)
    worked, clock = time.process_time() - worked, time.perf_counter() - clock
    return {
        "pictures_per_second": round(MARKS[-1] / clock, 2),
        "pictures_per_second_of_work": round(MARKS[-1] / worked, 2),
        "peak_mb": peaks,
    }


def main(*names: str) -> None:
    if names[:1] == ("--measure",):
        print(json.dumps(measure(names[1])))
        return
    torch.set_num_threads(1)
    facts = {}
    for name in names or ("pixels", "alexnet", "inception"):
        command = [sys.executable, __file__, "--measure", name]
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        facts[name] = json.loads(answer)
    record("features", {"size": 32, "batch": BATCH, "extractors": facts})


if __name__ == "__main__":
    main(*sys.argv[1:])
