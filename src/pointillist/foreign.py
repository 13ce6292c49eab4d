"""Checkpoints that other programs wrote: the one door at which a pickle is opened, and none is run.

`.safetensors` holds tensors and nothing else. The other endings are torch's zip files, whose index
is a pickle; torch reads it as "weights only", building tensors, plain containers and whatever else
is named here, and refusing all other classes and functions before anything is called. Tensors stay
in the file and are mapped into memory, so that opening costs nothing and averages that nobody asks
for are never read.
"""

import argparse
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pointillist.types import InputError

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
# A training checkpoint holds weights, two averages and two moments: JiT-G's, the largest published
# here, is 40 GB. Beyond the other bounds it is no checkpoint of ours but a strain on the machine.
LARGEST_FILE = 64 << 30
LARGEST_INDEX = 64 << 20
LARGEST_SET = 16 << 30  # bytes of one set of weights in float32
MOST_TENSORS = 20_000
# The number with which torch's older container begins, which is no zip and cannot be mapped.
OLDER_FORM = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
NEWEST_PROTOCOL = 3  # of pickle, that torch's weights-only reader knows
# What that reader may call, and what makes as much memory as a number in the index says.
OUT_OF_NUMBERS = re.compile(r"bytearray|_rebuild_qtensor|\w*Tensor")

Weights = dict[str, Tensor]


class Foreign(NamedTuple):
    """A file's content: each set by its names, with the decay of its average (None: the weights
    themselves), and the arguments of the training that wrote it, where it kept them.

    Whether the names stand for weights is not asked yet (`plain` does): that they are another
    network's is the better thing to say.
    """

    sets: list[tuple[float | None, dict[str, Any]]]
    arguments: dict[str, Any]


# Where published training code keeps its averages: the argument that names the decay, and the
# decay that the published runs have where a file does not say.
AVERAGES = {
    "model_ema1": ("ema_decay1", 0.9999),  # JiT
    "model_ema2": ("ema_decay2", 0.9996),
    "ema": ("ema_decay", 0.9999),  # DiT, whose decay is written into its training loop
}
# Lightning keeps one flat mapping, with the module's attribute before every name.
LIGHTNING = {"denoiser.": None, "ema_denoiser.": 0.9999}
WRAPPERS = ("module.", "_orig_mod.")  # what torch's data parallel and compile put before names


def open_foreign(path: Path) -> Foreign:
    """The sets of weights in a file; InputError names what is wrong with it."""
    content = read_content(path)
    arguments = content.get("args")
    if type(arguments) is argparse.Namespace:
        arguments = vars(arguments)
    arguments = arguments if isinstance(arguments, dict) else {}
    sets: list[tuple[float | None, dict[str, Any]]] = []
    if isinstance(content.get("state_dict"), Mapping):
        sets = _by_prefix(content["state_dict"], path)
    elif isinstance(content.get("model"), Mapping) or any(
        isinstance(content.get(name), Mapping) for name in AVERAGES
    ):
        if isinstance(content.get("model"), Mapping):
            sets.append((None, named(content["model"], path)))
        for name, (argument, published) in AVERAGES.items():
            if not isinstance(content.get(name), Mapping):
                continue
            decay = _decay(arguments.get(argument), argument, published, path)
            if decay not in [d for d, _ in sets]:
                sets.append((decay, named(content[name], path)))
    else:
        sets = _by_prefix(content, path)
    return Foreign(sets, arguments)


def _decay(said: Any, argument: str, published: float, path: Path) -> float:
    if type(said) not in (int, float):
        return published
    if not 0 <= said < 1:
        raise InputError(f"{path}: its argument {argument} is {str(said)[:20]}, but the decay of "
                         f"an average lies in [0, 1); re-save its weights alone")  # fmt: skip
    return float(said)


def _by_prefix(state: Mapping[Any, Any], path: Path) -> list[tuple[float | None, dict[str, Any]]]:
    """The networks of a Lightning module, one a prefix; any other mapping is one set as it is."""
    names = unwrapped(named(state, path), (*WRAPPERS, *WRAPPERS))
    sets: list[tuple[float | None, dict[str, Any]]] = []
    for prefix, decay in LIGHTNING.items():
        part = {name[len(prefix) :]: value
                for name, value in names.items() if name.startswith(prefix)}  # fmt: skip
        if part:
            sets.append((decay, part))
    return sets or [(None, names)]


def unwrapped(state: dict[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The mapping without the prefixes, taken in turn, that all of its names have."""
    for prefix in prefixes:
        if prefix and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


# Opening.


def read_content(path: Path) -> Mapping[Any, Any]:
    """What the file maps names to: tensors, or mappings of them, still in the file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the checkpoint file in it")
    if not path.is_file():
        raise InputError(f"{path} is not there; name a published checkpoint file")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; a checkpoint is one of "
                         f"{', '.join(SUFFIXES)}")  # fmt: skip
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path} is empty; fetch it again")
    if size > LARGEST_FILE:
        raise InputError(f"{path} has {size / 1e9:.1f} GB, more than any checkpoint of a model "
                         f"here; name another file")  # fmt: skip
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    _check_container(path)
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; a checkpoint is a mapping of "
                         f"names to weights")  # fmt: skip
    return content


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            if len(names) > MOST_TENSORS:
                raise InputError(f"{path} holds {len(names)} tensors; a checkpoint has at most "
                                 f"{MOST_TENSORS}")  # fmt: skip
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_damaged(path, error)) from None


