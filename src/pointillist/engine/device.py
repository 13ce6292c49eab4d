"""Where and in what precision to compute."""

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from pointillist.types import InputError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA, then MPS, then the CPU."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise InputError(f"device is {name}; it is one of auto, cpu, cuda, mps")
    if (name == "cuda" and not cuda) or (name == "mps" and not mps):
        raise InputError(
            f"device is {name}, but torch {torch.__version__} finds none here; use device cpu"
        )
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in `precision`; float32 needs nothing."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for this process: glibc's alone, elsewhere nothing.

    It maps and unmaps every tensor above 32 MB otherwise, and the system clears each of its pages
    anew: a quarter of the time of a training step whose activations are that large.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mmap_max, trim_threshold = -4, -1  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device (on the CPU: available memory of the machine)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_machine_memory(), _container_memory())


def _machine_memory() -> int:
    """Linux's own estimate, which counts caches that it would give up; elsewhere all there is."""
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves; a very large number where there is none."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files that are merely cached count as used, but would be given up.
        used -= int(stat["active_file"]) + int(stat["inactive_file"])
        return max(0, limit - used)
    except (OSError, ValueError, KeyError):  # no such file, or the word "max"
        return 1 << 62


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (any device) or Python could not get the memory asked for."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text
        or "not enough memory" in text
        or "out of memory" in text
        or "ALLOC_FAILED" in text  # cuBLAS and cuDNN have words of their own
    )


def memory_in_use() -> int:
    """Most bytes held so far: on the CUDA device if there is one, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
