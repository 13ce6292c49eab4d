"""Latents of any set of pictures: a frozen autoencoder encodes each once, and they are kept.

What is kept lies in `cache`/train and `cache`/test, each complete or absent: `latents.npy`, which
is mapped and not read whole, `labels.npy` and `facts.json`, which says what they were made of.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.data.archive import ZipConfig
from pointillist.data.cifar10 import CIFAR10Config
from pointillist.data.emoji import EmojiConfig
from pointillist.data.folder import FolderConfig
from pointillist.data.loader import to_batch
from pointillist.data.report import Refused, Report, check, lines
from pointillist.data.source import Rows, Source
from pointillist.engine.checkpoint import write_atomically
from pointillist.engine.device import DeviceName, pick_device
from pointillist.engine.session import locked
from pointillist.frozen.autoencoder import OVERLAP, Autoencoder, Coding, open_autoencoder, promise
from pointillist.types import Code, InputError, Spec, by_kind, config, grid_axes

Split = Literal["train", "test"]
Pictures = Annotated[EmojiConfig | CIFAR10Config | FolderConfig | ZipConfig, by_kind]
Watch = Callable[[int, int], None]

FORMAT = 1
PORTION = 64  # pictures that are read together
FIELD = re.compile(r"\bdata\.(?=(path|size|fit|enlarge|channels|classes|test_share|kind)\b)")
DAMAGED = "delete it, and it is made again"


@config
class LatentConfig:
    """`of` has the pictures, `autoencoder` is the folder or hub id of an AutoencoderKL, or identity
    for none: pixels stay what they are.

    A latent is the mean of what the encoder answers, or with `sampled` drawn from it anew in every
    epoch. `flip` encodes every picture turned round too, as `augment.flip` needs it. Pictures with
    an edge above `tile` pixels (0: none) are encoded and decoded in tiles. `device` encodes.
    """

    kind: Literal["latent"] = "latent"
    of: Pictures = EmojiConfig()
    autoencoder: str = ""
    cache: str = "data/latents"
    sampled: bool = False
    flip: bool = False
    tile: int = 1024
    precision: Literal["float32", "float16"] = "float32"
    device: DeviceName = "auto"

    def __post_init__(self) -> None:
        if self.tile < 0:
            raise InputError(f"data.tile is {self.tile}; it is an edge in pixels, or 0 for none")
        if getattr(self.of, "buckets", None) is not None:
            raise InputError(
                "data.of.buckets is set, but latents of a set have one size; set "
                "data.of.buckets=null"
            )
        if not self.identity:
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("kind", "of", "autoencoder") and value != field.default:
                raise InputError(
                    f"data.{field.name} is {value}, but data.autoencoder is identity, so nothing "
                    f"is encoded; leave it out"
                )

    @property
    def identity(self) -> bool:
        return self.autoencoder == "identity"

    def promise(self) -> Spec:
        """What the set will be, of the autoencoder's configuration alone."""
        with _of():
            pictures = self.of.promise()
        return pictures if self.identity else self.spec_of(pictures, promise(self.autoencoder))

    def spec_of(self, pictures: Spec, coding: Coding, digest: str = "") -> Spec:
        """The latents of such pictures; InputError where the autoencoder cannot have them."""
        factor, size = coding.factor, "x".join(map(str, pictures.size))
        if pictures.channels != coding.channels:
            raise InputError(
                f"data.autoencoder {self.autoencoder} takes {coding.channels} channels, and "
                f"data.of has {pictures.channels}; set data.of.channels={coding.channels}"
            )
        if any(n % factor for n in pictures.size):
            near = "x".join(str(max(n // factor, 1) * factor) for n in pictures.size)
            raise InputError(
                f"data.of.size is {size}, no multiple of {factor}, the factor of data.autoencoder "
                f"{self.autoencoder}; {near} would do"
            )
        if self.tile % factor or 0 < self.tile < OVERLAP * factor:
            raise InputError(
                f"data.tile is {self.tile}; with data.autoencoder {self.autoencoder} it is a "
                f"multiple of {factor}, {OVERLAP * factor} or more, or 0 for none"
            )
        return dataclasses.replace(
            pictures, channels=coding.latents, unit="latent", bounded=False,
            axes=grid_axes(tuple(n // factor for n in pictures.size)),
            offset=coding.offset, scale=coding.scale,
            code=Code(factor=factor, channels=coding.channels, digest=digest),
        )  # fmt: skip

    def open(self, split: Split, watch: Watch | None = None) -> Source:
        """The split's latents, encoded now where they are not kept yet; `watch` hears how many.

        InputError where latents of anything else are kept there.
        """
        if self.identity:
            with _of():
                return self.of.open(split)
        coder = open_autoencoder(self.autoencoder, pick_device(self.device))
        with _of():
            source = self.of.open(split)
        spec = self.spec_of(source.spec, coder.coding, coder.digest)
        folder = self.folder(split)
        facts = self._facts(source, spec)
        if not folder.exists():
            # Who comes second finds it finished.
            with locked(folder.parent, wait=True, name=".latents.lock"):
                if not folder.exists():
                    encode(self, coder, source, spec, facts, folder, watch or show)
        return Latents(folder, self, spec, facts)

    def folder(self, split: str) -> Path:
        return Path(self.cache).expanduser() / split

    def examine(self) -> Report:
        """The pictures as they are reported themselves, then what is made of them."""
        spec = self.promise()  # what cannot be encoded is refused before it is walked
        with _of():
            found = check(self.of)
        if self.identity:
            return found
        size = "x".join(map(str, spec.size))
        flips = ", and as many of pictures turned round" if self.flip else ""
        text = [*lines(found), f"latents of {spec.channels} x {size} by {self.autoencoder}{flips}"]
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            folder = self.folder(split)
            if folder.exists():
                text.append(f"{split}: {len(self.open(split))} are kept in {folder}")
            else:
                text.append(f"{split}: none are kept in {folder} yet, the first run makes them")
        return dataclasses.replace(found, spec=spec, text=tuple(text))

    def _facts(self, source: Source, spec: Spec) -> dict[str, Any]:
        """All that what is kept depends on; `open` refuses what was made of anything else."""
        assert spec.code is not None
        return {
            "format": FORMAT, "data": source.spec.fingerprint, "autoencoder": spec.code.digest,
            "samples": len(source), "size": list(spec.size), "tile": self.tile,
            "sampled": self.sampled, "flip": self.flip, "precision": self.precision,
        }  # fmt: skip


def pictures_of(data: Any) -> Any:
    """The configuration of the pictures that a data set shows: of latents those behind them."""
    return data.of if isinstance(data, LatentConfig) else data


@contextlib.contextmanager
def _of() -> Iterator[None]:
    """What the inner set says of its fields, by the names that they have here."""
    try:
        yield
    except InputError as error:
        raise InputError(FIELD.sub("data.of.", str(error))) from None


def show(done: int, total: int) -> None:
    """One line that moves, to a person; a pipe gets nothing."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rencoding pictures: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)


# Encoding.


def encode(
    config: LatentConfig, coder: Autoencoder, source: Source, spec: Spec, facts: dict[str, Any],
    folder: Path, watch: Watch,
) -> None:  # fmt: skip
    """Encode every picture of `source` into `folder`, complete or absent.

    The array is `n f c h w`: f is 2 where pictures turned round follow, c is doubled where
    deviations follow the means.
    """
    n, flips, both = len(source), 1 + config.flip, 1 + config.sampled
    shape = (n, flips, spec.channels * both, *spec.size)
    label = np.full(n, -1, np.int64)
    captions: list[tuple[str, ...]] = []
    refused: list[Refused] = []

    def write(draft: Path) -> None:
        draft.mkdir()
        kept = np.lib.format.open_memmap(
            draft / "latents.npy", mode="w+", dtype=config.precision, shape=shape
        )
        for numbers, rows in _read(source):
            x = to_batch(rows, torch.tensor(numbers), source.spec).x
            turns = (x, x.flip(-1)) if config.flip else (x,)
            made = torch.stack([coder.encode(turn, config.tile) for turn in turns], 1)
            made = made[:, :, : shape[2]].to(getattr(torch, config.precision))
            if not made.isfinite().all():
                raise InputError(
                    f"data.autoencoder {config.autoencoder} gives latents that {config.precision} "
                    f"cannot hold; set data.precision=float32, or give another"
                )
            part = slice(numbers[0], numbers[-1] + 1)
            kept[part] = made.numpy()
            if rows.label is not None:
                label[part] = rows.label.numpy()
            captions.extend(rows.caption or ())
            refused.extend(rows.refused)
            watch(numbers[-1] + 1, n)
        kept.flush()
        np.save(draft / "labels.npy", label)
        told = {**facts, "captions": captions, "refused": [list(one) for one in refused]}
        (draft / "facts.json").write_text(json.dumps(told), encoding="utf-8")

    write_atomically(folder, write)


def _read(source: Source) -> Iterator[tuple[range, Rows]]:
    """All rows in portions; files are decoded by threads, as decoders release Python's lock."""
    portions = [range(i, min(i + PORTION, len(source))) for i in range(0, len(source), PORTION)]
    if source.in_memory:
        yield from ((numbers, source.rows(numbers)) for numbers in portions)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for numbers in portions:
            each = list(pool.map(source.rows, [[number] for number in numbers]))
            labels = [one.label for one in each if one.label is not None]
            yield (
                numbers,
                Rows(
                    torch.cat([one.x for one in each]),
                    torch.cat(labels) if labels else None,
                    tuple(c for one in each for c in one.caption or ()) or None,
                    tuple(r for one in each for r in one.refused),
                ),
            )


# What is kept.


class Latents:
    """Latents that are kept, mapped from the disk."""

    in_memory = True  # a row is copied out of the map: no worker would be faster

    def __init__(
        self, folder: Path, config: LatentConfig, spec: Spec, facts: dict[str, Any]
    ) -> None:
        told = _told(folder)
        for name, wanted in facts.items():
            if told.get(name) != wanted:
                raise InputError(f"{folder} {_differs(name, told.get(name), wanted, config)}; "
                                 f"delete it, or set another data.cache")  # fmt: skip
        n, both = facts["samples"], 1 + config.sampled
        shape = (n, 1 + config.flip, spec.channels * both, *spec.size)
        try:
            self.kept = np.load(folder / "latents.npy", mmap_mode="r")
            label = np.load(folder / "labels.npy")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{folder} is damaged ({error}); {DAMAGED}") from None
        if self.kept.shape != shape or label.shape != (n,):
            raise InputError(f"{folder} is damaged (latents.npy has shape {self.kept.shape}, "
                             f"labels.npy {label.shape}); {DAMAGED}")  # fmt: skip
        self.config, self.channels = config, spec.channels
        self.label = torch.from_numpy(label) if spec.classes else None
        self.caption = tuple(map(tuple, told["captions"])) if spec.captions else None
        self.refused = tuple(Refused(*one) for one in told["refused"])
        made = json.dumps(facts, sort_keys=True).encode()
        self.spec = dataclasses.replace(
            spec, samples=n, fingerprint=hashlib.blake2b(made, digest_size=16).hexdigest()
        )

    def __len__(self) -> int:
        return self.kept.shape[0]

    def rows(self, rows: Sequence[int]) -> Rows:
        at = list(rows)
        # The map is read only; a copy is not, and torch asks for that.
        x = torch.from_numpy(np.array(self.kept[at]))
        label = None if self.label is None else self.label[at]
        caption = None if self.caption is None else tuple(self.caption[i] for i in at)
        c, turned, sampled = self.channels, self.config.flip, self.config.sampled
        return Rows(
            x[:, 0, :c], label, caption,
            spread=x[:, 0, c:] if sampled else None,
            mirrored=x[:, 1, :c] if turned else None,
            mirrored_spread=x[:, 1, c:] if turned and sampled else None,
        )  # fmt: skip


def _told(folder: Path) -> dict[str, Any]:
    """What `facts.json` says."""
    path = folder / "facts.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(told["captions"], list) and isinstance(told["refused"], list)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{path} is missing or damaged; delete {folder}, and it is made again")
    return told


def _differs(name: str, kept: Any, wanted: Any, config: LatentConfig) -> str:
    if name in ("data", "samples", "size"):
        return f"holds latents of other data than data.of, kind {config.of.kind}"
    if name == "autoencoder":
        return f"holds latents of another autoencoder than data.autoencoder {config.autoencoder}"
    return f"holds latents with {name} {kept}, and data.{name} is {wanted}"


# Decoding.


def check_same_code(kept: Spec, now: Spec, name: str) -> None:
    """InputError unless the autoencoder `name`, of which `now` tells, is the one of the run."""
    assert kept.code is not None and now.code is not None
    told = {
        "factor": (kept.code.factor, now.code.factor),
        "latent channels": (kept.channels, now.channels),
        "picture channels": (kept.code.channels, now.code.channels),
        "scaling factor": (_inverse(kept.scale), _inverse(now.scale)),
        "offset": (kept.offset, now.offset),
    }
    for what, (ours, theirs) in told.items():
        if ours != theirs:
            ours, theirs = (_plain(value) for value in (ours, theirs))
            raise InputError(
                f"data.autoencoder {name} has {what} {theirs}, but the run's latents have {ours}; "
                f"give the one that the run was trained with"
            )
    if kept.code.digest and kept.code.digest != now.code.digest:
        raise InputError(
            f"data.autoencoder {name} has other weights than the one that the run was trained "
            f"with; give that one"
        )


def _inverse(scale: tuple[float, ...]) -> tuple[float, ...]:
    """What autoencoders state: the factor that takes latents to the network's units."""
    return tuple(1 / value for value in scale)


def _plain(value: Any) -> str:
    """A number, or one for every channel where they are not the same."""
    if not isinstance(value, tuple):
        return str(value)
    return ", ".join(f"{v:g}" for v in (value if len(set(value)) > 1 else value[:1]))


def decoder_of(data: Any, spec: Spec, device: torch.device) -> Autoencoder:
    """The autoencoder of a run of latents, loaded once; InputError where it is another."""
    assert spec.code is not None
    name = getattr(data, "autoencoder", "")
    coder = open_autoencoder(name, device)
    coding = coder.coding
    now = dataclasses.replace(
        spec, channels=coding.latents, offset=coding.offset, scale=coding.scale,
        code=Code(factor=coding.factor, channels=coding.channels, digest=coder.digest),
    )  # fmt: skip
    check_same_code(spec, now, name)
    return coder


def decoded(
    data: Any, spec: Spec, x: Float[Tensor, "b c h w"], device: torch.device
) -> Float[Tensor, "b cx hx wx"]:
    """Pictures in [-1, 1] of latents in the network's units."""
    shape = (1, -1, 1, 1)
    offset = torch.tensor(spec.offset, device=x.device).view(shape)
    scale = torch.tensor(spec.scale, device=x.device).view(shape)
    coder = decoder_of(data, spec, device)
    return coder.decode(x.float() * scale + offset, getattr(data, "tile", 0))
