"""A small autoencoder of random weights, a folder of small pictures, and toy runs on both."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pointillist.run import Run, from_dict

SIZE, FACTOR, COUNT = 16, 2, 22
KINDS = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def autoencoder(folder: Path, seed: int = 0, **more: Any) -> Path:
    """Random weights as `save_pretrained` writes them; a cell is two pixels wide."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    facts = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, **KINDS}
    model = AutoencoderKL(**{**facts, **more})
    model.save_pretrained(folder)
    return folder


def pictures(folder: Path, seed: int = 0, count: int = COUNT, size: int = SIZE) -> Path:
    """Smooth coloured pictures in two classes."""
    draw = np.random.default_rng(seed)
    for i in range(count):
        path = folder / ("a", "b")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return folder


def toy(data: dict[str, Any], *more: str) -> Run:
    """A small DiT on such data."""
    values = {
        "data": data,
        "model": {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch_size": 2},
        "objective": {"predict": "velocity"},
        "augment": {"flip": False},
        "train": {"images": 32, "batch": 8, "save_every": 16, "grid": 2, "validate": 2,
                  "log_every": 8, "ema": [0.9], "workers": 0, "keep": 0},
        "sample": {"sampler": "euler", "steps": 2},
        "evaluate": {"extractor": "pixels", "count": 10, "reference": 0},
        "device": "cpu",
    }  # fmt: skip
    return from_dict(values, more)


def latent(root: Path, **more: Any) -> dict[str, Any]:
    """Data of latents below `root`, whose pictures and autoencoder are made where they are not."""
    if not (root / "pictures").exists():
        pictures(root / "pictures")
    if "autoencoder" not in more and not (root / "vae").exists():
        autoencoder(root / "vae")
    return {
        "kind": "latent", "of": of(root), "autoencoder": str(root / "vae"),
        "cache": str(root / "latents"), "device": "cpu", **more,
    }  # fmt: skip


def of(root: Path) -> dict[str, Any]:
    return {"kind": "folder", "path": str(root / "pictures"), "size": SIZE, "test_share": 0.2}
