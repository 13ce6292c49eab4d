"""Captions as features: each is encoded once, kept on the disk, and looked up from there.

What is kept lies in `cache`/vFORMAT-DIGEST-LENGTH-PRECISION, in parts that are complete or absent
and never change: `tokens.npy` (those of all its captions one after the other) and `pooled.npy`,
which are mapped and not read whole, `keys.npy` (a hash of every caption), `ends.npy` (where its
tokens end), `cut.npy` (whether it was longer) and `facts.json`. Any number of processes may add
parts.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.data.prompts import captions_of
from pointillist.data.source import Source
from pointillist.engine.checkpoint import write_atomically
from pointillist.engine.device import DeviceName, is_out_of_memory, pick_device
from pointillist.engine.session import locked
from pointillist.frozen.text import Features, TextEncoder, check_length, plain, promise
from pointillist.types import InputError, Spec, Words, config

FORMAT = 1
PORTION = 16_384  # captions to a part: what an interruption loses at most
AT_ONCE = 64
EIGHT = 8  # texts are as long as a multiple of this, so that few lengths are ever compiled
Watch = Callable[[int, int], None]


@config
class TextConfig:
    """How captions are read: `encoder` is `minilm`, the folder or hub id of one, or none.

    A caption becomes at most `length` tokens, which are kept below `cache` in `precision`: float16
    is off by at most 2^-11 of each number. With `verify` a trained run is sampled and resumed with
    the weights alone that it was trained with; without it others of the same width are taken.
    `device` encodes.
    """

    encoder: str = "none"
    length: int = 77
    cache: str = "data/text"
    precision: Literal["float32", "float16"] = "float16"
    verify: bool = True
    device: DeviceName = "auto"

    def __post_init__(self) -> None:
        if not self.encoder:
            raise InputError(
                "text.encoder is empty; give minilm, the folder or hub id of an encoder, or none"
            )
        if self.length < 1:
            raise InputError(f"text.length is {self.length}; it must be 1 or more")
        if not self.cache:
            raise InputError("text.cache is empty; name a folder")

    def promise(self) -> Words | None:
        """What captions will be, of the encoder's configuration alone; None without one."""
        if self.encoder == "none":
            return None
        found = promise(self.encoder)
        check_length(self.encoder, self.length, found)
        return Words(width=found.width, length=self.length)

    def open(self, device: torch.device, keep: bool = False) -> "Reader":
        """A reader, on `device` unless the configuration names one; `keep`: on the disk."""
        place = device if self.device == "auto" else pick_device(self.device)
        return Reader(self, place, Path(self.cache).expanduser() if keep else None)


def worded(text: TextConfig, spec: Spec) -> Spec:
    """The promise of data whose captions are read as `text` says; nobody opens weights for it.

    Who reads captions is told no classes: a prompt says what a picture is to show.
    """
    words = text.promise()
    return spec if words is None else dataclasses.replace(spec, words=words, classes=())


def check_same_words(text: TextConfig, kept: Words | None, now: Words | None) -> None:
    """InputError unless the encoder, of which `now` tells, is the one that a run was trained with.

    A digest that is "" tells nothing.
    """
    name = text.encoder
    if kept is None or now is None:
        if kept is not now:
            had, has = ("captions" if words else "no captions" for words in (kept, now))
            raise InputError(
                f"text.encoder is {name}, which reads {has}, but the run was trained with {had}; "
                f"set the encoder that it was trained with"
            )
        return
    for what in ("width", "length"):
        ours, theirs = getattr(kept, what), getattr(now, what)
        if ours != theirs:
            remedy = "give the encoder that it was trained with"
            remedy = f"set text.length={ours}" if what == "length" else remedy
            raise InputError(
                f"text.encoder {name} has {what} {theirs}, but the run was trained with {ours}; "
                f"{remedy}"
            )
    if text.verify and kept.digest and now.digest and kept.digest != now.digest:
        raise InputError(
            f"text.encoder {name} has other weights, another configuration or another tokenizer "
            f"than the one that the run was trained with; give that one, or set "
            f"text.verify=false (for a run that is trained: in its run.yaml) to take it all the "
            f"same"
        )


class Part(NamedTuple):
    """Features of n captions: tokens of all of them, where those of each end, one vector each."""

    tokens: Any  # n d
    ends: np.ndarray
    pooled: Any  # n d
    cut: np.ndarray

    def at(self, row: int) -> tuple[int, int]:
        return (int(self.ends[row - 1]) if row else 0), int(self.ends[row])


