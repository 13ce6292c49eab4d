"""Samples in their order, as batches: a function of the seed and the running sample number alone.

Sample number n is place n mod N of epoch n div N, and every epoch has its own order. How many
workers decode, or how large the batches are, changes nothing.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pointillist.data.report import Refused
from pointillist.data.source import Rows, Source
from pointillist.draws import Draw, permutation
from pointillist.types import Batch, InputError, Spec


class Order:
    """Which row sample number n is; the last epoch's order is kept, as runs move forward."""

    def __init__(self, seed: int, rows: int) -> None:
        self.seed, self.rows = seed, rows
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, numbers: range) -> list[int]:
        found = []
        for number in numbers:
            epoch, place = divmod(number, self.rows)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = permutation(self.seed, epoch, "order", self.rows)
            found.append(int(self._order[place]))
        return found


def to_batch(rows: Rows, numbers: Tensor, spec: Spec, seed: int | None = None) -> Batch:
    """Stored values to the network's units: (v - offset)/scale, float32.

    Rows with a spread are drawn within it, by `seed` and the sample's number; without a seed they
    are their mean.
    """
    shape = (1, -1, *[1] * (rows.x.dim() - 2))
    offset, scale = torch.tensor(spec.offset).view(shape), torch.tensor(spec.scale).view(shape)

    def drawn(values: Tensor, spread: Tensor | None) -> Tensor:
        values = values.float()
        if spread is not None and seed is not None:
            noise = Draw(seed, numbers).normal("posterior", tuple(values.shape[1:]))
            values = values + spread.float() * noise
        return (values - offset) / scale

    x, mirrored = drawn(rows.x, rows.spread), None
    if rows.mirrored is not None:
        mirrored = drawn(rows.mirrored, rows.mirrored_spread)
    if rows.weight is not None:  # 0 times NaN is NaN
        x = torch.where(rows.weight > 0, x, 0)
    return Batch(
        numbers, x, where=rows.where, weight=rows.weight, label=rows.label, caption=rows.caption,
        row=rows.row, mirrored=mirrored,
    )  # fmt: skip


class _Numbered(Dataset[Rows | InputError]):
    """Rows by a range of sample numbers; a source in a worker is a copy of this one."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.order = source, Order(seed, len(source))

    def __getitem__(self, numbers: range) -> Rows | InputError:
        try:
            order = self.order(numbers)
            return self.source.rows(order)._replace(row=torch.tensor(order))
        except InputError as error:
            return error  # raised in a worker, torch would wrap it into a traceback


def _ranges(start: int, stop: int, batch: int) -> Iterator[range]:
    """Consecutive ranges of `batch` sample numbers, from `start` until `stop` is reached."""
    for first in range(start, stop, batch):
        yield range(first, first + batch)


def _part(numbers: range, part: tuple[int, int]) -> range:
    """The i-th of n equal parts of a range, for `part` = (i, n)."""
    place, parts = part
    size = len(numbers) // parts
    return numbers[place * size : (place + 1) * size]


class _Whole:
    """The rows as they are: torch's own collation knows neither None nor captions."""

    def __call__(self, rows: Any) -> Any:
        return rows


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C, and torchrun's word to end, reach the workers too; the training process answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Ranges(torch.utils.data.Sampler[Any]):
    def __init__(self, start: int, stop: int, batch: int, part: tuple[int, int]) -> None:
        self.arguments, self.part = (start, stop, batch), part

    def __iter__(self) -> Iterator[range]:
        for numbers in _ranges(*self.arguments):
            yield _part(numbers, self.part)


def batches(
    source: Source,
    seed: int,
    start: int,
    stop: int,
    batch: int,
    workers: int = 0,
    refused: Callable[[Refused, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Whole batches of samples start, start + 1, ... until `stop` is reached or passed.

    Sets in memory use no workers. A run that is made longer is then the same as one that was long
    from the beginning.
    `refused` hears of every unreadable file, and up to which sample number its batch goes.
    Of every batch comes the i-th of n equal parts, for `part` = (i, n), in which n divides `batch`.
    """
    if source.in_memory:
        workers = 0
    loader: DataLoader[Rows | InputError] = DataLoader(
        _Numbered(source, seed),
        sampler=_Ranges(start, stop, batch, part),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        collate_fn=_Whole(),
        worker_init_fn=_leave_interrupts,
    )
    for whole, rows in zip(_ranges(start, stop, batch), loader, strict=True):
        if isinstance(rows, InputError):
            raise rows
        if refused is not None:
            for file in rows.refused:
                refused(file, whole.stop)
        numbers = _part(whole, part)
        yield to_batch(rows, torch.arange(numbers.start, numbers.stop), source.spec, seed)
