"""The optimizer and the course of its learning rate."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.engine.eightbit import check_eight_bit, dtype_of_moments, eight_bit_adamw
from pointillist.engine.muon import Hidden, Muon
from pointillist.engine.restarts import RestartsConfig
from pointillist.engine.zclip import Norms, ZScoreConfig
from pointillist.types import Count, InputError, config


@config
class StepDownConfig:
    """From the image count `at` on (0: never), `factor` times the rate, and a `clip` of its own.

    `clip` null keeps `optim.clip`, 0 is none.
    """

    at: Count = 0
    factor: float = 0.1
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.at < 0:
            raise InputError(f"optim.step_down.at is {self.at}; it must be 0 or more")
        if not 0 < self.factor <= 1:
            raise InputError(f"optim.step_down.factor is {self.factor}; it lies in (0, 1]")
        if self.clip is not None and self.clip < 0:
            raise InputError(f"optim.step_down.clip is {self.clip}; it must be 0 or more, or null")
        for name, default in (("factor", 0.1), ("clip", None)):
            value = getattr(self, name)
            if not self.at and value != default:
                raise InputError(
                    f"optim.step_down.{name} is {value}, but optim.step_down.at is 0, which is "
                    f"never; set at to a number of images, or optim.step_down={{}} to have none"
                )


@config
class OptimConfig:
    """AdamW; `warmup` in images; `cosine` falls to `final * lr` at the end, `restarts` again and
    again; `clip` 0 is none, and `zscore` clips what stands out from the norms before.

    `moments: 8bit` keeps AdamW's in a byte each, on CUDA. `hidden: muon` gives the matrices inside
    the blocks to Muon, with `momentum` and the same `lr` and `weight_decay`; everything else stays
    with AdamW.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: Count = 0
    schedule: Literal["constant", "cosine", "restarts"] = "constant"
    final: float = 0.0
    restarts: RestartsConfig = RestartsConfig()
    clip: float = 1.0
    zscore: ZScoreConfig = ZScoreConfig()
    moments: Literal["float32", "8bit"] = "float32"
    hidden: Literal["adamw", "muon"] = "adamw"
    momentum: float = 0.95
    step_down: StepDownConfig = StepDownConfig()

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"optim.lr is {self.lr}; it must be above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optim.betas is {self.betas}; both lie in [0, 1)")
        if not 0 <= self.momentum < 1:
            raise InputError(f"optim.momentum is {self.momentum}; it lies in [0, 1)")
        if self.hidden == "adamw" and self.momentum != 0.95:
            raise InputError(
                f"optim.momentum is {self.momentum}, but optim.hidden is adamw, which has betas "
                f"instead; set optim.hidden=muon or leave out the momentum"
            )
        for name in ("weight_decay", "warmup", "final", "clip"):
            if getattr(self, name) < 0:
                raise InputError(f"optim.{name} is {getattr(self, name)}; it must be 0 or more")
        self._check_restarts()
        down = self.step_down
        if down.at and down.at < self.warmup:
            raise InputError(
                f"optim.step_down.at is {down.at}, but optim.warmup lasts {self.warmup} images; "
                f"step down after it, or set optim.step_down={{}} to have none"
            )
        if down.at and down.factor == 1 and down.clip in (None, self.clip):
            raise InputError(
                "optim.step_down.factor is 1 and its clip is optim.clip, so nothing changes; set "
                "one of them, or optim.step_down={} to have none"
            )

    def _check_restarts(self) -> None:
        if self.schedule != "restarts":
            if self.restarts != RestartsConfig():
                raise InputError(
                    f"optim.restarts is set, but optim.schedule is {self.schedule}; set "
                    f"optim.schedule=restarts, or optim.restarts={{}} to have none"
                )
            return
        if not self.restarts.cycle:
            raise InputError(
                "optim.schedule is restarts, but optim.restarts.cycle is 0; set it to a number of "
                "images"
            )
        if self.final:
            raise InputError(
                f"optim.final is {self.final}, but optim.schedule is restarts, which has "
                f"optim.restarts.valley and floor instead; leave it out"
            )