class Shelf:
    """Features of some captions on one device, where they were sent at once; call it with any."""

    def __init__(
        self, flat: Float[Tensor, "n d"], pooled: Float[Tensor, "k d"], spans: dict[str, range],
        longest: int,
    ) -> None:  # fmt: skip
        self.flat, self.pooled, self.spans, self.longest = flat, pooled, spans, longest
        self.row = {caption: i for i, caption in enumerate(spans)}

    def __call__(self, captions: Sequence[str]) -> Features:
        """As long as the longest of them, rounded up to a multiple of 8 where there is room."""
        spans, device = [self.spans[caption] for caption in captions], self.flat.device
        lengths = torch.tensor([len(span) for span in spans])
        first = torch.tensor([span.start for span in spans])
        room = min(-(-int(lengths.max()) // EIGHT) * EIGHT, self.longest)
        place = torch.arange(room)
        mask = place < lengths[:, None]
        index = torch.where(mask, first[:, None] + place, 0).to(device)
        rows = torch.tensor([self.row[caption] for caption in captions]).to(device)
        mask = mask.to(device)
        text = self.flat[index].float() * mask[:, :, None]
        return Features(text, mask, self.pooled[rows].float())


class Reader:
    """Captions to features: looked up where they were encoded before, else encoded and kept.

    `folder`: kept on the disk below it, for every run with that encoder; None: in memory alone.
    """

    def __init__(self, text: TextConfig, device: torch.device, folder: Path | None) -> None:
        self.text, self.device = text, device
        with _fitting(text.encoder, device):
            self.encoder: TextEncoder | None = TextEncoder(text.encoder, text.length, device)
        digest = self.encoder.digest
        self.words = Words(width=self.encoder.width, length=text.length, digest=digest)
        name = f"v{FORMAT}-{digest[:16]}-{text.length}-{text.precision}"
        self.folder = None if folder is None else folder / name
        self.parts: list[Part] = []
        self.known: set[str] = set()  # names of parts that were read
        self.at: dict[bytes, tuple[int, int]] = {}

    def opened(self) -> TextEncoder:
        if self.encoder is None:
            with _fitting(self.text.encoder, self.device):
                again = TextEncoder(self.text.encoder, self.text.length, self.device)
            if again.digest != self.words.digest:
                raise InputError(
                    f"text.encoder {self.text.encoder} was changed while it was in use: its files "
                    f"are others than at the start; begin again"
                )
            self.encoder = again
        return self.encoder

    def rest(self) -> None:
        """Let the encoder's memory go; it is opened again where it is needed."""
        self.encoder = None

    def keep(self, captions: Iterable[str], watch: Watch | None = None) -> None:
        """Encode those that are not kept yet; `watch` hears how many of how many."""
        wanted = {key(caption): caption for caption in captions}
        if self._missing(wanted):
            self._scan()  # all may be there, perhaps where nobody may write
        if not self._missing(wanted):
            return
        lock: Any = contextlib.nullcontext()
        if self.folder is not None:  # who comes second finds them finished
            lock = locked(self.folder, wait=True)
        with lock:
            self._scan()
            missing = self._missing(wanted)
            done, total = 0, len(missing)
            for some in _portions(missing, PORTION):

                def hear(number: int, before: int = done) -> None:
                    if watch is not None:
                        watch(before + number, total)

                self._add(some, hear)
                done += len(some)

    def _missing(self, wanted: dict[bytes, str]) -> list[str]:
        return [caption for name, caption in wanted.items() if name not in self.at]

    def take(self, captions: Iterable[str], device: torch.device) -> Shelf:
        """Features of all of them on `device`, in one transfer; encoded now where they must be."""
        each = list(dict.fromkeys(captions))
        self.keep(each)
        tokens, pooled, spans, first = [], [], dict[str, range](), 0
        for caption in each:
            number, row = self.at[key(caption)]
            part = self.parts[number]
            begin, end = part.at(row)
            tokens.append(part.tokens[begin:end])
            pooled.append(part.pooled[row])
            spans[caption] = range(first, first + end - begin)
            first += end - begin
        flat, one = np.concatenate(tokens), np.stack(pooled)  # copies: the map is read only
        return Shelf(torch.from_numpy(flat).to(device), torch.from_numpy(one).to(device), spans,
                     self.words.length)  # fmt: skip

    def cut(self, captions: Iterable[str]) -> int:
        """How many of these, which are kept, were longer than `length` tokens."""
        rows = [self.at[key(caption)] for caption in captions]
        return sum(bool(self.parts[number].cut[row]) for number, row in rows)

    # What is kept.

    def _add(self, captions: Sequence[str], hear: Callable[[int], None]) -> None:
        keys = np.frombuffer(b"".join(map(key, captions)), np.uint8).reshape(-1, 16)
        if self.folder is None:
            self._enter(keys, self._encode(captions, hear, lambda name, *made: np.empty(*made)))
            return
        facts = {**self._facts(), "captions": len(captions)}

        def write(draft: Path) -> None:
            draft.mkdir()

            def room(name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
                path = draft / f"{name}.npy"
                return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)

            part = self._encode(captions, hear, room)
            part.tokens.flush()
            part.pooled.flush()
            for name, value in {"keys": keys, "ends": part.ends, "cut": part.cut}.items():
                np.save(draft / f"{name}.npy", value)
            (draft / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

        name = f"part-{hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()}"
        write_atomically(self.folder / name, write)
        self._read(self.folder / name)

    def _encode(
        self, captions: Sequence[str], hear: Callable[[int], None], room: Callable[..., Any]
    ) -> Part:
        """Features, written into `room(name, shape, kind)` in the precision that they are kept in.

        Captions of like length come together, so that what is encoded at once is little padded.
        """
        encoder, kind = self.opened(), np.dtype(self.text.precision)
        ids, cut = encoder.tokens(captions)
        ends = np.cumsum([len(row) for row in ids], dtype=np.int64)
        tokens = room("tokens", (int(ends[-1]), encoder.width), kind)
        pooled = room("pooled", (len(captions), encoder.width), kind)
        part, done = Part(tokens, ends, pooled, np.array(cut, bool)), 0
        order = sorted(range(len(captions)), key=lambda i: len(ids[i]))
        for some in _portions(order, AT_ONCE):
            with _fitting(self.text.encoder, self.device):
                found = encoder([captions[i] for i in some])
            both = found.text.cpu().numpy(), found.pooled.cpu().numpy()
            with np.errstate(over="ignore"):
                text, one = (value.astype(kind) for value in both)
            if not (np.isfinite(text).all() and np.isfinite(one).all()):
                raise InputError(
                    f"text.encoder {self.text.encoder} gives features that {kind.name} cannot "
                    f"hold; set text.precision=float32, or give another"
                )
            pooled[list(some)] = one
            for place, i in enumerate(some):
                first, last = part.at(i)
                tokens[first:last] = text[place, : last - first]
            done += len(some)
            hear(done)
        return part

    def _enter(self, keys: np.ndarray, part: Part) -> None:
        number = len(self.parts)
        self.parts.append(part)
        self.at.update({one.tobytes(): (number, row) for row, one in enumerate(keys)})

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "encoder": self.words.digest, "length": self.words.length,
            "width": self.words.width, "precision": self.text.precision,
        }  # fmt: skip

    def _scan(self) -> None:
        """Read the parts that are there and were not."""
        if self.folder is not None:
            for path in sorted(self.folder.glob("part-*")):
                if path.name not in self.known:
                    self._read(path)

    def _read(self, path: Path) -> None:
        try:
            facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
            keys, ends, cut = (np.load(path / f"{name}.npy") for name in ("keys", "ends", "cut"))
            tokens, pooled = (
                np.load(path / f"{name}.npy", mmap_mode="r") for name in ("tokens", "pooled")
            )
            n, width = facts["captions"], self.words.width
            whole = (
                all(facts[name] == value for name, value in self._facts().items())
                and (keys.shape, ends.shape, cut.shape) == ((n, 16), (n,), (n,))
                and (tokens.shape, pooled.shape) == ((int(ends[-1]), width), (n, width))
                and tokens.dtype == pooled.dtype == np.dtype(self.text.precision)
                and bool((np.diff(ends, prepend=0) > 0).all())
            )
        except (OSError, ValueError, EOFError, LookupError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise InputError(f"{path} is damaged; delete it, and it is made again")
        self.known.add(path.name)
        self._enter(keys, Part(tokens, ends, pooled, cut))


@contextlib.contextmanager
def _fitting(name: str, device: torch.device) -> Iterator[None]:
    """Says what helps where an encoder and its answers do not fit into the memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        elsewhere = "give a smaller one" if device.type == "cpu" else "set text.device=cpu"
        raise InputError(
            f"text.encoder {name} does not fit into the memory of {device}; {elsewhere}"
        ) from None


def key(caption: str) -> bytes:
    """What a caption is kept by."""
    return hashlib.blake2b(plain(caption).encode(), digest_size=16).digest()


def _portions(values: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (values[first : first + size] for first in range(0, len(values), size))


# Of whole sets.


def read_all(
    reader: Reader, sources: Sequence[Source], watch: Watch | None = None, more: Sequence[str] = ()
) -> dict[str, int]:
    """Encode every caption of these sets, the empty one and `more`, and let the encoder go.

    How many there are, how many were cut, and how many samples have none.
    """
    each = [captions_of(source) for source in sources]
    samples = list(itertools.chain(*each))
    captions = dict.fromkeys(["", *itertools.chain(*samples)])
    reader.keep(dict.fromkeys([*captions, *more]), watch or show)
    reader.rest()
    return {
        "captions": len(captions) - 1,
        "cut": reader.cut(captions),
        "missing": sum(not any(sample) for sample in samples),
    }


def show(done: int, total: int) -> None:
    """One line that moves, to a person; a pipe gets nothing."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rencoding captions: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)
