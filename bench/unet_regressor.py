"""A plain U-Net that restores CIFAR-10 pictures from known pixels in one step: a learnt baseline.

    python bench/unet_regressor.py OUT --minutes 20 [--share 0.2] [--resume] [--record NAME]
        [--precision float32]

About 0.57 million parameters (Ronneberger et al. 2015; three resolutions, GroupNorm, SiLU); known
pixels and their mask in, squared error on hidden pixels, flips, batches of 64 in bfloat16. Without
--share, that of the known pixels is uniform in [0.05, 0.4], anew for every picture. Training stops
after that many minutes of training in all, resumed parts counted; the rate falls to 0 by a cosine
over them. Judged by the sparse protocol at 5, 10, 20 and 40 %.
"""

import argparse
import math
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import circumstances, record
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.data import CIFAR10Config
from pointillist.data.source import InMemory
from pointillist.draws import Draw, permutation
from pointillist.engine import checkpoint
from pointillist.engine.device import autocast, memory_in_use, pick_device
from pointillist.known import protocol_mask
from pointillist.metrics.pixel import lpips, psnr, ssim
from pointillist.types import InputError
from pointillist.validation import held_out

BATCH, RATE, WARMUP, DECAY = 64, 2e-3, 200, 1e-2
WIDTHS, CONVOLUTIONS = (32, 64, 128), (3, 3, 2)
LOWEST, HIGHEST = 0.05, 0.4
SHARES = (0.05, 0.1, 0.2, 0.4)
PORTION = 25


def stage(inside: int, outside: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [nn.Conv2d(outside if i else inside, outside, 3, padding=1, bias=False),
                   nn.GroupNorm(8, outside), nn.SiLU()]  # fmt: skip
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Means of 2 x 2 cells on the way down, copies on the way up, where the finer stage joins."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width = 4
        for outside, convolutions in zip(WIDTHS, CONVOLUTIONS, strict=True):
            self.down.append(stage(width, outside, convolutions))
            width = outside
        for outside, convolutions in zip(WIDTHS[-2::-1], CONVOLUTIONS[-2::-1], strict=True):
            self.up.append(stage(width + outside, outside, convolutions))
            width = outside
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, seen: Tensor, mask: Tensor) -> Tensor:
        x, finer = torch.cat((seen, mask.to(seen.dtype)), 1), []
        for i, layer in enumerate(self.down):
            x = layer(F.avg_pool2d(x, 2) if i else x)
            finer.append(x)
        for layer, joined in zip(self.up, finer[-2::-1], strict=True):
            x = layer(torch.cat((F.interpolate(x, scale_factor=2.0), joined), 1))
        return self.head(x).float()


