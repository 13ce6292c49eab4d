"""Commands run by several ranks, as torchrun would: forks of one process that has imported all.

    {"words": [...], "count": 2, "trouble": "..."}   in, a line
    [{"code": 0, "out": "...", "err": "..."}, ...]   out, a line, by rank

Like torchrun it terminates the other ranks when one has failed. `python tests/ranks_case.py`.
"""

import copy
import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pointillist
import pointillist.console  # noqa: F401
from pointillist import cli, gradient
from pointillist.data import EmojiConfig
from pointillist.data.source import InMemory
from pointillist.engine.ranks import joined
from pointillist.run import Run
from pointillist.types import InputError

LIMIT = 100  # seconds


def at_step(number: int, what: Callable[..., None], after: bool = False) -> None:
    """Have `what` happen in the step that begins at so many images."""
    backward = gradient.backward

    def troubled(run, network, batch, device, micro_batch=0, alignment=None, step=None,
                 reader=None):  # fmt: skip
        size = micro_batch or batch.x.shape[0]
        if step.first == number and not after:
            what(network, size)
        terms = backward(run, network, batch, device, micro_batch, alignment, step, reader)
        if step.first == number and after:
            what(network, size)
        return terms

    gradient.backward = troubled


def memory(network: Any, size: int) -> None:
    if size > 4:
        raise torch.OutOfMemoryError("no")


def no_memory(network: Any, size: int) -> None:
    raise torch.OutOfMemoryError("no")


def unreadable() -> None:
    rows, calls = InMemory.rows, []

    def troubled(self, numbers):
        calls.append(numbers)
        if len(calls) > 3:
            raise InputError("a.png cannot be read; mend it")
        return rows(self, numbers)

    InMemory.rows = troubled


def full_disk() -> None:
    def troubled(*_):
        raise InputError("000000064 cannot be written: No space left; free some space")

    sys.modules["pointillist.train"].save_checkpoint = troubled


def other_data() -> None:
    original = EmojiConfig.open

    def troubled(self, split):
        source = copy.copy(original(self, split))
        source.spec = dataclasses.replace(source.spec, fingerprint="other")
        return source

    EmojiConfig.open = troubled  # type: ignore[method-assign]


def no_data() -> None:
    def troubled(self, split):
        raise InputError("the pictures are not there; bring them back")

    EmojiConfig.open = troubled  # type: ignore[method-assign]


def fails(network: Any, size: int) -> None:
    raise KeyError("a bug")


def kills(number: int) -> Callable[..., None]:
    return lambda network, size: os.kill(os.getpid(), number)


def not_finite(network: Any, size: int) -> None:
    next(network.model.parameters()).grad.fill_(torch.nan)


def never_finite() -> None:
    for number in range(32, 192, 32):
        at_step(number, not_finite, after=True)


# What befalls one rank.
TROUBLES: dict[str, Callable[[], None]] = {
    "memory": lambda: at_step(64, memory),
    "no memory": lambda: at_step(64, no_memory),
    "bug": lambda: at_step(64, fails),
    "killed": lambda: at_step(64, kills(signal.SIGKILL)),
    "stop": lambda: at_step(64, kills(signal.SIGTERM)),
    "interrupt": lambda: at_step(64, kills(signal.SIGINT)),
    "not finite": lambda: at_step(64, not_finite, after=True),
    "never finite": never_finite,
    "unreadable": unreadable,
    "full disk": full_disk,
    "other data": other_data,
    "no data": no_data,
    "other words": lambda: sys.argv.append("optim.lr=0.5"),
}


def sums() -> None:
    """Sums of gradients of which some ranks, or all, have none; in buckets of four numbers."""
    sys.modules["pointillist.engine.ranks"].BUCKET = 4  # type: ignore[attr-defined]
    with joined() as ranks:
        here = [nn.Parameter(torch.full((n,), float(ranks.rank))) for n in (3, 1, 2, 7, 2)]
        ranks.broadcast(here)
        for i, p in enumerate(here):
            has = {0: True, 1: ranks.rank == 1, 2: False, 3: True, 4: ranks.leads}[i]
            p.grad = torch.full_like(p, 10.0**i * (ranks.rank + 1)) if has else None
        ranks.sum_gradients(here)
        told = ranks.meet(odd=ranks.rank % 2, rank=f"rank {ranks.rank}", never="")
        found = {
            "weights": [p.tolist() for p in here],
            "gradients": [None if p.grad is None else p.grad.tolist() for p in here],
            "told": told,
        }
        print(json.dumps(found))


CALLS: dict[str, Callable[[], None]] = {"sums": sums}


def rank_of(case: dict[str, Any], rank: int, port: int, folder: Path) -> int:
    """Fork one rank; its process number."""
    child = os.fork()
    if child:
        return child
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    count = str(case.get("count", 2))
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.argv = ["pointillist", *case.get("words", [])]
    if case.get("trouble") and rank == case.get("rank", 1):
        TROUBLES[case["trouble"]]()
    code: Any = 1
    try:
        CALLS.get(case.get("call", ""), cli.main)()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(case: dict[str, Any]) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = {rank_of(case, i, port, folder): i for i in range(case.get("count", 2))}
        codes: dict[int, int] = {}
        end, terminated = time.time() + LIMIT, False
        while len(codes) < len(ranks):
            process, status = os.waitpid(-1, os.WNOHANG)
            if process:
                codes[ranks[process]] = os.waitstatus_to_exitcode(status)
                continue
            left = [p for p, rank in ranks.items() if rank not in codes]
            if time.time() > end:
                for p in left:
                    os.kill(p, signal.SIGKILL)
            elif any(codes.values()) and not terminated:
                terminated = True
                for p in left:
                    os.kill(p, signal.SIGTERM)
            time.sleep(0.01)
        return [
            {"code": codes[i], **{s: (folder / f"{i}.{s}").read_text() for s in ("out", "err")}}
            for i in range(len(ranks))
        ]


TOY = (
    "model.width=32", "model.depth=2", "model.heads=2", "train.images=192", "train.batch=32",
    "train.save_every=64", "train.log_every=32", "train.grid=0", "train.validate=8",
    "train.ema=[0.9, 0.99]", "optim.warmup=64", "train.keep=0",
)  # fmt: skip


def warm() -> None:
    """What torch imports at its first steps, it imports once for all forks."""
    with tempfile.TemporaryDirectory() as folder:
        pointillist.train(Run.load("debug", *TOY, "train.images=32"), folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)
