"""Samples in their order, as batches: a function of the seed and the running sample number alone.

Sample number n is place n mod N of epoch n div N, where N is what an epoch uses, and every epoch
has its own order. How many workers decode changes nothing, nor, but for sets in buckets, how large
the batches are: there a batch holds pictures of one bucket (`buckets.py`).
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pointillist.data.buckets import Plan, Slot
from pointillist.data.report import Refused
from pointillist.data.source import Bucketed, Rows, Source
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


class Ranges:
    """The batches of a set of one shape: `batch` samples each, whatever epochs they belong to."""

    def __init__(self, seed: int, rows: int, batch: int) -> None:
        self.order, self.batch = Order(seed, rows), batch
        self.rows = self.used = rows  # of the set, and of an epoch

    def slots(self, start: int, stop: int, part: tuple[int, int] = (0, 1)) -> Iterator[Slot]:
        """Batches from sample `start` on until `stop` is reached or passed; of each the i-th of n
        equal parts, for `part` = (i, n).
        """
        place, share = part[0], self.batch // part[1]
        for first in range(start, stop, self.batch):
            numbers = range(first + place * share, first + (place + 1) * share)
            yield Slot(first, self.batch, tuple(numbers), tuple(self.order(numbers)))

    def before(self, images: int) -> int:
        """The first sample of the batch that ends with sample `images` - 1."""
        return images - self.batch


def plan_of(source: Source, seed: int, batch: int) -> Plan | Ranges:
    """Which rows make which batch of `batch` samples at most."""
    if isinstance(source, Bucketed):
        return Plan(source.buckets, seed, batch, source.policy)
    return Ranges(seed, len(source), batch)


class _Rows(Dataset[tuple[Slot, Rows | InputError]]):
    """Rows by the slot that they fill; a source in a worker is a copy of this one."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, slot: Slot) -> tuple[Slot, Rows | InputError]:
        try:
            if slot.counts is None:
                return slot, self.source.rows(slot.rows)
            once = list(dict.fromkeys(slot.rows))
            return slot, _taken(self.source.rows(once), [once.index(row) for row in slot.rows])
        except InputError as error:
            return slot, error  # raised in a worker, torch would wrap it into a traceback


def _taken(rows: Rows, at: list[int]) -> Rows:
    """Some rows, by their place, as often as they are named."""
    parts: Any = {name: v[at] for name, v in rows._asdict().items() if isinstance(v, Tensor)}
    caption = None if rows.caption is None else tuple(rows.caption[i] for i in at)
    return rows._replace(**parts, caption=caption)


class _Whole:
    """The rows as they are: torch's own collation knows neither None nor captions."""

    def __call__(self, rows: Any) -> Any:
        return rows


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C, and torchrun's word to end, reach the workers too; the training process answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Slots(torch.utils.data.Sampler[Any]):
    def __init__(self, plan: Plan | Ranges, *asked: Any) -> None:
        self.plan, self.asked = plan, asked

    def __iter__(self) -> Iterator[Slot]:
        return self.plan.slots(*self.asked)


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
    from the beginning. Of a set in buckets `start` is where a batch of the plan begins.
    `refused` hears of every unreadable file, and up to which sample number its batch goes.
    Of every batch comes the i-th of n equal parts, for `part` = (i, n), in which n divides `batch`.
    """
    if source.in_memory:
        workers = 0
    plan = plan_of(source, seed, batch)
    if isinstance(source, Bucketed) and isinstance(plan, Plan):
        source = source.at(plan.buckets)
    loader: DataLoader[tuple[Slot, Rows | InputError]] = DataLoader(
        _Rows(source),
        sampler=_Slots(plan, start, stop, part),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        collate_fn=_Whole(),
        worker_init_fn=_leave_interrupts,
    )
    for slot, rows in loader:
        if isinstance(rows, InputError):
            raise rows
        if refused is not None:
            for file in rows.refused:
                refused(file, slot.first + slot.size)
        rows = rows._replace(row=torch.tensor(slot.rows))
        found = to_batch(rows, torch.tensor(slot.numbers), source.spec, seed)
        counts = None if slot.counts is None else torch.tensor(slot.counts)
        yield found._replace(counts=counts)
