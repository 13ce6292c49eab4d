"""Checkpoints that other programs wrote: the one door at which a pickle is opened, and none is run.

`.safetensors` holds tensors and nothing else. The other endings are torch's zip files, whose index
is a pickle; torch reads it as "weights only", building tensors, plain containers and whatever else
is named here, and refusing all other classes and functions before anything is called. Tensors stay
in the file and are mapped into memory, so that opening costs nothing and averages that nobody asks
for are never read.
"""

import argparse
import re
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
# How torch's older container, which is no zip and cannot be mapped, begins.
OLDER_FORM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

Weights = dict[str, Tensor]


class Foreign(NamedTuple):
    """A file's content: each set of weights with the decay of its average (None: the weights
    themselves), and the arguments of the training that wrote it, where it kept them.
    """

    sets: list[tuple[float | None, Weights]]
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


def open_foreign(path: Path) -> Foreign:
    """The sets of weights in a file; InputError names what is wrong with it."""
    content = read_content(path)
    arguments = content.get("args")
    if type(arguments) is argparse.Namespace:
        arguments = vars(arguments)
    arguments = arguments if isinstance(arguments, dict) else {}
    sets: list[tuple[float | None, Weights]] = []
    if isinstance(content.get("state_dict"), Mapping):
        sets = _by_prefix(content["state_dict"], path)
    elif isinstance(content.get("model"), Mapping) or any(
        isinstance(content.get(name), Mapping) for name in AVERAGES
    ):
        if isinstance(content.get("model"), Mapping):
            sets.append((None, plain(content["model"], path)))
        for name, (argument, published) in AVERAGES.items():
            said = arguments.get(argument)
            decay = float(said) if isinstance(said, int | float) else published
            if isinstance(content.get(name), Mapping) and decay not in [d for d, _ in sets]:
                sets.append((decay, plain(content[name], path)))
    else:
        sets = _by_prefix(content, path)
    return Foreign(sets, arguments)


def _by_prefix(state: Mapping[Any, Any], path: Path) -> list[tuple[float | None, Weights]]:
    """The networks of a Lightning module, one a prefix; any other mapping is one set as it is."""
    sets: list[tuple[float | None, Weights]] = []
    for prefix, decay in LIGHTNING.items():
        part = {str(name)[len(prefix) :]: value
                for name, value in state.items() if str(name).startswith(prefix)}  # fmt: skip
        if part:
            sets.append((decay, plain(part, path)))
    return sets or [(None, plain(state, path))]


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
    """InputError unless the file is a zip as torch.save writes it: stored, with a small index."""
    try:
        with path.open("rb") as file:
            if file.read(len(OLDER_FORM)) == OLDER_FORM:
                raise InputError(
                    f"{path} is in torch's form before 1.6, which cannot be mapped into memory; "
                    f"re-save it: torch.save(torch.load(OLD, weights_only=True), NEW)"
                )
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_damaged(path, error)) from None
    names = {member.filename.rpartition("/")[2]: member for member in members}
    index = names.get("data.pkl")
    if index is None or "constants.pkl" in names:
        what = "a zip file that torch.save did not write" if index is None else "a TorchScript file"
        raise InputError(f"{path} is {what}; name a checkpoint of weights")
    # A compressed member could unfold to any size, and cannot be mapped.
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or index.file_size > LARGEST_INDEX or len(members) > 8 * MOST_TENSORS:
        what = "compressed" if packed else "far larger in its index than any checkpoint"
        raise InputError(f"{path} is {what}; re-save its weights alone with torch.save")


def _read_torch(path: Path) -> Any:
    # JiT and DiT store the command line they were trained with. A Namespace is a bag of attributes:
    # it has no code that runs when it is built or filled, its values come from this same reader,
    # and what could be reached through one is a class or function that torch's own list has anyway.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged or hostile index can make the reader raise anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, UnpicklingError) and asked:
            raise InputError(
                f"{path} asks for {asked[1][:80]} to be called while it is opened, which was not "
                f"done; re-save its weights alone as .safetensors if you trust who made it"
            ) from None
        raise InputError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    # torch's reader says at length how to switch it off before it says what was wrong.
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    why = ": ".join([type(error).__name__, *map(shown, said[:1])]).rstrip(".")
    return f"{path} cannot be read as a checkpoint ({why}); fetch it again"


# Weights.


def plain(state: Mapping[Any, Any], path: Path) -> Weights:
    """The mapping as names and dense floating tensors, within bounds; InputError names the first
    entry that is anything else.
    """
    if len(state) > MOST_TENSORS:
        raise InputError(f"{path} holds {len(state)} tensors; a checkpoint has at most "
                         f"{MOST_TENSORS}")  # fmt: skip
    total = 0
    for name, value in state.items():
        what = _not_plain(value)
        if not isinstance(name, str) or what:
            raise InputError(f"{path}: {shown(name)} is {what or 'no name'}; a checkpoint maps "
                             f"names to floating tensors")  # fmt: skip
        total += 4 * value.numel()
    if not total:
        raise InputError(f"{path} holds no weights; name a published checkpoint file")
    if total > LARGEST_SET:
        raise InputError(f"{path} holds {total / 1e9:.1f} GB of weights in one set, more than any "
                         f"model here; name another file")  # fmt: skip
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