def _check_container(path: Path) -> None:
    """InputError unless the file is a zip as torch.save writes it: stored, with a small index that
    asks for no memory of its own.
    """
    try:
        with path.open("rb") as file:
            _check_form(path, file.read(512))
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # By their last names: which of two would be read is not for us to guess.
            indexes = [m for m in members if m.filename.rpartition("/")[2] == "data.pkl"]
            script = any(m.filename.rpartition("/")[2] == "constants.pkl" for m in members)
            if len(indexes) != 1 or script:
                what = (
                    "a TorchScript file" if script else "a zip file that torch.save did not write"
                )
                raise InputError(f"{path} is {what}; name a checkpoint of weights")
            # A compressed member could unfold to any size, and cannot be mapped.
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            large = indexes[0].file_size > LARGEST_INDEX or len(members) > 8 * MOST_TENSORS
            if packed or large:
                what = "compressed" if packed else "far larger in its index than any checkpoint"
                raise InputError(f"{path} is {what}; re-save its weights alone with torch.save")
            _check_index(path, archive.read(indexes[0]))
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
        raise InputError(_damaged(path, error)) from None


def _check_form(path: Path, start: bytes) -> None:
    """InputError, with what to do, for containers that are known and are not read."""
    if start[:1] == b"\x80" and OLDER_FORM in start[:32]:
        raise InputError(
            f"{path} is in torch's form before 1.6, which cannot be mapped into memory; "
            f"re-save it: torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    if start[:1] == b"\x80":
        raise InputError(f"{path} is a bare pickle, which torch.save did not write; re-save its "
                         f"weights with torch.save if you trust who made it")  # fmt: skip
    if start[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive, torch's form before 0.4 or several files in "
                         f"one; unpack it, or re-save its weights with torch.save")  # fmt: skip
    if start[8:9] == b"{":
        raise InputError(f"{path} is a safetensors file by its content; name it .safetensors")


def _check_index(path: Path, index: bytes) -> None:
    """InputError for an index that the reader does not know, or that asks for more than it has."""
    argument: Any
    for operation, argument, _ in pickletools.genops(index):
        if operation.name == "PROTO" and argument > NEWEST_PROTOCOL:
            raise InputError(
                f"{path} is written in pickle protocol {argument}, which torch's weights-only "
                f"reader does not know; re-save its weights as .safetensors if you trust who made "
                f"it"
            )
        # Its argument is "module name"; a later protocol's way to say the same is not read above.
        if operation.name == "GLOBAL":
            module, _, name = argument.partition(" ")
            if OUT_OF_NUMBERS.fullmatch(name):
                raise InputError(_asks(path, f"{module}.{name}"))


def _read_torch(path: Path) -> Any:
    # JiT and DiT store the command line they were trained with. A Namespace is a bag of attributes:
    # it has no code that runs when it is built or filled, its values come from this same reader,
    # and what could be reached through one is a class or function that torch's own list has anyway.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a protocol that it reads all the same
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged or hostile index can make the reader raise anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, UnpicklingError) and asked:
            raise InputError(_asks(path, asked[1])) from None
        raise InputError(_damaged(path, error)) from None


def _asks(path: Path, name: str) -> str:
    return (f"{path} asks for {shown(name)} to be called while it is opened, which was not done; "
            f"re-save its weights alone as .safetensors if you trust who made it")  # fmt: skip


def _damaged(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}; mend that and try again"
    # torch's reader says at length how to switch it off before it says what was wrong.
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    why = ": ".join([type(error).__name__, *map(shown, said[:1])]).rstrip(".")
    return f"{path} cannot be read as a checkpoint ({why}); fetch it again"


# Weights.


def named(state: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """The mapping, once all its keys are names and not too many."""
    if len(state) > MOST_TENSORS:
        raise InputError(f"{path} holds {len(state)} tensors; a checkpoint has at most "
                         f"{MOST_TENSORS}")  # fmt: skip
    if not state:
        raise InputError(f"{path} holds no weights; name a published checkpoint file")
    odd = next((name for name in state if not isinstance(name, str)), None)
    if odd is not None:
        raise InputError(f"{path}: {shown(odd)} is no name; a checkpoint maps names to floating "
                         f"tensors")  # fmt: skip
    return dict(state)


def plain(state: dict[str, Any], path: Path) -> Weights:
    """The set as dense floating tensors that the file holds; InputError names the first entry that
    is anything else.
    """
    for name, value in state.items():
        what = _not_plain(value)
        if what:
            raise InputError(f"{path}: {shown(name)} is {what}; a checkpoint maps names to "
                             f"floating tensors")  # fmt: skip
    total = sum(4 * value.numel() for value in state.values())
    if total > LARGEST_SET:
        raise InputError(f"{path} holds {total / 1e9:.1f} GB of weights in one set, more than any "
                         f"model here; name another file")  # fmt: skip
    # One stored tensor under many names would unfold a small file to a run of any size.
    told, has = sum(value.nbytes for value in state.values()), path.stat().st_size
    if told > has:
        raise InputError(f"{path} names {told / 1e6:.1f} MB of weights, more than the file has; "
                         f"re-save each weight by itself")  # fmt: skip
    return {name: value.detach() for name, value in state.items()}


def _not_plain(value: Any) -> str:
    """What is wrong with a weight, "" where nothing is."""
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"of type {type(value).__name__}"
    if value.layout is not torch.strided or value.device.type != "cpu":
        return f"a {value.layout} tensor on {value.device}"
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"a tensor of {value.dtype}"
    # A stride of 0 makes a tensor of any size out of one number.
    if not 0 < value.numel() * value.element_size() <= value.untyped_storage().nbytes():
        return f"a tensor of shape {tuple(value.shape)} that the file does not hold"
    return ""


def shown(name: Any) -> str:
    """A name out of a foreign file, fit for one line."""
    if not isinstance(name, str):
        return f"a key of type {type(name).__name__}"
    return name[:80].encode("unicode_escape").decode()