def build_optimizer(
    model: nn.Module, optim: OptimConfig, hidden: Hidden, beside: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of the whole model; `hidden` are the weights that Muon may have.

    What is trained `beside` the model is AdamW's.
    """
    if optim.hidden == "adamw":
        return adamw([*model.parameters(), *beside], optim)
    if not hidden:
        raise InputError(
            "optim.hidden is muon, but the model has no blocks; set optim.hidden=adamw"
        )
    rest = adamw([*(p for p in model.parameters() if p not in hidden), *beside], optim)
    return Muon(hidden, rest, optim.lr, optim.momentum, optim.weight_decay)


def check_moments(optim: OptimConfig, device: torch.device) -> None:
    """InputError where the moments that are asked for cannot be computed on the device."""
    if optim.moments == "8bit":
        check_eight_bit(device)


def adamw(parameters: list[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 1711.05101); norms, biases, other 1-D weights do not decay."""
    parameters = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    device = parameters[0].device
    if optim.moments == "8bit":
        for group in groups:
            group["bits"] = 8
        if device.type != "meta":  # where nothing is computed but `moments`
            check_moments(optim, device)
            return eight_bit_adamw(groups, optim.lr, optim.betas)
    # The fused form is the same arithmetic in one pass; MPS has none.
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)


def learning_rate(optim: OptimConfig, images: int, total: int) -> float:
    """The rate of the step that reaches `images`, in a run of `total`.

    Linear from 0 over the warm-up, then constant, a cosine to `final * lr` at the end, or cosines
    that restart; lower by a factor once stepped down.
    """
    if images < optim.warmup:
        return optim.lr * images / optim.warmup
    lr = optim.lr * (optim.step_down.factor if stepped_down(optim, images) else 1)
    if optim.schedule == "constant":
        return lr
    if optim.schedule == "restarts":
        return lr * optim.restarts.share(images - optim.warmup)
    progress = min(1.0, (images - optim.warmup) / max(1, total - optim.warmup))
    fall = (1 + math.cos(math.pi * progress)) / 2
    return lr * (optim.final + (1 - optim.final) * fall)


def stepped_down(optim: OptimConfig, images: int) -> bool:
    """Whether the step that reaches `images` takes any beyond `step_down.at`."""
    return 0 < optim.step_down.at < images


def clip_norm(optim: OptimConfig, images: int) -> tuple[str, float]:
    """The field that rules the clipping of the step that reaches `images`, and its value."""
    if stepped_down(optim, images) and optim.step_down.clip is not None:
        return "optim.step_down.clip", optim.step_down.clip
    return "optim.clip", optim.clip


def clip_gradients(
    parameters: Sequence[nn.Parameter], clip: float, optim: OptimConfig, norms: Norms
) -> Float[Tensor, ""]:
    """Clip the gradients of all to a norm of `clip` (0: none) and to what stands out from `norms`.

    Answers with the norm that they had, on their device: nothing here waits for it.
    """
    if not optim.zscore.threshold:
        return nn.utils.clip_grad_norm_(parameters, clip or torch.inf)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    limit: Any = norms.limit(optim.zscore, norm).clamp(max=clip or torch.inf)
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def moments(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, torch.dtype]]:
    """Every parameter as often as its first step makes a tensor of its shape, and what that is made
    of: AdamW makes two, Muon one.
    """
    return [
        (p, dtype_of_moments(p, group))
        for group in optimizer.param_groups
        for p in group["params"] * (1 if "momentum" in group else 2)
    ]


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer as `parameter name/entry`; empty before the first step.

    Numbers become int64 tensors; what several parameters share, as tables do, is there for each.
    """
    found, seen = {}, set[int]()
    for name, p in model.named_parameters():
        for entry, value in optimizer.state.get(p, {}).items():
            value = value if isinstance(value, Tensor) else torch.tensor(value)
            shared = value.data_ptr() in seen
            seen.add(value.data_ptr())
            found[f"{name}/{entry}"] = value.clone() if shared else value
    return found


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in state.items():
        name, entry = key.rsplit("/", 1)
        p = parameters[name]
        if value.dtype == torch.int64 and value.dim() == 0:
            optimizer.state[p][entry] = int(value)
            continue
        device = value.device if entry == "step" and p.device.type == "cpu" else p.device
        optimizer.state[p][entry] = value.to(device)
