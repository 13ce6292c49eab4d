"""Attention that time steers, in windows of 8 against one window of the whole 64 x 64 map.

    python bench/window_attention.py [--rounds 5] [--batch 1] [--width 64] [--heads 4]

Forward and backward, on one thread, in turns. Memory of attention is the most that a process holds
beyond what it held before its first such step, one process a rival; the tokens, the projections and
their gradients, which both need alike, are in it.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from record import alternate, record

from pointillist.layers.time_attention import TimeAttention

SIDE, TIME = 64, 512
WINDOWS = {"windows of 8": 8, "global": SIDE}


def step(window: int, asked: argparse.Namespace) -> Callable[[], None]:
    """One forward and backward, the gradients given back."""
    torch.manual_seed(0)
    made = TimeAttention(asked.width, TIME, asked.heads, (window, window))
    x = torch.randn(asked.batch, SIDE, SIDE, asked.width, requires_grad=True)
    c = torch.randn(asked.batch, TIME)

    def call() -> None:
        made(x, c).square().mean().backward()
        made.zero_grad(set_to_none=True)
        x.grad = None

    return call


def peak() -> int:
    """The most bytes that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(window: int, asked: argparse.Namespace) -> None:
    """Print how many bytes a step adds to the peak of this process."""
    call = step(window, asked)
    torch.ones(64, 64) @ torch.ones(64, 64)  # what the library keeps for itself
    before = peak()
    call()
    print(json.dumps(peak() - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--memory-of", choices=list(WINDOWS), help="for the bench itself")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.memory_of:
        measure(WINDOWS[asked.memory_of], asked)
        return
    memory = {
        name: json.loads(
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--memory-of", name],
                check=True, capture_output=True, text=True,
            ).stdout
        )
        for name in WINDOWS
    }  # fmt: skip
    calls = {name: step(window, asked) for name, window in WINDOWS.items()}
    seconds = alternate(calls, asked.rounds, warmup=1)
    (near, far) = WINDOWS
    record(
        "window-attention",
        {
            "map": [SIDE, SIDE], "batch": asked.batch, "width": asked.width, "heads": asked.heads,
            "seconds, forward and backward": seconds,
            "time ratio": round(seconds[far] / seconds[near], 1),
            "peak megabytes beyond the start": {n: round(m / 1e6, 1) for n, m in memory.items()},
            "memory ratio": round(memory[far] / memory[near], 1),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