def portion(train: InMemory, first: int, seed: int, share: float | None) -> tuple[Tensor, Tensor]:
    """Pictures number `first` and on of an endless walk, flipped by chance, and their masks."""
    epoch, at = divmod(first, len(train) // BATCH * BATCH)
    rows = permutation(seed, epoch, "order", len(train))[at : at + BATCH]
    draw = Draw(seed, torch.arange(first, first + BATCH))
    x = train.rows(rows.tolist()).x.float() / 127.5 - 1
    x = torch.where(draw.uniform("flip")[:, None, None, None] < 0.5, x.flip(-1), x)
    wanted = LOWEST + (HIGHEST - LOWEST) * draw.uniform("share")
    if share is not None:
        wanted = torch.full_like(wanted, share)
    rank = draw.uniform("mask", (1024,)).argsort(1).argsort(1)
    mask = rank < (wanted[:, None] * 1024).round()
    return x, mask.view(-1, 1, 32, 32)


@torch.no_grad()
def judge(model: UNet, x: Tensor, device: torch.device) -> dict[str, dict[str, float]]:
    """Scores by share of known pixels: PSNR over hidden pixels and whole pictures; of the whole
    pictures SSIM and LPIPS; the absolute error of hidden pixels, which is the CRPS of one answer.
    """
    found = {}
    model.eval()
    for share in SHARES:
        mask = torch.stack([protocol_mask(i, (32, 32), share) for i in range(len(x))])[:, None]
        seen = torch.where(mask, x, 0)
        full = model(seen.to(device), mask.to(device)).cpu().clamp(-1, 1)
        full = torch.where(mask, x, full)
        found[f"{share:g}"] = {
            "hidden": round(float(psnr(full, x, data_range=2.0, mask=~mask).mean()), 2),
            "whole": round(float(psnr(full, x, data_range=2.0).mean()), 2),
            "ssim": round(float(ssim((full + 1) / 2, (x + 1) / 2, data_range=1.0).mean()), 4),
            "lpips": round(float(lpips(full, x, data_range=2.0).mean()), 4),
            "crps": round(float((full - x).abs().sum() / (3 * (~mask).sum())), 4),
        }
    model.train()
    return found


@torch.no_grad()
def cost(model: UNet, x: Tensor, device: torch.device) -> float:
    """Seconds of a picture, the median over portions of 25."""
    model.eval()
    mask = torch.stack([protocol_mask(i, (32, 32), 0.2) for i in range(len(x))])[:, None]
    found = []
    for first in range(0, len(x), PORTION):
        part = slice(first, first + PORTION)
        begun = time.perf_counter()
        model(torch.where(mask[part], x[part], 0).to(device), mask[part].to(device)).cpu()
        found.append((time.perf_counter() - begun) / len(x[part]))
    return statistics.median(found)


class Training:
    """Weights, optimizer and counters, and how they are kept."""

    def __init__(self, folder: Path, settings: dict[str, Any], device: torch.device) -> None:
        torch.manual_seed(settings["seed"])
        self.folder, self.settings, self.device = folder, settings, device
        self.model = UNet().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE, weight_decay=DECAY)
        self.images, self.seconds = 0, 0.0

    def save(self) -> None:
        moments = {
            f"{name}.{word}": value
            for name, p in self.model.named_parameters()
            for word, value in self.optimizer.state[p].items()
        }
        groups = {"model": self.model.state_dict(), "optimizer": moments}
        facts = {"images": self.images, "seconds": self.seconds, "settings": self.settings}
        checkpoint.save(self.folder / f"{self.images:09d}", groups, facts)
        checkpoint.prune(self.folder, 2)

    def resume(self) -> None:
        kept = checkpoint.complete(self.folder)
        if not kept:
            raise InputError(f"{self.folder} holds no checkpoint; leave --resume out")
        facts = checkpoint.facts_of(kept[-1])
        if facts["settings"] != self.settings:
            raise InputError(
                f"{self.folder} was trained with {facts['settings']}, not {self.settings}; "
                f"use the same flags"
            )
        self.images, self.seconds = facts["images"], facts["seconds"]
        self.model.load_state_dict(checkpoint.load(kept[-1], "model"))
        moments = checkpoint.load(kept[-1], "optimizer")
        for name, p in self.model.named_parameters():
            words = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[p] = {
                word: value if word == "step" else value.to(p)
                for word, value in ((word, moments[f"{name}.{word}"]) for word in words)
            }

    def step(self, train: InMemory, minutes: float) -> float:
        begun = time.perf_counter()
        x, mask = portion(train, self.images, self.settings["seed"], self.settings["share"])
        x, mask = x.to(self.device), mask.to(self.device)
        passed = min(self.seconds / (60 * minutes), 1.0)
        warm = min((self.images // BATCH + 1) / WARMUP, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * warm * (1 + math.cos(math.pi * passed)) / 2
        with autocast(self.device, self.settings["precision"]):
            answer = self.model(torch.where(mask, x, 0), mask)
        loss = (answer - x).square().mul(~mask).sum() / (3 * (~mask).sum())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.images += len(x)
        loss = float(loss.detach())
        self.seconds += time.perf_counter() - begun
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--share", type=float, help="of known pixels; random where it is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--save-minutes", type=float, default=2.0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--count", type=int, default=200, help="test pictures")
    parser.add_argument("--record", default="", help="name of the result")
    asked = parser.parse_args()
    device = pick_device(asked.device)
    settings = {"seed": asked.seed, "share": asked.share, "precision": asked.precision,
                "minutes": asked.minutes}  # fmt: skip
    begin = circumstances()
    training = Training(asked.out, settings, device)
    if asked.resume:
        training.resume()
    elif checkpoint.complete(asked.out):
        raise InputError(f"{asked.out} holds checkpoints; give --resume or another folder")
    train, test = (CIFAR10Config(path=asked.data).open(split) for split in ("train", "test"))
    x, _ = held_out(test, asked.count)
    parameters = sum(p.numel() for p in training.model.parameters())
    print(f"{parameters} parameters, {training.images} images seen", flush=True)
    saved, losses = training.seconds, []
    while training.seconds < 60 * asked.minutes:
        losses.append(training.step(train, asked.minutes))
        if training.seconds - saved >= 60 * asked.save_minutes:
            training.save()
            saved = training.seconds
            mean = sum(losses) / len(losses)
            print(f"{saved / 60:.1f} min, {training.images} images, loss {mean:.4f}", flush=True)
            losses = []
    training.save()
    kind = f"{asked.share:g}" if asked.share is not None else f"{LOWEST:g} to {HIGHEST:g}"
    seconds, memory = cost(training.model, x, device), memory_in_use()
    scores = judge(training.model, x, device)
    own = "unet-regressor" if asked.share is None else f"unet-regressor-{asked.share:g}"
    record(asked.record or own, {
        "parameters": parameters, "share trained on": kind,
        "minutes": round(training.seconds / 60, 2),
        "images": training.images, "images per second": round(training.images / training.seconds),
        "device": str(device), "seed": asked.seed, "precision": asked.precision,
        "pictures": len(x), "seconds a picture": round(seconds, 6),
        "peak memory, with training": memory, "by share of known pixels": scores,
        "command": shlex.join(["python", "bench/unet_regressor.py", *sys.argv[1:]]),
        "where": begin,
    })  # fmt: skip


if __name__ == "__main__":
    main()
