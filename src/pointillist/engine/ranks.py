"""Several processes that train as one: who is who, sums over all of them, and an end they share.

torchrun starts them and tells each in its environment who it is. They talk in two groups: over gloo
in JSON, where one may wait for as long as another judges pictures, and over NCCL (on the CPU gloo
again) in sums of gradients.

What keeps them together is one rule: between two meetings all ranks ask for the same sums. A rank
that fails goes to the next meeting and says so, and there all of them end alike, with one sentence.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pointillist.engine.device import is_out_of_memory
from pointillist.engine.session import Interrupted
from pointillist.types import InputError

JOINING = timedelta(minutes=10)  # for all to be there, and for a sum once all have come to it
WAITING = timedelta(days=30)  # for whoever evaluates; one that dies is noticed at once
BUCKET = 1 << 24  # numbers that are summed in one message: 64 MiB of float32


class Ranks:
    """All processes of a run, seen from one of them; by default it is alone and nothing is sent.

    `parted`: a rank has gone, or may be waited for in vain, so no further message is sent.
    `over`: all have agreed to end.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self.parted = self.over = False
        self.words: Any = dist.group.WORLD if count > 1 else None
        self.sums = self.words
        self.flat = torch.empty(0)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes, judges and prints."""
        return self.rank == 0

    @property
    def local(self) -> int:
        """Which process of its machine this is."""
        return int(os.environ.get("LOCAL_RANK", self.rank)) if self.count > 1 else 0

    def place(self, device: torch.device) -> torch.device:
        """The device of this rank, one for each on CUDA; the group for sums is made for it.

        InputError where a machine has too few, or where kinds differ.
        """
        if self.count == 1:
            return device
        if device.type == "mps":
            raise InputError(
                "device is mps, which one process alone can use; start it without torchrun, or "
                "set device=cpu"
            )
        local = self.local
        if device.type == "cuda" and local >= torch.cuda.device_count():
            raise InputError(
                f"rank {self.rank} would take cuda:{local}, but its machine has "
                f"{torch.cuda.device_count()} of them; start one process for each"
            )
        if device.type == "cuda":  # what may fail here fails before all meet
            if not dist.is_nccl_available():
                raise InputError(
                    f"torch {torch.__version__} has no NCCL, which several processes on CUDA sum "
                    f"their gradients by; install one that has, or set device=cpu"
                )
            torch.cuda.set_device(local)
            torch.zeros(1, device="cuda")
        kinds = self.meet(kind=device.type)["kind"]
        if len(set(kinds)) > 1:
            other = next(rank for rank, kind in enumerate(kinds) if kind != kinds[0])
            raise InputError(
                f"device is {kinds[0]} on rank 0 and {kinds[other]} on rank {other}; set device to "
                f"one that all have"
            )
        if device.type == "cuda":
            device = torch.device("cuda", local)
            self.sums = dist.new_group(backend="nccl", timeout=JOINING)
        return device

    def part_of(self, free: int, device: torch.device) -> int:
        """What of `free` bytes is this rank's: processes on a CPU share the machine's."""
        if self.count == 1 or device.type != "cpu":
            return free
        return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    # Words.

    def gather(self, word: Any) -> list[Any]:
        """What every rank says, in JSON; None for nothing. Where all say nothing, that is cheap."""
        if self.count == 1:
            return [word or None]
        text = json.dumps(word).encode() if word else b""
        with self._linked():
            lengths = self._all(torch.tensor([len(text)]))
            if not any(lengths):
                return [None] * self.count
            room = torch.zeros(max(int(n) for n in lengths), dtype=torch.uint8)
            room[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
            rooms = self._all(room)
        texts = (bytes(room[:n].tolist()) for room, n in zip(rooms, lengths, strict=True))
        return [json.loads(text) if text else None for text in texts]

    def _all(self, mine: Tensor) -> list[Tensor]:
        found = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(found, mine, group=self.words)
        return found

    def meet(self, **words: Any) -> dict[str, list[Any]]:
        """Wait for all; by name what those said, in the order of ranks, that had something to say.

        Where a rank has failed since the last meeting, all raise its error.
        """
        said = self.gather({name: word for name, word in words.items() if word})
        failed = [word["failed"] for word in said if word and "failed" in word]
        if failed:
            self.over = True
            raise _error(failed)
        return {name: [word[name] for word in said if word and name in word] for name in words}

    # Sums.

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values for all; room for the sums of their gradients is made as well."""
        if self.count == 1:
            return
        sizes = [v.numel() for v in tensors]
        room = min(sum(sizes), max(BUCKET, *sizes))
        self.flat = torch.empty(room, device=tensors[0].device)
        self.meet()
        for part in _buckets(tensors):
            with self._linked(part) as flat:
                dist.broadcast(flat, 0, self.sums)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes its sum over the ranks; it is None only where all have none."""
        if self.count == 1:
            return
        idle = self.gather([i for i, p in enumerate(parameters) if p.grad is None])
        nowhere = set.intersection(*(set(some or ()) for some in idle))
        gradients = []
        with self._linked():
            for i, p in enumerate(parameters):
                if i not in nowhere:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                    gradients.append(p.grad)
        for part in _buckets(gradients):
            with self._linked(part) as flat:
                dist.all_reduce(flat, group=self.sums)

    def sum(self, figures: Sequence[Tensor]) -> Tensor:
        """A few numbers as one vector, summed over the ranks."""
        total = torch.stack(tuple(figures))
        if self.count > 1:
            with self._linked():
                dist.all_reduce(total, group=self.sums)
        return total

    # The end.

    @contextmanager
    def _linked(self, tensors: Sequence[Tensor] = ()) -> Iterator[Tensor]:
        """The tensors as one flat tensor, of which they take over what a message makes of it.

        A message that does not arrive parts the ranks, and so does one that is not sent.
        """
        try:
            flat = self.flat[: sum(v.numel() for v in tensors)]
            if tensors:
                torch.cat([v.detach().flatten() for v in tensors], out=flat)
            yield flat
            for v, piece in zip(tensors, flat.split([v.numel() for v in tensors]), strict=True):
                v.detach().copy_(piece.view_as(v))
        except BaseException as error:
            self.parted = True
            if not isinstance(error, RuntimeError) or is_out_of_memory(error):
                raise
            raise InputError(
                f"one of the {self.count} processes has ended without a word, perhaps killed for "
                f"its memory; --resume goes on from the newest checkpoint"
            ) from error

    def agree(self, error: Exception) -> Exception:
        """What all ranks end with when this one ends with `error`; it waits for all."""
        agreed = error
        if not (self.over or self.parted):
            try:
                self.meet(failed=_word(error, self.rank))
            except Exception as found:
                # Its own error has the traceback, and tells more than that others have gone.
                own = self.parted or str(found) == _word(error, self.rank)["text"]
                agreed = error if own else found
        if self.over:
            # torchrun terminates the rest when the first has ended; each ends by itself.
            with contextlib.suppress(ValueError):  # not the main thread: whoever owns it decides
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with contextlib.suppress(InputError):
                self.gather(None)
        return agreed


def _buckets(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    """Consecutive tensors of at most BUCKET numbers together, a larger one by itself."""
    part: list[Any] = []
    size = 0
    for value in tensors:
        if part and size + value.numel() > BUCKET:
            yield part
            part, size = [], 0
        part.append(value)
        size += value.numel()
    if part:
        yield part


def _word(error: Exception, rank: int) -> dict[str, str]:
    """An error as it is told to other ranks."""
    text = str(error)
    if isinstance(error, (InputError, Interrupted)):
        return {"kind": type(error).__name__, "text": text}
    if is_out_of_memory(error):
        return {"kind": "MemoryError", "text": f"rank {rank}: {text}"}
    if isinstance(error, OSError):
        text = f"{error.filename or 'writing'}: {error.strerror or error} (rank {rank})"
        return {"kind": "InputError", "text": text}
    text = f"rank {rank} failed by {type(error).__name__}: {text}; it has printed where"
    return {"kind": "InputError", "text": text}


def _error(failed: list[dict[str, str]]) -> Exception:
    """The error that all end with: the first, but a request to stop only where nothing is wrong."""
    kinds = {"InputError": InputError, "MemoryError": MemoryError, "Interrupted": Interrupted}
    chosen = min(failed, key=lambda word: word["kind"] == "Interrupted")
    return kinds[chosen["kind"]](chosen["text"])


_joined: Ranks | None = None
_voice = 0


def speaks() -> bool:
    """Whether this process prints: rank 0, or until all have met the first of each machine."""
    return _voice == 0


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun has started, until the end of the block; else this one alone.

    Inside of another block it is the same group. An error of one rank ends the block on all of
    them. InputError where the others are not reached.
    """
    global _joined
    if _joined is not None or os.environ.get("WORLD_SIZE", "") in ("", "1"):
        yield _joined or Ranks()
        return
    _joined = ranks = _join()
    try:
        yield ranks
        ranks.meet()  # the others wait until rank 0 has written its last
        dist.destroy_process_group()
    except Exception as error:
        agreed = ranks.agree(error)
        if ranks.over and not ranks.parted:
            dist.destroy_process_group()
        if agreed is error:
            raise
        raise agreed from error
    finally:
        _joined = None


def _join() -> Ranks:
    global _voice
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        _voice = int(said["LOCAL_RANK"] or said["RANK"])
        dist.init_process_group("gloo", timeout=JOINING)
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
        ranks.words = dist.new_group(backend="gloo", timeout=WAITING)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        raise InputError(
            f"WORLD_SIZE is {said['WORLD_SIZE']} and RANK is {said['RANK'] or 'not set'}, but the "
            f"other processes are not reached: {reason}; start all with torchrun, or unset "
            f"WORLD_SIZE to train with one"
        ) from error
    _voice = ranks.rank
    return ranks
