"""Teachers: frozen networks that turn pictures into tokens, all behind one signature.

    teacher(x, grid)        x: b 3 h w in [-1, 1]   ->   b d gh gw on the grid asked for

Each resizes (bicubic, without aliasing, not cut: a non-square picture stays non-square) to the size
at which it has that grid, and normalises as it was trained:

    alexnet         16 g + 15 pixels for g tokens; LPIPS's shift and scale; the fifth layer, d = 256
    a ViT           p g pixels for g tokens of patch p; mean and deviation of its own
                    preprocessor_config.json, or its kind's (ImageNet's for DINO, 1/2 for ViT);
                    its last, normalised tokens without class and register tokens

A ViT is any of `transformers` (DINOv2, DINOv3, ViT, CLIP, SigLIP, ...), by folder or hub id. Only
safetensors are opened, and no code that comes with a model is run.
"""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pointillist.frozen.alexnet import CONVOLUTIONS, WIDTHS, shipped
from pointillist.types import InputError

Grid = tuple[int, int]
INSTALL = "pip install 'pointillist[teachers]'"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# Mean and deviation of the kinds that are often stored without a preprocessor's file.
NORMALISATIONS = {
    "dinov2": IMAGENET, "dinov2_with_registers": IMAGENET, "dinov3_vit": IMAGENET, "vit": HALF,
    "siglip_vision_model": HALF, "siglip2_vision_model": HALF, "clip_vision_model": CLIP,
}  # fmt: skip
WITHOUT_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model")


@runtime_checkable
class Teacher(Protocol):
    """A frozen network: its width d, and the step of its tokens in pixels that it sees."""

    width: int
    patch: int

    def __call__(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b d gh gw"]: ...


class Promise(NamedTuple):
    """What a teacher will be, told without opening its weights."""

    width: int
    parameters: int


def resized(x: Float[Tensor, "b 3 h w"], size: Grid) -> Float[Tensor, "b 3 h2 w2"]:
    """Bicubic, with a wider kernel where the picture shrinks."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x.float(), size, mode="bicubic", align_corners=False, antialias=True)


class AlexNet:
    """The features behind LPIPS as a teacher; the one whose weights come with the package."""

    width, patch = WIDTHS[-1], 16

    def __init__(self, device: torch.device) -> None:
        self.features = shipped(device).features

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b d gh gw"]:
        return self.features(resized(x, (16 * grid[0] + 15, 16 * grid[1] + 15)))[-1]


class VisionTransformer:
    """A ViT of `transformers`, by folder or hub id."""

    def __init__(self, name: str, device: torch.device) -> None:
        transformers = _transformers()
        config = _vision_config(name)
        self.width, self.patch = _width(name, config), _patch(name, config)
        (mean, deviation), self.name = _normalisation(name, config), name
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.deviation = torch.tensor(deviation, device=device).view(3, 1, 1)
        transformers.utils.logging.disable_progress_bar()
        with _told(name):
            model = transformers.AutoModel.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
        # Two-tower models keep their eyes in a part of their own.
        model = getattr(model, "vision_model", model)
        self.model = model.to(device).eval().requires_grad_(False)
        class_tokens = 0 if config.model_type in WITHOUT_CLASS_TOKEN else 1
        self.extra = class_tokens + (getattr(config, "num_register_tokens", 0) or 0)
        # Learnt places of one grid are interpolated to others where the model is asked to.
        asks = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if asks else {}

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b d gh gw"]:
        x = resized(x, (grid[0] * self.patch, grid[1] * self.patch))
        x = (x * 0.5 + 0.5 - self.mean) / self.deviation
        tokens = self.model(pixel_values=x, **self.options).last_hidden_state
        wanted = grid[0] * grid[1] + self.extra
        if tokens.dim() != 3 or tokens.shape[1] != wanted:
            raise InputError(
                f"loss.align.teacher {self.name} answers with shape {tuple(tokens.shape)}, not "
                f"with {wanted} tokens as its configuration has it; choose another ViT"
            )
        return tokens[:, self.extra :].mT.unflatten(2, grid)


def load_teacher(name: str, device: torch.device) -> Teacher:
    """`alexnet`, or a ViT by folder or hub id; InputError where it is not to be had."""
    return AlexNet(device) if name == "alexnet" else VisionTransformer(name, device)


def promise(name: str) -> Promise:
    """Width and number of parameters; InputError where there is no such teacher."""
    if name == "alexnet":
        parameters = sum(o * (i * kernel**2 + 1) for i, o, kernel, *_ in CONVOLUTIONS)
        return Promise(WIDTHS[-1], parameters)
    transformers, config = _transformers(), _vision_config(name)
    _patch(name, config)
    _normalisation(name, config)
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise InputError(
            f"loss.align.teacher {name} holds no .safetensors; give a folder that save_pretrained "
            f"wrote"
        )
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return Promise(_width(name, config), sum(p.numel() for p in model.parameters()))


# What transformers says, in our words.


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            f"loss.align.teacher other than alexnet needs transformers, which is not installed; "
            f"{INSTALL} installs it"
        ) from None


class _told:
    """Turns what transformers raises for a name into one sentence."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, ValueError, KeyError, RuntimeError)):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"loss.align.teacher {self.name} cannot be loaded ({first}); give alexnet, the "
                f"folder of a ViT that save_pretrained wrote, or a hub id that can be reached"
            ) from None


def _vision_config(name: str) -> Any:
    if not name or ((name[0] in "./~" or name.count("/") != 1) and not Path(name).is_dir()):
        raise InputError(
            f"loss.align.teacher is {name!r}, which is neither alexnet, a folder, nor a hub id; "
            f"give one of them"
        )
    with _told(name):
        config = _transformers().AutoConfig.from_pretrained(name, trust_remote_code=False)
    return getattr(config, "vision_config", config)


def _patch(name: str, config: Any) -> int:
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or not isinstance(getattr(config, "hidden_size", None), int):
        raise InputError(
            f"loss.align.teacher {name} is a {config.model_type}, which has no square patches; "
            f"choose a ViT"
        )
    if getattr(config, "num_channels", 3) != 3:
        raise InputError(
            f"loss.align.teacher {name} looks at {config.num_channels} channels; choose one of 3"
        )
    return patch


def _width(name: str, config: Any) -> int:
    _patch(name, config)
    return config.hidden_size


def _normalisation(name: str, config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    find = _transformers().utils.cached_file
    with _told(name):
        path = find(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if path is not None:
        with _told(name):
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
        if "image_mean" in facts and "image_std" in facts:
            if facts.get("do_normalize", True):
                return tuple(facts["image_mean"]), tuple(facts["image_std"])
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.model_type not in NORMALISATIONS:
        raise InputError(
            f"loss.align.teacher {name} has no preprocessor_config.json, and how a "
            f"{config.model_type} normalises is not known; put one with image_mean and image_std "
            f"beside its config.json"
        )
    return NORMALISATIONS[config.model_type]
